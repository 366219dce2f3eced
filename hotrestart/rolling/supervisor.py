"""`Supervisor`: carries out what `Rollout` decides, and tells it what happens to the processes.

It runs no user code and never blocks: it sleeps in one poll on lifelines, pidfds and whatever else there is, with no
periodic wake-up of its own. It can be driven by a foreign loop: wait until `fileno()` is readable or `timeout()` has
passed, then call `step()`; `run()` is the loop around these three.
"""

from __future__ import annotations

import os
import selectors
import signal
from _weakref import ref
from time import monotonic

from .. import command, log, signals
from ..options import Options
from ..sleeper import Sleeper
from .desk import Desk
from .generation import STARTING
from .launch import launch
from .members import Member
from .rollout import Rollout
from .roster import Roster
from .ties import Ties

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ..command import Command
    from ..outcome import Outcome
    from .generation import Process
    from .rollout import Action

__all__ = ["Supervisor"]

_LONGEST = 86400.0  # seconds: some loops cannot wait for ever


class Supervisor:
    """A program under supervision: started, kept running, restarted without letting go of what works, stopped.

    Make, drive and close it in one thread. `restart`, `stop`, `quit` and `scale` may be called in any thread and in a
    signal handler. A forked child has no use for it. The host's signals, children and exit handlers are not touched.

    >>> import sys
    >>> supervisor = Supervisor([sys.executable, "-c", "pass"])
    >>> supervisor.run()  # it has no main() that is @restartable(workers=N)
    1
    >>> supervisor.close()
    """

    program: Command
    rollout: Rollout
    ties: Ties

    kind = "rolling"
    """What `status` says."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        ready_timeout: float = 60.0,
        control: str | None = None,
    ) -> None:
        """`argv`: the program, its interpreter's path first; its `main()` is `@restartable(workers=N)`, and the other
        options are said there, except `control` and `pidfile`, which are about this process. `cwd` and `env`: here and
        now's, if not given. `ready_timeout`: for the very first load, seconds. `control`: the path of a control socket,
        served by `step`. Raises OptionError, AddressError, OSError."""
        options = Options(workers=1, ready_timeout=ready_timeout, control=control or False)
        self._set_up(command.Command.of(argv, cwd, env), Rollout(options), Ties())
        if isinstance(options.control, str):
            self.desk.listen(options.control)

    def _set_up(self, program: command.Command, rollout: Rollout, ties: Ties) -> None:
        self.program, self.rollout, self.ties = program, rollout, ties
        self.exit_status: int | None = None
        """What the program has ended with, for `sys.exit`; None while it runs."""
        self._selector = selectors.DefaultSelector()
        self._sleeper = Sleeper()
        self._selector.register(self._sleeper, selectors.EVENT_READ, lambda: self._sleeper.sleep(0))
        self.roster: Roster = Roster(self._selector, ties.beats, _Observer(self))
        self.desk: Desk = Desk(self)
        self._events: list[Callable[[], list[Action]]] = []
        self._asked: list[Callable[[], None]] = []
        self._stale: set[int] = set()
        self._has_begun = False
        _supervisors.append(ref(self))

    # -- driving it ------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """A descriptor that is readable when `step` is wanted."""
        return self._selector.fileno()  # epoll or kqueue: both can be waited for

    def timeout(self) -> float:
        """Seconds until `step` is wanted although nothing is readable: 0 for now, a day at most."""
        if not self._has_begun or self._asked:
            return 0.0
        now = monotonic()
        due = min(self.rollout.deadline(), self.roster.deadline(now), self.desk.deadline)
        return min(max(0.0, due - now), _LONGEST)

    def step(self) -> None:
        """Do what there is to do. Never blocks."""
        if not self._has_begun:
            self._has_begun = True
            self._happened("begin")
        for key, _ in self._selector.select(0):
            key.data()
        while self._asked:
            self._asked.pop(0)()
        self.roster.look(monotonic())
        self._happened("tick")
        self.desk.look(monotonic())

    def run(self) -> int:
        """Drive it until the program has ended; the exit status. Signals that have handlers end the wait."""
        with signals.waking(self._sleeper):
            nudges = self._sleeper.nudge_fileno()
            self._selector.register(nudges, selectors.EVENT_READ, self._sleeper.unheard)
            try:
                while self.exit_status is None:
                    self._selector.select(self.timeout())
                    self.step()
            finally:
                self._selector.unregister(nudges)
        return self.exit_status

    def close(self) -> None:
        """Give the descriptors back. Members that are still there learn that the supervisor is gone, and drain; the
        next `Supervisor`, or the next `close()`, reaps them."""
        self.desk.close()
        self.roster.close()
        self._selector.close()
        self._sleeper.close()
        self.ties.close()

    # -- asking it -------------------------------------------------------------------------------------------------

    def restart(self, told: Callable[[Outcome], object] | None = None) -> None:
        """Ask for a restart; `told` is called with its outcome, by `step`."""
        self._ask(lambda: self._happened("restart", told))

    def stop(self) -> None:
        """Ask the program to end; asked twice, at once."""
        self._ask(lambda: self._happened("stop"))

    def stop_once(self) -> None:
        """Ask the program to end; asked twice, still gracefully: several may ask for the same."""
        self._ask(lambda: self._happened("stop") if not self.rollout.is_stopping else None)

    def quit(self) -> None:
        """Kill the program."""
        self._ask(lambda: self._happened("quit"))

    def scale(self, by: int) -> None:
        """So many workers more, or fewer if negative."""
        self._ask(lambda: self._scale(by))

    def send_signal(self, number: int) -> None:
        """Pass a signal on to every worker."""
        self._ask(lambda: self.roster.send_signal(number))

    @property
    def watch(self) -> selectors.BaseSelector:
        """For those who have descriptors to be looked after by `step`, with a callable for each."""
        return self._selector

    def _ask(self, action: Callable[[], None]) -> None:
        self._asked.append(action)
        self._sleeper.wake()

    # -- between the roster and the rollout ------------------------------------------------------------------------

    def _happened(self, event: str, *about: Any, **more: Any) -> None:
        """Let the rollout decide, and do what it says. What happens meanwhile has its turn afterwards."""
        self._events.append(lambda: getattr(self.rollout, event)(*about, now=monotonic(), **more))
        if len(self._events) > 1:
            return
        while self._events:
            try:
                for verb, subject in self._events[0]():
                    self._do(verb, subject)
            finally:
                del self._events[0]
            self.desk.tell_stage()

    def _do(self, verb: str, subject: Any) -> None:
        if verb in ("drain", "abort", "kill", "become"):
            member = self.roster.members.get(subject.id)
            if member is not None:  # otherwise it has just ended, and that is one of the next events
                getattr(self, f"_do_{verb}")(member)
        else:
            getattr(self, f"_do_{verb}")(subject)

    def _note_the_end_of(self, member: Member, why: str) -> None:
        """What ends in the coming generation is told by the outcome."""
        if member.process.generation == self.rollout.current and not member.process.is_leaving:
            log.warning(f"{member}: {why}")

    def _scale(self, by: int) -> None:
        self._happened("scale", by)
        log.info(f"workers wanted: {self.rollout.workers_wanted}")

    def _limits(self) -> dict[int, Options]:
        return {number: generation.options for number, generation in self.rollout.generations.items()}

    def _do_start(self, process: Process) -> None:
        server = self.rollout.generations[process.generation].server
        try:
            if process.is_server or server is None:
                self.roster.adopt(self._launch(process))
            elif server.id in self.roster.members:
                member = Member(process)
                self.roster.adopt(member)
                place = self.roster.take_place(member)
                self.roster.post(self.roster.members[server.id], "fork", worker=process.id, place=place)
            else:
                self._happened("ended", process, "its fork server is gone")
        except Exception as error:  # no descriptors, no processes, no memory: whatever it is, it is no reason to die
            why = f"{self.program.executable} cannot be started: {getattr(error, 'strerror', None) or error}"
            if process.generation == self.rollout.current:  # what ends in the coming generation is told by the outcome
                log.error(why)
            self._happened("ended", process, why)

    def _launch(self, process: Process) -> Member:
        return launch(process, self.program, self.ties)

    def _load_again(self, member: Member) -> None:
        """It has found, and dropped, old bytecode of new sources; once is enough."""
        process = member.process
        if process.state != STARTING:
            return  # it has been told to end, and does so by itself
        if process.id in self._stale:
            self.roster.distrust(member, "the code on disk changes faster than it loads")
            return
        self._stale.add(process.id)
        member.send_signals(signal.SIGKILL)
        self.roster.forget(member)
        self._do_start(process)

    def _do_become(self, member: Member) -> None:
        self.roster.post(member, "become", place=self.roster.take_place(member))

    def _do_drain(self, member: Member) -> None:
        if member.process.is_server:
            self.roster.post(member, "stop")
        else:
            member.send_signals(signal.SIGTERM, signal.SIGCONT)

    def _do_abort(self, member: Member) -> None:
        log.warning(f"{member}: {member.process.why or 'it does not end'}; aborting it")
        member.send_signals(signal.SIGABRT, signal.SIGCONT)
        server = self.rollout.generations[member.process.generation].server
        if member.child is None and server is not None:  # it was never forked
            self._happened("hung", server, "it does not fork")

    def _do_kill(self, member: Member) -> None:
        member.send_signals(signal.SIGKILL)

    def _do_commit(self, number: int) -> None:
        self.roster.listening.commit(number, monotonic())
        self._stale.clear()
        for member in self.roster.members.values():
            if member.process.generation == number and member.process.is_server:
                self.roster.post(member, "serving")

    def _do_outcome(self, told: tuple[Outcome, list[Any]]) -> None:
        outcome, askers = told
        self.desk.tell_outcome(outcome)
        for asker in askers:
            try:
                if asker is not None:
                    asker(outcome)
            except Exception as error:
                log.error(f"{asker!r}, which was to be told of an outcome, raised {error!r}")
        if outcome.ok:
            log.info(str(outcome))
        else:
            log.error(str(outcome), outcome.detail)

    def _do_end(self, status: int) -> None:
        self.exit_status = status


_supervisors: list[ref[Supervisor]] = []


def _let_go_after_fork() -> None:
    """A child that the host forks must not hold what tells the members that the supervisor lives."""
    for reference in _supervisors:
        supervisor = reference()
        if supervisor is not None:
            supervisor.ties.tether.let_go()
            supervisor.desk.let_go_after_fork()
            for member in supervisor.roster.members.values():
                if member.lifeline is not None:
                    member.lifeline.socket.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)


class _Observer:
    """What the roster sees of a supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.happened, self.load_again = supervisor._happened, supervisor._load_again
        self.mourn, self.limits = supervisor._note_the_end_of, supervisor._limits
        self.stop = supervisor.stop_once
