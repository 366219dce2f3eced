"""Signals: none kills, is lost or deafens, at whatever moment it comes; and what was there before stays as it was."""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import Program, clean_environment, worker
from tests.hazards.sources import WAIT_FOR, go, is_running, mask

pytestmark = pytest.mark.core

HUP, INT, TERM = signal.SIGHUP, signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize("preflight", [False, True], ids=["", "with preflight"])
def test_h12_a_hup_in_the_boot_window_is_kept(program: Program, preflight: bool, full: bool) -> None:
    def version(number: int) -> str:
        return "import logging, decimal\n" + worker(version=number, options=f"(preflight={preflight})")

    program.deploy(version(0))
    program.start()
    program.wait_report(ready=1)
    for number in range(1, 25, 1 if full else 3):
        program.hup()
        time.sleep(number * (0.002 if not preflight else 0.006))  # not a wait: the moment of the second one
        program.deploy(version(number))
        program.hup()
        program.wait_report(version=number)
    assert program.stop() in (0, -signal.SIGTERM)  # the last HUP may have it booting once more


def test_h12_a_hup_before_the_program_listens_is_remembered(program: Program) -> None:
    slow = WAIT_FOR + "import hotrestart\nreport(imported=hotrestart.state.generation)\nwait_for('go')\n"
    program.deploy(worker(version=1, options="(preflight=False)"))
    program.start()
    program.wait_report(ready=1)
    program.deploy(slow + worker(version=2, options="(preflight=False)"))
    program.hup()
    program.wait_report(imported=2)
    program.hup()
    program.deploy(worker(version=3, options="(preflight=False)"))
    go(program.folder, "go")
    program.wait_report(ready=3, version=3)


CHILDREN = (
    WAIT_FOR
    + """
import subprocess, sys, hotrestart
def sleeper(where):
    child = subprocess.Popen(["sleep", "60"])
    report(where=where, child=child.pid, generation=hotrestart.state.generation)
    return child
at_import = sleeper("at import")
@hotrestart.restartable(preflight=False)
def main():
    in_main = sleeper("in main")
    with hotrestart.worker_loop() as loop:
        in_loop = sleeper("in the loop")
        report(ready=hotrestart.state.generation)
        loop.sleep(60)
    for child in (in_main, in_loop, at_import):
        child.wait()
main()
"""
)


def test_h13_children_are_not_deaf_and_no_mask_piles_up(program: Program) -> None:
    program.deploy(CHILDREN)
    program.start()
    for generation in (1, 2, 3):
        program.wait_report(ready=generation)
        assert mask(program.pid) == set()
        children = [int(each["child"]) for each in program.reports(generation=generation) if "child" in each]
        assert len(children) == 3
        for child in children:
            # Popen returns once the child has reached exec, so this is the mask that `sleep` has got
            assert mask(child) == set()
            assert HUP not in mask(child, "SigIgn")
            os.kill(child, HUP)
        if generation < 3:
            program.hup()
    assert program.stop() == 0


def test_h13_a_mask_that_the_program_was_given_is_given_to_every_generation(program: Program) -> None:
    program.deploy(worker(options="(preflight=False)"))
    program.start(preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]))
    for generation in (1, 2, 3):
        program.wait_report(ready=generation)
        assert mask(program.pid) == {signal.SIGUSR1}
        program.hup()
    program.wait_report(ready=4)
    assert program.stop() == 0


def test_h13_a_signal_that_a_generation_blocked_is_not_blocked_in_the_next(program: Program) -> None:
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM])\n"
    program.deploy(worker(options="(preflight=False)").replace("        while", f"        {block}        while"))
    program.start()
    program.wait_report(ready=1)
    program.deploy(worker(version=2))
    program.hup()
    program.wait_report(ready=2, version=2)
    assert mask(program.pid) == set()
    assert program.stop() == 0


@pytest.mark.parametrize("preflight", [False, True], ids=["", "with preflight"])
def test_h14_term_at_any_moment_around_the_exec_ends_the_program(tmp_path: Path, preflight: bool, full: bool) -> None:
    rounds, span = (40 if full else 12, 0.1) if preflight else (160 if full else 40, 0.04)
    for number in range(rounds):
        with Program(tmp_path / str(number)) as program:
            program.deploy(worker(options=f"(preflight={preflight})"))
            program.start()
            program.wait_report(ready=1)
            delay = span * (number + random.random()) / rounds  # all over the span, and elsewhere the next time
            program.hup()
            time.sleep(delay)  # not a wait: the moment of the TERM
            program.term()
            assert program.wait_exit() in (0, -TERM), f"{delay}: {program.log()}"
            assert "Traceback" not in program.log(), f"{delay}: {program.log()}"


AT_THE_DOOR = (
    WAIT_FOR
    + """
import os, hotrestart
def at_the_door(*arguments, exec=os.execve):
    report(at_the_door=hotrestart.state.generation)
    wait_for("go")
    exec(*arguments)
os.execve = at_the_door
@hotrestart.restartable(preflight=False)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        loop.sleep(None)
main()
"""
)


@pytest.mark.parametrize("number", [TERM, INT])
def test_h14_a_stop_at_the_last_moment_before_the_exec_ends_the_program(program: Program, number: int) -> None:
    program.deploy(AT_THE_DOOR)
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(at_the_door=1)
    os.kill(program.pid, number)
    go(program.folder, "go")
    assert program.wait_exit() == -number
    assert not program.reports(ready=2)


def test_h12_a_hup_at_the_last_moment_before_the_exec_leads_to_the_newest_code(program: Program) -> None:
    """It may be kept for the next generation, or be forgotten: the code it asks for has not been loaded yet."""
    program.deploy(AT_THE_DOOR)
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(at_the_door=1)
    program.deploy(worker(version=2))
    program.hup()
    go(program.folder, "go")
    program.wait_report(version=2)
    program.deploy(worker(version=3))
    program.hup()
    program.wait_report(version=3)


def test_h14_term_at_the_same_moment_as_hup_is_a_stop(tmp_path: Path, full: bool) -> None:
    for number in range(30 if full else 10):
        with Program(tmp_path / str(number)) as program:
            program.deploy(worker(options="(preflight=False)"))
            program.start()
            program.wait_report(ready=1)
            for each in (signal.SIGSTOP, *((HUP, TERM) if number % 2 else (TERM, HUP)), signal.SIGCONT):
                os.kill(program.pid, each)
            assert program.wait_exit() in (0, -TERM)
            assert not program.reports(ready=2)


def test_h15_term_to_a_child_just_forked_ends_it(program: Program) -> None:
    source = """
import multiprocessing, os, signal, sys, threading, time, warnings, hotrestart
warnings.simplefilter("ignore")
def forever():
    time.sleep(60)
@hotrestart.restartable
def main():
    with hotrestart.worker_loop():
        fork = multiprocessing.get_context("fork")
        codes = []
        for number in range(150):
            child = fork.Process(target=forever)
            child.start()
            time.sleep(number * 0.00001)
            child.terminate()
            child.join(30)
            codes.append(child.exitcode)
            if child.exitcode is None:
                child.kill()
                child.join()
                break
        report(codes=sorted(set(codes), key=str))
        handlers = [signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)]
        if os.fork() == 0:
            mine = [signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)]
            report(inherited=any(map(handlers.__contains__, mine)), mask=len(signal.pthread_sigmask(0, ())))
            os._exit(0)
        os.wait()
        report(mask_of_parent=len(signal.pthread_sigmask(0, ())))
main()
"""
    program.deploy(source)
    program.start()
    assert program.wait_exit() == 0
    program.wait_report(codes=[-TERM])
    program.wait_report(inherited=False, mask=0)
    program.wait_report(mask_of_parent=0)


BLOCKING = (
    WAIT_FOR
    + """
import os, threading, hotrestart
read_end, write_end = os.pipe()
def watch():
    while not hotrestart.state.should_stop:
        pass
    report(flag=hotrestart.state.reason)
    wait_for("go")
    os.write(write_end, b"x")
@hotrestart.restartable(preflight=False)
def main():
    with hotrestart.worker_loop() as loop:
        if hotrestart.state.generation == 1:
            threading.Thread(target=watch).start()
        report(ready=hotrestart.state.generation)
        CALL
        report(returned=hotrestart.state.generation)
main()
"""
)


@pytest.mark.parametrize(
    "call",
    [
        "assert loop.sleep(None)",
        "assert loop.sleep(1e9)",
        "assert loop.wait(read_end) == []",
        "import select; select.select([loop], [], [])",
        "thread = threading.Thread(target=loop.sleep); thread.start(); thread.join()",
    ],
)
def test_h16_sleep_and_wait_end_at_once(program: Program, call: str) -> None:
    program.deploy(BLOCKING.replace("CALL", call))
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(returned=1)
    go(program.folder, "go")
    program.wait_report(ready=2)


def test_h16_a_blocking_call_of_the_program_goes_on_though_the_flag_is_set(program: Program) -> None:
    program.deploy(BLOCKING.replace("CALL", "os.read(read_end, 1)"))
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(flag="restart")
    assert not program.reports(returned=1)
    go(program.folder, "go")
    program.wait_report(returned=1)
    program.wait_report(ready=2)


def test_h16_a_signal_before_the_sleep_is_not_slept_through(program: Program) -> None:
    source = """
import os, signal, time, hotrestart
for turn in range(200):
    with hotrestart.Sleeper() as sleeper, hotrestart.signals.handling(sleeper):
        os.kill(os.getpid(), signal.SIGHUP)
        assert sleeper.sleep(60) and hotrestart.state.reason == "restart"
    hotrestart.state.reset()
report(turns=turn)
"""
    program.deploy(source)
    program.start()
    program.wait_exit()
    program.wait_report(turns=199)


@pytest.mark.parametrize("how", ["pthread_kill", "main has it blocked"])
def test_h17_a_signal_that_another_thread_takes_ends_the_sleep(program: Program, how: str) -> None:
    source = (
        WAIT_FOR
        + """
import signal, threading, hotrestart
def other():
    wait_for("go")
    if HOW == "pthread_kill":
        signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
@hotrestart.restartable(preflight=False)
def main():
    if hotrestart.state.generation == 1:
        threading.Thread(target=other).start()
        if HOW != "pthread_kill":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        loop.sleep(None)
main()
"""
    )
    program.deploy(source.replace("HOW", repr(how)))
    program.start()
    program.wait_report(ready=1)
    if how != "pthread_kill":
        program.hup()
        time.sleep(0.05)  # so that the thread, not the end of it, is there to take it
    go(program.folder, "go")
    program.wait_report(ready=2)
    assert mask(program.pid) == set()


ASYNCIO = """
import asyncio, os, signal, hotrestart

async def sleep_until_asked(loop):
    asked = asyncio.Event()
    running = asyncio.get_running_loop()
    running.add_reader(loop, asked.set)
    await asked.wait()
    running.remove_reader(loop)

async def use_own_signal(when):
    got = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, got.set)
    await asyncio.sleep(0.01)
    return got

async def serve():
    BEFORE
    with hotrestart.worker_loop(preflight=False) as loop:
        AFTER
        report(ready=hotrestart.state.generation)
        await got.wait()  # SIGUSR1, by asyncio's own handler
        report(usr1=hotrestart.state.generation)
        await sleep_until_asked(loop)

DECORATED
"""

GOT = "got = await use_own_signal('')"
AROUND = "@hotrestart.restartable(preflight=False)\ndef main():\n    asyncio.run(serve())\nmain()"


@pytest.mark.parametrize("order", ["before", "after", "around"])
def test_h18_asyncios_own_signal_handlers_and_ours_both_wake_the_loop(program: Program, order: str) -> None:
    source = ASYNCIO.replace("BEFORE", GOT if order == "before" else "pass")
    source = source.replace("AFTER", GOT if order != "before" else "pass")
    program.deploy(source.replace("DECORATED", AROUND if order == "around" else "asyncio.run(serve())"))
    program.start()
    for generation in (1, 2, 3):
        program.wait_report(ready=generation)
        os.kill(program.pid, signal.SIGUSR1)
        program.wait_report(usr1=generation)
        program.hup()
    program.wait_report(ready=4)
    os.kill(program.pid, signal.SIGUSR1)
    program.wait_report(usr1=4)
    assert program.stop() == 0
    assert "Traceback" not in program.log()


def test_h18_the_hosts_handlers_wakeup_fd_and_mask_are_put_back(program: Program) -> None:
    source = """
import signal, socket, hotrestart
def mine(*_): pass
a, b = socket.socketpair()
a.setblocking(False); b.setblocking(False)
def now():
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    handlers = [signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)]
    return handlers, fd, signal.pthread_sigmask(signal.SIG_BLOCK, ())
for wakeup_fd in (-1, b.fileno()):
    signal.set_wakeup_fd(wakeup_fd)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, mine)
    before = now()
    with hotrestart.worker_loop():
        inside = now()
    assert now() == before, (now(), before)
    assert inside[0] != before[0]
    if wakeup_fd != -1:
        assert inside[1] == wakeup_fd
    with hotrestart.worker_loop():
        signal.signal(signal.SIGHUP, print)
        signal.set_wakeup_fd(a.fileno())
    assert now()[0] == [print, *before[0][1:]] and now()[1] == a.fileno()
report(done=True)
"""
    program.deploy(source)
    program.start()
    program.wait_exit()
    program.wait_report(done=True)


def test_h19_every_sleeping_thread_wakes_and_descriptors_above_1024_do(program: Program) -> None:
    source = """
import os, resource, threading, hotrestart
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
def sleeps(loop):
    assert loop.sleep(None)
    report(thread=threading.current_thread().name)
@hotrestart.restartable(preflight=False)
def main():
    with hotrestart.worker_loop() as loop:
        assert loop.fileno() > 1024
        for number in range(5):
            threading.Thread(target=sleeps, args=(loop,), name=f"{hotrestart.state.generation}.{number}").start()
        report(ready=hotrestart.state.generation)
        loop.sleep(None)
        assert loop.sleep(None)  # for good
main()
"""
    program.deploy(source)
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2)
    assert sorted(str(each["thread"]) for each in program.reports() if "thread" in each) == [f"1.{n}" for n in range(5)]


def test_h19_a_signal_to_a_forked_child_does_not_wake_the_parent(program: Program) -> None:
    source = """
import os, signal, time, hotrestart
with hotrestart.Sleeper() as sleeper, hotrestart.signals.handling(sleeper):
    if os.fork() == 0:
        with hotrestart.signals.handling(sleeper):
            for _ in range(50):
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(0.01)
            report(child=sleeper.sleep(60))
            os._exit(0)
    report(parent=sleeper.sleep(1.5))  # while the child is at it
    os.wait()
"""
    program.deploy(source)
    program.start()
    assert program.wait_exit() == 0
    assert sorted(program.reports(), key=str) == [{"child": True}, {"parent": False}]


FLOOD = """
import os, signal, subprocess, sys, hotrestart
KILLER = '''
import os, signal, sys
parent, number = int(sys.argv[1]), int(sys.argv[2])
for _ in range(20000):
    os.kill(parent, number)
'''
@hotrestart.restartable(OPTIONS)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        if hotrestart.state.generation == 1:
            killer = subprocess.Popen([sys.executable, "-c", KILLER, str(os.getpid()), str(int(signal.SIGHUP))])
            turns = 0
            while killer.poll() is None:
                print("turn", turns, file=sys.stderr)
                turns += 1
                hotrestart.state.should_stop
            report(turns=turns)
        loop.sleep(None)
main()
"""


@pytest.mark.parametrize("preflight", [False, True], ids=["", "with preflight"])
def test_h20_twenty_thousand_signals_do_nothing_but_ask_once(program: Program, preflight: bool) -> None:
    program.deploy(FLOOD.replace("OPTIONS", f"preflight={preflight}"))
    program.start()
    program.wait_report(ready=1)
    program.wait_report(ready=2)
    program.hup()
    program.wait_report(ready=3)
    assert program.stop() == 0
    unwanted = [line for line in program.log().splitlines() if not line.startswith("turn ")]
    assert unwanted == []


def test_h21_another_thread_gets_a_clear_error(program: Program) -> None:
    source = """
import threading, hotrestart
def elsewhere():
    try:
        with hotrestart.worker_loop():
            pass
    except hotrestart.errors.WrongThreadError as error:
        report(error=str(error))
thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
with hotrestart.worker_loop() as loop:
    report(after=True)
"""
    program.deploy(source)
    program.start()
    program.wait_exit()
    program.wait_report(error="signals can be handled in the main thread only: enter there")
    program.wait_report(after=True)


BY_THREAD = (
    WAIT_FOR
    + """
import signal, threading, hotrestart
def ask():
    wait_for(f"go{hotrestart.state.generation}")
    hotrestart.request_restart()
@hotrestart.restartable
def main():
    threading.Thread(target=ask, daemon=True).start()
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        loop.sleep(None)
main()
"""
)


@pytest.mark.parametrize(
    ("prefix", "ignored"),
    [(["nohup"], {HUP}), (["sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh"], {HUP, INT})],
    ids=["nohup", "trap"],
)
def test_h22_an_ignored_signal_stays_ignored_over_the_generations(
    program: Program, prefix: list[str], ignored: set[int]
) -> None:
    program.deploy(BY_THREAD)
    program.start_command([*prefix, sys.executable, "app.py"])
    for generation in (1, 2, 3):
        program.wait_report(ready=generation)
        assert mask(program.pid, "SigIgn") & {HUP, INT} == ignored
        assert mask(program.pid) == set()
        for number in ignored:
            os.kill(program.pid, number)
        if generation < 3:
            go(program.folder, f"go{generation}")
    assert program.stop() == 0
    assert not program.reports(ready=4)


def test_h22_an_int_ignored_for_a_background_job_stays_ignored(program: Program) -> None:
    program.deploy(worker())
    script = '"$0" app.py & echo $! > pid; wait'
    program.start_command(["sh", "-c", script, sys.executable])
    program.wait_report(ready=1)
    pid_file = program.folder / "pid"
    pid = int(program.wait_until(lambda: pid_file.exists() and pid_file.read_text(), "its pid"))
    try:
        for generation in (1, 2):
            program.wait_report(ready=generation)
            assert INT in mask(pid, "SigIgn")
            os.kill(pid, INT)
            os.kill(pid, HUP)
        program.wait_report(ready=3)
        os.kill(pid, TERM)
        program.wait_exit()
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)


def test_h22_a_signal_that_one_generation_ignores_is_not_ignored_in_the_next(program: Program) -> None:
    source = worker(options="(preflight=False)")
    ignore = "import signal, hotrestart\nfor each in (signal.SIGUSR1, signal.SIGCHLD, signal.SIGQUIT):\n"
    program.deploy(f"{ignore}    signal.signal(each, signal.SIG_IGN)\n{source}")
    program.start()
    program.wait_report(ready=1)
    assert {signal.SIGUSR1, signal.SIGCHLD, signal.SIGQUIT} <= mask(program.pid, "SigIgn")
    program.deploy(worker(version=2))
    program.hup()
    program.wait_report(ready=2, version=2)
    glibc_s_own = {32, 33}  # ignored by its posix_spawn, whoever has started pytest; nobody else can change that
    assert mask(program.pid, "SigIgn") - glibc_s_own == {signal.SIGPIPE, signal.SIGXFSZ}


def on_a_terminal(program: Program) -> int:
    """Start the program as the leader of a session on a terminal of its own; the terminal's other end."""
    controller, terminal = pty.openpty()
    environment = clean_environment(REPORT=str(program.report_file), PWD=str(program.folder))

    def take_terminal() -> None:
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    try:
        program.process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=program.folder,
            env=environment,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
    finally:
        os.close(terminal)
    return controller


CHATTY = """
import logging, sys, hotrestart
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
sys.excepthook = lambda kind, error, trace: report(raised=repr(error))
sys.unraisablehook = lambda what: report(raised=repr(what))
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, printed=hotrestart.state.generation)
        logging.info("a line for the terminal")
        loop.sleep(None)
main()
"""


def test_h23_a_terminal_that_hangs_up_asks_for_a_restart_and_breaks_nothing(program: Program) -> None:
    program.deploy(CHATTY)
    controller = on_a_terminal(program)
    try:
        program.wait_report(ready=1)
    finally:
        os.close(controller)  # the kernel hangs up: HUP to the leader of the session, EIO for what it prints
    program.wait_report(ready=2)
    program.hup()
    program.wait_report(ready=3)
    assert [each for each in program.reports() if "raised" in each] == []
    program.stop()  # CPython itself may raise here: it cannot flush what the logging has printed


def test_h23_ctrl_c_on_a_terminal_is_a_stop(program: Program) -> None:
    program.deploy(worker())
    controller = on_a_terminal(program)
    try:
        program.wait_report(ready=1)
        program.hup()
        program.wait_report(ready=2)
        os.write(controller, b"\x03")
        assert program.wait_exit() == 0
        assert program.reports()[-1] == {"ended": "stop"}
        try:
            printed = os.read(controller, 65536)
        except OSError:  # EIO: nothing was printed and the terminal has no other side any more
            printed = b""
        assert b"Traceback" not in printed
    finally:
        os.close(controller)
