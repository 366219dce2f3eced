"""The supervisor around any command: each worker is that command, and nobody tells us anything but by ending, by
`READY=1`, or by living on.

All that is decided is decided as for `@restartable(workers=N, preload=False)`, where each worker is started from what
is on disk. What is a message there is taken for granted here: the program is loaded once it is started, and whoever was
started may become a worker. The supervisor stays on the interpreter that it was started with: the command says nothing
about another, and may not be Python at all.
"""

from __future__ import annotations

import os
import selectors
import signal
from time import monotonic

from .. import fds, listeners, log, systemd
from ..command import Command
from ..options import Options
from .bare import _BareSupervisor
from .foreign import Circumstances, environment, start
from .generation import NEVER
from .hired import Hired, Outlet, has_room
from .readiness import NotifySocket, can_notify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .generation import Process
    from .members import Member

__all__ = ["Runner"]

_LOOK_AGAIN = 0.05  # seconds, when standard error was full; there are files that cannot be waited for


class Runner(_BareSupervisor):
    """What `document["run"]` says: `argv`, the command; `listen`, pairs of address and name, and whether they shall be
    `nonblocking`; `settle`, seconds, or None if only READY=1 counts; `signal`, the one that asks a worker to stop."""

    kind = "run"

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(document)
        task = document["run"]
        self.program: Command = Command.from_document({**self.program.as_document(), "argv": task["argv"]})
        self.program.executable = self.program.argv[0]
        self._options = Options(**document["options"])
        self._settle: float | None = task["settle"]
        self._stop_signal: int = task["signal"]
        self.roster.listening.asked.clear()  # what is listened to is said once and for all, whatever generation serves
        self._listening = _listening(task["listen"], task["nonblocking"])

    # -- the passing of time ---------------------------------------------------------------------------------------

    def timeout(self) -> float:
        """Seconds until `step` is wanted although nothing is readable."""
        until = min((each.settles_at for each in self._hired()), default=NEVER) - monotonic()
        is_any_stuck = any(each.outlet is not None and each.outlet.is_stuck for each in self._hired())
        return max(0.0, min(super().timeout(), until, _LOOK_AGAIN if is_any_stuck else NEVER))

    def step(self) -> None:
        """Do what there is to do. Never blocks."""
        super().step()
        now = monotonic()
        for member in self._hired():
            if now >= member.settles_at:
                self._is_ready(member)
            if member.outlet is not None and member.outlet.is_stuck and has_room():
                member.outlet.is_stuck = False
                self._watch_output(member, member.outlet)

    def _hired(self) -> list[Hired]:
        return [each for each in self.roster.members.values() if isinstance(each, Hired)]

    def send_signal(self, number: int) -> None:
        """Pass a signal on to every worker that serves; one that has only just been started would die of it."""
        self._ask(lambda: self._pass_on(number))

    def _pass_on(self, number: int) -> None:
        for member in self._hired():
            if member.is_settled:
                member.send_signals(number)

    # -- what workers say and do -----------------------------------------------------------------------------------

    def _watch_output(self, member: Hired, outlet: Outlet) -> None:
        self._selector.register(outlet, selectors.EVENT_READ, lambda: self._on_output(member, outlet))

    def _on_output(self, member: Hired, outlet: Outlet) -> None:
        """What there is no room for stays where it is, and is not looked at for a while."""
        if self._is_here(member):
            outlet.pump()
            if outlet.has_ended or outlet.is_stuck:
                self._selector.unregister(outlet)

    def _on_notification(self, member: Hired) -> None:
        notify = member.notify if self._is_here(member) else None
        if notify is not None and notify.receive(member.pid).get("READY") == "1":
            self._is_ready(member)

    def _is_here(self, member: Hired) -> bool:
        """It may have been forgotten in this very turn."""
        return self.roster.members.get(member.process.id) is member

    def _is_ready(self, member: Hired) -> None:
        member.settles_at, member.is_settled = NEVER, True
        self._happened("ready", member.process)

    def _note_the_end_of(self, member: Member, why: str) -> None:
        super()._note_the_end_of(member, why)
        if isinstance(member, Hired) and member.notify is not None:
            self._selector.unregister(member.notify)
            member.notify.close()
            member.notify = None

    # -- what the rollout wants ------------------------------------------------------------------------------------

    def _do_start(self, process: Process) -> None:
        super()._do_start(process)
        member = self.roster.members.get(process.id)
        if not isinstance(member, Hired):
            return  # it could not be started
        if member.outlet is not None:
            self._selector.unregister(member.outlet)  # the roster would read what there is no room for
            self._watch_output(member, member.outlet)
        if member.notify is not None:
            self._selector.register(member.notify, selectors.EVENT_READ, lambda: self._on_notification(member))
        if process.is_server:
            self._happened("ready", process, options=self._options)

    def _launch(self, process: Process) -> Member:
        member = Hired(process, os.path.basename(self.program.executable))
        if self._settle is not None:
            member.settles_at = monotonic() + self._settle
        read_end, write_end = os.pipe()
        try:
            member.relay = Outlet(fds.above_stdio(read_end))
            if can_notify():
                member.notify = NotifySocket()
            member.child = start(self.program, self._circumstances(member, write_end))
            log.info(f"generation {process.generation}: process {member.pid} is started")
            return member
        except BaseException:
            for each in (member.relay, member.notify):
                if each is not None:
                    each.close()
            raise
        finally:
            os.close(write_end)

    def _circumstances(self, member: Hired, stderr: int) -> Circumstances:
        notify = member.notify.address if member.notify is not None else None
        env = environment(self.program.env, [name for _, name in self._listening], notify)
        return Circumstances(env, [fd for fd, _ in self._listening], stderr, self.ties.tether, self._stop_signal)

    def _do_become(self, member: Member) -> None:
        """It is one already; and may be ready since before there was room for it."""
        if isinstance(member, Hired) and member.is_settled:
            self._happened("ready", member.process)

    def _do_drain(self, member: Member) -> None:
        member.send_signals(self._stop_signal, signal.SIGCONT)

    def _do_abort(self, member: Member) -> None:
        """ABRT would have it dump its core, and tell nobody anything."""
        log.warning(f"{member}: {member.process.why or 'it does not end'}; killing it")
        self._do_kill(member)


def _listening(wanted: list[list[Any]], nonblocking: bool) -> list[tuple[int, str | None]]:
    """The descriptors for the workers, with their names: of the addresses that are wanted, or all of systemd's.

    They block, as systemd's do, unless `nonblocking`, which is its NonBlocking=. The flag belongs to all who hold a
    socket: once there are workers it is theirs.
    """
    if not wanted:
        found: list[tuple[int, str | None]] = list(systemd.listen_fds())
        for fd, _ in found if nonblocking else ():
            os.set_blocking(fd, False)
        return found
    found = []
    for address, name in wanted:
        listener = listeners.listen(address, name=name)
        listener.setblocking(not nonblocking)
        log.info(f"listens on {_shown(listener.getsockname())}")
        found.append((listener.detach(), name))
    return found


def _shown(name: Any) -> str:
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else os.fsdecode(name)
