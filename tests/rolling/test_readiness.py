"""What commands under `hotrestart run` are told, and say: the pure parts, and the notify socket."""

from __future__ import annotations

import os
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart.errors import AddressError
from hotrestart.rolling.foreign import environment
from hotrestart.rolling.readiness import NotifySocket, can_notify, understood
from hotrestart.rolling.running import _parted

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's"),
]

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\n="), min_size=1)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\n"))


@given(st.dictionaries(NAMES, VALUES))
def test_what_is_said_is_understood(said):
    assert understood("\n".join(f"{name}={value}" for name, value in said.items()).encode()) == said


@given(st.binary())
def test_whatever_is_said_nothing_breaks(message):
    understood(message)


@pytest.fixture
def notify():
    each = NotifySocket()
    yield each
    each.close()


def say(notify: NotifySocket, message: bytes, *rights: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + notify.address[1:])
        socket.send_fds(sender, [message], rights)


def test_nothing_is_said(notify):
    assert notify.receive(os.getpid()) == {}


def test_what_is_said_last_counts(notify):
    say(notify, b"READY=1\nSTATUS=one")
    say(notify, b"STATUS=two")
    assert notify.receive(os.getpid()) == {"READY": "1", "STATUS": "two"}


def test_descriptors_that_come_along_are_not_kept(notify):
    """The barrier of sd_notify_barrier(3) waits for that."""
    read_end, write_end = os.pipe()
    say(notify, b"BARRIER=1", write_end)
    os.close(write_end)
    before = os.listdir("/proc/self/fd")
    assert notify.receive(os.getpid()) == {"BARRIER": "1"}
    assert os.listdir("/proc/self/fd") == before
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_who_never_stops_talking_is_not_listened_to_for_ever(notify):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect("\0" + notify.address[1:])
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sender.send(b"N=%d" % sent)
                sent += 1
    while told := notify.receive(os.getpid()):
        last = told
    assert last == {"N": str(sent - 1)}


def test_it_can_be_had_here():
    assert can_notify()


GIVEN = {
    "LISTEN_PID": "1",
    "LISTEN_FDS": "9",
    "LISTEN_FDNAMES": "x",
    "NOTIFY_SOCKET": "/x",
    "WATCHDOG_USEC": "1",
    "A": "b",
}


@pytest.mark.parametrize(
    ("names", "notify", "told"),
    [
        ([], None, {}),
        ([None], "@x", {"LISTEN_FDS": "1", "NOTIFY_SOCKET": "@x"}),
        ([None, "web"], None, {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "unknown:web"}),
    ],
    ids=["none", "unnamed", "named"],
)
def test_what_systemd_has_told_us_is_not_told_to_workers(names, notify, told):
    assert environment(GIVEN, names, notify) == {"A": "b", **told}


@pytest.mark.parametrize(
    ("text", "address", "name"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", None),
        ("web=127.0.0.1:80", "127.0.0.1:80", "web"),
        ("web.socket=[::1]:80", "[::1]:80", "web.socket"),
        ("unix:/run/a=b", "unix:/run/a=b", None),
        ("x=unix:/run/a=b", "unix:/run/a=b", "x"),
        ("unix:@a=b", "unix:@a=b", None),
        ("udp:[::]:53", "udp:[::]:53", None),
        (":80", ":80", None),
    ],
)
def test_listen_has_an_address_and_perhaps_a_name(text, address, name):
    assert _parted(text) == (address, name)


def test_a_relative_path_is_made_absolute_for_the_supervisor_may_be_elsewhere():
    assert _parted("unix:app.sock") == (f"unix:{os.getcwd()}/app.sock", None)


@pytest.mark.parametrize("text", ["", "web=", "80", "unix:", "a:b:c"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(AddressError):
        _parted(text)
