"""Any bytes are a request, or a ValueError that says why not."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from hotrestart.control import protocol

json_values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=20),
    lambda inner: some.lists(inner, max_size=5) | some.dictionaries(some.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)
requests = some.one_of(
    some.sampled_from([{"request": "restart"}, {"request": "stop"}, {"request": "status"}]),
    some.builds(
        lambda name, by: {"request": "scale", name: by}, some.sampled_from(["by", "to"]), some.integers(-99999, 99999)
    ),
)


def is_refused(text: bytes) -> str:
    """Why it is refused: one line, not empty, not long."""
    with pytest.raises(ValueError, match=r".") as caught:
        protocol.request(text)
    why = str(caught.value)
    assert "\n" not in why
    assert len(why) < 200
    why.encode()  # it can be printed
    return why


def check(text: bytes) -> None:
    try:
        asked = protocol.request(text)
    except ValueError as caught:
        error = caught
    else:
        assert asked == json.loads(text)
        assert asked["request"] in ("restart", "stop", "status", "scale")
        return
    assert type(error) is ValueError
    assert json.loads(protocol.line(error=str(error))) == {"error": str(error)}


@given(some.binary(max_size=protocol.LONGEST_REQUEST))
@example(b"")
@example(b"\xff")
@example(b"\xef\xbb\xbf{}")
@example(b"[" * 1024)
@example(b'{"a":' * 200)
@example(b'{"request": "\\ud800"}')
@example(b'{"request": "scale", "by": 1e999}')
@example(b'{"request": "scale", "by": ' + b"9" * 900 + b"}")
@example(b'{"request": "scale", "by": NaN}')
@example(b'{"request": "scale", "by": true}')
@example(b'{"request": {}}')
@example(b"null")
def test_any_bytes(text: bytes) -> None:
    check(text)


@given(json_values)
def test_any_json(value: Any) -> None:
    check(json.dumps(value).encode())


@given(
    some.sampled_from(["restart", "stop", "status", "scale"]),
    some.dictionaries(some.text(max_size=9), json_values, max_size=2),
)
def test_any_addition(what: str, more: dict[str, Any]) -> None:
    check(json.dumps({**more, "request": what}).encode())


@pytest.mark.parametrize("is_loaded", [True, False])
def test_it_does_not_matter_whether_json_is_loaded(is_loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_loaded:
        monkeypatch.delitem(sys.modules, "json")
    for text in (b"", b"\xff", b"[" * 1024, b"nonsense", b"{}x", b'{"request": NaN}', b'{"request": 1}'):
        is_refused(text)
    assert protocol.request(b'{"request": "restart"}') == {"request": "restart"}


@given(requests)
def test_round_trip(asked: dict[str, Any]) -> None:
    text = protocol.line(**asked)
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    assert len(text) <= protocol.LONGEST_REQUEST
    assert protocol.request(text[:-1]) == asked
    assert protocol.request(text) == asked


@given(some.dictionaries(some.text(some.characters(categories=["L"]), min_size=1), some.text(), max_size=4))
def test_a_line_is_one_line(fields: dict[str, str]) -> None:
    text = protocol.line(**fields)
    assert text.count(b"\n") == 1
    assert text.isascii()
    assert json.loads(text) == fields


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"restart", "not JSON"),
        (b"\xff\xff", "not JSON"),
        (b'{"request": "restart"} {"request": "stop"}', "not JSON"),
        (b'"restart"', "a request is a JSON object"),
        (b'{"ask": "restart"}', "a request is a JSON object"),
        (b'{"request": 1}', "a request is a JSON object"),
        (b'{"request": "reload"}', "'reload' cannot be asked for; there are restart, stop, status, scale"),
        (b'{"request": "restart", "force": true}', "restart has no 'force'"),
        (b'{"request": "status", "by": 1}', "status has no 'by'"),
        (b'{"request": "scale"}', "scale takes one number: by or to"),
        (b'{"request": "scale", "by": 1, "to": 2}', "scale takes one number"),
        (b'{"request": "scale", "by": "1"}', "scale takes one number"),
        (b'{"request": "scale", "by": true}', "scale takes one number"),
        (b'{"request": "scale", "by": 1.5}', "scale takes one number"),
        (b'{"request": "scale", "to": 10000000}', "scale takes one number"),
    ],
    ids=lambda each: each.decode("latin-1")[:40] if isinstance(each, bytes) else "",
)
def test_a_refusal_says_what_is_wrong(text: bytes, why: str) -> None:
    assert why in is_refused(text)


def test_long_nonsense_is_not_repeated() -> None:
    for name in ("x" * 900, "\x00" * 200):
        is_refused(json.dumps({"request": name}).encode())
        is_refused(json.dumps({"request": "restart", name: 1}).encode())
