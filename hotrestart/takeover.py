"""What a new generation does first: take what the one before has left, while hotrestart is being imported.

Every check is made before anything is touched: a document that is not sound is ignored as a whole, with one warning.
A preflight (the new code, run up to the door of `main()` in a child of the old) starts here as well; it must leave no
mark: it ends without running anybody's exit handlers, for these would tidy up after the old generation.
"""

from __future__ import annotations

import os
import sys

from . import command, inheritance, leash, signals, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "LOADED",
    "STALE",
    "Membership",
    "announcing",
    "arrive",
    "is_relayed",
    "membership",
    "report_fd",
    "take_over",
]

LOADED, STALE = b"loaded", b"stale"
"""What a preflight says at the door of `main()`."""

report_fd: int = -1
"""In a preflight, the descriptor through which the old generation is told; -1 otherwise."""


class Membership:
    """What ties this process to its supervisor: the descriptors of the lifeline, the page of beats, the tether, and
    standard error as it will be once this generation serves (-1: as it is)."""

    lifeline: int
    beats: int
    tether: int
    stderr: int

    __slots__ = ("beats", "lifeline", "stderr", "tether")

    def __init__(self, lifeline: int, beats: int, tether: int, stderr: int) -> None:
        self.lifeline, self.beats, self.tether, self.stderr = lifeline, beats, tether, stderr


membership: Membership | None = None
"""Set in a process that a supervisor has started."""

_SHAPE: dict[str, type | tuple[type, ...]] = {
    "role": str,
    "generation": int,
    "listeners": list,
    "kept": dict,
    "state": dict,
    "fds": dict,
    "blocked": list,
    "ignored": list,
    "held": list,
    "since": (int, float),
    "helpers": list,
    "member": list,
    "announcing": dict,
    "report": int,
    "timeout": (int, float),
}


announcing: dict[str, Any] = {}
"""What the generation before has left to whoever tells how the restart has gone."""

_relay: int = -1


def is_relayed() -> bool:
    """Whether standard error still passes through the supervisor; the program may have put something else there."""
    try:
        return _relay != -1 and os.fstat(2).st_ino == _relay
    except OSError:
        return False


def take_over() -> None:
    """Read the inheritance, if there is one that is meant for this process, and put each part where it belongs."""
    document = inheritance.read()
    if document is None:
        command.first.note_what_was_given()
        return
    if not _is_sound(document):
        if document.get("role") in ("preflight", "member"):
            _end()  # anything but run main() beside the old generation
        command.first.note_what_was_given()
        signals.hold(signals.RESTART)
        return
    state.generation = document["generation"]
    command.first.since = document["since"]
    command.first.blocked = document["blocked"]
    command.first.ignored = document["ignored"]
    command.first.helpers = document["helpers"]
    command.first.fds = {int(fd): (device, inode) for fd, (device, inode) in document["fds"].items()}
    announcing.update(document["announcing"])
    if announcing.get("fds"):
        from . import fds

        fds.set_inheritable_all(announcing["fds"], False)  # but for those that somebody has closed
    preflight = document["role"] == "preflight"
    if document["listeners"] or preflight:
        from . import listeners

        listeners.adopt(document["listeners"], shared=preflight)
    inheritance.adopt(document["state"], _sound(document["kept"]))
    if preflight:
        _begin_preflight(document["report"], document["timeout"], document.get("tether", -1))
    elif document["role"] == "member":
        _become_a_member(document["member"], document["parent"], document.get("nofile"))
        signals.unblock(document["held"])
    else:
        signals.hold(document["held"], document.get("held_stops", ()))


def arrive() -> None:
    """The door of `main()`: in a preflight, say that the code has loaded, and end; otherwise do nothing.

    If a module was loaded from stale bytecode it is not the new code that has loaded: say so.
    """
    if report_fd == -1:
        return
    if os.getpid() != command.first.pid:
        os._exit(0)  # a child that the new code has forked: what that comes to is for its parent to say
    import threading

    from . import bytecode
    from .errors import WrongThreadError

    if threading.current_thread() is not threading.main_thread():
        raise WrongThreadError("signals can be handled in the main thread only: call main() there")
    try:
        os.write(report_fd, STALE if bytecode.drop_stale(command.first.since) else LOADED)
    finally:
        os._exit(0)


def _is_sound(document: dict[str, Any]) -> bool:
    try:
        _check(document)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        from . import log

        log.warning(f"what the generation before has left is ignored: {error}")
        return False
    return True


def _check(document: dict[str, Any]) -> None:
    if document.get("format") != inheritance.FORMAT:
        raise ValueError(f"it is of another version of hotrestart, whose format is {document.get('format')!r}")
    for key, kind in _SHAPE.items():
        if not isinstance(document[key], kind) or isinstance(document[key], bool):
            raise ValueError(f"{key} is {document[key]!r}")
    if document["role"] not in ("generation", "preflight", "member"):
        raise ValueError(f"role is {document['role']!r}")
    for each in document["listeners"]:
        named = each["name"] is None or isinstance(each["name"], str)
        if not (named and isinstance(each["address"], str) and _are_numbers(each["fd"], each["inode"])):
            raise ValueError(f"a listener is {each!r}")
    for each in document["kept"].values():
        if not _are_numbers(each["fd"], each["inode"]):
            raise ValueError(f"a kept file is {each!r}")
    for fd, (device, inode) in document["fds"].items():
        if not _are_numbers(int(fd), device, inode):
            raise ValueError("a given descriptor is no number")
    ties, fds = document["member"], document["announcing"].get("fds", ())
    if len(ties) != (4 if document["role"] == "member" else 0) or not _are_numbers(
        *document["helpers"], *ties, *fds, highest=2**31 - 1
    ):
        raise ValueError("a child or a descriptor is no number")
    if not _are_numbers(*document["blocked"], *document["ignored"], *document["held"], highest=64):
        raise ValueError("a signal is no number")


def _are_numbers(*values: object, highest: int = 2**64) -> bool:
    return all(isinstance(value, int) and 0 <= value < highest + 1 for value in values)


def _sound(kept: dict[str, dict[str, int]]) -> dict[str, int]:
    """The kept files that are what they say, close-on-exec from now on."""
    sound: dict[str, int] = {}
    for name, file in kept.items():
        try:
            if os.fstat(file["fd"]).st_ino != file["inode"]:
                raise OSError("it is another file by now")
            os.set_inheritable(file["fd"], False)
            sound[name] = file["fd"]
        except OSError as error:
            from . import log

            log.warning(f"what was bequeathed as {name!r} is not inherited: descriptor {file['fd']}: {error}")
    return sound


def _begin_preflight(fd: int, timeout: float, tether: int) -> None:
    global report_fd
    import faulthandler
    import threading

    os.set_inheritable(fd, False)
    report_fd = fd
    if tether != -1:
        os.set_inheritable(tether, False)
        leash.die_with_the_writer_of(tether)
    command.first.is_preflight = True
    # To descriptor 2, for the program may have put something of its own in the place of sys.stderr.
    faulthandler.enable(2, all_threads=True)  # the old generation ends a hung preflight by ABRT: this says where
    faulthandler.dump_traceback_later(timeout + 10.0, exit=True, file=2)  # should the old generation be gone by then
    show = sys.excepthook

    def show_and_end(*error: Any) -> None:
        show(*error)
        _end()

    sys.excepthook = show_and_end
    register = getattr(threading, "_register_atexit", None)
    if register is not None:  # before the exit handlers, for an end by sys.exit; a private name, and no harm without
        register(_end)


def _become_a_member(numbers: list[int], parent: int, nofile: int | None) -> None:
    """Come under the supervisor that has started this process: signals for the group are its business, and when it is
    gone this process shall not serve. It may hang before it comes to main(), so ABRT shows where."""
    global membership, _relay
    from . import log, shrugging

    membership = Membership(*numbers)
    _relay = os.fstat(2).st_ino
    for fd in numbers:
        os.set_inheritable(fd, False)
    try:
        shrugging.shrugging().__enter__()
    except RuntimeError:
        pass  # not the main thread
    log.dump_stacks_on_abort()
    if nofile is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    leash.leash(leash.Tether(membership.tether))
    if os.getppid() != parent:
        _end()


def _end() -> None:
    from . import exits

    exits.flush_streams()
    os._exit(1)
