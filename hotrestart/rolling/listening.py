"""The listeners that a supervisor holds for its generations: bound when one first asks, closed when none wants them."""

from __future__ import annotations

import socket

from .. import listeners
from ..address import Address, identity
from .generation import NEVER
from .lifeline import Lifeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Listening"]

_LATE = 5.0  # seconds after the commit in which a generation may still ask for what those before it had


class Listening:
    """Which generation has asked for what: `asked` is `{generation: {identity(address, name)}}`. `look` is wanted at
    `deadline`."""

    deadline: float

    def __init__(self) -> None:
        self.asked: dict[int, set[tuple[str, str | None]]] = {}
        self.deadline = NEVER
        self._unwanted: set[tuple[str, str | None]] = set()

    def answer(self, generation: int, question: dict[str, Any], reply_fd: int, *, may_make_files: bool = True) -> None:
        """Hand out the listener, or say why it cannot be had. A port below 1024 may be bound for a process that has
        dropped its privileges; a path may not be made, nor given away, for one."""
        reply = Lifeline(socket.socket(fileno=reply_fd))
        address, name = question["address"], question["name"]
        try:
            wanted, asked = Address.parse(address), identity(address, name)
            is_path = wanted.kind == "unix" and not wanted.host.startswith("@")
            if is_path and not may_make_files:
                if asked not in self._all() or listeners.is_lost(address, name):
                    raise PermissionError(1, "ask for a path before dropping privileges")
                question = {**question, "mode": None, "owner": None}
            with listeners.listen_at(
                address,
                question["resolved"],
                name=name,
                backlog=question["backlog"],
                reuse_port=question["reuse_port"],
                mode=question["mode"],
                owner=None if question["owner"] is None else tuple(question["owner"]),
            ) as listener:
                self.asked.setdefault(generation, set()).add(asked)
                reply.post("listening", listener.fileno())
        except Exception as error:  # whatever it is, it is the problem of who has asked
            reply.post(
                "refused", errno=getattr(error, "errno", None), reason=getattr(error, "strerror", None) or str(error)
            )
        finally:
            reply.close()

    def commit(self, generation: int, now: float) -> None:
        """From now on only what this generation asks for is wanted. It may be about to ask, having said that it is
        ready, and what were closed now would be reset: so it has a while."""
        wanted = self.asked.get(generation, set())
        self._unwanted, self.asked = self._all() - wanted, {generation: wanted}
        self.deadline = now + _LATE if self._unwanted else NEVER

    def look(self, now: float) -> None:
        """Close what nobody has asked for, when the time has come."""
        if now >= self.deadline:
            self._let_go(self._unwanted - set().union(*self.asked.values()))
            self._unwanted, self.deadline = set(), NEVER

    def close(self) -> None:
        """Close everything."""
        self._let_go(self._all())
        self.asked.clear()

    def _all(self) -> set[tuple[str, str | None]]:
        return self._unwanted.union(*self.asked.values())

    def _let_go(self, unwanted: set[tuple[str, str | None]]) -> None:
        for address, name in unwanted:
            listeners.let_go(address, name)
