"""TERM for a worker that has entered `main()` and is not ready: it has no job to finish, and does not wait on."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from hotrestart.rolling import boot
from tests.conftest import need
from tests.rolling.programs import Rolling, is_running, service

BOOTS = """
import atexit, os, signal, sys, time
import hotrestart
from hotrestart import state

VERSION = {version}

def told(**what):
    report(**what, generation=state.generation, version=VERSION, pid=os.getpid())

def block():
    while not os.path.exists("never"):
        time.sleep(0.005)

{hang}

@hotrestart.restartable(workers=2, ready_timeout=3600, grace=3600{options})
{main}

if __name__ == "__main__":
    try:
        {call}
    finally:
        told(back=True)  # the fork server may be
"""

MAIN = """
def main():
    atexit.register(told, handlers=True)
    try:
        told(boots=True)
        hang()
    finally:
        told(tidied=True)
    with hotrestart.worker_loop() as loop:
        loop.sleep()
"""

ASYNC_MAIN = """
async def main():
    atexit.register(told, handlers=True)
    try:
        told(boots=True)
        await hang()
    finally:
        await asyncio.sleep(0)
        told(tidied=True)
    async with hotrestart.worker_loop() as loop:
        await loop.stopping()
"""

ASYNC = "import asyncio\nasync def hang():\n    "
ASYNC_BESIDE = """import asyncio
async def busy():
    block()
async def hang():
    asyncio.create_task(busy())
    await asyncio.sleep(3600)
"""
TRIO = "import trio\nasync def hang():\n    await trio.sleep(3600)"
RUN_UNTIL_COMPLETE = "boots = main(); asyncio.new_event_loop().run_until_complete(boots)"  # the fork comes first
HANGS = {
    "in Python": ("hang = block", MAIN, "main()"),
    "in a system call": ("def hang():\n    time.sleep(3600)", MAIN, "main()"),
    "in an import": ("def hang():\n    import slow", MAIN, "main()"),
    "awaiting": (ASYNC + "await asyncio.get_running_loop().create_future()", ASYNC_MAIN, "asyncio.run(main())"),
    "in a coroutine": (ASYNC + "block()", ASYNC_MAIN, "asyncio.run(main())"),
    "awaiting by uvloop": (ASYNC + "await asyncio.sleep(3600)", ASYNC_MAIN, "__import__('uvloop').run(main())"),
    "awaiting by run_until_complete": (ASYNC + "await asyncio.sleep(3600)", ASYNC_MAIN, RUN_UNTIL_COMPLETE),
    "beside a task that blocks": (
        ASYNC_BESIDE,
        ASYNC_MAIN.replace("await asyncio.sleep(0)", "pass"),
        RUN_UNTIL_COMPLETE,
    ),
    "awaiting by trio's run": (TRIO, ASYNC_MAIN.replace("await asyncio.sleep(0)", "pass"), "trio.run(main)"),
    "awaiting by trio": ("import trio\ndef hang():\n    trio.run(trio.sleep, 3600)", MAIN, "main()"),
}


def boots(how: str, version: int = 1, options: str = "") -> str:
    hang, main, call = HANGS[how]
    return BOOTS.format(version=version, options=options, hang=hang, main=main, call=call)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Rolling]:
    with Rolling(tmp_path / "program") as each:
        (each.folder / "slow.py").write_text(
            "import os, time\nwhile not os.path.exists('never'):\n    time.sleep(0.005)\n"
        )
        yield each


def wait_hanging(program: Rolling) -> None:
    """Until two workers sleep. (A signal in the last instruction before a system call is seen after it: PEP 475.)"""
    program.wait_report(boots=True, count=2)
    workers = [int(str(each["pid"])) for each in program.reports(boots=True)]
    program.wait_until(lambda: all(state_of(pid) == "S" for pid in workers), "both are in a system call")


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def check_tidy(program: Rolling, version: int = 1, count: int = 2) -> None:
    for what in ("tidied", "handlers"):
        told = program.reports(**{what: True}, version=version)
        assert len({each["pid"] for each in told}) == len(told) == count, what
    back, workers = ({each["pid"] for each in program.reports(**{what: True})} for what in ("back", "boots"))
    assert not back & workers
    for complaint in ("Traceback", "Exception ignored", "never awaited", "destroyed", "never retrieved"):
        assert complaint not in program.log()


@pytest.mark.parametrize("options", ["", ", preload=False"])
@pytest.mark.parametrize("how", HANGS)
def test_a_stop_ends_a_boot_that_hangs_and_it_tidies_up(program: Rolling, how: str, options: str) -> None:
    need(*(module for module in ("uvloop", "trio") if module in how))
    program.deploy(boots(how, options=options))
    program.start()
    wait_hanging(program)
    program.term()
    assert program.wait_exit() == 0
    program.wait_gone()
    check_tidy(program)


def test_an_event_loop_has_several_turns_before_its_coroutine_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By reminders that come one after the other: a machine that is busy for long holds up those, too."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    now, reminders, thrown, cancelled, ended = [0.0], list[float](), list[object](), list[object](), list[object]()
    monkeypatch.setattr(boot, "monotonic", lambda: now[0])
    cut = boot.Boot(ended.append)  # type: ignore[arg-type]
    monkeypatch.setattr(cut, "_remind_in", reminders.append)
    loop = SimpleNamespace(call_soon_threadsafe=lambda *call: cancelled.append(call))
    cut.coroutine = SimpleNamespace(cr_running=False, throw=thrown.append)
    cut.task = SimpleNamespace(get_loop=lambda: loop)
    with cut:
        cut.ask()
        for turn in range(1, 6):
            now[0] += 3600
            cut.ask()
            assert (len(cancelled), len(reminders), thrown) == (1, turn + 1, [])
        now[0] += 3600
        cut.ask()
    assert len(thrown) == len(ended) == 1
    assert sum(reminders[1:]) == pytest.approx(0.5)


@pytest.mark.parametrize("how", ["in Python", "awaiting"])
def test_the_end_of_the_supervisor_ends_a_boot_that_hangs(program: Rolling, how: str) -> None:
    program.deploy(boots(how))
    program.start()
    wait_hanging(program)
    program.kill_supervisor()
    program.wait_gone()
    check_tidy(program)


def test_who_hangs_ends_soon_when_another_new_worker_fails(program: Rolling) -> None:
    """The generation has failed: it is over when its last worker is, and only then the next restart can begin."""
    program.launch(service(1))
    program.deploy(boots("in Python", 2))
    program.hup()
    program.wait_report(boots=True, count=2)
    program.kill(int(str(program.reports(boots=True)[0]["pid"])))
    program.wait_log("generation 2 failed")
    program.wait_until(lambda: len(program.members()) == 4, "the new generation is gone")
    check_tidy(program, 2, count=1)
    program.reload(service(3), expect=3)


def test_one_term_is_one_interruption(program: Rolling) -> None:
    """What tidies up is not cut short: a second TERM comes when the fork server and the kernel both send one."""
    tidy = "        told(tidying=True)\n        hang()\n        told(tidied=True)"
    program.deploy(boots("in Python").replace("        told(tidied=True)", tidy))
    program.start()
    program.wait_report(boots=True, count=2)
    program.term()
    program.wait_report(tidying=True, count=2)
    workers = [int(str(each["pid"])) for each in program.reports(boots=True)]
    for pid in workers:
        os.kill(pid, 15)
    time.sleep(0.3)  # for what should not happen
    assert all(is_running(pid) for pid in workers)
    (program.folder / "never").touch()
    assert program.wait_exit() == 0
    check_tidy(program)


def test_a_boot_that_takes_no_notice_has_its_grace(program: Rolling) -> None:
    """It swallows SystemExit, and comes to its loop after all: then it is asked as anybody is."""
    source = boots("in Python").replace("        hang()", "        try: hang()\n        except BaseException: hang()")
    program.deploy(source)
    program.start()
    program.wait_report(boots=True, count=2)
    program.term()
    time.sleep(1.0)  # for what should not happen
    assert len(program.members()) == 4
    (program.folder / "never").touch()
    assert program.wait_exit() == 0
    program.wait_gone()
    check_tidy(program)


def test_who_is_told_before_main_does_not_call_it(program: Rolling) -> None:
    """In a worker's first moments TERM waits, for as long as the program's own hooks take."""
    top = "births = []\ndef born():\n    births.append(1)\n    if len(births) == 2:  # the fork server is the first\n"
    top += "        report(born=os.getpid())\n        block()\nos.register_at_fork(after_in_child=born)"
    program.deploy(boots("in Python").replace("@hotrestart", top + "\n\n@hotrestart", 1))
    program.start()
    program.wait_until(lambda: len(program.told("born")) == 2, "two forks")
    program.term()
    program.wait_until(lambda: all(is_pending(15, pid) for pid in program.told("born")), "it has been sent on")
    (program.folder / "never").touch()
    assert program.wait_exit() == 0
    assert not program.reports(boots=True)


def is_pending(number: int, pid: int) -> bool:
    """Whether the signal has been sent to the process and waits."""
    line = re.search(r"ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return line is not None and bool(int(line[1], 16) & 1 << (number - 1))


def test_a_boot_that_can_have_no_more_threads_is_cut_short_when_it_is_asked_again(program: Rolling) -> None:
    """Nobody can remind it; what it does not get is a RuntimeError of ours."""
    hang = "import threading\ndef hang():\n    threading.stack_size(1 << 47)\n    block()"
    HANGS["threadless"] = hang, MAIN, "main()"
    program.deploy(boots("threadless"))
    program.start()
    wait_hanging(program)
    program.term()
    workers = [int(str(each["pid"])) for each in program.reports(boots=True)]

    def has_gone() -> bool:
        for pid in filter(is_running, workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 15)
        return not any(is_running(pid) for pid in workers)

    program.wait_until(has_gone, "both are gone")
    assert program.wait_exit() == 0
    check_tidy(program)


GEVENT = """
import _thread, threading
class Greenlet: pass
greenlet = Greenlet()
_thread.get_ident = lambda: id(greenlet)
"""


def test_a_boot_is_cut_short_where_gevent_has_changed_the_identities_of_threads(program: Rolling) -> None:
    program.deploy(GEVENT + boots("in a system call"))
    program.start()
    wait_hanging(program)
    program.term()
    assert program.wait_exit() == 0
    program.wait_gone()
    check_tidy(program)


POOL = """
import multiprocessing
def hang():
    pools = []
    for _ in range(3):
        pools.append(multiprocessing.get_context("{method}").Pool(2))
        told(pool=True)
    block()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_that_is_just_starting_a_pool_leaves_nothing(program: Rolling, method: str, moment: float) -> None:
    HANGS["pool"] = POOL.format(method=method), MAIN, "main()"
    program.deploy(boots("pool"))
    program.start()
    program.wait_report(boots=True, count=2)
    time.sleep(moment * 0.15)  # the moment is what is varied, and every one is fine
    program.term()
    assert program.wait_exit() == 0
    program.wait_gone()


HALF_A_POOL = """
import concurrent.futures.process, multiprocessing.pool
def slowed(function):
    def slow(*arguments, **more):
        result = function(*arguments, **more)
        told(half=True)
        time.sleep(1.5)  # as on a busy machine: its children are there, and nothing is that would see to their end
        return result
    return slow
{slow}
def hang():
    {start}
    block()
"""
FUTURES = "concurrent.futures.process.ProcessPoolExecutor"
POOLS = {
    "Pool": (
        "import threading; threading.Thread.start = slowed(threading.Thread.start)",  # first the one that replaces them
        "pool = multiprocessing.get_context('fork').Pool(2)",
    ),
    "ProcessPoolExecutor": (
        f"{FUTURES}._launch_processes = slowed({FUTURES}._launch_processes)",
        f"pool = {FUTURES}(2, multiprocessing.get_context('fork')); pool.submit(os.getpid)",
    ),
}


@pytest.mark.parametrize("kind", POOLS)
def test_a_boot_is_not_interrupted_while_a_pool_is_only_half_there(program: Rolling, kind: str) -> None:
    """What is half there would go on to replace the children that it loses, or nobody would tell them to end."""
    if kind != "Pool" and not hasattr(ProcessPoolExecutor, "_launch_processes"):
        pytest.skip("this Python starts its children one by one")
    slow, start = POOLS[kind]
    HANGS["half a pool"] = HALF_A_POOL.format(slow=slow, start=start), MAIN, "main()"
    program.deploy(boots("half a pool"))
    program.start()
    program.wait_report(half=True, count=2)
    program.term()
    assert program.wait_exit() == 0
    program.wait_gone()


def test_what_is_interrupted_where_nothing_can_be_raised_is_interrupted_soon_after(program: Rolling) -> None:
    """An exception that comes up in a hook of os.fork(), or in a finalizer, is printed and forgotten."""
    hang = """
class Finalized:
    def __del__(self):
        time.sleep(1)
def hang():
    Finalized()
    block()
"""
    HANGS["finalizer"] = hang, MAIN, "main()"
    program.deploy(boots("finalizer"))
    program.start()
    program.wait_report(boots=True, count=2)
    program.term()
    assert program.wait_exit() == 0
    program.wait_gone()
    check_tidy(program)
