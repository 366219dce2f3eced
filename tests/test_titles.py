"""What `ps` and `top` show: which process of a program is which, and of what generation; after restarts too."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from tests.asking import app, ask
from tests.conftest import missing
from tests.rolling.programs import Rolling

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="the name of a process is a file on Linux only"),
]

HIDDEN = "raise ImportError('hidden by a test')"


def shown(pid: int, what: str) -> str:
    """What ps says: `comm`, the name, or `args`, the command line."""
    ran = subprocess.run(["ps", "-ww", "-o", f"{what}=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return ran.stdout.strip()


def start(program: Rolling) -> None:
    program.deploy(app("rolling"))
    program.start()
    program.wait_log("generation 1 serves")


def restart(program: Rolling) -> None:
    ran = ask("restart", program.pid)
    assert ran.returncode == 0, ran


def tree(program: Rolling, what: str) -> list[str]:
    """Of the supervisor, the fork servers, the workers."""
    return [shown(pid, what) for pid in (program.pid, *program.servers(), *program.workers())]


@pytest.mark.parametrize("installed", [False, True], ids=["alone", "with setproctitle"])
def test_the_processes_can_be_told_apart(tmp_path: Path, installed: bool) -> None:
    if installed and importlib.util.find_spec("setproctitle") is None:
        missing("setproctitle")
    with Rolling(tmp_path / "app") as program:
        if not installed:
            (program.folder / "setproctitle.py").write_text(HIDDEN)
        start(program)
        for generation in (1, 2, 3):
            if generation > 1:
                restart(program)
            names = [f"supervisor {generation}", f"forkserver {generation}", *[f"worker {generation}"] * 2]
            # setproctitle says more, and the kernel cuts it off
            program.wait_until(
                lambda names=names: [each.split(":")[0] for each in tree(program, "comm")] == names, names
            )
            supervisor, *members = tree(program, "args")
            assert supervisor.endswith("app.py")
            assert "supervisor of" in supervisor
            for line, name in zip(members, names[1:], strict=True):
                assert line.startswith(f"{name}: app.py" if installed else program.python)


def test_a_program_that_restarts_in_place_keeps_its_name(tmp_path: Path) -> None:
    with Rolling(tmp_path / "app") as program:
        program.deploy(app("in place"))
        program.start()
        program.wait_report(ready=1)
        before = shown(program.pid, "comm"), shown(program.pid, "args")
        restart(program)
        assert (shown(program.pid, "comm"), shown(program.pid, "args")) == before
