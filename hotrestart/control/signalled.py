"""The control socket of a program that restarts in place, which has neither a loop nor a thread of ours.

The kernel signals the main thread when somebody connects (`O_ASYNC`), and the handler, which may interrupt any job,
starts a short-lived thread that does the talking and ends when nobody is connected. `_thread.start_new_thread` takes no
Python lock.

The signal is URG. What is ignored by default cannot hurt a generation that boots, nor a child; it does not queue, so
there is no queue to run over; hardly anybody has a use for it (and who has keeps it). And it goes to the main
thread, not to the process: Python runs handlers there only, and a sleep there would not end for another thread's sake.

Over an exec the descriptors stay, and so does what `fcntl` has set for them: only the handler is new.
"""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock, get_ident, start_new_thread
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any

    from .listening import Listening
    from .server import Program, Server

    Order = Callable[[Server], object]
else:
    import _signal as signal  # the module signal imports enum: 2 to 5 ms of every restart

__all__ = ["SignalDriven"]

_F_SETOWN_EX, _F_OWNER_TID = 15, 0  # Linux's; the module fcntl does not know them
_PATIENCE = 5.0  # seconds for the thread to come to a point where it can stop


class SignalDriven:
    """A control server that costs nothing while nobody asks. Made, handed over and closed in the main thread."""

    def __init__(self, listening: Listening, program: Program, connections: list[dict[str, Any]]) -> None:
        """`connections`: of those who have asked the generation before, and wait."""
        from ..sleeper import Sleeper

        self.listening = listening
        self._program, self._connections = program, connections
        self._orders: list[Order] = []
        self._runs = allocate_lock()
        self._is_paused = False
        self._nudge: object = None
        self._sleeper = Sleeper()
        self._server: Server | None = None
        self._number = 0

    def begin(self, *, is_new: bool) -> None:
        """From now on whoever connects is heard. `is_new`: not handed over by an exec."""
        self._number = _free_signal()
        if not self._number:
            from .. import log

            log.warning("no signal is free to serve the control socket by: nobody is heard")
            return
        signal.signal(self._number, lambda _number, _frame: self.nudge())
        if is_new or self._number != signal.SIGURG:
            _call_by_signal(self.listening.fd, self._number)
        if self._somebody_waits():
            self.nudge()
        _open.append(self)

    def order(self, order: Order) -> None:
        """Have the thread call `order(server)`, if anybody is connected. In any thread, and in a signal handler."""
        if self._connections or self._server is not None:
            self._orders.append(order)
            self.nudge()

    def nudge(self) -> None:
        """See to it that the thread looks at everything once more. In any thread, and in a signal handler."""
        self._nudge = object()
        if not self._runs.acquire(False):
            self._sleeper.wake()
            return
        try:
            start_new_thread(self._serve, ())
        except RuntimeError:
            self._runs.release()  # no thread to be had; the next who asks tries again

    def hand_over(self) -> tuple[dict[str, Any], set[int]]:
        """Stop serving for an exec: what the next generation has to know, and the descriptors. `resume` undoes it.
        Raises OSError if somebody else has closed the listening socket."""
        self._stop_the_thread()
        if self._number not in (0, signal.SIGURG):
            _call_by_signal(self.listening.fd, signal.SIGURG)  # any other would end the new generation while it boots
        document = {"listening": self.listening.as_document(), "connections": self._connections}
        return document, {self.listening.fd, *(each["fd"] for each in self._connections)}

    def resume(self) -> None:
        """The exec has failed."""
        self._is_paused = False
        self._runs.release()
        if self._number:
            _call_by_signal(self.listening.fd, self._number)
        self.nudge()

    def close(self) -> None:
        """Nobody is heard any more. Whoever waits for the end of the process goes on waiting, and will see it."""
        if self in _open:
            _open.remove(self)
        if self._number:
            signal.signal(self._number, signal.SIG_DFL)
        self._stop_the_thread()
        self.listening.close()
        self._sleeper.close()

    def let_go_after_fork(self) -> None:
        """In a child: nothing of this is its business."""
        server, fds = self._server, {self.listening.fd, *(each["fd"] for each in self._connections)}
        if server is not None:
            fds -= server.let_go_after_fork()  # the thread may have been about to give them back
        for fd in fds:
            os.close(fd)
        self._connections = []
        if self._number:
            signal.signal(self._number, signal.SIG_DFL)

    # -- the thread

    def _serve(self) -> None:
        self._sleeper.owner = get_ident()
        while True:
            seen = self._nudge
            try:
                self._serve_for_a_while()
            finally:
                self._runs.release()
            if seen is self._nudge or self._is_paused or not self._runs.acquire(False):
                return

    def _serve_for_a_while(self) -> None:
        """Until nobody is connected, or an exec or the end is near; what has been ordered by then is done."""
        from .server import Server

        poll = _Poll()
        poll.register(self._sleeper.fileno(), 1, lambda: self._sleeper.sleep(0))
        self._server = server = Server(self.listening.fd, self._program, poll, self._connections)
        self._connections = []
        try:
            poll.turn(0.0)
            self._do_what_is_ordered(server)
            while server.has_company and not self._is_paused:
                poll.turn(server.deadline - monotonic())
                server.look(monotonic())
                self._do_what_is_ordered(server)
        finally:
            self._connections = server.let_go()
            self._server = None

    def _do_what_is_ordered(self, server: Server) -> None:
        while self._orders:
            self._orders.pop(0)(server)

    def _stop_the_thread(self) -> None:
        """Its lock is ours from now on."""
        self._is_paused = True
        self._sleeper.wake()
        if self._runs.acquire(True, _PATIENCE) and self._orders and self._connections:
            self._serve_for_a_while()  # there was no thread to be had

    def _somebody_waits(self) -> bool:
        """Who has connected during the exec, or between listening and this, has sent his signal to nobody."""
        import select

        poll = select.poll()
        poll.register(self.listening.fd, select.POLLIN)
        return bool(poll.poll(0))


class _Poll:
    """A selector of a few lines: the module selectors costs 10 ms, and an epoll is shared with forked children."""

    def __init__(self) -> None:
        self._watched: dict[int, tuple[int, Callable[[], object]]] = {}

    def register(self, fileobj: int, events: int, data: Callable[[], object]) -> None:
        self._watched[fileobj] = (events, data)

    modify = register

    def unregister(self, fileobj: int) -> None:
        del self._watched[fileobj]

    def turn(self, timeout: float) -> None:
        """Wait so many seconds at most, and call what is due."""
        import select

        poll = select.poll()
        for fd, (events, _) in self._watched.items():
            poll.register(fd, (select.POLLIN if events & 1 else 0) | (select.POLLOUT if events & 2 else 0))
        for fd, _ in poll.poll(None if timeout == float("inf") else max(0, int(timeout * 1000) + 1)):
            if fd in self._watched:  # else it was dropped in this very turn
                self._watched[fd][1]()


def _free_signal() -> int:
    """A signal that nobody has a use for; 0 for none."""
    if not hasattr(signal, "SIGRTMIN"):
        wanted = [signal.SIGIO]  # without F_SETSIG it is always this one; the BSDs ignore it by default
    else:
        wanted = [signal.SIGURG, *range(signal.SIGRTMIN + 5, signal.SIGRTMAX)]
    return next((number for number in wanted if signal.getsignal(number) == signal.SIG_DFL), 0)


def _call_by_signal(fd: int, number: int) -> None:
    """Have the kernel send it to the main thread when the socket becomes readable."""
    import fcntl

    if hasattr(fcntl, "F_SETSIG"):
        main_thread = os.getpid()
        owner = b"".join(each.to_bytes(4, sys.byteorder) for each in (_F_OWNER_TID, main_thread))
        fcntl.fcntl(fd, _F_SETOWN_EX, owner)
        fcntl.fcntl(fd, fcntl.F_SETSIG, number)
    else:
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | fcntl.FASYNC)


_open: list[SignalDriven] = []


def _let_go_after_fork() -> None:
    """A child that held these would keep a dead program's clients waiting."""
    while _open:
        _open.pop().let_go_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)
