"""File descriptors: which are open, close them, mark them for exec, send them to another process.

Before an exec, mark, do not close: an exec can fail, and a process whose descriptors are closed can then neither log
nor go on, and its file objects close unrelated files that have reused their numbers. `close_open_fds` is for a child
that has just been forked and shares nothing it wants to keep.

All functions are safe in a signal handler as far as the system calls go, but they list and allocate: call them in a
forked child, before an exec, or with no other thread opening files meanwhile.
"""

from __future__ import annotations

import os
import sys
from time import perf_counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from socket import socket

__all__ = [
    "above_stdio",
    "close_open_fds",
    "open_fds",
    "receive",
    "recv_fds",
    "send_fds",
    "set_cloexec_from",
    "set_inheritable_all",
]

_NO_FD = 2**31 - 1  # one more than any descriptor can be: the C type is int
_FEW = 65536  # how far to look where nothing can list the open descriptors
_BATCH = 253  # SCM_MAX_FD: Linux refuses a message with more


def open_fds(lowest: int = 0) -> list[int]:
    """The open descriptors from `lowest` upward, in order.

    From /proc/self/fd or /dev/fd; where neither lists them (a chroot, some BSDs) each number below the limit on open
    files is tried, and no more than the first 65,536.
    """
    for directory in ("/proc/self/fd", "/dev/fd"):
        try:
            listed = [int(name) for name in os.listdir(directory)]
        except (OSError, ValueError):
            continue
        if directory == "/proc/self/fd" or sys.platform == "darwin":
            # one of them was open only for the listing
            return sorted(fd for fd in listed if fd >= lowest and _is_open(fd))
    return [fd for fd in range(lowest, _limit()) if _is_open(fd)]


def close_open_fds(keep: Iterable[int] = (), *, lowest: int = 3) -> None:
    """Close every open descriptor from `lowest` upward, except those in `keep`.

    For a forked child before it goes its own way. Costs three system calls and one more for each descriptor kept,
    however high the limit on open files is. Descriptors above a limit that was lowered are closed too.
    """
    end = _NO_FD if _at_once or _closes_ranges_at_once() else max(open_fds(lowest), default=lowest - 1) + 1
    for fd in sorted(keep):
        if fd >= lowest:
            os.closerange(lowest, min(fd, end))
            lowest = fd + 1
    os.closerange(lowest, end)


def set_cloexec_from(lowest: int = 3, keep: Collection[int] = ()) -> list[int]:
    """Mark every descriptor from `lowest` upward close-on-exec, except those in `keep`; return those that were not.

    Give the returned list to `set_inheritable_all` to take it back, as after an exec that failed.
    """
    marked: list[int] = []
    for fd in open_fds(lowest):
        try:
            if fd not in keep and os.get_inheritable(fd):
                os.set_inheritable(fd, False)
                marked.append(fd)
        except OSError:
            continue  # another thread closed it meanwhile
    return marked


def set_inheritable_all(fds: Iterable[int], inheritable: bool = True) -> list[int]:
    """Set or clear inheritance through exec for each of `fds`; return those for which it has changed."""
    changed: list[int] = []
    for fd in fds:
        try:
            if os.get_inheritable(fd) != inheritable:
                os.set_inheritable(fd, inheritable)
                changed.append(fd)
        except OSError:
            continue  # closed meanwhile
    return changed


def above_stdio(fd: int) -> int:
    """`fd`, or in its place a close-on-exec duplicate above 2 if it has the number of a standard stream.

    A program started without standard streams is given their numbers for its first files.
    """
    if fd > 2:
        return fd
    import fcntl

    duplicate = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return duplicate


def send_fds(sock: socket, fds: Iterable[int], data: bytes = b"") -> None:
    """Send descriptors, and some bytes with them, over a unix stream socket to a process that calls `recv_fds`.

    Any number of descriptors: they go in batches of 253. They stay open here. Raises what `sendmsg` raises.
    """
    import array
    import socket
    import struct

    pending = list(fds)
    payload = struct.pack("!II", len(data), len(pending)) + data
    while payload or pending:
        batch, pending = pending[:_BATCH], pending[_BATCH:]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", batch))] if batch else []
        # A receiver sees no more than one batch for each read, and none with an empty read: a byte for each.
        sent = sock.sendmsg([payload or b"\0"], rights)
        if len(payload) > sent:
            sock.sendall(payload[sent:])
        payload = b""


def recv_fds(sock: socket, max_fds: int = 1024, max_data: int = 65536) -> tuple[bytes, list[int]]:
    """Receive what `send_fds` sent: the bytes and the descriptors, all close-on-exec from the first moment.

    At the end of the stream: `(b"", [])`. Raises DescriptorError if the kernel dropped descriptors (a limit on open
    files is reached), if the message is cut off, or if it announces more than `max_fds` or `max_data`; every
    descriptor received so far is closed then. `socket.recv_fds` does not do: it ignores its flags.
    """
    import struct

    from .errors import DescriptorError

    received: list[int] = []
    try:
        header = _receive_exactly(sock, 8, received)
        if not header:
            return b"", []
        if len(header) < 8:
            raise DescriptorError(f"the stream ends after {len(header)} bytes of a message")
        size, count = struct.unpack("!II", header)
        if size > max_data or count > max_fds:
            raise DescriptorError(f"a message of {size} bytes and {count} descriptors is over the limit")
        data = _receive_exactly(sock, size, received)
        for _ in range(1, -(-count // _BATCH)):
            _receive_exactly(sock, 1, received)
        if len(received) != count or len(data) != size:
            raise DescriptorError(f"{len(received)} of {count} descriptors and {len(data)} of {size} bytes arrived")
        return data, received
    except BaseException:
        for fd in received:
            os.close(fd)
        raise


def receive(sock: socket, size: int, received: list[int]) -> bytes:
    """`size` bytes at most, as `recv`; descriptors that come with them are added to `received`, close-on-exec.

    Raises DescriptorError if the kernel dropped descriptors.
    """
    import array
    import socket

    room = socket.CMSG_SPACE(_BATCH * array.array("i").itemsize)
    cloexec = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, ancillary, flags, _ = sock.recvmsg(size, room, cloexec)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            rights = array.array("i")
            rights.frombytes(content[: len(content) - len(content) % rights.itemsize])
            received.extend(rights)
    if not cloexec:  # macOS: not atomic there
        set_inheritable_all(received, False)
    if flags & socket.MSG_CTRUNC:
        from .errors import DescriptorError

        raise DescriptorError("the kernel dropped descriptors: is the limit on open files reached?")
    return data


def _receive_exactly(sock: socket, size: int, received: list[int]) -> bytes:
    """`size` bytes, or fewer if the stream ends before; descriptors on the way are added to `received`."""
    data = b""
    while len(data) < size and (chunk := receive(sock, size - len(data), received)):
        data += chunk
    return data


def _is_open(fd: int) -> bool:
    try:
        os.get_inheritable(fd)
    except OSError:
        return False
    return True


def _limit() -> int:
    try:
        return min(os.sysconf("SC_OPEN_MAX"), _FEW)
    except (OSError, ValueError):
        return _FEW


_at_once: bool | None = None


def _closes_ranges_at_once() -> bool:
    """Whether os.closerange is close_range(2), which takes a microsecond, and not a loop, which would take minutes.

    Nothing tells except the clock: 4,096 numbers that cannot be open take 0.5 us with, 200 us without.
    A wrong "no" on a machine that hiccups costs 10 us each time; a wrong "yes" cannot be.
    """
    global _at_once
    if _at_once is None:
        started = perf_counter()
        os.closerange(_NO_FD - 4096, _NO_FD)
        _at_once = perf_counter() - started < 0.00005
    return _at_once
