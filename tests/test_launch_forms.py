"""Whatever way a program was started, a restart starts it the same way again.

Each program here tells what it was given, spoils as much of it as a program can, and is restarted twice: the second
and the third generation must have been given the same as the first.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipapp
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import CHECKOUT, REPORT, Program, worker

pytestmark = pytest.mark.core

SOURCE = """
import hotrestart, os, signal, sys, threading

VERSION = {version}

def given():
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    numbers = range(1, signal.NSIG)
    return dict(
        argv=sys.argv[:],
        orig_argv=sys.orig_argv[:],
        path0=sys.path[0],
        spec=spec and spec.name,
        flags=list(sys.flags),
        warnoptions=sys.warnoptions[:],
        xoptions=dict(sys._xoptions),
        cwd=os.getcwd(),
        env=dict(os.environ),
        blocked=sorted(int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        ignored=[n for n in numbers if n not in (32, 33) and signal.getsignal(n) == signal.SIG_IGN],
        timers=[signal.getitimer(w) for w in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)],
        executable=sys.executable,
        prefix=sys.prefix,
        base_prefix=sys.base_prefix,
        pid=os.getpid(),
    )

def spoil():
    os.environ["ADDED"] = "by generation %d" % hotrestart.state.generation
    os.environ["PATH"] = "/spoilt:" + os.environ["PATH"]
    os.environ.pop("SECRET", None)
    os.environ["PWD"] = "/"
    signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGWINCH}})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {{signal.SIGUSR1}})
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 3600, 3600)
    signal.setitimer(signal.ITIMER_PROF, 3600)
    sys.path.insert(0, "/spoilt")
    sys.argv[1:] = ["spoilt"]
    {spoil}

GIVEN = given()

@hotrestart.restartable
def main():
    asked_to_end = threading.Event()
    hotrestart.on_stop(asked_to_end.set)
    with hotrestart.worker_loop() as loop:
        spoil()
        report(generation=hotrestart.state.generation, version=VERSION, given=GIVEN)
        while loop.running:
            loop.sleep()
    asked_to_end.wait()  # not to meet the crash of the last test here

if __name__ == "__main__":
    main()
"""

# Gives what it execs a signal mask and an ignored signal of its own: these have to be kept as well.
GIVER = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGRTMIN + 3})
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""

ENVIRONMENT = {"SECRET": "popped by the program", "EMPTY": "", "BYTES": os.fsdecode(b"\xff\xfe=\n")}

Given = dict[str, Any]


def source(version: int, spoil: str = "pass") -> str:
    return SOURCE.format(version=version, spoil=spoil)


def start(program: Program, *command: str, cwd: Path | None = None, **env: str) -> None:
    program.start_command(
        [sys.executable, "-I", "-S", "-c", GIVER, *map(str, command)], cwd=cwd, env={**ENVIRONMENT, **env}
    )


def restart_twice(program: Program, deploy: Callable[[int], object] | None) -> list[Given]:
    """What three generations of a program that has been started were given, with all that must be so in any case."""
    found = [program.wait_report(generation=1, version=1)["given"]]
    for generation in (2, 3):
        if deploy is not None:
            deploy(generation)
        program.hup()
        found.append(program.wait_report(generation=generation, version=generation if deploy else 1)["given"])
    assert {each["pid"] for each in found} == {program.pid}
    assert [each["generation"] for each in program.reports()] == [1, 2, 3]
    assert found[0]["blocked"] == [signal.SIGUSR1, signal.SIGRTMIN + 3]
    assert signal.SIGUSR2 in found[0]["ignored"]
    for each in found:
        assert "HOTRESTART" not in each["env"]
        assert "ADDED" not in each["env"]
        assert each["env"]["SECRET"] == ENVIRONMENT["SECRET"]
        assert each["timers"] == [[0, 0]] * 3
    assert program.children() == []
    assert program.stop() == 0, program.log()
    assert program.log() == ""
    return found


def assert_same(found: list[Given]) -> None:
    first, *later = found
    for each in later:
        assert each == first


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtualenv in which this checkout can be imported, whatever the environment says."""
    return new_venv(tmp_path_factory.mktemp("venv") / "env")


def new_venv(folder: Path, *options: str) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", *options, str(folder)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "checkout.pth").write_text(f"{CHECKOUT}\n")
    return folder


# --- a script, a module, a package, an archive, a string


FORMS: dict[str, tuple[str, list[str]]] = {
    "script": ("app.py", ["app.py"]),
    "script with arguments": ("app.py", ["app.py", "--name", "a b", "-m", "", "-c", "\udcff", "-"]),
    "relative path": ("folder/app.py", ["./folder/app.py"]),
    "interpreter's own options": ("app.py", ["-X", "dev", "-W", "error", "-O", "app.py", "-O"]),
    "more options": ("app.py", ["-Bs", "-Xutf8", "-X", "name=value", "-Wignore::UserWarning", "-u", "app.py"]),
    "-m package": ("package/__main__.py", ["-m", "package", "x"]),
    "-m package.module": ("package/module.py", ["-m", "package.module", "-x"]),
    "-m joined": ("package/module.py", ["-OOmpackage.module"]),
    "directory": ("folder/__main__.py", ["folder", "x"]),
    "the directory it is in": ("__main__.py", ["."]),
    "-E": ("app.py", ["-E", "app.py"]),
    "-I": ("app.py", ["-I", "app.py", "x"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_generation_is_given_what_the_first_was(program: Program, venv: Path, form: str) -> None:
    name, arguments = FORMS[form]
    if name.startswith("package"):
        program.deploy("", "package/__init__.py")
    program.deploy(source(1), name)
    start(program, f"{venv}/bin/python", *arguments)
    found = restart_twice(program, lambda version: program.deploy(source(version), name))
    assert_same(found)
    assert found[0]["prefix"] == str(venv)
    assert found[0]["executable"] == f"{venv}/bin/python"
    assert found[0]["orig_argv"] == [f"{venv}/bin/python", *arguments]
    if "-m" in form:
        assert found[0]["spec"] == ("package.__main__" if form == "-m package" else "package.module")


@pytest.mark.parametrize("shebang", ["#!{python}", "#!{python} -Es", "#!/usr/bin/env python"])
def test_an_executable_script_restarts(program: Program, venv: Path, shebang: str) -> None:
    def deploy(version: int) -> None:
        program.deploy(source(version), "plain.py")
        text = shebang.format(python=f"{venv}/bin/python") + "\n" + (program.folder / "plain.py").read_text()
        new = program.folder / ".new"
        new.write_text(text)
        new.chmod(0o755)
        new.replace(program.folder / "app")

    deploy(1)
    start(program, "./app", "x", PATH=f"{venv}/bin:/usr/bin:/bin")
    found = restart_twice(program, deploy)
    typed = found[0]["orig_argv"].pop(0)
    assert typed == ("python" if "env" in shebang else f"{venv}/bin/python")
    assert [each["orig_argv"].pop(0) for each in found[1:]] == [f"{venv}/bin/python"] * 2
    assert_same(found)
    assert found[0]["prefix"] == str(venv)


def test_a_console_script_restarts(program: Program, venv: Path) -> None:
    program.deploy("", "package/__init__.py")
    program.deploy(source(1), "package/module.py")
    script = program.folder / "serve"
    script.write_text(
        f"#!{venv}/bin/python\nimport re\nimport sys\nfrom package.module import main\n"
        "if __name__ == '__main__':\n    sys.argv[0] = re.sub(r'(-script.pyw|.exe)?$', '', sys.argv[0])\n"
        "    sys.exit(main())\n"
    )
    script.chmod(0o755)
    start(program, str(script), "x", PYTHONPATH=str(program.folder), cwd=Path("/"))
    assert_same(restart_twice(program, lambda version: program.deploy(source(version), "package/module.py")))


@pytest.mark.parametrize("bundled", [False, True], ids=["hotrestart beside it", "hotrestart in it"])
def test_a_zipapp_restarts(program: Program, bundled: bool) -> None:
    content = program.folder / "content"
    content.mkdir()
    if bundled:
        shutil.copytree(CHECKOUT / "hotrestart", content / "hotrestart", ignore=shutil.ignore_patterns("__pycache__"))

    def deploy(version: int) -> None:
        program.deploy(source(version), "content/__main__.py")
        zipapp.create_archive(content, program.folder / "new.pyz", compressed=True)
        (program.folder / "new.pyz").replace(program.folder / "app.pyz")

    deploy(1)
    start(program, sys.executable, "app.pyz", "x", PYTHONPATH="" if bundled else str(CHECKOUT))
    assert_same(restart_twice(program, deploy))


def test_a_program_given_as_a_string_restarts(program: Program) -> None:
    start(program, sys.executable, "-c", REPORT + source(1), "x", "-")
    found = restart_twice(program, None)
    assert_same(found)
    assert found[0]["argv"] == ["-c", "x", "-"]


def test_an_interpreter_started_under_another_name_restarts(program: Program, venv: Path) -> None:
    """`exec -a name python`: the name is lost, the interpreter and its virtualenv are not."""
    program.deploy(source(1))
    run = "import os, sys; os.execv(sys.argv[1], ['shown-in-ps', *sys.argv[2:]])"
    start(program, sys.executable, "-I", "-S", "-c", run, f"{venv}/bin/python", "app.py")
    found = restart_twice(program, lambda version: program.deploy(source(version)))
    first, second, third = found
    assert second == third
    assert first["orig_argv"][0] == "shown-in-ps"
    assert first["executable"] == ""
    assert (first["prefix"], first["path0"]) == (second["prefix"], second["path0"])
    for each in found:
        del each["executable"], each["orig_argv"]
    assert_same(found)


# --- the directory


@pytest.mark.parametrize("form", ["app.py", "./app.py", "-m app", "absolute"])
def test_a_program_that_has_changed_its_directory_restarts_in_the_first(program: Program, form: str) -> None:
    program.deploy(source(1, spoil="os.chdir('/')"))
    start(program, sys.executable, *({"absolute": f"{program.folder}/app.py"}.get(form, form).split()))
    assert_same(restart_twice(program, lambda version: program.deploy(source(version, spoil="os.chdir('/')"))))


@pytest.mark.parametrize("deleted", [False, True], ids=["old release kept", "old release deleted"])
@pytest.mark.parametrize("form", ["app.py", "-m app", "absolute"])
def test_a_switched_release_symlink_is_followed(program: Program, form: str, deleted: bool) -> None:
    current = program.folder / "current"
    release = {version: program.folder.resolve() / f"r{version}" for version in (1, 2, 3)}

    def deploy(version: int) -> None:
        program.deploy(source(version), f"r{version}/app.py")
        new = program.folder / "new"
        new.symlink_to(f"r{version}")
        new.replace(current)
        if deleted and version > 1:
            shutil.rmtree(release[version - 1])

    deploy(1)
    arguments = [str(current / "app.py")] if form == "absolute" else form.split()
    start(program, sys.executable, *arguments, cwd=current)
    found = restart_twice(program, deploy)
    for version, each in enumerate(found, 1):
        assert each.pop("cwd") == str(release[version])
        assert each["env"]["PWD"] == str(current)
        each["path0"] = each["path0"].replace(str(release[version]), "RELEASE")
        each["argv"] = [argument.replace(str(release[version]), "RELEASE") for argument in each["argv"]]
    assert_same(found)


def test_a_pwd_that_names_another_directory_is_not_believed(program: Program) -> None:
    program.deploy(source(1))
    start(program, "/usr/bin/env", "PWD=/tmp", sys.executable, "app.py")
    found = restart_twice(program, lambda version: program.deploy(source(version)))
    assert_same(found)
    assert found[0]["cwd"] == str(program.folder.resolve())


# --- the interpreter


@pytest.mark.parametrize("option", ["--copies", "--symlinks"])
def test_a_deleted_interpreter_comes_back_from_memory_and_says_so(program: Program, option: str) -> None:
    env = new_venv(program.folder / "env", option)
    python = env / "bin" / "python"
    program.deploy(worker(1, "(preflight=False)") + "\n")
    program.python = str(python)
    program.start()
    program.wait_report(ready=1)
    python.unlink()
    for generation in (2, 3):
        program.deploy(f"import sys; report(prefix=sys.prefix)\n{worker(generation, '(preflight=False)')}")
        program.hup()
        program.wait_report(ready=generation, version=generation)
    lines = program.log().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"hotrestart: {python} is gone: starting again with the interpreter that runs now")
    assert program.reports(prefix=str(env)), program.reports()
    assert program.stop() == 0


# --- what cannot be started again


@pytest.mark.parametrize(
    "line", ['"$0" < app.py', '"$0" - x < app.py', '"$0" -X dev -u < app.py', 'cat app.py | "$0" -']
)
@pytest.mark.parametrize("preflight", [True, False])
def test_a_script_from_standard_input_is_refused_at_once(program: Program, line: str, preflight: bool) -> None:
    program.deploy(worker(options=f"(preflight={preflight})"))
    program.start_command(["sh", "-c", line, sys.executable])
    assert program.wait_exit() != 0
    assert "NotRestartableError: this program's code came from standard input" in program.log()
    assert program.reports() == []


def test_a_standard_input_that_is_not_the_script_is_no_reason_to_refuse(program: Program) -> None:
    """`app.py -`: the dash is the program's own."""
    program.deploy(worker(1))
    program.start("app.py", "-")
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2)
    assert program.stop() == 0


@pytest.mark.parametrize("edit", ["sys.argv.clear()", "sys.argv[0] = ''", "del sys.argv[0]"])
@pytest.mark.parametrize("when", ["before main", "in main"])
def test_a_program_may_do_what_it_likes_with_sys_argv(program: Program, edit: str, when: str) -> None:
    text = f"import sys\n{worker(1)}"
    if when == "before main":
        text = text.replace("    main()\n", f"    {edit}\n    main()\n")
    else:
        text = text.replace("        while loop", f"        {edit}\n        while loop")
    program.deploy(text)
    program.start("app.py", "-")
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2)
    assert program.stop() == 0


@pytest.mark.parametrize("preflight", [True, False])
def test_a_script_read_from_a_pipe_by_name_does_not_vanish(program: Program, preflight: bool) -> None:
    """`cat app.py | python /dev/stdin`: refused at once, or at the restart while the old code goes on."""
    program.deploy(worker(1, f"(preflight={preflight})"))
    program.start_command([sys.executable, "-c", PIPED, sys.executable, "app.py"])
    program.wait_until(lambda: program.reports(ready=1) or refused(program), "ready or refused")
    if not refused(program):
        program.hup()
        program.wait_until(lambda: program.reports(ready=2) or refused(program), "restarted or refused")
        assert program.stop() == 0


PIPED = """
import os, sys
read_end, write_end = os.pipe()
os.write(write_end, open(sys.argv[2], "rb").read())
os.close(write_end)
os.dup2(read_end, 0)
os.execv(sys.argv[1], [sys.argv[1], "/dev/stdin"])
"""


def refused(program: Program) -> bool:
    return "NotRestartableError" in program.log() or "restart refused" in program.log()


# --- the interpreter's checks


def test_a_stop_under_dev_mode_ends_well(program: Program, full: bool) -> None:
    program.deploy(worker(1))
    for attempt in range(1, 21 if full else 6):
        program.start("-X", "dev", "-W", "error", "app.py")
        program.wait_report(ready=1, count=attempt)
        assert program.stop() == 0
    assert program.log() == ""
