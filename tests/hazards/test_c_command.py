"""The command: every generation is started as the first one was, by the same words, in the same place and world."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.harness import Program, worker
from tests.hazards.sources import an_interpreter

pytestmark = pytest.mark.core

WHO = """
import os, sys, hotrestart
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, who=[sys.argv, sys.orig_argv, sys.path, sys.flags.dev_mode, __name__,
               sys.flags.optimize, sys.warnoptions, sys.executable, sys.prefix, os.getcwd(), os.getpid()])
        loop.sleep(None)
main()
"""

FORMS = {
    "script": ["app.py", "--option", "", "a b"],
    "module": ["-m", "package.module", "one"],
    "package": ["-m", "package"],
    "flags": ["-X", "dev", "-W", "error", "-O", "app.py"],
    "directory": ["package"],
    "isolated": ["-I", "app.py"],
}


@pytest.mark.parametrize("form", FORMS)
def test_h26_every_launch_form_is_repeated_exactly(program: Program, form: str) -> None:
    arguments = FORMS[form]
    source = WHO
    if form == "isolated":
        source = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n{WHO}"
    for name in ("app.py", "package/__init__.py", "package/module.py", "package/__main__.py"):
        program.deploy("" if name.endswith("__init__.py") else source, name)
    program.start(*arguments)
    for generation in (1, 2):
        program.wait_report(ready=generation)
        program.hup()
    program.wait_report(ready=3)
    program.stop()
    first, *others = [each["who"] for each in program.reports()]
    assert others == [first, first]


@pytest.mark.parametrize("arguments", [[], ["-"], ["-", "argument"]], ids=repr)
def test_h27_a_script_from_standard_input_is_refused(program: Program, arguments: list[str]) -> None:
    path = program.deploy(worker())
    command = ["sh", "-c", f'exec "$@" < {path.name}', "sh", sys.executable, *arguments]
    program.start_command(command)
    assert program.wait_exit() == 1
    assert "NotRestartableError: this program's code came from standard input, which cannot be read" in program.log()
    assert program.reports() == []


def test_h28_a_virtual_environment_is_not_lost_to_the_interpreter_behind_its_link(
    program: Program, tmp_path: Path
) -> None:
    home = Path(os.path.realpath(sys.executable)).parent
    python = an_interpreter(tmp_path / "bin")
    (tmp_path / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    program.deploy(WHO)
    program.start_command([str(python), "app.py"])
    for generation in (1, 2):
        who = program.wait_report(ready=generation)["who"]
        assert who[7:9] == [str(python), str(tmp_path)]
        assert Path(f"/proc/{program.pid}/cmdline").read_bytes() == f"{python}\0app.py\0".encode()
        program.hup()
    program.wait_report(ready=3)


def test_h28_with_the_interpreters_file_gone_the_one_that_runs_goes_on(program: Program, tmp_path: Path) -> None:
    program.deploy(worker(options="(preflight=False)"))
    python = an_interpreter(tmp_path / "bin")
    program.start_command([str(python), "app.py"])
    program.wait_report(ready=1)
    shutil.rmtree(tmp_path / "bin")
    program.hup()
    program.wait_report(ready=2)
    assert f"{python} is gone: starting again with the interpreter that runs now" in program.log()


RELEASE = """
import os, hotrestart
VERSION = {version}
os.makedirs("elsewhere", exist_ok=True)
@hotrestart.restartable
def main():
    os.chdir("elsewhere")
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, version=VERSION)
        loop.sleep(None)
main()
"""


@pytest.mark.parametrize("form", [("app.py",), ("-m", "app")], ids=["script", "module"])
def test_h29_a_switched_release_link_takes_effect_from_wherever_the_program_has_gone(
    program: Program, tmp_path: Path, form: tuple[str, ...]
) -> None:
    current = tmp_path / "current"
    for version in (1, 2, 3):
        program.deploy(RELEASE.format(version=version), f"release{version}/app.py")
    current.symlink_to(program.folder / "release1")
    program.start(*form, cwd=current)
    program.wait_report(ready=1, version=1)
    for version in (2, 3):
        new = tmp_path / "new"
        new.symlink_to(program.folder / f"release{version}")
        new.replace(current)
        shutil.rmtree(program.folder / f"release{version - 1}")  # the old generation stands in a deleted directory
        program.hup()
        program.wait_report(ready=version, version=version)
    assert program.stop() == 0


EDITING = """
import os, subprocess, sys
OVERWRITE
os.environ["PATH"] = "/opt/app/bin:" + os.environ["PATH"]
import hotrestart
os.environ["ADDED"] = "by the program"
os.environ["CHANGED"] = "by the program"
secret = os.environ.pop("SECRET")
seen = {name: os.environb[name.encode()].hex() for name in ("PATH", "BYTES", "BIG", "EMPTY")}
environment = subprocess.run(["env", "-0"], stdout=subprocess.PIPE, check=True).stdout
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, seen=seen, secret=secret, leaked=b"HOTRESTART" in environment,
               found=sorted(hotrestart.command.first.env))
        loop.sleep(None)
main()
"""

OVERWRITE = """
import ctypes  # as setproctitle does: a title where the environment was
address = int(open("/proc/self/stat").read().rpartition(")")[2].split()[47])
size = len(open("/proc/self/environ", "rb").read())
ctypes.memmove(address, b"a title".ljust(size, b"\\0"), size)
assert open("/proc/self/environ", "rb").read(7) == b"a title"
"""


@pytest.mark.parametrize("overwrite", ["", OVERWRITE], ids=["", "overwritten by a title"])
def test_h30_every_generation_gets_the_environment_of_the_first(program: Program, overwrite: str) -> None:
    # With a title over it the first environment can be known only as far as os.environ still says it.
    source = EDITING.replace("OVERWRITE", overwrite)
    if overwrite:
        source = source.replace('os.environ["PATH"] = "/opt/app/bin:" + os.environ["PATH"]\nimport hotrestart', "")
        source = source.replace('os.environ["ADDED"]', 'import hotrestart\nos.environ["ADDED"]')
    program.deploy(source)
    environment = {
        "SECRET": "s3cret",
        "CHANGED": "",
        "EMPTY": "",
        "BIG": "x" * 1000,
        "BYTES": os.fsdecode(b"\xff\xfe="),
    }
    program.start(env=environment)
    for generation in (1, 2):
        program.wait_report(ready=generation)
        program.hup()
    program.wait_report(ready=3)
    assert program.stop() == 0
    first, *others = program.reports()
    assert first["secret"] == "s3cret"
    assert first["leaked"] is False
    assert first["seen"]["BYTES"] == b"\xff\xfe=".hex()
    assert others == [{**first, "ready": generation} for generation in (2, 3)]


LARGE = """
import os, hotrestart
generation = hotrestart.state.generation
BIG, BYTES = os.environ["BIG"], os.environb[b"BYTES"]
given = hotrestart.inherited("state", {})
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=generation, big=len(BIG), bytes=BYTES.hex(), state=len(given.get("text", "")), n=given.get("n"))
        hotrestart.bequeath("state", {"text": "\\u00e4" * 7_000_000, "n": generation})
        loop.sleep(None)
main()
"""


def test_h31_a_state_of_7_mb_and_a_variable_at_the_limit_cross_the_exec(program: Program) -> None:
    program.deploy(LARGE)
    longest = 131_072 - len("BIG=") - 1  # MAX_ARG_STRLEN, with the NUL
    program.start(env={"BIG": "x" * longest, "BYTES": os.fsdecode(b"\xff\xfe")})
    program.wait_report(ready=1, big=longest, bytes="fffe", state=0)
    for generation in (2, 3):
        program.hup()
        program.wait_report(ready=generation, big=longest, bytes="fffe", state=7_000_000, n=generation - 1)
    assert program.stop() == 0
