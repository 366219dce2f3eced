"""What is seen: a line for each event, and on a terminal a line below them that moves.

The moving line is drawn over itself with a carriage return, and cleared before anything else is written. It is cut to
the terminal's width: one that wraps could not be drawn over. Only a terminal gets it, and colour.
"""

from __future__ import annotations

import os
from shutil import get_terminal_size
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

__all__ = ["Display"]

_REDRAW = 0.1  # seconds
_CLEAR = "\r\x1b[K"
_COLOURS = {"good": "\x1b[32m", "bad": "\x1b[31m", "title": "\x1b[1m"}


class Display:
    """Writes to `stream`; times are counted from when it is made."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._began = monotonic()
        self._is_live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._has_colour = self._is_live and not os.environ.get("NO_COLOR")
        self._drawn = 0.0  # when the moving line was; 0 if there is none

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return monotonic() - self._began

    def line(self, text: str = "", mood: str = "") -> None:
        """Write a line. `mood`: "good", "bad", "title", or none."""
        self.clear()
        paint = _COLOURS.get(mood) if self._has_colour else None
        print(f"{paint}{text}\x1b[0m" if paint and text else text, file=self._stream, flush=True)

    def event(self, text: str, mood: str = "") -> None:
        """Write a line that says when."""
        self.line(self._timed(text), mood)

    def moving(self, text: str) -> None:
        """Draw the moving line, on a terminal and not too often."""
        if self._is_live and monotonic() - self._drawn >= _REDRAW:
            self._drawn = monotonic()
            width = (get_terminal_size().columns or 80) - 1  # Python 3.10 gives 0 for a terminal that has no size
            self._stream.write(_CLEAR + self._timed(text)[:width])
            self._stream.flush()

    def clear(self) -> None:
        """Take the moving line away."""
        if self._drawn:
            self._drawn = 0.0
            self._stream.write(_CLEAR)
            self._stream.flush()

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Write names and values in two columns."""
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            self.line(f"  {name:<{width}}   {value}")

    def _timed(self, text: str) -> str:
        return f"{self.elapsed():5.1f} s  {text}"
