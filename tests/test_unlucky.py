"""Programs in place in unlucky circumstances: process 1, a log that nobody reads, children, files that go away."""

from __future__ import annotations

import os
import signal

import pytest

from hotrestart import control
from tests.harness import Program
from tests.rolling import test_pid1
from tests.rolling.test_pid1 import Container

pytestmark = pytest.mark.core

SERVES = """
import os, signal, sys, threading, time
import hotrestart
from hotrestart import command, inheritance, reexec, role, state
{top}

@hotrestart.restartable({options})
def main():
    {first}
    with hotrestart.worker_loop() as loop:
        report(ready=state.generation)
        while loop.running:
            {turn}
            loop.sleep(5)
    {last}

{call}
"""


def app(
    options: str = "", *, top: str = "", first: str = "pass", turn: str = "pass", last: str = "", call: str = ""
) -> str:
    return SERVES.format(options=options, top=top, first=first, turn=turn, last=last, call=call or "main()")


# -- process 1 of a container ------------------------------------------------------------------------------------------


container = test_pid1.container
STUCK = "report(stuck=True); threading.Event().wait()"


def test_process_1_that_is_stuck_ends_when_grace_is_over(container: Container) -> None:
    container.deploy(app("grace=0.5", turn=STUCK))
    container.start()
    container.wait_report(stuck=True)
    os.kill(container.pid, signal.SIGTERM)
    assert container.wait_exit() == 128 + signal.SIGTERM


def test_a_second_term_ends_process_1_at_once(container: Container) -> None:
    container.deploy(app("grace=3600", turn="hotrestart.on_stop(lambda: report(hears=True)); " + STUCK))
    container.start()
    container.wait_report(stuck=True)
    pid = container.pid
    os.kill(pid, signal.SIGTERM)
    container.wait_report(hears=True)
    os.kill(pid, signal.SIGTERM)
    assert container.wait_exit() == 128 + signal.SIGTERM


def test_a_term_while_the_next_generation_of_process_1_boots_is_heard(container: Container) -> None:
    boots = "if state.generation == 2:\n    report(boots=True)\n    while not os.path.exists('go'): time.sleep(0.01)"
    container.deploy(app("preflight=False", top=boots))
    container.start()
    container.wait_report(ready=1)
    os.kill(container.pid, signal.SIGHUP)
    container.wait_report(boots=True)
    os.kill(container.pid, signal.SIGTERM)
    (container.folder / "go").touch()
    assert container.wait_exit() == 0


# -- the end of a program ----------------------------------------------------------------------------------------------


def test_standard_error_that_nobody_reads_does_not_hold_up_the_end(program: Program) -> None:
    full = """
reader, writer = os.pipe()
os.set_blocking(writer, False)
try:
    while True:
        os.write(writer, bytes(4096))
except BlockingIOError:
    pass
os.set_blocking(writer, True)
os.dup2(writer, 2)
"""
    program.deploy(app("grace=0.5", top=full, turn=STUCK))
    program.start()
    program.wait_report(stuck=True)
    program.term()
    assert program.wait_exit() == -signal.SIGTERM


def test_a_request_in_another_thread_does_not_give_the_last_call(program: Program) -> None:
    """It is the main thread's to give, when grace is over; a thread would exec at once, past the exit handlers."""
    late = """
def be_late():
    state.should_stop = role.current.is_overdue = True
    thread = threading.Thread(target=hotrestart.request_restart)
    thread.start()
    thread.join()
    report(survived=os.getpid())
    os._exit(0)
"""
    program.deploy(app(top=late, turn="be_late()"))
    program.start()
    program.wait_report(survived=program.pid)


# -- what is the program's own -----------------------------------------------------------------------------------------


def test_a_child_that_ends_leaves_the_control_socket_and_the_pid_file_alone(program: Program) -> None:
    fork = "pid = os.fork(); sys.exit(0) if pid == 0 else os.waitpid(pid, 0)"
    program.deploy(app("pidfile='app.pid', control='app.sock'", first=fork))
    program.start()
    program.wait_report(ready=1)
    assert control.status(str(program.folder / "app.sock"))["state"] == "serving"
    assert (program.folder / "app.pid").read_text().split() == [str(program.pid)]


def test_a_control_socket_whose_name_has_gone_is_made_again_by_a_restart(program: Program) -> None:
    program.deploy(app("control='app.sock'"))
    program.start()
    program.wait_report(ready=1)
    (program.folder / "app.sock").unlink()
    program.hup()
    program.wait_report(ready=2)
    program.wait_until((program.folder / "app.sock").exists, "the name")
    assert control.status(str(program.folder / "app.sock"))["generation"] == 2


def test_main_may_be_called_again_with_its_pid_file(program: Program) -> None:
    top = """
def fail_once(calls=[]):
    calls.append(1)
    report(call=len(calls))
    if len(calls) == 1:
        raise RuntimeError
"""
    call = """
for _ in range(2):
    try:
        main()
    except RuntimeError:
        pass
"""
    program.deploy(app("pidfile='app.pid'", top=top, first="fail_once()", call=call))
    program.start()
    program.wait_report(ready=1)
    assert len(program.reports(call=2)) == 1
    assert program.stop() == 0
    assert not (program.folder / "app.pid").exists()


def test_what_is_bequeathed_again_during_a_preflight_is_no_reason_to_refuse(program: Program) -> None:
    turn = "hotrestart.bequeath('file', open(os.devnull)); loop.sleep(0.0002); continue"
    program.deploy(app(turn=turn))
    program.start()
    program.wait_report(ready=1)
    for generation in range(2, 10):
        program.hup()
        program.wait_until(lambda: program.reports(ready=generation) or "refused" in program.log(), "an end")  # noqa: B023
        assert "refused" not in program.log()


def test_a_signal_that_the_program_ignores_is_not_ignored_in_the_preflight(program: Program) -> None:
    top = "assert os.system('true') == 0"
    program.deploy(app(top=top, first="signal.signal(signal.SIGCHLD, signal.SIG_IGN)"))
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2)


def test_after_an_exec_that_has_failed_the_program_is_serving_again(program: Program) -> None:
    fails = """
def fail():
    command.first.executable = "/etc/passwd"
    try:
        reexec.exec_now()
    except OSError:
        report(failed=True)
"""
    program.deploy(app("control='app.sock'", top=fails, turn="fail()"))
    program.start()
    program.wait_report(failed=True)
    status = control.status(str(program.folder / "app.sock"))
    assert (status["state"], status["stage"]) == ("serving", "")
