"""The sleeper: every sleep ends with a wake, from whatever thread, handler or moment it comes; nothing leaks."""

from __future__ import annotations

import math
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart import signals
from hotrestart.errors import HotRestartError
from hotrestart.sleeper import Sleeper
from tests.harness import PATIENCE, clean_environment, in_child

pytestmark = pytest.mark.core


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    with Sleeper() as each:
        yield each


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass  # the test has closed it


def is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def run(code: str) -> None:
    """Run `code` in a fresh interpreter, which must end with 0."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def is_asleep(thread: threading.Thread) -> bool:
    """Whether the kernel has put this thread to sleep."""
    return Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()[0] == "S"


class Sleepers:
    """Threads that sleep for ever on one sleeper, and note when they have been woken."""

    def __init__(self, sleeper: Sleeper, count: int) -> None:
        self.woken: list[bool] = []
        self.threads = [threading.Thread(target=self._sleep, args=(sleeper,)) for _ in range(count)]
        for thread in self.threads:
            thread.start()
        wait_until(lambda: sum(pipe.busy.locked() for pipe in sleeper._pipes) == count)
        wait_until(lambda: all(is_asleep(thread) for thread in self.threads))

    def _sleep(self, sleeper: Sleeper) -> None:
        self.woken.append(sleeper.sleep(PATIENCE))

    def join(self) -> list[bool]:
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        return self.woken


def test_a_sleep_takes_its_time_and_says_that_nobody_woke_it(sleeper: Sleeper) -> None:
    started = time.monotonic()
    assert sleeper.sleep(0.02) is False
    assert time.monotonic() - started >= 0.02


@given(st.floats(min_value=0, max_value=0.005))
def test_a_sleep_is_never_too_short(timeout: float) -> None:
    with Sleeper() as sleeper:
        started = time.monotonic()
        assert not sleeper.sleep(timeout)
        assert time.monotonic() - started >= timeout


def test_a_wake_before_the_sleep_is_kept(sleeper: Sleeper) -> None:
    sleeper.wake()
    assert sleeper.sleep(PATIENCE) is True


def test_several_wakes_count_as_one(sleeper: Sleeper) -> None:
    for _ in range(100_000):  # more than a pipe holds
        sleeper.wake()
    assert sleeper.sleep() is True
    assert sleeper.sleep(0) is False


def test_a_wake_for_good_ends_every_later_sleep(sleeper: Sleeper) -> None:
    sleeper.wake(for_good=True)
    assert [sleeper.sleep() for _ in range(3)] == [True, True, True]
    assert is_readable(sleeper.fileno())


def test_the_descriptor_is_readable_until_the_next_sleep(sleeper: Sleeper) -> None:
    assert not is_readable(sleeper.fileno())
    sleeper.wake()
    assert is_readable(sleeper.fileno())
    assert sleeper.sleep(0) is True
    assert not is_readable(sleeper.fileno())


def test_the_descriptors_are_non_blocking_and_close_on_exec(sleeper: Sleeper) -> None:
    for fd in (sleeper.fileno(), sleeper.wakeup_fd()):
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)


@pytest.mark.parametrize("timeout", [math.nan, -0.001, -1, -math.inf])
def test_a_timeout_that_is_no_time_is_refused(sleeper: Sleeper, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        sleeper.sleep(timeout)
    with pytest.raises(ValueError, match="timeout"):
        sleeper.wait(timeout=timeout)
    assert sleeper.sleep(0) is False


@pytest.mark.parametrize("timeout", [None, math.inf, 1e10, 2**31 / 1000, 10**15, threading.TIMEOUT_MAX])
def test_a_long_sleep_is_woken_like_any_other(sleeper: Sleeper, timeout: float | None) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"x")
        assert sleeper.wait(reader, timeout=timeout) == [reader]
    finally:
        os.close(reader)
        os.close(writer)


def test_one_wake_ends_the_sleep_of_every_thread(sleeper: Sleeper) -> None:
    threads = Sleepers(sleeper, 8)
    sleeper.wake()
    assert threads.join() == [True] * 8


def test_one_wake_ends_the_sleep_of_every_thread_and_of_the_main_thread(sleeper: Sleeper) -> None:
    threads = Sleepers(sleeper, 4)
    waker = threading.Thread(target=lambda: (wait_until(sleeper._pipes[0].busy.locked), sleeper.wake()))
    waker.start()
    assert sleeper.sleep(PATIENCE) is True
    waker.join()
    assert threads.join() == [True] * 4


def test_pipes_are_kept_for_the_next_sleepers(sleeper: Sleeper) -> None:
    for _ in range(10):
        threads = Sleepers(sleeper, 4)
        sleeper.wake()
        threads.join()
        sleeper.sleep(0)
    assert len(sleeper._pipes) == 5


def test_a_wake_at_any_moment_of_a_sleep_is_never_lost() -> None:
    """Ping-pong as fast as it goes, so that wakes fall into every moment of a sleep."""
    turns = 3_000
    begun, answered, lost = 0, 0, []

    with Sleeper() as ping, Sleeper() as pong:

        def answer() -> None:
            nonlocal answered
            while answered < turns:
                while answered == begun:
                    if not ping.sleep(PATIENCE):
                        lost.append(f"ping {begun}")
                        return
                answered += 1
                pong.wake()

        thread = threading.Thread(target=answer)
        thread.start()
        while begun < turns and not lost:
            begun += 1
            ping.wake()
            while answered < begun and not lost:
                if not pong.sleep(PATIENCE):
                    lost.append(f"pong {answered}")
        thread.join()
    assert lost == []


def test_wait_returns_the_ready_files_in_the_order_asked(sleeper: Sleeper) -> None:
    pairs = [socket.socketpair() for _ in range(4)]
    try:
        files = [left for left, _ in pairs]
        for index in (3, 1):
            pairs[index][1].send(b"x")
        assert sleeper.wait(*files, timeout=PATIENCE) == [files[1], files[3]]
        assert sleeper.wait(*reversed(files), timeout=PATIENCE) == [files[3], files[1]]
    finally:
        for pair in pairs:
            for each in pair:
                each.close()


def test_wait_takes_numbers_and_files_alike(sleeper: Sleeper, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    with os.fdopen(os.dup(pipe[0]), "rb", buffering=0) as file:
        assert sleeper.wait(file, pipe[0], timeout=PATIENCE) == [file, pipe[0]]


def test_wait_notices_the_end_of_a_file(sleeper: Sleeper, pipe: tuple[int, int]) -> None:
    assert sleeper.wait(pipe[0], timeout=0) == []
    os.close(pipe[1])
    assert sleeper.wait(pipe[0], timeout=PATIENCE) == [pipe[0]]


def test_wait_notices_an_error(sleeper: Sleeper, pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    assert sleeper.wait(pipe[1], timeout=PATIENCE) == [pipe[1]]


def test_wait_ends_with_nothing_when_time_has_passed(sleeper: Sleeper, pipe: tuple[int, int]) -> None:
    assert sleeper.wait(pipe[0], timeout=0.001) == []


def test_a_wake_before_the_wait_goes_first(sleeper: Sleeper, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    sleeper.wake()
    assert sleeper.wait(pipe[0]) == []
    assert sleeper.wait(pipe[0]) == [pipe[0]]


def test_a_closed_descriptor_is_an_error_and_the_sleeper_goes_on(sleeper: Sleeper, pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    with pytest.raises(OSError, match="not open") as caught:
        sleeper.wait(pipe[0])
    assert caught.value.errno == 9
    sleeper.wake()
    assert sleeper.sleep(PATIENCE) is True


def test_h19_descriptors_above_1024_are_waited_for(pipe: tuple[int, int]) -> None:
    def child() -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        fillers = [os.dup(pipe[1]) for _ in range(1100)]
        high = os.dup(pipe[0])
        sleeper = Sleeper()
        assert min(high, sleeper.fileno()) > 1024
        sleeper.wake()
        assert sleeper.sleep(PATIENCE)
        os.write(fillers[0], b"x")
        assert sleeper.wait(high, timeout=PATIENCE) == [high]

    assert in_child(child) == 0


def test_h20_a_signal_handler_wakes_20_000_times_without_an_error(sleeper: Sleeper) -> None:
    """A child sends signals as fast as it can; the handler calls `wake` while `sleep` is at work."""
    calls = 0

    def handle(_number: int, _frame: object) -> None:
        nonlocal calls
        calls += 1
        sleeper.wake()

    before = signal.signal(signal.SIGUSR1, handle)
    kill = f"os.kill({os.getpid()}, {int(signal.SIGUSR1)}); time.sleep(2e-5)"  # at most: CPython nests its handlers
    storm = subprocess.Popen([sys.executable, "-c", f"import os, time\nwhile os.getppid() == {os.getpid()}: {kill}"])
    try:
        woken = 0
        deadline = time.monotonic() + PATIENCE
        while calls < 20_000 and time.monotonic() < deadline:
            woken += sleeper.sleep(PATIENCE)
    finally:
        storm.kill()
        storm.wait()
        time.sleep(0)  # what was sent before the kill is handled now
        signal.signal(signal.SIGUSR1, before)
    assert calls >= 20_000
    assert woken > 100


def test_a_signal_without_a_wake_does_not_end_the_sleep(sleeper: Sleeper) -> None:
    handled = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.set())
    wakeup_before = signal.set_wakeup_fd(sleeper.wakeup_fd(), warn_on_full_buffer=False)
    try:

        def disturb() -> None:
            wait_until(sleeper._pipes[0].busy.locked)
            os.kill(os.getpid(), signal.SIGUSR1)
            handled.wait(PATIENCE)
            os.write(mark[1], b"x")

        mark = os.pipe()
        thread = threading.Thread(target=disturb)
        thread.start()
        assert sleeper.wait(mark[0], timeout=PATIENCE) == [mark[0]]  # not [], which would be the signal's byte
        thread.join()
        assert handled.is_set()
    finally:
        signal.set_wakeup_fd(wakeup_before)
        signal.signal(signal.SIGUSR1, before)
        for end in mark:
            os.close(end)


def test_h17_a_signal_taken_by_another_thread_ends_the_main_threads_sleep() -> None:
    run("""if True:
        import signal, threading, time
        from hotrestart import Sleeper, signals, state

        sleeper = Sleeper()
        def other():
            while not sleeper._pipes[0].busy.locked():
                time.sleep(0.001)
            time.sleep(0.05)  # so that it is in poll; if it were not, the test would only prove less
            signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
            done.wait()

        done = threading.Event()
        with signals.handling(sleeper):
            thread = threading.Thread(target=other)
            thread.start()
            assert sleeper.sleep(30) is True
            done.set()
            thread.join()
        assert state.reason == "restart"
    """)


def test_h18_somebody_elses_wakeup_fd_stays_theirs(sleeper: Sleeper) -> None:
    theirs = socket.socketpair()
    theirs[1].setblocking(False)
    before = signal.set_wakeup_fd(theirs[1].fileno())
    try:
        with signals.handling(sleeper, restart=[signal.SIGUSR1], stop=[], on_restart=sleeper.wake):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert sleeper.sleep(PATIENCE) is True
        assert theirs[0].recv(10) == bytes([signal.SIGUSR1])
    finally:
        assert signal.set_wakeup_fd(before) == theirs[1].fileno()
        for each in theirs:
            each.close()


def test_h19_a_wake_in_a_forked_child_does_not_wake_the_parent(sleeper: Sleeper) -> None:
    def child() -> None:
        sleeper.wake()
        assert sleeper.sleep(PATIENCE)

    assert in_child(child) == 0
    assert not is_readable(sleeper.fileno())
    assert sleeper.sleep(0) is False


def test_h19_a_wake_in_the_parent_does_not_wake_a_forked_child(sleeper: Sleeper, pipe: tuple[int, int]) -> None:
    pid = os.fork()
    if pid == 0:
        os.read(pipe[0], 1)
        os._exit(sleeper.sleep(0) or is_readable(sleeper.fileno()))
    sleeper.wake()
    os.write(pipe[1], b"x")
    assert os.waitpid(pid, 0)[1] == 0
    assert sleeper.sleep(PATIENCE) is True


def test_a_forked_child_does_not_take_a_wake_that_was_meant_for_the_parent(sleeper: Sleeper) -> None:
    def child() -> None:
        assert sleeper.sleep(0) is False

    sleeper.wake()
    assert in_child(child) == 0
    assert sleeper.sleep(PATIENCE) is True


def test_a_forked_child_is_woken_for_good_like_its_parent(sleeper: Sleeper) -> None:
    def child() -> None:
        assert is_readable(sleeper.fileno())
        assert sleeper.sleep() is True

    sleeper.wake(for_good=True)
    assert in_child(child) == 0


def test_a_forked_childs_sleeper_has_the_same_numbers_and_none_more(sleeper: Sleeper) -> None:
    numbers = (sleeper.fileno(), sleeper.wakeup_fd())
    before = set(os.listdir("/proc/self/fd"))

    def child() -> None:
        assert set(os.listdir("/proc/self/fd")) == before
        assert (sleeper.fileno(), sleeper.wakeup_fd()) == numbers
        assert not os.get_inheritable(numbers[0])
        assert not os.get_inheritable(numbers[1])

    assert in_child(child) == 0


def test_a_first_sleep_imports_nothing() -> None:
    """A child forked meanwhile by another thread would wait for ever for a module that is only half loaded."""
    run("""if True:
        import sys
        from hotrestart import Sleeper
        sleeper = Sleeper()
        before = set(sys.modules)
        sleeper.sleep(0)
        sleeper.sleep(0.001)
        sleeper.wait(sys.stdout, timeout=0)
        sleeper.wake()
        sleeper.sleep()
        assert set(sys.modules) == before, set(sys.modules) - before
    """)


def test_a_child_forked_by_a_thread_beside_a_sleeping_thread_can_sleep() -> None:
    run("""if True:
        import os, threading, time, warnings
        from hotrestart import Sleeper
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of a fork with threads: that is the test

        sleeper = Sleeper()
        main_sleeps = sleeper._pipes[0].busy.locked
        statuses = []
        def fork():
            while not main_sleeps():
                time.sleep(0.001)
            pid = os.fork()
            if pid == 0:
                early = sleeper.sleep(0)
                sleeper.wake()
                os._exit(0 if not early and sleeper.sleep(30) and len(sleeper._pipes) == 1 else 1)
            statuses.append(os.waitpid(pid, 0)[1])
            sleeper.wake()

        thread = threading.Thread(target=fork)
        thread.start()
        assert sleeper.sleep(60)
        thread.join()
        assert statuses == [0], statuses
    """)


def test_a_closed_sleeper_says_so_and_a_late_wake_is_harmless(pipe: tuple[int, int]) -> None:
    sleeper = Sleeper()
    sleeper.close()
    sleeper.close()
    again = os.pipe()  # the numbers that were the sleeper's
    try:
        sleeper.wake()
        sleeper.wake(for_good=True)
        assert not is_readable(again[0])
        for use in (sleeper.fileno, sleeper.wakeup_fd, sleeper.sleep, sleeper.wait):
            with pytest.raises(HotRestartError, match="closed"):
                use()
    finally:
        for end in again:
            os.close(end)


def test_a_sleeper_that_is_dropped_gives_its_descriptors_back() -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        Sleeper()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_closed_sleeper_survives_a_fork() -> None:
    sleeper = Sleeper()
    sleeper.close()
    assert in_child(sleeper.wake) == 0


def test_no_sleeper_is_left_when_descriptors_run_out() -> None:
    def child() -> None:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 6, 4096))  # room for two pipes at least
        for _ in range(3):
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    kept.append(Sleeper())
            assert kept
            kept.clear()

    kept: list[Sleeper] = []
    assert in_child(child) == 0
