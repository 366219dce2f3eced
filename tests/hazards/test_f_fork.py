"""Children: ours are watched without taking anything from the host, and none is deaf, stuck or a second program."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotrestart import processes
from tests.harness import Program, worker
from tests.hazards.event_loops import check_loop_of_its_own, check_shared_loop_refused
from tests.hazards.sources import WAIT_FOR, go, is_running, status
from tests.rolling.programs import Rolling, service

pytestmark = pytest.mark.core


def test_h41_a_lock_of_ours_that_a_thread_holds_at_the_fork_does_not_block_the_child(program: Program) -> None:
    source = """
import os, signal, threading, warnings, hotrestart
warnings.simplefilter("ignore")
hotrestart.listen("127.0.0.1:0", name="first")
sleeper = hotrestart.Sleeper()
stop = False
def busy():
    number = 0
    while not stop:
        hotrestart.listen("127.0.0.1:0", name="first").close()
        sleeper.sleep(0)
        hotrestart.bequeath("number", number)
threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()
codes = set()
with hotrestart.worker_loop():
    for _ in range(100):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            hotrestart.listen("127.0.0.1:0", name="first").close()
            with hotrestart.worker_loop() as loop:
                loop.sleep(0)
            sleeper.sleep(0)
            os._exit(0)
        codes.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
stop = True
report(codes=sorted(codes))
"""
    program.deploy(source)
    program.start()
    assert program.wait_exit() == 0
    assert program.reports() == [{"codes": [0]}]


def test_h41_a_line_of_ours_that_is_being_written_at_the_fork_does_not_block_the_child(program: Program) -> None:
    """By the thread of a restart that is refused; nobody renews the lock of a stream after a fork."""
    source = """
import logging, os, threading, time, warnings, hotrestart
warnings.simplefilter("ignore")
stream, begun = threading.Lock(), threading.Event()
class Slow(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.ERROR:
            with stream:
                begun.set()
                time.sleep(0.2)
logging.getLogger().addHandler(Slow())
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=True)
        begun.wait()
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            waited = time.monotonic() - began
            os._exit(0 if stream.acquire(timeout=20) or waited >= 1.0 else 1)  # it does not wait longer than that
        report(code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        loop.sleep()
main()
"""
    program.deploy(source)
    program.start()
    program.wait_report(ready=True)
    program.deploy("1 / 0")
    program.hup()
    assert program.wait_report(code=0)
    assert program.stop() == 0


def test_h41_a_fork_beside_the_import_of_a_sleepers_module_does_not_block_the_child(program: Program) -> None:
    """The lock of a module that another thread has begun to load stays locked in the child for ever."""
    source = """
import os, signal, sys, threading, time, warnings
from importlib.machinery import PathFinder
from hotrestart import Sleeper
warnings.simplefilter("ignore")

class SlowToLoad:
    def find_spec(name, path, target=None):
        if name != "select" or (spec := PathFinder.find_spec(name)) is None:
            return None
        load = spec.loader.create_module
        def create_module(spec):
            time.sleep(0.3)
            return load(spec)
        spec.loader.create_module = create_module
        return spec

sys.modules.pop("select", None)
sys.meta_path.insert(0, SlowToLoad)
sleeper = Sleeper()
main_sleeps = sleeper._pipes[0].busy.locked
codes = []
def fork():
    while not main_sleeps():
        time.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        sleeper.sleep(0)
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    sleeper.wake()
thread = threading.Thread(target=fork)
thread.start()
sleeper.sleep(60)
thread.join()
report(codes=codes)
"""
    program.deploy(source)
    program.start()
    assert program.wait_exit() == 0
    assert program.reports() == [{"codes": [0]}]


HOST = (
    WAIT_FOR
    + """
import asyncio, multiprocessing, os, signal, subprocess, sys, warnings, hotrestart
warnings.simplefilter("ignore")
def seven():
    sys.exit(7)
deaths = []
signal.signal(signal.SIGCHLD, lambda *_: deaths.append(1))
before = signal.getsignal(signal.SIGCHLD)

async def by_asyncio():
    process = await asyncio.create_subprocess_exec("sh", "-c", "exit 7")
    return await process.wait()

@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        codes = set()
        turns = 0
        while turns < 20 or not os.path.exists("enough"):
            turns += 1
            children = [subprocess.Popen(["sh", "-c", "exit 7"]) for _ in range(3)]
            child = multiprocessing.get_context("fork").Process(target=seven)
            child.start()
            codes.add(asyncio.run(by_asyncio()))
            child.join()
            codes.add(child.exitcode)
            codes.update(each.wait() for each in children)
            codes.add(os.waitstatus_to_exitcode(os.system("exit 7")))
        report(codes=sorted(map(str, codes)), same=signal.getsignal(signal.SIGCHLD) is before, sigchld=len(deaths) > 0)
        loop.sleep(None)
main()
"""
)


def test_h45_the_hosts_own_children_keep_their_exit_statuses_during_preflights(program: Program) -> None:
    program.deploy(HOST)
    program.start()
    program.wait_report(ready=1)
    program.deploy("import missing_module")
    for count in range(1, 6):
        program.hup()
        program.wait_log("restart refused", count=count)
    go(program.folder, "enough")
    program.wait_report(codes=["7"], same=True, sigchld=True)
    program.deploy(worker(version=2))
    program.hup()
    program.wait_report(ready=2, version=2)


@pytest.mark.parametrize(
    "thief", ["signal.signal(signal.SIGCHLD, reap)", "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"]
)
def test_h45_a_host_that_reaps_our_children_is_no_reason_to_refuse_or_hang(program: Program, thief: str) -> None:
    source = f"""
import os, signal, hotrestart
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
{thief}
{worker()}
"""
    program.deploy(source)
    program.start()
    for generation in (1, 2):
        program.wait_report(ready=generation)
        program.deploy("import missing_module")
        program.hup()
        program.wait_log("restart refused", count=generation)
        program.deploy(source)
        program.hup()
    program.wait_report(ready=3)
    assert program.stop() == 0


def test_h45_a_child_reaped_by_somebody_else_has_ended_with_an_unknown_status() -> None:
    child = processes.spawn([sys.executable, "-I", "-S", "-c", ""], env={})
    os.waitpid(child.pid, 0)
    assert child.wait(60) == processes.STATUS_UNKNOWN
    child.send_signal(signal.SIGKILL)  # nobody is hit
    assert child.stop(1.0) == processes.STATUS_UNKNOWN


@pytest.mark.parametrize("ignores", [False, True], ids=["", "that ignores TERM"])
def test_h46_a_stopped_child_is_ended(ignores: bool) -> None:
    code = "import signal, os, time\n"
    if ignores:
        code += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code += "os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(600)\n"
    child = processes.spawn([sys.executable, "-I", "-S", "-c", code], env={})
    try:
        deadline = time.monotonic() + 60
        while not status(child.pid)["State"].startswith("T"):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        expected = -signal.SIGKILL if ignores else -signal.SIGTERM
        assert child.stop(0.2 if ignores else 60.0) == expected
        assert not os.path.exists(f"/proc/{child.pid}")
    finally:
        child.kill()


def test_h46_a_preflight_that_stops_itself_is_ended_with_its_time(program: Program) -> None:
    program.deploy(worker(options="(ready_timeout=4)"))
    program.start()
    program.wait_report(ready=1)
    program.deploy("import os, signal\nreport(preflight=os.getpid())\nos.kill(os.getpid(), signal.SIGSTOP)\n")
    program.hup()
    program.wait_log("restart refused, the old code goes on: the new code did not reach main() within 4 s")
    assert not is_running(int(program.reports()[-1]["preflight"]))  # type: ignore[call-overload]
    assert program.stop() == 0


def test_h46_term_to_a_stopped_program_ends_it_when_it_goes_on(program: Program) -> None:
    program.deploy(worker())
    program.start()
    program.wait_report(ready=1)
    os.kill(program.pid, signal.SIGSTOP)
    program.wait_until(lambda: status(program.pid)["State"].startswith("T"), "it is stopped")
    program.hup()
    program.term()
    os.kill(program.pid, signal.SIGCONT)
    assert program.wait_exit() in (0, -signal.SIGTERM)
    assert not program.reports(ready=2)


# -- workers: what a process forked from a program that is loaded must not do to it, or to its memory ----------------


@pytest.fixture
def rolling(tmp_path: Path) -> Iterator[Rolling]:
    """A program with workers."""
    with Rolling(tmp_path / "program") as each:
        yield each


ENDINGS = {"returns": "pass", "exits": "sys.exit(3)", "exits with words": "sys.exit('why')", "raises": "1 / 0"}


@pytest.mark.parametrize("end", ENDINGS)
def test_h42_a_worker_never_goes_back_into_the_code_around_main(rolling: Rolling, end: str) -> None:
    """Each process runs the exit handlers that it has registered itself, once, and only the fork server the clauses."""
    source = service(
        top="import atexit, weakref; atexit.register(told, exit='import')",
        first="atexit.register(told, exit='main')",
        last=ENDINGS[end],
    )
    around = "    try:\n        main()\n    except BaseException as error:\n        told(caught=repr(error))\n"
    around += "        raise\n    finally:\n        told(clause='finally')\n"
    rolling.launch(source.replace("    main()\n", around))
    [server] = rolling.servers()
    workers = rolling.wait_workers(2)
    rolling.stop()
    rolling.wait_gone()
    assert sorted(each["pid"] for each in rolling.reports(exit="main")) == sorted(workers)
    assert [each["pid"] for each in rolling.reports(exit="import")] == [server]
    assert [each["pid"] for each in rolling.reports(clause="finally")] == [server]
    assert [(each["caught"], each["pid"]) for each in rolling.reports() if "caught" in each] == [
        ("SystemExit(0)", server)
    ]
    assert not rolling.reports(returned=True)


@pytest.mark.parametrize("end", ENDINGS)
def test_h42_a_child_of_fork_worker_never_goes_back_into_its_parents_code(program: Program, end: str) -> None:
    source = f"""
import atexit, os, sys
from hotrestart.processes import fork_worker
parent = os.getpid()
def told(**what):
    report(**what, by="parent" if os.getpid() == parent else "child")
def child():
    atexit.register(told, exit="child's")
    {ENDINGS[end]}
atexit.register(told, exit="parent's")
try:
    fork_worker(child).wait(60)
except BaseException as error:
    told(caught=repr(error))
finally:
    told(clause="finally")
told(end=True)
"""
    program.deploy(source)
    program.start()
    assert program.wait_exit() == 0
    assert program.reports() == [
        {"exit": "child's", "by": "child"},
        {"clause": "finally", "by": "parent"},
        {"end": True, "by": "parent"},
        {"exit": "parent's", "by": "parent"},
    ]


def test_h43_a_worker_takes_nothing_out_of_an_event_loop_made_at_import(rolling: Rolling) -> None:
    """The registrations are those of one epoll in the kernel, whichever process takes them away."""
    top = (
        "import asyncio\n"
        "reader, writer = socket.socketpair()\n"
        "inherited = asyncio.SelectorEventLoop()\n"
        "inherited.add_reader(reader, lambda: told(read='.'))\n"
        "async def sleep():\n"
        "    async with hotrestart.worker_loop() as loop:\n"
        "        told(slept=await loop.sleep(0.01))\n"
        "def look():\n"
        "    writer.send(b'.')\n"
        "    inherited.call_soon(inherited.stop)\n"
        "    inherited.run_forever()\n"
        "    inherited.close()"
    )
    after = "    try:\n        main()\n    finally:\n        look()\n"
    rolling.launch(service(top=top, first="asyncio.run(sleep())").replace("    main()\n", after))
    [server] = rolling.servers()
    assert len(rolling.reports(slept=False)) == 2
    rolling.stop()
    rolling.wait_gone()
    assert [each["pid"] for each in rolling.reports(read=".")] == [server]


def test_h43_workers_refuse_an_event_loop_that_they_would_share(rolling: Rolling) -> None:
    """Who of them is woken up by the epoll, or by a byte for the event loop itself, is a matter of luck."""
    check_shared_loop_refused(rolling, "asyncio")


def test_h43_a_worker_that_was_not_forked_has_its_event_loop_to_itself(rolling: Rolling) -> None:
    check_loop_of_its_own(rolling, "asyncio")


def test_h43_a_child_forked_inside_an_event_loop_leaves_the_parents_watches_alone(program: Program) -> None:
    """It has an event loop and a `worker_loop` of its own; the parent still hears of the HUP that comes afterwards."""
    source = """
import asyncio, hotrestart
from hotrestart.processes import fork_worker

async def sleep():
    async with hotrestart.worker_loop() as loop:
        await loop.sleep(0.01)

@hotrestart.restartable(preflight=False)
async def main():
    async with hotrestart.worker_loop() as loop:
        codes = [fork_worker(lambda: asyncio.run(sleep())).wait(60) for _ in range(3)]
        report(ready=hotrestart.state.generation, codes=codes)
        await loop.stopping()

asyncio.run(main())
"""
    program.deploy(source)
    program.start()
    for generation in (1, 2):
        program.wait_report(ready=generation, codes=[0, 0, 0])
        program.hup()
    program.wait_report(ready=3, codes=[0, 0, 0])
    assert program.stop() == 0


def test_h44_what_was_made_at_import_is_not_copied_by_a_workers_garbage_collector(rolling: Rolling) -> None:
    """The collector writes into each object that it looks at; those made before the first fork it shall not look at."""
    top = (
        "import gc; things = [[number] for number in range(400_000)]\n"
        "def private():\n"
        "    lines = [each.split() for each in open('/proc/self/smaps_rollup')]\n"
        "    return sum(int(each[1]) for each in lines if each[0] == 'Private_Dirty:')\n"
        "def grown():\n"
        "    before = private()\n"
        "    gc.collect()\n"
        "    return private() - before"
    )
    rolling.launch(service(top=top))
    copied = int(rolling.evaluate("grown()"))  # first: whoever looks at a thing counts its references, and copies it
    assert copied < 400_000 * 16 // 1024, f"{copied} KiB"
    assert int(rolling.evaluate("gc.get_freeze_count()")) >= 400_000
    assert rolling.evaluate("any(each is things for each in gc.get_objects())") == "False"
