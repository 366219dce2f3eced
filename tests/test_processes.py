"""Children: started as asked, watched by pid and descriptor, ended for certain; the host's own are left alone."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hotrestart import processes
from hotrestart.errors import HotRestartError
from hotrestart.processes import STATUS_UNKNOWN, Child, spawn
from tests.harness import PATIENCE, clean_environment

pytestmark = pytest.mark.core

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


@pytest.fixture(params=["pidfd", "pipe"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the end of a child is noticed: with and without pidfd."""
    if request.param == "pipe":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("no pidfd here")
    return str(request.param)


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() == before


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


class Start:
    """Starts Python children and ends them with the test."""

    def __init__(self) -> None:
        self._started: list[tuple[Child, int]] = []

    def __call__(self, code: str, *arguments: str, env: dict[str, str] | None = None, **options: Any) -> Child:
        output, output_end = os.pipe()
        try:
            child = spawn(
                [sys.executable, "-c", code, *arguments],
                env=clean_environment() if env is None else env,
                redirect={1: output_end, **options.pop("redirect", {})},
                **options,
            )
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(output_end)
        self._started.append((child, output))
        return child

    def line(self, child: Child) -> str:
        """The next line the child prints."""
        output = next(output for each, output in self._started if each is child)
        text = b""
        while not text.endswith(b"\n"):
            more = os.read(output, 1)
            if not more:
                break
            text += more
        return text.decode().strip()

    def close(self) -> None:
        for child, output in self._started:
            os.close(output)
            child.kill()


@pytest.fixture
def start() -> Iterator[Start]:
    each = Start()
    yield each
    each.close()


def is_readable(file: int | Child, timeout: float = 0) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_is_the_child_s(start: Start, way: str, code: int) -> None:
    child = start(f"raise SystemExit({code})")
    assert child.wait(PATIENCE) == code
    assert child.exit_code == child.poll() == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGABRT])
def test_the_exit_code_of_a_killed_child_is_minus_the_signal(start: Start, way: str, number: int) -> None:
    child = start(SLEEP)
    assert start.line(child) == "up"
    child.send_signal(number)
    assert child.wait(PATIENCE) == -number


def test_a_running_child_has_no_exit_code(start: Start, way: str) -> None:
    child = start(SLEEP)
    assert child.poll() is None
    assert child.wait(0) is None
    assert child.wait(0.01) is None
    assert child.exit_code is None


def test_the_descriptor_is_readable_once_the_child_has_ended(start: Start, way: str) -> None:
    child = start(SLEEP)
    assert start.line(child) == "up"
    assert not is_readable(child)
    os.kill(child.pid, signal.SIGKILL)
    assert is_readable(child, PATIENCE)
    assert child.wait(PATIENCE) == -signal.SIGKILL


def test_the_descriptor_does_not_pass_to_other_children(start: Start, way: str) -> None:
    child = start(SLEEP)
    assert not os.get_inheritable(child.fileno())


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="without pidfd the grandchild hides it")
def test_h56_a_grandchild_that_outlives_the_child_does_not_hide_its_end(start: Start) -> None:
    child = start(GRANDCHILD)
    grandchild = int(start.line(child))
    try:
        assert is_readable(child, PATIENCE)
        assert child.wait(PATIENCE) == 3
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_h56_without_pidfd_polling_finds_the_end_behind_a_grandchild(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    child = start(GRANDCHILD)
    grandchild = int(start.line(child))
    try:
        assert child.wait(PATIENCE) == 3
    finally:
        os.kill(grandchild, signal.SIGKILL)


GRANDCHILD = f"""if True:
    import os, subprocess, sys
    other = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], close_fds=False, stdout=2)
    print(other.pid, flush=True)
    os._exit(3)
"""


def test_a_child_that_was_reaped_has_no_descriptor(start: Start, way: str) -> None:
    child = start("pass")
    child.wait(PATIENCE)
    with pytest.raises(HotRestartError, match="reaped"):
        child.fileno()


def test_h45_a_child_that_somebody_else_has_reaped_ended_with_an_unknown_status(start: Start, way: str) -> None:
    child = start("raise SystemExit(7)")
    os.waitpid(child.pid, 0)
    assert child.poll() == STATUS_UNKNOWN
    assert child.exit_code == STATUS_UNKNOWN
    child.send_signal(signal.SIGTERM)
    assert child.stop(0) == STATUS_UNKNOWN


def test_h46_a_signal_to_a_child_that_has_ended_goes_nowhere(start: Start, way: str) -> None:
    """Neither to a zombie nor to whoever has got the pid."""
    child = start("pass")
    assert is_readable(child, PATIENCE)
    child.send_signal(signal.SIGTERM)
    assert child.wait(PATIENCE) == 0
    child.send_signal(signal.SIGTERM)
    child.kill()
    assert child.exit_code == 0


def test_stop_lets_a_child_end_by_itself(start: Start, way: str) -> None:
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); print('up', flush=True)\n"
    child = start(code + "time.sleep(600)")
    assert start.line(child) == "up"
    assert child.stop(PATIENCE) == 5


def test_stop_kills_a_child_that_ignores_term(start: Start, way: str) -> None:
    child = start(DEAF)
    assert start.line(child) == "up"
    assert child.stop(0.05) == -signal.SIGKILL


def test_h46_stop_ends_a_stopped_child_with_its_own_handler(start: Start, way: str) -> None:
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); print('up', flush=True)\n"
    child = start(code + "time.sleep(600)")
    assert start.line(child) == "up"
    os.kill(child.pid, signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    assert child.stop(PATIENCE) == 5


def test_stop_kills_a_stopped_child_that_ignores_term(start: Start, way: str) -> None:
    child = start(DEAF)
    assert start.line(child) == "up"
    os.kill(child.pid, signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    assert child.stop(0.05) == -signal.SIGKILL


def test_a_child_that_ended_before_stop_keeps_its_exit_code(start: Start, way: str) -> None:
    child = start("raise SystemExit(4)")
    assert is_readable(child, PATIENCE)
    assert child.stop(0) == 4


def test_the_environment_is_exactly_what_was_given(start: Start) -> None:
    child = start(
        "import json, os; print(json.dumps(dict(os.environ)))", env={"A": "1", "B": "ä\n", "LC_ALL": "C.UTF-8"}
    )
    assert json.loads(start.line(child)) == {"A": "1", "B": "ä\n", "LC_ALL": "C.UTF-8"}


TELL = "import json, os, sys; print(json.dumps([os.getcwd(), os.environ.get('LISTEN_PID'), os.getpid(), sys.argv]))"


def test_the_directory_is_the_one_asked_for(start: Start, tmp_path: Path) -> None:
    child = start(TELL, "ä", "-x", "", cwd=str(tmp_path))
    cwd, _, pid, argv = json.loads(start.line(child))
    assert (cwd, argv) == (str(tmp_path), ["-c", "ä", "-x", ""])
    assert pid == child.pid


def test_without_a_directory_it_is_ours(start: Start) -> None:
    assert json.loads(start.line(start(TELL)))[0] == os.getcwd()


@pytest.mark.parametrize("cwd", [None, "/"])
def test_listen_pid_is_the_child_s_own(start: Start, cwd: str | None) -> None:
    child = start(TELL, env=clean_environment(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1"), cwd=cwd)
    assert json.loads(start.line(child))[1] == str(child.pid)


def test_without_listen_pid_there_is_none(start: Start) -> None:
    child = start(TELL, cwd="/")
    assert json.loads(start.line(child))[1] is None


@pytest.mark.parametrize("cwd", [None, "/"])
def test_only_what_is_kept_is_inherited(start: Start, way: str, cwd: str | None) -> None:
    kept, closed = os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_RDONLY)
    try:
        code = """if True:
            import os, sys
            numbers = [int(each) for each in sys.argv[1:]]
            def is_open(fd):
                try:
                    return bool(os.fstat(fd))
                except OSError:
                    return False
            print([is_open(fd) for fd in numbers])
        """
        child = start(code, str(kept), str(closed), keep=[kept, kept], cwd=cwd)
        assert start.line(child) == "[True, False]"
        assert not os.get_inheritable(kept)
    finally:
        os.close(kept)
        os.close(closed)


def test_standard_streams_can_be_redirected(start: Start) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"to be read")
    os.close(writer)
    try:
        child = start("import sys; print(sys.stdin.read())", redirect={0: reader})
        assert start.line(child) == "to be read"
    finally:
        os.close(reader)


@pytest.mark.parametrize("cwd", [None, "/"])
def test_the_signal_mask_is_the_one_asked_for(start: Start, cwd: str | None) -> None:
    code = "import signal; print(sorted(int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        assert start.line(start(code, cwd=cwd)) == "[]"
        assert start.line(start(code, blocked=[signal.SIGHUP], cwd=cwd)) == f"[{int(signal.SIGHUP)}]"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_handlers_of_ours_are_no_handlers_there(start: Start) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        child = start(SLEEP)
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("options", [{}, {"cwd": "/"}])
@pytest.mark.parametrize("name", ["missing", "not executable"])
def test_a_command_that_cannot_be_started_is_an_error(
    way: str, name: str, options: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / name
    if name != "missing":
        path.write_text("")
    with pytest.raises(OSError, match=name):
        spawn([str(path), "-c", "pass"], env={}, **options)


@pytest.mark.parametrize("cwd", [None, "/"])
def test_a_command_need_not_be_a_python(start: Start, cwd: str | None) -> None:
    output, output_end = os.pipe()
    try:
        child = spawn(["/bin/sh", "-c", 'pwd; echo "$0 $1"', "a b", ""], env={}, cwd=cwd, redirect={1: output_end})
        os.close(output_end)
        assert child.wait(PATIENCE) == 0
        assert os.read(output, 1000).decode() == f"{cwd or os.getcwd()}\na b \n"
    finally:
        os.close(output)


def test_with_a_group_of_its_own_all_of_it_ends_with_the_child(start: Start, way: str) -> None:
    child = start(GRANDCHILD.replace("stdout=2", ""), own_group=True)
    assert int(start.line(child)) > 0
    assert child.wait(PATIENCE) == 3
    while start.line(child):  # until the end of the pipe that the grandchild held
        pass


def test_without_a_group_of_its_own_it_is_in_ours(start: Start) -> None:
    child = start("import os; print(os.getpgrp())")
    assert start.line(child) == str(os.getpgrp())


def test_a_descriptor_that_is_not_open_cannot_be_kept(way: str) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        spawn([sys.executable, "-c", "pass"], env={}, keep=[10**5])


def test_threads_can_start_children_at_once(way: str) -> None:
    codes: list[int | None] = []

    def start_some() -> None:
        for code in range(5):
            child = spawn([sys.executable, "-I", "-S", "-c", f"raise SystemExit({code})"], env={})
            codes.append(child.wait(PATIENCE))

    threads = [threading.Thread(target=start_some) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == sorted([0, 1, 2, 3, 4] * 3)  # type: ignore[type-var]


def test_h45_the_host_s_own_children_keep_their_exit_codes(start: Start, way: str) -> None:
    theirs = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    ours = start("raise SystemExit(3)")
    try:
        os.waitid(os.P_PID, theirs.pid, os.WEXITED | os.WNOWAIT)
        assert ours.wait(PATIENCE) == 3
        ours.stop(0)
        assert theirs.wait(PATIENCE) == 7
    finally:
        theirs.wait()


def test_sigchld_is_left_alone(start: Start) -> None:
    calls: list[int] = []

    def handler(number: int, _frame: object) -> None:
        calls.append(number)

    before = signal.signal(signal.SIGCHLD, handler)
    try:
        start("pass").wait(PATIENCE)
        assert signal.getsignal(signal.SIGCHLD) is handler
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_child_of_a_program_that_ignores_sigchld_is_noticed(start: Start, way: str) -> None:
    """The kernel reaps it then, and tells nobody its status."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        child = start("raise SystemExit(3)")
        assert child.wait(PATIENCE) == STATUS_UNKNOWN
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_an_old_kernel_has_no_pidfd(monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    def refuse(_pid: int, _flags: int = 0) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    assert not processes.has_pidfd()
    child = start("raise SystemExit(2)")
    assert is_readable(child, PATIENCE)
    assert child.wait(PATIENCE) == 2
