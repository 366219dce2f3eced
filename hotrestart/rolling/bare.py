"""The bare supervisor: a process of its own, with nothing of the program's in it.

It is a fresh interpreter (`-I -S`) under the pid that the user knows: no heap, no threads, no handlers and no patches
of the program's, a few MB whatever that weighs. Its signals are blocked across the exec and until it has handlers.
"""

from __future__ import annotations

import os
import signal
import sys
from time import monotonic

from .. import command, inheritance, listeners, log, reexec, signals, state, titles
from ..address import identity
from ..options import Options
from .becoming import SIGNALS, become
from .carried import as_document, descriptors, restored
from .generation import NEVER, Generation, Process
from .home import Home
from .members import Member
from .rehearsal import Rehearsal
from .rollout import Rollout
from .supervisor import Supervisor
from .ties import Ties

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

__all__ = ["main"]


def main(told: str) -> NoReturn:
    """The supervisor's whole life."""
    _fill_standard_streams()
    for name in ("array", "encodings.idna", "fcntl", "json", "select", "traceback"):
        __import__(name)  # later the limit on open files may be reached, or the interpreter's files be replaced
    document = inheritance.read({command.VARIABLE: told})
    if document is None:
        sys.exit(reexec.EX_OSERR)
    command.first = command.Command.from_document(document["command"])
    state.generation = document["generation"]
    titles.name("supervisor", state.generation)
    log.straight_to_stderr()
    _raise_limit_on_open_files()
    supervisor = _supervisor_for(document)
    supervisor.take_signals()
    signals.unblock(document["held"])
    status = supervisor.run()
    supervisor.desk.close()
    sys.exit(status)


def _supervisor_for(document: dict[str, Any]) -> _BareSupervisor:
    if "run" in document:
        from .runner import Runner

        return Runner(document)
    return _BareSupervisor(document)


def _raise_limit_on_open_files() -> None:
    """Two descriptors for each worker, and as many again while it is replaced; the program keeps the limit it had."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if command.first.nofile is None:
        command.first.nofile = soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass  # macOS has limits that it does not let anybody set


def _fill_standard_streams() -> None:
    """What was started without some of them would write its log into whatever has the number next."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


class _BareSupervisor(Supervisor):
    """The supervisor of the program that this process was. When the program has moved to another interpreter or to
    another version of this library, so does the supervisor, by an exec of its own as soon as nothing is under way, if
    a rehearsal has gone well."""

    def __init__(self, document: dict[str, Any]) -> None:
        number = document["generation"]
        options = Options(**document["options"])
        self._set_up(command.first, Rollout(options, generation=document["last"]), Ties.of(document["ties"]))
        self._home = self._next_home = Home.own()
        self._rehearsal: Rehearsal | None = None
        self._rehearsed: Home | None = None
        self._server: list[int] = document["server"]
        listeners.adopt(document["listeners"], claimed=True)
        for each in document["listeners"]:
            self.roster.listening.asked.setdefault(number, set()).add(identity(each["address"], each["name"]))
        self.desk.open(document["desk"])
        if document["serving"] is not None:
            self._go_on_with(document["serving"], number, options)
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
        # Nobody's host: what the program has started before main() is a child of this process, and, if it is pid 1,
        # every orphan.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: self._ask(self.roster.reap_all))
        self._ask(self.roster.reap_all)  # those that ended before there was a handler

    def timeout(self) -> float:
        """Seconds until `step` is wanted although nothing is readable."""
        until = self._rehearsal.deadline - monotonic() if self._rehearsal is not None else NEVER
        return max(0.0, min(super().timeout(), until))

    def step(self) -> None:
        """Do what there is to do; perhaps by another interpreter from here on."""
        super().step()
        if self._rehearsal is not None:
            self._rehearsal.look(monotonic())
        is_quiet = self.roster.is_quiet and self.desk.is_quiet
        if self._next_home != self._home and self.rollout.is_idle and is_quiet:
            if self._rehearsed == self._next_home:
                self._move()
            elif self._rehearsal is None:
                self._rehearse(self._next_home)
        self._rehearsed = None  # it says nothing of any later moment

    def _launch(self, process: Process) -> Member:
        """The first fork server has been forked already, as a rule."""
        if not (process.is_server and self._server):
            return super()._launch(process)
        (pid, lifeline), self._server = self._server, []
        return restored(process, {"pid": pid, "lifeline": lifeline})

    def _do_commit(self, number: int) -> None:
        super()._do_commit(number)
        state.generation = number
        titles.name("supervisor", number)
        self.desk.adopt(self.rollout.generations[number].options)
        self._next_home = self.roster.home_of(number) or self._home

    def _do_end(self, status: int) -> None:
        super()._do_end(status)
        if self._rehearsal is not None:
            self._rehearsal.kill()

    def _rehearse(self, home: Home) -> None:
        def ended(why: str) -> None:
            if self._rehearsal is not None:
                self.roster.reap_later(self._rehearsal.child)
            self._rehearsal, self._rehearsed = None, None if why else home
            if why:
                self._stay(home, why)

        try:
            self._rehearsal = Rehearsal(home, self._selector, ended)
        except OSError as error:
            self._stay(home, f"it cannot be started: {error}")

    def _stay(self, home: Home, why: str) -> None:
        """Not again at once; after the next commit."""
        if self._next_home == home:
            self._next_home = self._home
        log.error(f"the supervisor stays what it is: {home.python}: {why}")

    def _move(self) -> None:
        """Exec into the interpreter and the library that the program has now."""
        mask = signals.block(SIGNALS)
        home = self._next_home
        try:
            if self._asked:
                return  # something has come in the last moment: first that
            log.info(f"the supervisor moves to {home.python}, hotrestart {home.version}")
            members = [as_document(each) for each in self.roster.members.values()]
            generation = self.rollout.generations[self.rollout.current]
            document = {
                "generation": generation.number,
                "last": self.rollout.last_number,
                "options": generation.options.as_document(),
                "ties": self.ties.numbers(),
                "desk": self.desk.as_document(),
                "serving": {"extra": self.rollout.extra, "members": members},
            }
            become(document, {fd for each in members for fd in descriptors(each)}, home)
        except OSError as error:
            self._stay(home, f"it cannot be started: {error}")
        finally:
            signals.restore_mask(mask)

    def _go_on_with(self, serving: dict[str, Any], number: int, options: Options) -> None:
        """Take up what the supervisor before the exec has left."""
        generation = Generation(number, options)
        for each in serving["members"]:
            member = restored(Process.from_document(each["process"]), each)
            self.roster.adopt(member)
            generation.add(member.process)
        self.rollout.go_on_with(generation, serving["extra"])
        self._has_begun = True
