"""Workers with pools of threads and of processes, and with children of their own, restarted in both ways."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.recipes import figures
from tests.recipes.load import FOLDERS, KINDS
from tests.rolling.programs import Rolling, children_of, is_running

LEDGER = """
import fcntl as _fcntl
def take():
    "The next number, which nobody else is given."
    fd = _os.open("next", _os.O_RDWR | _os.O_CREAT, 0o600)
    try:
        _fcntl.flock(fd, _fcntl.LOCK_EX)
        number = int(_os.read(fd, 20) or 0)
        _os.pwrite(fd, b"%d" % (number + 1), 0)
        return number
    finally:
        _os.close(fd)
"""


@pytest.fixture
def rolling(tmp_path: Path):
    with Rolling(tmp_path / "program") as each:
        yield each


def deploy(program: Rolling, app: str, version: int, kind: str, method: str = "fork") -> None:
    source = (FOLDERS[1] / f"{app}.py").read_text()
    source = source.replace("VERSION = 0\n", f"VERSION = {version}\n").replace("(workers=2)", KINDS[kind])
    program.deploy(LEDGER, "ledger.py")
    program.deploy(source.replace('METHOD = "fork"', f'METHOD = "{method}"'))


def reload(program: Rolling, app: str, kind: str, reloads: int, method: str = "fork") -> None:
    deploy(program, app, 1, kind, method)
    program.start()
    program.wait_report(version=1)
    for version in range(2, reloads + 2):
        deploy(program, app, version, kind, method)
        program.hup()
        program.wait_ready(version)  # what is spawned by the generation before may have loaded this version already
        program.wait_report(version=version)
    program.wait_report(version=reloads + 1, count=20)


def check(program: Rolling, kind: str, app: str, reloads: int) -> None:
    """Every job that was taken was done once; nothing is left of the program."""
    assert program.stop() == 0, program.log()
    program.wait_gone()
    taken = int((program.folder / "next").read_text())
    done = Counter(int(str(each["done"])) for each in program.reports() if "done" in each)
    figures.note(app, kind, reloads, taken, failed=taken - len(done), repeated=done.total() - len(done))
    assert done == Counter(range(taken))
    assert "Traceback" not in program.log()


@pytest.mark.figures
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("app", ["pool_threads", "own_subprocess"])
def test_jobs_in_hand_are_finished(rolling: Rolling, app: str, kind: str, full: bool) -> None:
    reloads = 50 if full else 4
    reload(rolling, app, kind, reloads)
    check(rolling, kind, app, reloads)


@pytest.mark.figures
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("app", ["pool_processes", "own_process"])
def test_jobs_in_other_processes_are_finished(rolling: Rolling, app: str, method: str, kind: str, full: bool) -> None:
    reloads = 50 if full else 4 if method == "fork" else 2
    reload(rolling, app, kind, reloads, method)
    check(rolling, kind, f"{app} by {method}", reloads)


def test_a_child_lives_on_over_restarts_in_place(rolling: Rolling) -> None:
    deploy(rolling, "kept_subprocess", 1, "in place")
    rolling.start()
    child = int(str(rolling.wait_report(version=1)["child"]))
    for version in range(2, 7):
        deploy(rolling, "kept_subprocess", version, "in place")
        rolling.hup()
        assert rolling.wait_report(version=version)["child"] == child
        assert child in children_of(rolling.pid)
    assert is_running(child)
    assert rolling.stop() == 0
    assert not is_running(child)


# -- what main() does not wait for ---------------------------------------------------------------------------------

FORGETFUL = """
import multiprocessing, os, subprocess, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import hotrestart
from ledger import report

fork = multiprocessing.get_context("fork")

def handle(job):
    report(begun=job, pid=os.getpid())
    while not os.path.exists("go"):
        time.sleep(0.01)
    report(done=job)

@hotrestart.restartable(OPTIONS)
def main():
    START
    with hotrestart.worker_loop() as loop:
        report(version=VERSION)
        loop.sleep()
    report(returned=VERSION)

if __name__ == "__main__":
    main()
"""
WAITED_FOR = {
    "ThreadPoolExecutor": "pool = ThreadPoolExecutor(2); [pool.submit(handle, job) for job in range(4)]",
    "ProcessPoolExecutor": "pool = ProcessPoolExecutor(2, fork); [pool.submit(handle, job) for job in range(4)]",
    "Process": "[fork.Process(target=handle, args=(job,)).start() for job in range(4)]",
}
KILLED = {
    "Pool": "pool = fork.Pool(2); pool.map_async(handle, range(4))",
    "daemon Process": "[fork.Process(target=handle, args=(job,), daemon=True).start() for job in range(2)]",
}
POPEN = 'report(begun=0, pid=subprocess.Popen(["sleep", "1000"]).pid)'
OPTIONS = {"workers": "workers=1", "in place": "preflight=True"}


def hurry(program: Rolling, start: str, kind: str, *more: str) -> None:
    """Start version 1, which begins jobs; when it has, restart with version 2, which does not."""
    program.deploy(LEDGER, "ledger.py")
    for version, line in ((1, start), (2, "pass")):
        source = FORGETFUL.replace("START", line).replace("OPTIONS", ", ".join([OPTIONS[kind], *more * (version == 1)]))
        program.deploy(source.replace("VERSION", str(version)))
        if version == 1:
            program.start()
            program.wait_until(lambda: program.told("begun"), "a job")
            program.wait_report(version=1)
        else:
            program.hup()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", WAITED_FOR)
def test_executors_and_processes_are_waited_for_by_themselves(rolling: Rolling, what: str, kind: str) -> None:
    hurry(rolling, WAITED_FOR[what], kind)
    rolling.wait_report(returned=1)
    (rolling.folder / "go").touch()
    rolling.wait_report(version=2)
    rolling.wait_until(lambda: len(rolling.told("done")) == 4, "all jobs are done")
    assert sorted(rolling.told("done")) == [0, 1, 2, 3]
    assert rolling.stop() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", KILLED)
def test_pools_and_daemons_are_killed_with_what_they_have_in_hand(rolling: Rolling, what: str, kind: str) -> None:
    hurry(rolling, KILLED[what], kind)
    rolling.wait_report(returned=1)
    rolling.wait_report(version=2)
    assert rolling.stop() == 0
    rolling.wait_gone()
    assert rolling.told("done") == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["subprocess", "Process beyond grace"])
def test_other_children_live_on(rolling: Rolling, what: str, kind: str) -> None:
    """In place as children of the same pid; else as orphans."""
    if what == "subprocess":
        hurry(rolling, POPEN, kind)
    else:
        hurry(rolling, "fork.Process(target=handle, args=(0,)).start()", kind, "grace=1")
    child = rolling.told("pid")[0]
    rolling.wait_report(version=2)
    if kind == "in place":
        assert child in children_of(rolling.pid)
    else:
        rolling.wait_until(lambda: parent_of(child) not in rolling.members(), "it is an orphan")
    assert is_running(child)
    rolling.kill(child)
    assert rolling.stop() == 0


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
