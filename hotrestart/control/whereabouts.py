"""Where the control socket of a program is: named for its pid, in a folder that is its user's alone.

The program takes the first folder that can be had; whoever looks for it looks into all of them, also into those of the
program's own environment, which may be another than theirs (cron, ssh, root). A socket with a path of its own has a
symbolic link there, so that the pid leads to it too.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["candidates", "environment_of", "folders", "is_private", "make_private", "name_for"]


def name_for(pid: int) -> str:
    """The file name of the socket."""
    return f"{pid}.sock"


def folders(uid: int, environ: Mapping[str, str]) -> list[str]:
    """Where sockets of this user's programs may be, best first. A relative path in the environment is none."""
    runtime, temporary = environ.get("XDG_RUNTIME_DIR", ""), environ.get("TMPDIR", "")
    found = [f"{runtime}/hotrestart"] if runtime.startswith("/") else []
    found.append(f"/run/hotrestart-{uid}")
    found += [f"{each}/hotrestart-{uid}" for each in (temporary, "/tmp") if each.startswith("/")]
    return list(dict.fromkeys(os.path.normpath(each) for each in found))


def candidates(pid: int, uid: int, *environs: Mapping[str, str]) -> list[str]:
    """The paths at which the socket of another program may be."""
    places = [f"/run/user/{uid}/hotrestart"]
    for environ in environs:
        places += folders(uid, environ)
    return [f"{place}/{name_for(pid)}" for place in dict.fromkeys(places)]


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with, as far as it may be read; for looking things up only."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            parts = file.read().split(b"\0")
    except OSError:
        return {}
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in (part.partition(b"=") for part in parts)}


def make_private(folder: str) -> bool:
    """Make the folder if it is not there; whether it is ours alone. Its parent has to be there."""
    try:
        os.mkdir(folder, 0o700)
        os.chmod(folder, 0o700)  # whatever the umask
    except FileExistsError:
        pass
    except OSError:
        return False
    return is_private(folder)


def is_private(folder: str) -> bool:
    """Whether it is a real folder of this user, into which nobody else may look: anybody can make one in /tmp."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
