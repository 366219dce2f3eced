"""What members say to their supervisor, and what follows from it."""

from __future__ import annotations

import os
import signal
import socket
import stat
from time import monotonic

from ..errors import LifelineError
from ..options import Options
from . import privileges
from .beats import Watch
from .generation import STARTING
from .home import Home
from .lifeline import PROTOCOL, Lifeline
from .members import Grandchild

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Protocol

    from .members import Member
    from .roster import Roster

    class Observer(Protocol):
        """What the roster tells, and asks."""

        def happened(self, event: str, *about: Any, **more: Any) -> None:
            """An event of `Rollout`."""

        def load_again(self, member: Member) -> None:
            """A member has loaded old bytecode."""

        def mourn(self, member: Member, why: str) -> None:
            """A member has ended; the event follows."""

        def stop(self) -> None:
            """A member asks for the end of the program."""

        def limits(self) -> dict[int, Options]:
            """The options of each generation."""
            raise NotImplementedError


__all__ = ["Hearing", "close_all"]


class Hearing:
    """One method for each message. Each takes out of `rights`, the descriptors that have come along, what it keeps."""

    def __init__(self, roster: Roster, observer: Observer) -> None:
        self._roster, self._observer = roster, observer

    def understand(self, member: Member, message: dict[str, Any], rights: list[int]) -> None:
        """Act on a message. Raises LifelineError if it makes no sense."""
        try:
            handler = getattr(self, f"_on_{message['type']}_message", None)
            if handler is None:
                raise LifelineError(f"{message['type']!r} is nothing that a supervisor is told")
            handler(member, message, rights)
        finally:
            close_all(rights)

    def _on_hello_message(self, member: Member, message: dict[str, Any], _rights: list[int]) -> None:
        if member.process.state != STARTING or member.home is not None:
            raise LifelineError("it has said hello before")
        try:
            options = _understood(message)
            member.home = Home.from_document(message["home"])
        except (TypeError, LookupError, ValueError) as error:
            self._roster.distrust(member, str(error))
            return
        if member.process.is_server:
            self._observer.happened("ready", member.process, options=options)
        else:
            self._roster.post(member, "become", place=self._roster.take_place(member))

    def _on_stale_message(self, member: Member, _message: dict[str, Any], _rights: list[int]) -> None:
        self._observer.load_again(member)

    def _on_forked_message(self, server: Member, message: dict[str, Any], rights: list[int]) -> None:
        if not (server.process.is_server and 1 <= len(rights) <= 2):
            raise LifelineError("that is no birth of a worker")
        lifeline, *pidfd = rights
        if not stat.S_ISSOCK(os.fstat(lifeline).st_mode):
            raise LifelineError("a worker's lifeline is no socket")
        member = self._roster.members.get(message["worker"])
        if member is not None and (member.process.generation != server.process.generation or member.child is not None):
            member = None
        try:
            is_its_child = privileges.are_parent_and_child(server.pid, message["pid"], *pidfd)
        except OSError as error:  # no descriptor is left to look with: so without its lifeline
            os.close(rights.pop(0))
            lifeline = -1
            is_its_child = privileges.are_parent_and_child(server.pid, message["pid"], *pidfd)
            if member is not None:
                member.reason = f"the supervisor has no room for it: {error.strerror}"
        if not is_its_child:
            raise LifelineError(f"process {message['pid']} is no child of it")
        rights.clear()
        child = Grandchild(message["pid"], *pidfd)
        if member is None or lifeline == -1:  # it was given up before it was born; or its fork server will tell its end
            child.send_signal(signal.SIGKILL)
            child.close()
            if lifeline != -1:
                os.close(lifeline)
            return
        member.parent = server.process.id
        member.child, member.lifeline = child, Lifeline(socket.socket(fileno=lifeline))
        self._roster.adopt(member)
        member.send_signals(*member.due)

    def _on_exited_message(self, server: Member, message: dict[str, Any], _rights: list[int]) -> None:
        member = self._roster.members.get(message["worker"])
        if member is not None and server.process.is_server and member.process.generation == server.process.generation:
            self._roster.gone(member, message["status"], message["reason"])

    def _on_ready_message(self, member: Member, _message: dict[str, Any], _rights: list[int]) -> None:
        options = self._observer.limits().get(member.process.generation)
        if options is not None and options.timeout is not None:
            member.watch = Watch(options.timeout, monotonic())
        self._observer.happened("ready", member.process)

    def _on_retire_message(self, member: Member, _message: dict[str, Any], _rights: list[int]) -> None:
        self._observer.happened("retire", member.process)

    def _on_failed_message(self, member: Member, message: dict[str, Any], _rights: list[int]) -> None:
        """Its main() is over. What it does until it ends is no service any more."""
        member.reason, member.detail = message["reason"], message["detail"]
        self._observer.mourn(member, member.reason)
        self._observer.happened("leaving", member.process, member.reason, detail=member.detail)

    def _on_listen_message(self, member: Member, message: dict[str, Any], rights: list[int]) -> None:
        if len(rights) != 1 or not stat.S_ISSOCK(os.fstat(rights[0]).st_mode):
            raise LifelineError("a question about a listener has no socket for the answer")
        may_make_files = privileges.are_ours(member.pid)
        self._roster.listening.answer(member.process.generation, message, rights.pop(), may_make_files=may_make_files)

    def _on_restart_message(self, _member: Member, _message: dict[str, Any], _rights: list[int]) -> None:
        self._observer.happened("restart", None)

    def _on_stop_message(self, _member: Member, _message: dict[str, Any], _rights: list[int]) -> None:
        self._observer.stop()


def close_all(rights: Iterable[int]) -> None:
    """Descriptors that nobody wants."""
    for fd in rights:
        os.close(fd)


def _understood(hello: dict[str, Any]) -> Options:
    """The options of a generation that can be worked with; ValueError says why it cannot."""
    if hello["protocol"] != PROTOCOL:
        raise ValueError(
            f"its hotrestart {hello['version']} speaks protocol {hello['protocol']}, this supervisor speaks "
            f"{PROTOCOL}: stop the program and start it again"
        )
    options = Options(**hello["options"])
    if options.workers is None:
        raise ValueError("the new code does not ask for workers= any more: stop the program and start it again")
    return options
