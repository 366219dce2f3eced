"""The bare supervisor: a process of its own, with nothing of the program's in it.

It is a fresh interpreter (`-I -S`) under the pid that the user knows: no heap, no threads, no handlers and no patches
of the program's, a few MB whatever that weighs. Its signals are blocked across the exec and until it has handlers.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from .. import command, inheritance, listeners, log, reexec, signals, state
from ..options import Options
from ..processes import Child
from .beats import Beats
from .lifeline import Lifeline
from .members import Member
from .rollout import Rollout
from .supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from .generation import Process

__all__ = ["SIGNALS", "become", "main"]

SIGNALS = (*signals.FOR_SUPERVISORS, signal.SIGTERM, signal.SIGQUIT)
"""What the supervisor acts on."""

_CODE = (
    "import os, sys; sys.path.insert(0, sys.argv[1]); told = os.environ.pop('HOTRESTART'); "
    "from hotrestart.rolling.bare import main; main(told)"
)


def become(document: dict[str, Any], keep: set[int], *, python: str = "", library: str = "") -> NoReturn:
    """Exec this process into the bare supervisor. Raises OSError, and everything is as before."""
    python = python or sys.executable
    library = library or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    argv = [python, "-I", "-S", "-B", "-c", _CODE, library, "supervisor of", *command.first.argv]
    held = [int(number) for number in SIGNALS if number not in command.first.blocked]
    keep = {*keep, *command.first.fds, *[each["fd"] for each in document["listeners"]], *listeners.systemd_fds()}
    reexec.exec_with(python, argv, {**document, "role": "supervisor", "held": held}, keep)


def main(told: str) -> NoReturn:
    """The supervisor's whole life."""
    document = inheritance.read({command.VARIABLE: told})
    if document is None:
        sys.exit(reexec.EX_OSERR)
    command.first = command.Command.from_document(document["command"])
    state.generation = document["generation"]
    log.straight_to_stderr()
    supervisor = _BareSupervisor(document)
    supervisor.take_signals()
    signals.unblock(document["held"])
    sys.exit(supervisor.run())


class _BareSupervisor(Supervisor):
    """The supervisor of the program that this process was."""

    def __init__(self, document: dict[str, Any]) -> None:
        rollout = Rollout(Options(**document["options"]), generation=document["generation"])
        self._set_up(command.first, rollout, Beats(document["beats"]))
        self._server: list[int] = document["server"]
        for fd in (document["beats"], *self._server[1:]):
            os.set_inheritable(fd, False)
        listeners.adopt(document["listeners"])
        for each in document["listeners"]:
            listeners.listen(each["address"], name=each["name"]).close()
            self.roster.listening.asked.setdefault(document["generation"], set()).add((each["address"], each["name"]))
        if document["restart"]:
            self.restart()

    def take_signals(self) -> None:
        """From now on signals ask for things; those that whoever started the program has ignored stay ignored."""
        asks: dict[int, Callable[[], None]] = {
            signal.SIGHUP: self.restart,
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGQUIT: self.quit,
            signal.SIGTTIN: lambda: self.scale(1),
            signal.SIGTTOU: lambda: self.scale(-1),
            signal.SIGUSR1: lambda: self.send_signal(signal.SIGUSR1),
        }
        for number in asks.keys() - set(command.first.ignored):
            signal.signal(number, lambda number, _frame: asks[number]())
        if os.getpid() == 1:
            signal.signal(signal.SIGCHLD, lambda _number, _frame: self._ask(self.roster.reap_all))

    def _do_commit(self, number: int) -> None:
        super()._do_commit(number)
        state.generation = number

    def _launch(self, process: Process) -> Member:
        """The first fork server has been forked already, as a rule."""
        if not (process.is_server and self._server):
            return super()._launch(process)
        (pid, lifeline), self._server = self._server, []
        member = Member(process)
        member.child, member.lifeline = Child(pid), Lifeline(socket.socket(fileno=lifeline))
        return member
