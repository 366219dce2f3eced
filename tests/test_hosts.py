"""Programs with ways of their own around their loop: handlers, second loops, replaced streams, descriptors closed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness import Program, copy_library

pytestmark = pytest.mark.core

TOP = """
import atexit, io, os, signal, sys, threading, time
import hotrestart
from hotrestart import fds, reexec, signals, state
"""
GO = """
def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.005)
"""


def go(program: Program, name: str) -> None:
    (program.folder / name).touch()


# -- closing everything, as the recipes for an exec have it ------------------------------------------------------------


def test_a_program_that_closes_all_its_descriptors_at_exit_keeps_its_pid_file(program: Program) -> None:
    program.deploy(
        TOP
        + """
atexit.register(fds.close_open_fds)
@hotrestart.restartable(pidfile="app.pid", control="app.sock")
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=state.generation)
        loop.sleep()
main()
"""
    )
    program.start()
    for generation in (1, 2, 3):
        program.wait_report(ready=generation)
        assert (program.folder / "app.pid").read_text().split() == [str(program.pid)]
        program.hup()
    program.wait_report(ready=4)


def test_a_program_that_closes_all_its_descriptors_before_it_stops_ends_well(program: Program) -> None:
    program.deploy(
        TOP
        + """
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=state.generation)
        loop.sleep()
    fds.close_open_fds()
main()
"""
    )
    program.start()
    program.wait_report(ready=1)
    assert program.stop() == 0


# -- the host's own signal handlers ------------------------------------------------------------------------------------


def test_a_hosts_handler_is_put_back_in_every_generation(program: Program) -> None:
    program.deploy(
        TOP
        + """
def mine(*_):
    report(host=state.generation)
signal.signal(signal.SIGHUP, mine)
with hotrestart.worker_loop(preflight=False) as loop:
    report(ready=state.generation)
    loop.sleep(0 if state.generation == 2 else None)
if state.generation == 2:
    os.kill(os.getpid(), signal.SIGHUP)
    report(found=signal.getsignal(signal.SIGHUP) is mine)
"""
    )
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(host=2)
    program.wait_report(found=True)
    assert program.wait_exit() == 0


def test_a_hup_while_threads_are_joined_does_not_end_a_program_that_restarts_at_exit(program: Program) -> None:
    program.deploy(
        TOP
        + GO
        + """
def job():
    wait_for("finish")
    report(done=state.generation)
with hotrestart.Sleeper() as sleeper, signals.handling(sleeper):
    report(ready=state.generation)
    if state.generation == 1:
        threading.Thread(target=job).start()
    sleeper.sleep()
    if state.reason == "restart":
        reexec.restart_at_exit()
report(left=state.generation)
"""
    )
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(left=1)
    for _ in range(20):
        program.hup()
    go(program, "finish")
    program.wait_report(ready=2)
    assert len(program.reports(done=1)) == 1
    assert program.stop() == 0


def test_a_hup_while_a_program_with_a_handler_of_its_own_boots_can_be_asked_for(program: Program) -> None:
    program.deploy(
        TOP
        + GO
        + """
report(boots=state.generation)
if state.generation == 2:
    wait_for("hupped")
asked = threading.Event()
signal.signal(signal.SIGHUP, lambda *_: asked.set())
if signals.take_held():
    asked.set()
report(ready=state.generation)
while not asked.is_set():
    time.sleep(0.01)
reexec.exec_now()
"""
    )
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(boots=2)
    program.hup()
    go(program, "hupped")
    program.wait_report(ready=3)


# -- one loop after another --------------------------------------------------------------------------------------------


LOOPS = (
    TOP
    + GO
    + """
for number in (1, 2):
    with hotrestart.worker_loop(grace={grace} if number == 1 else 3600, preflight=False, control=False) as loop:
        report(loop=number)
        loop.sleep()
        {job}
        report(asked=number, reason=state.reason)
    state.reset()
report(done=True)
"""
)


def test_the_grace_of_one_loop_is_not_that_of_the_next(program: Program) -> None:
    """The second job ends once the first grace is over, and long before its own."""
    job = "time.sleep(1.5 if number == 2 else 0)"
    program.deploy(LOOPS.format(grace=2, job=job))
    program.start()
    program.wait_report(loop=1)
    program.term()
    program.wait_report(loop=2)
    _wait_seconds(program, 1.0)
    program.term()
    program.wait_report(asked=2)
    assert program.wait_exit() == 0, program.log()


def _wait_seconds(program: Program, seconds: float) -> None:
    """So much of the first grace passes; a busy machine may let more of it pass, which makes the test easier."""
    from time import monotonic

    began = monotonic()
    program.wait_until(lambda: monotonic() > began + seconds, "time to pass")


def test_a_loop_whose_entry_fails_puts_everything_back_and_the_next_is_a_whole_one(program: Program) -> None:
    program.deploy(
        TOP
        + """
import logging
signal.signal(signal.SIGHUP, lambda *_: report(host=state.generation))
def refuse(record):
    raise RuntimeError("the host's log is full")
logging.getLogger("hotrestart").setLevel("INFO")
logging.getLogger("hotrestart").addFilter(refuse)
try:
    with hotrestart.worker_loop(pidfile="app.pid"):
        report(entered=True)
except RuntimeError as error:
    report(failed=str(error), pidfile=os.path.exists("app.pid"))
os.kill(os.getpid(), signal.SIGHUP)
logging.getLogger("hotrestart").removeFilter(refuse)
with hotrestart.worker_loop(pidfile="app.pid") as loop:
    report(ready=state.generation)
    loop.sleep()
"""
    )
    program.start()
    for generation in (1, 2):
        program.wait_report(ready=generation)
        program.hup()
    program.wait_report(ready=3)
    assert len(program.reports(failed="the host's log is full", pidfile=False)) == 3
    assert [report["host"] for report in program.reports() if "host" in report] == [1, 2, 3]
    assert not program.reports(entered=True)


def test_after_a_restart_that_was_taken_back_the_next_loop_is_a_whole_one(program: Program) -> None:
    program.deploy(LOOPS.format(grace=3600, job=""))
    program.start()
    for number in (1, 2):
        program.wait_report(loop=number)
        program.hup()
        program.wait_report(asked=number, reason="restart")
    program.wait_report(done=True)
    assert program.wait_exit() == 0
    assert len(program.reports(loop=1)) == 1, "what was taken back is no restart"


def test_a_hup_while_a_loop_is_being_left_starts_nothing_any_more(program: Program) -> None:
    program.deploy(
        TOP
        + """
from hotrestart import announcing
close = announcing.Announcer.close
def in_that_moment(*given, **more):
    os.kill(os.getpid(), signal.SIGHUP)
    return close(*given, **more)
announcing.Announcer.close = in_that_moment
with hotrestart.worker_loop(preflight=False, grace=0.2):
    pass
report(after=state.reason, generation=state.generation)
time.sleep(1)
report(ends=state.generation)
"""
    )
    program.start()
    assert program.wait_exit() == 0
    assert program.reports() == [{"after": None, "generation": 1}, {"ends": 1}]


# -- the end of main() -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["hup", "term"])
def test_the_end_of_main_does_not_cut_callbacks_short(program: Program, ask: str) -> None:
    program.deploy(
        TOP
        + """
def leave_the_pool():
    report(begins=state.generation)
    time.sleep(0.3)
    report(left=state.generation)
@hotrestart.restartable(preflight=False)
def main():
    if state.generation == 1:
        hotrestart.on_stop(leave_the_pool)
        hotrestart.on_stop(lambda: report(second=state.generation))
    with hotrestart.worker_loop() as loop:
        report(ready=state.generation)
        loop.sleep()
main()
"""
    )
    program.start()
    program.wait_report(ready=1)
    getattr(program, ask)()
    program.wait_report(ready=2) if ask == "hup" else program.wait_exit()
    assert program.reports()[1:4] == [{"begins": 1}, {"left": 1}, {"second": 1}]


def test_callbacks_are_called_although_no_thread_is_to_be_had(program: Program) -> None:
    program.deploy(
        TOP
        + """
@hotrestart.restartable
def main():
    hotrestart.on_stop(lambda: report(called=state.generation))
    with hotrestart.worker_loop() as loop:
        threading.stack_size(1 << 47)
        report(ready=state.generation)
        loop.sleep()
main()
"""
    )
    program.start()
    program.wait_report(ready=1)
    program.term()
    assert program.wait_exit() == 0
    assert len(program.reports(called=1)) == 1
    assert "grace is not watched" in program.log()


def test_a_restart_asked_for_before_main_ends_happens_although_the_preflight_is_still_under_way(
    program: Program,
) -> None:
    program.deploy(
        TOP
        + GO
        + """
if hotrestart.command.first.is_preflight:
    report(tries=True)
    wait_for("ended")
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=state.generation)
        if state.generation == 1:
            wait_for("fail")
            raise ValueError("the last job")
        loop.sleep()
main()
"""
    )
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(tries=True)
    go(program, "fail")
    go(program, "ended")
    program.wait_report(ready=2)
    assert "ValueError('the last job') while it was to restart" in program.log()
    assert program.stop() == 0


def test_a_term_ends_a_program_that_waits_for_its_preflight_at_the_end(program: Program) -> None:
    program.deploy(
        TOP
        + GO
        + """
if hotrestart.command.first.is_preflight:
    report(tries=True)
    threading.Event().wait()
@hotrestart.restartable(ready_timeout=3600)
def main():
    with hotrestart.worker_loop():
        report(ready=state.generation)
        wait_for("end")
main()
"""
    )
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(tries=True)
    go(program, "end")
    program.term()
    assert program.wait_exit() == 0
    assert len(program.reports(ready=1)) == 1


def test_a_term_that_python_has_not_come_to_hear_of_wins_over_the_restart_at_the_end_of_grace(
    program: Program,
) -> None:
    program.deploy(
        TOP
        + """
import ctypes
@hotrestart.restartable(preflight=False, grace=2)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=state.generation)
        loop.sleep()
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    libc.pthread_mutex_lock(mutex)
main()
"""
    )
    program.start()
    program.wait_report(ready=1)
    program.hup()
    assert program.wait_exit() < 0
    assert not program.reports(ready=2)
    assert "ending all the same" in program.log()


# -- the preflight -----------------------------------------------------------------------------------------------------


def test_a_program_that_replaces_standard_error_before_it_imports_hotrestart_restarts(program: Program) -> None:
    tee = """
import sys
class Tee:
    def write(self, text):
        return sys.__stderr__.write(text)
    def flush(self):
        pass
sys.stderr = Tee()
"""
    serves = """
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=state.generation)
        loop.sleep()
main()
"""
    program.deploy(tee + TOP + serves)
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_until(lambda: program.reports(ready=2) or "refused" in program.log(), "an outcome")
    assert "refused" not in program.log()


def test_a_child_of_the_new_code_does_not_come_to_the_door_in_its_place(program: Program) -> None:
    text = """
if hotrestart.command.first.is_preflight and os.fork() == 0:
    main()
if hotrestart.command.first.is_preflight:
    os.wait()
    raise ValueError("not so")
main()
"""
    serves = """
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=state.generation, pid=os.getpid())
        loop.sleep()
"""
    program.deploy(TOP + serves + text)
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_log("the old code goes on: ValueError: not so")
    assert len(program.reports()) == 1


@pytest.mark.parametrize("turns", ["while loop.running: time.sleep(0.05)", "for _ in loop: time.sleep(0.05)"])
def test_a_loop_that_never_sleeps_restarts_into_another_version_of_hotrestart(program: Program, turns: str) -> None:
    """What it needs for that is loaded before the files are the other version's."""
    libraries = {name: program.folder / name for name in ("before", "after")}
    for folder in libraries.values():
        copy_library(folder)
    for source in libraries["after"].rglob("*.py"):
        source.write_text(source.read_text().replace("drop_stale", "drop_old"))
    current = program.folder / "current"
    _switch(current, libraries["before"])
    program.deploy(f"import sys; sys.path.insert(0, {str(current)!r})\n" + NEVER_SLEEPS.format(turns=turns))
    program.start()
    program.wait_report(turns=True)
    _switch(current, libraries["after"])
    program.hup()
    program.wait_until(lambda: program.reports(ready=2) or "refused" in program.log(), "an outcome")
    assert "refused" not in program.log()


NEVER_SLEEPS = """
import threading, time
import hotrestart
from hotrestart import state
@hotrestart.restartable
def main():
    turns = []
    def sleep(seconds, sleep=time.sleep):
        sleep(seconds)
        turns.append(1)
        if len(turns) == 10:
            report(turns=True)
    time.sleep = sleep
    with hotrestart.worker_loop() as loop:
        report(ready=state.generation)
        {turns}
main()
"""


def _switch(link: Path, to: Path) -> None:
    new = link.with_name("new")
    new.symlink_to(to)
    new.rename(link)


def test_a_terminal_that_is_closed_takes_a_watched_program_along(program: Program) -> None:
    program.deploy(
        TOP
        + """
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(pid=os.getpid(), ready=state.generation)
        loop.sleep()
main()
""",
        "watched.py",
    )
    program.deploy(f"import sys\nsys.argv[1:] = ['watch', '--', {str(program.folder / 'watched.py')!r}]\n" + WATCH)
    program.start()
    pid = program.wait_report(ready=1)["pid"]
    assert isinstance(pid, int)
    for each in (pid, program.pid):  # as the kernel does it
        os.kill(each, signal.SIGHUP)
    assert program.wait_exit() in (0, 143)  # 143: TERM came between its exec and its handlers
    program.wait_until(lambda: not Path(f"/proc/{pid}").exists(), "its end")


WATCH = """
sys.argv[3:3] = [sys.executable]
from hotrestart.__main__ import main
sys.exit(main())
"""
