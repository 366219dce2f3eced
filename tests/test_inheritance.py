"""The inheritance: what is written is read by the one it is meant for; anything else is ignored with one warning."""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart import command, inheritance
from hotrestart.errors import OptionError
from hotrestart.inheritance import bequeath, inherited

pytestmark = pytest.mark.core

VARIABLE = command.VARIABLE

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture(autouse=True)
def nothing_is_bequeathed() -> Iterator[None]:
    inheritance.forget()
    yield
    inheritance.forget()


@pytest.fixture(params=["memfd", "file", "refused"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the document is put into: a memory file, or an unlinked temporary file where there is none, or where a
    sandbox does not let us have one."""

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    if request.param == "file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif request.param == "refused":
        monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("no memory files here")
    return str(request.param)


def written(document: dict[str, Any]) -> tuple[int, dict[str, str]]:
    fd, value = inheritance.write(document)
    return fd, {VARIABLE: value, "OTHER": "1"}


def raw(data: bytes) -> tuple[int, dict[str, str]]:
    """A file like those that `write` makes, with any content."""
    fd = os.memfd_create("test") if hasattr(os, "memfd_create") else unlinked()
    os.pwrite(fd, data, 0)
    return fd, {VARIABLE: f"{fd}:{os.fstat(fd).st_ino}"}


def unlinked() -> int:
    import tempfile

    fd, path = tempfile.mkstemp()
    os.unlink(path)
    return fd


def is_ignored(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> bool:
    """Whether what the variable names is ignored, as it should be: None, one warning, the variable gone, fds alone."""
    caplog.clear()
    before = os.listdir("/proc/self/fd")
    found = inheritance.read(environ)
    assert VARIABLE not in environ
    assert len(os.listdir("/proc/self/fd")) == len(before)
    if found is None:
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert VARIABLE in caplog.text
    return found is None


def test_what_is_written_is_read(way: str) -> None:
    fd, environ = written({"pid": os.getpid(), "text": "ä\ud800", "list": [1, 2.5, None, {"a": True}]})
    assert not os.get_inheritable(fd)
    assert inheritance.read(environ) == {
        "format": inheritance.FORMAT,
        "pid": os.getpid(),
        "text": "ä\ud800",
        "list": [1, 2.5, None, {"a": True}],
    }
    assert environ == {"OTHER": "1"}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@given(st.dictionaries(st.text(), JSON))
def test_any_document_is_read_as_it_was_written(way: str, document: dict[str, Any]) -> None:
    document = {**document, "format": inheritance.FORMAT, "pid": os.getpid()}
    _, environ = written(document)
    assert inheritance.read(environ) == document


def test_a_large_document_is_read_whole(way: str) -> None:
    _, environ = written({"pid": os.getpid(), "text": "x" * 5_000_000})
    found = inheritance.read(environ)
    assert found is not None
    assert len(found["text"]) == 5_000_000


def test_a_document_for_a_child_is_read_by_the_child(way: str) -> None:
    fd, environ = written({"parent": os.getpid()})
    pid = os.fork()
    if pid == 0:
        os._exit(0 if inheritance.read(environ) is not None else 1)
    os.close(fd)
    assert os.waitpid(pid, 0)[1] == 0


def test_h55_the_offset_of_the_file_plays_no_part(way: str) -> None:
    fd, environ = written({"pid": os.getpid()})
    os.lseek(fd, 0, os.SEEK_END)
    assert inheritance.read(environ) is not None


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memory files here")
def test_h55_the_memory_file_cannot_be_changed_any_more() -> None:
    fd, _ = written({"pid": os.getpid()})
    try:
        for change in (
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 0),
            lambda: os.ftruncate(fd, 10_000),
            lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0),
        ):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(fd)


def test_without_memory_files_no_file_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fd, environ = written({"pid": os.getpid()})
    assert os.fstat(fd).st_nlink == 0
    assert not os.get_inheritable(fd)
    assert os.listdir(tmp_path) == []
    assert inheritance.read(environ) is not None


def test_what_json_cannot_say_leaves_nothing_open(way: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        inheritance.write({"a": object()})


def test_without_the_variable_there_is_nothing_and_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert inheritance.read({"OTHER": "1"}) is None
    assert caplog.records == []


@pytest.mark.parametrize(
    "value",
    ["", ":", "1", "1:", ":1", "-1:1", "x:y", "3 :4", "1.0:2", "0x3:1", "99999:1", "999999999:1", "2:1:1"],
)
def test_a_garbled_variable_is_ignored(value: str, caplog: pytest.LogCaptureFixture) -> None:
    assert is_ignored({VARIABLE: value}, caplog)


@pytest.mark.parametrize("value", ["1" * 5000 + ":1", "1:" + "1" * 5000, "\udcff:1", "\xb2:1"], ids=range(4))
def test_a_variable_that_is_hard_on_int_is_ignored(value: str, caplog: pytest.LogCaptureFixture) -> None:
    assert is_ignored({VARIABLE: value}, caplog)


@given(st.one_of(st.text(), st.builds("{}:{}".format, st.integers(), st.integers())))
def test_any_text_in_the_variable_is_ignored(caplog: pytest.LogCaptureFixture, value: str) -> None:
    assert is_ignored({VARIABLE: value}, caplog)


@given(st.binary())
def test_random_bytes_are_ignored(caplog: pytest.LogCaptureFixture, data: bytes) -> None:
    fd, environ = raw(data)
    assert is_ignored(environ, caplog)
    os.close(fd)  # it was not ours to close


@given(JSON)
def test_random_json_is_ignored(caplog: pytest.LogCaptureFixture, value: Any) -> None:
    fd, environ = raw(json.dumps(value).encode())
    assert is_ignored(environ, caplog)
    os.close(fd)


@pytest.mark.parametrize("length", range(0, 60, 3))
def test_a_document_that_is_cut_off_is_ignored(length: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = json.dumps(
        {"format": inheritance.FORMAT, "pid": os.getpid(), "and": "something more to cut", "length": [0] * 9}
    ).encode()
    assert length < len(whole)
    fd, environ = raw(whole[:length])
    assert is_ignored(environ, caplog)
    os.close(fd)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"NaN", b'{"format": 1} x'])
def test_texts_that_are_hard_on_a_parser_are_ignored(text: bytes, caplog: pytest.LogCaptureFixture) -> None:
    fd, environ = raw(text)
    assert is_ignored(environ, caplog)
    os.close(fd)


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 1},
        {"pid": None},
        {"pid": "me"},
        {"pid": None, "parent": 1},
        {"pid": -1, "parent": os.getpid()},
    ],
    ids=["1", "None", "me", "None of 1", "-1 of this one"],
)
def test_a_document_of_another_version_or_for_another_process_is_ignored(
    change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    document = {"format": inheritance.FORMAT, "pid": os.getpid(), **change}
    fd, environ = raw(json.dumps(document).encode())
    assert is_ignored(environ, caplog)
    os.close(fd)


def test_a_document_that_leaked_to_a_grandchild_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    fd, environ = written({"pid": os.getpid()})
    pid = os.fork()
    if pid == 0:
        os._exit(0 if is_ignored(environ, caplog) and os.fstat(fd) else 1)
    os.close(fd)
    assert os.waitpid(pid, 0)[1] == 0


def test_h55_a_file_that_has_the_number_by_now_is_ignored_and_left_open(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    fd, environ = written({"pid": os.getpid()})
    value = environ[VARIABLE]
    os.close(fd)
    path = tmp_path / "unrelated"
    path.write_text(json.dumps({"format": inheritance.FORMAT, "pid": os.getpid()}))
    other = os.open(path, os.O_RDONLY)
    try:
        assert other == fd
        assert is_ignored({VARIABLE: value}, caplog)
        assert is_ignored({VARIABLE: f"{fd}:{os.fstat(fd).st_ino}"}, caplog), "a file with a name is never ours"
        assert os.fstat(other)
    finally:
        os.close(other)


def test_h55_another_memory_file_that_has_the_number_by_now_is_ignored(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    fd, environ = written({"pid": os.getpid()})
    number, inode = environ[VARIABLE].split(":")
    assert is_ignored({VARIABLE: f"{number}:{int(inode) + 1}"}, caplog)
    os.close(fd)


@pytest.mark.parametrize("kind", ["pipe", "socket", "directory", "device"])
def test_a_descriptor_that_is_no_file_is_ignored_and_left_open(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    opened = {
        "pipe": lambda: os.pipe(),
        "socket": lambda: [each.detach() for each in socket.socketpair()],
        "directory": lambda: [os.open("/", os.O_RDONLY)],
        "device": lambda: [os.open(os.devnull, os.O_RDONLY)],
    }[kind]()
    assert is_ignored({VARIABLE: f"{opened[0]}:{os.fstat(opened[0]).st_ino}"}, caplog)
    for fd in opened:
        os.close(fd)


# bequeath and inherited


def next_generation() -> None:
    """What was bequeathed becomes what is inherited; the descriptors survive under their numbers."""
    state, kept = dict(inheritance.state), dict(inheritance.kept)
    for mapping in (inheritance.state, inheritance.kept):
        mapping.clear()
    inheritance.adopt(state, kept)


@given(st.text(), JSON.filter(lambda value: value is not None))
def test_data_comes_back_as_it_was(name: str, value: Any) -> None:
    inheritance.forget()
    bequeath(name, value)
    assert inherited(name) is None
    next_generation()
    assert inherited(name) == value
    assert inherited(name) == value


def test_data_is_copied_when_it_is_bequeathed() -> None:
    value = [1]
    bequeath("list", value)
    value.append(2)
    next_generation()
    assert inherited("list") == [1]


def test_what_was_not_bequeathed_is_the_default() -> None:
    assert inherited("nothing") is None
    assert inherited("nothing", 5) == 5


def test_the_last_word_counts() -> None:
    with socket.socket() as sock:
        for value in (1, sock, 2, sock, "last"):
            bequeath("x", value)
    next_generation()
    assert inherited("x") == "last"


@pytest.mark.parametrize("value", [1, "socket"])
def test_none_takes_it_back(value: Any) -> None:
    with socket.socket() as sock:
        bequeath("x", sock if value == "socket" else value)
    bequeath("x", None)
    bequeath("never", None)
    next_generation()
    assert inherited("x", "default") == "default"


def test_a_socket_comes_back_as_a_socket_though_its_owner_has_closed_it() -> None:
    left, right = socket.socketpair()
    with right:
        with left:
            left.settimeout(5)
            bequeath("client", left)
        next_generation()
        back = inherited("client")
        with back:
            assert (back.family, back.type, back.gettimeout()) == (left.family, left.type, 0)
            assert not back.get_inheritable()
            back.sendall(b"still there")
            assert right.recv(100) == b"still there"


def test_a_blocking_socket_comes_back_blocking() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        bequeath("x", sock)
    next_generation()
    with inherited("x") as back:
        assert back.family == socket.AF_INET6
        assert back.gettimeout() is None


def test_a_file_comes_back_as_a_descriptor(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        bequeath("file", file)
    next_generation()
    fd = inherited("file")
    assert not os.get_inheritable(fd)
    with os.fdopen(fd, "w") as again:
        again.write("more")
    assert (tmp_path / "file").read_text() == "more"


def test_a_descriptor_is_given_out_once() -> None:
    with open(os.devnull) as file:
        bequeath("file", file)
    next_generation()
    os.close(inherited("file"))
    assert inherited("file", "gone") == "gone"


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, b"bytes", math.nan, [math.inf], {(1, 2): 3}, lambda: None, [object()], 1j],
    ids=lambda value: str(type(value)),
)
def test_a_value_that_cannot_be_handed_on_is_an_error_that_says_what_can(value: Any) -> None:
    with pytest.raises(OptionError, match=r"bequeath\('x'\): .*plain data.*or an open file or socket"):
        bequeath("x", value)


def test_a_value_that_holds_itself_is_an_error() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(OptionError):
        bequeath("x", value)


@pytest.mark.parametrize("name", [None, 5, b"x", ("a",)])
def test_a_name_is_a_string(name: Any) -> None:
    with pytest.raises(OptionError, match="name"):
        bequeath(name, 1)
