"""Descriptors: listed, closed, marked, sent and received; however high they are and however many."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart import fds
from hotrestart.errors import DescriptorError
from tests.harness import PATIENCE, in_child

pytestmark = pytest.mark.core

Pair = tuple[socket.socket, socket.socket]


def closes_ranges_at_once() -> bool:
    """Measured several times: a busy machine hiccups."""
    found = False
    for _ in range(20):
        fds._at_once = None
        found = found or fds._closes_ranges_at_once()
    fds._at_once = None
    return found


AT_ONCE = [
    pytest.param(
        True, id="close_range", marks=pytest.mark.skipif(not closes_ranges_at_once(), reason="no close_range(2) here")
    ),
    pytest.param(False, id="loop"),
]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDWR)
    yield fd
    os.close(fd)


@contextlib.contextmanager
def limit_on_open_files(soft: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < soft:
        pytest.skip(f"no more than {before[1]} files can be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def nothing_can_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a chroot without /proc."""

    def refuse(path: Any = ".") -> list[str]:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(os, "listdir", refuse)


@contextlib.contextmanager
def received(sock: socket.socket, **limits: int) -> Iterator[tuple[bytes, list[int]]]:
    data, numbers = fds.recv_fds(sock, **limits)
    try:
        yield data, numbers
    finally:
        for fd in numbers:
            os.close(fd)


class Sender(threading.Thread):
    """Sends beside the receiver: what is in the way of a big message is its own size."""

    def __init__(self, sock: socket.socket, *message: Any) -> None:
        super().__init__()
        self._sock, self._message = sock, message
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            fds.send_fds(self._sock, *self._message)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Sender:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.join()
        assert self.error is None, self.error


def test_open_fds_are_those_that_are_open_in_order(null: int) -> None:
    found = fds.open_fds()
    assert found == sorted(found)
    assert null in found
    assert all(is_open(fd) for fd in found)
    assert found == [fd for fd in range(max(found) + 1) if is_open(fd)]


def test_open_fds_begin_with_the_lowest_asked_for(null: int) -> None:
    assert fds.open_fds(null)[0] == null
    assert null not in fds.open_fds(null + 1)


def test_open_fds_are_found_without_proc(null: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fds.open_fds()
    nothing_can_be_listed(monkeypatch)
    assert fds.open_fds() == expected


@pytest.mark.parametrize("at_once", [*AT_ONCE, pytest.param(None, id="measured")])
def test_a_child_keeps_only_what_it_asked_to_keep(at_once: bool | None) -> None:
    def child() -> None:
        fds._at_once = at_once
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
        kept = {opened[0], opened[7], opened[8], opened[19]}
        fds.close_open_fds(keep=[*kept, 1, -1, 10**6])
        assert {fd for fd in opened if is_open(fd)} == kept
        assert is_open(1)
        assert is_open(2)
        assert set(fds.open_fds(3)) == kept

    assert in_child(child) == 0


@pytest.mark.parametrize("at_once", AT_ONCE)
def test_a_child_closes_high_descriptors_and_keeps_a_high_one(at_once: bool) -> None:
    def child() -> None:
        fds._at_once = at_once
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        high = [os.dup2(2, hard - number) for number in (1, 2, 3)]
        fds.close_open_fds(keep={high[1]})
        assert [is_open(fd) for fd in high] == [False, True, False]

    assert in_child(child) == 0


@pytest.mark.parametrize("at_once", AT_ONCE)
def test_a_child_closes_descriptors_above_a_limit_that_was_lowered(at_once: bool) -> None:
    def child() -> None:
        fds._at_once = at_once
        high = os.dup2(2, 900)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        fds.close_open_fds()
        assert not is_open(high)

    assert in_child(child) == 0


@pytest.mark.parametrize("at_once", AT_ONCE)
def test_a_child_closes_all_without_proc(at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def child() -> None:
        nothing_can_be_listed(monkeypatch)
        fds._at_once = at_once
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        high = os.dup2(2, 1000)
        kept = os.dup2(2, 500)
        fds.close_open_fds([kept])
        assert not is_open(high)
        assert is_open(kept)

    assert in_child(child) == 0


def test_closing_can_begin_above_3(null: int) -> None:
    def child() -> None:
        above = os.dup(null)
        fds.close_open_fds(lowest=above)
        assert is_open(null)
        assert not is_open(above)

    assert in_child(child) == 0


def test_closing_when_nothing_is_open_is_harmless() -> None:
    def child() -> None:
        for at_once in (True, False):
            fds._at_once = at_once
            fds.close_open_fds()
            fds.close_open_fds()

    assert in_child(child) == 0


def test_marking_close_on_exec_can_be_taken_back() -> None:
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
    try:
        for fd in opened[:3]:
            os.set_inheritable(fd, True)
        marked = fds.set_cloexec_from(opened[0], keep=[opened[1]])
        assert [fd for fd in marked if fd in opened] == [opened[0], opened[2]]
        assert [os.get_inheritable(fd) for fd in opened] == [False, True, False, False]
        assert fds.set_inheritable_all(marked) == marked
        assert [os.get_inheritable(fd) for fd in opened] == [True, True, True, False]
    finally:
        for fd in opened:
            os.close(fd)


def test_marking_passes_over_what_is_not_open(null: int) -> None:
    assert fds.set_inheritable_all([10**6, null]) == [null]
    assert fds.set_inheritable_all([10**6, null], False) == [null]


def test_a_number_above_the_standard_streams_stays(null: int) -> None:
    assert fds.above_stdio(null) == null


def test_a_standard_stream_s_number_is_moved_out_of_the_way() -> None:
    def child() -> None:
        os.close(0)
        assert os.open(os.devnull, os.O_RDONLY) == 0
        moved = fds.above_stdio(0)
        assert moved > 2
        assert not is_open(0)
        assert not os.get_inheritable(moved)

    assert in_child(child) == 0


@pytest.mark.parametrize("count", [0, 1, 2, 252, 253, 254, 506, 507, 600, 1000])
def test_any_number_of_descriptors_arrives(pair: Pair, null: int, count: int) -> None:
    with limit_on_open_files(4096):
        with Sender(pair[0], [null] * count, b"so many"), received(pair[1]) as (data, numbers):
            assert data == b"so many"
            assert len(numbers) == len(set(numbers)) == count
            for fd in numbers:
                assert os.path.samestat(os.fstat(fd), os.fstat(null))
                assert not os.get_inheritable(fd)
        assert is_open(null)


def test_descriptors_arrive_in_the_order_they_were_sent(pair: Pair) -> None:
    with limit_on_open_files(2048), contextlib.ExitStack() as stack:
        sent = []
        for _ in range(300):
            reader, writer = os.pipe()
            stack.callback(os.close, reader)
            os.close(writer)
            sent.append(reader)
        with Sender(pair[0], sent), received(pair[1]) as (_, numbers):
            assert [os.fstat(fd).st_ino for fd in numbers] == [os.fstat(fd).st_ino for fd in sent]


def test_h52_descriptors_are_close_on_exec_from_the_first_moment(
    pair: Pair, null: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not marked afterwards: between the two a fork in another thread would pass them on."""
    monkeypatch.setattr(fds, "set_inheritable_all", lambda *_: pytest.fail("marked afterwards"))
    monkeypatch.setattr(os, "set_inheritable", lambda *_: pytest.fail("marked afterwards"))
    fds.send_fds(pair[0], [null])
    with received(pair[1]) as (_, numbers):
        assert not os.get_inheritable(numbers[0])


def test_where_the_flag_is_missing_they_are_marked_at_once(
    pair: Pair, null: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS."""
    monkeypatch.delattr(socket, "MSG_CMSG_CLOEXEC")
    fds.send_fds(pair[0], [null, null])
    with received(pair[1]) as (_, numbers):
        assert [os.get_inheritable(fd) for fd in numbers] == [False, False]


def test_messages_back_to_back_stay_apart(pair: Pair, null: int) -> None:
    messages = [(b"", 0), (b"one", 1), (b"", 2), (b"two" * 1000, 0), (b"3", 300), (b"end", 1)]
    with limit_on_open_files(2048):
        for data, count in messages:
            fds.send_fds(pair[0], [null] * count, data)
        pair[0].close()
        for data, count in messages:
            with received(pair[1]) as (got, numbers):
                assert (got, len(numbers)) == (data, count)
        assert fds.recv_fds(pair[1]) == (b"", [])


@given(st.lists(st.tuples(st.integers(0, 300_000), st.integers(0, 520)), min_size=1, max_size=3))
def test_messages_of_all_sizes_arrive_whole(sizes: list[tuple[int, int]]) -> None:
    left, right = socket.socketpair()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        with left, right, limit_on_open_files(2048):
            for size, count in sizes:
                sent = bytes(index % 251 for index in range(min(size, 1000))).ljust(size, b".")
                with (
                    Sender(left, [null] * count, sent),
                    received(right, max_data=300_000) as (data, numbers),
                ):
                    assert data == sent
                    assert len(numbers) == count
    finally:
        os.close(null)


def test_a_message_that_the_socket_takes_in_pieces_arrives_whole(pair: Pair, null: int) -> None:
    """A socket with a timeout takes what there is room for, and no more at once."""
    sent = b"x" * 3_000_000
    pair[0].settimeout(PATIENCE)
    with (
        limit_on_open_files(2048),
        Sender(pair[0], [null] * 300, sent),
        received(pair[1], max_data=len(sent)) as (data, numbers),
    ):
        assert data == sent
        assert len(numbers) == 300


def test_the_end_of_the_stream_is_an_empty_message(pair: Pair) -> None:
    pair[0].close()
    assert fds.recv_fds(pair[1]) == (b"", [])


def message(data: bytes, fds_announced: int, size_announced: int | None = None) -> bytes:
    return struct.pack("!II", len(data) if size_announced is None else size_announced, fds_announced) + data


def rights(*numbers: int) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))]


@pytest.mark.parametrize(
    ("sent", "count"),
    [
        (message(b"abc", 1, size_announced=10), 1),
        (message(b"", 1, size_announced=1), 1),
        (message(b"abc", 2), 1),
        (message(b"abc", 0), 1),
        (message(b"abc", 1), 0),
        (message(b"abc", 254), 253),
        (message(b"abc", 300), 1),
    ],
    ids=["data cut", "no data", "one missing", "one too many", "none came", "batch missing", "most missing"],
)
def test_a_message_that_is_cut_off_is_an_error_and_leaves_nothing_open(
    pair: Pair, null: int, sent: bytes, count: int
) -> None:
    pair[0].sendmsg([sent], rights(*[null] * count) if count else [])
    pair[0].close()
    before = fds.open_fds()
    with pytest.raises(DescriptorError, match="arrived"):
        fds.recv_fds(pair[1])
    assert fds.open_fds() == before


@pytest.mark.parametrize("size", [1, 7])
def test_a_message_that_is_cut_off_in_its_first_bytes_is_an_error_too(pair: Pair, null: int, size: int) -> None:
    pair[0].sendmsg([b"x" * size], rights(null))
    pair[0].close()
    before = fds.open_fds()
    with pytest.raises(DescriptorError, match=f"after {size} bytes"):
        fds.recv_fds(pair[1])
    assert fds.open_fds() == before


@pytest.mark.parametrize(("limit", "value"), [("max_fds", 2), ("max_data", 99)])
def test_a_message_over_the_limit_is_an_error_and_leaves_nothing_open(
    pair: Pair, null: int, limit: str, value: int
) -> None:
    fds.send_fds(pair[0], [null] * 3, b"x" * 100)
    before = fds.open_fds()
    with pytest.raises(DescriptorError, match="limit"):
        fds.recv_fds(pair[1], **{limit: value})
    assert fds.open_fds() == before


def test_a_message_at_the_limit_arrives(pair: Pair, null: int) -> None:
    fds.send_fds(pair[0], [null] * 3, b"x" * 100)
    with received(pair[1], max_fds=3, max_data=100) as (data, numbers):
        assert (len(data), len(numbers)) == (100, 3)


def test_an_absurd_announcement_is_refused_without_waiting_for_it(pair: Pair) -> None:
    pair[0].sendall(b"\xff" * 8)
    with pytest.raises(DescriptorError, match="limit"):
        fds.recv_fds(pair[1])


@pytest.mark.parametrize("room", [0, 1, 10])
def test_h52_descriptors_that_the_kernel_drops_are_an_error_and_leave_nothing_open(
    pair: Pair, null: int, room: int
) -> None:
    fds.send_fds(pair[0], [null] * 20)
    before = fds.open_fds()
    free = _free_numbers(room)
    with limit_on_open_files(free[room]), pytest.raises(DescriptorError, match="limit on open files"):
        fds.recv_fds(pair[1])
    assert fds.open_fds() == before


def _free_numbers(count: int) -> list[int]:
    """The first numbers that the kernel would give out, and one more."""
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(count + 1)]
    for fd in opened:
        os.close(fd)
    return opened


def test_a_receiver_that_is_interrupted_leaves_nothing_open(
    pair: Pair, null: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair[0].sendmsg([message(b"", 1, size_announced=5)], rights(null))
    pair[1].setblocking(False)
    before = fds.open_fds()
    with pytest.raises(BlockingIOError):
        fds.recv_fds(pair[1])
    assert fds.open_fds() == before


@pytest.mark.parametrize("bad", [[10**6], [-1], [0, 10**6]])
def test_a_descriptor_that_is_not_open_cannot_be_sent(pair: Pair, bad: list[int]) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        fds.send_fds(pair[0], bad)
