"""Every decision of a rolling restart, and no I/O: events and the time go in, actions come out.

A generation is one fork server and its workers. At most one generation is *current* (its workers serve) and at most one
is *coming*; all others are on their way out. What the coming one goes through:

    load   its fork server runs the program up to the door of main()      no longer than ready_timeout
    ready  workers are forked, all or `batch` at a time, and say "ready"  each no longer than ready_timeout
    soak   none of them may die                                           `soak` seconds
    commit it is the current one now; the old one's workers drain         each no longer than its `grace`

A process that ends, or whose time is up, in the coming generation rolls all of it back: its workers drain, for they may
have accepted work, and the current generation is filled up again from its own fork server. A process of the current
generation that ends is replaced from there too, so nothing that lies on the disk can bleed into what serves.

All that is waited for has a deadline, and when that has passed a process goes one step down: ABRT (for a dump of its
stacks), KILL, and in the end it is given up. Times are seconds of any clock that does not jump.
"""

from __future__ import annotations

from random import random

from ..outcome import Outcome
from .generation import ABORTED, DRAINING, KILLED, NEVER, READY, STARTING, Generation, Process
from .plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..options import Options

    Action = tuple[str, Any]

__all__ = ["Rollout"]

_ABORT, _KILL = ("abort", ABORTED, 2.0), ("kill", KILLED, 5.0)  # what is done, the next state, how long it may last


class Rollout(Plan):
    """The state of a program that restarts rolling. Every event returns the actions to be carried out, in order:

    `("start", process)`: load the program as a fork server, or fork a worker. `("become", process)`: the fork server
    that has just loaded is to be this worker (`preload=False`). `("drain", process)`: ask it to end.
    `("abort", process)`: ABRT. `("kill", process)`: KILL. `("commit", generation)`: it is the current one now.
    `("outcome", (Outcome, askers))`: how a restart has ended, for these. `("end", status)`: nothing is left.
    """

    def __init__(self, options: Options, *, generation: int = 1, share: Callable[[], float] = random) -> None:
        """`generation`: the number of the first; `share`: a random number from 0 to 1, for the jitter."""
        super().__init__()
        self.stage: str = ""
        self.status: int = 0
        self.stages: dict[str, float] = {}
        self._was_told_to_stop = self._has_ended = False
        self.last_number: int = generation
        self._options, self._share = options, share
        self._now, self._stage_began, self._last_id = 0.0, 0.0, 0
        self._askers: list[tuple[object, float]] = []
        self._actions: list[Action] = []

    # -- events ----------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> list[Action]:
        """The program starts."""
        self._load(self.last_number, self._options, now)
        return self._settle(now)

    def go_on_with(self, generation: Generation, extra: int) -> None:
        """In place of `begin`: this generation serves already, and nothing is under way."""
        self.generations[generation.number] = generation
        self.current: int = generation.number
        self.extra: int = extra
        generation.can_fork = generation.server is not None or not generation.options.preload
        self._last_id = max((each.id for each in generation.processes()), default=0)

    def restart(self, asker: object, now: float) -> list[Action]:
        """Somebody asks for a restart. Who asks while one is under way gets the outcome of the next."""
        self._queued.append((asker, now))
        return self._settle(now)

    def stop(self, now: float) -> list[Action]:
        """Everything drains and ends; asked for twice, at once."""
        if self._was_told_to_stop:
            return self.quit(now)
        self.is_stopping: bool = True
        self._was_told_to_stop = True
        return self._settle(now)

    def quit(self, now: float) -> list[Action]:
        """Everything is killed."""
        self.is_stopping = self._was_told_to_stop = True
        for process in self._processes():
            if process.state != KILLED:
                process.is_leaving = True
                self._move(process, _KILL, now)
        return self._settle(now)

    def scale(self, by: int, now: float) -> list[Action]:
        """So many workers more, or fewer; one at least. It lasts until new code asks for another number."""
        generation = self.generations.get(self.current)
        if generation is not None:
            self.extra = max(1 - (generation.options.workers or 1), self.extra + by)
        return self._settle(now)

    def ready(self, process: Process, now: float, options: Options | None = None) -> list[Action]:
        """A worker serves; a fork server has loaded the program, which has these options."""
        is_its_word = process.is_server == (options is not None)
        generation = self._generation_of(process)
        if generation and is_its_word and process.state == STARTING:
            age, jitter = generation.options.max_age, generation.options.jitter
            limit = NEVER if age is None or process.is_server else age * (1 + jitter * self._share())
            generation.move(process, READY, now + limit)
            process.since = now
            if options is not None:
                self._loaded(generation, options, now)
        return self._settle(now)

    def ended(self, process: Process, reason: str, now: float, detail: str = "") -> list[Action]:
        """A process has ended, or could not be started."""
        if self._generation_of(process):
            self._has_gone(process, reason, detail, now)
        return self._settle(now)

    def leaving(self, process: Process, reason: str, now: float, detail: str = "") -> list[Action]:
        """A worker's `main()` is over, though nobody has asked for it: the process has `grace` seconds to end."""
        generation = self._generation_of(process)
        if generation and process.is_alive:
            self._is_lost(process, reason, detail, now)
            process.is_leaving = True
            generation.move(process, DRAINING, now + generation.options.grace)
        return self._settle(now)

    def hung(self, process: Process, why: str, now: float) -> list[Action]:
        """A worker does not turn its loop any more."""
        if process.state in (READY, DRAINING) and self._generation_of(process):
            self._abort(process, why, now)
        return self._settle(now)

    def retire(self, process: Process, now: float) -> list[Action]:
        """A worker has done enough: it is to be replaced, and serves until then."""
        process.is_retiring = True
        return self._settle(now)

    def tick(self, now: float) -> list[Action]:
        """Nothing but time has passed."""
        return self._settle(now)

    def deadline(self) -> float:
        """When `tick` is next wanted; infinity for never."""
        times = [each.deadline for each in self._processes()]
        waits = [self._stage_began + self.generations[self.coming].options.soak] if self.stage == "soak" else []
        if self.current in self.generations:
            waits.append(self.generations[self.current].not_before)
        return min([*times, *(when for when in waits if when > self._now)], default=NEVER)

    # -- decisions, in the order in which they are taken ------------------------------------------------------------

    def _settle(self, now: float) -> list[Action]:
        self._now = now
        self._expire(now)
        self._advance(now)
        if self._queued and self.is_stopping:
            queued, self._queued = self._queued, []
            self._tell(queued, Outcome(False, generation=self.current, stage="stop", reason="the program stops"))
        elif self._queued and self.current and not self.coming:
            self._askers, self._queued = self._queued, []
            self.last_number += 1
            self._load(self.last_number, self.generations[self.current].options, now)
        for generation in list(self.generations.values()):
            if self._is_doomed(generation):
                self._wind_up(generation, now)
            else:
                self._fill(generation, now)
        if self.is_stopping and not self.generations and not self._has_ended:
            self._has_ended = True
            self._actions.append(("end", self.status))
        actions, self._actions = self._actions, []
        return actions

    def _expire(self, now: float) -> None:
        """Whose time is up goes one step down."""
        overdue = [each for each in self.generations.values() if now >= each.due]
        for process in [process for generation in overdue for process in generation.processes()]:
            if now < process.deadline:
                continue
            if process.state == READY:
                process.is_retiring, process.deadline = True, NEVER
            elif process.state == KILLED:
                self._has_gone(process, "it cannot be killed", "", now)
            elif process.state == ABORTED:
                self._move(process, _KILL, now)
            elif process.state == STARTING:
                doing = "reach main()" if process.is_server else "get ready"
                limit = self.generations[process.generation].options.ready_timeout
                self._abort(process, f"the new code did not {doing} within {limit:g} s", now)
            else:
                self._abort(process, "", now)
        for generation in overdue:
            generation.due = min((each.deadline for each in generation.processes()), default=NEVER)

    def _advance(self, now: float) -> None:
        """From stage to stage."""
        if self.is_stopping and self.coming:
            self._roll_back("the program stops", "", now, stage="stop")
        generation = self.generations.get(self.coming)
        if generation is None or generation.is_failing or generation.count(READY) < self._wanted(generation):
            return
        if self.stage == "ready":
            self._enter("soak", now)
        if now >= self._stage_began + generation.options.soak:
            self._commit(now)

    def _commit(self, now: float) -> None:
        before = self.generations.get(self.current)
        if before is not None and before.options.workers != self.generations[self.coming].options.workers:
            self.extra = 0
        self.current, self.coming = self.coming, 0
        self._actions.append(("commit", self.current))
        self._conclude(Outcome(True, generation=self.current, stage="commit"), now)

    def _roll_back(self, reason: str, detail: str, now: float, *, stage: str = "") -> None:
        """The coming generation is thrown away; if it is the very first, there is nothing to go back to."""
        number, self.coming = self.coming, 0
        self._conclude(Outcome(False, generation=number, stage=stage or self.stage, reason=reason, detail=detail), now)
        if not self.current and not self.is_stopping:
            self.is_stopping, self.status = True, 1

    def _fill(self, generation: Generation, now: float) -> None:
        """Start what is missing, drain what is too much."""
        wanted, batch = self._target(generation), self._batch()
        if generation.number == self.current:
            if generation.options.preload and generation.server is None and now >= generation.not_before:
                self._start(generation, now, is_server=True)  # the old one has died; its workers go on
            surplus = generation.count(READY) - wanted
            for process in generation.least_needed()[:surplus] if surplus > 0 else []:
                self._drain(process, now)
            wanted += 0 if self.coming else min(generation.retiring(), max(0, (batch or 1) - generation.leaving()))
        missing = wanted - generation.count(STARTING, READY)
        if missing < 0:
            for process in [each for each in generation.workers if each.state == STARTING][::-1][:-missing]:
                self._drain(process, now)
        if generation.number == self.coming and batch:
            missing = min(missing, batch - generation.count(STARTING))
        missing = min(missing, self._room(generation)) if generation.can_fork and now >= generation.not_before else 0
        for _ in range(missing):
            if generation.server is not None and not generation.options.preload:
                self._become(generation, generation.server, now)
            else:
                self._start(generation, now)

    def _wind_up(self, generation: Generation, now: float) -> None:
        """Drain everybody; the fork server goes last, for it knows how its workers end."""
        if generation.count(STARTING, READY):
            for process in generation.workers:
                if process.is_alive:
                    self._drain(process, now)
        server = generation.server
        if server is not None and server.state == STARTING:
            self._move(server, _KILL, now)  # it has accepted nothing
        elif server is not None and server.state == READY and not generation.workers:
            self._drain(server, now)
        elif server is None and not generation.workers:
            del self.generations[generation.number]

    def _load(self, number: int, options: Options, now: float) -> None:
        self.stages = {}
        self.generations[number] = Generation(number, options)
        self.coming: int = number
        self._enter("load", now)
        self._start(self.generations[number], now, is_server=True)

    def _loaded(self, generation: Generation, options: Options, now: float) -> None:
        generation.can_fork = True
        if generation.number == self.coming:  # else the fork server of the current generation is back
            generation.options = options
            self._enter("ready", now)

    def _has_gone(self, process: Process, reason: str, detail: str, now: float) -> None:
        self.generations[process.generation].remove(process)
        if not process.is_leaving:
            self._is_lost(process, reason, detail, now)

    def _is_lost(self, process: Process, reason: str, detail: str, now: float) -> None:
        """Of its own accord, and not because it was told to."""
        if process.generation == self.coming:
            self._roll_back(process.why or reason, detail, now)
        elif process.generation == self.current:
            self.generations[process.generation].note_the_end_of(process, now)

    def _start(self, generation: Generation, now: float, *, is_server: bool = False) -> None:
        self._last_id += 1
        process = Process(self._last_id, generation.number, is_server=is_server)
        generation.add(process)
        self._move(process, ("start", STARTING, generation.options.ready_timeout), now)

    def _become(self, generation: Generation, server: Process, now: float) -> None:
        """Without preload, what has loaded the program is its first worker."""
        generation.server, server.is_server = None, False
        generation.add(server)
        self._move(server, ("become", STARTING, generation.options.ready_timeout), now)

    def _drain(self, process: Process, now: float) -> None:
        process.is_leaving = True
        self._move(process, ("drain", DRAINING, self.generations[process.generation].options.grace), now)

    def _abort(self, process: Process, why: str, now: float) -> None:
        process.why = why
        self._move(process, _ABORT, now)

    def _move(self, process: Process, step: tuple[str, str, float], now: float) -> None:
        verb, state, seconds = step
        self.generations[process.generation].move(process, state, now + seconds)
        self._actions.append((verb, process))

    def _enter(self, stage: str, now: float) -> None:
        if self.stage:
            self.stages[self.stage] = now - self._stage_began
        self.stage, self._stage_began = stage, now

    def _conclude(self, outcome: Outcome, now: float) -> None:
        askers, self._askers = self._askers, []
        self._enter("", now)
        outcome.stages = self.stages
        outcome.seconds = now - min((when for _, when in askers), default=now - sum(outcome.stages.values()))
        self._tell(askers, outcome)

    def _tell(self, askers: list[tuple[object, float]], outcome: Outcome) -> None:
        self._actions.append(("outcome", (outcome, [asker for asker, _ in askers])))
