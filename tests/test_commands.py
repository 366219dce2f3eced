"""`restart`, `stop`, `status`, `scale`: each exit status from a real run of each of its causes, and what is printed."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hotrestart.__main__ import main
from tests.asking import COMMAND, OPTIONS, app, ask, ask_json, begin, document_of
from tests.harness import PATIENCE, clean_environment
from tests.rolling.programs import Rolling

pytestmark = pytest.mark.core

both = pytest.mark.parametrize("kind", list(OPTIONS))

HANGS = "import time; time.sleep(600)"
WAITS = "report(waits=True); wait_for('go')"


class Asked(Rolling):
    """A program of either kind."""

    def __init__(self, folder: Path, kind: str) -> None:
        super().__init__(folder)
        self.kind = kind

    def serve(self, options: str = "", **more: str) -> Asked:
        """Start version 1, and wait until it serves."""
        self.deploy_version(1, options, **more)
        self.start()
        self.wait_served(1)
        return self

    def deploy_version(self, version: int, options: str = "", **more: str) -> None:
        self.deploy(app(self.kind, version, options, **more))

    def wait_served(self, generation: int) -> None:
        """Until all of its workers are ready."""
        self.wait_report(ready=generation, count=2 if self.kind == "rolling" else 1)
        if self.kind == "rolling":
            self.wait_log(f"generation {generation} serves")

    def version(self, generation: int) -> object:
        """Of the code that this generation runs."""
        return self.wait_report(ready=generation)["version"]  # it may be told that it serves before it has reported

    def sockets(self) -> int:
        """Descriptors that are sockets: a connection is one more."""
        return sum("socket:" in each for each in self.fds())


@pytest.fixture
def asked(tmp_path: Path, kind: str) -> Iterator[Asked]:
    with Asked(tmp_path / "app", kind) as each:
        yield each


# -- 0, and what is printed -----------------------------------------------------------------------------------------


@both
def test_good_code(asked: Asked) -> None:
    asked.serve()
    asked.deploy_version(2)
    ran = ask("restart", asked.pid)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.fullmatch(r"generation 2 serves after \d+\.\d\d s \(.*load \d.*\)\n", ran.stdout)  # no stages in a pipe
    assert asked.version(2) == 2

    document = ask_json("restart", asked.folder / "app.pid", status=0)
    assert (document["generation"], document["pid"]) == (3, asked.pid)
    asked.wait_report(ready=3)
    ran = ask("restart", asked.pid, "--quiet")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    asked.wait_report(ready=4)


@both
def test_targets(asked: Asked) -> None:
    asked.serve("control='c.sock'")
    for generation, target in enumerate([asked.pid, "app.pid", "c.sock", asked.folder / "c.sock", "./app.pid"], 2):
        assert ask_json("restart", target, cwd=asked.folder, status=0)["generation"] == generation
        assert ask_json("status", target, cwd=asked.folder, status=0)["program"]["pid"] == asked.pid


@both
def test_stop(asked: Asked) -> None:
    asked.serve()
    ran = ask("stop", asked.pid)
    assert asked.process is not None
    assert (ran.returncode, ran.stdout, ran.stderr, asked.process.poll()) == (0, "stopped\n", "", 0)
    assert not (asked.folder / "app.pid").exists()


@both
@pytest.mark.parametrize("how", ["--json", "--quiet"])
def test_stop_in_other_words(asked: Asked, how: str) -> None:
    asked.serve()
    if how == "--json":
        ask_json("stop", asked.pid, status=0)
    else:
        assert ask("stop", asked.pid, how).stdout == ""
    assert asked.process is not None
    assert asked.process.poll() == 0


@both
def test_stages_are_printed_on_a_terminal_as_they_happen(asked: Asked) -> None:
    asked.serve()
    asked.deploy_version(2, top=WAITS)
    mine, its = pty.openpty()
    try:
        with begin("restart", asked.pid, stdout=its) as asking:
            os.close(its)
            first = "preflight" if asked.kind == "in place" else "load"
            seen = b""
            while f"generation 2: {first}\r\n".encode() not in seen:
                seen += os.read(mine, 4096)
            assert not (asked.folder / "go").exists()
            (asked.folder / "go").touch()
            assert asking.wait(PATIENCE) == 0
            assert asking.stderr is not None
            assert asking.stderr.read() == ""
        while chunk := read_terminal(mine):
            seen += chunk
    finally:
        os.close(mine)
    lines = seen.decode().split("\r\n")
    order = ["preflight", "drain", "load", "ready"] if asked.kind == "in place" else ["load", "ready"]
    stages = [line.removeprefix("generation 2: ") for line in lines if ": " in line]
    assert [stage for stage in stages if stage in order] == order
    assert lines[-2].startswith("generation 2 serves after")


def read_terminal(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:  # EIO: nobody has the other end any more
        return b""


# -- 1: the old code still serves -----------------------------------------------------------------------------------

REFUSED = {
    "syntax error": ({"top": "def broken(:"}, "SyntaxError"),
    "exception at import": ({"top": "raise ValueError('no luck')"}, "ValueError: no luck"),
    "module that is missing": ({"top": "import there_is_none"}, "ModuleNotFoundError: No module named 'there_is_none'"),
    "exit at import": ({"top": "raise SystemExit('no port given')"}, "no port given"),
    "hang at import": ({"top": HANGS}, "5 s"),
}
REFUSED_LATE = {
    "worker dies": ({"first": "raise RuntimeError('stillborn')"}, "RuntimeError: stillborn"),
    "worker is never ready": ({"first": "time.sleep(600)", "options": "ready_timeout=1"}, "1 s"),
    "worker dies once it is ready": (
        {"ready": "raise RuntimeError('short-lived')", "options": "soak=30"},
        "RuntimeError: short-lived",
    ),
}
BROKEN = [(kind, name) for kind in OPTIONS for name in REFUSED] + [("rolling", name) for name in REFUSED_LATE]


@pytest.mark.parametrize(("kind", "cause"), BROKEN)
def test_code_that_is_refused(asked: Asked, cause: str) -> None:
    more, reason = {**REFUSED, **REFUSED_LATE}[cause]
    asked.serve("ready_timeout=5" if "hang" in cause else "")
    before = asked.reports(ready=1)
    asked.deploy_version(2, **more)

    ran = ask("restart", asked.pid)
    assert (ran.returncode, ran.stdout) == (1, "")
    lines = ran.stderr.splitlines()
    assert re.fullmatch(r"hotrestart: generation 2 failed at stage \w+: .+", lines[0])
    assert reason in lines[0]
    assert lines[-1] == "the old code still serves"
    assert all(line.startswith("    ") for line in lines[1:-1])
    if ":" in reason:
        assert "    Traceback (most recent call last):" in lines
    quiet = ask("restart", asked.pid, "--quiet")
    assert (quiet.returncode, quiet.stdout) == (1, "")
    assert reason in quiet.stderr

    document = ask_json("restart", asked.pid, status=1)
    assert reason in document["reason"]
    stages = {document["stage"], re.search(r"stage (\w+)", lines[0])[1]}  # type: ignore[index]
    assert len(stages) == 1 or stages == {"ready", "soak"}  # a worker dies once it is ready: are all of them?
    program = ask_json("status", asked.pid, status=0)["program"]
    assert (program["generation"], program["state"], program["last"]["ok"]) == (1, "serving", False)
    assert {each["pid"] for each in program["workers"]} >= {each["pid"] for each in before}
    assert f"last restart: generation {document['generation']} failed" in ask("status", asked.pid).stdout


@pytest.mark.parametrize("kind", ["in place"])
def test_scaling_one_process_is_refused(asked: Asked) -> None:
    asked.serve()
    for json in ((), ("--quiet",)):
        ran = ask("scale", asked.pid, "+1", *json)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert "has one process" in ran.stderr
    assert "has one process" in ask_json("scale", asked.pid, "3", status=1)["reason"]


@pytest.mark.parametrize("kind", ["rolling"])
def test_scaling(asked: Asked) -> None:
    asked.serve()
    ran = ask("scale", asked.pid, "+2")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "4 workers wanted\n", "")
    wait_for_workers(asked, 4)
    assert ask_json("scale", asked.pid, "-1", status=0)["workers"] == 3
    wait_for_workers(asked, 3)
    assert ask_json("scale", asked.pid, "1", status=0)["workers"] == 1
    wait_for_workers(asked, 1)
    for number in ("0", "-1", "2049", "99999999"):
        assert ask_json("scale", asked.pid, number, status=1)["reason"]
    assert ask("scale", asked.pid, "+1", "--quiet").stdout == ""
    wait_for_workers(asked, 2)


def wait_for_workers(asked: Asked, count: int) -> None:
    def are_there() -> bool:
        workers = ask_json("status", asked.pid, status=0)["program"]["workers"]
        return [each["state"] for each in workers] == ["ready"] * count

    asked.wait_until(are_there, f"{count} workers")


# -- 3: nobody there, or not any more -------------------------------------------------------------------------------


@both
def test_a_program_that_is_killed_while_one_waits(asked: Asked) -> None:
    asked.serve()
    asked.deploy_version(2, top=WAITS)
    with begin("restart", asked.pid) as plain, begin("restart", asked.pid, "--json") as machine:
        asked.wait_report(waits=True)
        os.kill(asked.pid, signal.SIGKILL)
        asked.wait_exit()
        stdout, stderr = plain.communicate(timeout=PATIENCE)
        assert (plain.returncode, stdout) == (3, "")
        assert f"process {asked.pid}" in stderr
        stdout, stderr = machine.communicate(timeout=PATIENCE)
        assert stderr == ""
        assert "process" in document_of(stdout, 3)["reason"]
    asked.wait_gone()  # what was on trial too


@both
def test_a_program_that_is_stopped_while_one_waits(asked: Asked) -> None:
    asked.serve()
    asked.deploy_version(2, top=WAITS)
    with begin("restart", asked.pid, "--json") as asking:
        asked.wait_report(waits=True)
        asked.term()
        stdout, _ = asking.communicate(timeout=PATIENCE)
        document = document_of(stdout, 3)
    assert "stop" in document["reason"]
    assert asked.wait_exit() == 0


DIES = {
    "raises": ("raise RuntimeError('stillborn')", "RuntimeError: stillborn"),
    "returns": ("return", "main() has ended before it was ready"),
}


@pytest.mark.parametrize("kind", ["in place"])
@pytest.mark.parametrize("how", list(DIES))
def test_new_code_that_ends_after_the_switch(asked: Asked, how: str) -> None:
    asked.serve()
    line, reason = DIES[how]
    asked.deploy_version(2, first=line)
    ran = ask("restart", asked.pid)
    assert (ran.returncode, ran.stdout) == (3, "")
    assert reason in ran.stderr.splitlines()[0]
    assert "old code still serves" not in ran.stderr
    asked.wait_exit()


@pytest.mark.parametrize("kind", ["in place"])
def test_new_code_that_ends_after_the_switch_in_json(asked: Asked) -> None:
    asked.serve()
    asked.deploy_version(2, first=DIES["raises"][0])
    document = ask_json("restart", asked.pid, status=3)
    assert (document["reason"], document["stage"]) == ("RuntimeError: stillborn", "stop")
    assert "Traceback" in document["detail"]
    asked.wait_exit()


@pytest.fixture
def gone() -> int:
    """The pid of a process that was."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("command", [["restart"], ["stop"], ["status"], ["scale", "+1"]], ids=lambda each: each[0])
def test_nobody_is_there(tmp_path: Path, gone: int, command: list[str]) -> None:
    name, *number = command
    (tmp_path / "stale.pid").write_text(f"{gone}\n")
    (tmp_path / "empty.pid").write_text("")
    (tmp_path / "foreign.pid").write_text("1\n")
    with socket.socket(socket.AF_UNIX) as deserted:
        deserted.bind(str(tmp_path / "deserted.sock"))
    targets = {
        gone: f"there is no process {gone}",
        2**40: "there is no process",
        1: "process 1 has no control socket",
        os.getpid(): "has no control socket: it does not run hotrestart",
        "stale.pid": "no pid file of a program that runs",
        "empty.pid": "no pid file of a program that runs",
        "nothing.pid": "No such file or directory",
        "deserted.sock": "nobody serves the socket",
        ".": "is no socket, and no pid file",
        "/dev/null": "is no socket, and no pid file",
    }
    for target, reason in targets.items():
        assert reason in ask_json(name, target, *number, cwd=tmp_path, status=3)["reason"], target
    for quiet in ((), ("--quiet",)):
        ran = ask(name, gone, *number, *quiet)
        assert (ran.returncode, ran.stdout, ran.stderr) == (3, "", f"hotrestart: there is no process {gone}\n")


@both
@pytest.mark.skipif(os.geteuid() != 0, reason="another user's processes are root's to make")
def test_another_user_s_program(asked: Asked) -> None:
    asked.serve()
    # It imports all it needs before it is nobody: not everybody may look into every home.
    script = """
import os, sys, json, hotrestart.control.client
from hotrestart.__main__ import main
try:
    main(["status", "nothing"])
except SystemExit:
    pass
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", script, "restart", str(asked.pid), "--json"]
    ran = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
    document = document_of(ran.stdout, 3)
    assert ran.returncode == 3
    assert "another user's" in document["reason"] or "it is user 0's" in document["reason"]
    assert ask_json("status", asked.pid, status=0)["program"]["generation"] == 1


# -- 4, and who does not wait to the end ----------------------------------------------------------------------------


@both
def test_the_time_is_over_and_the_restart_happens_all_the_same(asked: Asked) -> None:
    asked.serve()
    asked.deploy_version(2, top=WAITS)
    ran = ask("restart", asked.pid, "--timeout", "0.2")
    assert (ran.returncode, ran.stdout) == (4, "")
    assert ran.stderr == f"hotrestart: no answer from process {asked.pid} within 0.2 s\n"
    assert "within 0.2 s" in ask_json("restart", asked.pid, "--timeout", "0.2", status=4)["reason"]
    program = ask_json("status", asked.pid, status=0)["program"]
    assert (program["state"], program["generation"]) == ("restarting", 1)
    (asked.folder / "go").touch()
    asked.wait_served(2)
    assert asked.version(2) == 2


@both
def test_the_time_is_over_and_the_stop_happens_all_the_same(asked: Asked) -> None:
    asked.serve(last="wait_for('go')")
    ran = ask("stop", asked.pid, "--timeout", "0.2")
    assert (ran.returncode, ran.stdout) == (4, "")
    assert ask_json("stop", asked.pid, "--timeout", "0.2", status=4)["reason"]
    (asked.folder / "go").touch()
    assert asked.wait_exit() == 0


@both
def test_a_program_that_is_suspended_answers_nobody_in_time_and_goes_on_as_asked(asked: Asked) -> None:
    def ask_in_vain(*command: str) -> None:
        name, *number = command
        ran = ask(name, asked.pid, *number, "--timeout", "0.2")
        assert (ran.returncode, ran.stdout) == (4, "")
        assert ran.stderr == f"hotrestart: no answer from process {asked.pid} within 0.2 s\n"
        assert "within 0.2 s" in ask_json(name, asked.pid, *number, "--timeout", "0.2", status=4)["reason"]

    asked.serve()
    asked.deploy_version(2)
    with suspended(asked):
        for command in (["status"], ["scale", "1"], ["restart"]):
            ask_in_vain(*command)
    asked.wait_report(ready=2)
    assert asked.version(2) == 2
    with suspended(asked):
        ask_in_vain("stop")
    assert asked.wait_exit() == 0


@contextmanager
def suspended(asked: Asked) -> Iterator[None]:
    asked.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        asked.send_signal(signal.SIGCONT)


@both
@pytest.mark.parametrize("json", [False, True], ids=["text", "json"])
def test_ctrl_c_ends_the_waiting_and_nothing_else(asked: Asked, json: bool) -> None:
    asked.serve()
    asked.deploy_version(2, top=WAITS)
    with begin("restart", asked.pid, *(["--json"] if json else [])) as asking:
        asked.wait_report(waits=True)
        asking.send_signal(signal.SIGINT)
        stdout, stderr = asking.communicate(timeout=PATIENCE)
    assert asking.returncode == 130
    if json:
        assert stderr == ""
        assert document_of(stdout, 130)["reason"] == "not waiting any longer; the restart goes on"
    else:
        assert (stdout, stderr) == ("", "hotrestart: not waiting any longer; the restart goes on\n")
    (asked.folder / "go").touch()
    asked.wait_served(2)


# -- several at the same time ---------------------------------------------------------------------------------------


@both
def test_two_restarts_at_the_same_time_get_their_own_truth(asked: Asked) -> None:
    asked.serve()
    asked.deploy_version(2, top=f"{WAITS}\nraise ValueError('no luck')")
    with begin("restart", asked.pid, "--json") as first:
        asked.wait_report(waits=True)
        asked.deploy_version(3)
        before = asked.sockets()
        with begin("restart", asked.pid, "--json") as second:
            asked.wait_until(lambda: asked.sockets() > before, "a second connection")
            (asked.folder / "go").touch()
            outcome = document_of(second.communicate(timeout=PATIENCE)[0], 0)
            # In place, code that has changed by the second request is tried at once, and is what both get.
            said = first.communicate(timeout=PATIENCE)[0]
            if asked.kind == "in place" and first.returncode == 0:
                assert document_of(said, 0)["generation"] == outcome["generation"]
            else:
                assert "no luck" in document_of(said, 1)["reason"]
    assert (second.returncode, first.returncode in (0, 1)) == (0, True)
    assert asked.version(outcome["generation"]) == 3
    assert ask_json("status", asked.pid, status=0)["program"]["generation"] == outcome["generation"]


@both
def test_several_restarts_at_the_same_time_with_good_code(asked: Asked) -> None:
    asked.serve()
    asked.deploy_version(2)
    with ExitStack() as stack:
        for each in [stack.enter_context(begin("restart", asked.pid, "--json")) for _ in range(4)]:
            outcome = document_of(each.communicate(timeout=2 * PATIENCE)[0], 0)
            assert asked.version(outcome["generation"]) == 2


# -- status ---------------------------------------------------------------------------------------------------------


@both
def test_the_table(asked: Asked) -> None:
    asked.serve()
    asked.deploy_version(2)
    assert ask("restart", asked.pid).returncode == 0
    lines: list[str] = []

    def is_at_peace() -> bool:  # old workers may be on their way out still
        lines[:] = ask("status", "app.pid", cwd=asked.folder).stdout.splitlines()
        return len(lines) == (7 if asked.kind == "in place" else 8)

    asked.wait_until(is_at_peace, "the table of one generation")
    assert lines[0] == f"{sys.executable} app.py"
    version = ".".join(str(each) for each in sys.version_info[:3])
    about = rf"pid {asked.pid}, {asked.kind}, serving, generation 2, up \d+ .*, Python {version}, hotrestart \S+"
    assert re.fullmatch(about, lines[1])
    assert lines[3].split() == ["worker", "generation", "state", "age", "beats", "memory"]
    state, beats = ("serving", "-") if asked.kind == "in place" else ("ready", r"\d+")
    pids = {str(each["pid"]) for each in asked.reports(ready=2)}
    for line in lines[4:-2]:
        found = re.fullmatch(rf"(\d+) +2 +{state} +\d+ s +{beats} +\d+\.\d MB", line)
        assert found is not None, line
        pids.remove(found[1])
    assert not pids
    assert re.fullmatch(r"last restart: generation 2 serves after \d+\.\d\d s \(.*\)", lines[-1])


# -- wrong usage, help, streams -------------------------------------------------------------------------------------

WRONG = ["", "reload 1", "restart", "restart 1 2", "restart 1 --timeout 0", "restart 1 --timeout nan"]
WRONG += ["restart 1 --timeout 1e9", "restart 1 --timeout soon", "restart 1 --bogus", "scale 1", "scale 1 many"]


@pytest.mark.parametrize("line", WRONG)
def test_wrong_usage(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "usage: python3 -m hotrestart" in shown.err


def test_wrong_usage_of_the_real_thing() -> None:
    assert ask("restart").returncode == 2


@pytest.mark.parametrize("command", ["restart", "stop", "status", "scale"])
def test_help_has_the_statuses_and_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.split("exit status:")[1].split("\n\n")[0].split("\n")[1:]] == [
        *"01234",
        "130",
    ]
    example = re.search(rf"python3 -m hotrestart ({command} .*)", text.split("example:")[1])
    assert example is not None
    assert "TARGET" in text.split("options:")[0]


def test_the_help_of_run_has_the_statuses_and_examples_that_can_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "exit status: 0 after a stop; 1 if" in text
    assert "-- COMMAND" in text.split("options:")[0]
    examples = re.findall(r"python3 -m hotrestart (run .*)", text.split("examples:")[1])
    assert len(examples) == 3
    for example in examples:  # understood as far as a mistake at its end
        options, command = example.split(" -- ")
        assert command
        with pytest.raises(SystemExit) as ended:
            main([*options.split(), "--workers", "0", "--", *command.split()])
        assert ended.value.code == 2
        assert "workers is a number, 1 or more" in capsys.readouterr().err


@both
def test_nobody_reads_and_the_exit_status_is_true_all_the_same(asked: Asked) -> None:
    asked.serve()
    for status in (0, 1):
        for how in ((), ("--json",)):
            reading, writing = os.pipe()
            os.close(reading)
            ran = ask("restart", asked.pid, *how, stdout=writing)
            os.close(writing)
            assert ran.returncode == status
            assert "Broken" not in ran.stderr
            assert "Exception" not in ran.stderr
        asked.deploy("import there_is_none")


@pytest.mark.parametrize("kind", ["in place"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_is_closed(asked: Asked, closed: str) -> None:
    asked.serve()
    asked.deploy("import there_is_none")
    command = ["sh", "-c", f'"$@" {closed}', "sh", *COMMAND]
    for target, status in ((asked.pid, 1), (2**40, 3)):
        ran = subprocess.run(
            [*command, "restart", str(target)], env=clean_environment(), capture_output=True, text=True, check=False
        )
        assert ran.returncode == status
        assert ran.stdout == ""
        assert ("hotrestart: " in ran.stderr) == ("2>" not in closed)


@pytest.mark.parametrize("kind", ["in place"])
def test_a_full_disk(asked: Asked) -> None:
    asked.serve()
    with open("/dev/full", "w") as full:
        ran = ask("restart", asked.pid, stdout=full)
    assert (ran.returncode, ran.stderr) == (0, "hotrestart: standard output: No space left on device\n")


@pytest.mark.parametrize("kind", ["in place"])
def test_a_program_whose_name_is_no_text(asked: Asked) -> None:
    asked.deploy(app("in place"))
    name = os.fsencode(asked.folder) + b"/na\xefve.py"
    os.rename(asked.folder / "app.py", name)
    asked.start(os.fsdecode(name))
    asked.wait_served(1)
    assert ask("status", asked.pid).stdout.startswith(f"{sys.executable} ")
    ask_json("status", asked.pid, status=0)
    assert ask_json("restart", asked.pid, status=0)["generation"] == 2


@both
def test_a_reason_that_is_no_text(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a file whose name is not UTF-8: standard output takes it in no locale but C's."""
    asked.serve()
    asked.deploy_version(2, top=r"raise OSError('caf\udce9')")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:strict")
    ran = ask("restart", asked.pid)
    assert ran.returncode == 1
    assert r"caf\udce9" in ran.stderr
    ran = ask("status", asked.pid)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert r"caf\udce9" in ran.stdout
    assert "Unicode" not in asked.log()


def test_the_folder_for_temporary_files_does_not_matter(tmp_path: Path) -> None:
    """Cron and ssh have another environment than the program; the pid leads to it all the same."""
    with tempfile.TemporaryDirectory(prefix="hot") as other, Asked(tmp_path / "app", "in place") as asked:
        asked.deploy_version(1)
        asked.start(env={"XDG_RUNTIME_DIR": other})
        asked.wait_served(1)
        assert ask_json("restart", asked.pid, status=0)["generation"] == 2
