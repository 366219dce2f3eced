"""`listen`: a listening or datagram socket that is bound once and kept over every restart.

The module keeps a descriptor of its own for each listener and hands out duplicates, so a server that closes its socket
while it drains does not take the address away: clients wait in the queue for the next generation. What a socket
rebuilt from a bare descriptor gets wrong is put right: its family (a wrong one loses TCP_NODELAY, 44 ms an answer),
its blocking mode (the flag lives in the shared file, the object does not know), and its inheritance.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from _thread import allocate_lock

from . import fds, log, systemd
from .address import Address, identity
from .binding import bind, resolve, set_rights
from .errors import AddressError, OptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .binding import Where

__all__ = ["adopt", "hand_over", "listen", "listen_at"]


class _Listener:
    """One bound socket: our own descriptor of it, and what it was asked for as."""

    _path: str | None

    __slots__ = ("_is_unix", "_path", "address", "claimed", "fd", "is_old", "name", "socket")

    def __init__(self, bound: socket.socket, address: str, name: str | None, *, is_old: bool = False) -> None:
        if bound.fileno() < 3:
            moved = socket.socket(fileno=fds.above_stdio(bound.detach()))
            moved.setblocking(False)
            bound = moved
        self.socket, self.fd = bound, bound.fileno()
        self.address, self.name, self.is_old, self.claimed = address, name, is_old, False
        self._is_unix, self._path = bound.family == socket.AF_UNIX, None

    @property
    def path(self) -> str | None:
        """Of a unix socket that has one; of a relative one, where it was first asked for."""
        if not self._is_unix:
            return None
        name: object = self.socket.getsockname()
        return self._path or (os.path.abspath(name) if isinstance(name, str) and name else None)

    def hand_out(self) -> socket.socket:
        self.claimed, self._path = True, self.path
        return self.socket.dup()  # keeps timeout, family and close-on-exec


_bound: dict[tuple[str, str | None], _Listener] = {}  # by identity
_from_systemd: list[_Listener] = []
_lock = allocate_lock()
_asked_systemd = False
_shared = False  # with the generation before, which serves

elsewhere: Callable[..., int] | None = None
"""In a process under a supervisor: has an address bound there, where it outlives this process; its descriptor."""


def listen(
    address: str | tuple[str, int],
    *,
    name: str | None = None,
    backlog: int = 1024,
    reuse_port: bool = False,
    mode: int | None = None,
    owner: tuple[int, int] | None = None,
) -> socket.socket:
    """A socket bound to `address`: inherited if any generation before had it, else from systemd, else bound now.

    `address` is "host:port", (host, port), "[::1]:8000", "unix:/path", or "udp:host:port" for datagrams. Port 0 takes
    a free port and keeps it over restarts. `name` tells two listeners with port 0 apart, and picks the socket of that
    name from LISTEN_FDNAMES, whatever its address. Asked twice for the same, it hands out the same
    listener again: a socket object for each caller, to use and close as it likes.

    The socket is non-blocking (wait for it with `loop.wait(listener)`, then accept), close-on-exec, and knows its
    family, so TCP_NODELAY can be set on what it accepts. `backlog` is the longest queue of clients that wait. With
    `reuse_port` other processes may bind the same port beside us; it is not needed for a restart, and a process that
    goes drops its queue. `mode` and `owner` (uid, gid) are for unix paths; a stale path (nobody answers) is replaced.

    A stop closes everything; it leaves a unix path where it is, as a stale one. A restart keeps every listener that
    this generation has asked for. Raises AddressError (an OSError) that says what is wrong. Any thread may call it; a
    signal handler may not. A child that you fork shares the queue; what you exec yourself does not get it.
    """
    return listen_at(address, None, name=name, backlog=backlog, reuse_port=reuse_port, mode=mode, owner=owner)


def listen_at(
    address: str | tuple[str, int], where: Where | None, *, name: str | None = None, **how: Any
) -> socket.socket:
    """`listen`, for somebody who has resolved the address already, to `where`."""
    wanted = Address.parse(address)
    how = {"backlog": 1024, "reuse_port": False, "mode": None, "owner": None, **how}
    _check_options(name, how["backlog"], how["mode"], how["owner"])
    if where is not None and where[0] not in (socket.AF_INET, socket.AF_INET6):
        raise OptionError(f"listen({str(wanted)!r}): {where!r} is not where a port can be")
    with _lock:
        _take_from_systemd()
        found = _find(str(wanted), name)
        if found is None:
            found = _keep(_new_listener(wanted, where, name, how))
        elif found.path is not None and not _shared and found not in _from_systemd:
            _change_rights(found, how["mode"], how["owner"])
        if found.socket.type == socket.SOCK_STREAM and not (_shared and found.is_old):
            found.socket.listen(how["backlog"])  # again, to raise the backlog of an inherited one
        return found.hand_out()


def hand_over() -> list[dict[str, Any]]:
    """What the next generation gets: every listener this generation asked for, and all of systemd's."""
    handed_over: list[dict[str, Any]] = []
    for each in list(_bound.values()):  # another thread may ask for one
        if each.claimed:
            try:
                inode = os.fstat(each.fd).st_ino
            except OSError:
                log.warning(f"listener {each.address} is lost: somebody has closed descriptor {each.fd}")
                continue
            handed_over.append({"fd": each.fd, "inode": inode, "address": each.address, "name": each.name})
    return handed_over


def let_go(address: str, name: str | None) -> None:
    """Close what was handed out for this; who has a duplicate keeps it. What systemd has passed stays."""
    with _lock:
        found = _bound.pop(identity(address, name), None)
        if found is not None:
            found.socket.close()


def systemd_fds() -> list[int]:
    """The descriptors that systemd passed: they go through a restart under their numbers, claimed or not."""
    return [each.fd for each in _from_systemd]


def adopt(documents: list[dict[str, Any]], *, shared: bool = False, claimed: bool = False) -> None:
    """Take over what the generation before handed over. What is not what it says is left out, with a warning.

    With `shared` the generation before goes on using them: blocking mode and backlog, which belong to all who hold the
    socket, stay as they are, also of what systemd has passed. `claimed`: they are wanted, whoever asks for them here.
    """
    global _shared
    _shared = shared
    for document in documents:
        fd = document["fd"]
        try:
            if os.fstat(fd).st_ino != document["inode"]:
                raise OSError("it is another file by now")
            adopted = _Listener(_adopted(fd), document["address"], document["name"], is_old=True)
            _keep(adopted).claimed = claimed
        except OSError as error:
            log.warning(f"listener {document['address']} is not inherited: descriptor {fd}: {error}")


def forget() -> None:
    """Close everything this module holds: for tests, and for a child that shall not hold it."""
    global _asked_systemd
    for each in (*_bound.values(), *_from_systemd):
        each.socket.close()
    _bound.clear()
    _from_systemd.clear()
    _asked_systemd = False


def is_lost(address: str, name: str | None) -> bool:
    """Whether somebody has taken its path away, as servers of asyncio do from 3.13 on: no client can reach it."""
    found = _bound.get(identity(address, name))
    return found is not None and found.path is not None and not os.path.lexists(found.path)


def _find(address: str, name: str | None) -> _Listener | None:
    for each in _from_systemd:
        if (name is not None and each.name == name) or each.address == address:
            return each
    if not _shared and is_lost(address, name):
        _bound.pop(identity(address, name)).socket.close()
    return _bound.get(identity(address, name))


def _change_rights(listener: _Listener, mode: int | None, owner: tuple[int, int] | None) -> None:
    """New code may ask for others than the socket was bound with."""
    try:
        set_rights(listener.path or "", mode, owner)
    except OSError as error:
        log.warning(f"listener {listener.address} keeps its mode and owner: {error}")


def _new_listener(wanted: Address, where: Where | None, name: str | None, how: dict[str, Any]) -> _Listener:
    """One that nobody has asked for by this address; it may be there under another spelling of it all the same."""
    if wanted.kind != "unix" and where is None:
        where = resolve(wanted)
    if elsewhere is not None:
        bound = _adopted(elsewhere(str(wanted), where, name=name, **how))
        return _Listener(bound, str(wanted), name, is_old=_shared)
    rights = {each: how[each] for each in ("reuse_port", "mode", "owner")}
    try:
        bound = bind(wanted, where, **rights)
    except AddressError as error:
        if error.errno != errno.EADDRINUSE or where is None:
            raise
        kind = socket.SOCK_DGRAM if wanted.kind == "udp" else socket.SOCK_STREAM
        for each in _bound.values():
            if _is_of(each, where[0], kind) and list(each.socket.getsockname())[:2] == list(where[1])[:2]:
                return _Listener(each.socket.dup(), str(wanted), name, is_old=each.is_old)
        if not _let_go_of_port(where[0], kind, wanted.port):
            raise
        bound = bind(wanted, where, **rights)
    return _Listener(bound, str(wanted), name)


def _let_go_of_port(family: int, kind: int, port: int) -> bool:
    """Whether a generation before has had this port at other hosts, which nobody has asked for since; it moves."""
    found = [
        key
        for key, each in _bound.items()
        if not each.claimed and _is_of(each, family, kind) and each.socket.getsockname()[1] == port
    ]
    for key in found:
        _bound.pop(key).socket.close()
    return bool(found)


def _is_of(listener: _Listener, family: int, kind: int) -> bool:
    return (listener.socket.family, listener.socket.type) == (family, kind)


def _keep(listener: _Listener) -> _Listener:
    return _bound.setdefault(identity(listener.address, listener.name), listener)


def _check_options(name: str | None, backlog: int, mode: int | None, owner: tuple[int, int] | None) -> None:
    if name is not None and not isinstance(name, str):
        raise OptionError(f"listen(): name is a string, not {name!r}")
    if not isinstance(backlog, int) or isinstance(backlog, bool) or not 0 <= backlog <= 2**31 - 1:
        raise OptionError(f"listen(): backlog is a number of connections, not {backlog!r}")
    if mode is not None and (not isinstance(mode, int) or not 0 <= mode <= 0o7777):
        raise OptionError(f"listen(): mode is like 0o660, not {mode!r}")
    if owner is not None and not (
        isinstance(owner, tuple)
        and [type(each) for each in owner] == [int, int]
        and all(-1 <= each < 2**32 - 1 for each in owner)  # -1: as it is, see chown(2)
    ):
        raise OptionError(f"listen(): owner is (uid, gid), not {owner!r}")


def _take_from_systemd() -> None:
    global _asked_systemd
    if _asked_systemd:
        return
    _asked_systemd = True
    for fd, name in systemd.listen_fds():
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue  # a FIFO or a device: systemd passes those too, and they are not ours
            adopted = _adopted(fd)
            _from_systemd.append(_Listener(adopted, _address_of(adopted), name, is_old=True))
        except OSError as error:
            log.warning(f"LISTEN_FDS names descriptor {fd} ({name}), which is left out: {error}")


def _adopted(fd: int) -> socket.socket:
    """A socket object around a descriptor from elsewhere."""
    adopted = socket.socket(fileno=fd)  # asks the kernel for family, type and protocol
    try:
        if adopted.type == socket.SOCK_STREAM and not adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError("it does not listen")
        adopted.set_inheritable(False)
        adopted.setblocking(_shared and os.get_blocking(fd))
    except BaseException:
        adopted.detach()  # not ours to close
        raise
    return adopted


def _address_of(bound: socket.socket) -> str:
    name = bound.getsockname()
    if bound.family == socket.AF_UNIX:
        path = name.decode(errors="surrogateescape") if isinstance(name, bytes) else name
        return f"unix:{path}"
    return str(Address("udp" if bound.type == socket.SOCK_DGRAM else "tcp", name[0], name[1]))


def _renew_lock_after_fork() -> None:
    global _lock
    _lock = allocate_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock_after_fork)
