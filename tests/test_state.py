"""The flag: what a loop reads, and who wins when a stop and a restart come at the same time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart import state

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def fresh_flag() -> Iterator[None]:
    state.reset()
    yield
    state.reset()


def test_nobody_has_asked_a_fresh_program_to_end() -> None:
    assert state.should_stop is False
    assert state.reason is None
    assert state.generation == 1


@pytest.mark.parametrize("why", ["restart", "stop"])
def test_whoever_asks_is_read_back_through_the_module(why: Any) -> None:
    state.end(why)
    assert state.should_stop is True
    assert state.reason == why


def test_a_stop_after_a_restart_wins() -> None:
    state.end("restart")
    state.end("stop")
    assert state.reason == "stop"


def test_a_restart_after_a_stop_takes_nothing_back() -> None:
    state.end("stop")
    state.end("restart")
    assert state.reason == "stop"


def test_reset_forgets_that_a_stop_wins() -> None:
    state.end("stop")
    state.reset()
    assert (state.should_stop, state.reason) == (False, None)
    state.end("restart")
    assert state.reason == "restart"


@given(st.lists(st.sampled_from(["restart", "stop"]), min_size=1))
def test_the_reason_is_stop_if_anybody_said_stop(asked: list[Any]) -> None:
    state.reset()
    for why in asked:
        state.end(why)
    assert state.should_stop
    assert state.reason == ("stop" if "stop" in asked else "restart")


@pytest.mark.parametrize(("first", "second"), [("restart", "stop"), ("stop", "restart"), ("restart", "restart")])
def test_two_askers_interleaved_at_any_bytecode_agree_on_stop(first: Any, second: Any) -> None:
    """A trace function lets the second asker in before each instruction of the first, as a signal handler would be."""
    _end_interrupted_at(-1, first, second)  # 3.12.1 begins to trace instructions with the second call
    moment = 0
    while _end_interrupted_at(moment, first, second):
        assert state.should_stop
        assert state.reason == ("stop" if "stop" in (first, second) else "restart"), f"interrupted at step {moment}"
        moment += 1
    assert moment > 10


def _end_interrupted_at(moment: int, first: Any, second: Any) -> bool:
    """Whether `end(first)` has so many steps; then `end(second)` ran in the midst of it."""
    state.reset()
    steps = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal steps
        if frame.f_code is not state.end.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if steps == moment:
                sys.settrace(None)
                state.end(second)
                sys.settrace(trace)
            steps += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        state.end(first)
    finally:
        sys.settrace(before)
    return steps > moment


def test_many_threads_asking_at_once_agree_on_stop() -> None:
    for _ in range(50):
        state.reset()
        start = threading.Barrier(4)

        def ask(why: Any, start: threading.Barrier = start) -> None:
            start.wait()
            state.end(why)

        threads = [threading.Thread(target=ask, args=(why,)) for why in ("restart", "stop", "restart", "restart")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert state.reason == "stop"
