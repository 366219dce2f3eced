"""Signals: routed to the flag and the sleeper inside the block; outside and in children as if it had never been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hotrestart import signals, state
from hotrestart.errors import WrongThreadError
from hotrestart.signals import handling
from hotrestart.sleeper import Sleeper
from tests.harness import PATIENCE, clean_environment, in_child

pytestmark = pytest.mark.core

ROUTED = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def as_they_were() -> Iterator[None]:
    """Every signal, the mask and the flag are after the test what they were before it."""
    wakeup_fd = signal.set_wakeup_fd(-1)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    before = {number: signal.getsignal(number) for number in (*ROUTED, signal.SIGUSR1, signal.SIGUSR2)}
    state.reset()
    yield
    try:
        assert signal.set_wakeup_fd(wakeup_fd) == -1
        assert signals._active == []
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
        assert {number: signal.getsignal(number) for number in before} == before
    finally:
        state.reset()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    with Sleeper() as each:
        yield each


@pytest.fixture
def set_handler() -> Iterator[Callable[[int, Any], Any]]:
    """`signal.signal`, undone at the end of the test."""
    found = {number: signal.getsignal(number) for number in ROUTED}

    def set_it(number: int, handler: Any) -> Any:
        signal.signal(number, handler)
        return handler

    yield set_it
    for number, handler in found.items():
        signal.signal(number, handler)


def run(code: str, *arguments: str, expected: int = 0) -> str:
    """What `code` prints in a fresh interpreter, which must end as expected."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == expected, done.stderr
    return done.stdout


def test_a_hup_asks_for_a_restart_and_wakes_the_sleeper(sleeper: Sleeper) -> None:
    with handling(sleeper):
        signal.raise_signal(signal.SIGHUP)
        assert sleeper.sleep(PATIENCE)
        assert state.reason == "restart"
        assert sleeper.sleep(PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_term_or_int_asks_for_a_stop(sleeper: Sleeper, number: int) -> None:
    with handling(sleeper):
        os.kill(os.getpid(), number)
        assert sleeper.sleep(PATIENCE)
        assert state.reason == "stop"


def test_no_sleeper_is_needed() -> None:
    with handling():
        signal.raise_signal(signal.SIGHUP)
        assert state.should_stop


def test_other_signals_and_other_actions_can_be_chosen() -> None:
    calls: list[str] = []
    with handling(
        restart=[signal.SIGUSR1],
        stop=[signal.SIGUSR2],
        on_restart=lambda: calls.append("restart"),
        on_stop=lambda: calls.append("stop"),
    ):
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR2)
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    assert calls == ["restart", "restart", "stop"]
    assert not state.should_stop


def test_a_second_restart_signal_changes_nothing(sleeper: Sleeper) -> None:
    with handling(sleeper):
        for _ in range(10):
            signal.raise_signal(signal.SIGHUP)
        assert state.reason == "restart"
        assert signal.getsignal(signal.SIGHUP) not in (signal.SIG_DFL, signal.SIG_IGN)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_stop_signal_has_its_default_action_even_if_python_is_stuck(second: int) -> None:
    code = """if True:
        import os, signal, sys
        from hotrestart import signals
        with signals.handling():
            signal.raise_signal(signal.SIGTERM)
            os.kill(os.getpid(), int(sys.argv[1]))
    """
    run(code, str(int(second)), expected=-second)


def test_the_first_stop_signal_gives_only_the_stop_signals_their_default_action(sleeper: Sleeper) -> None:
    with handling(sleeper):
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) != signal.SIG_DFL


def test_after_the_block_everything_is_as_it_was_found(sleeper: Sleeper, set_handler: Callable[..., Any]) -> None:
    theirs = set_handler(signal.SIGTERM, lambda *_: None)
    hup, interrupt = signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGINT)
    with handling(sleeper):
        assert signal.getsignal(signal.SIGTERM) is not theirs
    assert signal.getsignal(signal.SIGTERM) is theirs
    assert (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGINT)) == (hup, interrupt)


def test_after_a_stop_everything_is_put_back_too(sleeper: Sleeper, set_handler: Callable[..., Any]) -> None:
    theirs = set_handler(signal.SIGTERM, lambda *_: None)
    with handling(sleeper):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is theirs


def test_after_an_error_everything_is_put_back_too(sleeper: Sleeper) -> None:
    before = [signal.getsignal(number) for number in ROUTED]
    with pytest.raises(ZeroDivisionError), handling(sleeper):
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in ROUTED] == before


def test_a_handler_that_somebody_has_installed_since_stays(set_handler: Callable[..., Any]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handling():
        theirs = set_handler(signal.SIGHUP, lambda *_: None)
    assert signal.getsignal(signal.SIGHUP) is theirs
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", ROUTED)
def test_h22_an_ignored_signal_stays_ignored(number: int, set_handler: Callable[..., Any]) -> None:
    set_handler(number, signal.SIG_IGN)
    with handling() as block:
        assert signal.getsignal(number) == signal.SIG_IGN
        assert number not in block.installed()
        os.kill(os.getpid(), number)
        assert not state.should_stop
        if number != signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)  # its default actions are not given to what was ignored
            assert signal.getsignal(number) == signal.SIG_IGN
    assert signal.getsignal(number) == signal.SIG_IGN


def test_installed_tells_which_signals_reach_the_block(set_handler: Callable[..., Any]) -> None:
    with handling() as block:
        assert sorted(block.installed()) == sorted(ROUTED)
        set_handler(signal.SIGHUP, signal.SIG_DFL)
        assert sorted(block.installed()) == sorted(signals.STOP)
    assert block.installed() == []


def test_blocks_can_be_nested() -> None:
    inner_calls: list[str] = []
    with handling():
        outer = signal.getsignal(signal.SIGHUP)
        with handling(on_restart=lambda: inner_calls.append("restart")):
            signal.raise_signal(signal.SIGHUP)
            assert not state.should_stop
        assert signal.getsignal(signal.SIGHUP) == outer
        signal.raise_signal(signal.SIGHUP)
        assert state.reason == "restart"
    assert inner_calls == ["restart"]


def test_the_wakeup_fd_is_the_sleeper_s_inside_the_block_only(sleeper: Sleeper) -> None:
    with handling(sleeper):
        present = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(present, warn_on_full_buffer=False)
        assert present == sleeper.wakeup_fd()
    assert signal.set_wakeup_fd(-1) == -1


@pytest.fixture
def their_fd() -> Iterator[int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    yield writer
    os.close(reader)
    os.close(writer)


def test_h18_a_wakeup_fd_of_somebody_else_is_left_alone(sleeper: Sleeper, their_fd: int) -> None:
    signal.set_wakeup_fd(their_fd)
    with handling(sleeper):
        assert signal.set_wakeup_fd(their_fd) == their_fd
    assert signal.set_wakeup_fd(-1) == their_fd


def test_h18_a_wakeup_fd_that_somebody_has_set_since_stays(sleeper: Sleeper, their_fd: int) -> None:
    with handling(sleeper):
        signal.set_wakeup_fd(their_fd)
    assert signal.set_wakeup_fd(-1) == their_fd


def test_h18_asyncio_keeps_its_signal_handlers(sleeper: Sleeper) -> None:
    run("""if True:
        import asyncio, os, signal
        from hotrestart import Sleeper, signals, state

        async def main():
            got = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, got.set)
            with signals.handling(Sleeper()):
                os.kill(os.getpid(), signal.SIGUSR1)
                await asyncio.wait_for(got.wait(), 30)
                got.clear()
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(got.wait(), 30)
        asyncio.run(main())
    """)


def test_h21_outside_of_the_main_thread_there_is_a_clear_error(sleeper: Sleeper) -> None:
    caught: list[BaseException] = []

    def enter() -> None:
        try:
            with handling(sleeper):
                pass
        except WrongThreadError as error:
            caught.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])
    assert isinstance(caught[0], RuntimeError)


def test_a_signal_while_handlers_are_exchanged_is_neither_lost_nor_deadly() -> None:
    """A child sends HUP all the time; the block is entered and left under it, with a handler of the host's outside."""
    run("""if True:
        import os, signal, subprocess, sys
        from hotrestart import signals

        outside = inside = 0
        def count(*_):
            global outside
            outside += 1
        def count_inside():
            global inside
            inside += 1

        signal.signal(signal.SIGHUP, count)
        me = os.getpid()
        code = f"import os, time\\nwhile os.getppid() == {me}: os.kill({me}, {int(signal.SIGHUP)}); time.sleep(1e-4)"
        storm = subprocess.Popen([sys.executable, "-c", code])
        try:
            turns = 0
            while turns < 2000 or not (outside and inside):
                with signals.handling(on_restart=count_inside):
                    pass
                turns += 1
        finally:
            storm.kill()
            storm.wait()
    """)


def test_h13_the_mask_is_the_same_inside_the_block() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with handling():
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {signal.SIGUSR1}
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {signal.SIGUSR1}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_h15_a_forked_child_has_the_handlers_that_were_there_before(
    sleeper: Sleeper, set_handler: Callable[..., Any]
) -> None:
    theirs = set_handler(signal.SIGTERM, lambda *_: None)
    hup = signal.getsignal(signal.SIGHUP)

    def child() -> None:
        assert signal.getsignal(signal.SIGTERM) is theirs
        assert signal.getsignal(signal.SIGHUP) == hup
        assert signal.set_wakeup_fd(-1) == -1
        assert signals._active == []
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())

    with handling(sleeper), handling(sleeper):
        assert in_child(child) == 0
        assert signal.getsignal(signal.SIGTERM) is not theirs
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_h15_a_signal_to_a_forked_child_does_not_ask_the_parent_to_end(sleeper: Sleeper) -> None:
    with handling(sleeper):
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(1)
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        assert not sleeper.sleep(0)
        assert not state.should_stop


def test_a_forked_child_can_have_a_block_of_its_own(sleeper: Sleeper) -> None:
    def child() -> None:
        with handling(sleeper):
            signal.raise_signal(signal.SIGTERM)
            assert sleeper.sleep(PATIENCE)
            assert state.reason == "stop"

    with handling(sleeper):
        assert in_child(child) == 0
        assert not state.should_stop


def test_h15_terminate_right_after_the_start_always_ends_a_multiprocessing_child() -> None:
    shown = run("""if True:
        import multiprocessing, time
        from hotrestart import Sleeper, signals, state
        with signals.handling(Sleeper()):
            context = multiprocessing.get_context("fork")
            codes = set()
            for _ in range(100):
                process = context.Process(target=time.sleep, args=(600,))
                process.start()
                process.terminate()
                process.join(30)
                codes.add(process.exitcode)
                process.kill()
            print(codes, state.should_stop)
    """)
    assert shown == "{-15} False\n"


def test_h15_a_child_forked_by_a_thread_has_the_handlers_that_were_there_before() -> None:
    run("""if True:
        import os, signal, threading, warnings
        from hotrestart import Sleeper, signals
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of a fork with threads: that is the test
        before = signal.getsignal(signal.SIGTERM)
        statuses = []
        def fork():
            pid = os.fork()
            if pid == 0:
                clean = signal.getsignal(signal.SIGTERM) == before and not signal.pthread_sigmask(signal.SIG_BLOCK, ())
                os._exit(0 if clean else 1)
            statuses.append(os.waitpid(pid, 0)[1])
            statuses.append(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))

        with signals.handling(Sleeper()):
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()
        assert statuses == [0, 0], statuses
    """)


def test_h12_a_restart_asked_for_before_the_block_is_remembered() -> None:
    signals.hold([signal.SIGHUP])
    signal.raise_signal(signal.SIGHUP)
    assert not state.should_stop
    with handling():
        assert state.reason == "restart"


def test_h12_a_restart_blocked_across_the_exec_is_remembered() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    signal.raise_signal(signal.SIGHUP)
    signals.hold([signal.SIGHUP])
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with handling():
        assert state.reason == "restart"


def test_h12_nothing_is_made_up_when_nobody_has_asked() -> None:
    signals.hold([signal.SIGHUP])
    with handling():
        assert not state.should_stop


def test_what_was_held_is_told_once() -> None:
    signals.hold([signal.SIGHUP])
    signal.raise_signal(signal.SIGHUP)
    calls: list[int] = []
    for _ in range(2):
        with handling(on_restart=lambda: calls.append(1)):
            pass
    assert calls == [1]


def test_holding_can_end_without_a_block() -> None:
    before = signal.getsignal(signal.SIGHUP)
    signals.hold([signal.SIGHUP])
    signals.release()
    signals.release()
    assert signal.getsignal(signal.SIGHUP) == before


def test_a_child_forked_while_signals_are_held_has_the_handlers_that_were_there_before() -> None:
    before = signal.getsignal(signal.SIGHUP)

    def child() -> None:
        assert signal.getsignal(signal.SIGHUP) == before

    signals.hold([signal.SIGHUP])
    try:
        assert in_child(child) == 0
    finally:
        signals.release()


def test_held_in_another_thread_they_stay_blocked_until_the_block() -> None:
    run("""if True:
        import os, signal, threading
        from hotrestart import signals, state
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
        thread = threading.Thread(target=signals.hold, args=([signal.SIGHUP],))
        thread.start()
        thread.join()
        signal.raise_signal(signal.SIGHUP)
        assert not state.should_stop
        with signals.handling():
            assert state.reason == "restart"
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    """)


def test_a_mask_can_be_put_back() -> None:
    before = signals.block([signal.SIGUSR1])
    assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    signals.restore_mask(before)
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_handler_that_python_does_not_know_of_is_left_alone_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a C library that was loaded before the interpreter."""
    known = signals.signal.getsignal
    monkeypatch.setattr(signals.signal, "getsignal", lambda number: None if number == signal.SIGHUP else known(number))
    with handling() as block:
        assert sorted(block.installed()) == sorted(signals.STOP)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "left alone" in caplog.text
