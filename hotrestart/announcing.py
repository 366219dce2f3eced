"""How a restart in place goes, told to all who want to know: who has asked and waits, systemd, readers of the pid file.

Whoever has asked for a restart waits on a connection that goes through the exec with the process, and the answer comes
from the new generation when it is ready: that it can answer is the proof. If it never comes to that, the connection
ends with the process, and that is an answer too.
"""

from __future__ import annotations

import os
from _thread import get_ident
from time import monotonic

from . import command, log, state, systemd, takeover
from .errors import HotRestartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .control.server import Connection
    from .control.signalled import SignalDriven
    from .inplace import InPlace
    from .options import Options
    from .outcome import Outcome
    from .pidfile import PidFile

__all__ = ["Announcer"]

_SLACK = 10.0  # seconds over what a stage may take


class Announcer:
    """Tells, and is asked. Opened and closed in the main thread; what a handler may call says so."""

    def __init__(self, program: InPlace, options: Options) -> None:
        self._program, self._options = program, options
        self._server: SignalDriven | None = None
        self._pidfile: PidFile | None = None
        left, takeover.announcing = takeover.announcing, {}
        now = monotonic()
        self._left: dict[str, Any] = left
        self._started: float = left.get("started", now)
        self._ready_at: float | None = None
        self._last: dict[str, Any] | None = left.get("last")
        self._began: float = left.get("began", now)  # of the restart that is under way
        self._stages: dict[str, float] = left.get("stages", {})
        self._stage, self._stage_began = "load" if left else "", left.get("handed_over", now)
        self._is_watched_for_longer: bool = left.get("is_watched_for_longer", False)
        self._has_told_of_the_stop = False

    def open(self) -> None:
        """Take the pid file, and listen. Raises what is wrong with a path that was asked for, in the first generation;
        later ones serve all the same."""
        for part, is_needed in ((self._take_pidfile, True), (self._listen, isinstance(self._options.control, str))):
            try:
                part()
            except HotRestartError as error:
                if state.generation == 1 and is_needed:
                    self.abandon()
                    raise
                log.error(str(error))
        if self._left:
            self.note_stage("ready")
            if self._is_systemd_ours:  # once more: whoever has asked since the last time is served by this one, too
                systemd.reloading(f"generation {state.generation} gets ready")
                systemd.extend_timeout(self._options.ready_timeout + _SLACK)
        self._left = {}

    def close(self, error: BaseException | None, *, for_good: bool) -> None:
        """The main loop is over, and no restart follows. Whoever waits for the end of the process will see it."""
        if self._is_systemd_ours and (for_good or state.reason == "stop"):
            self._tell_of_the_stop()
        elif self._is_systemd_ours and self._stage:
            systemd.notify("READY=1", "STATUS=no restart: the loop is over")
        server, self._server = self._server, None
        if server is not None:
            why = _why(error) if state.reason is None else ("stop", "the program stops", "")
            outcome = self._outcome(False, *why)
            server.order(lambda each: each.conclude(outcome))
            server.close()
        if not for_good:
            self.abandon()

    def abandon(self) -> None:
        """The process ends now, or is a program of ours no longer. In any thread."""
        if self._pidfile is not None:
            self._pidfile.remove()
        if self._server is not None:
            self._server.listening.disappear()

    # -- what happens to a restart ----------------------------------------------------------------------------------

    def note_stage(self, stage: str) -> None:
        """A stage begins. In a signal handler too."""
        now = monotonic()
        if self._stage:
            self._stages[self._stage] = self._stages.get(self._stage, 0.0) + now - self._stage_began
        else:
            self._began, self._stages = now, {}
        self._stage, self._stage_began = stage, now
        if self._server is not None and stage:
            generation = self._coming
            self._server.order(lambda server: server.tell_stage(stage, generation))

    def tell_systemd(self) -> None:
        """What the stage means for systemd. It may take a moment.

        Each stage is told as RELOADING, though one is enough for a reload: one that was asked for since, and is served
        by the same restart, has to be told of at a later time than its own (`Type=notify-reload`).
        """
        if not self._is_systemd_ours:
            return
        if state.reason == "stop":
            self._tell_of_the_stop()
        elif self._stage == "preflight":
            systemd.reloading(f"generation {self._coming} on trial")
            systemd.extend_timeout(self._options.ready_timeout + _SLACK)
        elif self._stage == "drain":
            systemd.reloading(f"generation {state.generation} finishes its work")
            longest = self._options.grace + self._options.ready_timeout + _SLACK
            systemd.extend_timeout(longest)
            period = systemd.watchdog()
            if period is not None:  # nobody can be asked for a sign of life in the meantime
                self._is_watched_for_longer = 2 * period < longest
                more = [f"WATCHDOG_USEC={round(longest * 1e6)}"] if self._is_watched_for_longer else []
                systemd.notify("WATCHDOG=1", *more)

    def refused(self, reason: str, detail: str, upto: int) -> None:
        """The old generation goes on; told to those whose tickets are not above `upto`."""
        self.note_stage("")
        outcome = self._outcome(False, "preflight", reason, detail)

        def tell(server: Any) -> None:
            for connection in server.waiting():
                if connection.ticket is not None and connection.ticket <= upto:
                    connection.conclude(outcome)

        if self._server is not None:
            self._server.order(tell)
        if self._is_systemd_ours:  # asked for before it was ready, it is none the readier for it
            is_ready = ["READY=1"] if self._ready_at is not None else []
            systemd.notify(*is_ready, f"STATUS=generation {state.generation} goes on: {reason}")

    def ready(self) -> None:
        """This generation serves."""
        self._ready_at = monotonic()
        if state.generation > 1:
            if self._stage == "ready":
                self.note_stage("")
            outcome = self._outcome(True, "ready")

            def tell(server: Any) -> None:
                for connection in server.waiting():
                    if connection.ticket is None:  # it has asked a generation before; others want a newer one than this
                        connection.conclude(outcome)

            if self._server is not None:
                self._server.order(tell)
        self._leave_if_unwanted()
        if self._is_systemd_ours and state.reason != "stop":
            systemd.notify("READY=1", f"STATUS=generation {state.generation} serves", *self._watched_as_before())

    def hand_over(self) -> tuple[dict[str, Any], set[int]]:
        """What the next generation has to know to go on telling, and the descriptors of it."""
        self.note_stage("load")
        document: dict[str, Any] = {
            "started": self._started,
            "last": self._last,
            "began": self._began,
            "stages": self._stages,
            "handed_over": self._stage_began,
            "is_watched_for_longer": self._is_watched_for_longer,
        }
        fds: set[int] = set()
        if self._pidfile is not None:
            document["pidfile"] = self._pidfile.as_document()
            fds.add(self._pidfile.fd)
        if self._server is not None:
            try:
                server, of_server = self._server.hand_over()
                document.update(server)
                fds |= of_server
            except OSError:
                self._server.listening.disappear()  # somebody closes all descriptors: the next generation has its own
        return {**document, "fds": sorted(fds)}, fds

    def resume(self) -> None:
        """The exec has failed, and this generation goes on."""
        self.note_stage("")
        if self._server is not None:
            self._server.resume()

    def needs(self) -> list[str]:
        """The modules that may be wanted at a later time, when the files on disk are another version's."""
        if self._server is None:
            return []
        return ["reporting", "control.server", "outcome"]

    # -- what can be asked for over the control socket: in the server's thread ---------------------------------------

    def restart(self, connection: Connection) -> None:
        """See `Program` of the server."""
        if state.reason == "stop":
            connection.conclude(self._outcome(False, "stop", "the program stops"))
        else:
            connection.ticket = self._program.request_restart()

    def stop(self) -> None:
        """See there."""
        self._program.request_stop()

    def scale(self, *, by: int | None = None, to: int | None = None) -> int:  # noqa: ARG002
        """See there."""
        raise HotRestartError("a program that restarts in place has one process; more take @restartable(workers=N)")

    def status(self) -> dict[str, Any]:
        """See there; README says what is in it."""
        from . import reporting

        return reporting.in_place(self._started, self._ready_at, self._stage, self._last)

    # -- parts -------------------------------------------------------------------------------------------------------

    @property
    def _is_systemd_ours(self) -> bool:
        """Not in a forked child: it has the variables, but is not what systemd looks after."""
        return systemd.is_notified() and os.getpid() == command.first.pid

    def _tell_of_the_stop(self) -> None:
        if not self._has_told_of_the_stop:
            self._has_told_of_the_stop = True
            systemd.notify("STOPPING=1", "STATUS=stopping")
            systemd.extend_timeout(self._options.grace + _SLACK)

    @property
    def _coming(self) -> int:
        """The generation that a restart is about: once it runs, it is this one."""
        return state.generation + (self._stage in ("preflight", "drain", "load"))

    def _outcome(self, ok: bool, stage: str, reason: str = "", detail: str = "") -> Outcome:
        from .outcome import Outcome

        generation = state.generation if ok or stage in ("ready", "stop") else state.generation + 1
        seconds = monotonic() - self._began if self._stages else 0.0
        more: dict[str, Any] = {"reason": reason, "detail": detail, "seconds": seconds, "stages": self._stages}
        outcome = Outcome(ok, generation=generation, stage=stage, **more)
        self._last = outcome.as_document()
        return outcome

    def _watched_as_before(self) -> list[str]:
        period = systemd.watchdog() if self._is_watched_for_longer else None
        self._is_watched_for_longer = False
        return [] if period is None else [f"WATCHDOG_USEC={round(2e6 * period)}", "WATCHDOG=1"]

    def _take_pidfile(self) -> None:
        if self._options.pidfile is None and "pidfile" not in self._left:
            return
        from .pidfile import PidFile, held

        document, wanted = self._left.get("pidfile"), self._options.pidfile
        before = PidFile.of(document) if document else None
        if document is not None and document["path"] == wanted:
            self._pidfile = before
        else:
            if before is not None:
                before.remove()
            if wanted is not None:  # main() may be called again
                already = next((each for each in held if each.path == os.path.abspath(wanted)), None)
                self._pidfile = already or PidFile.take(wanted)
        import atexit

        atexit.register(self._remove_pidfile_at_exit)

    def _remove_pidfile_at_exit(self) -> None:
        if state.reason != "restart":
            self.abandon()

    def _listen(self) -> None:
        wanted, left = self._options.control, self._left.get("listening")
        if wanted is False and left is None:
            return
        from .control.listening import Listening
        from .control.signalled import SignalDriven

        try:
            before = Listening.of(left) if left else None
        except OSError:
            before = None  # closed on the way
        connections = self._left.get("connections", [])
        if before is None:
            listening = Listening.open(wanted) if wanted is not False else None
        else:
            listening = before.move(wanted, is_needed=bool(connections))
        if listening is not None:
            self._server = SignalDriven(listening, self, connections)
            self._server.begin(is_new=listening is not before)

    def _leave_if_unwanted(self) -> None:
        """With `control=False` from this generation on, those who have waited for it are told, and that is all."""
        is_main = get_ident() == self._program.main_thread
        if self._options.control is False and self._server is not None and is_main:
            self._server.close()
            self._server = None


def _why(error: BaseException | None) -> tuple[str, str, str]:
    """Stage and reason of a generation that has ended though nobody had asked it to."""
    if error is None or isinstance(error, SystemExit):
        return "stop", "main() has ended before it was ready", ""
    from traceback import format_exception

    lines = format_exception(type(error), error, error.__traceback__)
    return "stop", lines[-1].strip(), "".join(lines)[-4096:]
