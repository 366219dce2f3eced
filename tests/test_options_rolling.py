"""The options of rolling restarts: each wrong value is refused where it is written, by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart import cjson
from hotrestart.errors import HotRestartError, OptionError
from hotrestart.options import Options

MOST = 2048

COUNTS = ["workers", "batch", "max_jobs", "max_rss"]
SECONDS = ["ready_timeout", "grace", "soak", "jitter"]
POSITIVE_OR_NONE = ["timeout", "max_age"]
FLAGS = ["preload", "preflight"]
NEED_WORKERS: dict[str, Any] = {
    "timeout": 1.0,
    "batch": 1,
    "max_jobs": 1,
    "max_age": 1.0,
    "max_rss": 1,
    "soak": 1.0,
    "preload": False,
}

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.lists(st.integers(), max_size=2),
    st.just(object()),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324, 10**400, -(10**400), MOST, MOST + 1]),
)


def options(**given: Any) -> Options:
    return Options.checked({"workers": 2, **given})


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def refused(name: str, value: object, match: str) -> None:
    with pytest.raises(OptionError, match=f"^{name} is {match}.*, not ") as caught:
        options(**{name: value})
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, HotRestartError)
    assert str(caught.value).endswith(f"not {value!r}")


@pytest.mark.parametrize("name", COUNTS)
@given(value=ANYTHING)
def test_a_number_of_things_is_a_number_or_refused(name: str, value: Any) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value is None or (fits and (name != "workers" or value <= MOST)):
        assert getattr(options(**{name: value}), name) == value
    else:
        refused(name, value, "a number")


@pytest.mark.parametrize("name", SECONDS)
@given(value=ANYTHING)
def test_a_duration_or_a_share_is_a_number_or_refused(name: str, value: Any) -> None:
    if is_number(value) and value >= 0:
        assert getattr(options(**{name: value}), name) == min(value, 4e6)
    else:
        refused(name, value, "a share" if name == "jitter" else "a number of seconds, 0 or more")


@pytest.mark.parametrize("name", POSITIVE_OR_NONE)
@given(value=ANYTHING)
def test_a_limit_in_seconds_is_more_than_0_or_none_or_refused(name: str, value: Any) -> None:
    if value is None or (is_number(value) and value > 0):
        found = getattr(options(**{name: value}), name)
        assert found == (None if value is None else min(value, 4e6))
    else:
        refused(name, value, "a number of seconds, more than 0")


@pytest.mark.parametrize("name", FLAGS)
@given(value=ANYTHING)
def test_a_flag_is_true_or_false_or_refused(name: str, value: Any) -> None:
    if isinstance(value, bool):
        assert getattr(options(**{name: value}), name) is value
    else:
        refused(name, value, "True or False")


def test_too_many_workers_are_told_how_many_there_may_be() -> None:
    with pytest.raises(OptionError, match=f"^workers is a number, 1 or more, {MOST} at most, not 10000$"):
        Options(workers=10_000)


def test_there_is_an_option_for_each_of_these_and_no_other() -> None:
    assert sorted([*COUNTS, *SECONDS, *POSITIVE_OR_NONE, *FLAGS, "control", "pidfile"]) == sorted(Options.__slots__)


@pytest.mark.parametrize("name", ["control", "pidfile"])
def test_a_path_is_absolute_from_the_beginning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("app.x", Path("app.x"), f"{tmp_path}/y/../app.x"):
        assert getattr(Options(**{name: path}), name) == f"{tmp_path}/app.x"


@pytest.mark.parametrize("name", ["control", "pidfile"])
@pytest.mark.parametrize("value", ["", 1, b"/app.x", "a\0b", [], 0.5], ids=repr)
def test_what_is_no_path_is_refused(name: str, value: Any) -> None:
    refused(name, value, "a path")


def test_a_control_socket_s_path_has_to_fit_into_an_address() -> None:
    assert Options(control="/" + "x" * 102).control == "/" + "x" * 102
    with pytest.raises(OptionError, match="too long"):
        Options(control="/" + "x" * 103)


@given(st.text(min_size=1).filter(lambda name: name not in Options.__slots__))
def test_an_unknown_option_is_refused_with_a_list_of_those_there_are(name: str) -> None:
    with pytest.raises(TypeError) as caught:
        Options.checked({name: 1})
    assert str(caught.value).startswith(f"there is no option {name!r}")
    for known in Options.__slots__:
        assert known in str(caught.value)


@pytest.mark.parametrize("name", NEED_WORKERS)
def test_what_does_nothing_without_workers_is_refused_there(name: str) -> None:
    with pytest.raises(OptionError, match=r"needs? workers=") as caught:
        Options(**{name: NEED_WORKERS[name]})
    assert name in str(caught.value)
    assert getattr(options(**{name: NEED_WORKERS[name]}), name) == NEED_WORKERS[name]


@pytest.mark.parametrize("name", sorted(set(Options.__slots__) - NEED_WORKERS.keys() - {"workers"}))
def test_the_others_do_something_without_workers_too(name: str) -> None:
    default = getattr(Options(), name)
    assert getattr(Options(**{name: default}), name) == default


def test_the_defaults() -> None:
    assert Options().as_document() == {
        "workers": None,
        "control": True,
        "pidfile": None,
        "preload": True,
        "preflight": True,
        "ready_timeout": 60.0,
        "grace": 30.0,
        "timeout": None,
        "batch": None,
        "soak": 0.0,
        "max_jobs": None,
        "max_age": None,
        "max_rss": None,
        "jitter": 0.1,
    }


DURATION = st.floats(0, 1e300) | st.integers(0, 10**400)
LIMIT = st.none() | st.floats(0, 1e300, exclude_min=True) | st.integers(1, 10**400)
COUNT = st.none() | st.integers(1, 10**50)

SOUND = st.fixed_dictionaries(
    {"workers": st.integers(1, MOST)},
    optional={
        **dict.fromkeys(FLAGS, st.booleans()),
        **dict.fromkeys(SECONDS, DURATION),
        **dict.fromkeys(POSITIVE_OR_NONE, LIMIT),
        **{name: COUNT for name in COUNTS if name != "workers"},
    },
)


@given(SOUND)
def test_a_document_leads_back_to_the_same_options(given_options: dict[str, Any]) -> None:
    document = Options(**given_options).as_document()
    assert list(document) == list(Options.__slots__)
    back = Options(**cjson.loads(cjson.dumps(document)))
    assert back.as_document() == document
    for name, value in given_options.items():
        longest = 4e6 if name in SECONDS + POSITIVE_OR_NONE and value is not None else None
        assert document[name] == (value if longest is None else min(value, longest))


def test_options_are_for_reading() -> None:
    with pytest.raises(AttributeError):
        Options().gracee = 1  # type: ignore[attr-defined]
