"""The fork server: the process of a generation that has loaded the program once, and forks its workers.

It sleeps in a poll on its lifeline and on its children, and runs nothing of the user's after the import. Its workers
are its children, so it alone can reap them and say how they ended; by pid, for other children may be the program's own.
In a worker's first moments all signals are blocked, until it has handlers of its own: a TERM that is sent at once would
be swallowed by the parent's, or kill it halfway. It begins when the supervisor has been told of it, and not before.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from io import FileIO
from time import monotonic

from .. import callbacks, exits, fds, log, processes, reexec, signals, state, takeover, titles
from ..errors import LifelineError
from ..leash import unleash
from ..shrugging import FOR_SUPERVISORS, shrugging
from .home import Home
from .lifeline import PROTOCOL, Lifeline, pair
from .worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from ..options import Options
    from ..processes import Child
    from .ties import Ties

__all__ = ["MINE", "serve"]

MINE = (*FOR_SUPERVISORS, signal.SIGTERM)
"""What a fork server and a new worker are not to be disturbed by."""

has_served: bool = False
"""Whether this process is or was a fork server."""

_KNELL = 2.0  # seconds between ABRT and KILL, for a dump of the stacks


def serve(lifeline: Lifeline, ties: Ties, options: Options, *, mask: list[int], stderr: int = -1) -> Worker:
    """Tell the supervisor that the program is loaded, and fork workers for it. Returns in each worker; the fork
    server itself ends with SystemExit, so that the program's `finally` clauses and exit handlers run, once.

    `MINE` are blocked; `mask` is the signal mask to go back to. `stderr`: see `Worker`.
    """
    global has_served
    has_served = True
    return _ForkServer(lifeline, ties, options, mask, stderr).run()


class _ForkServer:
    def __init__(self, lifeline: Lifeline, ties: Ties, options: Options, mask: list[int], stderr: int) -> None:
        self._lifeline, self._ties, self._options, self._stderr = lifeline, ties, options, stderr
        self._workers: dict[int, tuple[int, Child]] = {}  # by the descriptor that shows their end
        self._mask = mask
        self._poll = select.poll()
        self._shrugging = shrugging(MINE)
        self._is_ending = self._is_orphan = self._has_been_asked = False

    def run(self) -> Worker:
        unleash()
        self._shrugging.__enter__()
        # Without preload this process becomes a worker, and a TERM that it gets before it has noticed is the worker's.
        signals.restore_mask(self._mask if self._options.preload else [*self._mask, signal.SIGTERM])
        home = Home.own()
        self._lifeline.send(
            "hello",
            protocol=PROTOCOL,
            version=home.version,
            home=home.as_document(),
            options=self._options.as_document(),
        )
        titles.load()
        titles.name("forkserver", state.generation)
        _prepare_for_forks()
        self._poll.register(self._lifeline.fileno(), select.POLLIN)
        while True:
            for fd in self._wait():
                self._report_if_ended(fd)
            for message, _ in self._lifeline.receive():
                self._has_been_asked = True
                born = self._obey(message)
                if born is not None:
                    return born
            if self._lifeline.has_ended or self._is_orphan:
                self._end_without_supervisor()
            if self._is_ending and not self._workers:
                self._lifeline.keep_to_the_end()
                sys.exit(0)

    def _wait(self) -> list[int]:
        """Sleep until somebody has something to tell; the workers that may have ended."""
        if processes.has_pidfd():
            return [fd for fd, _ in self._poll.poll() if fd in self._workers]
        self._poll.poll(1000 if self._workers else None)
        return list(self._workers)

    def _obey(self, message: dict[str, Any]) -> Worker | None:
        """Do what the supervisor says; in a new worker, the worker."""
        if message["type"] == "fork":
            return self._fork(message["worker"], message["place"])
        if message["type"] == "become":
            signals.block(MINE)
            return self._born(self._lifeline, message["place"])
        if message["type"] == "serving" and takeover.is_relayed():
            os.dup2(self._stderr, 2)
        if message["type"] == "stop":
            self._is_ending = True
        return None

    def _fork(self, number: int, place: int) -> Worker | None:
        reexec.flush_streams()  # what is buffered would be printed by each worker
        self._mask = signals.block(MINE)
        take_callbacks_along = callbacks.kept_over_a_fork()
        try:
            theirs, ours = pair()
            is_known, make_known = map(FileIO, map(fds.above_stdio, os.pipe()), "rw")  # gevent has its hands in sockets
            child = processes.fork()
        except OSError as error:
            signals.restore_mask(self._mask)
            reason = f"no process or descriptor is to be had: {error.strerror}"
            self._tell("exited", worker=number, status=processes.STATUS_UNKNOWN, reason=reason)
            return None
        if child is None:
            theirs.close()
            make_known.close()
            self._lifeline.close()
            for _, each in self._workers.values():
                each.close()
            exits.forget_the_parents()
            take_callbacks_along()
            return self._born(Lifeline(ours), place, is_known)
        signals.restore_mask(self._mask)
        self._workers[child.fileno()] = number, child
        self._poll.register(child.fileno(), select.POLLIN)
        watch = [] if child.pidfd == -1 else [child.pidfd]
        self._tell("forked", theirs.fileno(), *watch, worker=number, pid=child.pid)
        make_known.write(b"\0")  # the other end is here as well: no error if the worker has died
        for end in (theirs, ours, is_known, make_known):
            end.close()
        return None

    def _born(self, lifeline: Lifeline, place: int, is_known: FileIO | None = None) -> Worker:
        """A worker's first moments, in which signals wait."""
        worker = Worker(lifeline, self._ties, place, self._options, self._stderr)
        worker.enter()
        titles.name("worker", state.generation)
        if is_known is not None:
            with is_known:
                if not is_known.read(1):
                    os._exit(1)  # the fork server has died before it told of it: nobody would ever see to its end
        signals.restore_mask(self._mask)
        return worker

    def _tell(self, kind: str, *rights: int, **fields: Any) -> None:
        try:
            self._lifeline.send(kind, *rights, **fields)
        except LifelineError:
            self._is_orphan = True

    def _report_if_ended(self, fd: int) -> None:
        number, child = self._workers[fd]
        status = child.poll()
        if status is not None:
            del self._workers[fd]
            self._poll.unregister(fd)
            self._tell("exited", worker=number, status=status, reason="")

    def _end_without_supervisor(self) -> NoReturn:
        """The supervisor is gone: no orphan serves."""
        if not self._has_been_asked:
            os._exit(1)  # it has never come to be; who was to become it is still there, and runs the exit handlers
        for signum, seconds in (
            (signal.SIGTERM, self._options.grace),
            (signal.SIGABRT, _KNELL),
            (signal.SIGKILL, _KNELL),
        ):
            for _, child in self._workers.values():
                child.send_signal(signum)
            deadline = monotonic() + seconds
            for _, child in self._workers.values():
                child.wait(max(0.0, deadline - monotonic()))
        sys.exit(0)


def _prepare_for_forks() -> None:
    """Once, before the first; the supervisor has been told already, and gets its answer ready meanwhile."""
    import gc
    import threading

    import hotrestart

    _ = hotrestart.worker_loop  # what each of them would load for itself
    if "asyncio" in sys.modules:
        __import__("hotrestart.aio")
    __import__("traceback")  # a worker that fails may not reach the files any more, as after chroot
    log.dump_stacks_on_abort()  # a hung worker is ended so
    if threading.active_count() > 1:
        names = ", ".join(each.name for each in threading.enumerate() if each is not threading.main_thread())
        log.warning(
            f"the program has started threads while it was loaded ({names}): they do not exist in the workers, and "
            "what they hold stays locked; start them in main(), or use preload=False"
        )
    gc.collect()
    gc.freeze()  # the collector shall not touch what is there now in each worker, or the kernel copies it
