"""The module-level flag: has this program been asked to end, and what for?

Read the flag through the module, `state.should_stop`: `from hotrestart.state import should_stop` copies today's value
and never sees it change. Reading and writing are single attribute operations, safe in any thread and in a signal
handler. A forked child has its own copy; an exec starts afresh with the next `generation`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Reason = Literal["restart", "stop"]

__all__ = ["end", "generation", "reason", "reset", "should_stop"]

should_stop: bool = False
"""True once the program has been asked to end; it never becomes false again."""

reason: Reason | None = None
"""Why: `"restart"` or `"stop"`. A stop that comes after a restart wins; a restart never takes back a stop."""

generation: int = 1
"""Which load of the program's code this is: 1 for the first, one more after every restart."""

_stop_wins: bool = False

resets: int = 0
"""How often `reset` was called: who has begun to watch over an ending sees by it that it is off."""


def end(why: Reason) -> None:
    """Ask this program to end. Safe in any thread and in a signal handler; takes no lock.

    Two askers can be interleaved anywhere: a stop sets `_stop_wins` before `reason`, and a restart looks at it after
    it has written `reason`, so that one of the two always sees the other and the stop wins.
    """
    global should_stop, reason, _stop_wins
    if why == "stop":
        _stop_wins = True
        reason = "stop"
    elif reason is None:
        reason = "restart"
        if _stop_wins:
            reason = "stop"
    should_stop = True


def reset() -> None:
    """Forget that the program was asked to end: for tests, and for hosts that run one main loop after another."""
    global should_stop, reason, _stop_wins, resets
    resets += 1
    should_stop, reason, _stop_wins = False, None, False
