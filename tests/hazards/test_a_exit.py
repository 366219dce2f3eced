"""The end of the process: every exit handler runs once, nothing printed is lost, and only then comes the exec."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import Program, clean_environment, worker
from tests.hazards.sources import WAIT_FOR, an_interpreter, go, is_running

pytestmark = pytest.mark.core

FORMS = pytest.mark.parametrize("form", [("app.py",), ("-m", "app")], ids=["script", "module"])

HANDLERS = """
import atexit, logging, logging.handlers, threading, time

def leave(what):
    atexit.register(report, exit=what)

leave("before the import")
import hotrestart

leave("before main")
leave("before main")  # the same call twice: it runs twice

class Lock:
    def free(self):
        report(exit="bound method")

atexit.register(Lock().free)

def raises():
    report(exit="raises")
    raise RuntimeError("tidying up failed")

def exits():
    report(exit="exits")
    raise SystemExit(5)

records = logging.handlers.MemoryHandler(1000, target=logging.FileHandler("records.txt"))
logging.getLogger().addHandler(records)
logging.getLogger().setLevel(logging.WARNING)

def in_the_join(number):
    while threading.main_thread().is_alive():
        time.sleep(0.001)
    leave(f"in the join {number}")
    report(registered=number)

@hotrestart.restartable(preflight=False)
def main():
    leave("in main")
    atexit.register(raises)
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        while loop.running:
            loop.sleep(60)
    atexit.register(exits)
    logging.warning("record %d", hotrestart.state.generation)

main()
leave("after main")
THREADS
report(over=hotrestart.state.generation)
"""

LAST_IN_FIRST_OUT = [
    *("after main", "exits", "raises", "in main", "bound method"),
    *("before main", "before main", "before the import"),
]


def exits_by_generation(program: Program) -> list[list[object]]:
    found: list[list[object]] = []
    for each in program.reports():
        if "ready" in each:
            found.append([])
        elif "exit" in each:
            found[-1].append(each["exit"])
    return found


@FORMS
def test_h1_every_exit_handler_runs_once_and_in_order_before_the_exec(program: Program, form: tuple[str, ...]) -> None:
    program.deploy(HANDLERS.replace("THREADS", ""))
    program.start(*form)
    for generation in (1, 2):
        program.wait_report(ready=generation)
        program.hup()
    program.wait_report(ready=3)
    assert program.stop() == 0
    assert exits_by_generation(program) == [LAST_IN_FIRST_OUT] * 3


@FORMS
def test_h2_log_records_held_in_memory_are_written_once(program: Program, form: tuple[str, ...]) -> None:
    program.deploy(HANDLERS.replace("THREADS", ""))
    program.start(*form)
    for generation in (1, 2):
        program.wait_report(ready=generation)
        program.hup()
    program.wait_report(ready=3)
    program.stop()
    assert (program.folder / "records.txt").read_text().split("\n") == ["record 1", "record 2", "record 3", ""]


def test_h3_a_handler_registered_by_a_handler_does_not_cost_the_restart(program: Program) -> None:
    source = """
import atexit, hotrestart
def too_late():
    report(exit="outer")
    atexit.register(report, exit="inner")
atexit.register(report, exit="first")
atexit.register(too_late)
@hotrestart.restartable(preflight=False)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        loop.sleep(60)
main()
atexit.register(too_late)
"""
    program.deploy(source)
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2)
    program.stop()
    for exits in exits_by_generation(program):  # "inner" is as CPython has it: it may be dropped, but runs once at most
        assert [each for each in exits if each != "inner"] == ["outer", "outer", "first"]
        assert exits.count("inner") <= 2


def test_h4_a_handler_registered_by_a_thread_during_the_join_runs_once(program: Program) -> None:
    threads = "for number in range(3):\n    threading.Thread(target=in_the_join, args=(number,)).start()\n"
    program.deploy(HANDLERS.replace("THREADS", threads))
    program.start()
    for generation in (1, 2):
        program.wait_report(ready=generation)
        program.hup()
    program.wait_report(ready=3)
    program.stop()
    for exits in exits_by_generation(program):
        assert sorted(map(str, exits[:3])) == ["in the join 0", "in the join 1", "in the join 2"]
        assert exits[3:] == LAST_IN_FIRST_OUT


TWICE = "a limit: without threads, a handler registered after main() that answers == for strangers runs twice"

ODD_HANDLER = """
import atexit, hotrestart

class Odd:
    "A callable whose __eq__ knows only its own kind."
    def __init__(self, name): self.name = name
    def __call__(self): report(exit=self.name)
    def __eq__(self, other): EQUAL
    __hash__ = None

atexit.register(report, exit="first")
atexit.register(Odd("odd, before"))
@hotrestart.restartable(preflight=False)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        loop.sleep(60)
main()
ODD_AFTER
"""


FALSE, RAISES = "return False", "return self.name == other.name"


@pytest.mark.parametrize(
    ("equal", "when"),
    [
        pytest.param(FALSE, "before", id="false, before"),
        pytest.param(FALSE, "after", id="false, after", marks=pytest.mark.xfail(strict=True, reason=TWICE)),
        pytest.param(RAISES, "before", id="raises, before"),
        pytest.param(RAISES, "after", id="raises, after", marks=pytest.mark.xfail(strict=True, reason=TWICE)),
    ],
)
def test_h4_exit_handlers_that_cannot_be_compared(program: Program, equal: str, when: str) -> None:
    after = 'atexit.register(Odd("odd, after"))' if when == "after" else ""
    program.deploy(ODD_HANDLER.replace("EQUAL", equal).replace("ODD_AFTER", after))
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2)
    program.stop()
    expected = ["odd, before", "first"]
    assert exits_by_generation(program)[0] == (["odd, after", *expected] if after else expected)


ENDING = """
import os, sys, hotrestart
@hotrestart.restartable(preflight=False, grace=GRACE)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, pid=os.getpid())
        while loop.running:
            loop.sleep(60)
        HOW
try:
    main()
finally:
    report(ended=hotrestart.state.reason)
"""


def ending(how: str, grace: float = 30) -> str:
    return ENDING.replace("HOW", how).replace("GRACE", str(grace))


@pytest.mark.parametrize("how", ["raise RuntimeError('the last job failed')", "sys.exit(3)", "sys.exit('why')", "pass"])
def test_h5_a_restart_happens_however_main_ends(program: Program, how: str) -> None:
    program.deploy(ending(how))
    program.start()
    first = program.wait_report(ready=1)
    program.hup()
    assert program.wait_report(ready=2)["pid"] == first["pid"]
    if how != "pass":
        program.wait_log("while it was to restart: it restarts")
    if "Runtime" in how:
        program.wait_log("RuntimeError: the last job failed")


def test_h5_a_keyboard_interrupt_is_a_stop(program: Program) -> None:
    program.deploy(ending("raise KeyboardInterrupt"))
    program.start()
    program.wait_report(ready=1)
    program.hup()
    assert program.wait_exit() == -signal.SIGINT
    assert not program.reports(ready=2)
    assert program.reports()[-1] == {"ended": "stop"}


@pytest.mark.parametrize("how", ["os._exit(7)", "os.kill(os.getpid(), 9)", "os.abort()"])
def test_h5_what_ends_the_process_at_once_is_no_restart(program: Program, how: str) -> None:
    program.deploy(ending(how))
    program.start()
    program.wait_report(ready=1)
    program.hup()
    assert program.wait_exit() in (7, -signal.SIGKILL, -signal.SIGABRT)
    assert not program.reports(ready=2)


@pytest.mark.parametrize("how", ["sys.exit(3)", "raise RuntimeError"])
def test_h5_without_a_restart_the_exit_status_is_the_programs_own(program: Program, how: str) -> None:
    program.deploy(ending(how))
    program.start()
    program.wait_report(ready=1)
    assert program.stop() == (3 if "exit" in how else 1)


def test_h5_a_thread_that_never_ends_is_named_and_does_not_hold_up_the_restart(program: Program) -> None:
    lock = "import threading; threading.Thread(target=lambda: threading.Event().wait(), name='the-stuck-one').start()"
    program.deploy(f"import atexit; atexit.register(report, exit='first')\n{ending(lock, grace=2)}")
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2)
    program.term()
    program.wait_exit()
    late = [line for line in program.log().splitlines() if "grace of 2 s is over" in line]
    assert len(late) == 2  # one for the restart, one for the stop
    assert "the-stuck-one" in late[0]
    assert len(program.reports(exit="first")) >= 1


INTERRUPTED = (
    WAIT_FOR
    + """
import atexit, hotrestart

def slow(name):
    report(slow=name)
    wait_for(name)
    report(exit=name)

atexit.register(report, exit="first")
atexit.register(slow, "before")
atexit.register(report, exit="third")
@hotrestart.restartable(preflight=False)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        loop.sleep(60)
main()
atexit.register(slow, "after")
"""
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("during", ["after", "before"])
def test_h6_a_stop_during_the_exit_handlers_is_a_stop_and_they_all_run(
    program: Program, during: str, number: int
) -> None:
    program.deploy(INTERRUPTED)
    program.start()
    program.wait_report(ready=1)
    program.hup()
    if during == "before":
        go(program.folder, "after")
    program.wait_report(slow=during)
    os.kill(program.pid, number)
    go(program.folder, "after")
    go(program.folder, "before")
    assert program.wait_exit() in (0, -number)
    assert not program.reports(ready=2)
    assert exits_by_generation(program) == [["after", "third", "before", "first"]]
    assert "Traceback" not in program.log()


@pytest.mark.parametrize("during", ["after", "before"])
def test_h6_a_hup_during_the_exit_handlers_changes_nothing(program: Program, during: str) -> None:
    program.deploy(INTERRUPTED)
    program.start()
    program.wait_report(ready=1)
    program.hup()
    if during == "before":
        go(program.folder, "after")
    program.wait_report(slow=during)
    program.hup()
    go(program.folder, "after")
    go(program.folder, "before")
    program.wait_report(ready=2)
    assert exits_by_generation(program)[0] == ["after", "third", "before", "first"]


@pytest.mark.parametrize("why", ["directory", "no permission", "no program"])
def test_h7_an_exec_that_fails_says_so_in_one_line_and_exits_with_71(
    program: Program, tmp_path: Path, why: str
) -> None:
    program.deploy(worker(options="(preflight=False)") + "\nimport atexit; atexit.register(report, exit='tidied up')\n")
    python, directory = an_interpreter(tmp_path / "bin"), tmp_path / "somewhere"
    directory.mkdir()
    program.start_command([str(python), str(program.folder / "app.py")], cwd=directory)
    program.wait_report(ready=1)
    if why == "directory":
        directory.rmdir()
    else:
        python.unlink()
        python.write_text("not a program\n")
        python.chmod(0o644 if why == "no permission" else 0o755)
    program.hup()
    assert program.wait_exit() == 71
    assert program.reports()[-1] == {"exit": "tidied up"}
    assert program.log().count("\n") == 1, program.log()
    assert program.log().startswith("hotrestart: cannot start ")


def test_h7_an_exec_that_fails_over_a_thread_that_never_ends_exits_with_71_too(
    program: Program, tmp_path: Path
) -> None:
    stuck = "import threading; threading.Thread(target=lambda: threading.Event().wait()).start()"
    program.deploy(ending(stuck, grace=0.2))
    directory = tmp_path / "somewhere"
    directory.mkdir()
    program.start_command([sys.executable, str(program.folder / "app.py")], cwd=directory)
    program.wait_report(ready=1)
    directory.rmdir()
    program.hup()
    assert program.wait_exit() == 71
    assert program.log().count("cannot start ") == 1


PRINTING = """
import atexit, sys, hotrestart
generation = hotrestart.state.generation
atexit.register(lambda: print("exit", generation))
atexit.register(lambda: sys.stdout.write(f"no newline {generation};"))
@hotrestart.restartable(preflight=False)
def main():
    print("main", generation)
    with hotrestart.worker_loop() as loop:
        report(ready=generation)
        loop.sleep(60)
    print("x" * 20000)
main()
print("end", generation)
"""


@FORMS
@pytest.mark.parametrize("to", ["file", "pipe"])
def test_h8_nothing_printed_is_lost(program: Program, form: tuple[str, ...], to: str) -> None:
    program.deploy(PRINTING)
    if to == "file":
        program.start(*form)
    else:
        environment = clean_environment(REPORT=str(program.report_file), PWD=str(program.folder))
        command = [sys.executable, *form]
        program.process = subprocess.Popen(command, cwd=program.folder, env=environment, stdout=subprocess.PIPE)
    for generation in (1, 2):
        program.wait_report(ready=generation)
        program.hup()
    program.wait_report(ready=3)
    program.term()
    if to == "file":
        program.wait_exit()
        printed = program.log()
    else:
        printed = program.process.communicate(timeout=60)[0].decode()
    x = "x" * 20000
    assert printed == "".join(f"main {n}\n{x}\nend {n}\nno newline {n};exit {n}\n" for n in (1, 2, 3))


LEFT_OPEN = """
import atexit, sys, hotrestart
generation = hotrestart.state.generation
sys.stdout = open("stdout.txt", "a")
atexit.register(print, "exit", generation)
by_handler, by_nobody = open("by-handler.txt", "a"), open("by-nobody.txt", "a")
atexit.register(by_handler.close)
@hotrestart.restartable(preflight=False)
def main():
    with open("by-main.txt", "a") as by_main, hotrestart.worker_loop() as loop:
        report(ready=generation)
        while loop.running:
            loop.sleep(60)
        for each in (by_main, by_handler, by_nobody):
            print("record", generation, file=each)
    print("main", generation, file=sys.stdout)
main()
"""


def leave_files_open(program: Program, form: tuple[str, ...]) -> None:
    program.deploy(LEFT_OPEN)
    program.start(*form)
    for generation in (1, 2):
        program.wait_report(ready=generation)
        program.hup()
    program.wait_report(ready=3)


@FORMS
def test_h9_streams_are_flushed_and_files_that_the_program_closes_are_whole(
    program: Program, form: tuple[str, ...]
) -> None:
    leave_files_open(program, form)
    for name in ("by-main.txt", "by-handler.txt"):
        assert (program.folder / name).read_text() == "record 1\nrecord 2\n"
    assert (program.folder / "stdout.txt").read_text() == "main 1\nexit 1\nmain 2\nexit 2\n"


@pytest.mark.xfail(strict=True, reason="a limit: a file that is still open at the exec is lost unflushed")
def test_h9_a_file_that_nobody_closes_is_whole(program: Program) -> None:
    leave_files_open(program, ("app.py",))
    assert (program.folder / "by-nobody.txt").read_text() == "record 1\nrecord 2\n"


FORKING = (
    WAIT_FOR
    + """
import os, sys, hotrestart
def a_child(where):
    pid = os.fork()
    if pid == 0:
        report(child=where)
        sys.exit(0)
    os.waitpid(pid, 0)
    report(reaped=where)
@hotrestart.restartable(preflight=False)
def main():
    report(ready=hotrestart.state.generation, pid=os.getpid())
    with hotrestart.worker_loop() as loop:
        loop.sleep(60)
        IN_MAIN
main()
AFTER_MAIN
"""
)


def test_h10_a_child_forked_after_main_that_exits_does_not_restart_the_program(program: Program) -> None:
    source = FORKING.replace("IN_MAIN", "pass")
    program.deploy(source.replace("AFTER_MAIN", "import atexit\natexit.register(a_child, 'x')\na_child('after main')"))
    program.start()
    program.wait_report(ready=1)
    program.deploy(worker(version=2))
    program.hup()
    assert program.wait_report(ready=2, version=2)
    program.stop()
    assert len(program.reports(reaped="after main")) == 1
    assert len([each for each in program.reports() if each.get("ready") == 2]) == 1


def test_h10_a_child_forked_inside_main_that_exits_does_not_restart_the_program(program: Program) -> None:
    program.deploy(FORKING.replace("IN_MAIN", "a_child('in main')").replace("AFTER_MAIN", ""))
    program.start()
    program.wait_report(ready=1)
    program.deploy("import os, sys, hotrestart\nreport(ready=hotrestart.state.generation, pid=os.getpid())\n")
    program.hup()
    assert program.wait_exit() == 0
    assert [each["pid"] for each in program.reports(ready=2)] == [program.pid]


def test_h10_a_child_that_leaves_main_during_a_preflight_is_not_held_up(program: Program) -> None:
    source = """
import os, sys, hotrestart
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        while not os.path.exists("started"):
            loop.sleep(0.01)
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        report(reaped=True)
        loop.sleep(60)
main()
"""
    program.deploy(source)
    program.start()
    program.wait_report(ready=1)
    patience = "open('started', 'w').close()\nwait_for('go')\nreport(preflight='over')\nimport missing_module\n"
    program.deploy(WAIT_FOR + patience)
    program.hup()
    program.wait_report(reaped=True)
    go(program.folder, "go")
    program.wait_report(preflight="over")
    assert list(program.reports()[1]) == ["reaped"]


def test_h10_a_hup_to_the_process_group_restarts_the_program_once(program: Program) -> None:
    source = (
        WAIT_FOR
        + """
import multiprocessing, os, sys, time, hotrestart
def sleeper(name):
    report(child=name, pid=os.getpid())
    time.sleep(60)
@hotrestart.restartable(preflight=False)
def main():
    if hotrestart.state.generation == 1:
        if os.fork() == 0:
            sleeper("forked")
            sys.exit(0)
        for method in ("fork", "spawn"):
            multiprocessing.get_context(method).Process(target=sleeper, args=(method,), daemon=True).start()
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, pid=os.getpid())
        loop.sleep(60)
if __name__ == "__main__":
    main()
"""
    )
    program.deploy(source)
    program.start(start_new_session=True)
    program.wait_report(ready=1)
    children = [program.wait_report(child=name)["pid"] for name in ("forked", "fork", "spawn")]
    os.killpg(program.pid, signal.SIGHUP)
    program.wait_report(ready=2)
    for pid in children:
        gone = f"child {pid} is gone"
        program.wait_until(lambda pid=pid: not is_running(pid), gone)
    program.stop()
    assert len(program.reports()) == 5
    assert {each["pid"] for each in program.reports() if "ready" in each} == {program.pid}


def test_h11_the_flag_is_true_and_read_through_the_module(program: Program) -> None:
    source = """
import hotrestart
from hotrestart import state
from hotrestart.state import should_stop
@hotrestart.restartable(preflight=False)
def main():
    report(ready=state.generation, before=state.should_stop, reason=state.reason)
    with hotrestart.worker_loop() as loop:
        loop.sleep(60)
    report(flag=state.should_stop, reason=state.reason, copy=should_stop)
main()
"""
    program.deploy(source)
    program.start()
    program.wait_report(ready=1, before=False, reason=None)
    program.hup()
    assert program.wait_report(flag=True) == {"flag": True, "reason": "restart", "copy": False}
    program.wait_report(ready=2, before=False, reason=None)
