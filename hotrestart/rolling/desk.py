"""The desk of a supervisor: where it is asked for things and tells how they go - control socket, systemd, pid file.

It is a part of the supervisor's loop, without a thread. What it holds is made before the process that the user has
started turns into the supervisor, so that a path which cannot be had is an error of the program, and goes along over
every exec of the supervisor's own.
"""

from __future__ import annotations

import os
from time import monotonic

from .. import log, reporting, systemd
from ..control.listening import Listening
from ..errors import AddressError, HotRestartError
from ..pidfile import PidFile
from .generation import NEVER, READY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..control.server import Connection, Server
    from ..options import Options
    from ..outcome import Outcome
    from .supervisor import Supervisor

__all__ = ["Desk", "let_go", "prepare", "withdraw"]

_MOST_WORKERS = 2048
_SLACK = 10.0  # seconds over what a stage may take


def prepare(options: Options) -> dict[str, Any]:
    """Take the pid file and listen, in the process that will be the supervisor: for `Desk.open`. Raises PidFileError,
    and AddressError for a path that was asked for; without one, a control socket is not worth dying for."""
    prepared: dict[str, Any] = {"fds": []}
    pidfile = PidFile.take(options.pidfile) if options.pidfile is not None else None
    if pidfile is not None:
        prepared["pidfile"] = pidfile.as_document()
        prepared["fds"].append(pidfile.fd)
    try:
        listening = _listen(options.control)
    except AddressError:
        if pidfile is not None:
            pidfile.remove()
        raise
    if listening is not None:
        prepared["listening"] = listening.as_document()
        prepared["fds"].append(listening.fd)
    return prepared


def let_go(prepared: dict[str, Any]) -> None:
    """In a child that was forked from the supervisor-to-be; the pid file looks after itself."""
    if "listening" in prepared:
        os.close(prepared["listening"]["fd"])


def withdraw(prepared: dict[str, Any]) -> None:
    """There will be no supervisor."""
    if "listening" in prepared:
        Listening.of(prepared["listening"]).close()
    if "pidfile" in prepared:
        pidfile = PidFile.of(prepared["pidfile"])
        if pidfile is not None:
            pidfile.remove()


class Desk:
    """Of one supervisor. Until it is opened it says nothing and nobody comes."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._server: Server | None = None
        self._listening: Listening | None = None
        self._pidfile: PidFile | None = None
        self._options: Options | None = None
        self._started = monotonic()
        self._last: dict[str, Any] | None = None
        self._told: tuple[str, int, bool] = ("", 0, False)
        self._is_systemd_ours = False
        self._next_sign_of_life = NEVER
        self._is_guest = False

    def open(self, prepared: dict[str, Any]) -> None:
        """Take up what `prepare` or `as_document` has put down. This process is the program's own from now on."""
        self._started, self._last = prepared.get("started", self._started), prepared.get("last")
        if "pidfile" in prepared:
            self._pidfile = PidFile.of(prepared["pidfile"])
        if "listening" in prepared:
            self._serve(Listening.of(prepared["listening"]))
        self._is_systemd_ours = systemd.is_notified()
        if self._is_systemd_ours and systemd.watchdog() is not None:
            self._next_sign_of_life = 0.0

    def listen(self, path: str) -> None:
        """Serve a control socket there, in somebody else's process. Raises AddressError."""
        self._is_guest = True
        self._serve(Listening.open(path))

    def adopt(self, options: Options) -> None:
        """A generation with these options serves now. What cannot be changed stays as it was."""
        self._options = options
        try:
            if options.pidfile != (self._pidfile.path if self._pidfile is not None else None):
                new = PidFile.take(options.pidfile) if options.pidfile is not None else None
                if self._pidfile is not None:
                    self._pidfile.remove()
                self._pidfile = new
        except HotRestartError as error:
            log.error(str(error))

    def as_document(self) -> dict[str, Any]:
        """For `open`, on the other side of an exec."""
        document: dict[str, Any] = {"started": self._started, "last": self._last, "fds": []}
        for name, each in (("pidfile", self._pidfile), ("listening", self._listening)):
            if each is not None:
                document[name] = each.as_document()
                document["fds"].append(each.fd)
        return document

    def close(self) -> None:
        """The program has ended. Whoever waits for that sees it by the end of this process, unless that goes on."""
        if self._server is not None and self._listening is not None:
            if self._is_guest:
                self._server.tell_stopped()
                self._server.close()
            else:
                self._server.let_go()
            self._listening.close()
            self._server = self._listening = None
        if self._pidfile is not None:
            self._pidfile.remove()
            self._pidfile = None

    def let_go_after_fork(self) -> None:
        """In a child of the host's."""
        if self._server is not None and self._listening is not None:
            self._server.let_go_after_fork()
            os.close(self._listening.fd)

    # -- the supervisor's loop ---------------------------------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """Whether nobody is here."""
        return self._server is None or not self._server.has_company

    @property
    def deadline(self) -> float:
        """When `look` is next wanted; infinity for never."""
        return min(self._server.deadline if self._server is not None else NEVER, self._next_sign_of_life)

    def look(self, now: float) -> None:
        """What time has brought."""
        if self._server is not None:
            self._server.look(now)
        if now >= self._next_sign_of_life:
            systemd.notify("WATCHDOG=1")
            self._next_sign_of_life = now + (systemd.watchdog() or NEVER)
        if self._options is not None and self.is_quiet:
            self._move(self._options)

    def tell_stage(self) -> None:
        """Something has happened: if it is a new stage, say so."""
        rollout = self._supervisor.rollout
        stage, number = rollout.stage, rollout.coming or rollout.current
        if self._told == (stage, number, rollout.is_stopping):
            return
        self._told = (stage, number, rollout.is_stopping)
        if self._server is not None and stage:
            self._server.tell_stage(stage, number)
        if not self._is_systemd_ours:
            return
        options = rollout.generations[number].options if number in rollout.generations else None
        if rollout.is_stopping:
            systemd.notify("STOPPING=1", "STATUS=stopping")
            systemd.extend_timeout((options.grace if options else 0.0) * 2 + _SLACK)
        elif stage:
            if stage == "load" and rollout.current:
                systemd.reloading(f"generation {number}: load")
            systemd.notify(f"STATUS=generation {number}: {stage}")
            if options is not None:
                systemd.extend_timeout(_longest(stage, options) + _SLACK)

    def tell_outcome(self, outcome: Outcome) -> None:
        """A restart has ended, for better or worse."""
        self._last = outcome.as_document()
        rollout = self._supervisor.rollout
        if self._is_systemd_ours and rollout.current and not rollout.is_stopping:
            status = f"generation {rollout.current} serves"
            systemd.notify("READY=1", f"STATUS={status}" if outcome.ok else f"STATUS={status}; {outcome}")

    # -- what can be asked for: see `Program` of the server ----------------------------------------------------------

    def restart(self, connection: Connection) -> None:
        """See there."""
        self._supervisor.restart(connection.conclude)

    def stop(self) -> None:
        """See there."""
        self._supervisor.stop_once()

    def scale(self, *, by: int | None = None, to: int | None = None) -> int:
        """See there."""
        wanted = self._supervisor.rollout.workers_wanted
        if not wanted:
            raise HotRestartError("no generation serves yet")
        target = wanted + by if by is not None else to or 0
        if not 1 <= target <= _MOST_WORKERS:
            raise HotRestartError(f"a program has 1 to {_MOST_WORKERS} workers, not {target}")
        if target != wanted:
            self._supervisor._scale(target - wanted)  # at once: the next in this turn counts from there
        return target

    def status(self) -> dict[str, Any]:
        """See there; README says what is in it."""
        rollout, roster = self._supervisor.rollout, self._supervisor.roster
        how = "restarting" if rollout.coming else "serving"
        serves = any(each.count(READY) for each in rollout.generations.values())
        how = "stopping" if rollout.is_stopping else how if rollout.current and serves else "starting"
        workers: list[dict[str, Any]] = []
        servers: list[dict[str, Any]] = []
        for member in roster.members.values():
            process = member.process
            if process.is_server:
                servers.append({"pid": member.pid, "generation": process.generation, "state": process.state})
                continue
            beats = roster.beats.numbers[member.place] // 2 if member.place != -1 else None
            since = None if process.since == NEVER else process.since
            workers.append(reporting.worker(member.pid, process.generation, process.state, since, beats))
        workers.sort(key=lambda each: (each["generation"], each["pid"]))
        about = reporting.program(self._supervisor.kind, how, rollout.stage, self._started, self._last)
        more = {"workers": workers, "servers": servers, "wanted": rollout.workers_wanted}
        return {**about, **more, "generation": rollout.current, "command": self._supervisor.program.argv}

    # -- parts -------------------------------------------------------------------------------------------------------

    def _serve(self, listening: Listening) -> None:
        from ..control.server import Server

        self._listening = listening
        self._server = Server(listening.fd, self, self._supervisor.watch)

    def _move(self, options: Options) -> None:
        """Serve where the new options say."""
        self._options, before = None, self._listening
        if before.is_as(options.control) if before is not None else options.control is False:
            return
        try:
            new = Listening.open(options.control) if options.control is not False else None
        except AddressError as error:
            log.error(str(error))
            return
        if self._server is not None and before is not None:
            self._server.close()
            before.close()
            self._server = self._listening = None
        if new is not None:
            new.be_found()
            self._serve(new)


def _longest(stage: str, options: Options) -> float:
    """How many seconds a stage may last. Workers may have to wait until old ones, in whose place they come, have ended;
    and with `batch`, again for each batch."""
    if stage != "ready":
        return options.soak if stage == "soak" else options.ready_timeout
    workers = options.workers or 1
    return -(-workers // (options.batch or workers)) * (options.grace + options.ready_timeout)


def _listen(control: bool | str) -> Listening | None:
    try:
        return Listening.open(control) if control is not False else None
    except AddressError as error:
        if control is not True:
            raise
        log.warning(str(error))
        return None
