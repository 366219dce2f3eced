"""Broken new code never takes the old code down: the old goes on without a pause, and the log says why.

The old code here counts its turns, a few milliseconds each, in a file. Most new code waits at a gate before it breaks,
so that a test can see turns being made while the preflight is under way.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import CHECKOUT, PATIENCE, Program, worker

pytestmark = pytest.mark.core

COUNTING = """
import hotrestart, os, time

VERSION = {version!r}

@hotrestart.restartable{options}
def main():
    turns = os.open("turns", os.O_WRONLY | os.O_CREAT)
    {first}
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, version=VERSION)
        longest, last = 0.0, time.monotonic()
        for turn in loop:
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
            os.pwrite(turns, b"%20d %20.6f" % (turn, longest), 0)
            loop.sleep(0.003)

if __name__ == "__main__":
    main()
    report(ended=hotrestart.state.reason)
"""

GATE = """
import os as _os, time as _time
report(loading=_os.getpid())
while not _os.path.exists("gate"):
    _time.sleep(0.005)
"""

REFUSED = "restart refused, the old code goes on: "


class Counting:
    """The old code, and what must be so of it after each refusal."""

    def __init__(self, program: Program, options: str = "", first: str = "pass", **more: Any) -> None:
        self.program = program
        self.gate = program.folder / "gate"
        program.deploy(COUNTING.format(version="good", options=options, first=first))
        program.start(**more)
        program.wait_report(ready=1)
        self.make_turns()

    def turns(self) -> int:
        return int((self.program.folder / "turns").read_text()[:20] or 0)

    def longest_pause(self) -> float:
        """Between two turns, in seconds, since it has begun."""
        return float((self.program.folder / "turns").read_text()[20:])

    def make_turns(self) -> None:
        """Wait for ten turns more: the main thread works, and has run the handlers of all signals sent before."""
        before = self.turns()
        self.program.wait_until(lambda: self.turns() >= before + 10, f"turns after {before}")

    def hup(self) -> None:
        self.program.hup()
        self.make_turns()

    def refusals(self) -> list[str]:
        return [line for line in self.program.log().splitlines() if "restart refused" in line]

    def wait_refusal(self, count: int = 1) -> str:
        self.program.wait_until(lambda: len(self.refusals()) >= count, f"refusal {count}")
        return self.refusals()[count - 1]

    def try_twice(self) -> str:
        """HUP, with the new code held at the gate while turns are made; twice, the second time with nothing left over.

        Returns the reason.
        """
        for count in (1, 2):
            self.gate.unlink(missing_ok=True)
            self.program.hup()
            self.wait_loading(count)
            self.make_turns()
            assert len(self.refusals()) == count - 1
            self.gate.touch()
            line = self.wait_refusal(count)
            self.make_turns()
            self.assert_untouched(count)
            if count == 1:
                fds = self.program.fds()
        assert self.program.fds() == fds
        return line[line.index(REFUSED) + len(REFUSED) :]

    def wait_loading(self, count: int) -> None:
        self.program.wait_until(lambda: len(self.loading()) >= count, f"load {count} of the new code")

    def loading(self) -> list[object]:
        return [each["loading"] for each in self.program.reports() if "loading" in each]

    def assert_untouched(self, refusals: int) -> None:
        assert len(self.refusals()) == refusals
        assert [each for each in self.program.reports() if "ready" in each] == [{"ready": 1, "version": "good"}]
        assert self.program.reports(ended="restart") == []
        self.program.wait_until(lambda: self.program.children() == [], "no child is left")

    def restart(self, source: str | None = None) -> None:
        """A good deploy works as if nothing had been."""
        refusals = len(self.refusals())
        self.gate.touch()
        self.program.deploy(source or COUNTING.format(version="better", options="", first="pass"))
        self.program.hup()
        self.program.wait_report(ready=2, version="better")
        self.make_turns()
        assert len(self.refusals()) == refusals
        assert self.program.children() == []
        assert self.program.stop() == 0


BROKEN: dict[str, tuple[str, str, str]] = {  # the new code, the reason in the log, a line of the traceback's end
    "missing module": (
        "import no_such_module_anywhere",
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
        "    import no_such_module_anywhere",
    ),
    "missing name": (
        "from os import no_such_name",
        "ImportError: cannot import name 'no_such_name' from 'os'",
        "    from os import no_such_name",
    ),
    "raises": ("def configure():\n    1 / 0\nconfigure()", "ZeroDivisionError: division by zero", ", in configure"),
    "raises in hotrestart": (
        "import hotrestart\n@hotrestart.restartable(grace=-1)\ndef main(): pass",
        "hotrestart.errors.OptionError: grace is a number of seconds, 0 or more, not -1",
        ", in _seconds",
    ),
    "exits with 0": ("import sys\nsys.exit(0)", "the new code ended before it called main()", ""),
    "exits with words": (
        "import hotrestart, sys\nsys.exit('no port given')",
        "the new code ended before it called main(): no port given",
        "    no port given",
    ),
    "os._exit(0)": ("import os\nos._exit(0)", "the new code ended before it called main()", ""),
    "killed": (
        "import os\nos.kill(os.getpid(), 9)",
        "the new code was killed by signal 9 before it called main()",
        "",
    ),
    "never calls main": (
        "import hotrestart\n@hotrestart.restartable\ndef main(): pass\nprint('the end')",
        "the new code ended before it called main(): the end",
        "    the end",
    ),
    "prints megabytes": (
        "for number in range(5000):\n    print('x' * 1000)\nraise ValueError('after the flood')",
        "ValueError: after the flood",
        "    raise ValueError('after the flood')",
    ),
    "prints one line of megabytes": (
        "import sys\nsys.stderr.write('x' * 5_000_000)\nraise ValueError('after the flood')",
        "ValueError: after the flood",
        "    raise ValueError('after the flood')",
    ),
    "prints what is no text": (
        "import os\nos.write(2, bytes(range(256)))\nraise ValueError('after the noise')",
        "ValueError: after the noise",
        "    raise ValueError('after the noise')",
    ),
    "has started a thread": (
        "import hotrestart, threading\nthreading.Thread(target=threading.Event().wait).start()\nraise KeyError('port')",
        "KeyError: 'port'",
        "    raise KeyError('port')",
    ),
    "exits with a thread": (
        "import hotrestart, sys, threading\nthreading.Thread(target=threading.Event().wait).start()\nsys.exit(0)",
        "the new code ended before it called main()",
        "",
    ),
    "has closed its output": (
        "import os\nos.closerange(0, 3)\nraise ValueError",
        "the new code ended before it called main()",
        "",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_new_code_is_refused_and_the_old_goes_on(program: Program, kind: str) -> None:
    source, reason, shown = BROKEN[kind]
    old = Counting(program)
    program.deploy(GATE + source)
    assert old.try_twice().startswith(reason)
    assert shown in program.log()
    assert len(program.log()) < 2 * 70_000
    old.restart()


def test_a_syntax_error_is_refused_and_the_old_goes_on(program: Program) -> None:
    old = Counting(program)
    for count in (1, 2):
        program.deploy("def main(:\n    pass\n")
        old.hup()
        reason = old.wait_refusal(count)
        assert f"{REFUSED}SyntaxError: " in reason
        assert "    def main(:" in program.log()
        old.assert_untouched(count)
    old.restart()


SLOW_PREFLIGHT = """
import os, time
if "HOTRESTART" in os.environ and os.path.exists("slow"):
    open("loading", "w").close()
    time.sleep(2)
    while not os.path.exists("gate"):
        time.sleep(0.005)
"""


@pytest.mark.parametrize("source", ["def main(:\n    pass\n", "1 / 0\n"], ids=["a syntax error", "raises"])
def test_the_old_code_makes_no_pause_while_broken_code_is_looked_at(program: Program, source: str) -> None:
    """Python itself takes its time to start, before it has a look at the program."""
    (program.folder / "early").mkdir()
    (program.folder / "early" / "sitecustomize.py").write_text(SLOW_PREFLIGHT)
    old = Counting(program, env={"PYTHONPATH": f"{program.folder / 'early'}:{CHECKOUT}"})
    (program.folder / "slow").touch()
    program.deploy(source)
    began = time.monotonic()
    program.hup()
    program.wait_until((program.folder / "loading").exists, "the preflight")
    old.make_turns()
    assert old.refusals() == []
    # A busy machine may hold up anybody; but who waits for the preflight would wait for as long as it is held here.
    program.wait_until(lambda: old.longest_pause() < (time.monotonic() - began) / 2, "turns all the time")
    old.gate.touch()
    old.wait_refusal()
    old.make_turns()
    (program.folder / "slow").unlink()
    old.restart()


@pytest.mark.parametrize("import_first", [True, False], ids=["after the import of hotrestart", "before"])
def test_new_code_that_hangs_at_import_is_refused_in_time(program: Program, import_first: bool) -> None:
    old = Counting(program, "(ready_timeout=6)")
    program.deploy(
        f"import {'hotrestart' if import_first else 'os'}, time\nreport(loading=1)\n"
        "def wait_for_ever():\n    time.sleep(3600)\nwait_for_ever()\n"
    )
    program.hup()
    old.wait_loading(1)
    old.make_turns()
    assert old.refusals() == []
    assert f"{REFUSED}the new code did not reach main() within 6 s" in old.wait_refusal()
    if import_first:
        assert "in wait_for_ever" in program.log()
    old.assert_untouched(1)
    old.restart()


def test_new_code_that_hangs_and_cannot_be_asked_to_end_is_killed(program: Program) -> None:
    old = Counting(program, "(ready_timeout=6)")
    program.deploy(
        "import hotrestart, signal, time\nimport faulthandler\nfaulthandler.disable()\n"
        "for each in (signal.SIGABRT, signal.SIGTERM, signal.SIGINT): signal.signal(each, signal.SIG_IGN)\n"
        "while True: time.sleep(1)\n"
    )
    old.hup()
    assert f"{REFUSED}the new code did not reach main() within 6 s" in old.wait_refusal()
    old.assert_untouched(1)
    old.restart()


@pytest.mark.parametrize("message", ["no configuration:\\n  - port\\n  - host", "first\\nsecond"])
def test_the_reason_names_the_exception_whatever_its_message(program: Program, message: str) -> None:
    old = Counting(program)
    program.deploy(f"raise RuntimeError('{message}')")
    old.hup()
    assert f"{REFUSED}RuntimeError" in old.wait_refusal()


# --- the interpreter


@pytest.fixture
def in_venv(program: Program) -> Path:
    """The interpreter of a virtualenv from which the program will be run."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(program.folder / "env")], check=True)
    program.python = str(program.folder / "env" / "bin" / "python")
    return Path(program.python)


def rename(python: Path) -> None:
    python.rename(python.with_name("away"))


def take_permission(python: Path) -> None:
    rename(python)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o600)


def replace_by_noise(python: Path) -> None:
    rename(python)
    python.write_bytes(b"\x7fELF, but not really")
    python.chmod(0o700)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in its directory", "elsewhere"])
@pytest.mark.parametrize("breakage", [rename, take_permission, replace_by_noise])
def test_an_interpreter_that_cannot_be_started_is_refused(
    program: Program, in_venv: Path, breakage: Callable[[Path], None], elsewhere: bool
) -> None:
    old = Counting(program, first="os.chdir('/')" if elsewhere else "pass")
    breakage(in_venv)
    for count in (1, 2):
        old.hup()
        assert f"{REFUSED}{in_venv} cannot be started: " in old.wait_refusal(count)
        old.assert_untouched(count)
        if count == 1:
            fds = program.fds()
    assert program.fds() == fds
    in_venv.with_name("away").replace(in_venv)
    old.restart()


# --- what the new code must not leave behind or do


SLEEPER = f"""
import subprocess
command = ["sleep", "{2 * PATIENCE}"]
report(sleeper=subprocess.Popen(command, start_new_session=True).pid)  # else it is ended with its preflight
"""


def test_a_grandchild_that_holds_the_pipes_does_not_hold_up_the_refusal(program: Program) -> None:
    old = Counting(program)
    program.deploy(f"{GATE}\n{SLEEPER}1 / 0\n")
    try:
        assert old.try_twice().startswith("ZeroDivisionError")
        assert all(alive(each["sleeper"]) for each in program.reports() if "sleeper" in each)
        old.restart()
    finally:
        kill_reported(program)


def test_a_grandchild_that_holds_the_pipes_does_not_hold_up_the_restart(program: Program) -> None:
    Counting(program)
    program.deploy(SLEEPER + worker("better"))
    try:
        program.hup()
        program.wait_report(ready=2, version="better")
        of_preflight, of_new = [each["sleeper"] for each in program.reports() if "sleeper" in each]
        assert alive(of_preflight)
        assert program.children() == [of_new]
        assert program.stop() == 0
    finally:
        kill_reported(program)


def alive(pid: object) -> bool:
    return Path(f"/proc/{pid}").exists()


def kill_reported(program: Program) -> None:
    for each in program.reports():
        sleeper = each.get("sleeper")
        if isinstance(sleeper, int):
            try:
                os.kill(sleeper, signal.SIGKILL)
            except ProcessLookupError:
                continue


TIDY = "import atexit, os\natexit.register(lambda: os.path.exists('precious') and os.unlink('precious'))\n"
ENDINGS = {
    "raises": "raise RuntimeError('broken')\n",
    "exits": "import sys; sys.exit(0)\n",
    "raises under its own excepthook": (
        "import sys; sys.excepthook = lambda *error: print(error)\nraise RuntimeError('broken')\n"
    ),
    "exits after a thread": (
        "import threading; threading.Thread(target=print, daemon=True).start()\nraise SystemExit(3)\n"
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("order", ["before hotrestart", "after hotrestart"])
def test_a_preflight_that_breaks_runs_no_exit_handler(program: Program, order: str, ending: str) -> None:
    old = Counting(program)
    precious = program.folder / "precious"
    precious.touch()
    imports = [TIDY, "import hotrestart\n"]
    program.deploy("".join(imports if order == "before hotrestart" else reversed(imports)) + ENDINGS[ending])
    old.hup()
    old.wait_refusal()
    assert precious.exists()
    old.assert_untouched(1)


@pytest.mark.xfail(strict=True, reason="a limit: what breaks before hotrestart is imported runs its exit handlers")
def test_a_preflight_that_breaks_before_the_import_of_hotrestart_runs_no_exit_handler(program: Program) -> None:
    old = Counting(program)
    precious = program.folder / "precious"
    precious.touch()
    program.deploy(TIDY + "raise RuntimeError('broken')\nimport hotrestart\n")
    old.hup()
    old.wait_refusal()
    assert precious.exists()


@pytest.mark.parametrize("order", ["before hotrestart", "after hotrestart"])
def test_a_preflight_that_passes_runs_no_exit_handler(program: Program, order: str) -> None:
    old = Counting(program)
    precious = program.folder / "precious"
    precious.touch()
    imports = [TIDY, "import hotrestart\n"]
    program.deploy("".join(imports if order == "before hotrestart" else reversed(imports)) + worker("better"))
    old.program.hup()
    program.wait_report(ready=2, version="better")
    assert precious.exists()
    assert program.stop() == 0
    assert not precious.exists()  # it would have been deleted


def test_waiting_for_new_code_that_has_closed_its_output_costs_nothing(program: Program) -> None:
    """New code that sends its standard streams to a log file of its own at import."""
    program.deploy(worker("idle"))
    program.start()
    program.wait_report(ready=1)
    program.deploy(
        "import os, time\nlog = os.open('own-log', os.O_WRONLY | os.O_CREAT)\nos.dup2(log, 1)\nos.dup2(log, 2)\n"
        "time.sleep(0.1)\nreport(loading='begins')\nfor _ in range(200): time.sleep(0.005)\nreport(loading='ends')\n"
        "time.sleep(3600)\n"
    )
    program.hup()
    program.wait_report(loading="begins")
    before = processor_seconds(program.pid)
    program.wait_report(loading="ends")
    assert processor_seconds(program.pid) - before <= 0.03
    assert program.stop() == 0


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- requests that overtake a preflight


def test_a_hup_during_a_preflight_is_answered_by_code_at_least_as_new(program: Program) -> None:
    old = Counting(program)
    program.deploy(GATE + worker("good, but overtaken"))
    program.hup()
    old.wait_loading(1)
    program.deploy("raise RuntimeError('newest')")
    old.hup()
    old.gate.touch()
    assert f"{REFUSED}RuntimeError: newest" in old.wait_refusal()
    old.make_turns()
    old.assert_untouched(1)
    old.restart()


def test_good_code_that_overtakes_broken_code_in_its_preflight_is_taken(program: Program) -> None:
    old = Counting(program)
    program.deploy(GATE + "raise RuntimeError('overtaken')")
    program.hup()
    old.wait_loading(1)
    program.deploy(COUNTING.format(version="better", options="", first="pass"))
    old.hup()
    old.gate.touch()
    program.wait_report(ready=2, version="better")
    assert program.stop() == 0


def test_broken_code_is_refused_however_many_hups_there_were(program: Program) -> None:
    old = Counting(program)
    gate = "'gate%d' % len(open(_os.environ['REPORT']).readlines())"  # a gate of its own for each load
    program.deploy(GATE.replace('"gate"', gate) + worker("slow"))
    for count in range(1, 4):
        if count == 1:
            program.hup()
        old.wait_loading(count)
        if count == 3:
            program.deploy("raise RuntimeError('newest')")
        old.hup()
        (program.folder / f"gate{1 + count}").touch()
    assert f"{REFUSED}RuntimeError: newest" in old.wait_refusal()
    old.restart()


def test_new_code_that_calls_main_in_a_thread_is_refused(program: Program) -> None:
    old = Counting(program)
    program.deploy(
        worker("in a thread").replace(
            "    main()\n",
            "    import threading\n    thread = threading.Thread(target=main)\n    thread.start()\n    thread.join()\n",
        )
    )
    old.program.hup()
    assert "WrongThreadError" in old.wait_refusal()
    old.make_turns()
    old.restart()


def test_a_stop_during_a_preflight_stops_at_once_and_leaves_nothing(program: Program) -> None:
    old = Counting(program)
    program.deploy(GATE + worker("never"))
    program.hup()
    old.wait_loading(1)
    [pid] = old.loading()
    program.term()
    assert program.wait_exit() == 0
    assert not alive(pid)
    assert program.reports()[-1] == {"ended": "stop"}


# --- nothing to be had


def test_with_no_descriptor_left_the_old_goes_on_and_leaks_nothing(program: Program) -> None:
    program.deploy("""
import os, resource
import hotrestart

@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        loop.sleep(0)
        report(ready=hotrestart.state.generation)
        taken = []
        while loop.running:
            loop.sleep(0.01)
            if os.path.exists("take") and not taken:
                highest = max(map(int, os.listdir("/proc/self/fd")))
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 40, 4096))
                leave = int(open("take").read())
                while True:
                    try:
                        taken.append(os.dup(2))
                    except OSError:
                        break
                for _ in range(leave):
                    os.close(taken.pop())
                report(left=leave, open=len(os.listdir(f"/proc/{os.getpid()}/fd")) if leave else None)
            if taken and not os.path.exists("take"):
                while taken:
                    os.close(taken.pop())
                report(given_back=len(os.listdir("/proc/self/fd")))

main()
""")
    program.start()
    program.wait_report(ready=1)
    before = len(program.fds())
    for count, leave in enumerate((1, 2, 3, 4, 5, 6), 1):
        (program.folder / "take").write_text(str(leave))
        program.wait_report(left=leave)
        program.hup()
        program.wait_log("restart refused", count=count)
        (program.folder / "take").unlink()
        program.wait_until(lambda n=count: len([e for e in program.reports() if "given_back" in e]) == n, "given back")
        assert len(program.fds()) == before
    program.hup()
    program.wait_report(ready=2)
    assert program.stop() == 0
