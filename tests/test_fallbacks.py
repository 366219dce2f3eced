"""What macOS and the BSDs lack, taken away: no pidfd, no memory file, no close_range, no /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import CHECKOUT, Program, worker

pytestmark = pytest.mark.core

WITHOUT = """
import builtins, os, _signal, socket

for module, names in (
    (os, ("pidfd_open", "memfd_create", "MFD_CLOEXEC", "MFD_ALLOW_SEALING", "eventfd", "pipe2")),
    (_signal, ("pidfd_send_signal",)),
    (socket, ("MSG_CMSG_CLOEXEC",)),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

def hidden(path):
    return isinstance(path, (str, bytes)) and os.fsdecode(path).startswith("/proc")

def without_proc(function):
    def wrapped(path, *arguments, **options):
        if hidden(path):
            raise FileNotFoundError(2, "no /proc here", path)
        return function(path, *arguments, **options)
    return wrapped

for name in ("listdir", "open", "stat", "access", "readlink"):
    setattr(os, name, without_proc(getattr(os, name)))
builtins.open = without_proc(builtins.open)
"""


@pytest.fixture
def poor_system(tmp_path: Path) -> dict[str, str]:
    """The environment in which Python starts without these."""
    folder = tmp_path / "poor"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WITHOUT)
    return {"PYTHONPATH": f"{folder}:{CHECKOUT}"}


def test_restarts_work_without_what_linux_alone_has(program: Program, poor_system: dict[str, str]) -> None:
    source = worker(version="{version}").replace(
        "@hotrestart",
        "hotrestart.bequeath('big', 'x' * 500_000)\nlistener = hotrestart.listen('127.0.0.1:0')\n@hotrestart",
        1,
    )
    program.deploy(source.replace("{version}", "1"))
    program.start(env=poor_system)
    program.wait_report(ready=1)
    for generation in range(2, 8):
        program.deploy(source.replace("{version}", str(generation)))
        program.hup()
        program.wait_report(ready=generation, version=str(generation))
    assert "Traceback" not in program.log()
    assert program.children() == []
    assert len([fd for fd in program.fds() if "hotrestart-" in fd]) == 0
    assert program.stop() == 0


def test_broken_code_is_refused_without_what_linux_alone_has(program: Program, poor_system: dict[str, str]) -> None:
    program.deploy(worker(version=1))
    program.start(env=poor_system)
    program.wait_report(ready=1)
    program.deploy("import subprocess\nsubprocess.Popen(['sleep', '60'])\nimport nonsense\n")
    program.hup()
    assert "ModuleNotFoundError: No module named 'nonsense'" in program.wait_log("restart refused")
    program.deploy(worker(version=2))
    program.hup()
    program.wait_report(ready=2, version=2)
    assert program.stop() == 0


def test_descriptors_are_listed_and_closed_without_what_linux_alone_has(
    program: Program, poor_system: dict[str, str]
) -> None:
    program.deploy("""
import os
from hotrestart import fds
high = os.dup2(1, 900)
low = os.dup(1)
assert {0, 1, 2, low, 900} <= set(fds.open_fds()), fds.open_fds()
fds._at_once = False
if os.fork() == 0:
    fds.close_open_fds(keep=[low])
    os._exit(0 if fds.open_fds() == [0, 1, 2, low] else 1)
report(status=os.waitstatus_to_exitcode(os.wait()[1]))
""")
    assert program.start(env=poor_system).wait_exit() == 0, program.log()
    assert program.reports() == [{"status": 0}]
