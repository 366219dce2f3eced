"""`Rollout` in thousands of histories: everything that can happen to it, at every moment, in a world that is checked.

The checks are in `world.py`, and run after each step.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hotrestart.options import Options
from tests.rolling.world import Body, World

OPTIONS = st.builds(
    Options,
    workers=st.integers(1, 4),
    preload=st.sampled_from([True, True, True, False]),
    ready_timeout=st.sampled_from([60.0, 60.0, 5.0, 0.5]),
    grace=st.sampled_from([30.0, 30.0, 3.0, 3.0, 0.0]),
    batch=st.sampled_from([None, None, 1, 2, 5]),
    soak=st.sampled_from([0.0, 0.0, 2.0, 20.0]),
    max_age=st.sampled_from([None, None, 7.0, 0.5]),
)
OFTEN = st.sampled_from([True] * 5 + [False])
PICK = st.integers(0, 30)
RARELY = st.integers(0, 99).map(lambda number: number in (23, 57, 71))  # hypothesis likes the ends


def goes_on(machine: Histories) -> bool:
    return machine.world.status < 0


KINDS: dict[str, Callable[[Body], bool]] = {
    "starting": lambda body: body.is_starting,
    "alive": lambda body: not body.is_gone,
    "told": lambda body: bool(body.told) and not body.is_gone,
    "serving": lambda body: body.serves,
    "hangable": lambda body: body.may_serve_on,
    "gone": lambda body: body.is_gone,
}


class Histories(RuleBasedStateMachine):
    """One history of one program."""

    @initialize(
        options=OPTIONS, obeys=st.sampled_from(["drain", "abort", "kill", "nothing"]), well=OFTEN, rests=st.booleans()
    )
    def begins(self, options: Options, obeys: str, well: bool, rests: bool) -> None:
        self.world, self.askers, self.obeys, self.rests = World(options), 0, obeys, rests
        self.world.begin()
        if well:
            self.world.settles()

    def those(self, kind: str) -> list[Body]:
        return [body for body in self.world.bodies.values() if KINDS[kind](body)]

    def one(self, kind: str, number: int) -> Body:
        those = self.those(kind)
        return those[-1 - number % len(those)]

    @rule(pick=PICK, options=st.none() | OPTIONS)
    @precondition(lambda self: self.those("starting"))
    def gets_ready(self, pick: int, options: Options | None) -> None:
        self.world.gets_ready(self.one("starting", pick), options)

    @rule(pick=PICK)
    @precondition(lambda self: self.those("alive"))
    def ends_by_itself(self, pick: int) -> None:
        self.world.ends(self.one("alive", pick))

    @rule(times=st.integers(1, 12), wait=st.sampled_from([0.0, 1.0, 5.0]))
    @precondition(lambda self: goes_on(self) and self.world.is_idle())
    def ends_again_and_again(self, times: int, wait: float) -> None:
        for _ in range(times):
            self.world.passes(wait)
            for body in self.those("starting" if self.those("starting") else "serving")[-1:]:
                self.world.ends(body)
            self.world.passes_to_the_deadline()

    @rule(pick=PICK)
    @precondition(lambda self: self.those("told"))
    def ends_as_told(self, pick: int) -> None:
        self.world.ends(self.one("told", pick))

    @rule(pick=PICK)
    @precondition(lambda self: self.those("told"))
    def gets_ready_too_late(self, pick: int) -> None:
        self.world.gets_ready(self.one("told", pick))

    @rule(pick=PICK)
    @precondition(lambda self: self.those("hangable"))
    def hangs(self, pick: int) -> None:
        self.world.hangs(self.one("hangable", pick))

    @rule(pick=PICK)
    @precondition(lambda self: self.those("serving"))
    def asks_to_be_replaced(self, pick: int) -> None:
        self.world.asks_to_be_replaced(self.one("serving", pick))

    @rule(pick=PICK, message=st.sampled_from(["ended", "ready", "loaded", "hung"]), options=OPTIONS)
    @precondition(lambda self: self.those("gone"))
    def is_heard_of_after_its_end(self, pick: int, message: str, options: Options) -> None:
        self.world.says_again(self.one("gone", pick), message, options)

    @rule(pick=PICK, options=OPTIONS)
    @precondition(lambda self: self.those("alive"))
    def says_what_is_not_so(self, pick: int, options: Options) -> None:
        body = self.one("alive", pick)
        if body.process.is_server or body.ready_at < float("inf"):
            self.world.says_again(body, "ready", options)
        if not body.is_server or body.ready_at < float("inf"):
            self.world.says_again(body, "loaded", options)
        if not body.is_server and (body.is_starting or body.told.keys() & {"abort", "kill"}):
            self.world.says_again(body, "hung", options)

    @rule(burst=st.sampled_from([1, 1, 1, 2, 7]))
    def is_asked(self, burst: int) -> None:
        for _ in range(burst):
            self.askers += 1
            self.world.is_asked(self.askers)

    @rule(by=st.sampled_from([-3, -1, 1, 2]))
    @precondition(goes_on)
    def is_scaled(self, by: int) -> None:
        self.world.is_scaled(by)

    @rule(really=RARELY, times=st.integers(1, 3))
    def is_stopped(self, really: bool, times: int) -> None:
        for _ in range(times if really else 0):
            self.world.is_stopped()

    @rule(really=RARELY, times=st.integers(1, 3))
    def is_quit(self, really: bool, times: int) -> None:
        for _ in range(times if really else 0):
            self.world.is_quit()

    @rule(seconds=st.sampled_from([0.0, 0.05, 1.0, 4.9, 5.0, 100.0, 1e5]))
    def time_passes(self, seconds: float) -> None:
        self.world.passes(seconds)

    @rule(times=st.integers(1, 3))
    @precondition(goes_on)
    def time_passes_to_the_deadline(self, times: int) -> None:
        for _ in range(times):
            self.world.passes_to_the_deadline()

    @rule(steps=st.integers(1, 8))
    @precondition(goes_on)
    def all_goes_well(self, steps: int) -> None:
        for _ in range(steps):
            self.world.goes_on()

    @rule(options=OPTIONS, steps=st.integers(0, 12))
    @precondition(lambda self: goes_on(self) and not self.world.coming)
    def a_restart_goes_well_for_a_while(self, options: Options, steps: int) -> None:
        self.is_asked(1)
        for body in self.those("starting")[-1:]:
            self.world.gets_ready(body, options if body.is_server else None)
        self.all_goes_well(steps)

    @rule(pick=PICK, and_then=st.sampled_from(["nothing", "an end", "a request", "a hang", "a pause", "a move"]))
    @precondition(goes_on)
    def comes_to_rest(self, pick: int, and_then: str) -> None:
        self.world.settles()
        if and_then == "an end" and self.those("alive"):
            self.world.ends(self.one("alive", pick))
        elif and_then == "a hang" and self.those("serving"):
            self.world.hangs(self.one("serving", pick))
        elif and_then == "a request":
            self.is_asked(1)
        elif and_then == "a move" and self.world.status < 0:
            self.world.moves()
        elif and_then == "a pause":
            self.world.passes(6.0)

    def teardown(self) -> None:
        if hasattr(self, "world") and self.world.is_sound:
            if self.rests:
                self.world.settles()
            self.world.comes_to_an_end(self.obeys)


def test_every_promise_is_kept_in_every_history(full: bool) -> None:
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=30_000 if full else 150,
            stateful_step_count=50,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
