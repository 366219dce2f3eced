"""`python -m hotrestart demo`: what a newcomer sees first has to work anywhere, clean up, and never flatter.

That it tells the truth is tested from both ends: made-up records go into the ledger, and saboteurs' workers go through
the whole demonstration.
"""

from __future__ import annotations

import io
import os
import pkgutil
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotrestart import __version__
from hotrestart.__main__ import main
from hotrestart.demo import inplace, story
from hotrestart.demo.display import Display
from hotrestart.demo.jobs import Queue
from hotrestart.demo.ledger import Done, Ledger, Release
from hotrestart.sleeper import Sleeper
from tests.harness import CHECKOUT, PATIENCE, clean_environment, tried_three_times

COMMAND = [sys.executable, "-m", "hotrestart", "demo", "in-place"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment whose temporary folder is `tmp_path / "tmp"`."""
    (tmp_path / "tmp").mkdir()
    return clean_environment(TMPDIR=str(tmp_path / "tmp"), TERM="xterm")


def is_clean(env: dict[str, str]) -> bool:
    return os.listdir(env["TMPDIR"]) == []


# --- the whole thing


@tried_three_times
def test_it_runs_from_an_empty_folder_and_every_job_is_accounted_for(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "empty").mkdir(exist_ok=True)
    env.update(PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1")
    began = time.monotonic()
    ran = subprocess.run(COMMAND, cwd=tmp_path / "empty", env=env, capture_output=True, text=True, timeout=PATIENCE)
    took = time.monotonic() - began
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
    assert took < 20, ran.stdout
    rows = dict(re.findall(r"^  (\w.*?) {3,}(.*)$", ran.stdout, re.MULTILINE))
    assert rows["jobs put in"] == rows["jobs done"]
    assert int(rows["jobs done"].replace(",", "")) > 100
    assert (rows["jobs lost"], rows["jobs repeated"]) == ("0", "0")
    assert rows["restarts"] == "6 of 6 led to the new code"
    assert rows["refusals"] == "1 (ModuleNotFoundError: No module named 'forgotten_dependency')"
    assert re.search(rf"version 1 is at work, pid {rows['pid'].split(',')[0]}$", ran.stdout, re.MULTILINE)
    low, middle, high = map(int, re.findall(r"\d+", rows["HUP to first job by new code"]))
    assert 0 < low <= middle <= high < 20_000
    assert re.fullmatch(r"\d+ ms", rows["longest time without a job"])
    assert ran.stdout.count("on disk, HUP: at work") == 6
    assert not {"\r", "\x1b"} & set(ran.stdout)
    assert is_clean(env)
    assert os.listdir(tmp_path / "empty") == []


def test_on_a_terminal_one_line_moves_and_is_cleared(env: dict[str, str]) -> None:
    del env["PYTHONPATH"]
    status, written = run_on_a_terminal(CHECKOUT, {**env, "NO_COLOR": "1"})
    assert status == 0, written
    assert re.search(r"\r\x1b\[K *\d+\.\d s  version 1, pid \d+: [\d,]+ jobs done", written)
    assert "HUP for version 2" in written
    assert "\x1b" not in written.replace("\x1b[K", ""), "colour in spite of NO_COLOR"
    seen = [line.rpartition("\r\x1b[K")[2] for line in written.split("\r\n")]
    assert not [line for line in seen if "jobs done," in line or "HUP for" in line]
    assert seen[-2].startswith("Every promise was kept.")
    assert is_clean(env)


def run_on_a_terminal(cwd: Path, env: dict[str, str], command: list[str] = COMMAND) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    try:
        demo = subprocess.Popen(command, cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    finally:
        os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:
        pass  # EIO: nobody holds the other end any more
    finally:
        os.close(ours)
    return demo.wait(PATIENCE), written.decode()


# --- its end, before the end


@pytest.fixture
def demo(env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(COMMAND, cwd=CHECKOUT, env=env, stdout=pipe, stderr=pipe, text=True) as process:
        yield process
        process.kill()


def worker_of(demo: subprocess.Popen[str]) -> int:
    """Wait until it is in the midst of things; the pid of its worker."""
    assert demo.stdout is not None
    for line in demo.stdout:
        if found := re.search(r"at work, pid (\d+)", line):
            return int(found[1])
    raise AssertionError(f"no worker: {demo.communicate()}")


def await_end_of_session(session: int) -> None:
    """Wait until the worker, which leads a session, and all its children are gone."""
    deadline = time.monotonic() + PATIENCE
    while members := [pid for pid in all_pids(session) if session_of(pid) == session]:
        assert time.monotonic() < deadline, f"left behind: {members}"
        time.sleep(0.01)


def is_there(pid: int) -> bool:
    """As a process or as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def all_pids(default: int) -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc/self") else [default]


def session_of(pid: int) -> int:
    """-1 if it has ended. An orphan may stay a zombie for a while: that is up to process 1."""
    try:
        state = Path(f"/proc/{pid}/stat")
        is_zombie = state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z"
        return -1 if is_zombie else os.getsid(pid)
    except (ProcessLookupError, FileNotFoundError):
        return -1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", [0.0, 0.65])
def test_it_can_be_interrupted_and_leaves_nothing_behind(
    demo: subprocess.Popen[str], env: dict[str, str], how: int, when: float
) -> None:
    worker = worker_of(demo)
    time.sleep(when)  # at work, or about to restart
    demo.send_signal(how)
    _, said = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 130
    assert said == "hotrestart demo: interrupted; what it started is ended, its folder removed\n"
    assert not is_there(worker)
    await_end_of_session(worker)
    assert is_clean(env)


def test_if_it_is_killed_its_worker_ends_by_itself(demo: subprocess.Popen[str]) -> None:
    worker = worker_of(demo)
    demo.kill()
    demo.wait()
    await_end_of_session(worker)


def test_it_ends_quietly_when_nobody_reads_on(demo: subprocess.Popen[str], env: dict[str, str]) -> None:
    worker = worker_of(demo)
    assert demo.stdout is not None
    assert demo.stderr is not None
    demo.stdout.close()
    assert demo.stderr.read() == ""
    assert demo.wait(PATIENCE) == 1
    await_end_of_session(worker)
    assert is_clean(env)


# --- it tells the truth: the ledger


@pytest.fixture
def records(tmp_path: Path) -> Iterator[tuple[Queue, sqlite3.Connection]]:
    """A queue with five jobs in it, and a pen."""
    with Queue(tmp_path / "jobs.db") as queue:
        queue.put(5)
        pen = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
        yield queue, pen
        pen.close()


def write(pen: sqlite3.Connection, *done: tuple[int, float, int, int, int]) -> None:
    pen.executemany("INSERT INTO done VALUES (?, ?, ?, ?, ?)", done)


GOOD = [(1, 10.0, 77, 1, 1), (2, 10.1, 77, 1, 1), (3, 10.5, 77, 2, 2), (4, 10.6, 77, 2, 2), (5, 10.7, 77, 3, 4)]
RELEASES = [
    Release(2, 10.25, 10.5),
    Release(3, 10.55, 10.58, is_broken=True, refusal="SyntaxError: invalid syntax"),
    Release(4, 10.65, 10.7),
]


def test_a_ledger_in_which_all_is_well(records: tuple[Queue, sqlite3.Connection]) -> None:
    queue, pen = records
    write(pen, *GOOD)
    assert queue.latest() == (5, Done(*GOOD[-1]))
    ledger = Ledger(queue.jobs(), queue.done(), RELEASES, 77, 0)
    assert ledger.faults() == []
    assert ledger.rows() == [
        ("jobs put in", "5"),
        ("jobs done", "5"),
        ("jobs lost", "0"),
        ("jobs repeated", "0"),
        ("restarts", "2 of 2 led to the new code"),
        ("refusals", "1 (SyntaxError: invalid syntax)"),
        ("pid", "77, from first to last"),
        ("HUP to first job by new code", "50 / 150 / 250 ms (min / median / max)"),
        ("longest time without a job", "400 ms"),
    ]


def test_a_lost_and_a_repeated_job_are_seen(records: tuple[Queue, sqlite3.Connection]) -> None:
    queue, pen = records
    write(pen, *GOOD[:3], (3, 10.55, 77, 2, 2), GOOD[4])
    ledger = Ledger(queue.jobs(), queue.done(), RELEASES, 77, 0)
    rows = dict(ledger.rows())
    assert (rows["jobs put in"], rows["jobs done"], rows["jobs lost"], rows["jobs repeated"]) == ("5", "4", "1", "1")
    screen = io.StringIO()
    assert story.settle(ledger, Display(screen), log_tail=["a line of the log"]) == 1
    assert "FAILED: 1 job was lost: 4\nFAILED: 1 job was done more than once: 3\n" in screen.getvalue()
    assert screen.getvalue().endswith("The end of the program's log:\n    a line of the log\n")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"done": []}, "no job was done at all"),
        ({"jobs": list(range(1, 16))}, "10 jobs were lost: 6, 7, 8, 9, 10, 11, 12, 13, ..."),
        ({"done": [Done(5, 10.9, 78, 3, 4)]}, "the pid did not stay 77: jobs were done by 78"),
        ({"status": -9}, "the program ended with status -9, not 0"),
        ({"releases": RELEASES[:2]}, "the last generation is number 3, not 2"),
        ({"releases": [*RELEASES, Release(5, 10.8, 11.0)]}, "the restart did not lead to version 5"),
        (
            {"releases": [*RELEASES, Release(5, 10.8, 11.0, refusal="OSError: no")]},
            "the restart did not lead to version 5: it was refused: OSError: no",
        ),
        ({"releases": [Release(3, 10.5, 10.6, is_broken=True)]}, "version 3 is broken and was not refused"),
        (
            {"releases": [Release(2, 10.25, 10.5, is_broken=True)]},
            "version 2 is broken and did a job all the same",
        ),
        (
            {"releases": [Release(3, 10.5, 11.0, is_broken=True, refusal="OSError: no")]},
            "no job was done any more after version 3 had been refused",
        ),
        ({"done": [Done(5, 10.9, 77, 3, 1)]}, "old code did a job after the new code had begun"),
    ],
)
def test_each_broken_promise_is_a_fault(change: dict[str, object], fault: str) -> None:
    good = [Done(*row) for row in GOOD]
    facts = {"jobs": [1, 2, 3, 4, 5], "done": good, "releases": RELEASES, "pid": 77, "status": 0}
    if change.get("done"):
        change = {"done": [*good[:4], *change["done"]]}
    assert fault in Ledger(**{**facts, **change}).faults()  # type: ignore[arg-type]


def test_a_ledger_of_nothing_can_be_shown() -> None:
    screen = io.StringIO()
    assert story.settle(Ledger([], [], [], 77, 1), Display(screen), log_tail=[]) == 1
    assert "FAILED: no job was done at all\n" in screen.getvalue()


# --- it tells the truth: saboteurs


@pytest.mark.parametrize(
    ("code", "sabotaged", "fault"),
    [
        ("                record(queue, job)", "                record(queue, job) if job % 20 else None", "lost: 20"),
        (
            "                record(queue, job)",
            "                record(queue, job); job % 20 or record(queue, job)",
            "done more than once: 20",
        ),
        ("time.sleep(0.003)", "VERSION == 2 and os._exit(3)", "ended with status 3, not 0"),
        ("VERSION = 1", "VERSION = 1; VERSION = 1", "the restart did not lead to version 2"),
        ("time.sleep(0.003)", "time.sleep(0.004)", None),
    ],
    ids=["loses", "repeats", "dies", "stays", "harmless"],
)
def test_a_worker_that_breaks_a_promise_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, sabotaged: str, fault: str | None
) -> None:
    source = (pkgutil.get_data("hotrestart.demo", "worker.py") or b"").decode()
    assert code in source
    monkeypatch.setattr(pkgutil, "get_data", lambda *_: source.replace(code, sabotaged).encode())
    monkeypatch.setattr(inplace, "_RELEASES", (2, 5))
    monkeypatch.setattr(inplace, "_AT_WORK", 0.3)
    be_patient(monkeypatch, but_for="HUP for" if fault and "did not lead" in fault else "nothing")
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    status, shown = show(inplace.demonstrate, tmp_path)
    assert status == (1 if fault else 0), shown
    assert (fault or "Every promise was kept.") in shown


def be_patient(monkeypatch: pytest.MonkeyPatch, *, but_for: str) -> None:
    """It waits as long as a busy machine may take; but not for the step that is not to come."""
    waits = story.Story._until

    def until(self: story.Story, condition: Callable[[], bool], what: str = "") -> bool:
        monkeypatch.setattr(story, "_PATIENCE", 2.0 if but_for in what else PATIENCE)
        return waits(self, condition, what)

    monkeypatch.setattr(story.Story, "_until", until)


def show(demonstrate: Callable[[Path, Display, Sleeper], int], folder: Path) -> tuple[int, str]:
    """Have it run to its end here; its status, and what it has shown."""
    screen, sleeper = io.StringIO(), Sleeper()
    try:
        return demonstrate(folder, Display(screen), sleeper), screen.getvalue()
    finally:
        sleeper.close()


# --- the display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "colour", "moves"),
    [
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, True),
        ({"TERM": "dumb", "NO_COLOR": ""}, False, False),
    ],
)
def test_colour_and_movement(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], colour: bool, moves: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "20")
    screen = Terminal()
    display = Display(screen)
    display.moving("x" * 200)
    display.moving("too early")
    display.line("well", "good")
    moved, _, last = screen.getvalue().rpartition("\r\x1b[K")
    assert bool(moved) == moves
    assert len(moved.replace("\r\x1b[K", "")) < 20
    assert last == ("\x1b[32mwell\x1b[0m\n" if colour else "well\n")


# --- the command line


def test_no_command_is_wrong_usage(env: dict[str, str]) -> None:
    ran = subprocess.run(COMMAND[:3], env=env, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "usage: python3 -m hotrestart" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "examples:\n  python3 -m hotrestart demo "),
        (["demo", "--help"], 0, "exit status: 0 if"),
        (["--version"], 0, f"hotrestart {__version__}\n"),
        ([], 2, "COMMAND"),
        (["dmeo"], 2, "invalid choice: 'dmeo'"),
        (["demo", "--fast"], 2, "unrecognized arguments: --fast"),
        (["demo", "sideways"], 2, "invalid choice: 'sideways'"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, said: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == status
    assert said in "".join(capsys.readouterr())


def test_where_it_cannot_be_shown_it_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sqlite3", None)
        assert main(["demo"]) == 1
        assert "this Python has no sqlite3" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.delattr(os, "fork")
        assert main(["demo"]) == 1
        assert "it needs a POSIX system" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryDirectory", lambda **_: (_ for _ in ()).throw(OSError("no room")))
        assert main(["demo"]) == 1
        assert capsys.readouterr().err == "hotrestart demo: no room\n"
