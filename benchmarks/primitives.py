"""The pieces one by one, each against the system call or the attribute that it stands for.

Sleeper: another thread's `wake()` until the main thread's `sleep` returns, against a bare `os.pipe` and `select.poll`.
`close_open_fds` against `os.closerange` up to the limit on open files, which is raised as far as the machine allows.
A turn of `while loop.running` against a module's attribute. `import hotrestart` against the modules by hand.
"""

from __future__ import annotations

import _thread
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, perf_counter_ns, sleep
from types import ModuleType

from measure import CHECKOUT, Comparison, Table, clean_environment, command_line, in_turn, installed_package

TURNS = 200_000  # of a loop, in one sample
IN_PROCESS = 200  # calls of a function, in one sample
OPEN_FILES = 50  # descriptors that a forked child has to close

BY_HAND = "import signal, select, socket"
IMPORTS = {
    "import hotrestart": "import hotrestart",
    "import with both doors": "from hotrestart import restartable, worker_loop",
}


def measure(runs: int) -> list[Comparison | Table]:
    sys.path.insert(0, str(CHECKOUT))
    most = _raise_limit()
    with installed_package() as package:
        return [
            _wake_up(20 * runs),
            _close_in_child(most, runs),
            _close_in_process(most, runs),
            _turn(runs),
            *(_import(flags, package, runs) for flags in ("-I -S", "")),
        ]


# --- the sleeper


def _wake_up(runs: int) -> Comparison:
    from hotrestart import Sleeper

    read_end, write_end = os.pipe()
    poll = select.poll()
    poll.register(read_end, select.POLLIN)

    def bare_sleep() -> None:
        poll.poll(10_000)
        os.read(read_end, 16)

    sleeper = Sleeper()
    with _Waker() as waker:
        sides = {
            "floor": lambda: waker.microseconds(bare_sleep, lambda: os.write(write_end, b"\0")),
            "ours": lambda: waker.microseconds(lambda: sleeper.sleep(10.0), sleeper.wake),
        }
        samples = in_turn(sides, runs)
    sleeper.close()
    os.close(read_end)
    os.close(write_end)
    return Comparison("sleeper: wake() in a thread to return of sleep()", "us", samples)


class _Waker:
    """A thread that wakes the main thread, which is asleep by then. Bare locks: a turn costs the same on both sides."""

    def __init__(self) -> None:
        self._begin, self._ended = _thread.allocate_lock(), _thread.allocate_lock()
        self._begin.acquire()
        self._ended.acquire()
        self._wake: Callable[[], object] | None = None
        self._woke_at = 0

    def microseconds(self, fall_asleep: Callable[[], object], wake: Callable[[], object]) -> float:
        self._wake = wake
        self._begin.release()
        fall_asleep()
        return (perf_counter_ns() - self._woke_at) / 1e3

    def _run(self) -> None:
        begin = self._begin
        while True:
            begin.acquire()
            wake = self._wake
            if wake is None:
                break
            sleep(0.001)  # the main thread is asleep after some microseconds
            self._woke_at = perf_counter_ns()
            wake()
        self._ended.release()

    def __enter__(self) -> _Waker:
        _thread.start_new_thread(self._run, ())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._wake = None
        self._begin.release()
        self._ended.acquire()


# --- descriptors


def _raise_limit() -> int:
    """The highest limit on open files that this process may have; it has it from now on."""
    highest = int(Path("/proc/sys/fs/nr_open").read_text()) if Path("/proc/sys/fs/nr_open").exists() else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in ((highest, highest), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, wanted)
        except (OSError, ValueError):
            continue
        break
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft


def _close_in_child(most: int, runs: int) -> Comparison:
    from hotrestart import fds

    def first_call() -> None:
        fds._at_once = None  # a child's first call finds out how the system closes; a program's children need not
        fds.close_open_fds(keep=(report,))

    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(OPEN_FILES)]
    own, report = os.pipe()
    fds.close_open_fds(lowest=most)
    sides = {
        "floor": lambda: _in_child(own, report, lambda: (os.closerange(3, report), os.closerange(report + 1, most))),
        "ours": lambda: _in_child(own, report, lambda: fds.close_open_fds(keep=(report,))),
        "ours, first call": lambda: _in_child(own, report, first_call),
    }
    samples = in_turn(sides, 3 * runs)
    for fd in (*files, own, report):
        os.close(fd)
    return Comparison(f"close_open_fds in a forked child, {OPEN_FILES} open, limit {most}", "us", samples)


def _in_child(own: int, report: int, close: Callable[[], object]) -> float:
    pid = os.fork()
    if pid == 0:
        started = perf_counter_ns()
        close()
        os.write(report, b"%d\n" % (perf_counter_ns() - started))
        os._exit(0)
    os.waitpid(pid, 0)
    return int(os.read(own, 64)) / 1e3


def _close_in_process(most: int, runs: int) -> Comparison:
    """The calls alone, above all open descriptors, so that they close nothing and can be made again and again."""
    from hotrestart import fds

    lowest = max(fds.open_fds()) + 1

    def per_call(close: Callable[[], object]) -> float:
        started = perf_counter()
        for _ in range(IN_PROCESS):
            close()
        return (perf_counter() - started) / IN_PROCESS * 1e6

    sides = {
        "floor": lambda: per_call(lambda: os.closerange(lowest, most)),
        "ours": lambda: per_call(lambda: fds.close_open_fds(lowest=lowest)),
    }
    return Comparison(f"close_open_fds, the call alone, limit {most}", "us", in_turn(sides, runs))


# --- a turn of the loop


def _turn(runs: int) -> Comparison:
    import hotrestart

    flag = ModuleType("flag")
    flag.should_stop = False  # type: ignore[attr-defined]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    with hotrestart.worker_loop(preflight=False) as loop:
        sides = {
            "floor": lambda: _turn_by_hand(flag),
            "ours, loop.running": lambda: _turn_of_loop(loop),
            "ours, state.should_stop": lambda: _turn_by_hand(hotrestart.state),
        }
        samples = in_turn(sides, runs)
    assert handlers == {number: signal.getsignal(number) for number in handlers}
    return Comparison("a turn of an empty loop", "ns", samples)


def _turn_by_hand(flag: ModuleType) -> float:
    turns = TURNS
    started = perf_counter_ns()
    while not flag.should_stop:
        turns -= 1
        if not turns:
            break
    return (perf_counter_ns() - started) / TURNS


def _turn_of_loop(loop: object) -> float:
    turns = TURNS
    started = perf_counter_ns()
    while loop.running:  # type: ignore[attr-defined]
        turns -= 1
        if not turns:
            break
    return (perf_counter_ns() - started) / TURNS


# --- the import


def _import(flags: str, package: Path, runs: int) -> Comparison:
    def milliseconds(statement: str) -> float:
        program = (
            f"import sys; from time import perf_counter_ns as now; sys.path.insert(0, {str(package)!r})\n"
            f"began = now()\n{statement}\nprint(now() - began)"
        )
        command = [sys.executable, *flags.split(), "-c", program]
        return int(subprocess.run(command, env=clean_environment(), stdout=subprocess.PIPE, check=True).stdout) / 1e6

    sides = {"floor": lambda: milliseconds(BY_HAND)}
    sides |= {name: lambda statement=statement: milliseconds(statement) for name, statement in IMPORTS.items()}
    how = f"python {flags}" if flags else "python"
    return Comparison(f"import in a fresh interpreter ({how}); floor: {BY_HAND}", "ms", in_turn(sides, runs))


if __name__ == "__main__":
    command_line(__file__, measure, runs=50)
