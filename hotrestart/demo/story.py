"""What the two demonstrations share: one step after the other, each with a deadline, and the account at the end.

A story ends early when something does not happen in time; the account then says what.
"""

from __future__ import annotations

from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from ..sleeper import Sleeper
    from .display import Display
    from .process import Program

    class Account(Protocol):
        """What a story ends with."""

        def rows(self) -> list[tuple[str, str]]:
            """What was counted: a name and a figure each."""
            ...

        def faults(self) -> list[str]:
            """What has gone wrong."""
            ...


__all__ = ["FORGETS", "Interrupted", "Story", "settle"]

FORGETS = ("VERSION = ", "import forgotten_dependency\n\nVERSION = ")
"""What breaks a release: it needs a module that nobody has installed."""

_PATIENCE = 15.0  # seconds for anything that takes milliseconds on an idle machine
_TURN = 0.01  # seconds


class Interrupted(Exception):
    """Somebody wants it to end before it is over."""


class Story:
    """The steps of it are its subclasses'; each is True if the next one can be taken."""

    def __init__(self, program: Program, display: Display, sleeper: Sleeper) -> None:
        self._program, self._display, self._sleeper = program, display, sleeper
        self.missed: str = ""
        """What was waited for in vain."""

    def _state(self) -> str:
        """What the program does, for the moving line; "" as long as it does nothing."""
        raise NotImplementedError

    def _check(self) -> None:
        """Called every moment; raises what has gone wrong with the demonstration itself."""

    def _work_on(self, seconds: float) -> bool:
        end = monotonic() + seconds
        return self._until(lambda: monotonic() > end)

    def _until(self, condition: Callable[[], bool], what: str = "") -> bool:
        """Wait, with a live display; False if the program ends before `condition()` is true, or patience does."""
        deadline = monotonic() + _PATIENCE
        self._display.clear()  # so that what is waited for is seen at once
        while not condition():
            if monotonic() > deadline or self._program.has_ended():
                self.missed = what or "work"
                return False
            self._check()
            self._display.moving(", ".join(filter(None, (self._state(), what))))
            if self._sleeper.sleep(_TURN):
                raise Interrupted
        return True


def settle(account: Account, display: Display, *, log_tail: list[str], began: float = 0.0) -> int:
    """Show the account and what it comes to: 0 if every promise was kept, else 1, with the end of the log."""
    faults = account.faults()
    display.line()
    display.table(account.rows())
    display.line()
    if not faults:
        display.line(f"Every promise was kept. It took {display.elapsed() - began:.1f} s.", "good")
        return 0
    for fault in faults:
        display.line(f"FAILED: {fault}", "bad")
    display.line()
    display.line("The end of the program's log:" if log_tail else "The program has logged nothing.")
    for line in log_tail:
        display.line(f"    {line}")
    return 1
