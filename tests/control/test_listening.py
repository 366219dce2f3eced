"""Where the control socket is, who may get at it, and what happens to names that others have left or taken."""

from __future__ import annotations

import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotrestart.control import whereabouts
from hotrestart.control.listening import Listening
from hotrestart.errors import AddressError
from hotrestart.options import LONGEST_SOCKET_PATH
from tests.harness import in_child

pytestmark = pytest.mark.core

OTHER = 65534  # somebody else
DEAD = 2**22 + 1  # no process has a pid like this


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which ours is made. It has a short name."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder) / "hotrestart"


@pytest.fixture
def place(runtime: Path) -> str:
    """Where our pid leads."""
    return str(runtime / f"{os.getpid()}.sock")


@pytest.fixture
def opened() -> Iterator[list[Listening]]:
    found: list[Listening] = []
    yield found
    for each in found:
        each.close()


def bound(path: str | Path, *, backlog: int = 0) -> socket.socket:
    """A socket at the path; with a backlog it is served."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    if backlog:
        sock.listen(backlog)
    return sock


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def answers(path: str | Path) -> bool:
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.settimeout(1)
        return visitor.connect_ex(str(path)) == 0


# -- folders -----------------------------------------------------------------------------------------------------------


def test_the_order_of_folders() -> None:
    environ = {"XDG_RUNTIME_DIR": "/run/user/7", "TMPDIR": "/var/tmp/"}
    assert whereabouts.folders(7, environ) == [
        "/run/user/7/hotrestart",
        "/run/hotrestart-7",
        "/var/tmp/hotrestart-7",
        "/tmp/hotrestart-7",
    ]
    assert whereabouts.folders(7, {}) == ["/run/hotrestart-7", "/tmp/hotrestart-7"]
    assert whereabouts.folders(7, {"TMPDIR": "/tmp"}) == ["/run/hotrestart-7", "/tmp/hotrestart-7"]


@pytest.mark.parametrize("value", ["", "relative", "./x", "~/x"])
def test_a_relative_folder_is_none(value: str) -> None:
    assert whereabouts.folders(7, {"XDG_RUNTIME_DIR": value, "TMPDIR": value}) == whereabouts.folders(7, {})


def test_whoever_looks_looks_everywhere() -> None:
    theirs, ours = {"XDG_RUNTIME_DIR": "/a"}, {"TMPDIR": "/b"}
    found = whereabouts.candidates(5, 7, ours, theirs)
    assert found[0] == "/run/user/7/hotrestart/5.sock"
    assert {"/a/hotrestart/5.sock", "/b/hotrestart-7/5.sock", "/run/hotrestart-7/5.sock"} < set(found)
    assert len(found) == len(set(found))


def test_the_environment_of_a_process() -> None:
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={"XDG_RUNTIME_DIR": "/x=y", "EMPTY": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert whereabouts.environment_of(child.pid)["XDG_RUNTIME_DIR"] == "/x=y"
        child.communicate()
    assert whereabouts.environment_of(DEAD) == {}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277, 0o777], ids=oct)
def test_modes_do_not_depend_on_the_umask(runtime: Path, tmp_path: Path, opened: list[Listening], umask: int) -> None:
    before = os.umask(umask)
    try:
        opened.append(Listening.open(True))
        opened.append(Listening.open(str(tmp_path / "own.sock")))
    finally:
        os.umask(before)
    assert mode(runtime) == 0o700
    assert mode(opened[0].path) == mode(opened[1].path) == 0o600


def test_a_folder_that_is_ours_alone(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert whereabouts.make_private(str(folder))
    assert whereabouts.make_private(str(folder))
    for wrong in (0o701, 0o710, 0o755, 0o777):
        folder.chmod(wrong)
        assert not whereabouts.make_private(str(folder))
        assert mode(folder) == wrong


def test_what_somebody_may_have_put_there_is_not_used(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch(mode=0o600)
    for name in ("link", "dangling", "file", "not/there"):
        assert not whereabouts.make_private(str(tmp_path / name))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    os.chown(folder, OTHER, OTHER)
    assert not whereabouts.make_private(str(folder))


def test_the_next_folder_is_taken_if_the_first_is_not_ours(runtime: Path, opened: list[Listening]) -> None:
    runtime.mkdir(mode=0o755)
    runtime.chmod(0o755)
    opened.append(Listening.open(True))
    assert opened[0].path in [
        f"{each}/{os.getpid()}.sock" for each in whereabouts.folders(os.geteuid(), os.environ)[1:]
    ]
    assert list(runtime.iterdir()) == []


def test_without_a_folder_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(whereabouts, "folders", lambda *_: [str(tmp_path / "not" / "there")])
    with pytest.raises(AddressError, match="no control socket: there is no folder for it"):
        Listening.open(True)


# -- what is there already ---------------------------------------------------------------------------------------------


def test_it_is_where_the_pid_leads(place: str, opened: list[Listening]) -> None:
    opened.append(Listening.open(True))
    assert opened[0].path == place
    assert opened[0].link == ""
    assert opened[0].is_at_our_place
    assert opened[0].is_as(True)
    assert not opened[0].is_as(False)
    assert not opened[0].is_as("/elsewhere")
    assert not os.get_inheritable(opened[0].fd)
    assert not os.get_blocking(opened[0].fd)
    assert answers(place)
    assert place in whereabouts.candidates(os.getpid(), os.geteuid(), os.environ)


@pytest.mark.parametrize("is_own_path", [True, False], ids=["path", "place"])
def test_a_dead_socket_is_taken_over(place: str, tmp_path: Path, opened: list[Listening], is_own_path: bool) -> None:
    path = str(tmp_path / "own.sock") if is_own_path else place
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    bound(path).close()
    opened.append(Listening.open(path if is_own_path else True))
    assert opened[0].path == path
    assert answers(path)


def test_one_that_is_served_stays_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "own.sock"
    with bound(path, backlog=1):
        for _ in range(4):  # the last ones find a queue that is full
            with pytest.raises(AddressError, match="another program is controlled at") as caught:
                Listening.open(str(path))
            assert str(path) in str(caught.value)
    assert path.exists()


def test_one_that_is_served_at_our_place_is_another_container_s(place: str, opened: list[Listening]) -> None:
    os.makedirs(os.path.dirname(place), mode=0o700)
    with bound(place, backlog=5):
        opened.append(Listening.open(True))
        assert opened[0].path != place
        assert opened[0].is_at_our_place
        assert answers(place)


@pytest.mark.parametrize("kind", ["file", "folder", "fifo"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "own.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(AddressError, match="is there, and is no socket"):
        Listening.open(str(path))
    assert path.exists()
    assert kind != "file" or path.read_text() == "precious"


def test_a_file_at_our_place_is_left_alone(place: str, opened: list[Listening]) -> None:
    os.makedirs(os.path.dirname(place), mode=0o700)
    Path(place).touch()
    opened.append(Listening.open(True))
    assert opened[0].path != place
    assert Path(place).is_file()


def test_a_path_that_is_too_long(tmp_path: Path, opened: list[Listening]) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        just = f"{folder}/" + "x" * (LONGEST_SOCKET_PATH - len(folder) - 1)
        opened.append(Listening.open(just))
        assert answers(just)
        with pytest.raises(AddressError, match=f"{LONGEST_SOCKET_PATH} bytes are the most"):
            Listening.open(just + "x")
        with pytest.raises(AddressError, match="bytes are the most"):
            Listening.open(just[:-3] + "ää")
        opened.pop().close()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_too_long_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: list[Listening]
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    opened.append(Listening.open(True))
    assert not opened[0].path.startswith(str(long))


@pytest.mark.parametrize("path", ["not/there.sock", "file/c.sock"])
def test_a_path_that_cannot_be(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AddressError, match=r"a control socket cannot be at .*: (No such file|Not a directory)"):
        Listening.open(str(tmp_path / path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_relative_path_is_meant_where_it_was_given(
    runtime: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    opened: list[Listening],
) -> None:
    monkeypatch.chdir(tmp_path)
    opened.append(Listening.open("own.sock"))
    monkeypatch.chdir("/")
    assert opened[0].path == str(tmp_path / "own.sock")
    opened.pop().close()
    assert not (tmp_path / "own.sock").exists()


# -- the link ----------------------------------------------------------------------------------------------------------


def test_the_pid_leads_to_a_path_of_one_s_own_too(place: str, tmp_path: Path) -> None:
    each = Listening.open(str(tmp_path / "own.sock"))
    assert each.link == place
    assert os.readlink(place) == each.path
    assert answers(place)
    assert each.is_as(each.path)
    assert not each.is_as(True)
    each.close()
    assert not os.path.lexists(place)
    assert not os.path.lexists(each.path)


@pytest.mark.parametrize("there", ["link", "dangling", "socket"])
def test_a_link_takes_the_place_of_what_the_dead_have_left(
    place: str, tmp_path: Path, opened: list[Listening], there: str
) -> None:
    os.makedirs(os.path.dirname(place), mode=0o700)
    if there == "socket":
        bound(place).close()
    else:
        os.symlink(str(tmp_path) if there == "link" else "/not/there", place)
    opened.append(Listening.open(str(tmp_path / "own.sock")))
    assert os.readlink(place) == opened[0].path


def test_a_pid_that_is_taken_elsewhere_gets_no_link_there(place: str, tmp_path: Path, opened: list[Listening]) -> None:
    os.makedirs(os.path.dirname(place), mode=0o700)
    with bound(place, backlog=5):
        opened.append(Listening.open(str(tmp_path / "own.sock")))
        assert opened[0].link != place
        assert answers(place)


def test_of_two_that_follow_each_other_the_pid_leads_to_the_newer(
    place: str, tmp_path: Path, opened: list[Listening]
) -> None:
    paths: list[bool | str] = [True, str(tmp_path / "one.sock"), str(tmp_path / "two.sock"), True]
    before = Listening.open(True)
    for path in paths[1:]:
        new = Listening.open(path)
        before.close()
        new.be_found()
        found = [
            each for each in whereabouts.candidates(os.getpid(), os.geteuid(), os.environ) if os.path.lexists(each)
        ]
        assert found
        assert all(os.path.realpath(each) == new.path for each in found)
        before = new
    opened.append(before)
    assert place


# -- taking the names away ---------------------------------------------------------------------------------------------


def test_nobody_else_s_name_is_taken_away(place: str, tmp_path: Path) -> None:
    path = tmp_path / "own.sock"
    each = Listening.open(str(path))
    path.unlink()
    os.unlink(place)
    os.symlink("/somebody/else", place)
    with bound(path, backlog=1):
        each.close()
        assert answers(path)
    assert os.readlink(place) == "/somebody/else"
    path.unlink()


def test_names_that_are_gone_are_no_matter(place: str, tmp_path: Path) -> None:
    each = Listening.open(str(tmp_path / "own.sock"))
    os.unlink(each.path)
    os.unlink(place)
    each.close()


def test_a_descriptor_that_is_another_file_by_now_is_not_closed(runtime: Path) -> None:
    each = Listening.open(True)
    with open(os.devnull) as other:
        os.dup2(other.fileno(), each.fd)
    with pytest.raises(OSError, match="another file by now"):
        each.as_document()
    each.close()
    os.fstat(each.fd)
    os.close(each.fd)
    each.close()


def test_what_dead_programs_have_left_is_swept(runtime: Path, opened: list[Listening]) -> None:
    runtime.mkdir(mode=0o700)
    swept = [f"{DEAD}.sock", f"{DEAD + 1}.sock"]
    kept = [f"{os.getppid()}.sock", "note.txt", "x.sock", f"{DEAD}.sock.old", f"{DEAD}.txt"]
    for name in swept + kept:
        bound(runtime / name).close()
    served = bound(runtime / f"{DEAD + 2}.sock", backlog=1)  # of a program in another container
    (runtime / f"{DEAD + 3}.sock").mkdir()
    with served:
        opened.append(Listening.open(True))
        there = set(os.listdir(runtime))
    assert there == {*kept, f"{DEAD + 2}.sock", f"{DEAD + 3}.sock", f"{os.getpid()}.sock"}


def test_a_link_that_a_dead_program_has_left_is_swept(runtime: Path, tmp_path: Path, opened: list[Listening]) -> None:
    runtime.mkdir(mode=0o700)
    (runtime / f"{DEAD}.sock").symlink_to(tmp_path / "gone.sock")
    opened.append(Listening.open(True))
    assert os.listdir(runtime) == [f"{os.getpid()}.sock"]


# -- over an exec ------------------------------------------------------------------------------------------------------


def test_without_descriptors_it_says_so(place: str, tmp_path: Path) -> None:
    """A program that serves goes on, with the control socket that it has."""

    def check() -> None:
        here = Listening.open(True)
        left = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, left))
        with pytest.raises(AddressError, match="Too many open files"):
            Listening.open(str(tmp_path / "c.sock"))
        with pytest.raises(AddressError, match="Too many open files"):
            Listening.open(True)
        assert here.move(str(tmp_path / "c.sock")) is here
        here.be_found()
        here.close()

    assert in_child(check) == 0  # the limit on open files holds for a whole process


def test_a_folder_that_vanishes_has_nothing_to_be_swept(
    runtime: Path, opened: list[Listening], monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(folder: str) -> list[str]:
        raise FileNotFoundError(2, "No such file or directory", folder)

    monkeypatch.setattr(os, "listdir", vanish)
    opened.append(Listening.open(True))


def test_it_is_the_same_after_an_exec(runtime: Path, tmp_path: Path, opened: list[Listening]) -> None:
    for path in (True, str(tmp_path / "own.sock")):
        before = Listening.open(path)
        document = before.as_document()
        os.set_inheritable(before.fd, True)
        after = Listening.of(document)
        assert after.as_document() == document
        assert not os.get_inheritable(after.fd)
        opened.append(after)


def test_after_an_exec_another_file_is_not_it(runtime: Path) -> None:
    each = Listening.open(True)
    document = each.as_document()
    each.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        Listening.of(document)
    fd = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(OSError, match="another file"):
        Listening.of({**document, "fd": fd})
    os.close(fd)
