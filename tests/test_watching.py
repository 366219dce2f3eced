"""`watch`: what counts as a change, and a real program that is restarted by it."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart.watching import changed, snapshot
from tests.conftest import need
from tests.harness import Program

SERVES = """
import hotrestart
@hotrestart.restartable({options})
def main():
    with hotrestart.worker_loop() as loop:
        report(ready={version})
        while loop.running:
            loop.sleep(60)
main()
"""


@pytest.fixture(params=["by watchfiles", "by looking"])
def noticed(request: pytest.FixtureRequest, program: Program) -> None:
    """How the program that watches learns of a change."""
    if request.param == "by watchfiles":
        need("watchfiles")
    else:
        program.deploy("raise ImportError", "watchfiles.py")


KINDS = pytest.mark.parametrize("options", ["", "workers=1"], ids=["in place", "rolling"])


def touched(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def seen(folder: Path, *patterns: str) -> set[str]:
    return {str(Path(path).relative_to(folder)) for path in snapshot([str(folder)], patterns or ["*.py"])}


def test_only_files_of_these_names_count_and_no_folder_that_is_nobody_s_source(tmp_path: Path) -> None:
    touched(tmp_path / "a.py", tmp_path / "b/c.py", tmp_path / "d.toml", tmp_path / "b/__pycache__/x.py")
    touched(
        tmp_path / ".git/x.py", tmp_path / "env/pyvenv.cfg", tmp_path / "env/lib/x.py", tmp_path / "node_modules/x.py"
    )
    assert seen(tmp_path) == {"a.py", "b/c.py"}
    assert seen(tmp_path, "*.py", "*.toml") == {"a.py", "b/c.py", "d.toml"}


def test_a_change_is_new_content_another_file_of_the_same_time_and_size_or_none(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    touched(path)
    states = [snapshot([str(tmp_path)], ["*.py"])]
    path.write_text("1")
    states.append(snapshot([str(tmp_path)], ["*.py"]))
    status = path.stat()
    (tmp_path / "new").write_text("2")
    os.utime(tmp_path / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "new").rename(path)
    states.append(snapshot([str(tmp_path)], ["*.py"]))
    path.unlink()
    states.append(snapshot([str(tmp_path)], ["*.py"]))
    for before, now in pairwise(states):
        assert changed(before, now) == [str(path)]
    assert changed(states[0], dict(states[0])) == []


SNAPSHOTS = st.dictionaries(st.sampled_from("abcd"), st.tuples(*[st.integers(0, 2)] * 3))


@given(SNAPSHOTS, SNAPSHOTS)
def test_what_has_changed_is_what_differs_both_ways(
    before: dict[str, tuple[int, int, int]], now: dict[str, tuple[int, int, int]]
) -> None:
    assert changed(before, now) == changed(now, before)
    assert bool(changed(before, now)) == (before != now)
    assert not changed(now, now)


def watch(program: Program, options: str) -> None:
    program.deploy(SERVES.format(version=1, options=options))
    program.start("-m", "hotrestart", "watch", "--", program.python, "app.py")
    program.wait_report(ready=1)


@KINDS
@pytest.mark.usefixtures("noticed")
def test_a_changed_program_is_restarted_and_one_that_does_not_load_is_shown(program: Program, options: str) -> None:
    watch(program, options)
    program.deploy(SERVES.format(version=2, options=options))
    program.wait_report(ready=2)
    program.wait_log("generation 2 serves")
    program.deploy("1 / 0")
    log = program.wait_log("failed at stage")
    assert "ZeroDivisionError" in log
    program.deploy(SERVES.format(version=3, options=options))
    program.wait_report(ready=3)
    program.term()
    assert program.wait_exit() == 0


@KINDS
@pytest.mark.parametrize("to", ["us", "all"])
def test_ctrl_c_ends_both_in_peace(program: Program, options: str, to: str) -> None:
    program.deploy(SERVES.format(version=1, options=options).replace("main()\n", "main()\nreport(ended=True)\n"))
    command = ("-m", "hotrestart", "watch", "--", program.python, "app.py")
    program.start(*command, start_new_session=True)
    program.wait_report(ready=1)
    if to == "all":
        os.killpg(program.pid, signal.SIGINT)
    else:
        os.kill(program.pid, signal.SIGINT)
    assert program.wait_exit() == 130, program.log()
    if not options:
        assert program.reports(ended=True)
    assert "Traceback" not in program.log()


IN_THE_MAKING = """
import os, time

class Slow:
    def __set_name__(self, owner, name):
        open("begins", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.005)

class Owner:
    slow = Slow()
"""


def test_ctrl_c_while_watchfiles_is_imported_is_no_error(program: Program) -> None:
    """Until 3.11 what is raised while a class is being made becomes a RuntimeError."""
    program.deploy(IN_THE_MAKING, "watchfiles.py")
    program.deploy(SERVES.format(version=1, options=""))
    program.start("-m", "hotrestart", "watch", "--", program.python, "app.py")
    program.wait_until((program.folder / "begins").exists, "it begins")
    os.kill(program.pid, signal.SIGINT)
    (program.folder / "go").touch()
    assert program.wait_exit() == 130, program.log()
    assert "Error" not in program.log()
    assert not program.reports(ready=1)


SLOW = """
import os, time

def watch(*folders, **options):
    open("begins", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    while True:
        time.sleep(0.1)
        yield set()
"""


def assert_a_change_is_noticed_later(program: Program) -> None:
    """One that comes while the watcher waits for a file "go"."""
    program.deploy(SERVES.format(version=2, options=""))
    (program.folder / "go").touch()
    program.wait_report(ready=2)
    program.term()
    assert program.wait_exit() == 0


def test_what_changes_before_watchfiles_has_begun_is_noticed(program: Program) -> None:
    """Of its own it tells only of what comes later."""
    program.deploy(SLOW, "watchfiles.py")
    program.deploy(SERVES.format(version=1, options=""))
    program.start("-m", "hotrestart", "watch", "--", program.python, "app.py")
    program.wait_until((program.folder / "begins").exists, "it begins")
    program.wait_report(ready=1)
    assert_a_change_is_noticed_later(program)


@pytest.mark.usefixtures("noticed")
@pytest.mark.parametrize("broken", ["syntax error(", "import os; os.kill(os.getpid(), 9)"])
def test_a_program_that_has_failed_is_started_again_by_the_next_change(program: Program, broken: str) -> None:
    program.deploy(broken)
    program.start("-m", "hotrestart", "watch", "--", program.python, "app.py")
    program.wait_log("the next change starts it again")
    program.deploy(broken + " # still")
    program.wait_log("the next change starts it again", count=2)
    program.deploy(SERVES.format(version=2, options=""))
    program.wait_report(ready=2)
    program.deploy(SERVES.format(version=3, options=""))
    program.wait_report(ready=3)
    assert len(program.reports(ready=2)) == 1
    program.term()
    assert program.wait_exit() == 0


@pytest.mark.usefixtures("noticed")
def test_a_change_while_the_program_boots_is_not_lost(program: Program) -> None:
    boots = "import os, time\nreport(boots={})\nwhile os.path.exists('slow'):\n    time.sleep(0.01)\n"
    (program.folder / "slow").touch()
    program.deploy(boots.format(1) + SERVES.format(version=1, options=""))
    program.start("-m", "hotrestart", "watch", "--", program.python, "app.py")
    program.wait_report(boots=1)
    program.deploy(SERVES.format(version=2, options=""))
    program.wait_log("changed")
    (program.folder / "slow").unlink()
    program.wait_report(ready=2)
    assert program.log().count("changed") == 1
    program.term()
    assert program.wait_exit() == 0


HELD_UP = """
import os, sys, time
from hotrestart import watching
from hotrestart.__main__ import main

def start_and_be_held_up(program, start=watching._Program.start):
    start(program)
    while not os.path.exists("go"):
        time.sleep(0.01)

watching._Program.start = start_and_be_held_up
sys.argv[1:] = ["watch", "--", sys.executable, "app.py"]
main()
"""


@pytest.mark.usefixtures("noticed")
def test_a_change_is_not_lost_if_the_watcher_is_held_up_when_it_has_just_started_the_program(program: Program) -> None:
    program.deploy(SERVES.format(version=1, options=""))
    program.deploy(HELD_UP, "watcher.py")
    program.start("watcher.py")
    program.wait_report(ready=1)
    assert_a_change_is_noticed_later(program)


@pytest.mark.usefixtures("noticed")
def test_a_program_that_dies_of_a_change_waits_for_the_next_one(program: Program) -> None:
    """It was there when the change came: nothing is to be made up for."""
    watch(program, "")
    dies = SERVES.format(version=2, options="").replace(
        "    with", "    import os; os._exit(3)\n    with"
    )  # before "ready"
    program.deploy(dies)
    log = program.wait_log("the program has ended with status 3; the next change starts it again")
    assert "has died" in log
    program.deploy(SERVES.format(version=3, options=""))
    program.wait_report(ready=3)
    assert program.log().count("has ended with status 3") == 1
    program.term()
    assert program.wait_exit() == 0


def test_a_stop_ends_it_also_while_it_waits_for_a_change(program: Program) -> None:
    program.deploy("import sys; sys.exit(7)")
    program.start("-m", "hotrestart", "watch", "--", program.python, "app.py")
    program.wait_log("the next change starts it again")
    program.term()
    assert program.wait_exit() == 7


def test_it_ends_with_a_program_that_has_done_its_work(program: Program) -> None:
    program.deploy("pass")
    program.start("-m", "hotrestart", "watch", "--", program.python, "app.py")
    assert program.wait_exit() == 0


@pytest.mark.parametrize(
    "arguments", [[], ["--"], ["--dir", "nowhere", "--", "true"], ["--", "no-such-command"]], ids=str
)
def test_wrong_usage_is_told(program: Program, arguments: list[str]) -> None:
    program.start("-m", "hotrestart", "watch", *arguments)
    assert program.wait_exit() == 2
    assert "error: " in program.log()
