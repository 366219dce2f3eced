"""The preflight: run the new code up to the door of `main()` in a child, before the old code lets go of anything.

The child is the very command that the exec will run, in the same directory, environment and signal mask, with the
same listeners. What it prints goes into a pipe, so that the end of its traceback can be quoted. Neither the end of that
pipe nor of the report is waited for: a grandchild may hold them open. The child's end is what counts.
"""

from __future__ import annotations

import os
from time import monotonic

from . import command, fds, inheritance, last_words, processes, takeover

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable
    from typing import Any

    from .processes import Child
    from .sleeper import Sleeper
else:
    import _signal as signal  # the module signal imports enum: 2 to 5 ms of every restart

__all__ = ["Verdict", "check"]

_ABORT_GRACE = 2.0  # seconds for the stack dump


class Verdict:
    """Whether the new code came to the door; if not, why in one line, and the end of what it printed."""

    ok: bool
    reason: str
    detail: str
    is_stale: bool

    __slots__ = ("detail", "is_stale", "ok", "reason")

    def __init__(self, ok: bool, reason: str = "", detail: str = "", *, is_stale: bool = False) -> None:
        self.ok, self.reason, self.detail, self.is_stale = ok, reason, detail, is_stale


def check(
    document: dict[str, Any],
    keep: Iterable[int],
    *,
    timeout: float,
    sleeper: Sleeper,
    cancelled: Callable[[], bool],
) -> Verdict | None:
    """Start the new code and wait for it to come to the door, `timeout` seconds at most; None if it is cancelled.

    `document` is what it inherits, with the descriptors `keep`. Blocks the calling thread, no other; `sleeper.wake`
    makes it look at `cancelled()`. The child never outlives this call. Stale bytecode costs one run more.
    """
    verdict = _check_once(document, keep, timeout, sleeper, cancelled)
    if verdict is not None and verdict.is_stale:
        verdict = _check_once(document, keep, timeout, sleeper, cancelled)
    return verdict


def _check_once(
    document: dict[str, Any], keep: Iterable[int], timeout: float, sleeper: Sleeper, cancelled: Callable[[], bool]
) -> Verdict | None:
    run = _Run({**document, "timeout": timeout}, keep)
    if run.child is None:
        return Verdict(False, run.error)
    try:
        run.watch(monotonic() + timeout, sleeper, cancelled)
        return None if cancelled() else run.verdict(timeout)
    finally:
        run.close()


class _Run:
    """One child on its way to the door, and whatever it starts on the way."""

    def __init__(self, document: dict[str, Any], keep: Iterable[int]) -> None:
        self.child: Child | None = None
        self.error = ""
        self.report = self.output = b""
        self.hung = self._output_has_ended = False
        self._ours: list[int] = []
        theirs: list[int] = []
        try:
            self._report_fd, report_end = _pipe(self._ours, theirs)
            self._output_fd, output_end = _pipe(self._ours, theirs)
            tether, held = (fds.above_stdio(each) for each in os.pipe())  # its end is ours
            theirs.append(tether)
            self._ours.append(held)
            theirs.append(null := fds.above_stdio(os.open(os.devnull, os.O_RDONLY)))
            role = {"role": "preflight", "parent": os.getpid(), "report": report_end, "tether": tether}
            memory, value = inheritance.write({**document, **role})
            theirs.append(memory)
            self.child = processes.spawn(
                command.first.argv,
                env={**command.first.env, command.VARIABLE: value},
                cwd=None if command.first.is_here() else command.first.cwd,
                keep=[memory, report_end, tether, *keep],
                redirect={0: null, 1: output_end, 2: output_end},
                blocked=command.first.blocked,
                own_group=True,
            )
        except OSError as error:
            self.error = f"{command.first.executable} cannot be started: {error.strerror or error}"
            self.close()
        finally:
            for fd in theirs:
                os.close(fd)

    def watch(self, deadline: float, sleeper: Sleeper, cancelled: Callable[[], bool]) -> None:
        """Until the child has ended, time is up, or nobody wants to know any more."""
        assert self.child is not None
        while self.child.poll() is None and not cancelled():
            left = deadline - monotonic()
            if left <= 0 and self.hung:
                break
            if left <= 0:
                self.hung = True
                self.child.send_signal(signal.SIGABRT)
                deadline = monotonic() + _ABORT_GRACE
                continue
            # at the most a second: without pidfd a grandchild can hide the end of the child
            files = (self.child,) if self._output_has_ended else (self.child, self._output_fd)
            sleeper.wait(*files, timeout=min(left, 1.0))
            self._read()
        self._read()

    def _read(self) -> None:
        output, self._output_has_ended = _read_now(self._output_fd)
        self.output = (self.output + output)[-last_words.TAIL :]
        self.report += _read_now(self._report_fd)[0]

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
        for fd in self._ours:
            os.close(fd)

    def verdict(self, timeout: float) -> Verdict:
        assert self.child is not None
        if self.report == takeover.LOADED and not self.hung:
            return Verdict(True)
        lines = last_words.lines_of(self.output)
        detail = last_words.quoted(lines)
        if self.hung:
            return Verdict(False, f"the new code did not reach main() within {timeout:g} s", detail)
        if self.report == takeover.STALE:
            return Verdict(False, "the code on disk changes faster than it loads", detail, is_stale=True)
        reason = last_words.why_it_ended("the new code", "before it called main()", self.child.exit_code, lines)
        return Verdict(False, reason, detail)


def _pipe(ours: list[int], theirs: list[int]) -> tuple[int, int]:
    """A pipe from the child to us; our end does not block."""
    read_end, write_end = os.pipe()
    ours.append(read_end := fds.above_stdio(read_end))
    theirs.append(write_end := fds.above_stdio(write_end))
    os.set_blocking(read_end, False)
    return read_end, write_end


def _read_now(fd: int) -> tuple[bytes, bool]:
    """What can be read without waiting, and whether that was the end."""
    data = b""
    while len(data) <= last_words.TAIL:
        try:
            chunk = os.read(fd, 65536)
        except BlockingIOError:
            return data, False
        if not chunk:
            return data, True
        data += chunk
    return data, False
