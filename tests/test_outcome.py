"""Outcomes: what they say, and that they are plain data."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart import cjson
from hotrestart.outcome import Outcome

SECONDS = st.floats(0, 1e6)
STAGES = st.sampled_from(["load", "ready", "soak", "commit", "stop"])

OUTCOMES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "ok": st.booleans(),
        "generation": st.integers(1, 10**6),
        "stage": STAGES,
        "reason": st.text(),
        "detail": st.text(),
        "pid": st.integers(1, 2**22),
        "seconds": SECONDS,
        "stages": st.dictionaries(STAGES, SECONDS),
    }
)


@given(OUTCOMES)
def test_an_outcome_is_plain_data_there_and_back(about: dict[str, Any]) -> None:
    outcome = Outcome(**about)
    document = cjson.loads(cjson.dumps(outcome.as_document()))
    assert document == about
    assert Outcome(**document).as_document() == about


@given(OUTCOMES)
def test_an_outcome_can_be_shown(about: dict[str, Any]) -> None:
    outcome = Outcome(**about)
    assert f"generation {outcome.generation}" in str(outcome)
    assert repr(outcome) == f"<Outcome {outcome}>"
    if not outcome.ok:
        assert str(outcome).endswith(f"failed at stage {outcome.stage}: {outcome.reason}")


def test_success_says_how_long_each_stage_took() -> None:
    outcome = Outcome(True, generation=8, stage="commit", seconds=1.234, stages={"load": 1.0, "ready": 0.234})
    assert str(outcome) == "generation 8 serves after 1.23 s (load 1.00 s, ready 0.23 s)"


def test_failure_says_where_and_why() -> None:
    outcome = Outcome(False, generation=8, stage="load", reason="SyntaxError: invalid syntax", detail="line 1\nline 2")
    assert str(outcome) == "generation 8 failed at stage load: SyntaxError: invalid syntax"
    assert outcome.detail == "line 1\nline 2"


def test_what_is_not_said_is_empty() -> None:
    outcome = Outcome(True, generation=2, stage="commit")
    assert (outcome.reason, outcome.detail, outcome.seconds, outcome.stages) == ("", "", 0.0, {})


def test_the_stages_are_its_own() -> None:
    stages = {"load": 1.0}
    outcome = Outcome(True, generation=2, stage="commit", stages=stages)
    stages["ready"] = 2.0
    assert outcome.stages == {"load": 1.0}


def test_an_outcome_has_no_other_attributes() -> None:
    outcome = Outcome(True, generation=2, stage="commit")
    with pytest.raises(AttributeError):
        outcome.okay = True  # type: ignore[attr-defined]
