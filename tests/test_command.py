"""The command: what the first generation was given, noted as it was and not as the program has made it since."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hotrestart import command
from tests.harness import PATIENCE, clean_environment

pytestmark = pytest.mark.core

TELL = """
import json, os, sys
from hotrestart import command
c = command.first
print(json.dumps({name: getattr(c, name) for name in c.__slots__}))
"""


def run(
    *arguments: str,
    python: str = sys.executable,
    env: dict[str, str] | None = None,
    **popen: Any,
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [python, *arguments],
        env={**clean_environment(), **(env or {})},
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        **popen,
    )


def told(*arguments: str, **options: Any) -> dict[str, Any]:
    """What `command.first` is in a fresh interpreter."""
    done = run(*arguments, **options)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    """A folder with the releases 1 and 2, and the link "current" to 1."""
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "app.py").write_text(TELL)
    (tmp_path / "current").symlink_to("1")
    return tmp_path


def test_the_arguments_are_those_of_the_interpreter_too(tmp_path: Path) -> None:
    found = told("-X", "dev", "-W", "ignore", "-c", TELL, "one", "-two", "ä \n")
    assert found["argv"] == [sys.executable, "-X", "dev", "-W", "ignore", "-c", TELL, "one", "-two", "ä \n"]
    assert found["executable"] == sys.executable


def test_a_module_is_named_as_a_module(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(TELL)
    assert told("-m", "app", "x", cwd=tmp_path)["argv"] == [sys.executable, "-m", "app", "x"]


def test_what_the_program_does_to_sys_argv_plays_no_part() -> None:
    found = told("-c", "import sys; sys.argv[:] = ['gone']" + TELL, "kept")
    assert found["argv"][-1] == "kept"


def test_the_directory_is_the_logical_one(releases: Path) -> None:
    current = str(releases / "current")
    assert told("app.py", cwd=current, env={"PWD": current})["cwd"] == current


@pytest.mark.parametrize("pwd", ["", "current", "/"])
def test_a_pwd_that_is_not_where_we_are_is_not_believed(releases: Path, pwd: str) -> None:
    assert told("app.py", cwd=releases / "current", env={"PWD": pwd})["cwd"] == str(releases / "1")


def test_a_directory_that_is_gone_is_none(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = run(
        "-c",
        "import os; os.rmdir(os.getcwd())\nfrom hotrestart import command\n"
        "assert command.first.cwd is None, command.first.cwd\nassert command.first.is_here()",
        cwd=gone,
        env={"PWD": str(gone)},
    )
    assert done.returncode == 0, done.stderr.decode()


def test_is_here_sees_that_the_release_link_has_moved(releases: Path) -> None:
    code = """if True:
        import os
        from hotrestart import command
        assert command.first.is_here()
        os.unlink("../current")
        assert not command.first.is_here()
        os.symlink("2", "../current")
        assert not command.first.is_here()
        os.chdir(command.first.cwd)
        assert command.first.is_here()
        assert os.getcwd().endswith("2")
    """
    current = str(releases / "current")
    done = run("-c", code, cwd=current, env={"PWD": current})
    assert done.returncode == 0, done.stderr.decode()


def test_the_environment_is_the_first_even_if_it_was_edited_before_the_import() -> None:
    edit = "import os; os.environ['GIVEN'] = 'edited'; os.environ['ADDED'] = '1'; del os.environ['TAKEN']\n"
    env = told("-c", edit + TELL, env={"GIVEN": "as given", "TAKEN": "away"})["env"]
    assert (env["GIVEN"], env["TAKEN"]) == ("as given", "away")
    assert "ADDED" not in env


def test_the_environment_is_kept_byte_by_byte() -> None:
    odd = {"EMPTY": "", "EQUALS": "a=b=", "LINES": "one\ntwo", "BYTES": os.fsdecode(b"\xff\x80")}
    env = told("-c", TELL, env=odd)["env"]
    assert {name: env[name] for name in odd} == odd


def test_of_a_variable_that_is_given_twice_the_first_counts() -> None:
    """As for os.environ and getenv; a shell does not give one twice, an exec may."""
    code = "import ctypes, os, sys\npath = os.fsencode('PYTHONPATH=' + sys.argv[1])\n"
    code += "env = [b'TWICE=first', b'TWICE=second', path, None]\n"
    code += "argv = [os.fsencode(sys.executable), b'-c', os.fsencode(sys.argv[2]), None]\n"
    code += "ctypes.CDLL(None).execve(argv[0], (ctypes.c_char_p * 4)(*argv), (ctypes.c_char_p * 4)(*env))\n"
    assert told("-c", code, str(Path(command.__file__).parent.parent), TELL)["env"]["TWICE"] == "first"


def test_an_empty_environment_stays_empty() -> None:
    root = str(Path(command.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {root!r})" + TELL],
        env={},
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert json.loads(done.stdout)["env"] == {}


def test_the_variable_of_the_inheritance_is_no_part_of_it() -> None:
    done = run("-c", TELL, env={"HOTRESTART": "not:me"})
    assert "HOTRESTART" not in json.loads(done.stdout)["env"]


@pytest.mark.parametrize("title", [b"app: a title\\0", b"app key=value of a title\\0\\0", b"x" * 40])
def test_an_environment_that_a_title_was_written_over_is_not_believed(title: bytes) -> None:
    """As setproctitle does it: /proc/self/environ shows the memory where exec put the variables."""
    overwrite = f"""if True:
        import ctypes
        fields = open("/proc/self/stat").read().rpartition(")")[2].split()
        start, end = int(fields[47]), int(fields[48])
        title = b"{title.decode()}"
        ctypes.memmove(start, title.ljust(end - start, title[-1:]), end - start)
        assert open("/proc/self/environ", "rb").read().startswith(title[:10])
    """
    env = told("-c", overwrite + TELL, env={"GIVEN": "as given"})["env"]
    assert env["GIVEN"] == "as given"
    assert not [name for name in env if "title" in name]


def test_without_proc_the_environment_is_python_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setenv("GIVEN", "now")
    monkeypatch.setenv(command.VARIABLE, "1:2")
    found = command._first_environment()
    assert found["GIVEN"] == "now"
    assert command.VARIABLE not in found


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_what_was_blocked_or_ignored_is_noted(number: int) -> None:
    preparation = f"""if True:
        import os, signal, sys
        signal.signal({int(number)}, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [{int(number)}])
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    """
    found = told("-c", preparation, "-c", TELL)
    assert found["ignored"] == [number]
    assert found["blocked"] == [number]


def test_what_cpython_ignores_by_itself_is_not_noted() -> None:
    found = told("-c", TELL, restore_signals=False)
    assert found["ignored"] == []
    assert found["blocked"] == []


def test_descriptors_that_were_meant_to_be_inherited_are_noted() -> None:
    reader, writer = os.pipe()
    try:
        found = told("-c", "import os; hidden = os.open('/', 0)" + TELL, pass_fds=[writer])
        status = os.fstat(writer)
        assert found["fds"] == {str(writer): [status.st_dev, status.st_ino]}
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("arguments", [[], ["-"], ["-", "x"], ["-u"], ["-W", "ignore", "-"]])
def test_a_program_from_standard_input_cannot_be_restarted(arguments: list[str]) -> None:
    check = b"""if True:
        from hotrestart import command, errors
        try:
            command.first.check()
        except errors.NotRestartableError as error:
            print(error)
    """
    done = run(*arguments, input=check)
    assert b"standard input" in done.stdout, done
    assert b"put it in a file" in done.stdout


def test_a_prompt_cannot_be_restarted() -> None:
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-q", "-i"], env=clean_environment(TERM="dumb"), stdin=slave, stdout=slave, stderr=slave
        )
        os.write(master, b"import hotrestart; hotrestart.command.first.check()\nraise SystemExit(7)\n")
        shown = b""
        while b"NotRestartableError: this program's code came from standard input" not in shown:
            shown += os.read(master, 4096)
        assert process.wait(PATIENCE) == 7
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("form", ["-c", "-m", "script", "folder"])
def test_a_program_from_anywhere_else_can_be_restarted(form: str, tmp_path: Path) -> None:
    check = "import hotrestart; hotrestart.command.first.check()"
    (tmp_path / "app.py").write_text(check)
    (tmp_path / "__main__.py").write_text(check)
    arguments = {"-c": ["-c", check], "-m": ["-m", "app"], "script": ["app.py"], "folder": ["."]}[form]
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()


def test_the_command_tells_what_it_is() -> None:
    assert repr(command.first) == f"<Command {command.first.argv!r} in {command.first.cwd!r}>"


def test_the_command_is_this_process_s() -> None:
    assert told("-c", "import os; print(os.getpid(), file=__import__('sys').stderr)" + TELL)["pid"] > 1
    assert command.first.pid == os.getpid()
