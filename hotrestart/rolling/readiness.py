"""Readiness: how a command that knows nothing of us says that it serves.

By `READY=1` on the socket that $NOTIFY_SOCKET names, as to systemd; or, for one that says nothing, by having lived for
a while. Each worker has a socket of its own, so it is known who is meant even if the sender has ended by then, as
`systemd-notify` in a shell script has. The socket has an abstract name: a path would be out of reach of a worker that
has changed its root, or its user. Everybody can see such names and send to them, hence the look at who speaks.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

__all__ = ["NotifySocket", "can_notify", "understood"]

_LONGEST = 8192  # bytes of one message
_READS = 16  # messages in a row: who never stops talking does not hold up the others
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


def can_notify() -> bool:
    """Whether there are abstract names here, and whether the kernel tells who has sent something."""
    return sys.platform == "linux"


def understood(message: bytes) -> dict[str, str]:
    """The lines `NAME=value` of a message; the last one counts if a name comes twice. Anything else is left out."""
    lines = message.decode(errors="replace").split("\n")
    return {name: value for name, is_it, value in (line.partition("=") for line in lines) if is_it}


class NotifySocket:
    """The socket for one worker. `address` is for its $NOTIFY_SOCKET."""

    def __init__(self) -> None:
        name = f"hotrestart-{os.getpid()}-{os.urandom(8).hex()}"
        self.address: str = f"@{name}"
        self.socket: socket.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self.socket.setblocking(False)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self.socket.bind(f"\0{name}")
        except BaseException:
            self.socket.close()
            raise

    def fileno(self) -> int:
        """Readable when something was said."""
        return self.socket.fileno()

    def receive(self, pid: int) -> dict[str, str]:
        """What the process `pid`, and those it has started, have said since; what others say is dropped. Never blocks.

        Descriptors that come along are closed by the kernel: there is no room for them.
        """
        told: dict[str, str] = {}
        for _ in range(_READS):
            try:
                message, ancillary, _, _ = self.socket.recvmsg(_LONGEST, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                break
            if any(_is_trusted(content, pid) for _, kind, content in ancillary if kind == socket.SCM_CREDENTIALS):
                told.update(understood(message))
        return told

    def close(self) -> None:
        """Who still sends gets ECONNREFUSED."""
        self.socket.close()


def _is_trusted(credentials: bytes, pid: int) -> bool:
    """Whoever could signal us anyway, and the worker's own processes, whatever user they have become."""
    sender, user, _ = _CREDENTIALS.unpack(credentials)
    if user in (0, os.geteuid()):
        return True
    try:
        return os.getpgid(sender) == pid
    except OSError:
        return False  # it has ended
