"""systemd's protocols: descriptors taken once by whom they are meant for, and what a notify socket gets to hear.

A real systemd reads it in recipes/test_systemd_units.py.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart import systemd
from tests.harness import PATIENCE, clean_environment

pytestmark = pytest.mark.core

VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
OTHERS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@pytest.fixture(autouse=True)
def none_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES + OTHERS:
        monkeypatch.delenv(name, raising=False)


def passed(monkeypatch: pytest.MonkeyPatch, fds: str, names: str | None = None, pid: str | None = None) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid is None else pid)
    monkeypatch.setenv("LISTEN_FDS", fds)
    if names is not None:
        monkeypatch.setenv("LISTEN_FDNAMES", names)


def test_nothing_is_passed_without_the_variables() -> None:
    assert systemd.listen_fds() == []


def test_descriptors_begin_with_3_and_have_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    passed(monkeypatch, "2", "web:admin")
    assert systemd.listen_fds() == [(3, "web"), (4, "admin")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, ["unknown", "unknown"]),
        ("", ["unknown", "unknown"]),
        ("a", ["a", "unknown"]),
        ("a:b:c", ["a", "b"]),
        (":b", ["", "b"]),
    ],
)
def test_a_missing_name_is_unknown(monkeypatch: pytest.MonkeyPatch, names: str | None, expected: list[str]) -> None:
    passed(monkeypatch, "2", names)
    assert [name for _, name in systemd.listen_fds()] == expected


def test_the_variables_are_removed_so_that_no_child_takes_them_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    passed(monkeypatch, "1", "web")
    assert systemd.listen_fds() == [(3, "web")]
    assert not set(VARIABLES) & set(os.environ)
    assert systemd.listen_fds() == []


def test_the_variables_can_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    passed(monkeypatch, "1", "web")
    assert systemd.listen_fds(unset=False) == [(3, "web")]
    assert systemd.listen_fds(unset=False) == [(3, "web")]


@pytest.mark.parametrize("pid", ["", "1x", "-1", "0", "99999999", "1 2"])
def test_descriptors_meant_for_another_process_are_left(monkeypatch: pytest.MonkeyPatch, pid: str) -> None:
    passed(monkeypatch, "1", pid=pid)
    assert systemd.listen_fds() == []


def test_a_pid_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert systemd.listen_fds() == []


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5", "0", " "])
def test_a_garbled_count_is_nothing(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    passed(monkeypatch, count)
    assert systemd.listen_fds() == []


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs", "Nd"]), max_size=20)


@given(TEXT, TEXT, TEXT)
def test_garbage_in_the_variables_is_nothing(monkeypatch: pytest.MonkeyPatch, pid: str, count: str, names: str) -> None:
    for name, value in zip(VARIABLES, (pid, count, names), strict=True):
        monkeypatch.setenv(name, value)
    assert systemd.listen_fds() == []
    assert not set(VARIABLES) & set(os.environ)


class Recorder:
    """A service manager's end of a notify socket: the pid of each sender, and what it said."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.settimeout(PATIENCE)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def hear(self) -> tuple[int, list[str]]:
        """The next message."""
        said, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(struct.calcsize("3i")))
        [(_, kind, credentials)] = ancillary
        assert kind == socket.SCM_CREDENTIALS
        return struct.unpack("3i", credentials)[0], said.decode().split("\n")

    def has_more(self) -> bool:
        return bool(select.select([self.socket], [], [], 0)[0])

    def close(self) -> None:
        self.socket.close()


linux = pytest.mark.skipif(not hasattr(socket, "SO_PASSCRED"), reason="a sender is seen, and @ understood, on Linux")


@pytest.fixture(params=["path", "abstract"])
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is too long for the address of a socket
        each = Recorder(f"@hotrestart/{os.getpid()}" if request.param == "abstract" else f"{folder}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", each.address)
        yield each
        each.close()


def test_nobody_is_told_without_the_variable() -> None:
    assert systemd.is_notified() is False
    assert systemd.notify("READY=1") is False
    assert systemd.reloading() is False
    assert systemd.extend_timeout(1) is False


@linux
def test_what_is_said_is_heard_in_order_and_from_whom(recorder: Recorder) -> None:
    assert systemd.is_notified() is True
    assert systemd.notify("READY=1", "STATUS=serves")
    assert systemd.notify("WATCHDOG=1")
    assert systemd.notify("STOPPING=1")
    me = os.getpid()
    assert recorder.hear() == (me, ["READY=1", "STATUS=serves"])
    assert recorder.hear() == (me, ["WATCHDOG=1"])
    assert recorder.hear() == (me, ["STOPPING=1"])
    assert not recorder.has_more()


@linux
def test_nothing_to_say_is_not_said(recorder: Recorder) -> None:
    assert systemd.notify() is False
    assert not recorder.has_more()


@linux
def test_a_reload_has_its_time_in_the_same_message(recorder: Recorder) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert systemd.reloading("loads")
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    _, [first, second, third] = recorder.hear()
    assert (first, third) == ("RELOADING=1", "STATUS=loads")
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= after
    assert systemd.reloading()
    assert len(recorder.hear()[1]) == 2


@linux
@pytest.mark.parametrize(("seconds", "expected"), [(1.5, "1500000"), (0, "1"), (-3, "1"), (4e6, "4000000000000")])
def test_more_time_is_asked_for_in_microseconds(recorder: Recorder, seconds: float, expected: str) -> None:
    assert systemd.extend_timeout(seconds)
    assert recorder.hear()[1] == [f"EXTEND_TIMEOUT_USEC={expected}"]


ASSIGNMENT = st.builds("{}={}".format, st.sampled_from(["STATUS", "READY", "X_FREE"]), st.text(max_size=60))


@linux
@given(st.lists(ASSIGNMENT | st.text(max_size=5).map("STATUS=\ud800\\{}\nREADY=1".format), min_size=1, max_size=9))
def test_no_text_becomes_another_assignment_or_voids_the_message(recorder: Recorder, said: list[str]) -> None:
    assert systemd.notify(*said)
    _, heard = recorder.hear()
    assert len(heard) == len(said)
    for theirs, ours in zip(heard, said, strict=True):
        assert len(theirs) == len(ours)
        assert theirs.partition("=")[0] == ours.partition("=")[0]
        assert not set("\n\r\0\\") & set(theirs)


@linux
@given(st.integers(1, 3000), st.sampled_from(["x", "\u00fc", "\u20ac", "\U0001f600"]))
def test_a_long_message_is_cut_between_characters_at_its_end(recorder: Recorder, count: int, letter: str) -> None:
    assert systemd.notify("READY=1", f"STATUS={letter * count}")
    _, [first, second] = recorder.hear()
    assert first == "READY=1"
    room = 4096 - len("READY=1\nSTATUS=")
    assert second == "STATUS=" + letter * min(count, room // len(letter.encode()))


@linux
def test_a_full_queue_is_given_up_on_and_not_waited_for(recorder: Recorder) -> None:
    sent = 0
    while systemd.notify(f"X_NUMBER={sent}"):
        sent += 1
        assert sent < 100_000
    assert sent > 0
    assert [recorder.hear()[1] for _ in range(sent)] == [[f"X_NUMBER={number}"] for number in range(sent)]
    assert not recorder.has_more()
    assert systemd.notify("READY=1")


@linux
def test_room_that_comes_in_time_is_used(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    while systemd.notify("X_FILL=1"):
        pass
    monkeypatch.setattr(systemd, "_PATIENCE", PATIENCE)
    told: list[bool] = []
    teller = threading.Thread(target=lambda: told.append(systemd.notify("READY=1")))
    teller.start()
    heard = []
    while ["READY=1"] not in heard:
        heard.append(recorder.hear()[1])
    teller.join()
    assert told == [True]


@linux
def test_a_receiver_that_is_gone_is_no_error(recorder: Recorder) -> None:
    recorder.close()
    assert systemd.is_notified() is True
    assert systemd.notify("READY=1") is False


@pytest.mark.parametrize(
    "target",
    [
        *("", "@", "/", "garbage", "relative/path", "vsock:2:1234", "/there/is/no/such", "@hotrestart/nobody"),
        *("/" + "long" * 100, "@" + "long" * 100, "/\udcff", "/dev/null"),
    ],
    ids=["", "@", "root", "garbage", "relative", "vsock", "absent", "nobody", "long", "@long", "bytes", "device"],
)
def test_a_useless_address_is_no_error(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", target)
    assert systemd.notify("READY=1") is False
    assert systemd.is_notified() is bool(target)


def test_an_address_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as relative:
        relative.bind("relative")
        monkeypatch.setenv("NOTIFY_SOCKET", "relative")
        assert systemd.notify("READY=1") is False


def test_a_socket_of_another_kind_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind("stream")
        stream.listen()
        monkeypatch.setenv("NOTIFY_SOCKET", f"/proc/{os.getpid()}/cwd/stream")  # short enough
        assert systemd.notify("READY=1") is False


@linux
def test_no_descriptor_left_is_no_error(recorder: Recorder) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    systemd.notify("X_LOADED=1")  # what it imports takes a descriptor too
    recorder.hear()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        assert systemd.notify("READY=1") is False
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not recorder.has_more()


@linux
def test_every_thread_a_signal_handler_and_a_forked_child_may_tell(recorder: Recorder) -> None:
    code = """if True:
        import os, signal, threading
        from hotrestart import systemd
        signal.signal(signal.SIGUSR1, lambda *_: systemd.notify("X_FROM=handler"))
        signal.raise_signal(signal.SIGUSR1)
        thread = threading.Thread(target=systemd.notify, args=["X_FROM=thread"])
        thread.start()
        thread.join()
        child = os.fork()
        if not child:
            systemd.notify("X_FROM=child")
            os._exit(0)
        os.waitpid(child, 0)
        systemd.notify(f"X_CHILD={child}")
    """
    environment = clean_environment(NOTIFY_SOCKET=recorder.address)
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        assert process.wait(PATIENCE) == 0
    messages = [recorder.hear() for _ in range(4)]
    assert [text for _, [text] in messages[:3]] == ["X_FROM=handler", "X_FROM=thread", "X_FROM=child"]
    child = int(messages[3][1][0].removeprefix("X_CHILD="))
    assert [pid for pid, _ in messages] == [process.pid, process.pid, child, process.pid]


@linux
def test_a_signal_handler_that_raises_ends_the_wait_and_leaves_nothing_open(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Enough(Exception):
        pass

    def handler(*_: object) -> None:
        raise Enough

    while systemd.notify("X_FILL=1"):
        pass
    monkeypatch.setattr(systemd, "_PATIENCE", PATIENCE)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(Enough):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            systemd.notify("READY=1")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_where_there_are_no_such_sockets_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import _socket

    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.delattr(_socket, "AF_UNIX")
    assert systemd.notify("READY=1") is False


def test_telling_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hotrestart import systemd; systemd.reloading(); systemd.watchdog()\n"
        "print({'socket', 'selectors', 'enum', 'struct', 'select'} & set(sys.modules))"
    )
    environment = clean_environment(NOTIFY_SOCKET="@hotrestart/nobody", WATCHDOG_USEC="1")
    command = [sys.executable, "-S", "-c", code]
    assert subprocess.check_output(command, env=environment, text=True).strip() == "set()"


@pytest.mark.parametrize(("period", "expected"), [("3000000", 1.5), ("1", 5e-7), ("0003000000", 1.5)])
@pytest.mark.parametrize("pid", [None, "own"])
def test_the_watchdog_wants_a_ping_at_half_its_time(
    monkeypatch: pytest.MonkeyPatch, period: str, expected: float, pid: str | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", period)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog() == expected


@pytest.mark.parametrize("pid", ["", "0", "1x", "-1", "99999999", "nobody"])
def test_another_process_watchdog_is_not_ours(monkeypatch: pytest.MonkeyPatch, pid: str) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert systemd.watchdog() is None


@pytest.mark.parametrize(
    "period",
    [None, "", "0", "-1", "1.5", "3s", " 3", "\u0663", "18446744073709551615", "9" * 5000],
    ids=lambda period: ascii(period)[:12],
)
def test_a_garbled_watchdog_is_none(monkeypatch: pytest.MonkeyPatch, period: str | None) -> None:
    if period is not None:
        monkeypatch.setenv("WATCHDOG_USEC", period)
    assert systemd.watchdog() is None
