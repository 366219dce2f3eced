"""The listeners that a supervisor holds for its generations: bound when one first asks, closed when none wants them."""

from __future__ import annotations

import socket

from .. import listeners
from ..errors import HotRestartError
from .lifeline import Lifeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Listening"]


class Listening:
    """Which generation has asked for what. `asked` is `{generation: {(address, name)}}`."""

    def __init__(self) -> None:
        self.asked: dict[int, set[tuple[str, str | None]]] = {}

    def answer(self, generation: int, question: dict[str, Any], reply_fd: int) -> None:
        """Hand out the listener, or say why it cannot be had."""
        reply = Lifeline(socket.socket(fileno=reply_fd))
        address, name, owner = question["address"], question["name"], question["owner"]
        try:
            with listeners.listen(
                address,
                name=name,
                backlog=question["backlog"],
                reuse_port=question["reuse_port"],
                mode=question["mode"],
                owner=tuple(owner) if owner is not None else None,
            ) as listener:
                self.asked.setdefault(generation, set()).add((address, name))
                reply.post("listening", listener.fileno())
        except (HotRestartError, OSError) as error:
            reply.post(
                "refused", errno=getattr(error, "errno", None), reason=getattr(error, "strerror", None) or str(error)
            )
        finally:
            reply.close()

    def commit(self, generation: int) -> None:
        """Close what this generation has not asked for."""
        wanted = self.asked.get(generation, set())
        self._let_go(set().union(*self.asked.values()) - wanted)
        self.asked = {generation: wanted}

    def close(self) -> None:
        """Close everything."""
        self._let_go(set().union(*self.asked.values()))
        self.asked.clear()

    def _let_go(self, unwanted: set[tuple[str, str | None]]) -> None:
        for address, name in unwanted:
            listeners.let_go(address, name)
