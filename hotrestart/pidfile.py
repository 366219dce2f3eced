"""The pid file: names the one process that runs the program, and nobody else's, from the first moment to the last.

The usual way, "open, truncate, write", shows an empty file to whoever reads in between, and lets two programs that
start together both believe that it is theirs. Here a file is filled and locked before it gets its name:

* `link` gives it a name that is free; it fails if there is something by now.
* A name that is taken is replaced (`rename`) by a process that holds the lock of the file which has it, and has looked
  again, after it got the lock, that the name is still that file's. So whoever changes what the name means has the lock.

The lock is flock's: it belongs to the open file, goes through an exec with its descriptor, and ends with the process,
whatever ends it. A child would keep it alive after that, so children close it as they are forked. Programs of other
kinds do not lock: what they have written counts for as long as the process lives that it names, unless that process has
started later than the file was written, for then it is another one, to which the kernel has given the number again.

A symbolic link is not replaced and not written through: it has no lock of its own, and where everybody may write,
somebody else may have put it there. Links on the way to the folder are followed, and `read` follows them all.
"""

from __future__ import annotations

import os
import stat

from . import fds, log, pids
from .errors import PidFileError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["PidFile", "read"]

_PATIENCE = 3.0  # seconds; for others who have locked a stale file: they replace it at once, or are stuck
_PAUSE = 0.01  # seconds between two looks
_STAYS_LOCKED = (
    "somebody else has locked it, and it is not the process that it names: a child of that one, "
    "or a program in another container; fuser and lslocks tell which"
)
_LONGEST = 64  # bytes; a pid has ten digits


class PidFile:
    """The pid file of this process, from `take` (or `of`) to `remove`.

    Keep it until the program ends. It is not for a forked child, where `fd` is -1 and `remove` does nothing: a program
    that puts itself into the background takes its pid file afterwards. One thread at a time.
    """

    __slots__ = ("_pid", "_status", "fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        """For `take` and `of`: the file that is at `path` and open as `fd`, and whose lock we have."""
        self.path: str = path
        self.fd: int = fd
        self._pid, self._status = os.getpid(), os.fstat(fd)
        held.append(self)

    @classmethod
    def take(cls, path: str) -> PidFile:
        """Write our pid into a file at `path`, mode 0644, and lock it for as long as this process lives.

        A stale file is replaced: one that names a process that is gone or that is this one, or names none at all.
        Raises PidFileError if the file is another live program's, if something is there that is no pid file (it is left
        alone), or if it cannot be written. `path` may be relative; its folder must exist. Three seconds at most.
        """
        from time import monotonic, sleep

        path = os.path.abspath(path)
        deadline = monotonic() + _PATIENCE
        try:
            while (claimed := _claim(path)) == -1:
                if monotonic() > deadline:
                    raise PidFileError(f"pid file {path!r}: {_STAYS_LOCKED}")
                sleep(_PAUSE)
            try:
                return cls(path, _replace(path))
            except BaseException:
                if _named(os.pread(claimed, _LONGEST, 0)) == os.getpid():
                    _unlink(path)  # we would not remove it in the end
                raise
            finally:
                os.close(claimed)
        except (OSError, ValueError) as error:
            raise error if isinstance(error, PidFileError) else PidFileError(_explain(path, error)) from None

    @classmethod
    def of(cls, document: dict[str, Any]) -> PidFile | None:
        """After an exec: the pid file that `as_document` described before it; its descriptor is close-on-exec again.

        If it has been removed or overwritten meanwhile, it is written again. If it is somebody else's now, or cannot be
        written: None, with one warning in the log.
        """
        path, fd = document["path"], document["fd"]
        try:
            if os.fstat(fd).st_ino == document["inode"]:
                os.set_inheritable(fd, False)
                inherited = cls(path, fd)
                if inherited._is_in_place():
                    return inherited
                inherited.close()
        except OSError:
            pass  # closed on the way: then the file names us, and nobody has locked it
        try:
            return cls.take(path)
        except PidFileError as error:
            log.warning(f"this program has no pid file any more: {error}")
            return None

    def as_document(self) -> dict[str, Any]:
        """What `of` needs after an exec, as plain data. The descriptor `fd` must be inheritable in that moment."""
        return {"path": self.path, "fd": self.fd, "inode": self._status.st_ino}

    def remove(self) -> None:
        """Take the file away, if it is still ours, and let go. In another process than the one that took it: nothing.

        Never raises, and may be called again. Where it cannot be taken away, because privileges have been dropped, it
        is emptied: it shall not name a process that is gone.
        """
        if not self._is_open() or self._pid != os.getpid():
            return
        try:
            if _is_at(self.path, self._status):  # and nobody else replaces it, while we have its lock
                os.unlink(self.path)
        except OSError:
            _empty(self.fd)
        self.close()

    def close(self) -> None:
        """Let go of the file and its lock, without removing it. Never raises, and may be called again."""
        if self in held:
            held.remove(self)
        if self._is_open():
            os.close(self.fd)
        self.fd = -1

    def _is_open(self) -> bool:
        """Whether the descriptor is still our file, and not one that got its number after somebody closed it."""
        try:
            return self.fd != -1 and os.path.samestat(os.fstat(self.fd), self._status)
        except OSError:
            return False

    def _is_in_place(self) -> bool:
        """Whether it has our pid, our lock, and its name, as far as we may see it."""
        try:
            if _named(os.pread(self.fd, _LONGEST + 1, 0)) != self._pid or not _lock(self.fd):
                return False
            return _is_at(self.path, self._status)
        except PermissionError:
            return True  # privileges have been dropped, and the folder is closed to us
        except OSError:
            return False


def read(path: str) -> int | None:
    """The pid of the live program that the file at `path` names. None: there is no file, no pid in it, or a stale one.

    A file of any user and of any program. Never blocks, changes nothing. Raises PidFileError if the file is there, but
    may not be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # some devices do things when they are opened
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise PidFileError(f"pid file {path!r}: it may not be read: {error.strerror}") from None
    except (OSError, ValueError):
        return None
    try:
        pid = _named(os.read(fd, _LONGEST + 1))
        if pid is None or not pids.is_alive(pid):
            return None
        # A program that locks its file is known by that, also after the clock has been set. Only then try the lock: the
        # moment for which we have it ourselves is one in which nobody can take a stale file.
        fits = pids.may_be_meant(pid, os.fstat(fd).st_mtime)
        return pid if fits or not _lock(fd, shared=True) else None
    except OSError:
        return None
    finally:
        os.close(fd)


held: list[PidFile] = []


def _replace(path: str) -> int:
    """Put a file of ours in the place of the one that we have locked: its descriptor."""
    fd, new = _new_file(os.path.dirname(path))
    try:
        os.replace(new, path)
    except BaseException:
        os.close(fd)
        _unlink(new)
        raise
    return fd


def _new_file(folder: str) -> tuple[int, str]:
    """A file in `folder` that has our pid in it and is locked, under a name that nobody looks for."""
    new = os.path.join(folder, f".hotrestart-pid-{os.urandom(8).hex()}")
    fd = fds.above_stdio(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        content = f"{os.getpid()}\n".encode()
        if os.write(fd, content) != len(content) or not _lock(fd):
            raise PidFileError(f"pid file in {folder!r}: no room for {len(content)} bytes, or no locks")
        os.fchmod(fd, 0o644)  # whatever the umask is
        return fd, new
    except BaseException:
        os.close(fd)
        _unlink(new)
        raise


def _claim(path: str) -> int:
    """Lock the file that is at `path`, if it is stale, or the one that we put there, if there is none: its descriptor.

    -1: it is changing hands just now, try again. Raises PidFileError if it is not ours to replace.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise PidFileError(f"pid file {path!r}: something else is there, which is left alone; name another path")
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return _claim_free_name(path)
    is_claimed = False
    try:
        is_claimed = _lock_if_stale(path, fd)
    finally:
        if not is_claimed:
            os.close(fd)
    return fd if is_claimed else -1


def _claim_free_name(path: str) -> int:
    # What has been linked shows in /proc under its first name, as deleted: so it is replaced like any other.
    fd, new = _new_file(os.path.dirname(path))
    try:
        os.link(new, path)
    except BaseException as error:
        os.close(fd)
        if not isinstance(error, FileExistsError):
            raise
        return -1
    finally:
        _unlink(new)
    return fd


def _lock_if_stale(path: str, fd: int) -> bool:
    is_locked = _lock(fd)
    content, status = os.pread(fd, _LONGEST + 1, 0), os.fstat(fd)
    pid = _named(content)
    if is_locked and not _is_at(path, status):
        return False
    if pid is None and content.strip(b"\0 \t\r\n"):  # after a power failure there may be zeros in it
        raise PidFileError(f"pid file {path!r}: no pid file is there, it begins with {content[:20]!r}; left alone")
    if pid == os.getpid():
        if any(os.path.samestat(each._status, status) for each in held):
            raise PidFileError(f"pid file {path!r}: it names process {pid}, this one, which has taken it already")
    elif pid is not None and pids.is_alive(pid) and pids.may_be_meant(pid, status.st_mtime):
        runs = pids.what_runs(pid)
        raise PidFileError(f"pid file {path!r}: it names process {pid}, which {f'runs: {runs}' if runs else 'lives'}")
    return is_locked


def _named(content: bytes) -> int | None:
    """The pid that a file with this content names."""
    digits = content.strip(b" \t\r\n")
    if len(content) > _LONGEST or not digits.isdigit() or not 0 < int(digits) < 2**31:
        return None
    return int(digits)


def _lock(fd: int, *, shared: bool = False) -> bool:
    """Lock the file, unless somebody else has."""
    import fcntl

    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: str, status: os.stat_result) -> bool:
    """Whether the name is this file's."""
    try:
        return os.path.samestat(os.lstat(path), status)
    except FileNotFoundError:
        return False


def _explain(path: str, error: OSError | ValueError) -> str:
    import errno

    folder = os.path.dirname(path)
    if not isinstance(error, OSError):
        return f"pid file {path!r}: {error}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        what_to_do = f"make the folder {folder!r} first (for systemd: RuntimeDirectory=)"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what_to_do = f"user {os.geteuid()} must be able to read it, and to make, link and replace files in {folder!r}"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what_to_do = f"make room in {folder!r}"
    else:
        what_to_do = "choose a folder on a local file system, such as /run"
    return f"pid file {path!r}: {error.strerror}; {what_to_do}"


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # nobody looks for it


def _empty(fd: int) -> None:
    try:
        os.ftruncate(fd, 0)
    except OSError:
        pass  # the file system is gone; who reads the file looks whether the process lives


def _let_go_after_fork() -> None:
    while held:
        held[-1].close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)
