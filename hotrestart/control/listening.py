"""Making the control socket, and taking its name away again.

A name whose socket nobody serves any more is taken over: a killed program leaves one behind, and a container has the
same pids again and again. A name that is served stays whose it is.
"""

from __future__ import annotations

import os
import sys
from time import sleep

from .. import log
from ..errors import AddressError
from ..options import LONGEST_SOCKET_PATH
from . import whereabouts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["Listening"]

_BACKLOG = 128
_SWEPT = 256  # names that are looked at
_TRIES, _PAUSE = 200, 0.01  # seconds between them


class Listening:
    """A listening control socket and the names that lead to it: its own `path`, and a symbolic `link` or ""."""

    fd: int
    path: str
    link: str
    inode: int

    __slots__ = ("_pid", "_socket", "fd", "inode", "link", "path")

    def __init__(self, fd: int, path: str, link: str, inode: int) -> None:
        self.fd, self.path, self.link, self.inode = fd, path, link, inode
        self._socket, self._pid = os.fstat(fd).st_ino, os.getpid()

    @classmethod
    def open(cls, wanted: str | bool) -> Listening:
        """Listen at a path, or (True) at the place for this process. Raises AddressError."""
        if isinstance(wanted, str):
            path = os.path.abspath(wanted)
            fd, inode = _bind(path)
            found = cls(fd, path, "", inode)
            found.be_found()
            return found
        problem = "there is no folder for it"
        for place in _places():
            try:
                fd, inode = _bind(place)
                return cls(fd, place, "", inode)
            except AddressError as error:
                problem = str(error)
        raise AddressError(f"no control socket: {problem}")

    @property
    def is_at_our_place(self) -> bool:
        """Whether it is found by the pid alone."""
        return os.path.basename(self.path) == whereabouts.name_for(os.getpid()) and not self.link

    def move(self, wanted: bool | str, *, is_needed: bool = False) -> Listening | None:
        """What the option `control` asks for, instead of this one, which is closed unless it is the same. If there can
        be none, the log says why, and this one stays; so it does, but without its names, if none is wanted and this one
        `is_needed` still."""
        if self.is_as(wanted):
            return self
        new = None
        if wanted is not False:
            try:
                new = Listening.open(wanted)
            except AddressError as error:
                log.error(str(error))
                return self
        elif is_needed:
            self.disappear()
            return self
        self.close()
        if new is not None:
            new.be_found()
        return new

    def be_found(self) -> None:
        """Have our pid lead here, if it can be; to be called again when what was in that place is gone."""
        if not self.link and not self.is_at_our_place:
            self.link = _link(self.path)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Listening:
        """The one that `as_document` has put down, before an exec. Raises OSError if the descriptor is not it."""
        left = cls(document["fd"], document["path"], document["link"], document["inode"])
        left._socket = document["socket"]
        left._check()
        os.set_inheritable(left.fd, False)
        return left

    def _check(self) -> None:
        if os.fstat(self.fd).st_ino != self._socket:
            raise OSError(f"descriptor {self.fd} is another file by now")

    def is_as(self, wanted: bool | str) -> bool:
        """Whether it is what the option `control` asks for, and can still be found: a folder of the user's own goes
        with the user's last session."""
        is_it = self.path == wanted if isinstance(wanted, str) else wanted and self.is_at_our_place
        return is_it and self._is_in_place()

    def _is_in_place(self) -> bool:
        try:
            return os.lstat(self.path).st_ino == self.inode
        except OSError:
            return False

    def as_document(self) -> dict[str, Any]:
        """As plain data, for JSON. Raises OSError if somebody else has closed the descriptor."""
        self._check()
        document = {"fd": self.fd, "path": self.path, "link": self.link}
        return {**document, "inode": self.inode, "socket": self._socket}

    def close(self) -> None:
        """Take the names away, and close the socket."""
        self.disappear()
        try:
            self._check()
            os.close(self.fd)
        except OSError:
            pass  # somebody else has closed it, and may have another file there

    def disappear(self) -> None:
        """Take the names away, unless they are somebody else's by now. In any thread; in a forked child, nothing."""
        if os.getpid() != self._pid:
            return
        try:
            if self._is_in_place():
                os.unlink(self.path)
            if self.link and os.readlink(self.link) == self.path:
                os.unlink(self.link)
        except OSError:
            pass  # gone already, or not ours to remove any more: nobody answers there, and that is what it says


def _places() -> Iterator[str]:
    """Where our pid leads; a folder is made when the one before it does not do."""
    for folder in whereabouts.folders(os.geteuid(), os.environ):
        if whereabouts.make_private(folder):
            _sweep(folder)
            yield f"{folder}/{whereabouts.name_for(os.getpid())}"


def _sweep(folder: str) -> None:
    """Remove what killed programs have left behind."""
    try:
        names = os.listdir(folder)
    except OSError:
        return  # it is gone again, or there is no descriptor left to look into it
    for name in names[:_SWEPT]:
        pid, _, suffix = name.partition(".")
        if suffix == "sock" and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            try:
                _remove_if_dead(f"{folder}/{name}")
            except OSError:
                continue  # it is no socket, or not ours to remove


def _remove_if_dead(path: str) -> bool:
    """Whether nobody serves the socket, and its name is gone. It may be a program's in another container."""
    import _socket

    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass  # another program was quicker
        return True
    except OSError:
        pass  # it is served, and has many visitors; or it is not ours
    finally:
        probe.close()
    return False


def _bind(path: str) -> tuple[int, int]:
    """A listening socket at `path`, and the inode of that name."""
    import _socket  # the module socket costs 9 ms of the first start

    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise AddressError(f"a control socket cannot be at {path!r}: {LONGEST_SOCKET_PATH} bytes are the most")
    turn = _take_turn(os.path.dirname(path))
    sock = None
    try:
        _clear_away(path)
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        if sys.platform == "linux":
            os.fchmod(sock.fileno(), 0o600)  # the name gets it at once; elsewhere a socket has no mode
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        inode = os.stat(path).st_ino
        from ..fds import above_stdio

        return above_stdio(sock.detach()), inode
    except OSError as error:
        if sock is not None:
            sock.close()
        if isinstance(error, AddressError):
            raise
        raise AddressError(f"a control socket cannot be at {path!r}: {error.strerror}") from None
    finally:
        if turn != -1:
            os.close(turn)


def _take_turn(folder: str) -> int:
    """A lock on the folder, if it can be had: of two programs that start at the same time, one would find the other's
    socket when nobody listens to it yet, and remove it."""
    import fcntl

    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return -1
    for _ in range(_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            sleep(_PAUSE)
    return fd


def _clear_away(path: str) -> None:
    """Remove a name that nobody serves."""
    import stat

    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        os.unlink(path)  # in the place of a dead process with our pid
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise AddressError(f"{path!r} is there, and is no socket")
    if not _remove_if_dead(path):
        raise AddressError(f"another program is controlled at {path!r}")


def _link(path: str) -> str:
    """A name by which the pid leads to `path`, if there can be one."""
    for place in _places():
        try:
            if os.path.lexists(place):
                _clear_away(place)
            os.symlink(path, place)
            return place
        except OSError:
            continue  # then it is found by its path only
    return ""
