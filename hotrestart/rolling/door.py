"""The door of `main()` in a program with `workers=`: supervisor and fork server are on this side, workers go through.

The process that the user has started arrives here with the whole program in it. It forks the first fork server from
itself, so that nothing is imported twice, and execs into the bare supervisor: the pid stays, and nothing of the program
stays with it. If the program has threads by now a fork would take their locks along, so the supervisor starts the first
fork server afresh, like all later ones, which arrive here with a lifeline.
"""

from __future__ import annotations

import atexit
import os

from .. import bytecode, callbacks, command, exits, processes, reexec, role, signals, state, takeover
from . import asking, forkserver
from .forkserver import MINE, serve
from .lifeline import Lifeline, pair
from .ties import Ties
from .worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..options import Options

__all__ = ["enter"]


def enter(options: Options) -> Worker:
    """Become a program with workers. Returns in the workers only.

    In the main thread, outside of an event loop. Raises NotRestartableError, WrongThreadError, and OSError if the
    supervisor cannot be started.
    """
    if forkserver.has_served:
        exits.end_now(0)  # SystemExit was caught around the call of main(), which is called again
    _check()
    member = takeover.membership
    if member is None:
        return _start_supervision(options)
    mask = signals.block(MINE)
    assert asking.lifeline is not None
    if bytecode.drop_stale(command.first.since):
        asking.lifeline.send("stale")
        os._exit(0)  # nobody's exit handlers: it has never been
    return serve(asking.lifeline, Ties.of([member.beats, member.tether]), options, mask=mask, stderr=member.stderr)


def _check() -> None:
    from threading import current_thread, main_thread

    from ..errors import HotRestartError, WrongThreadError

    command.first.check()
    if current_thread() is not main_thread():
        raise WrongThreadError("workers are forked in the main thread: call main() there")
    if role.current is not None:
        raise HotRestartError("a program that restarts in place runs here already: it cannot have workers as well")
    if role.has_event_loop():
        raise HotRestartError("workers cannot share an event loop: call main() outside of it, as asyncio.run(main())")


def _start_supervision(options: Options) -> Worker:
    from . import becoming, desk

    reexec.flush_streams()
    prepared = desk.prepare(options)
    is_restart_due = signals.take_held()
    mask = signals.block(becoming.SIGNALS)
    ties = Ties()
    ours, theirs = pair()
    server: list[int] = []
    take_callbacks_along = callbacks.kept_over_a_fork()
    try:
        if _is_alone():
            child = processes.fork()
            if child is None:
                ours.close()
                ties.tether.let_go()
                desk.let_go(prepared)
                take_callbacks_along()
                command.first.pid = os.getpid()
                return serve(asking.begin(Lifeline(theirs)), ties, options, mask=mask)
            server = [child.pid, ours.fileno()]
        else:
            atexit._run_exitfuncs()  # nobody else has what was registered here: the fork server loads it all anew
            reexec.flush_streams()
        document = {
            "options": options.as_document(),
            "generation": state.generation,
            "last": state.generation,
            "ties": ties.numbers(),
            "server": server,
            "restart": is_restart_due,
            "desk": prepared,
        }
        becoming.become(document, {ours.fileno()})
    except OSError:
        ours.close()  # a fork server that is there already learns it, and ends without having been
        theirs.close()
        ties.close()
        desk.withdraw(prepared)
        signals.restore_mask(mask)
        raise


def _is_alone() -> bool:
    """Whether this process has one thread, libraries' own counted."""
    import threading

    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return threading.active_count() == 1
