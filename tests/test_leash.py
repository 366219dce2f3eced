"""The leash: a TERM when the other end of a socket is gone, and at no other time, and for nobody else."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from hotrestart.leash import leash, unleash
from tests.harness import PATIENCE, clean_environment

fcntl = pytest.importorskip("fcntl")

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not hasattr(fcntl, "F_SETSIG"), reason="there is no such thing here"),
]


class Leashed:
    """A process that is leashed to a socket, tells what it does line by line, and does what it is told."""

    CODE = """if True:
        import os, signal, socket, sys
        from hotrestart.leash import leash, unleash
        fd = int(sys.argv[1])
        got = []
        if sys.argv[2] == "counts":
            signal.signal(signal.SIGTERM, lambda *_: got.append(1))
        assert leash(fd) is True
        print("leashed", flush=True)
        for line in sys.stdin:
            exec(line)
            print(len(got), flush=True)
    """

    def __init__(self, end: socket.socket, how: str = "counts") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", self.CODE, str(end.fileno()), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[end.fileno()],
            env=clean_environment(),
        )
        end.close()
        assert self.line() == "leashed"

    def line(self) -> str:
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        assert poll.poll(PATIENCE * 1000)
        return self.process.stdout.readline().decode().strip()

    def do(self, line: str = "pass") -> int:
        """Have it do something; how many TERMs it has had by then."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return int(self.line())

    def wait_for_term(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.do():
            assert time.monotonic() < deadline

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Case:
    """Our end of a socket pair, and a process leashed to the other."""

    def __init__(self, how: str) -> None:
        self.ours, theirs = socket.socketpair()
        self.leashed = Leashed(theirs, how)

    def end(self) -> None:
        self.ours.close()
        self.leashed.end()


@pytest.fixture(params=["counts"])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    each = Case(request.param)
    yield each
    each.end()


def test_a_term_comes_when_the_other_end_is_closed_and_not_before(case: Case) -> None:
    assert case.leashed.do() == 0
    case.ours.close()
    case.leashed.wait_for_term()


@pytest.mark.parametrize("case", ["dies"], indirect=True)
def test_without_a_handler_it_is_a_term_like_any_other(case: Case) -> None:
    assert case.leashed.process.poll() is None
    case.ours.close()
    assert case.leashed.process.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize("case", ["dies"], indirect=True)
def test_a_term_comes_when_the_one_who_holds_the_other_end_is_killed(case: Case) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"],
        pass_fds=[case.ours.fileno()],
        stdout=subprocess.PIPE,
    )
    case.ours.close()
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        assert case.leashed.process.poll() is None
    finally:
        holder.kill()
        holder.communicate()
    assert case.leashed.process.wait(PATIENCE) == -signal.SIGTERM


def test_as_long_as_anybody_holds_the_other_end_nothing_comes(case: Case) -> None:
    other = case.ours.dup()
    case.ours.close()
    assert case.leashed.do() == 0
    other.close()
    case.leashed.wait_for_term()


def test_what_it_sends_itself_brings_nothing(case: Case) -> None:
    for _ in range(20):
        assert case.leashed.do("os.write(fd, b'x')") == 0
        assert case.ours.recv(10) == b"x"
    assert case.leashed.do() == 0


@pytest.mark.xfail(
    reason="the kernel reports room in a full socket by the same signal: a worker is drained for nothing"
)
def test_room_in_a_socket_that_was_full_brings_nothing(case: Case) -> None:
    """As a worker's lifeline, when the supervisor was busy for a while."""
    case.leashed.do("os.set_blocking(fd, False)")
    case.leashed.do("exec('try:\\n while True: os.write(fd, bytes(10000))\\nexcept BlockingIOError: pass')")
    assert case.leashed.do() == 0
    case.ours.setblocking(False)
    try:
        while case.ours.recv(100_000):
            pass
    except BlockingIOError:
        pass
    assert [case.leashed.do() for _ in range(20)] == [0] * 20


def test_a_child_that_has_inherited_it_is_not_told(case: Case) -> None:
    """It is in the same open file; but the signal is for one process."""
    start = "pid = os.fork()"
    tell = "pid or (signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.sigwait([signal.SIGUSR1]), os._exit(7))"
    case.leashed.do(f"signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); {start}; {tell}")
    case.ours.close()
    case.leashed.wait_for_term()
    case.leashed.do("os.kill(pid, signal.SIGUSR1)")
    assert case.leashed.do("assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7") == 1


def test_after_unleash_nothing_comes(case: Case) -> None:
    case.leashed.do("unleash(fd)")
    case.ours.close()
    assert [case.leashed.do() for _ in range(20)] == [0] * 20


def test_it_can_be_leashed_again(case: Case) -> None:
    case.leashed.do("unleash(fd)")
    case.leashed.do("leash(fd)")
    case.leashed.do("leash(fd)")
    case.ours.close()
    case.leashed.wait_for_term()


def test_what_was_readable_before_sends_nothing() -> None:
    """So one has to look afterwards, as is said there."""
    ours, theirs = socket.socketpair()
    ours.close()
    leashed = Leashed(theirs)
    try:
        assert [leashed.do() for _ in range(20)] == [0] * 20
        assert leashed.do("assert os.read(fd, 1) == b''") == 0
    finally:
        leashed.end()


def test_the_child_of_a_leashed_process_can_be_leashed_itself(case: Case) -> None:
    """The last one counts, as with a fork server's lifeline that was its parent's."""
    case.leashed.do("unleash(fd)")
    case.leashed.do(
        "pid = os.fork(); pid or (signal.signal(signal.SIGTERM, lambda *_: os._exit(9)), leash(fd), "
        "os.write(fd, b'l'), [signal.pause() for _ in range(100)])"
    )
    assert case.ours.recv(1) == b"l"
    case.ours.close()
    assert case.leashed.do("assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9") == 0


def test_where_the_kernel_has_no_such_thing_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fcntl, "F_SETSIG")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert leash(theirs.fileno()) is False
        unleash(theirs.fileno())
        ours.close()  # and no TERM kills this process
        monkeypatch.delattr(os, "O_ASYNC")
        unleash(theirs.fileno())
