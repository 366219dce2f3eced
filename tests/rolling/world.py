"""A fake world for `Rollout`: a clock, processes that do as they like, and a notary.

The world carries the actions out and keeps its own books from them and from what it does itself; it never looks into
the rollout for what it believes. After every event it compares the two: each action must be legal and have a reason,
nobody who asked is forgotten or lied to, capacity falls only where it may, and time is asked for when it is needed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hotrestart.options import Options
from hotrestart.outcome import Outcome
from hotrestart.rolling.generation import ABORTED, DRAINING, KILLED, READY, STARTING, Process
from hotrestart.rolling.rollout import Rollout

NEVER = float("inf")
SHARE = 0.5  # of the jitter


class Body:
    """A process as the world knows it. `told`: when each of drain, abort, kill was done to it."""

    def __init__(self, process: Process, now: float, plan: Options) -> None:
        self.process, self.number, self.is_server = process, process.generation, process.is_server
        self.born, self.ready_at, self.ready_timeout, self.grace = now, NEVER, plan.ready_timeout, NEVER
        self.told: dict[str, float] = {}
        self.is_gone = self.is_hung = self.was_retired = False

    @property
    def is_kept(self) -> bool:
        """Nobody has told it to end."""
        return not self.is_gone and not self.told

    @property
    def is_starting(self) -> bool:
        return self.is_kept and self.ready_at == NEVER

    @property
    def serves(self) -> bool:
        return self.is_kept and self.ready_at < NEVER and not self.is_server

    @property
    def may_serve_on(self) -> bool:
        """It was ready and nobody aborts it; it may be draining."""
        return not self.is_gone and not self.is_server and self.ready_at < NEVER and not self.told.keys() - {"drain"}

    def __repr__(self) -> str:
        return f"<{'server' if self.is_server else 'worker'} {self.process.id} of generation {self.number}>"


class Load:
    """One generation, as the world knows it. `askers` are those it has to answer."""

    def __init__(self, plan: Options, askers: dict[object, float], now: float) -> None:
        self.plan, self.askers, self.began = plan, askers, now
        self.soak_began = NEVER
        self.is_loaded = self.is_over = self.was_committed = self.has_failed = False


class World:
    """What can happen, as methods; all of them go through `do`, which checks everything."""

    def __init__(self, options: Options | None = None, *, now: float = 1000.0) -> None:
        self.now = now
        self.first_plan = options or Options(workers=2)
        self.rollout = Rollout(self.first_plan, share=lambda: SHARE)
        self.bodies: dict[Process, Body] = {}
        self.loads: dict[int, Load] = {}
        self.current = self.coming = self.extra = 0
        self.asked: dict[object, float] = {}  # who waits for a load to begin, and since when
        self.answers: dict[object, Outcome] = {}
        self.outcomes: list[Outcome] = []
        self.is_stopping = self.is_quitting = False
        self.expected_status, self.status, self.is_sound = 0, -1, True
        self.failures, self.pause_until = 0, 0.0
        self.log: list[tuple[str, Any]] = []
        self.seen: Counter[str] = Counter()

    # -- what can happen -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.do("begin")

    def gets_ready(self, body: Body, options: Options | None = None) -> None:
        """A server has loaded code with these options (its generation's own, unless told), or a worker serves."""
        load = self.loads[body.number]
        if body.is_server:
            options = options or load.plan
            if not load.is_loaded and body.is_starting:
                load.plan, load.is_loaded = options, True
        if body.is_starting:
            body.ready_at = self.now
        self.do("ready", body.process, options=options if body.is_server else None)

    def ends(self, body: Body, reason: str = "exit 1", detail: str = "") -> None:
        lost = body.serves
        body.is_gone = True
        self._note_an_end(body)
        self.do("ended", body.process, reason, detail=detail, lost=lost)

    def hangs(self, body: Body) -> None:
        lost, body.is_hung = body.serves, True
        self.do("hung", body.process, "it hangs", lost=lost)

    def asks_to_be_replaced(self, body: Body) -> None:
        body.was_retired = True
        self.do("retire", body.process)

    def is_asked(self, *askers: object) -> None:
        for asker in askers:
            self.asked[asker] = self.now
            self.do("restart", asker)

    def is_stopped(self) -> None:
        self.is_quitting = self.is_quitting or self.stop_was_asked()
        self.is_stopping = True
        self.seen["stop"] += 1
        self.do("stop")

    def stop_was_asked(self) -> bool:
        return self.seen["stop"] + self.seen["quit"] > 0

    def is_quit(self) -> None:
        self.is_stopping = self.is_quitting = True
        self.seen["quit"] += 1
        self.do("quit")

    def is_scaled(self, by: int) -> None:
        if self.current:
            self.extra = max(1 - (self.loads[self.current].plan.workers or 1), self.extra + by)
        self.do("scale", by)

    def moves(self) -> None:
        """The supervisor execs itself while nothing is under way: the same processes, a new rollout."""
        before, number = self.rollout, self.current
        self.rollout = Rollout(self.plan(number), generation=len(self.loads), share=lambda: SHARE)  # the last number
        self.rollout.go_on_with(before.generations[number], before.extra)
        self.do("tick")

    def says_again(self, body: Body, message: str, options: Options) -> None:
        """A message that comes twice, or late."""
        if message == "ended":
            self.do("ended", body.process, "twice")
        elif message == "ready":
            self.do("ready", body.process)
        elif message == "loaded":
            self.do("ready", body.process, options=options)
        else:
            self.do("hung", body.process, "too late")

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.do("tick")

    def passes_to_the_deadline(self) -> None:
        self.now = max(self.now, min(self.rollout.deadline(), self.now + 1e6))
        self.do("tick")

    # -- the world behaves -----------------------------------------------------------------------------------------

    def living(self) -> list[Body]:
        return [body for body in self.bodies.values() if not body.is_gone]

    def workers(self, number: int) -> list[Body]:
        return [body for body in self.living() if body.number == number and not body.is_server]

    def server(self, number: int) -> Body | None:
        return next((body for body in self.living() if body.number == number and body.is_server), None)

    def serving(self, number: int) -> int:
        return sum(body.serves for body in self.workers(number))

    def goes_on(self, obeys: str = "drain") -> bool:
        """The next thing happens in a world that means well; whether something did. `obeys`: the mildest that helps."""
        verbs = ("drain", "abort", "kill", "nothing")
        for body in self.living():
            if any(verb in body.told for verb in verbs[verbs.index(obeys) : 3]):
                self.ends(body, "ended")
                return True
            if body.is_starting:
                self.gets_ready(body)
                return True
        return False

    def settles(self) -> None:
        """A world that means well comes to rest, and nobody waits any more."""
        for _ in range(3000):
            if self.status >= 0 or self.rollout.is_idle:
                break
            if not self.goes_on():
                self.passes_to_the_deadline()
        else:
            raise AssertionError(f"it does not come to rest: {self.living()}")
        assert not self.waiting_askers()
        if self.status < 0:
            assert self.serving(self.current) == self.wanted(self.current)
            assert list(self.rollout.generations) == [self.current]

    def comes_to_an_end(self, obeys: str) -> None:
        """After a stop, however hard the processes are to kill."""
        graces = [load.plan.grace for load in self.loads.values()]
        limit = self.now + 2 * (max([*graces, 0.0]) + 2.0 + 5.0) + 1e-6
        if not self.stop_was_asked() and self.status < 0:
            self.is_stopped()
        verbs = ("drain", "abort", "kill", "nothing")
        for _ in range(1000):
            if self.status >= 0:
                break
            obedient = [b for b in self.living() if any(v in b.told for v in verbs[verbs.index(obeys) : 3])]
            if obedient:
                self.ends(obedient[0], "ended")
            else:
                self.passes_to_the_deadline()
        assert self.status >= 0, f"it does not end: {self.living()}"
        assert self.now <= limit, f"it took {self.now - limit:g} s too long"
        assert not self.waiting_askers()

    # -- what follows ----------------------------------------------------------------------------------------------

    def plan(self, number: int) -> Options:
        return self.loads[number].plan

    def wanted(self, number: int) -> int:
        reference = self.plan(self.current or number).workers
        same = reference == self.plan(number).workers
        return (self.plan(number).workers or 1) + (self.extra if same else 0)

    def lacking(self) -> int:
        """How many workers the current generation has to start."""
        if not self.current or self.is_stopping:
            return 0
        kept = sum(body.is_kept for body in self.workers(self.current))
        failing = self.coming and self.is_failing(self.coming)
        relieved = self.serving(self.coming) if self.coming and self.batch() and not failing else 0
        return max(0, self.wanted(self.current) - relieved - kept)

    def batch(self) -> int | None:
        number = self.coming or self.current
        return self.plan(number).batch if number else None

    def is_doomed(self, number: int) -> bool:
        return self.is_stopping or number not in (self.current, self.coming)

    def is_failing(self, number: int) -> bool:
        """One of its processes was aborted, not for having drained too long."""
        return any(b.number == number and "abort" in b.told and "drain" not in b.told for b in self.living())

    def is_retiring(self, body: Body) -> bool:
        plan = self.plan(body.number)
        old = plan.max_age is not None and self.now >= body.ready_at + plan.max_age * (1 + plan.jitter * SHARE)
        return body.was_retired or old

    def waiting_askers(self) -> set[object]:
        return {*self.asked, *(asker for load in self.loads.values() if not load.is_over for asker in load.askers)}

    def is_idle(self) -> bool:
        if self.is_stopping or self.coming or not self.current or self.asked:
            return False
        workers, server = self.workers(self.current), self.server(self.current)
        return (
            all(body.number == self.current for body in self.living())
            and all(body.serves and not self.is_retiring(body) for body in workers)
            and len(workers) == self.wanted(self.current)
            and (not self.plan(self.current).preload or server is not None)
            and (server is None or (server.is_kept and server.ready_at < NEVER))
        )

    def _note_an_end(self, body: Body) -> None:
        """What the end of a process leads to: a failed load, or a pause of 0.1 s doubling to 30 s."""
        if "drain" in body.told or self.is_stopping:
            return
        if body.number == self.coming:
            self.loads[body.number].has_failed = True
        elif body.number == self.current and self.now >= self.pause_until:
            others = [b for b in self.workers(self.current) if b.serves and b.ready_at >= self.pause_until]
            steady = any(self.now - b.ready_at >= 5.0 for b in [*others, body] if b.ready_at < NEVER)
            self.failures = 1 if steady else self.failures + 1
            self.pause_until = self.now + min(0.1 * 2.0 ** (self.failures - 1), 30.0)

    # -- the notary ------------------------------------------------------------------------------------------------

    def do(self, event: str, *arguments: Any, lost: bool = False, **named: Any) -> list[tuple[str, Any]]:
        self.is_sound = False  # until all checks are through
        before = (self.current, self.coming)
        served = (self.serving(self.current), self.serving(self.coming))
        actions = getattr(self.rollout, event)(*arguments, now=self.now, **named)
        for body in self.living():
            if "kill" in body.told and self.now >= body.told["kill"] + 5.0:
                body.is_gone = True
                self._note_an_end(body)
        for verb, what in actions:
            assert self.status < 0 or verb == "outcome", f"{verb} after the end"
            self.seen[verb] += 1
            self.log.append((verb, what))
            getattr(self, f"_on_{verb}")(what)
        self._check_the_stages()
        self._check_the_capacity(before, served, lost)
        self._check_the_time(quiet=event == "tick" and not actions)
        self._check_the_books()
        self.is_sound = True
        return list(actions)

    def _on_start(self, process: Process) -> None:
        number = process.generation
        assert process not in self.bodies
        assert not self.is_stopping, "started while it stops"
        if process.is_server:
            self._on_start_of_a_server(number)
        body = self.bodies[process] = Body(process, self.now, self.plan(number))
        if not process.is_server:
            server = self.server(number)
            if self.plan(number).preload:
                assert server is not None, "forked from nobody"
                assert server.is_kept, f"forked from a server that was told {server.told}"
                assert server.ready_at < NEVER, "forked before the code was loaded"
            else:
                assert self.loads[number].is_loaded
                assert server is None, "the loaded one is to be the first worker"
            self._check_a_new_worker(body)

    def _on_start_of_a_server(self, number: int) -> None:
        if number in self.loads:
            assert number == self.current, "only the current server is loaded again"
            assert self.plan(number).preload
            assert self.server(number) is None
            assert self.now >= self.pause_until, "a server came back in the pause of a crash loop"
            return
        assert not self.coming, "two at a time"
        assert number == len(self.loads) + 1
        if self.loads:
            assert self.current, "nothing to go back to"
            assert self.asked, "loaded for nobody"
        plan = self.plan(self.current) if self.current else self.first_plan
        self.loads[number] = Load(plan, self.asked, self.now)
        self.coming, self.asked = number, {}

    def _on_become(self, process: Process) -> None:
        body = self.bodies[process]
        assert body.is_server
        assert body.is_kept
        assert body.ready_at < NEVER
        assert not self.plan(body.number).preload
        body.is_server, body.ready_at, body.born = False, NEVER, self.now
        body.ready_timeout = self.plan(body.number).ready_timeout
        self._check_a_new_worker(body)

    def _check_a_new_worker(self, body: Body) -> None:
        number, batch = body.number, self.batch()
        assert not self.is_doomed(number), f"a worker for generation {number}, which is over"
        wanted = max(self.wanted(each) for each in (self.current, self.coming) if each)
        there = sum(not each.is_server for each in self.living())
        assert there <= wanted + (batch or wanted), f"{there} workers, where {wanted} are wanted and batch is {batch}"
        kept = sum(each.is_kept for each in self.workers(number))
        if number == self.coming:
            assert not self.is_failing(number), "more of what has failed already"
            assert kept <= self.wanted(number)
            assert batch is None or sum(each.is_starting for each in self.workers(number)) <= batch
            there += self.lacking()
            assert there <= wanted + (batch or wanted), "it takes the room that the current generation needs"
        else:
            assert self.now >= self.pause_until, "forked in the pause of a crash loop"
            old = sum(self.is_retiring(each) for each in self.workers(number) if each.serves)
            leaving = sum("drain" in each.told for each in self.workers(number))
            spare = 0 if self.coming else min(old, max(0, (batch or 1) - leaving))
            assert kept <= self.wanted(number) + spare, "the next only after the former has gone"

    def _on_drain(self, process: Process) -> None:
        body = self.bodies[process]
        assert not body.is_gone
        assert not body.told, f"{body} was told to drain after {body.told}"
        if body.is_server:
            assert self.is_doomed(body.number)
            assert not self.workers(body.number), "the server goes last"
        if body.number == self.coming and not self.is_doomed(body.number):
            surplus = sum(b.is_kept for b in self.workers(body.number)) > self.wanted(body.number)
            assert body.is_starting
            assert surplus or self.is_failing(body.number)
        body.told["drain"], body.grace = self.now, self.plan(body.number).grace

    def _on_abort(self, process: Process) -> None:
        body = self.bodies[process]
        assert not body.is_gone
        assert not body.told.keys() & {"abort", "kill"}
        slow = body.ready_at == NEVER and not body.told and self.now >= body.born + body.ready_timeout
        late = self.now >= body.told.get("drain", NEVER) + body.grace
        assert body.is_hung or slow or late, f"{body} was aborted for nothing"
        body.told["abort"] = self.now

    def _on_kill(self, process: Process) -> None:
        body = self.bodies[process]
        assert not body.is_gone
        assert "kill" not in body.told
        unborn = body.is_server and body.is_starting and self.is_doomed(body.number)
        assert unborn or self.is_quitting or self.now >= body.told["abort"] + 2.0, f"{body} was killed too early"
        body.told["kill"] = self.now

    def _on_commit(self, number: int) -> None:
        load = self.loads[number]
        assert number == self.coming
        assert not self.is_stopping
        assert not self.is_failing(number)
        assert not load.has_failed
        assert self.serving(number) >= self.wanted(number), "committed before all are ready"
        began = min(load.soak_began, self.now)
        assert self.now >= began + load.plan.soak, "committed before the soak was over"
        if self.current and self.plan(self.current).workers != load.plan.workers:
            self.extra = 0
        self.current, self.coming, load.was_committed = number, 0, True
        self.failures, self.pause_until = 0, 0.0

    def _on_outcome(self, answer: tuple[Outcome, list[object]]) -> None:
        outcome, askers = answer
        load = self.loads.get(outcome.generation)
        if load is None or load.is_over:
            assert self.is_stopping
            assert (outcome.ok, outcome.stage, outcome.generation) == (False, "stop", self.current)
            due, self.asked = self.asked, {}
        else:
            due = load.askers
            self._check_the_outcome(outcome, load)
        assert sorted(map(repr, askers)) == sorted(map(repr, due)), "the wrong ones were answered"
        for asker in askers:
            assert asker not in self.answers, f"{asker} was answered twice"
            self.answers[asker] = outcome

    def _check_the_outcome(self, outcome: Outcome, load: Load) -> None:
        load.is_over = True
        self.outcomes.append(outcome)
        assert outcome.ok == load.was_committed, "that is not true"
        if not outcome.ok:
            assert outcome.generation == self.coming
            assert load.has_failed or self.is_stopping, "it had not failed"
            assert outcome.reason
            assert (outcome.stage == "stop") == self.is_stopping
            self.coming = 0
            if not self.current and not self.is_stopping:
                self.is_stopping, self.expected_status = True, 1
        else:
            assert outcome.stage == "commit"
        assert list(outcome.stages) == ["load", "ready", "soak"][: len(outcome.stages)]
        assert outcome.ok or outcome.stage == "stop" or list(outcome.stages)[-1] == outcome.stage
        assert abs(sum(outcome.stages.values()) - (self.now - load.began)) < 1e-6
        assert abs(outcome.seconds - (self.now - min([load.began, *load.askers.values()]))) < 1e-6

    def _on_end(self, status: int) -> None:
        assert self.is_stopping
        assert not self.living(), f"it ended before {self.living()}"
        assert status == self.expected_status
        self.status = status

    def _check_the_stages(self) -> None:
        """What is due has been done."""
        load = self.loads.get(self.coming)
        if load is not None:
            assert not load.has_failed, "a failure was not noticed"
            assert not self.is_stopping
            enough = self.serving(self.coming) >= self.wanted(self.coming) and not self.is_failing(self.coming)
            if enough and load.soak_began == NEVER:
                load.soak_began = self.now
            assert not enough or self.now < load.soak_began + load.plan.soak, "it should have been committed"
        assert (self.rollout.current, self.rollout.coming) == (self.current, self.coming)
        assert self.rollout.is_stopping == self.is_stopping
        assert not self.asked or (self.coming and not self.is_stopping), "somebody waits for nothing"
        assert not self.is_stopping or self.status >= 0 or self.living(), "it should have ended"
        if self.current and not self.is_stopping and self.now >= self.pause_until:
            server = self.server(self.current)
            assert server or not self.plan(self.current).preload, "it should have been loaded again"
            able = server is None or (server.is_kept and server.ready_at < NEVER)
            alone = all(body.is_kept and body.number == self.current for body in self.living())
            assert not (able and alone and self.lacking()), "it should have been replaced"
        for body in self.living():
            if self.is_doomed(body.number) and not body.told:
                assert body.is_server, f"{body} is on no side"
                assert self.workers(body.number), f"{body} has nobody to wait for"

    def _check_the_capacity(self, before: tuple[int, int], served: tuple[int, int], lost: bool) -> None:
        """The current generation loses only whom it lost itself, and with `batch` as many as new ones are ready.

        So what serves in both never falls under what is wanted, but by a rollback, and then by no more than were ready.
        """
        current, coming = before
        if self.is_stopping or not current:
            return
        if current != self.current:
            assert self.serving(self.current) >= self.wanted(self.current), "committed too early"
            return
        relieved = self.serving(self.coming) if self.batch() else 0
        kept = min(served[0] - lost, self.wanted(current) - relieved)
        assert self.serving(current) >= kept, f"{self.serving(current)} serve, where {kept} could"
        rolled_back = served[1] if coming != self.coming else 0
        both = min(sum(served) - lost - rolled_back, self.wanted(current))
        serving = self.serving(current) + self.serving(self.coming)
        assert serving >= both, f"{serving} serve, where {both} could"

    def _check_the_books(self) -> None:
        """What a generation counts as it goes is what counting anew gives."""
        for generation in self.rollout.generations.values():
            for state in (STARTING, READY, DRAINING, ABORTED, KILLED):
                assert generation.count(state) == sum(each.state == state for each in generation.workers)
            assert all(each.deadline >= generation.due for each in generation.processes())

    def _check_the_time(self, quiet: bool) -> None:
        """Whoever has to wait knows how long, and it is never a moment that has been dealt with."""
        deadline = self.rollout.deadline()
        assert deadline > self.now or (deadline == self.now and not quiet), f"{self.now - deadline:g} s ago"
        assert self.rollout.is_idle == self.is_idle()
        assert not self.lacking() or not self.now < self.pause_until < deadline, "it will wake up too late"
        assert self.is_idle() or self.status >= 0 or deadline < NEVER, f"nobody wakes it up: {self.living()}"
