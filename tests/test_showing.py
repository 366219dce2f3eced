"""How outcomes, times, sizes and a status look to a person."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart import showing
from hotrestart.outcome import Outcome

SECONDS = {"d": 86400, "h": 3600, "min": 60, "s": 1}
WORDS = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0, "0 s"),
        (59.99, "59 s"),
        (60, "1 min"),
        (3601, "1 h 1 s"),
        (90061, "1 d 1 h"),
        (1e8, "1157 d 9 h"),
    ],
)
def test_a_time(seconds: float | None, shown: str) -> None:
    assert showing.span(seconds) == shown


@given(st.floats(0, 1e9))
def test_a_time_is_never_too_long_and_cut_off_below_its_second_unit(seconds: float) -> None:
    parts = [(int(count), unit) for count, unit in re.findall(r"(\d+) ([a-z]+)", showing.span(seconds))]
    assert 1 <= len(parts) <= 2
    shown = sum(count * SECONDS[unit] for count, unit in parts)
    assert 0 <= seconds - shown < SECONDS[parts[-1][1]] if len(parts) == 2 else seconds - shown < 1
    assert [SECONDS[unit] for _, unit in parts] == sorted((SECONDS[unit] for _, unit in parts), reverse=True)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(None, "-"), (0, "0.0 MB"), (12_345_678, "12.3 MB"), (10**9, "1.00 GB"), (123 * 10**9, "123.00 GB")],
)
def test_a_size(size: int | None, shown: str) -> None:
    assert showing.amount(size) == shown


@given(st.integers(0, 2**50))
def test_a_size_is_right_to_a_hundredth_of_its_unit(size: int) -> None:
    number, unit = showing.amount(size).split()
    scale = {"MB": 1e6, "GB": 1e9}[unit]
    assert abs(float(number) * scale - size) <= 0.051 * scale


def test_the_outcome_of_a_restart_that_has_worked_is_one_line() -> None:
    told = Outcome(True, generation=3, stage="commit", seconds=1.5, stages={"load": 1.25, "ready": 0.25}, detail="")
    assert showing.outcome(told) == "generation 3 serves after 1.50 s (load 1.25 s, ready 0.25 s)"


@given(st.sampled_from(["preflight", "load", "ready", "soak", "stop"]), WORDS, st.lists(WORDS))
def test_a_failure_says_why_and_who_serves_now(stage: str, reason: str, detail: list[str]) -> None:
    told = Outcome(False, generation=2, stage=stage, reason=reason, detail="\n".join(detail))
    first, *middle, last = showing.outcome(told).split("\n")
    assert first == f"generation 2 failed at stage {stage}: {reason}"
    assert middle == [f"    {line}" for line in detail]
    assert (last == "the old code still serves") == (stage != "stop")


workers = st.fixed_dictionaries(
    {
        "pid": st.integers(0, 2**22),
        "generation": st.integers(1, 10**6),
        "state": st.sampled_from(["starting", "ready", "serving", "draining"]),
        "age": st.none() | st.floats(0, 1e8),
        "beats": st.none() | st.integers(0, 2**63),
        "memory": st.none() | st.integers(1, 2**45),
    }
)


def status(**more: Any) -> dict[str, Any]:
    return {
        "pid": 4711,
        "kind": "rolling",
        "state": "serving",
        "stage": "",
        "generation": 2,
        "uptime": 7300.0,
        "command": ["/usr/bin/python3", "app.py"],
        "python": "3.11.7",
        "hotrestart": "1.0",
        "last": None,
        "workers": [],
        "wanted": 0,
        **more,
    }


@given(st.lists(workers, max_size=20), st.integers(0, 25), st.sampled_from(["rolling", "run", "in place"]))
def test_a_status(members: list[dict[str, Any]], wanted: int, kind: str) -> None:
    lines = showing.status(status(kind=kind, workers=members, wanted=wanted)).split("\n")
    assert lines[:3] == [
        "/usr/bin/python3 app.py",
        f"pid 4711, {kind}, serving, generation 2, up 2 h 1 min, Python 3.11.7, hotrestart 1.0",
        "",
    ]
    head, rows = lines[3], lines[4 : 4 + len(members)]
    starts = [match.start() for match in re.finditer(r"\S+", head)]
    for each, row in zip(members, rows, strict=True):
        cells = [row[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        expected = [str(each["pid"] or "-"), str(each["generation"]), each["state"], showing.span(each["age"])]
        expected += ["-" if each["beats"] is None else str(each["beats"]), showing.amount(each["memory"])]
        assert cells == expected
        assert all(start == 0 or row[start - 1 : start] in (" ", "") for start in starts)
    missing = wanted - sum(each["state"] in ("ready", "serving") for each in members)
    told = [f"{wanted} wanted, {missing} of them not ready"] if missing > 0 and kind != "in place" else []
    assert lines[4 + len(members) :] == told


@pytest.mark.parametrize(("generation", "what"), [(1, "start"), (2, "last restart")])
def test_the_last_restart(generation: int, what: str) -> None:
    last = Outcome(True, generation=generation, stage="commit", pid=4711, seconds=0.5)
    text = showing.status(status(last=last.as_document()))
    assert text.endswith(f"\n\n{what}: generation {generation} serves after 0.50 s ()")


def test_the_stage_of_a_restart_that_is_under_way() -> None:
    assert "restarting (load), generation 2" in showing.status(status(state="restarting", stage="load"))
