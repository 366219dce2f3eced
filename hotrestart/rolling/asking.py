"""`listen()` in a process under a supervisor: the supervisor binds, so that the listener outlives who asked for it."""

from __future__ import annotations

import select
import socket
from time import monotonic

from .. import listeners
from ..errors import AddressError, LifelineError
from .lifeline import Lifeline, pair

__all__ = ["begin", "lifeline"]

_PATIENCE = 30.0  # seconds; the supervisor answers at once, or is gone


lifeline: Lifeline | None = None
"""This process's own; its end of file is the end of the supervisor."""


def begin(own: Lifeline | int) -> Lifeline:
    """From now on listeners are asked for over this lifeline, of which the descriptor will do."""
    global lifeline
    lifeline = own if isinstance(own, Lifeline) else Lifeline(socket.socket(fileno=own))
    listeners.elsewhere = _ask
    return lifeline


def _ask(address: str, resolved: tuple[int, list[object]] | None, **options: object) -> int:
    """The descriptor of the listener. The answer has a socket of its own, so any thread may ask."""
    assert lifeline is not None
    mine, theirs = pair()
    answer = Lifeline(mine)
    try:
        with theirs:
            lifeline.send("listen", theirs.fileno(), address=address, resolved=resolved, **options)
        poll, deadline = select.poll(), monotonic() + _PATIENCE
        poll.register(mine, select.POLLIN)
        while monotonic() < deadline and not answer.has_ended:
            poll.poll(_PATIENCE * 1000)
            for message, rights in answer.receive():
                if message["type"] == "listening" and rights:
                    return rights[0]
                raise AddressError(message["errno"], message["reason"])
        raise LifelineError("it does not answer")
    except LifelineError as error:
        raise AddressError(None, f"listen({address!r}): the supervisor binds, and {error}") from error
    finally:
        answer.close()
