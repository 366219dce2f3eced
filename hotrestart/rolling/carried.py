"""Members carried over an exec of the supervisor: what describes one, and how to take it up again."""

from __future__ import annotations

import os
import socket

from ..processes import Child, has_pidfd
from .beats import Watch
from .lifeline import Lifeline
from .members import Grandchild, Member, Relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .generation import Process

__all__ = ["as_document", "descriptors", "restored"]


def as_document(member: Member) -> dict[str, Any]:
    """A member that is at rest, as plain data and the numbers of descriptors."""
    child = member.child
    return {
        "process": member.process.as_document(),
        "pid": child.pid if child is not None else 0,
        "pidfd": child.pidfd if isinstance(child, Grandchild) else None,
        "lifeline": member.lifeline.fileno() if member.lifeline is not None else -1,
        "relay": member.relay.fd if member.relay is not None and not member.relay.has_ended else -1,
        "place": member.place,
        "parent": member.parent,
        "timeout": member.watch.timeout if member.watch is not None else None,
    }


def descriptors(document: dict[str, Any]) -> list[int]:
    """Those that have to survive the exec. A child's own pidfd is made anew: nobody else can reap it."""
    return [document[name] for name in ("pidfd", "lifeline", "relay") if document[name] not in (None, -1)]


def restored(process: Process, document: dict[str, Any]) -> Member:
    """The member, on this side of the exec."""
    member = Member(process)
    lifeline, relay, pidfd = document["lifeline"], document.get("relay", -1), document.get("pidfd")
    for fd in (lifeline, relay, pidfd):
        if fd is not None and fd != -1:
            os.set_inheritable(fd, False)
    if pidfd is not None:
        member.child = Grandchild(document["pid"], pidfd)
    else:
        member.child = Child(document["pid"], pidfd=None if has_pidfd() else -1)
    if lifeline != -1:
        member.lifeline = Lifeline(socket.socket(fileno=lifeline))
    if relay != -1:
        member.relay = Relay(relay)
    member.place, member.parent = document.get("place", -1), document.get("parent", 0)
    if document.get("timeout") is not None:
        member.watch = Watch(document["timeout"], process.since)
    return member
