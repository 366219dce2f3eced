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
from hotrestart.processes import STATUS_UNKNOWN, Child, fork, spawn
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
    way: str, name: str, options: dict[str, Any], tmp_path: Path
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


# --- what can be seen of a child by descriptor


def test_a_child_can_be_watched_until_it_is_reaped(start: Start, way: str) -> None:
    child = start(SLEEP)
    assert child.can_be_watched
    assert (child.pidfd == child.fileno()) == (way == "pidfd")
    assert (child.pidfd == -1) == (way == "pipe")
    child.kill()
    assert (child.can_be_watched, child.pidfd) == (False, -1)


def test_a_child_that_is_closed_goes_on_and_is_reaped_by_nobody(start: Start, way: str) -> None:
    child = start(SLEEP)
    assert start.line(child) == "up"
    child.close()
    assert (child.can_be_watched, child.pidfd, child.poll()) == (False, -1, STATUS_UNKNOWN)
    child.send_signal(signal.SIGKILL)
    child.close()
    os.kill(child.pid, 0)
    assert os.waitpid(child.pid, os.WNOHANG) == (0, 0)
    os.kill(child.pid, signal.SIGKILL)
    assert os.waitpid(child.pid, 0)[0] == child.pid


def test_a_pidfd_that_there_is_already_is_taken(start: Start) -> None:
    child = start(SLEEP)
    if child.pidfd == -1:
        pytest.skip("no pidfd here")
    number = os.dup(child.pidfd)
    other = Child(child.pid, pidfd=number)
    assert other.pidfd == number
    other.send_signal(signal.SIGTERM)
    assert other.wait(PATIENCE) == -signal.SIGTERM
    assert child.poll() == STATUS_UNKNOWN


# --- fork


def test_fork_returns_the_child_to_the_parent_and_none_to_the_child(way: str) -> None:
    answer, answer_end = os.pipe()
    child = fork()
    if child is None:
        os.write(answer_end, str(os.getppid()).encode())
        os._exit(7)
    os.close(answer_end)
    assert os.read(answer, 100) == str(os.getpid()).encode()
    assert is_readable(child, PATIENCE)
    assert child.wait(PATIENCE) == 7
    os.close(answer)


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_the_end_of_a_forked_child_is_seen_when_it_comes_and_not_before(way: str, end: str) -> None:
    told, teller = os.pipe()
    child = fork()
    if child is None:
        os.close(teller)
        os.read(told, 1)
        os._exit(0)
    os.close(told)
    assert not is_readable(child, 0.01)
    if end == "kill":
        os.kill(child.pid, signal.SIGKILL)
    os.close(teller)
    assert is_readable(child, PATIENCE)
    assert child.wait(PATIENCE) == (0 if end == "exit" else -signal.SIGKILL)


def test_a_fork_that_fails_leaves_nothing(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BlockingIOError):
        fork()
    assert len(os.listdir("/proc/self/fd")) == len(before)


# --- fork_worker, in a program of its own: a child of the tests would have all that pytest has


class Run:
    """A program that forks workers: `child(...)` is what they run; what is printed, and how the workers ended."""

    def __init__(self, code: str, *, way: str = "pidfd", returncode: int = 0) -> None:
        start = "import os, sys, signal, atexit, time\nfrom hotrestart.processes import fork_worker\n"
        if way == "pipe":
            start += "os.__dict__.pop('pidfd_open', None)\n"
        done = subprocess.run(
            [sys.executable, "-c", start + code],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == returncode, done.stderr
        self.out, self.err = done.stdout, done.stderr


ENDINGS = {
    "return": ("return", 0, ""),
    "returns something": ("return 5", 0, ""),
    "sys.exit()": ("sys.exit()", 0, ""),
    "sys.exit(3)": ("sys.exit(3)", 3, ""),
    "sys.exit(True)": ("sys.exit(True)", 1, ""),
    "sys.exit('no port')": ("sys.exit('no port')", 1, ""),
    "raises": ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
    "os._exit(9)": ("os._exit(9)", 9, ""),
    "killed": ("os.kill(os.getpid(), 9)", -9, ""),
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_a_worker_s_exit_status(way: str, kind: str) -> None:
    statement, status, shown = ENDINGS[kind]
    code = f"def child():\n    {statement}\nprint(fork_worker(child).wait({PATIENCE}))"
    run = Run(code, way=way)
    assert run.out == f"{status}\n"
    assert shown in run.err
    assert ("Traceback" in run.err) == bool(shown)


def test_the_words_of_an_exit_are_shown() -> None:
    run = Run(f"print(fork_worker(sys.exit, 'no port given').wait({PATIENCE}))")
    assert (run.out, run.err) == ("1\n", "no port given\n")


def test_a_worker_is_given_its_arguments() -> None:
    assert Run(f"fork_worker(print, 'a', 2, sys.argv).wait({PATIENCE})").out == "a 2 ['-c']\n"


def test_an_excepthook_is_asked_to_show_what_a_worker_raises() -> None:
    code = "sys.excepthook = lambda kind, error, trace: print('hook', error)\ndef child(): raise ValueError('why')\n"
    assert Run(code + f"print(fork_worker(child).wait({PATIENCE}))").out == "hook why\n1\n"


def test_a_worker_never_goes_back_to_its_parent_s_frames() -> None:
    code = f"""if True:
        pid = os.getpid()
        def child(how):
            if how: raise SystemExit(how)
        def parent():
            try:
                for how in (0, 3, 'words'):
                    fork_worker(child, how).wait({PATIENCE})
            except BaseException:
                print("caught")
            else:
                print("done", os.getpid() == pid)
            finally:
                print("finally", os.getpid() == pid)
        parent()
    """
    assert Run(code).out == "done True\nfinally True\n"


def test_exit_handlers_run_once_where_they_were_registered() -> None:
    code = f"""if True:
        import weakref
        class Thing: pass
        def tell(what): os.write(1, f"{{what}} {{os.getpid() == pid}}\\n".encode())
        pid = os.getpid()
        atexit.register(tell, "parent's")
        thing = Thing()
        weakref.finalize(thing, tell, "parent's finalizer")
        def child():
            atexit.register(tell, "child's first")
            atexit.register(tell, "child's last")
            child.thing = Thing()
            weakref.finalize(child.thing, tell, "child's finalizer")
        fork_worker(child).wait({PATIENCE})
    """
    assert Run(code).out.splitlines() == [
        "child's finalizer False",
        "child's last False",
        "child's first False",
        "parent's finalizer True",
        "parent's True",
    ]


def test_what_is_buffered_is_written_once() -> None:
    code = f"""if True:
        print("before", end=" ")
        print("before", end=" ", file=sys.stderr)
        def child():
            print("child", end=" ")
        fork_worker(child).wait({PATIENCE})
        print("after")
    """
    run = Run(code)
    assert run.out == "before child after\n"
    assert run.err == "before "


def test_a_handler_of_logging_is_flushed_by_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "log"
    code = f"""if True:
        import logging, logging.handlers
        target = logging.FileHandler({str(path)!r})
        memory = logging.handlers.MemoryHandler(1000, target=target)
        logging.getLogger().addHandler(memory)
        def child():
            logging.warning("from the child")
        fork_worker(child).wait({PATIENCE})
    """
    Run(code)
    assert path.read_text() == "from the child\n"


def test_threads_of_a_worker_are_waited_for() -> None:
    code = f"""if True:
        import threading
        def late():
            time.sleep(0.05)
            print("late")
        fork_worker(lambda: threading.Thread(target=late).start()).wait({PATIENCE})
    """
    assert Run(code).out == "late\n"


def test_without_keep_a_worker_has_all_our_descriptors_and_with_it_only_these() -> None:
    code = f"""if True:
        from hotrestart.fds import open_fds
        one, other = os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_RDONLY)
        def child():
            print(one in open_fds(), other in open_fds(), len(open_fds(3)), all(n in open_fds() for n in range(3)))
        for keep in (None, [one], [], {{other, 1}}):
            fork_worker(child, keep=keep).wait({PATIENCE})
    """
    lines = [line.split() for line in Run(code).out.splitlines()]
    assert [line[:2] for line in lines] == [["True", "True"], ["True", "False"], ["False", "False"], ["False", "True"]]
    assert [line[2] for line in lines[1:]] == ["1", "0", "1"]
    assert {line[3] for line in lines} == {"True"}


def test_signal_handlers_of_ours_are_none_of_a_worker_s() -> None:
    """Not even at its first moment: a TERM that is sent at once ends it."""
    code = f"""if True:
        from hotrestart import signals, state
        before = []
        signal.signal(signal.SIGTERM, lambda *_: (print("its own", flush=True), os._exit(5)))
        def child():
            print(signal.getsignal(signal.SIGHUP) == signal.SIG_DFL, flush=True)
            time.sleep(600)
        with signals.handling():
            for _ in range(20):
                worker = fork_worker(child)
                worker.send_signal(signal.SIGHUP)
                assert worker.wait({PATIENCE}) == -signal.SIGHUP, worker.exit_code
                worker = fork_worker(time.sleep, 600)
                worker.send_signal(signal.SIGTERM)
                assert worker.wait({PATIENCE}) == 5, worker.exit_code
            assert not state.should_stop
            assert signal.getsignal(signal.SIGHUP) not in (signal.SIG_DFL, None)
    """
    Run(code)


NO_STREAMS = {
    "none": "sys.stdout = sys.stderr = None",
    "closed": "sys.stdout.close(); sys.stderr.close()",
    "full": "sys.stdout = open('/dev/full', 'w'); sys.stdout.write('x')",
}


@pytest.mark.parametrize("how", NO_STREAMS)
def test_a_program_without_standard_streams_can_have_workers(how: str) -> None:
    code = f"""if True:
        {NO_STREAMS[how]}
        os._exit(fork_worker(sys.exit, 3).wait({PATIENCE}) + 1)
    """
    Run(code, returncode=4)


def test_a_worker_can_fork_workers() -> None:
    code = f"""if True:
        def grandchild(): sys.exit(4)
        def child(): sys.exit(fork_worker(grandchild).wait({PATIENCE}) + 1)
        print(fork_worker(child).wait({PATIENCE}))
    """
    assert Run(code).out == "5\n"
