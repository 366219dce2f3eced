"""The leash: a TERM when the supervisor is gone, and at no other time, and for nobody else."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from hotrestart.leash import Tether, leash, unleash
from tests.harness import PATIENCE, clean_environment

fcntl = pytest.importorskip("fcntl")

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not hasattr(fcntl, "F_SETSIG"), reason="there is no such thing here"),
]


class Leashed:
    """A process that is leashed to a tether, does what it is told, and tells how many TERMs it has had."""

    CODE = """if True:
        import os, signal, sys
        from hotrestart import leash as module
        from hotrestart.leash import Tether, leash, unleash
        got = []
        if sys.argv[2] == "counts":
            signal.signal(signal.SIGTERM, lambda *_: got.append(1))
        tether = Tether(int(sys.argv[1]))
        assert leash(tether) is True
        print("leashed", flush=True)
        for line in sys.stdin:
            exec(line)
            print(len(got), flush=True)
    """

    def __init__(self, tether: Tether, how: str = "counts") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", self.CODE, str(tether.read_end), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[tether.read_end],
            env=clean_environment(),
        )
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


@pytest.fixture
def tether() -> Iterator[Tether]:
    each = Tether()
    yield each
    each.close()


@pytest.fixture(params=["counts"])
def leashed(request: pytest.FixtureRequest, tether: Tether) -> Iterator[Leashed]:
    each = Leashed(tether, request.param)
    yield each
    each.end()


dies = pytest.mark.parametrize("leashed", ["dies"], indirect=True)


def test_a_term_comes_when_the_supervisor_lets_go_and_not_before(tether: Tether, leashed: Leashed) -> None:
    assert [leashed.do() for _ in range(20)] == [0] * 20
    tether.let_go()
    leashed.wait_for_term()


@dies
def test_without_a_handler_it_is_a_term_like_any_other(tether: Tether, leashed: Leashed) -> None:
    assert leashed.process.poll() is None
    tether.let_go()
    assert leashed.process.wait(PATIENCE) == -signal.SIGTERM


@dies
def test_a_term_comes_when_the_supervisor_is_killed(tether: Tether, leashed: Leashed) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"],
        pass_fds=[tether.write_end],
        stdout=subprocess.PIPE,
    )
    tether.let_go()
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        assert leashed.process.poll() is None
    finally:
        holder.kill()
        holder.communicate()
    assert leashed.process.wait(PATIENCE) == -signal.SIGTERM


def test_all_who_are_leashed_get_one_each(tether: Tether) -> None:
    pack = [Leashed(tether) for _ in range(4)]
    try:
        pack[0].end()  # the end of one is nothing to the others
        assert [each.do() for each in pack[1:]] == [0, 0, 0]
        tether.let_go()
        for each in pack[1:]:
            each.wait_for_term()
            assert each.do() == 1
    finally:
        for each in pack[1:]:
            each.end()


def test_a_process_that_has_been_leashed_when_it_was_too_late_gets_its_term(tether: Tether) -> None:
    tether.let_go()
    leashed = Leashed(tether)
    try:
        leashed.wait_for_term()
    finally:
        leashed.end()


def test_a_child_that_was_forked_is_not_told(tether: Tether, leashed: Leashed) -> None:
    start = "pid = os.fork()"
    tell = "pid or (signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.sigwait([signal.SIGUSR1]), os._exit(7))"
    leashed.do(f"signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); {start}; {tell}")
    tether.let_go()
    leashed.wait_for_term()
    leashed.do("os.kill(pid, signal.SIGUSR1)")
    assert leashed.do("assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7") == 1


def test_a_child_can_be_leashed_itself_and_its_parent_is_told_too(tether: Tether, leashed: Leashed) -> None:
    """As a worker of a fork server that has become one."""
    leashed.do("told, teller = os.pipe()")
    leashed.do(
        "pid = os.fork(); pid or (signal.signal(signal.SIGTERM, lambda *_: os._exit(9)), leash(tether), "
        "os.write(teller, b'l'), [signal.pause() for _ in range(100)])"
    )
    assert leashed.do("assert os.read(told, 1) == b'l'") == 0
    tether.let_go()
    leashed.wait_for_term()
    # once more for each of the others that ends afterwards: a TERM has to be taken as often as it comes
    assert leashed.do("assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9") in (1, 2)


def test_the_child_of_one_that_is_not_leashed_any_more_is_leashed_alone(tether: Tether, leashed: Leashed) -> None:
    """As the workers of a fork server are."""
    leashed.do("unleash(); told, teller = os.pipe()")
    leashed.do(
        "pid = os.fork(); pid or (signal.signal(signal.SIGTERM, lambda *_: os._exit(9)), leash(tether), "
        "os.write(teller, b'l'), [signal.pause() for _ in range(100)])"
    )
    assert leashed.do("assert os.read(told, 1) == b'l'") == 0
    tether.let_go()
    assert leashed.do("assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9") == 0


def test_after_unleash_nothing_comes(tether: Tether, leashed: Leashed) -> None:
    leashed.do("unleash()")
    leashed.do("unleash()")
    tether.let_go()
    assert [leashed.do() for _ in range(20)] == [0] * 20


def test_it_can_be_leashed_again_and_is_told_once(tether: Tether, leashed: Leashed) -> None:
    leashed.do("unleash()")
    leashed.do("leash(tether)")
    leashed.do("leash(tether)")
    tether.let_go()
    leashed.wait_for_term()
    assert [leashed.do() for _ in range(20)] == [1] * 20


def test_it_leaves_no_more_than_one_descriptor_and_passes_none_on(tether: Tether, leashed: Leashed) -> None:
    before = "before = len(os.listdir('/proc/self/fd'))"
    leashed.do(f"{before}; leash(tether); leash(tether); assert len(os.listdir('/proc/self/fd')) == before")
    leashed.do("assert not os.get_inheritable(module._own) and not os.get_inheritable(tether.read_end)")
    leashed.do("unleash(); assert len(os.listdir('/proc/self/fd')) == before - 1")
    assert leashed.do() == 0


def test_the_pipe_is_close_on_exec_and_above_the_standard_streams(tether: Tether) -> None:
    for fd in (tether.read_end, tether.write_end):
        assert not os.get_inheritable(fd)
        assert fd > 2


def test_letting_go_twice_is_harmless() -> None:
    tether = Tether()
    tether.let_go()
    tether.let_go()
    assert tether.write_end == -1
    tether.close()


def test_where_the_kernel_has_no_such_thing_it_says_so(monkeypatch: pytest.MonkeyPatch, tether: Tether) -> None:
    monkeypatch.delattr(fcntl, "F_SETSIG")
    assert leash(tether) is False
    unleash()
    tether.let_go()  # and no TERM kills this process


def test_without_proc_it_says_so(monkeypatch: pytest.MonkeyPatch, tether: Tether) -> None:
    def refuse(path: str, _flags: int) -> int:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "open", refuse)
    assert leash(tether) is False
    unleash()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_program_that_drops_its_privileges_while_it_is_imported_is_leashed(tether: Tether, leashed: Leashed) -> None:
    """So its workers are forked with the rights of somebody to whom the supervisor's pipe does not belong."""
    leashed.do("unleash(); os.setgid(65534); os.setuid(65534); leash(tether)")
    tether.let_go()
    deadline = time.monotonic() + 1.0
    while not leashed.do():
        assert time.monotonic() < deadline
