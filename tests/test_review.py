"""What a hard look at the code found, each with a program that shows it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import hotrestart
from hotrestart import errors, inheritance
from tests.harness import Program, worker

pytestmark = pytest.mark.core

GATE = """
import os, time
report(loading=os.getpid())
while not os.path.exists("gate"): time.sleep(0.005)
"""


def loading(program: Program) -> int:
    """The pid of the preflight that is loading."""
    report = program.wait_until(lambda: [e for e in program.reports() if "loading" in e], "a preflight")[-1]
    return int(str(report["loading"]))


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_preflight_whose_parent_is_killed_does_not_become_a_second_program(program: Program) -> None:
    program.deploy(worker(1))
    program.start()
    program.wait_report(ready=1)
    program.deploy(GATE + worker(2))
    program.hup()
    pid = loading(program)
    os.kill(program.pid, signal.SIGKILL)
    program.wait_exit()
    (program.folder / "gate").touch()
    program.process = None
    program.wait_until(lambda: has_ended(pid), "the end of the preflight")
    assert not program.reports(version=2)


def test_a_preflight_that_hangs_ends_with_its_parent_and_not_in_a_minute(program: Program) -> None:
    program.deploy(worker(1))
    program.start()
    program.wait_report(ready=1)
    program.deploy("import hotrestart, os, time\nreport(loading=os.getpid())\ntime.sleep(1000)\n")
    program.hup()
    pid = loading(program)
    os.kill(program.pid, signal.SIGKILL)
    program.wait_exit()
    program.process = None
    program.wait_until(lambda: has_ended(pid), "the end of the preflight")


def test_a_newer_hup_with_newer_code_does_not_wait_for_code_that_hangs(program: Program) -> None:
    program.deploy(worker(1))
    program.start()
    program.wait_report(ready=1)
    program.deploy("import os, time\nreport(loading=os.getpid())\ntime.sleep(1000)\n")
    program.hup()
    loading(program)
    program.deploy(worker(2))
    program.hup()
    program.wait_report(timeout=50, ready=2, version=2)
    assert program.stop() == 0


STUCK = """
import time
import hotrestart

@hotrestart.restartable(grace=0.3 if hotrestart.state.generation == 1 else 60, preflight=False)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        if hotrestart.state.generation == 1:
            hotrestart.request_restart()
            while True: time.sleep(0.01)
        loop.sleep(60)
main()
"""


def test_past_grace_it_restarts_though_hup_is_ignored(program: Program) -> None:
    program.deploy(STUCK)
    program.start_command(["nohup", program.python, "app.py"])
    program.wait_report(ready=2)
    assert program.stop() == 0


def test_past_grace_the_exit_handlers_registered_after_the_loop_run_too(program: Program) -> None:
    program.deploy("""
import atexit, time
import hotrestart

if hotrestart.state.generation == 1:
    with hotrestart.worker_loop(grace=2, preflight=False) as loop:
        hotrestart.request_restart()
    atexit.register(report, tidied_up=True)
    time.sleep(1000)
report(ready=hotrestart.state.generation)
""")
    program.start()
    program.wait_report(ready=2)
    assert program.reports()[0] == {"tidied_up": True}


def test_on_stop_registered_too_late_is_called_once_and_in_a_thread(program: Program) -> None:
    program.deploy("""
import os as _os, threading, time
import hotrestart

@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        hotrestart.request_stop()
        for number in range(50):
            hotrestart.on_stop(lambda: report(thread=threading.current_thread() is not threading.main_thread()))
        while len(open(_os.environ["REPORT"]).readlines()) < 50: time.sleep(0.01)  # the end would cut them off
main()
""")
    assert program.start().wait_exit() == 0
    assert program.reports() == [{"thread": True}] * 50


def test_a_second_hup_while_the_primitives_tidy_up_does_not_kill(program: Program) -> None:
    program.deploy("""
import atexit, time
from hotrestart import Sleeper, reexec, signals, state

with Sleeper() as sleeper, signals.handling(sleeper):
    report(ready=state.generation)
    while not state.should_stop:
        sleeper.sleep(60)
    if state.reason == "restart":
        reexec.restart_at_exit()

@atexit.register
def tidy_up():
    report(tidying=state.generation)
    while len(open(_os.environ["REPORT"]).readlines()) == 2: time.sleep(0.01)
    time.sleep(0.05)
""")
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(tidying=1)
    program.hup()
    with program.report_file.open("a") as file:
        file.write('{"go": true}\n')
    program.wait_report(ready=2)


def test_a_value_that_cannot_be_bequeathed_leaves_the_one_before(tmp_path: Path) -> None:
    import io

    hotrestart.bequeath("x", 1)
    with (tmp_path / "closed").open("w") as closed:
        pass
    try:
        for bad in ({1, 2}, io.StringIO(), closed, float("nan")):
            with pytest.raises(errors.OptionError):
                hotrestart.bequeath("x", bad)
            assert inheritance.state["x"] == 1
    finally:
        inheritance.forget()


def test_a_host_that_resets_the_flag_is_not_ended_by_the_grace_of_before(program: Program) -> None:
    program.deploy("""
import hotrestart
with hotrestart.worker_loop(grace=0.6):
    hotrestart.request_stop()
hotrestart.state.reset()
with hotrestart.worker_loop(grace=60) as loop:
    loop.sleep(1.5)
    report(running=loop.running)
""")
    assert program.start().wait_exit() == 0
    assert program.reports() == [{"running": True}]


def test_hups_do_not_kill_a_later_generation_that_has_threads(program: Program) -> None:
    program.deploy("""
import threading, time
import hotrestart
for _ in range(3):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()

@hotrestart.restartable(preflight=False)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        loop.sleep(60)
main()
""")
    program.start()
    program.wait_report(ready=1)
    for _ in range(3000):
        program.hup()
        assert program.process is not None
        assert program.process.poll() is None, program.log()
    assert program.stop() in (0, -signal.SIGTERM)
