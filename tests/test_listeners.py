"""Listeners: every form of address, one bound socket however often it is asked for, and errors that say what to do."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart import binding, listeners
from hotrestart.errors import AddressError, OptionError
from hotrestart.listeners import Address, listen
from tests.harness import PATIENCE, clean_environment

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def none_is_held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing bound before, nothing left bound after."""
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    yield
    listeners.forget()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A path for a unix socket, short enough for the kernel."""
    monkeypatch.chdir(tmp_path)
    return "s"


def connected(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A client and the server's side of it."""
    client = socket.socket(listener.family, socket.SOCK_STREAM)
    client.settimeout(PATIENCE)
    client.connect(listener.getsockname())
    return client, listener.accept()[0]


PARSED = [
    ("127.0.0.1:8000", "tcp", "127.0.0.1", 8000),
    ("example.org:80", "tcp", "example.org", 80),
    (":8000", "tcp", "", 8000),
    ("*:8000", "tcp", "*", 8000),
    ("[::1]:8000", "tcp", "::1", 8000),
    ("[::]:0", "tcp", "::", 0),
    ("tcp:127.0.0.1:1", "tcp", "127.0.0.1", 1),
    ("tcp:[::1]:1", "tcp", "::1", 1),
    ("udp:127.0.0.1:53", "udp", "127.0.0.1", 53),
    ("udp:[::1]:53", "udp", "::1", 53),
    ("udp::53", "udp", "", 53),
    ("unix:/run/s", "unix", "/run/s", 0),
    ("unix:s", "unix", "s", 0),
    ("unix:a:b:1", "unix", "a:b:1", 0),
    ("unix:@name", "unix", "@name", 0),
    (("127.0.0.1", 8000), "tcp", "127.0.0.1", 8000),
    (("::1", 8000), "tcp", "::1", 8000),
    (("", 65535), "tcp", "", 65535),
]


@pytest.mark.parametrize(("text", "kind", "host", "port"), PARSED, ids=lambda each: str(each))
def test_an_address_is_understood(text: Any, kind: str, host: str, port: int) -> None:
    found = Address.parse(text)
    assert (found.kind, found.host, found.port) == (kind, host, port)


@pytest.mark.parametrize("text", [text for text, *_ in PARSED], ids=str)
def test_an_address_as_it_is_written_down_is_the_same_address(text: Any) -> None:
    once = str(Address.parse(text))
    again = Address.parse(once)
    assert str(again) == once


BAD = [
    "",
    ":",
    "127.0.0.1",
    "127.0.0.1:",
    "127.0.0.1:http",
    "127.0.0.1:-1",
    "127.0.0.1:65536",
    "127.0.0.1:080000",
    "127.0.0.1: 80",
    "127.0.0.1:\uff18\uff10",
    "127.0.0.1:1e3",
    "[::1]",
    "host\0:80",
    "unix:",
    "unix:a\0b",
    "udp:127.0.0.1",
    "tcp:",
    b"127.0.0.1:80",
    None,
    80,
    8.0,
    ["127.0.0.1", 80],
    (),
    ("127.0.0.1",),
    ("127.0.0.1", "80"),
    ("127.0.0.1", 80.0),
    ("127.0.0.1", True),
    ("127.0.0.1", -1),
    ("127.0.0.1", 65536),
    ("127.0.0.1", 80, 0, 0),
    (None, 80),
    (b"127.0.0.1", 80),
    ("a\0b", 80),
    object(),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: "object" if type(bad) is object else repr(bad))
def test_a_bad_address_is_an_error_that_repeats_it(bad: Any) -> None:
    with pytest.raises(AddressError) as caught:
        listen(bad)
    assert isinstance(caught.value, OSError)
    assert str(caught.value).startswith(f"listen({bad!r}): ")


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is looked up in the network."""
    look_up = socket.getaddrinfo

    def numbers_only(host: Any, port: Any, *arguments: Any, flags: int = 0, **options: Any) -> Any:
        return look_up(host, port, *arguments, flags=flags | socket.AI_NUMERICHOST, **options)

    monkeypatch.setattr(socket, "getaddrinfo", numbers_only)


ANYTHING = st.one_of(
    st.text(),
    st.text(alphabet="[]:.0123456789abcdef*@\0 tcpudunix"),
    st.builds("{}:{}".format, st.text(), st.integers(0, 70000)),
    st.builds("unix:{}".format, st.text(alphabet=st.characters(exclude_characters="/"))),
    st.tuples(st.text(), st.integers()),
    st.tuples(st.text(), st.integers(), st.text()),
    st.none() | st.integers() | st.floats() | st.binary() | st.booleans() | st.lists(st.text()),
)


@given(ANYTHING)
def test_anything_at_all_is_bound_or_refused_and_nothing_is_left_open(no_names: None, path: str, address: Any) -> None:
    before = set(os.listdir("/proc/self/fd"))
    try:
        listen(address).close()
    except AddressError:
        assert set(os.listdir("/proc/self/fd")) == before
    listeners.forget()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("address", "family"),
    [
        ("127.0.0.1:0", socket.AF_INET),
        ("tcp:127.0.0.1:0", socket.AF_INET),
        (("127.0.0.1", 0), socket.AF_INET),
        (":0", socket.AF_INET),
        ("*:0", socket.AF_INET),
        ("localhost:0", socket.AF_INET),
        ("[::1]:0", socket.AF_INET6),
        ("[::]:0", socket.AF_INET6),
        (("::1", 0), socket.AF_INET6),
        ("unix:s", socket.AF_UNIX),
    ],
)
def test_a_stream_listener_accepts(path: str, address: Any, family: int) -> None:
    with listen(address) as listener:
        assert (listener.family, listener.type) == (family, socket.SOCK_STREAM)
        assert listener.gettimeout() == 0
        assert not os.get_blocking(listener.fileno())
        assert not listener.get_inheritable()
        client, served = connected(listener)
        with client, served:
            client.sendall(b"hello")
            assert served.recv(10) == b"hello"


@pytest.mark.parametrize(("address", "family"), [("udp:127.0.0.1:0", socket.AF_INET), ("udp:[::1]:0", socket.AF_INET6)])
def test_a_datagram_listener_receives(address: str, family: int) -> None:
    with listen(address) as listener, socket.socket(family, socket.SOCK_DGRAM) as client:
        assert (listener.family, listener.type) == (family, socket.SOCK_DGRAM)
        assert not os.get_blocking(listener.fileno())
        client.sendto(b"hello", listener.getsockname())
        assert listener.recv(10) == b"hello"


def test_an_abstract_name_leaves_no_file(path: str) -> None:
    name = f"hotrestart-test-{os.getpid()}"
    with listen(f"unix:@{name}") as listener:
        assert listener.getsockname() == b"\0" + name.encode()
        client, served = connected(listener)
        client.close()
        served.close()
    assert os.listdir() == []


def test_ipv6_leaves_the_port_to_ipv4() -> None:
    with listen("[::]:0") as six:
        port = six.getsockname()[1]
        with listen(("0.0.0.0", port)) as four:
            assert four.getsockname()[1] == port


def test_accepting_from_an_empty_queue_does_not_block() -> None:
    with listen("127.0.0.1:0") as listener, pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix:s", "udp:127.0.0.1:0"])
def test_asked_twice_it_is_the_same_listener_and_another_object(path: str, address: str) -> None:
    with listen(address) as one, listen(address) as two:
        assert one.fileno() != two.fileno()
        assert os.path.samestat(os.fstat(one.fileno()), os.fstat(two.fileno()))
        assert (two.family, two.type, two.gettimeout()) == (one.family, one.type, one.gettimeout())


@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix:s"])
def test_closing_what_was_handed_out_does_not_take_the_address_away(path: str, address: str) -> None:
    with listen(address) as listener:
        where = listener.getsockname()
    with socket.socket(listener.family) as client:
        client.connect(where)  # it waits in the queue
        with listen(address) as again:
            again.accept()[0].close()


def test_different_spellings_of_one_address_are_one_listener() -> None:
    with listen("127.0.0.1:0") as first:
        port = first.getsockname()[1]
    listeners.forget()
    with (
        listen(f"127.0.0.1:{port}") as one,
        listen(("127.0.0.1", port)) as two,
        listen(f"tcp:127.0.0.1:{port}") as three,
    ):
        inodes = {os.fstat(each.fileno()).st_ino for each in (one, two, three)}
    assert len(inodes) == 1


def test_names_tell_free_ports_apart() -> None:
    with (
        listen("127.0.0.1:0", name="a") as a,
        listen("127.0.0.1:0", name="b") as b,
        listen("127.0.0.1:0") as neither,
        listen("127.0.0.1:0", name="a") as a_again,
    ):
        ports = [each.getsockname()[1] for each in (a, b, neither, a_again)]
    assert len(set(ports)) == 3
    assert ports[3] == ports[0]


def test_a_fixed_port_is_one_listener_whatever_its_name() -> None:
    with listen("127.0.0.1:0") as first:
        port = first.getsockname()[1]
    listeners.forget()
    with listen(f"127.0.0.1:{port}", name="a") as one, listen(f"127.0.0.1:{port}") as two:
        assert os.path.samestat(os.fstat(one.fileno()), os.fstat(two.fileno()))


def test_threads_asking_at_once_get_one_listener() -> None:
    inodes: list[int] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        with listen("127.0.0.1:0") as listener:
            inodes.append(os.fstat(listener.fileno()).st_ino)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(inodes)) == 1
    assert len(inodes) == 8


def test_a_forked_child_can_ask_too() -> None:
    with listen("127.0.0.1:0") as listener:
        pid = os.fork()
        if pid == 0:
            with listen("127.0.0.1:0") as same:
                os._exit(0 if same.getsockname() == listener.getsockname() else 1)
        assert os.waitpid(pid, 0)[1] == 0


def backlog_of(listener: socket.socket) -> int:
    """As the kernel shows it, for a unix or TCP listener."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[28:32], sys.byteorder)  # tcpi_sacked: of a listener, the longest queue


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the backlog")
def test_the_backlog_is_the_one_asked_for_and_can_be_raised_later() -> None:
    with listen("127.0.0.1:0", backlog=5) as listener:
        assert backlog_of(listener) == 5
        listen("127.0.0.1:0", backlog=50).close()
        assert backlog_of(listener) == 50


def test_a_port_can_be_shared_when_asked_for() -> None:
    with listen("127.0.0.1:0", reuse_port=True) as listener, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(listener.getsockname())
        other.listen()


def test_a_port_is_not_shared_when_not_asked_for() -> None:
    with listen("127.0.0.1:0") as listener, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(listener.getsockname())


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o777, 0o000])
def test_a_unix_path_has_the_mode_asked_for(path: str, mode: int) -> None:
    before = os.umask(0o077)
    try:
        listen(f"unix:{path}", mode=mode).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == mode


def test_a_unix_path_has_the_owner_asked_for(path: str) -> None:
    owner = (1234, 2345) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    listen(f"unix:{path}", owner=owner).close()
    assert (os.stat(path).st_uid, os.stat(path).st_gid) == owner


def test_a_stale_unix_path_is_replaced(path: str) -> None:
    listen(f"unix:{path}").close()
    listeners.forget()
    assert os.path.exists(path)
    with listen(f"unix:{path}") as listener:
        client, served = connected(listener)
        client.close()
        served.close()


@pytest.mark.parametrize("backlog", [0, 10])
def test_a_unix_path_that_somebody_serves_is_refused(path: str, backlog: int) -> None:
    """Also if their queue is full, so that they do not answer."""
    with socket.socket(socket.AF_UNIX) as theirs, socket.socket(socket.AF_UNIX) as client:
        theirs.bind(path)
        theirs.listen(backlog)
        client.connect(path)
        for _ in range(2):
            with pytest.raises(AddressError, match=f"unix:{path}.*in use"):
                listen(f"unix:{path}")
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        theirs.accept()[0].close()


def test_a_file_in_the_way_is_refused_and_stays(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(AddressError, match="no socket"):
        listen(f"unix:{path}")
    assert Path(path).read_text() == "precious"


@pytest.mark.parametrize("address", ["unix:/nowhere/at/all", "unix:" + "x" * 200, "unix:@" + "x" * 200])
def test_a_path_that_cannot_be_bound_says_why(address: str) -> None:
    with pytest.raises(AddressError) as caught:
        listen(address)
    assert address in str(caught.value)
    assert any(why in str(caught.value) for why in ("No such file", "too long"))


def test_a_port_in_use_says_so() -> None:
    with socket.socket() as theirs:
        theirs.bind(("127.0.0.1", 0))
        theirs.listen()
        port = theirs.getsockname()[1]
        with pytest.raises(AddressError, match=f"listen\\('127.0.0.1:{port}'\\): Address already in use") as caught:
            listen(f"127.0.0.1:{port}")
    assert caught.value.errno == 98
    listen(f"127.0.0.1:{port}").close()  # nothing of the failure is remembered


def test_a_denied_port_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(binding, "_bind_internet", denied)
    with pytest.raises(AddressError, match=r"80.*Permission denied; bind before dropping privileges, or use systemd"):
        listen("127.0.0.1:80")


def test_a_name_that_cannot_be_looked_up_says_so(no_names: None) -> None:
    with pytest.raises(AddressError, match=r"listen\('no such name:80'\): "):
        listen("no such name:80")


@pytest.mark.parametrize(
    "options",
    [
        {"backlog": -1},
        {"backlog": 1.5},
        {"backlog": True},
        {"backlog": 2**31},
        {"backlog": None},
        {"name": 5},
        {"name": b"x"},
        {"mode": -1},
        {"mode": 0o10000},
        {"mode": "660"},
        {"owner": 0},
        {"owner": (0,)},
        {"owner": ("root", "root")},
        {"owner": [0, 0]},
    ],
    ids=str,
)
def test_a_bad_option_is_an_error_that_names_it(path: str, options: Any) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        listen(f"unix:{path}", **options)
    assert os.listdir() == []


def handed_over() -> list[dict[str, Any]]:
    """What a next generation would find: the descriptors alone survive the exec."""
    documents = listeners.hand_over()
    for each in documents:
        each["fd"] = os.dup(each["fd"])
        os.set_inheritable(each["fd"], True)
    listeners.forget()
    return documents


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "unix:s", "udp:127.0.0.1:0", "udp:[::1]:0"])
def test_the_next_generation_gets_the_same_listener(path: str, address: str) -> None:
    with listen(address, name="web") as before:
        where = before.getsockname()
    listeners.adopt(handed_over())
    with listen(address, name="web") as after:
        assert after.getsockname() == where
        assert (after.family, after.type) == (before.family, before.type)
        assert after.gettimeout() == 0
        assert not os.get_blocking(after.fileno())
        assert not after.get_inheritable()


def test_a_listener_that_the_next_generation_does_not_ask_for_ends_with_it() -> None:
    listen("127.0.0.1:0").close()
    listeners.adopt(handed_over())
    assert listeners.hand_over() == []


def test_h49_nodelay_can_be_set_on_what_an_adopted_listener_accepts() -> None:
    listen("127.0.0.1:0").close()
    listeners.adopt(handed_over())
    with listen("127.0.0.1:0") as listener:
        client, served = connected(listener)
        with client, served:
            assert (served.family, served.proto) == (socket.AF_INET, listener.proto)
            served.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_h49_a_listener_adopted_beside_its_owner_keeps_the_owner_s_blocking_mode() -> None:
    """As in a preflight: the flag belongs to all who share the socket."""
    listen("127.0.0.1:0").close()
    documents = handed_over()
    os.set_blocking(documents[0]["fd"], True)
    listeners.adopt(documents, shared=True)
    with listen("127.0.0.1:0") as listener:
        assert os.get_blocking(listener.fileno())
        assert listener.gettimeout() is None


def test_what_is_not_the_listener_it_says_is_left_out_with_a_warning_and_left_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    file, plain = os.open(os.devnull, os.O_RDONLY), socket.socket()
    try:
        inode = os.fstat(plain.fileno()).st_ino
        listeners.adopt(
            [
                {"fd": file, "inode": os.fstat(file).st_ino, "address": "a file", "name": None},
                {"fd": file, "inode": 1, "address": "another file", "name": None},
                {"fd": plain.fileno(), "inode": inode, "address": "not listening", "name": None},
                {"fd": 10**6, "inode": 1, "address": "not open", "name": None},
            ]
        )
        assert len(caplog.records) == 4
        assert not listeners._bound
        assert os.fstat(file)
        assert os.fstat(plain.fileno())
    finally:
        os.close(file)
        plain.close()


def test_another_listener_that_has_the_number_by_now_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        inode = os.fstat(other.fileno()).st_ino
        listeners.adopt([{"fd": other.fileno(), "inode": inode + 1, "address": "127.0.0.1:0", "name": None}])
        assert "another file" in caplog.text
        assert not listeners._bound
        assert os.fstat(other.fileno())


def test_a_listener_whose_descriptor_somebody_has_closed_is_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listen("127.0.0.1:0").close()
    (kept,) = listeners._bound.values()
    kept.socket.detach()
    os.close(kept.fd)
    assert listeners.hand_over() == []
    assert "closed descriptor" in caplog.text


class Systemd:
    """Starts Python with sockets as systemd does: from descriptor 3, LISTEN_PID being the process's own."""

    LAUNCH = """if True:
        import os, socket, sys
        kinds, names, code = sys.argv[1:]
        made = []
        for kind in kinds.split():
            kind, _, address = kind.partition("=")
            if kind == "fifo":
                made.append(os.pipe()[0])
            elif kind == "closed":
                made.append(-1)
            else:
                family = socket.AF_UNIX if "unix" in kind else socket.AF_INET6 if "6" in kind else socket.AF_INET
                each = socket.socket(family, socket.SOCK_DGRAM if "udp" in kind else socket.SOCK_STREAM)
                if family == socket.AF_UNIX:
                    each.bind(address.replace("@", chr(0)))
                else:
                    each.bind((address or ("::1" if "6" in kind else "127.0.0.1"), 0))
                if "tcp" in kind or "unix" in kind:
                    each.listen(1)
                made.append(each.detach())
        high = [fd if fd == -1 else os.dup2(fd, 100 + index) for index, fd in enumerate(made)]
        os.closerange(3, 100)
        for index, fd in enumerate(high):
            if fd != -1:
                os.dup2(fd, 3 + index)
        os.closerange(100, 200)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(made)), LISTEN_FDNAMES=names)
        os.execv(sys.executable, [sys.executable, "-c", code])
    """
    PRELUDE = "import os, socket, sys, hotrestart\nfrom hotrestart import listeners\n"

    def __call__(self, kinds: str, names: str, code: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            [sys.executable, "-c", self.LAUNCH, kinds, names, self.PRELUDE + textwrap.dedent(code)],
            env=clean_environment(),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr


@pytest.fixture
def systemd() -> Systemd:
    return Systemd()


def test_a_socket_from_systemd_is_found_by_name(systemd: Systemd) -> None:
    systemd(
        "tcp udp tcp6",
        "web:metrics:six",
        """
        inode = [os.fstat(fd).st_ino for fd in (3, 4, 5)]
        for name, expected in (("web", inode[0]), ("metrics", inode[1]), ("six", inode[2]), ("web", inode[0])):
            with hotrestart.listen("127.0.0.1:1", name=name) as found:
                assert os.fstat(found.fileno()).st_ino == expected, name
                assert not found.get_inheritable() and not os.get_blocking(found.fileno())
        assert not [name for name in os.environ if name.startswith("LISTEN_")]
        assert not any(map(os.get_inheritable, (3, 4, 5)))
        """,
    )


@pytest.mark.parametrize("kind", ["tcp", "udp", "tcp6", "udp6", "unix=s"])
def test_a_socket_from_systemd_is_found_by_address(systemd: Systemd, kind: str, tmp_path: Path) -> None:
    systemd(
        "tcp " + kind,
        "",
        """
        family = socket.socket(fileno=4)
        where = listeners._address_of(family)
        family.detach()
        with hotrestart.listen(where) as found:
            assert os.fstat(found.fileno()).st_ino == os.fstat(4).st_ino
        """,
        cwd=tmp_path,
    )


def test_an_adopted_socket_from_systemd_has_its_family_and_a_new_backlog(systemd: Systemd) -> None:
    systemd(
        "tcp6",
        "web",
        """
        with hotrestart.listen("[::1]:1", name="web", backlog=77) as found:
            assert (found.family, found.type) == (socket.AF_INET6, socket.SOCK_STREAM)
            info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            assert int.from_bytes(info[28:32], sys.byteorder) == 77
            with socket.create_connection(found.getsockname()[:2]):
                served = found.accept()[0]
                served.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                served.close()
        """,
    )


def test_an_address_that_systemd_has_not_is_bound(systemd: Systemd) -> None:
    systemd(
        "tcp",
        "web",
        """
        with hotrestart.listen("127.0.0.1:0", name="other") as found:
            assert os.fstat(found.fileno()).st_ino != os.fstat(3).st_ino
        assert listeners.systemd_fds() == [3]
        assert [each["name"] for each in listeners.hand_over()] == ["other"]
        """,
    )


def test_what_systemd_passes_and_is_no_listener_is_left_out(systemd: Systemd) -> None:
    log = systemd(
        "fifo closed tcp",
        "pipe:gone:web",
        """
        with hotrestart.listen("127.0.0.1:1", name="web") as found:
            assert os.fstat(found.fileno()).st_ino == os.fstat(5).st_ino
        assert os.fstat(3)
        assert listeners.systemd_fds() == [5]
        """,
    )
    assert "LISTEN_FDS names descriptor 4 (gone), which is left out" in log
    assert "descriptor 3" not in log  # systemd passes those too: that is no fault


def test_sockets_meant_for_another_process_are_not_taken(systemd: Systemd) -> None:
    systemd(
        "tcp",
        "web",
        """
        os.environ["LISTEN_PID"] = "1"
        with hotrestart.listen("127.0.0.1:0", name="web") as found:
            assert os.fstat(found.fileno()).st_ino != os.fstat(3).st_ino
        """,
    )


def test_a_listener_bound_without_standard_streams_is_above_them() -> None:
    code = """if True:
        import os, hotrestart
        found = hotrestart.listen("127.0.0.1:0")
        assert min(each["fd"] for each in hotrestart.listeners.hand_over()) > 2
        os._exit(7)
    """
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" <&- >&-', sys.executable, code],
        env=clean_environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 7, done.stderr.decode()


# -- new code asks for the same port in other words, or for another ----------------------------------------------------


def inherited_from(address: str) -> socket.socket:
    """A listener that the generation before has asked for, handed over; ours is the socket that clients reach."""
    before = listen(address)
    port = before.getsockname()[1]
    document = {"fd": before.fileno(), "inode": os.fstat(before.fileno()).st_ino, "address": f"127.0.0.1:{port}"}
    fd = os.dup(before.fileno())
    listeners.forget()
    before.close()
    listeners.adopt([{**document, "fd": fd, "name": None}])
    return socket.socket(fileno=os.dup(fd))


@pytest.mark.parametrize("host", ["localhost", "127.1", "127.000.000.1"])
def test_another_spelling_of_an_inherited_address_is_the_same_listener(host: str) -> None:
    with inherited_from("127.0.0.1:0") as before:
        port = before.getsockname()[1]
        with listen(f"{host}:{port}") as listener:
            assert os.path.sameopenfile(listener.fileno(), before.fileno())
        (handed_over,) = listeners.hand_over()  # only as what it was asked for this time
        assert handed_over["address"] == f"{host}:{port}"


def test_an_inherited_port_can_be_asked_for_at_another_host() -> None:
    before = inherited_from("127.0.0.1:0")
    port = before.getsockname()[1]
    before.close()
    with listen(f"0.0.0.0:{port}") as listener:
        assert listener.getsockname() == ("0.0.0.0", port)


def test_an_inherited_port_that_has_been_asked_for_is_not_given_up() -> None:
    before = inherited_from("127.0.0.1:0")
    port = before.getsockname()[1]
    before.close()
    with listen(f"127.0.0.1:{port}"), pytest.raises(AddressError, match="already in use"):
        listen(f"0.0.0.0:{port}")


def test_with_reuse_port_every_spelling_is_a_socket_of_its_own() -> None:
    with listen("127.0.0.1:0", reuse_port=True) as first:
        port = first.getsockname()[1]
        with listen(f"localhost:{port}", reuse_port=True) as second:
            assert not os.path.sameopenfile(first.fileno(), second.fileno())


def test_a_path_that_somebody_has_taken_away_is_bound_anew(path: str) -> None:
    with listen(f"unix:{path}"):
        os.unlink(path)
        with listen(f"unix:{path}") as again, socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            again.accept()[0].close()


def test_a_path_is_looked_for_where_it_was_first_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with listen("unix:socket") as first:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        with listen("unix:socket") as second:
            assert os.path.sameopenfile(first.fileno(), second.fileno())


def test_new_code_may_ask_for_another_mode(path: str) -> None:
    with listen(f"unix:{path}", mode=0o600), listen(f"unix:{path}", mode=0o666):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o666


def test_an_owner_that_cannot_be_had_takes_no_listener_away(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with listen(f"unix:{path}"):
        monkeypatch.setattr(os, "chown", refused)
        with listen(f"unix:{path}", owner=(1, 1)):
            pass
    assert f"listener unix:{path} keeps its mode and owner: [Errno 1] Operation not permitted" in caplog.text
