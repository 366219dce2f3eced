"""Binding a socket to an address: what `listen` does for one that nobody has bound before."""

from __future__ import annotations

import os
import socket
import stat
import sys

from .errors import AddressError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .address import Address

    Where = tuple[int, list[Any]]  # an address family, and what bind(2) takes, in numbers

__all__ = ["bind", "resolve", "set_rights"]


def bind(
    address: Address,
    where: Where | None,
    *,
    reuse_port: bool,
    mode: int | None,
    owner: tuple[int, int] | None,
) -> socket.socket:
    """A socket that is bound to `address`, and does not block; `where`: what `resolve` has said of it. It does not
    listen yet. Raises AddressError."""
    try:
        if address.kind == "unix":
            return _bind_unix(address.host, mode, owner)
        return _bind_internet(address, where or resolve(address), reuse_port)
    except PermissionError as error:
        raise AddressError(
            error.errno, f"listen({str(address)!r}): {error.strerror}; bind before dropping privileges, or use systemd"
        ) from error
    except (OSError, UnicodeError, OverflowError) as error:
        raise _no_address(address, error) from error


def _no_address(address: Address, error: Exception) -> AddressError:
    if isinstance(error, AddressError):
        return error
    why = getattr(error, "strerror", None) or error
    return AddressError(getattr(error, "errno", None), f"listen({str(address)!r}): {why}")


def resolve(address: Address) -> Where:
    """The family and the numbers of an address; it may take as long as the resolver takes. Raises AddressError."""
    kind = socket.SOCK_DGRAM if address.kind == "udp" else socket.SOCK_STREAM
    host = "" if address.host == "*" else address.host
    name = host.encode() if host.isascii() else host  # bytes need no codec: 3 ms a worker
    try:
        found = socket.getaddrinfo(name or None, address.port, type=kind, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise _no_address(address, error) from error
    family, _, _, _, where = sorted(found, key=lambda each: each[0] != socket.AF_INET)[0]
    return int(family), list(where)


def _bind_internet(address: Address, resolved: Where, reuse_port: bool) -> socket.socket:
    kind = socket.SOCK_DGRAM if address.kind == "udp" else socket.SOCK_STREAM
    family, where = resolved
    bound = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            if not hasattr(socket, "SO_REUSEPORT"):
                raise OSError("reuse_port is not to be had on this system")
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(tuple(where))
        bound.setblocking(False)
        return bound
    except BaseException:
        bound.close()
        raise


def _bind_unix(path: str, mode: int | None, owner: tuple[int, int] | None) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.startswith("@"):  # Linux's abstract names, as in systemd's unit files
            bound.bind("\0" + path[1:])
        else:
            _remove_if_stale(path)
            if mode is not None and sys.platform == "linux":
                os.fchmod(bound.fileno(), mode)  # so that the path never has a wider one, not even for a moment
            bound.bind(path)
            set_rights(path, mode, owner)
        bound.setblocking(False)
        return bound
    except BaseException:
        bound.close()
        raise


def set_rights(path: str, mode: int | None, owner: tuple[int, int] | None) -> None:
    """Give a path this mode and owner; None leaves them as they are. Raises OSError."""
    if owner is not None:
        os.chown(path, *owner)
    if mode is not None:
        os.chmod(path, mode)


def _remove_if_stale(path: str) -> None:
    """A socket that nobody listens on refuses a connection; one whose queue is full (EAGAIN) is alive."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(17, "there is a file of this name that is no socket")  # 17: EEXIST everywhere
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            pass
