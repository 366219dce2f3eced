"""Children: ours are watched without taking anything from the host, and none is deaf, stuck or a second program."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from hotrestart import processes
from tests.harness import Program, worker
from tests.hazards.sources import WAIT_FOR, go, is_running, status

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
                time.sleep(0.5)
logging.getLogger().addHandler(Slow())
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=True)
        begun.wait()
        pid = os.fork()
        if pid == 0:
            os._exit(0 if stream.acquire(timeout=20) else 1)
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
    program.deploy(worker(options="(ready_timeout=0.5)"))
    program.start()
    program.wait_report(ready=1)
    program.deploy("import os, signal\nreport(preflight=os.getpid())\nos.kill(os.getpid(), signal.SIGSTOP)\n")
    program.hup()
    program.wait_log("restart refused, the old code goes on: the new code did not reach main() within 0.5 s")
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
