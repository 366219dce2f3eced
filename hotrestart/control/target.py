"""Finding the control socket of a program: by its pid, by its pid file, or by the socket's own path."""

from __future__ import annotations

import os
import socket
import stat
import struct
from time import monotonic, sleep

from .. import pidfile
from ..errors import NotThereError, TimedOutError
from . import whereabouts

TYPE_CHECKING = False
if TYPE_CHECKING:
    Target = int | str | os.PathLike[str]

__all__ = ["connect"]

_PAUSE = 0.01  # seconds between two tries, while more clients wait than can


def connect(target: Target, deadline: float) -> tuple[socket.socket, int]:
    """A connection to the program, and its pid (0 if that cannot be told, as from outside of its container).

    `deadline`: of `time.monotonic`. Raises NotThereError and TimedOutError.
    """
    name = str(target) if isinstance(target, int) else os.fspath(target)
    if name.isdecimal():
        return _to_process(int(name), deadline)
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        raise NotThereError(f"{name!r}: {error.strerror}") from None
    if stat.S_ISSOCK(mode):
        connection = _try(name, deadline)
        if connection is None:
            raise NotThereError(f"nobody serves the socket {name!r}")
        return connection, _process_at(connection)
    pid = pidfile.read(name) if stat.S_ISREG(mode) else None
    if pid is None:
        raise NotThereError(f"{name!r} is no socket, and no pid file of a program that runs")
    return _to_process(pid, deadline)


def _to_process(pid: int, deadline: float) -> tuple[socket.socket, int]:
    uid = _user_of(pid)
    refused = ""
    for path in whereabouts.candidates(pid, uid, os.environ, whereabouts.environment_of(pid)):
        try:
            connection = _try(path, deadline)
        except NotThereError as error:
            refused = str(error)
            continue
        if connection is None:
            continue
        if _process_at(connection) in (pid, 0):
            return connection, pid
        connection.close()  # of another container that shares the folder
    if refused:
        raise NotThereError(refused)
    whose = "" if uid == os.geteuid() else f" (it is user {uid}'s)"
    raise NotThereError(
        f"process {pid}{whose} has no control socket: it does not run hotrestart, has not come to main(), "
        "or has control=False"
    )


def _user_of(pid: int) -> int:
    """Raises NotThereError if there is no such process."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        raise NotThereError(f"there is no process {pid}") from None
    except PermissionError:
        pass
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return os.geteuid()


def _try(path: str, deadline: float) -> socket.socket | None:
    """A connection, or None if nobody serves that path. Raises NotThereError if it is not for us."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        while True:
            try:
                connection.connect(path)
                return connection
            except BlockingIOError:  # the queue is full
                if monotonic() >= deadline:
                    raise TimedOutError(f"{path!r} is served, but by nobody who answers") from None
                sleep(_PAUSE)
    except PermissionError:
        connection.close()
        raise NotThereError(f"{path!r} is another user's: permission denied") from None
    except TimedOutError:
        connection.close()
        raise
    except OSError:
        connection.close()
        return None


def _process_at(connection: socket.socket) -> int:
    """The process that serves the other end; 0 if the kernel does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return 0
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])
