"""JSON without the module json: the same texts and values as json's, and the same refusals, on both paths."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotrestart import cjson
from tests.harness import PATIENCE, clean_environment

pytestmark = pytest.mark.core

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)

BAD_TEXTS = [
    "",
    " ",
    "nul",
    "[1,",
    "[1 2]",
    "[1],",
    "{} {}",
    "{1: 2}",
    '{"a" 1}',
    '{"a": 1,}',
    "'a'",
    '"a',
    '"\n"',
    '"\\x"',
    '"\\u12"',
    "01",
    "1.",
    "+1",
    "NaN",
    "Infinity",
    "[-Infinity]",
    "\ufeff1",
    "\0",
    "[" * 200_000,
    '{"a":' * 200_000,
]

CANNOT_BE_SAID = [
    math.nan,
    [math.inf],
    {"a": -math.inf},
    {1, 2},
    b"bytes",
    object(),
    {(1, 2): 3},
    [lambda: None],
]


@contextmanager
def json_not_loaded() -> Iterator[None]:
    """As in a program that has not imported json."""
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "json"}
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "json"]:
            del sys.modules[name]
        sys.modules.update(hidden)


@contextmanager
def json_loaded() -> Iterator[None]:
    assert "json" in sys.modules
    yield


BOTH_PATHS = pytest.mark.parametrize("path", [json_loaded, json_not_loaded])


def looped() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@given(VALUES)
def test_the_accelerator_alone_writes_and_reads_what_json_does(value: Any) -> None:
    expected = json.dumps(value)
    with json_not_loaded():
        text = cjson.dumps(value)
        back = cjson.loads(text)
        assert "json" not in sys.modules
    assert text == expected
    assert repr(back) == repr(json.loads(expected))


@given(VALUES)
def test_with_json_loaded_both_ways_are_json_s_own(value: Any) -> None:
    assert cjson.dumps(value) == json.dumps(value)
    assert repr(cjson.loads(cjson.dumps(value))) == repr(json.loads(json.dumps(value)))


@given(st.text(alphabet='[]{}":,0123456789.eE+-truefalsn \n\\u/NaIity'))
def test_any_text_is_read_or_refused_as_json_does(text: str) -> None:
    try:
        expected: Any = json.loads(text, parse_constant=cjson._refuse)
    except ValueError:
        expected = ValueError
    for path in (json_loaded, json_not_loaded):
        with path():
            try:
                found: Any = cjson.loads(text)
            except ValueError:
                found = ValueError
        assert repr(found) == repr(expected)


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(st.lists(VALUES, min_size=1))
def test_a_fresh_interpreter_makes_the_round_trip_without_json(values: list[Any]) -> None:
    code = """if True:
        import sys, marshal
        from hotrestart import cjson
        texts, backs = [], []
        for value in marshal.load(sys.stdin.buffer):
            texts.append(cjson.dumps(value))
            backs.append(cjson.loads(texts[-1]))
        assert "json" not in sys.modules, "json was imported"
        marshal.dump((texts, backs), sys.stdout.buffer)
    """
    import marshal

    done = subprocess.run(
        [sys.executable, "-c", code],
        input=marshal.dumps(values),
        env=clean_environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    texts, backs = marshal.loads(done.stdout)
    assert texts == [json.dumps(value) for value in values]
    assert repr(backs) == repr(values)


@BOTH_PATHS
@pytest.mark.parametrize("text", BAD_TEXTS, ids=lambda text: repr(text[:12]))
def test_a_bad_text_is_refused(path: Any, text: str) -> None:
    with path(), pytest.raises((ValueError, RecursionError)):
        cjson.loads(text)


@pytest.mark.parametrize("text", BAD_TEXTS, ids=lambda text: repr(text[:12]))
def test_a_bad_text_is_refused_by_a_fresh_interpreter(text: str) -> None:
    code = """if True:
        import sys
        from hotrestart import cjson
        text = sys.stdin.buffer.read().decode()
        assert "json" not in sys.modules
        try:
            cjson.loads(text)
        except (ValueError, RecursionError):
            sys.exit(7)
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=text.encode(),
        env=clean_environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 7, done.stderr.decode()


@BOTH_PATHS
@pytest.mark.parametrize("value", CANNOT_BE_SAID, ids=lambda value: repr(value)[:12])
def test_what_json_cannot_say_is_refused(path: Any, value: Any) -> None:
    with path(), pytest.raises((TypeError, ValueError)):
        cjson.dumps(value)


@BOTH_PATHS
def test_a_value_that_holds_itself_is_refused(path: Any) -> None:
    with path(), pytest.raises((ValueError, RecursionError)):
        cjson.dumps(looped())


@BOTH_PATHS
def test_a_value_nested_too_deep_is_refused(path: Any) -> None:
    value = nested(200_000)
    try:
        with path(), pytest.raises(RecursionError):
            cjson.dumps(value)
    finally:
        while value:
            value = value.pop()


@BOTH_PATHS
@pytest.mark.parametrize("text", [" 1", "1\n", "\t[1, 2] \r\n"])
def test_white_space_around_a_value_is_no_fault(path: Any, text: str) -> None:
    with path():
        assert cjson.loads(text) == json.loads(text)


@BOTH_PATHS
def test_without_the_accelerator_json_does_it(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_json", None)
    with path():
        assert cjson.loads(cjson.dumps({"a": [1, 2.5, None]})) == {"a": [1, 2.5, None]}


def test_every_name_in_the_environment_can_be_said() -> None:
    """Surrogates stand for bytes that are not UTF-8."""
    value = {os.fsdecode(b"\xff\xfe"): "\ud800"}
    with json_not_loaded():
        assert cjson.loads(cjson.dumps(value)) == value
