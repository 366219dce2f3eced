"""What one generation hands to the next: one JSON document in one memory file, named by one environment variable.

`HOTRESTART=<descriptor>:<inode>`. The trap is that variables leak: a program started by the program must not take
itself for a generation, read some unrelated file that has the number, or close descriptors that are its own. So the
variable is removed when it is read, the inode must be the file's, and the document must be meant for this very process.
Anything else is ignored with one warning.
"""

from __future__ import annotations

import os

from . import cjson, command, role

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from socket import socket
    from typing import Any

__all__ = ["FORMAT", "bequeath", "inherited", "read", "write"]

FORMAT = 1
"""The version of the document. Another version's is not understood, but `pid`, `parent`, `role` and `format` stay."""

_LARGEST = 1 << 30  # bytes; a document is a few hundred, plus what the program bequeaths

state: dict[str, Any] = {}
"""What the program bequeaths to the next generation, by name: values that JSON can say."""

kept: dict[str, int] = {}
"""What the program bequeaths to the next generation, by name: descriptors, duplicates owned by this module."""

_state_before: dict[str, Any] = {}
_kept_before: dict[str, int] = {}


def bequeath(name: str, value: Any) -> None:
    """Leave `value` to the next generation, which asks for it with `inherited(name)`.

    `value` is either plain data (what JSON can say; it is copied now) or anything with `fileno()`, such as a socket
    or an open file: its descriptor is duplicated now, so closing yours does not matter. It lasts for one restart. The
    last word for a name counts; None takes it back. A stop hands nothing on. Raises OptionError for a value that cannot
    be handed on, or in a worker of a program with `workers=`; what was bequeathed before under the name stays then.
    Not for use in a signal handler; threads must not bequeath the same name at once.
    """
    from . import fds
    from .errors import OptionError

    if role.current is not None and not role.current.has_heir:
        raise OptionError(f"bequeath({name!r}): a worker has no heir: old and new workers run side by side")
    if not isinstance(name, str):
        raise OptionError(f"bequeath(): a name is a string, not {name!r}")
    data, fd = None, -1
    try:
        if hasattr(value, "fileno"):
            fd = fds.above_stdio(os.dup(value.fileno()))
        else:
            data = cjson.loads(cjson.dumps(value))
    except (TypeError, ValueError, RecursionError, OSError) as error:
        raise OptionError(
            f"bequeath({name!r}): {error}; hand over plain data (strings, numbers, lists, dicts) "
            "or an open file or socket"
        ) from None
    old = kept.get(name)
    if fd != -1:
        kept[name] = fd  # in one step, and only then is the old one closed: see `copies`
    else:
        kept.pop(name, None)
    if data is not None:
        state[name] = data
    else:
        state.pop(name, None)
    if old is not None:
        os.close(old)


def inherited(name: str, default: Any = None) -> Any:
    """What the generation before this one bequeathed under `name`, or `default`.

    Data comes back as plain data. A socket comes back as a socket, anything else with a descriptor as the number of
    that descriptor (for `os.fdopen`); either is yours to close, close-on-exec, and given out once.
    """
    if name in _kept_before:
        return _as_socket_if_it_is_one(_kept_before.pop(name))
    return _state_before.get(name, default)


def copies() -> dict[str, int]:
    """Duplicates of the descriptors that are bequeathed now, the caller's to close; in any thread, whatever becomes of
    the originals meanwhile."""
    from . import fds

    taken: dict[str, int] = {}
    for name in list(kept):
        while (fd := kept.get(name)) is not None:
            try:
                copy = fds.above_stdio(os.dup(fd))
            except OSError:
                if kept.get(name) == fd:
                    break  # the program itself has closed it, or there is no room for another one
                continue
            if kept.get(name) == fd:
                taken[name] = copy
                break
            os.close(copy)  # the number may have been another file's by then
    return taken


def adopt(state_before: dict[str, Any], kept_before: dict[str, int]) -> None:
    """Make what came with the document available to `inherited`."""
    _state_before.update(state_before)
    _kept_before.update(kept_before)


def forget() -> None:
    """Close what was bequeathed or inherited and never asked for: for tests."""
    for fd in (*kept.values(), *_kept_before.values()):
        os.close(fd)
    for mapping in (kept, _kept_before, state, _state_before):
        mapping.clear()


def write(document: dict[str, Any]) -> tuple[int, str]:
    """Put `document` into a sealed memory file: its descriptor, close-on-exec, and the value for the variable.

    Where there is no memory file, an unlinked temporary file. Raises OSError if neither can be had.
    """
    data = cjson.dumps({"format": FORMAT, **document}).encode()
    from . import fds

    try:
        fd, is_memory = os.memfd_create("hotrestart", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), True
    except (AttributeError, OSError):  # not Linux; or a sandbox that does not know the call
        import tempfile

        (fd, path), is_memory = tempfile.mkstemp(prefix="hotrestart-"), False
        os.unlink(path)
    fd = fds.above_stdio(fd)
    try:
        written = 0
        while written < len(data):
            written += os.pwrite(fd, data[written:], written)
        if is_memory:
            import fcntl

            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd, f"{fd}:{os.fstat(fd).st_ino}"
    except BaseException:
        os.close(fd)
        raise


def read(environ: MutableMapping[str, str] = os.environ) -> dict[str, Any] | None:
    """The document meant for this process, or None: there is none, or it is not to be trusted (one warning says why).

    The variable is removed and the file is closed. Whoever uses the document looks at its `format`, and checks the
    descriptors that it names.
    """
    value = environ.pop(command.VARIABLE, None)
    if value is None:
        return None
    try:
        return _read(value)
    except (ValueError, OSError, RecursionError) as error:
        from . import log

        log.warning(f"what {command.VARIABLE}={value!r} names is ignored: {error}")
        return None


def _read(value: str) -> dict[str, Any]:
    number, _, inode = value.partition(":")
    if not (number.isdecimal() and inode.isdecimal()) or len(number) > 9:
        raise ValueError("it is not written by hotrestart")
    fd = int(number)
    status = os.fstat(fd)
    if status.st_ino != int(inode) or status.st_nlink or not 0 < status.st_size <= _LARGEST:
        raise ValueError("the descriptor is another file by now")
    document: dict[str, Any] | None = cjson.loads(_read_all(fd, status.st_size).decode())
    if not isinstance(document, dict):
        raise ValueError("it is not written by hotrestart")
    if document.get("pid") != os.getpid() and document.get("parent") != os.getppid():
        if document.get("role") in ("preflight", "member") and not _exists(document.get("parent")):
            os._exit(1)  # the old generation has died: nobody wants to know, and main() must not run on its own
        raise ValueError("it is meant for another process")
    os.close(fd)
    return document


def _exists(pid: Any) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, TypeError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _read_all(fd: int, size: int) -> bytes:
    """The file's bytes; its offset, which every process that holds the file shares, plays no part."""
    data = b""
    while len(data) < size:
        chunk = os.pread(fd, size - len(data), len(data))
        if not chunk:
            raise ValueError("the document is cut off")
        data += chunk
    return data


def _as_socket_if_it_is_one(fd: int) -> socket | int:
    import stat

    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return fd
    import socket

    adopted = socket.socket(fileno=fd)
    adopted.setblocking(os.get_blocking(fd))  # the object says "blocking", whatever the descriptor is
    return adopted
