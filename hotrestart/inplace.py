"""The restart in place: from the request to the exec, around whatever the main thread is doing.

A request arrives in a signal handler, perhaps in the middle of a job. Nothing that takes time or a lock may happen
there, so the handler starts a short-lived thread (`_thread.start_new_thread` takes no Python lock) and returns:

    HUP  ->  _prepare: preflight, until one is passed that no newer request has overtaken
         ->  _end("restart"): the flag, the sleeper
    TERM ->  _end("stop")
    both ->  _drain: on_stop callbacks, then watch the grace
    main() returns  ->  leave(): arm the exec at exit, or put everything back

No thread of ours lives while nothing is asked. A stop beats a restart at every point up to the exec itself.
"""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock, get_ident, start_new_thread
from time import sleep, time

from . import command, role, signals, state
from .announcing import Announcer
from .sleeper import Sleeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .options import Options

__all__ = ["InPlace"]

_ENOUGH_PREFLIGHTS = 3  # in a row, when requests come faster than the code loads and nothing has changed meanwhile
_PATIENCE = 5.0  # seconds for what should be over at once
_CLOCK_GRAIN = 1.0  # seconds: file times come from a coarser clock, perhaps another machine's

_QUIET = 0.5  # seconds: most programs have ended by then, and need not share the interpreter with an import


class InPlace:
    """This process as a program that restarts in place. One at a time; made and entered in the main thread."""

    main_thread: int

    has_heir = True

    def __init__(self, options: Options) -> None:
        self._may_restart = os.getpid() == command.first.pid  # a forked child is no program of its own
        if self._may_restart:
            command.first.check()
        self.sleeper: Sleeper = Sleeper()
        self._preflight, self._ready_timeout, self._grace = options.preflight, options.ready_timeout, options.grace
        self._handling = signals.handling(
            self.sleeper,
            restart=signals.RESTART if self._may_restart else (),
            on_restart=self.request_restart,
            on_stop=self.request_stop,
        )
        self.announcer: Announcer = Announcer(self, options)
        self._asked = 0  # changes with every request
        self._preparing = allocate_lock()
        self._draining = allocate_lock()
        self._drain_runs = allocate_lock()
        self._drain_runs.acquire()
        self._pid, self.main_thread = os.getpid(), get_ident()
        self.main_has_returned: bool = False
        self.is_overdue: bool = False
        self._is_ready = self._is_prepared = False

    def enter(self) -> None:
        """Begin to handle requests, including those of the boot window."""
        role.current = self
        try:
            self._handling.__enter__()
            if self._may_restart:
                self.announcer.open()
        except BaseException:
            role.current = None
            self._handling.restore()
            raise

    def leave(self, error: BaseException | None = None, *, for_good: bool) -> None:
        """The main loop has ended, perhaps with `error`: restart at exit if that was asked for, else put things back.

        A restart that was asked for happens however the loop ends: an exception in the last job must not take the
        service down. `for_good`: it is the program that ends, so a late HUP must not kill it while it tidies up.
        """
        if os.getpid() != self._pid:
            return  # a forked child that has come out of the parent's main()
        if isinstance(error, KeyboardInterrupt):
            state.end("stop")
            self.sleeper.wake(for_good=True)
        if for_good:
            self._await_preflight(2 * _ENOUGH_PREFLIGHTS * (self._ready_timeout + _PATIENCE))
        self.main_has_returned = True
        self._abandon_preflight()
        self._await_callbacks()
        if state.reason == "restart":
            from . import reexec

            reexec.arm()
            if error is not None and not (isinstance(error, SystemExit) and not error.code):
                from . import log

                log.error(f"the program ended with {error!r} while it was to restart: it restarts")
            return
        self._put_back(error, for_good=for_good)

    @property
    def is_off(self) -> bool:
        """Whether its loop has ended, and `state.reset()` has taken back the restart that was to follow."""
        return self.main_has_returned and not state.should_stop

    def give_way(self) -> None:
        """It is off, and another program comes in its place."""
        from . import reexec

        reexec.disarm()
        self._put_back(None, for_good=False)

    def _put_back(self, error: BaseException | None, *, for_good: bool) -> None:
        role.current = None
        self.announcer.close(error, for_good=for_good)
        if state.reason is None or not for_good:
            self._handling.restore()

    def ready(self) -> None:
        """The program serves. The first call counts."""
        if not self._is_ready:
            self._is_ready = True
            self.announcer.ready()
            if "logging" in sys.modules:  # else nobody would see it
                from . import log

                log.info(f"generation {state.generation} is ready")

    def restart_signals(self) -> list[int]:
        """The signals whose handlers in the main thread ask for a restart."""
        return [number for number in self._handling.installed() if number in signals.RESTART]

    def prepare_to_end(self) -> None:
        """Load what an ending needs, before the files on disk are another version's; called when there is time."""
        if not self._is_prepared:
            self._is_prepared = True
            try:
                for name in ("bytecode", "grace", "log", "preflight", "reexec", *self.announcer.needs()):
                    __import__(f"{__package__}.{name}")
            except Exception:
                pass  # the files are gone already: whoever asks for a restart will be told

    def hand_over(self) -> tuple[dict[str, Any], set[int]]:
        """What the next generation is to know besides `reexec.legacy`, and the descriptors of it."""
        return self.announcer.hand_over()

    def resume(self) -> None:
        """The exec that all was handed over for has failed."""
        self.announcer.resume()

    def abandon(self) -> None:
        """This process ends at once, and nothing follows. In any thread."""
        self.announcer.abandon()

    def request_restart(self) -> int:
        """Ask for a restart; the number of the request. In any thread and in a signal handler."""
        if self.is_overdue and get_ident() == self.main_thread:
            from . import reexec

            self.is_overdue = False  # a second signal must not cut the last call short
            reexec.last_call()
        if self._is_ending():
            return self._asked
        if not self._may_restart:
            from .errors import HotRestartError

            raise HotRestartError("a forked child cannot restart the program: ask its parent")
        self._asked += 1
        if not self._preflight:
            self._end("restart")
        elif self._preparing.acquire(False):
            try:
                start_new_thread(self._prepare, ())
            except RuntimeError as error:
                from . import log

                self._preparing.release()
                self._refuse(f"no preflight is possible: {error}", "", self._asked, log.last_words)
        return self._asked

    def request_stop(self) -> None:
        """Ask for a stop. In any thread and in a signal handler."""
        self._end("stop")

    # --- the short-lived threads

    def _prepare(self) -> None:
        """Answer requests until there are none; the lock is free again before the last look."""
        while True:
            try:
                answered = self._answer_newest()
            finally:
                self._preparing.release()
            if answered == self._asked or self._is_ending() or not self._preparing.acquire(False):
                return

    def _answer_newest(self) -> int:
        """Preflight until the newest request has its answer; which one that was."""
        in_a_row = 0
        while True:
            seen, in_a_row, began = self._asked, in_a_row + 1, time()
            self.announcer.note_stage("preflight")
            self.announcer.tell_systemd()
            passed = self._check_new_code(seen, began)
            if self._is_ending():
                return seen
            if passed and (seen == self._asked or in_a_row >= _ENOUGH_PREFLIGHTS):
                self._end("restart")
                return seen
            if not passed and seen == self._asked:
                return seen

    def _is_overtaken(self, seen: int, began: float) -> bool:
        """Whether what a preflight looks at is old: there is newer code, and somebody has asked for it."""
        from . import bytecode

        return seen != self._asked and bytecode.sources_changed(began - _CLOCK_GRAIN)

    def _check_new_code(self, seen: int, began: float) -> bool:
        from . import log

        try:
            from . import bytecode, inheritance, preflight, reexec

            bytecode.drop_stale(command.first.since)
            copies = inheritance.copies()
            try:
                verdict = preflight.check(
                    *reexec.legacy(copies),
                    timeout=self._ready_timeout,
                    sleeper=self.sleeper,
                    cancelled=lambda: self._is_ending() or self._is_overtaken(seen, began),
                )
            finally:
                for fd in copies.values():
                    os.close(fd)
            if verdict is None:
                return False
            if verdict.ok:
                log.info("the new code loads")
            else:
                self._refuse(verdict.reason, verdict.detail, seen, log.error)
            return verdict.ok
        except Exception as error:  # no descriptors, no processes, no memory: whatever it is, the old code goes on
            self._refuse(f"no preflight is possible: {error!r}", "", seen, log.last_words)
            return False

    def _refuse(self, reason: str, detail: str, upto: int, say: Callable[..., None]) -> None:
        say(f"restart refused, the old code goes on: {reason}", *([detail] if detail else []))
        self.announcer.refused(reason, detail, upto)

    def _is_ending(self) -> bool:
        return state.should_stop or self.main_has_returned

    def _end(self, why: state.Reason) -> None:
        if why == "restart" and not state.should_stop:  # before: the main thread may be off as soon as it is told
            self.announcer.note_stage("drain")
        state.end(why)
        self.sleeper.wake(for_good=True)
        if self._draining.acquire(False):
            try:
                start_new_thread(self._drain, ())
            except RuntimeError as error:
                from . import log

                self._drain_runs.release()
                log.last_words(f"grace is not watched: {error}")
        elif why == "stop":  # which the drain of a restart turns into
            self.announcer.tell_systemd()

    def _drain(self) -> None:
        """Tell who wants to know, and see to it that the program ends within grace."""
        resets = state.resets
        try:
            self.announcer.tell_systemd()
            if f"{__package__}.callbacks" in sys.modules:
                from . import callbacks  # which waits if another thread has only begun to load it

                callbacks.call_all_in_a_thread()
        finally:
            self._drain_runs.release()
        sleep(first := min(self._grace, _QUIET))
        from . import grace

        grace.watch(self, self._grace - first, self._grace, resets)

    def _await_preflight(self, longest: float) -> None:
        """A restart that was asked for before `main()` has ended follows it, if the new code loads. A stop ends the
        preflight within milliseconds."""
        if self._preparing.locked() and self._preparing.acquire(True, longest):
            self._preparing.release()

    def _abandon_preflight(self) -> None:
        """Do not leave one behind. It notices within milliseconds."""
        if self._preparing.locked():
            self.sleeper.wake(for_good=True)
            self._await_preflight(_PATIENCE)

    def _await_callbacks(self) -> None:
        """The end of the process would cut them short. And 3.10 crashes if it ends with a thread that has been started
        and has not run yet."""
        if self._draining.locked() and self._drain_runs.acquire(True, _PATIENCE):
            callbacks = sys.modules.get(f"{__package__}.callbacks")
            if callbacks is not None:
                callbacks.wait(_PATIENCE)
                callbacks.call_all()  # those for which there was no thread
