"""What a rolling program costs while nothing happens, and that restarts leave nothing behind: no wake-up, no growth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rolling.programs import Rolling, service

IDLE = 2.0  # seconds in which nobody may wake up
GROWTH = 200_000  # bytes: what a supervisor may grow from the tenth reload on, however many there are


def keep_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started from now on has its control socket in a folder of its own: programs of other tests that are in a
    container wake up all whose sockets they find, to see whether they live."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rolling]:
    keep_apart(tmp_path, monkeypatch)
    with Rolling(tmp_path / "program") as each:
        yield each


def wake_ups(pid: int) -> int:
    """How often threads of the process have gone to sleep so far."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += int((task / "status").read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return found


def is_asleep(pid: int) -> bool:
    """And does not wait for a core: on a busy machine that may take as long as a look."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def private_memory(pid: int) -> int:
    """Bytes that are this process's alone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def settle(program: Rolling, size: int) -> set[int]:
    """Wait until so many processes are left and all of them are asleep for good; their pids."""
    program.wait_until(lambda: len(program.members()) == size, f"{size} processes")

    def are_asleep() -> bool:
        before = {pid: wake_ups(pid) for pid in program.members()}
        time.sleep(0.2)
        return before == {pid: wake_ups(pid) for pid in program.members() if is_asleep(pid)}

    program.wait_until(are_asleep, "sleep")
    return program.members()


def assert_nobody_wakes_up(program: Rolling, size: int = 4) -> None:
    """But for what is still to be done after the last restart, some seconds later, once."""

    def sleep() -> bool:
        pids = settle(program, size)
        assert program.pid in pids
        before = {pid: wake_ups(pid) for pid in pids}
        time.sleep(IDLE)
        return {pid: wake_ups(pid) for pid in program.members()} == before

    assert any(sleep() for _ in range(3))


@pytest.mark.parametrize("options", ["workers=2", "workers=2, soak=0.1, batch=1, grace=3, max_jobs=1000, max_age=1000"])
def test_an_idle_program_never_wakes_up(program: Rolling, options: str) -> None:
    program.launch(service(options=options))
    assert_nobody_wakes_up(program)
    program.reload(service(2, options), expect=2)
    assert_nobody_wakes_up(program)
    assert program.ask()[1] == "2"


def test_without_preload_it_never_wakes_up_either(program: Rolling) -> None:
    program.launch(service(options="workers=2, preload=False"))
    assert_nobody_wakes_up(program, 3)


def test_it_goes_back_to_sleep_after_what_has_gone_wrong(program: Rolling) -> None:
    """A refused generation, a killed worker, an address that nobody wants any more, a worker more."""
    program.launch(service(top="bound = hotrestart.listen('127.0.0.1:0', name='early')"))
    program.deploy("import missing_module")
    program.hup()
    program.wait_log("generation 2 failed")
    program.reload(service(3), expect=3)
    program.kill(program.wait_workers(2, version=3).pop())
    program.wait_report(ready=True, version=3, count=3)
    assert_nobody_wakes_up(program)


def test_who_looks_after_hung_workers_wakes_up_no_more_often_than_it_has_to(program: Rolling) -> None:
    """The beat costs the worker nothing, so it is the supervisor that looks: once in `timeout` seconds."""
    program.launch(service(options="workers=2, timeout=1"))
    others = settle(program, 4) - {program.pid}
    before, since, mine = {pid: wake_ups(pid) for pid in others}, time.monotonic(), wake_ups(program.pid)
    time.sleep(IDLE)
    assert {pid: wake_ups(pid) for pid in others} == before
    woken = wake_ups(program.pid) - mine
    assert woken <= 2 * (time.monotonic() - since) + 2  # both workers, each at its own time
    program.ask()


def test_nothing_grows_over_many_reloads(program: Rolling, full: bool) -> None:
    """Every generation has an address of its own besides; some are broken, and now and then a worker is killed."""
    top = "extra = hotrestart.listen('unix:' + os.path.abspath('extra-%d' % VERSION), name='extra')"
    generation = 1
    program.launch(service(0, top=top))
    measured: list[tuple[int, int, int]] = []
    for number in range(1, (200 if full else 30) + 1):
        generation += 1
        if number % 5 == 4:
            program.deploy("import missing_module")
            program.hup()
            program.wait_log(f"generation {generation} failed at stage load")
        else:
            program.reload(service(number, top=top), expect=generation)
        if number % 7 == 6:
            alive = program.wait_workers(2)
            gone = {alive.pop()}
            program.kill(*gone)
            program.wait_workers(2, without=gone)
        if number % 10 == 0:  # addresses are not closed while one reload follows the other
            measured.append(measure(program))
    fds, memory, threads = zip(*measured, strict=True)
    assert fds[-1] == fds[0]
    assert threads[-1] == threads[0]
    assert memory[-1] - memory[0] < GROWTH, f"bytes after every ten reloads: {memory}"
    program.assert_no_zombie()


def extra_listeners(program: Rolling) -> int:
    """How many of the addresses are still open."""
    return Path("/proc/net/unix").read_text().count(str(program.folder / "extra-"))


def measure(program: Rolling) -> tuple[int, int, int]:
    """Once all is quiet: the supervisor's descriptors, bytes and threads."""
    program.wait_until(lambda: extra_listeners(program) == 1, "addresses that nobody wants any more are closed")
    settle(program, 4)
    return len(program.fds()), private_memory(program.pid), len(list(Path(f"/proc/{program.pid}/task").iterdir()))
