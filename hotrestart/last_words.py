"""What a process said before it ended, and what that means for those who waited for it."""

from __future__ import annotations

from .processes import STATUS_UNKNOWN

__all__ = ["TAIL", "lines_of", "quoted", "why_it_ended"]

TAIL = 64 * 1024
"""Bytes of output that are worth keeping."""

_QUOTED = 20  # lines of them that are shown


def lines_of(output: bytes) -> list[str]:
    """The lines of what was printed."""
    return output.decode(errors="replace").rstrip().splitlines()


def quoted(lines: list[str]) -> str:
    """The end of it, to be shown below a reason."""
    return "\n".join(lines[-_QUOTED:])


def why_it_ended(who: str, when: str, exit_code: int | None, lines: list[str]) -> str:
    """One line: who ended when, and why, from the exit code and from what was printed."""
    code = exit_code or 0
    if code < 0 and code != STATUS_UNKNOWN:
        return f"{who} was killed by signal {-code} {when}"
    if (raised := _what_was_raised(lines)) is not None:
        return raised
    said = f": {lines[-1]}" if lines else ""
    return f"{who} ended {when}{said}"


def _what_was_raised(lines: list[str]) -> str | None:
    """The line of a traceback that names the exception: the first one after the last frame that is not indented."""
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    for line in lines[frames[-1] :] if frames else ():
        if line and not line[0].isspace():
            return line
    return None
