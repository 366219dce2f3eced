"""What the program forks inside a worker is no worker: whatever becomes of it, its parent goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hotrestart import control
from tests.rolling.programs import Rolling, is_running, service

pytestmark = pytest.mark.core

FORK = """
def fork(end):
    pid = os.fork()
    if pid:
        told(child=pid, status=os.waitpid(pid, 0)[1])
    else:
        exec(end)
"""

ENDS = {
    "exits": ("sys.exit(7)", 7 << 8),
    "raises": ("raise RuntimeError('of a child')", 1 << 8),
    "returns": ("state.should_stop = True", 0),
}


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Rolling]:
    with Rolling(tmp_path / "program") as each:
        yield each


@pytest.mark.parametrize("end", ENDS)
def test_a_child_that_a_job_forks_ends_as_it_likes(program: Rolling, end: str) -> None:
    code, status = ENDS[end]
    program.launch(service(options="workers=1", top=FORK), ready=1)
    workers = program.wait_workers(1)
    program.ask(f"exec fork({code!r})")
    assert program.wait_report(child=program.told("child")[0])["status"] == status
    program.evaluate("hotrestart.listen('127.0.0.1:0',name='other')")  # the supervisor has read all that came before
    assert set(program.workers()) == workers
    assert len(program.reports(ready=True)) == 1
    assert {each["state"] for each in control.status(program.pid)["workers"]} == {"ready"}
    assert ("RuntimeError: of a child" in program.log()) == (end == "raises")
    assert program.stop() == 0
    program.wait_gone()
    assert not program.reports(returned=True)


def test_a_helper_that_new_code_forks_before_it_is_ready_does_not_fail_the_restart(program: Rolling) -> None:
    program.launch(service())
    program.reload(service(2, top=FORK, first="fork('sys.exit(0)')"), expect=2)
    program.wait_workers(2, version=2)
    assert len(program.reports(status=0)) == 2


def test_a_child_that_turns_the_loop_does_not_cover_up_a_worker_that_hangs(program: Rolling) -> None:
    top = """
def hang():
    worker = os.getpid()
    if os.fork() == 0:
        while os.getppid() == worker:
            loop.running
            time.sleep(0.01)
        os._exit(0)
    wait_for("never")
"""
    source = service(options="workers=1, timeout=1.0", top=top)
    program.launch(source.replace("worker_loop() as loop", "worker_loop() as globals()['loop']"), ready=1)
    program.connect("exec hang()").close()
    hung = int(str(program.wait_report(job="exec hang()")["pid"]))
    program.wait_until(lambda: not is_running(hung), "the hung one is gone")
    assert "no turn of its loop for 1 s" in program.log()
