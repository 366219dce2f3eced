"""The pid file: whole at every moment, one program's at a time, of a process that lives, and kept over an exec."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart import pidfile, pids
from hotrestart.errors import PidFileError
from hotrestart.pidfile import PidFile
from tests.harness import CHECKOUT, PATIENCE, Program, clean_environment

pytestmark = pytest.mark.core

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="nothing tells when a process has started")

HOLDER = """
import sys
from hotrestart.pidfile import PidFile
held = PidFile.take(sys.argv[1])
report(taken=True)
sys.stdin.readline() if sys.argv[2:] else __import__("time").sleep(600)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    folder = tmp_path / "run"
    folder.mkdir()
    return str(folder / "app.pid")


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    """A live process that has nothing to do with it."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            # the child runs the interpreter until it has become `sleep`
            wait_until(lambda: b"sleep" in Path(f"/proc/{process.pid}/cmdline").read_bytes() if PROC else True)
            yield process
        finally:
            process.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pidfile, "_PATIENCE", 0.1)


PROC = os.path.isdir("/proc/self")


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def write(path: str, content: bytes | int) -> os.stat_result:
    Path(path).write_bytes(content if isinstance(content, bytes) else b"%d\n" % content)
    return os.stat(path)


def neighbours(path: str) -> list[str]:
    return sorted(os.listdir(os.path.dirname(path)))


@contextlib.contextmanager
def taken(path: str) -> Iterator[PidFile]:
    """Taken, with everything as it should be; removed afterwards."""
    file = PidFile.take(path)
    try:
        assert Path(path).read_bytes() == b"%d\n" % os.getpid()
        assert pidfile.read(path) == os.getpid()
        assert neighbours(path) == [os.path.basename(path)]
        yield file
    finally:
        file.remove()
    assert neighbours(path) == []


def is_refused(path: str, why: str) -> None:
    """Whether `take` fails for this reason, and leaves everything as it is."""
    before = os.lstat(path), neighbours(path)
    with pytest.raises(PidFileError, match=why) as caught:
        PidFile.take(path)
    assert isinstance(caught.value, OSError)
    assert repr(path) in str(caught.value)
    assert (os.lstat(path)[:9], neighbours(path)) == (before[0][:9], before[1])  # but for the time it was read


def as_nobody(function: Callable[[], None]) -> None:
    """Run it in a child of another user; AssertionError if it fails."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresuid(NOBODY, NOBODY, NOBODY)
            function()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def open_to_all() -> Iterator[str]:
    """A folder that others may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield folder


def test_it_has_the_pid_and_nothing_else(path: str) -> None:
    before = os.umask(0o077)
    try:
        with taken(path) as file:
            assert os.stat(path).st_mode & 0o7777 == 0o644
            assert not os.get_inheritable(file.fd)
            assert file.fd > 2
    finally:
        os.umask(before)


def test_a_relative_path_is_meant_where_it_was_given(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(os.path.dirname(path))
    file = PidFile.take("app.pid")
    monkeypatch.chdir("/")
    assert file.path == path
    file.remove()
    assert neighbours(path) == []


# Whose it is


def test_a_live_program_keeps_its_file_until_it_is_killed(path: str, program: Program) -> None:
    program.deploy(HOLDER)
    program.start("app.py", path)
    program.wait_report(taken=True)
    assert pidfile.read(path) == program.pid
    is_refused(path, f"names process {program.pid}, which " + ("runs: .*app.py" if PROC else "lives"))
    program.process.kill()
    program.process.wait()
    assert Path(path).read_bytes() == b"%d\n" % program.pid
    assert pidfile.read(path) is None
    with taken(path):
        pass


def test_a_lock_counts_also_after_the_clock_has_been_set(path: str, program: Program, impatient: None) -> None:
    program.deploy(HOLDER)
    program.start("app.py", path)
    program.wait_report(taken=True)
    os.utime(path, (0, 0))
    assert pidfile.read(path) == program.pid
    is_refused(path, "somebody else has locked it")


def test_one_process_does_not_take_it_twice(path: str) -> None:
    with taken(path):
        is_refused(path, "this one, which has taken it already")
    with taken(path):
        pass


def test_a_program_that_does_not_lock_counts_as_long_as_it_lives(path: str, sleeping: subprocess.Popen[bytes]) -> None:
    write(path, sleeping.pid)
    assert pidfile.read(path) == sleeping.pid
    is_refused(path, f"names process {sleeping.pid}, which " + ("runs: sleep 600$" if PROC else "lives"))
    sleeping.kill()
    sleeping.wait()
    assert pidfile.read(path) is None
    with taken(path):
        pass


@needs_proc
def test_a_process_that_got_the_number_later_does_not_count(path: str, sleeping: subprocess.Popen[bytes]) -> None:
    write(path, sleeping.pid)
    os.utime(path, (time.time() - 10, time.time() - 10))
    assert pidfile.read(path) is None
    with taken(path):
        pass


def test_where_nothing_tells_when_it_started_a_live_process_counts(
    path: str, sleeping: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pids, "_status_of", lambda pid: None)
    write(path, sleeping.pid)
    os.utime(path, (0, 0))
    assert pidfile.read(path) == sleeping.pid
    is_refused(path, f"names process {sleeping.pid}")
    write(path, dead_pid())
    assert pidfile.read(path) is None
    with taken(path):
        pass


@needs_proc
def test_a_zombie_does_not_count(path: str) -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        write(path, process.pid)
        assert pidfile.read(path) is None
        with taken(path):
            pass


@pytest.mark.parametrize("content", [b"", b"\n", b"\0" * 7], ids=["nothing", "newline", "zeros"])
def test_what_a_power_failure_leaves_is_replaced(path: str, content: bytes) -> None:
    write(path, content)
    assert pidfile.read(path) is None
    with taken(path):
        pass


def test_our_own_pid_is_ours_to_take(path: str) -> None:
    """`echo $$ > app.pid; exec python app.py`, and a container in which the numbers begin anew."""
    write(path, os.getpid())
    os.utime(path, (0, 0))
    with taken(path):
        pass


def test_a_lock_that_outlives_the_program_is_told(path: str, impatient: None) -> None:
    write(path, dead_pid())
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert pidfile.read(path) is None
        is_refused(path, "somebody else has locked it.* lslocks")
    with taken(path):
        pass


def test_who_only_looks_does_not_keep_a_program_from_starting(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, dead_pid())
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda seconds: other.close())
        with taken(path):
            assert other.closed


# What is no pid file


@pytest.mark.parametrize(
    "content",
    [b"hello\n", b"-5\n", b"0\n", b"12 13\n", b"1\n2\n", b"9" * 30, b"\xff\x00\x80", b"7" * 10**6, "٣\n".encode()],
    ids=["text", "negative", "zero", "two", "lines", "large", "binary", "huge", "unicode"],
)
def test_what_is_no_pid_is_left_alone(path: str, content: bytes) -> None:
    write(path, content)
    assert pidfile.read(path) is None
    is_refused(path, "no pid file is there")
    assert Path(path).read_bytes() == content


def make_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as each:
        os.chdir(os.path.dirname(path))  # the name of a socket must be short
        each.bind(os.path.basename(path))


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "link", "dangling"])
def test_what_is_no_file_is_left_alone(path: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir("/")
    target = tmp_path / "target"
    if kind == "link":
        target.write_text(f"{dead_pid()}\n")
    {
        "folder": os.mkdir,
        "fifo": os.mkfifo,
        "socket": make_socket,
        "link": lambda path: os.symlink(target, path),
        "dangling": lambda path: os.symlink(target, path),
    }[kind](path)
    before = target.read_text() if kind == "link" else ""
    assert pidfile.read(path) is None
    is_refused(path, "something else is there, which is left alone")
    assert (target.read_text() if target.exists() else "") == before


def test_what_comes_out_of_a_pipe_is_no_pid(path: str) -> None:
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    os.write(fd, b"%d\n" % os.getpid())
    assert pidfile.read(path) is None
    os.close(fd)


def test_a_reader_may_come_over_a_link(path: str) -> None:
    with taken(path):
        other = f"{path}.link"
        os.symlink(path, other)
        assert pidfile.read(other) == os.getpid()
        os.unlink(other)


def test_no_file_names_nobody(path: str) -> None:
    for each in (path, f"{path}/x", "", "a\0b", os.path.dirname(path), "/dev/null", "/dev/tty"):
        assert pidfile.read(each) is None


@given(st.integers(1, 2**31 - 1))
def test_a_pid_is_read_as_it_was_written(pid: int) -> None:
    assert pidfile._named(b"%d\n" % pid) == pid
    assert pidfile._named(b" %d" % pid) == pid


@given(st.binary(max_size=80) | st.text(alphabet="0123456789 \n-+", max_size=80).map(str.encode))
def test_any_content_names_a_possible_pid_or_none(content: bytes) -> None:
    named = pidfile._named(content)
    assert named is None or (0 < named < 2**31 and b"%d" % named in content)


@given(st.binary(max_size=15), st.sampled_from([b"S", b"R", b"Z"]), st.integers(0, 2**63))
def test_no_name_of_a_process_confuses_its_status(name: bytes, state: bytes, started: int) -> None:
    fields = [b"%d" % number for number in range(4, 22)]
    status = b"17 (" + name + b") " + state + b" " + b" ".join(fields) + b" %d 9 10\n" % started
    assert pids._parsed(status) == (state, started)


@needs_proc
def test_a_command_is_shown_as_one_line(path: str) -> None:
    code = "print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, "\033[2Jä\nx"], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert pids.what_runs(process.pid).endswith(f"{code} ?[2Jä?x")
        process.kill()
    assert pids.what_runs(process.pid) == ""
    assert not pids.is_alive(process.pid)
    assert not pids.is_alive(2**70)


# Where it cannot be written


@pytest.mark.parametrize(
    ("name", "why"), [("no/app.pid", "make the folder"), ("a\0b", "null"), ("file/app.pid", "make the folder")]
)
def test_a_path_that_cannot_be_is_a_clear_error(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PidFileError, match=why) as caught:
        PidFile.take(f"{tmp_path}/{name}")
    assert repr(f"{tmp_path}/{name}") in str(caught.value)


@pytest.mark.parametrize("written", [None, 1], ids=["nothing", "a-part"])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(
    path: str, monkeypatch: pytest.MonkeyPatch, written: int | None
) -> None:
    write(path, dead_pid())

    def full(fd: int, data: bytes) -> int:
        if written is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(PidFileError, match="room"):
        PidFile.take(path)
    assert neighbours(path) == ["app.pid"]


@pytest.mark.parametrize(("call", "there"), [("link", False), ("replace", False), ("replace", True)])
def test_a_file_system_that_refuses_is_a_clear_error(
    path: str, monkeypatch: pytest.MonkeyPatch, call: str, there: bool
) -> None:
    if there:
        write(path, dead_pid())

    def refused(*arguments: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, call, refused)
    with pytest.raises(PidFileError, match="must be able to read it, and to make, link and replace"):
        PidFile.take(path)
    assert neighbours(path) == ["app.pid"] * there


@needs_root
def test_a_folder_of_others_is_a_clear_error(open_to_all: str) -> None:
    path = f"{open_to_all}/app.pid"

    def fails() -> None:
        with pytest.raises(PidFileError, match=f"user {NOBODY} must be able"):
            PidFile.take(path)

    as_nobody(fails)
    assert os.listdir(open_to_all) == []


@needs_root
def test_others_may_read_it(open_to_all: str) -> None:
    path = f"{open_to_all}/app.pid"
    with taken(path) as file:
        pid = os.getpid()

        def reads() -> None:
            assert pidfile.read(path) == pid

        as_nobody(reads)
        os.fchmod(file.fd, 0o600)

        def may_not() -> None:
            with pytest.raises(PidFileError, match="may not be read"):
                pidfile.read(path)

        as_nobody(may_not)


# Removal


def test_a_child_that_was_forked_behind_our_back_does_not_remove_it(path: str) -> None:
    with taken(path) as file:
        file._pid += 1
        file.remove()
        assert neighbours(path) == ["app.pid"]
        file._pid -= 1


def test_a_file_of_a_successor_stays(path: str) -> None:
    file = PidFile.take(path)
    os.unlink(path)
    write(path, 1)
    file.remove()
    assert Path(path).read_bytes() == b"1\n"


def test_removing_is_done_once(path: str) -> None:
    file = PidFile.take(path)
    file.remove()
    assert file.fd == -1
    write(path, 1)
    file.remove()
    file.close()
    assert neighbours(path) == ["app.pid"]


def test_letting_go_leaves_the_file_and_frees_it(path: str) -> None:
    file = PidFile.take(path)
    file.close()
    assert Path(path).read_bytes() == b"%d\n" % os.getpid()
    with taken(path):
        file.remove()
        assert neighbours(path) == ["app.pid"]


@needs_root
def test_who_has_dropped_privileges_leaves_no_pid_behind(open_to_all: str) -> None:
    path = f"{open_to_all}/app.pid"
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            file = PidFile.take(path)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            file.remove()
            status = 0
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert Path(path).read_bytes() == b""
    with taken(path):
        pass


def test_a_descriptor_that_is_another_file_by_now_is_not_touched(path: str, tmp_path: Path) -> None:
    file = PidFile.take(path)
    with (tmp_path / "precious").open("w+") as precious:
        precious.write("precious")
        precious.flush()
        number = file.fd
        os.dup2(precious.fileno(), number)
        file.remove()
        file.close()
        assert os.pread(number, 8, 0) == b"precious"
        os.close(number)
    assert neighbours(path) == ["app.pid"]


# Children


def test_a_forked_child_neither_holds_nor_removes_it(path: str, program: Program) -> None:
    program.deploy("""
import os, sys, time
from hotrestart.pidfile import PidFile
file = PidFile.take(sys.argv[1])
fd = file.fd
reader, writer = os.pipe()
if os.fork() == 0:
    os.close(writer)
    file.remove()
    report(child=os.getpid(), fd=file.fd, is_open=os.path.exists(f"/dev/fd/{fd}"))
    os.read(reader, 1)
    os._exit(0)
os.close(reader)
time.sleep(600)
""")
    program.start("app.py", path)
    program.wait_report(count=1)
    [report] = program.reports()
    child = report["child"]
    assert report == {"child": child, "fd": -1, "is_open": False}
    assert pidfile.read(path) == program.pid
    os.kill(program.pid, signal.SIGSTOP)  # the child ends with the pipe, so it has to outlive the test of its lock
    is_refused(path, f"names process {program.pid}")
    if PROC:
        folders = [Path(f"/proc/{pid}/fd") for pid in (program.pid, child)]
        open_files = [[os.readlink(fd) for fd in folder.iterdir()] for folder in folders]
        assert [files.count(path) for files in open_files] == [1, 0]


# Several at the same moment

STARTER = """
import os, sys
from hotrestart.errors import PidFileError
from hotrestart.pidfile import PidFile
print("here", flush=True)
sys.stdin.readline()
try:
    file = PidFile.take(sys.argv[1])
except PidFileError as error:
    print("refused", error, flush=True)
else:
    print("taken", os.getpid(), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("there", ["nothing", "dead", "empty", "recycled"])
def test_of_many_that_start_at_the_same_moment_one_wins(path: str, there: str) -> None:
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, path], stdin=-1, stdout=-1, env=clean_environment(), text=True, bufsize=1
        )
        for _ in range(8)
    ]
    try:
        for each in crowd:
            assert each.stdout.readline() == "here\n"
        if there != "nothing":
            write(path, {"dead": dead_pid(), "empty": b"", "recycled": crowd[0].pid}[there])
            os.utime(path, (0, 0))
        for each in crowd:
            each.stdin.write("\n")
        said = [each.stdout.readline() for each in crowd]
        winners = [each.pid for each, line in zip(crowd, said, strict=True) if line == f"taken {each.pid}\n"]
        assert len(winners) == 1, said
        assert pidfile.read(path) == winners[0]
        assert all(f"names process {winners[0]}, which" in line for line in said if "refused" in line), said
        assert neighbours(path) == ["app.pid"]
    finally:
        for each in crowd:
            each.kill()
            each.communicate()


TURNS = """
import os, random, sys, time
from hotrestart.errors import PidFileError
from hotrestart.pidfile import PidFile
path, done = sys.argv[1], 0
deadline = time.monotonic() + 60
while done < 30 and time.monotonic() < deadline:
    try:
        file = PidFile.take(path)
    except PidFileError:
        continue
    alone = os.open(path + ".alone", os.O_CREAT | os.O_EXCL)
    assert open(path).read() == f"{os.getpid()}\\n"
    done += 1
    os.close(alone)
    os.unlink(path + ".alone")
    random.choice([file.remove, file.remove, file.close])()
print(done)
"""


def test_taking_turns_nobody_has_it_with_another_and_nobody_sees_half_a_file(path: str) -> None:
    crowd = [
        subprocess.Popen([sys.executable, "-c", TURNS, path], stdout=-1, env=clean_environment(), text=True)
        for _ in range(4)
    ]
    seen = set()
    try:
        while any(each.poll() is None for each in crowd):
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                seen.add(file.read())
            assert pidfile.read(path) in (None, *(each.pid for each in crowd))
        assert [each.returncode for each in crowd] == [0] * 4
    finally:
        for each in crowd:
            each.kill()
        printed = [each.communicate()[0] for each in crowd]
    assert printed == ["30\n"] * 4
    assert seen <= {b"%d\n" % each.pid for each in crowd}
    assert set(neighbours(path)) <= {"app.pid"}


# Over an exec

GENERATIONS = """
import json, os, sys, time
from hotrestart.pidfile import PidFile
path, document = sys.argv[1], json.loads(sys.argv[2])
file = PidFile.of(document) if document else PidFile.take(path)
assert file is not None and not os.get_inheritable(file.fd)
number = int(sys.argv[3])
report(generation=number, fd=file.fd, pid=os.getpid())
if number < 8:
    os.set_inheritable(file.fd, True)
    document = json.dumps(file.as_document())
    os.execv(sys.executable, [sys.executable, sys.argv[0], path, document, str(number + 1)])
sys.stdin.readline()
time.sleep(600)
"""


def test_it_is_kept_over_an_exec_without_a_gap(path: str, program: Program) -> None:
    program.deploy(GENERATIONS)
    program.start("app.py", path, "null", "1")
    program.wait_report(generation=1)
    inode = os.stat(path).st_ino
    while not program.reports(generation=8):
        assert program.process.poll() is None, program.log()
        assert pidfile.read(path) == program.pid
        with open(path) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert {each["pid"] for each in program.reports()} == {program.pid}
    assert len({each["fd"] for each in program.reports()}) == 1
    assert os.stat(path).st_ino == inode
    assert neighbours(path) == ["app.pid"]
    assert len([each for each in program.fds() if "app.pid" in each]) == 1
    is_refused(path, f"names process {program.pid}")


def handed_over(file: PidFile) -> dict[str, object]:
    """What the next generation finds: the descriptor, and nothing in the memory of this module."""
    document = file.as_document()
    os.set_inheritable(file.fd, True)
    pidfile.held.remove(file)
    return document


def test_after_an_exec_it_is_the_same_file(path: str) -> None:
    document = handed_over(PidFile.take(path))
    inode = os.stat(path).st_ino
    file = PidFile.of(document)
    assert file is not None
    assert (file.path, file.fd, os.stat(path).st_ino) == (path, document["fd"], inode)
    assert not os.get_inheritable(file.fd)
    file.remove()
    assert neighbours(path) == []


@pytest.mark.parametrize("what", ["removed", "overwritten", "replaced", "closed", "reused", "unlocked"])
def test_after_an_exec_it_is_written_again(path: str, what: str, caplog: pytest.LogCaptureFixture) -> None:
    document = handed_over(PidFile.take(path))
    number = document["fd"]
    assert isinstance(number, int)
    if what == "removed":
        os.unlink(path)
    elif what == "overwritten":
        write(path, dead_pid())
    elif what == "replaced":
        write(f"{path}.new", dead_pid())
        os.replace(f"{path}.new", path)
    elif what == "unlocked":
        fcntl.flock(number, fcntl.LOCK_UN)
    else:
        os.close(number)
    with open("/dev/null") as null:
        if what == "reused":
            os.dup2(null.fileno(), number)
        file = PidFile.of(document)
        if what == "reused":
            os.close(number)  # it is not the pid file's: nobody has closed it
    assert file is not None
    assert Path(path).read_bytes() == b"%d\n" % os.getpid()
    with open(path) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.remove()
    assert neighbours(path) == []
    assert caplog.records == []


@needs_root
def test_after_an_exec_it_is_kept_by_who_may_not_see_it_any_more(open_to_all: str) -> None:
    path = f"{open_to_all}/app.pid"
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            document = handed_over(PidFile.take(path))
            os.chmod(open_to_all, 0o700)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            file = PidFile.of(document)
            status = 0 if file is not None and file.fd == document["fd"] else 2
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_after_an_exec_a_file_of_somebody_else_is_left_to_him(
    path: str, sleeping: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    document = handed_over(PidFile.take(path))
    os.unlink(path)
    write(path, sleeping.pid)
    assert PidFile.of(document) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"names process {sleeping.pid}" in caplog.text
    assert Path(path).read_bytes() == b"%d\n" % sleeping.pid


def test_taking_it_imports_nothing_heavy(path: str) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(CHECKOUT)!r})
from hotrestart.pidfile import PidFile
PidFile.of(PidFile.take({path!r}).as_document()).remove()
print(*sorted({{"logging", "typing", "socket", "subprocess", "tempfile", "re", "enum", "signal"}} & set(sys.modules)))
"""
    command = [sys.executable, "-I", "-S", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"
