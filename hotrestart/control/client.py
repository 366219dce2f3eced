"""The client side: ask a program for something, and wait for the answer.

All of it raises NotThereError if there is no such program, or if it dies before it has answered; TimedOutError if the
time is over, and then what was asked for may happen yet; ControlError if the program refuses. A target is a pid, the
path of a pid file, or the path of a control socket. Any thread. Ctrl-C ends the waiting and nothing else.
"""

from __future__ import annotations

import os
import select
from time import monotonic

from .. import cjson
from ..errors import ControlError, HotRestartError, NotThereError, TimedOutError
from ..outcome import Outcome
from . import protocol
from .target import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from typing_extensions import Self

    from .target import Target

__all__ = ["restart", "scale", "status", "stop"]

_LONGEST_ANSWER = 16 * 1024 * 1024  # bytes of a line
_TRIES, _PAUSE = 300, 0.01  # seconds between them
_UNHEARD = 1.0  # seconds, and then twice as long
_FOREVER = 2e6  # seconds, 23 days: poll(2) takes an int of milliseconds


def restart(
    target: Target, *, timeout: float | None = 300.0, on_stage: Callable[[str, int], object] | None = None
) -> Outcome:
    """Restart the program and wait `timeout` seconds (None: for ever) for the outcome, which is the truth:

    with `outcome.ok`, the new generation has said that it is ready. `on_stage(stage, generation)` is called as the
    restart comes to each stage.
    """
    with _Call(target, timeout) as call:
        for answer in call.ask(request="restart"):
            if "outcome" in answer:
                return Outcome.from_document(answer["outcome"])
            if "stage" in answer and on_stage is not None:
                on_stage(answer["stage"], answer["generation"])
    raise NotThereError(f"process {call.pid} has died before its new generation was ready")


def stop(target: Target, *, timeout: float | None = 300.0) -> None:
    """Stop the program gracefully, as TERM does, and wait until its process has ended; of a `Supervisor` within another
    program, until what it supervises has."""
    with _Call(target, timeout) as call:
        for answer in call.ask(request="stop"):
            if "stopped" in answer:
                return
        call.wait_for_the_end()


def status(target: Target, *, timeout: float | None = 10.0) -> dict[str, Any]:
    """How the program is: plain data, documented in README."""
    with _Call(target, timeout) as call:
        found: dict[str, Any] = call.answer("status", request="status")
        return found


def scale(target: Target, *, by: int | None = None, to: int | None = None, timeout: float | None = 10.0) -> int:
    """So many workers more (`by`, fewer if negative), or so many (`to`); how many are wanted now."""
    number = {name: value for name, value in (("by", by), ("to", to)) if value is not None}
    with _Call(target, timeout) as call:
        return int(call.answer("workers", request="scale", **number))


class _Call:
    """One connection and one request."""

    def __init__(self, target: Target, timeout: float | None) -> None:
        self._deadline = float("inf") if timeout is None or timeout > _FOREVER else monotonic() + timeout
        self._timeout = timeout
        self._target = target
        self._socket, self.pid = connect(target, self._deadline)
        self._process = -1
        self._received = b""
        self._is_unread = False
        try:
            if self.pid:
                self._process = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            pass  # the end of the connection has to do

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()
        if self._process != -1:
            os.close(self._process)

    def answer(self, field: str, **request: Any) -> Any:
        """What the first line that has this field says there."""
        for answer in self.ask(**request):
            if field in answer:
                return answer[field]
        raise NotThereError(f"process {self.pid} has died")

    def ask(self, **request: Any) -> Iterator[dict[str, Any]]:
        """The lines of the answer, to the end of the connection or of the process.

        Who has not been heard yet is thrown out when too many come at once, and asks again. What was read may have been
        carried out, and is not asked for twice.
        """
        for left in reversed(range(_TRIES)):
            is_heard = False
            for fields in self._answers(request):
                is_heard = True
                yield fields
            if is_heard or not self._is_unread or (left and self._has_gone()):
                return
        raise NotThereError(f"process {self.pid} hangs up on everybody")

    def _answers(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._is_unread = False
        try:
            self._socket.sendall(protocol.line(**request))
        except OSError:
            self._is_unread = True  # it has hung up, perhaps after a word why
        self._call_until_heard()
        while (text := self._line()) is not None:
            try:
                answer: Any = cjson.loads(text.decode())
            except ValueError:
                raise ControlError(f"process {self.pid} answers {text[:80]!r}, which is not JSON") from None
            if not isinstance(answer, dict):
                raise ControlError(f"process {self.pid} answers {text[:80]!r}")
            fields: dict[str, Any] = answer  # pyright: ignore[reportUnknownVariableType]
            if "error" in fields:
                raise ControlError(str(fields["error"]))
            yield fields

    def _call_until_heard(self) -> None:
        """A program that restarts in place is told by a signal that somebody has connected. One that comes in the last
        instruction before a system call is noticed after it, maybe never: so connect once more, less and less often."""
        pause = _UNHEARD
        while not self._wait(self._socket.fileno(), self._process, until=monotonic() + pause):
            if monotonic() >= self._deadline:
                return
            try:
                connect(self._target, monotonic())[0].close()
            except NotThereError:
                return
            except (HotRestartError, OSError):
                pass  # too many others, or no descriptor left: what counts is the answer
            pause = min(2 * pause, _FOREVER)

    def _has_gone(self) -> bool:
        """Connect again, unless the program has ended, or the one that is there by now is another."""
        poll = select.poll()
        if self._process != -1:
            poll.register(self._process, select.POLLIN)
        if poll.poll(_PAUSE * 1000):
            return True
        self._socket.close()
        self._received = b""
        try:
            self._socket, pid = connect(self._target, self._deadline)
        except NotThereError:
            return True
        if not pid:
            raise NotThereError(f"{self._target!r}: it has hung up, and whether it is still there cannot be told")
        return pid != self.pid

    def wait_for_the_end(self) -> None:
        """Until the process is gone, not only its end of the connection."""
        if self._process != -1 and not self._wait(self._process):
            self._give_up()

    def _line(self) -> bytes | None:
        while b"\n" not in self._received:
            # What it has said last is read before its end counts; a child of its may hold the connection open.
            ready = self._wait(self._socket.fileno(), self._process)
            if not ready:
                self._give_up()
            data = self._read() if self._socket.fileno() in ready else b""
            if data is None:
                continue
            if not data:
                return None
            self._received += data
            if len(self._received) > _LONGEST_ANSWER:
                raise ControlError(f"process {self.pid} answers without end")
        text, _, self._received = self._received.partition(b"\n")
        return text

    def _read(self) -> bytes | None:
        try:
            return self._socket.recv(65536)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:  # on Linux a reset says that the request was not read; elsewhere nothing does
            self._is_unread = isinstance(error, ConnectionResetError)
            return b""

    def _wait(self, *fds: int, until: float = float("inf")) -> list[int]:
        poll = select.poll()
        for fd in fds:
            if fd != -1:
                poll.register(fd, select.POLLIN)
        left = min(self._deadline, until) - monotonic()
        if left == float("inf"):
            return [fd for fd, _ in poll.poll()]
        return [fd for fd, _ in poll.poll(int(left * 1000) + 1)] if left > 0 else []

    def _give_up(self) -> None:
        raise TimedOutError(f"no answer from process {self.pid} within {self._timeout:g} s")
