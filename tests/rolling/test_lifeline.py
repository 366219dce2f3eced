"""The lifeline: every message goes through whole, in order and with its descriptors, and garbage harms nobody."""

from __future__ import annotations

import array
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart.errors import LifelineError
from hotrestart.rolling import lifeline as module
from hotrestart.rolling.lifeline import MESSAGES, Lifeline, pair
from tests.harness import PATIENCE, clean_environment

pytestmark = pytest.mark.core

LIMIT = 256 * 1024
FAILED = {"type": "failed", "reason": "why", "detail": ""}


@pytest.fixture(autouse=True)
def it_never_hangs() -> Iterator[None]:
    """ALRM kills a test that blocks: most of what is tested here must not."""

    def give_up(*_: object) -> None:
        raise AssertionError("it blocks")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 5 * PATIENCE)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@contextmanager
def both_ends() -> Iterator[tuple[Lifeline, Lifeline]]:
    one, other = (Lifeline(end) for end in pair())
    try:
        yield one, other
    finally:
        one.close()
        other.close()


@contextmanager
def files(count: int) -> Iterator[list[int]]:
    """So many descriptors that can be told apart."""
    pipes = [os.pipe() for _ in range(count)]
    try:
        yield [reader for reader, _ in pipes]
    finally:
        for end in [end for both in pipes for end in both]:
            os.close(end)


def identity(fd: int) -> int:
    return os.fstat(fd).st_ino


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def is_sending(end: Lifeline) -> bool:
    """Mypy holds that what has been asserted of an attribute stays so."""
    return end.is_sending


def has_ended(end: Lifeline) -> bool:
    return end.has_ended


def frame(message: object, *, fds: int = 0) -> bytes:
    text = message if isinstance(message, bytes) else json.dumps(message).encode()
    return len(text).to_bytes(4, "big") + bytes([fds]) + text


def raw_send(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    assert sock.sendmsg([data], rights) == len(data)


class Got:
    """What has been received: the messages, and for each the identities of its descriptors, which are closed."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.files: list[list[int]] = []

    def take_from(self, end: Lifeline) -> int:
        received = end.receive()
        for message, rights in received:
            self.messages.append(message)
            assert not any(os.get_inheritable(fd) for fd in rights)
            assert all(fd > 2 for fd in rights)
            self.files.append([identity(fd) for fd in rights])
            for fd in rights:
                os.close(fd)
        return len(received)


VALUES: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64),
    str: st.text(max_size=50),
    bool: st.booleans(),
    list: st.lists(st.integers(), max_size=3),
    type(None): st.none(),
}


def values(kind: type | tuple[type, ...]) -> st.SearchStrategy[Any]:
    return st.one_of([VALUES[each] for each in (kind if isinstance(kind, tuple) else (kind,))])


def fields_of(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {name: values(shape) for name, shape in MESSAGES[kind].items()},
        optional={"something new": st.text(max_size=5) | st.dictionaries(st.text(max_size=3), st.integers())},
    )


MESSAGE = st.sampled_from(sorted(MESSAGES)).flatmap(
    lambda kind: st.tuples(st.just(kind), fields_of(kind), st.integers(0, 8))
)


# --- what is sent arrives


@given(st.lists(st.tuples(MESSAGE, st.booleans(), st.booleans()), max_size=30))
def test_every_message_arrives_in_order_with_its_descriptors(
    steps: list[tuple[tuple[str, dict[str, Any], int], bool, bool]],
) -> None:
    got = Got()
    with files(8) as some, both_ends() as (one, other):
        for (kind, fields, count), by_post, reads in steps:
            (one.post if by_post else one.send)(kind, *some[:count], **fields)
            if reads:
                got.take_from(other)
        got.take_from(other)
        assert got.messages == [{"type": kind, **fields} for (kind, fields, _), _, _ in steps]
        assert got.files == [[identity(fd) for fd in some[:count]] for (_, _, count), _, _ in steps]
        assert not is_sending(one)
        assert not has_ended(other)


@given(st.lists(MESSAGE, min_size=1, max_size=8), st.data())
def test_however_the_stream_is_cut_the_messages_are_the_same(
    messages: list[tuple[str, dict[str, Any], int]], data: st.DataObject
) -> None:
    stream, starts = b"", []
    for kind, fields, count in messages:
        starts.append((len(stream), count))
        stream += frame({"type": kind, **fields}, fds=count)
    cuts = data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=20))
    edges = [0, *sorted(cuts), len(stream)]
    got = Got()
    with files(8) as some, both_ends() as (one, other):
        for begin, end in pairwise(edges):
            rights = [fd for at, count in starts if begin <= at < end for fd in some[:count]]
            raw_send(one.socket, stream[begin:end], rights)
            if data.draw(st.booleans()):
                got.take_from(other)
        got.take_from(other)
        assert got.messages == [{"type": kind, **fields} for kind, fields, _ in messages]
        assert got.files == [[identity(fd) for fd in some[:count]] for _, _, count in messages]


def test_single_bytes_make_messages_too() -> None:
    ours, theirs = pair()
    other, got = Lifeline(theirs), Got()
    with ours:
        for byte in frame(FAILED) * 3:
            ours.send(bytes([byte]))
            got.take_from(other)
    assert got.messages == [FAILED] * 3
    other.close()


def test_a_message_may_be_as_large_as_the_limit() -> None:
    ours, theirs = pair()
    other, got = Lifeline(theirs), Got()
    empty = len(json.dumps({**FAILED, "detail": ""}))
    message = {**FAILED, "detail": "x" * (LIMIT - empty)}
    writer = threading.Thread(target=ours.sendall, args=(frame(message) * 3,))
    ours.setblocking(True)
    writer.start()
    while len(got.messages) < 3:
        got.take_from(other)
    writer.join()
    assert got.messages == [message] * 3
    ours.close()
    other.close()


def test_what_is_received_belongs_to_the_receiver() -> None:
    """And is gone from the sender's side of things: closing one end closes nothing of it."""
    reader, writer = os.pipe()
    with both_ends() as (one, other):
        one.post("ready", writer)
        os.close(writer)
        ((_, (mine,)),) = other.receive()
    os.write(mine, b"still there")
    assert os.read(reader, 100) == b"still there"
    os.close(mine)
    os.close(reader)


# --- room


def test_post_never_blocks_and_flush_delivers_everything_in_order() -> None:
    count, got = 3000, Got()
    with files(3) as some, both_ends() as (one, other):
        for number in range(count):
            one.post("failed", *some[: number % 4 if number % 50 < 4 else 0], reason=str(number), detail="x" * 1000)
        assert is_sending(one)
        while len(got.messages) < count:
            got.take_from(other)
            one.flush()
        assert not is_sending(one)
        assert [message["reason"] for message in got.messages] == [str(number) for number in range(count)]
        names = [identity(fd) for fd in some]
        assert got.files == [names[: number % 4 if number % 50 < 4 else 0] for number in range(count)]


def test_descriptors_that_wait_for_room_are_duplicates() -> None:
    """The caller may close its own at once, whether there was room or not."""
    reader, writer = os.pipe()
    inode = identity(writer)
    got = Got()
    with both_ends() as (one, other):
        while not is_sending(one):
            one.post("failed", reason="", detail="x" * 10_000)
        one.post("ready", writer)
        one.post("ready", writer, writer)
        os.close(writer)
        while is_sending(one):
            got.take_from(other)
            one.flush()
        got.take_from(other)
    assert got.files[-2:] == [[inode], [inode, inode]]
    assert os.read(reader, 1) == b""  # and none is left open
    os.close(reader)


def test_a_large_message_goes_in_parts_and_is_followed_by_the_next() -> None:
    got = Got()
    with files(1) as some, both_ends() as (one, other):
        one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        one.post("failed", some[0], reason="large", detail="x" * 200_000)
        one.post("ready")
        assert is_sending(one)
        while is_sending(one):
            got.take_from(other)
            one.flush()
        got.take_from(other)
        assert [(m["type"], len(m.get("detail", ""))) for m in got.messages] == [("failed", 200_000), ("ready", 0)]
        assert got.files == [[identity(some[0])], []]


def fill(end: Lifeline) -> None:
    while True:
        try:
            end.socket.send(frame(FAILED))
        except BlockingIOError:
            return


def test_send_waits_for_room() -> None:
    got = Got()
    with both_ends() as (one, other):
        fill(one)
        sender = threading.Thread(target=one.send, args=("ready",))
        sender.start()
        sender.join(0.05)
        assert sender.is_alive()
        while sender.is_alive():
            got.take_from(other)
        sender.join()
        got.take_from(other)
        assert got.messages[-1] == {"type": "ready"}


def test_send_says_so_if_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT", 0.05)
    with both_ends() as (one, _other):
        fill(one)
        with pytest.raises(LifelineError, match=r"the supervisor has not taken a message for 0\.05 s"):
            one.send("ready")


def test_send_says_so_if_nobody_is_there() -> None:
    with both_ends() as (one, other):
        other.close()
        with pytest.raises(LifelineError, match="the supervisor is gone"):
            one.send("ready")
        one.receive()
        assert has_ended(one)


def test_send_says_so_if_the_other_goes_while_it_waits() -> None:
    said: list[str] = []
    with both_ends() as (one, other):
        fill(one)

        def send() -> None:
            try:
                one.send("ready")
            except LifelineError as error:
                said.append(str(error))

        sender = threading.Thread(target=send)
        sender.start()
        sender.join(0.05)
        other.close()
        sender.join()
    assert said == ["the supervisor is gone"]


def test_post_to_someone_who_has_gone_is_no_error() -> None:
    with files(1) as some, both_ends() as (one, other):
        other.close()
        one.post("ready", some[0])
        one.post("ready")
        one.flush()
        assert not is_sending(one)
        one.receive()
        assert has_ended(one)


def test_what_waits_for_someone_who_goes_is_dropped_without_a_leak() -> None:
    with files(2) as some, both_ends() as (one, other):
        fill(one)
        before = open_descriptors()
        one.post("ready", *some)
        assert is_sending(one)
        assert open_descriptors() == before + 2
        other.close()
        one.flush()
        assert not is_sending(one)
        assert open_descriptors() == before - 1  # without the other end


def test_two_threads_that_send_at_once_do_not_interleave() -> None:
    threads, each, got = 6, 150, Got()
    with files(2) as some, both_ends() as (one, other):

        def send(who: int) -> None:
            for number in range(each):
                detail = f"{who}" * (16 * 1024 if number % 3 else 10)
                one.send("failed", *some[: who % 3], reason=f"{who} {number}", detail=detail)

        senders = [threading.Thread(target=send, args=(who,)) for who in range(threads)]
        for sender in senders:
            sender.start()
        while len(got.messages) < threads * each:
            got.take_from(other)
        for sender in senders:
            sender.join()
        names = [identity(fd) for fd in some]
    numbers: dict[int, list[int]] = {who: [] for who in range(threads)}
    for message, rights in zip(got.messages, got.files, strict=True):
        who, number = (int(word) for word in message["reason"].split())
        numbers[who].append(number)
        assert set(message["detail"]) == {str(who)}
        assert rights == names[: who % 3]
    assert numbers == {who: list(range(each)) for who in range(threads)}


def test_a_receiver_that_is_flooded_gets_them_bit_by_bit() -> None:
    """It comes back, however fast the others write, and it does not collect more than a frame or two."""
    stop = threading.Event()
    with both_ends() as (one, other):

        def flood() -> None:
            while not stop.is_set():
                try:
                    one.socket.sendall(frame(FAILED) * 1000)
                except BlockingIOError:
                    continue

        one.socket.setblocking(True)
        flooder = threading.Thread(target=flood)
        flooder.start()
        batches: list[int] = []
        while sum(batches) < 100_000:
            batches.append(len(other.receive()))
        stop.set()
        while flooder.is_alive():
            other.receive()
        assert max(batches) <= 2 * LIMIT // len(frame(FAILED))


# --- the end


def test_the_end_comes_after_all_complete_messages() -> None:
    got = Got()
    with files(1) as some, both_ends() as (one, other):
        one.send("failed", reason="the end is near", detail="")
        one.send("ready", some[0])
        one.close()
        assert not has_ended(other)
        got.take_from(other)
        assert [message["type"] for message in got.messages] == ["failed", "ready"]
        assert got.files == [[], [identity(some[0])]]
        assert has_ended(other)
        assert other.receive() == []


@pytest.mark.parametrize("cut", [1, 4, 5, 6, len(frame(FAILED)) - 1])
def test_an_end_in_the_midst_of_a_message_is_just_the_end(cut: int) -> None:
    ours, theirs = pair()
    other, got = Lifeline(theirs), Got()
    with files(1) as some, ours:
        raw_send(ours, frame(FAILED), [])
        raw_send(ours, frame(FAILED, fds=1)[:cut], some)
    assert got.take_from(other) == 1
    assert has_ended(other)
    assert got.take_from(other) == 0
    other.close()


def test_an_end_with_something_unread_on_the_other_side_is_the_end_too() -> None:
    """The kernel says ECONNRESET then."""
    with both_ends() as (one, other):
        other.send("ready")
        one.send("ready")
        one.close()
        assert [message for message, _ in other.receive()] == [{"type": "ready"}]
        other.receive()
        assert has_ended(other)


def test_last_words_are_read_although_a_post_has_met_the_end() -> None:
    """A member says why it fails, and ends; meanwhile the supervisor tells it something."""
    with both_ends() as (one, other):
        one.send("failed", reason="port taken", detail="")
        one.close()
        other.post("stop")
        assert [message["type"] for message, _ in other.receive()] == ["failed"]
        assert has_ended(other)


def test_nothing_to_read_is_not_the_end() -> None:
    with both_ends() as (_one, other):
        assert other.receive() == []
        assert not has_ended(other)


def test_close_closes_what_was_never_asked_for_and_what_was_never_sent() -> None:
    before = open_descriptors()
    ours, theirs = pair()
    one, other = Lifeline(ours), Lifeline(theirs)
    with files(2) as some:
        raw_send(ours, frame({"type": "ready"}, fds=2)[:-1], some)  # never complete
        assert other.receive() == []
        other.close()
        one.close()
        with both_ends() as (third, _fourth):
            fill(third)
            third.post("ready", *some)
            third.post("ready", *some)
    assert open_descriptors() == before


def test_close_tells_the_other_end() -> None:
    with both_ends() as (one, other):
        one.close()
        other.receive()
        assert has_ended(other)


def test_a_lifeline_can_be_closed_twice() -> None:
    with both_ends() as (one, _):
        one.close()
        one.close()


# --- the pair


def test_the_ends_are_close_on_exec_and_never_block() -> None:
    with both_ends() as (one, other):
        for end in (one, other):
            assert not os.get_inheritable(end.fileno())
            assert not os.get_blocking(end.fileno())


def test_the_ends_are_above_the_standard_streams(tmp_path: Path) -> None:
    code = f"""if True:
        import os
        os.closerange(0, 3)
        from hotrestart.rolling.lifeline import Lifeline, pair
        one, other = (Lifeline(end) for end in pair())
        numbers = [one.fileno(), other.fileno(), *[os.get_inheritable(each.fileno()) for each in (one, other)]]
        one.send("ready", one.fileno())
        ((message, rights),) = other.receive()
        with open({str(tmp_path / "told")!r}, "w") as file:
            print(*numbers, min(numbers[:2]) > 2, message["type"], len(rights), file=file)
    """
    subprocess.run([sys.executable, "-c", code], env=clean_environment(), timeout=PATIENCE, check=True)
    assert (tmp_path / "told").read_text().split()[2:] == ["False", "False", "True", "ready", "1"]


# --- garbage


def is_refused(data: bytes, rights: list[int] | None = None) -> str:
    """What the error says; nothing else may come of it, and no descriptor may be left."""
    ours, theirs = pair()
    other = Lifeline(theirs)
    try:
        ours.setblocking(True)
        raw_send(ours, data, rights or [])
        with pytest.raises(LifelineError) as caught:
            for _ in range(100):
                for _, fds in other.receive():
                    for fd in fds:
                        os.close(fd)
        return str(caught.value)
    finally:
        ours.close()
        other.close()


GARBAGE: dict[str, bytes] = {
    "no JSON": b"garbage",
    "nothing": b"",
    "cut off": b'{"type": "ready"',
    "two at once": b'{"type": "ready"} {"type": "ready"}',
    "a list": b'["type", "ready"]',
    "a string": b'"type"',
    "a number": b"5",
    "null": b"null",
    "no type": b'{"reason": "x", "detail": ""}',
    "type is null": b'{"type": null}',
    "type is a list": b'{"type": ["ready"]}',
    "type is a dict": b'{"type": {}}',
    "unknown type": b'{"type": "reboot"}',
    "type with a capital": b'{"type": "Ready"}',
    "type is a method": b'{"type": "__class__"}',
    "bad UTF-8": b'{"type": "failed", "reason": "\xff\xfe", "detail": ""}',
    "UTF-16": '{"type": "ready"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"type": "ready"}',
    "a NUL": b'{"type": "ready"}\0',
    "a control character": b'{"type": "failed", "reason": "\x01", "detail": ""}',
    "NaN": b'{"type": "forked", "worker": NaN, "pid": 1}',
    "NaN on the side": b'{"type": "ready", "x": NaN}',
    "infinity": b'{"type": "forked", "worker": 1, "pid": -Infinity}',
    "a float": b'{"type": "forked", "worker": 1.0, "pid": 1}',
    "an overflow": b'{"type": "forked", "worker": 1e999, "pid": 1}',
    "a bool for an int": b'{"type": "forked", "worker": true, "pid": 1}',
    "an int for a bool": json.dumps(
        {
            "type": "listen",
            "address": "x",
            "resolved": None,
            "name": None,
            "backlog": 1,
            "reuse_port": 1,
            "mode": None,
            "owner": None,
        }
    ).encode(),
    "a bool for an int or null": json.dumps(
        {
            "type": "listen",
            "address": "x",
            "resolved": None,
            "name": None,
            "backlog": 1,
            "reuse_port": True,
            "mode": True,
            "owner": None,
        }
    ).encode(),
    "a number of too many digits": b'{"type": "forked", "worker": ' + b"9" * 10_000 + b', "pid": 1}',
    "a field missing": b'{"type": "failed", "reason": "x"}',
    "a field is null": b'{"type": "failed", "reason": "x", "detail": null}',
    "deep lists": b"[" * 100_000,
    "deep lists that close": b"[" * 50_000 + b"]" * 50_000,
    "deep dicts": b'{"a":' * 30_000,
    "deep inside a message": b'{"type": "ready", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_refused(kind: str) -> None:
    assert is_refused(frame(GARBAGE[kind])).startswith("what came over a lifeline is no message")


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_with_descriptors_is_refused_and_leaks_none(kind: str) -> None:
    with files(8) as some:
        is_refused(frame(GARBAGE[kind], fds=8), some)


@pytest.mark.parametrize("kind", ["no JSON", "deep lists", "bad UTF-8", "NaN", "a number of too many digits"])
def test_garbage_is_refused_without_the_module_json(kind: str) -> None:
    """As in a bare supervisor, which has not imported it."""
    code = """if True:
        import sys
        from hotrestart.errors import LifelineError
        from hotrestart.rolling.lifeline import Lifeline, pair
        one, other = (Lifeline(end) for end in pair())
        one.socket.setblocking(True)
        one.socket.sendall(sys.stdin.buffer.read())
        assert "json" not in sys.modules
        try:
            other.receive()
        except LifelineError as error:
            print(str(error)[:40])
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        input=frame(GARBAGE[kind]),
        env=clean_environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.decode().startswith("what came over a lifeline is no message"), done.stderr.decode()


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"\xff\xff\xff\xff\x00", "4294967295 bytes and 0"),
        (b"\x00\x04\x00\x01\x00", "262145 bytes and 0"),
        (b"\x00\x00\x00\x02\x09", "2 bytes and 9"),
        (b"\x00\x00\x00\x02\xff", "2 bytes and 255"),
        (b"GET / HTTP/1.1\r\n\r\n", "1195725856 bytes"),
    ],
)
def test_a_header_over_the_limit_is_refused_at_once(header: bytes, found: str) -> None:
    assert f"a message of {found}" in is_refused(header)


@pytest.mark.parametrize(("announced", "sent"), [(1, 0), (2, 1), (8, 7)])
def test_descriptors_that_do_not_come_are_missed(announced: int, sent: int) -> None:
    with files(sent) as some:
        assert "descriptors were lost" in is_refused(frame({"type": "ready"}, fds=announced), some)


@pytest.mark.parametrize(("announced", "sent"), [(0, 1), (1, 2), (0, 200), (8, 9)])
def test_descriptors_that_were_not_announced_are_refused(announced: int, sent: int) -> None:
    ours, theirs = pair()
    other = Lifeline(theirs)
    try:
        with files(1) as some:
            raw_send(ours, frame({"type": "ready"}, fds=announced), some * sent)
        with pytest.raises(LifelineError, match="belong to no message"):
            for _, fds in other.receive() or other.receive():
                for fd in fds:
                    os.close(fd)
            other.receive()
    finally:
        ours.close()
        other.close()


def test_descriptors_that_the_kernel_drops_are_missed() -> None:
    """A limit on open files is reached: some of a message's descriptors are gone for good."""
    ours, theirs = pair()
    other = Lifeline(theirs)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with files(1) as some:
            raw_send(ours, frame({"type": "ready"}, fds=8), some * 8)
        taken = os.dup(0)
        os.close(taken)
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 3, limits[1]))
        with pytest.raises(LifelineError):
            other.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        ours.close()
        other.close()


def test_garbage_after_a_message_with_descriptors_leaks_none() -> None:
    before = open_descriptors()
    ours, theirs = pair()
    other = Lifeline(theirs)
    received = []
    with files(2) as some, ours:
        raw_send(ours, frame({"type": "ready"}, fds=2), some)
        raw_send(ours, frame(b"garbage"), [])
        try:
            for _ in range(2):
                received += [fd for _, fds in other.receive() for fd in fds]
        except LifelineError:
            pass
    other.close()
    for fd in received:
        os.close(fd)
    assert len(received) == 2
    assert open_descriptors() == before


def test_after_garbage_nothing_is_understood_any_more() -> None:
    ours, theirs = pair()
    other = Lifeline(theirs)
    with ours:
        raw_send(ours, frame(FAILED) + frame(b"garbage") + frame(FAILED), [])
        assert [message for message, _ in other.receive()] == [FAILED]
        for _ in range(3):
            with pytest.raises(LifelineError):
                other.receive()
    other.close()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_a_message_with_a_field_of_another_type_is_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(name for name, shape in MESSAGES.items() if shape)))
    fields = data.draw(fields_of(kind))
    field = data.draw(st.sampled_from(sorted(MESSAGES[kind])))
    wanted = MESSAGES[kind][field]
    value = data.draw(
        ANYTHING.filter(lambda value: not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool))
    )
    assert field in is_refused(frame({"type": kind, **fields, field: value}))


@given(st.lists(st.binary(max_size=200), max_size=10), st.integers(0, 8))
def test_random_bytes_are_messages_or_refused_and_leak_nothing(chunks: list[bytes], count: int) -> None:
    before = open_descriptors()
    ours, theirs = pair()
    other = Lifeline(theirs)
    with files(count) as some, ours:
        try:
            for chunk in filter(None, chunks):
                raw_send(ours, chunk, some)
                assert other.receive() == []  # no random bytes make a message
        except LifelineError:
            pass
        other.close()
    assert open_descriptors() == before


@given(st.binary(max_size=300).filter(lambda text: not text.startswith(b'{"type"')))
def test_random_bytes_in_a_frame_are_refused(text: bytes) -> None:
    is_refused(frame(text))
