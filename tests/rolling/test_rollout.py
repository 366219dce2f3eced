"""What a rolling restart does, one behaviour a test, in a world with a clock that is set by hand.

The world (`world.py`) checks after every event that no promise is broken; here stands what happens, and when.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import hotrestart
from hotrestart.options import Options
from hotrestart.rolling.worker import _with_jitter
from tests.rolling.world import Body, World


def running(workers: int = 2, **options: Any) -> World:
    """A program whose first generation serves."""
    world = World(Options(workers=workers, **options))
    world.begin()
    world.settles()
    return world


def restarting(world: World, **options: Any) -> World:
    """A restart is under way, and the new code is loaded."""
    world.is_asked("operator")
    world.gets_ready(the_server(world, world.coming), Options(**{**world.first_plan.as_document(), **options}))
    return world


def the_server(world: World, number: int) -> Body:
    server = world.server(number)
    assert server is not None
    return server


def starting(world: World, number: int) -> list[Body]:
    return [body for body in world.workers(number) if body.is_starting]


def told(world: World, number: int) -> list[list[str]]:
    """What was done to each worker of a generation, as far as they are still there."""
    return [list(body.told) for body in world.workers(number)]


def verbs(world: World, since: int = 0) -> list[str]:
    return [verb for verb, _ in world.log[since:]]


# --- a restart that works


def test_the_new_generation_is_loaded_made_ready_and_committed_before_an_old_worker_drains() -> None:
    world = running(workers=2)
    mark = len(world.log)
    restarting(world)
    assert verbs(world, mark) == ["start", "start", "start"]  # the fork server, and two workers
    world.gets_ready(starting(world, 2)[0])
    assert told(world, 1) == [[], []]
    world.gets_ready(starting(world, 2)[0])
    assert verbs(world, mark)[3:] == ["commit", "outcome", "drain", "drain"]
    for worker in world.workers(1):
        world.ends(worker, "exit 0")
    assert world.log[-1] == ("drain", the_server(world, 1).process), "the fork server goes last"
    world.ends(the_server(world, 1), "exit 0")
    assert world.rollout.is_idle


def test_the_outcome_tells_how_long_each_stage_took() -> None:
    world = running(workers=1, soak=3.0)
    world.is_asked("first")
    world.passes(1.0)
    world.gets_ready(the_server(world, 2))
    world.passes(2.0)
    world.gets_ready(starting(world, 2)[0])
    world.passes_to_the_deadline()
    outcome = world.answers["first"]
    assert outcome.ok
    assert (outcome.generation, outcome.stage, outcome.seconds) == (2, "commit", 6.0)
    assert outcome.stages == {"load": 1.0, "ready": 2.0, "soak": 3.0}


def test_the_seconds_count_from_the_first_request_and_not_from_the_load() -> None:
    world = restarting(running(workers=1))
    world.is_asked("impatient")
    world.passes(4.0)
    world.gets_ready(starting(world, 2)[0])
    world.passes(1.0)
    world.settles()
    assert (world.answers["operator"].generation, world.answers["operator"].seconds) == (2, 4.0)
    assert (world.answers["impatient"].generation, world.answers["impatient"].seconds) == (3, 5.0)


def test_a_changed_number_of_workers_takes_effect_with_the_commit() -> None:
    world = running(workers=2)
    world.is_scaled(+1)
    world.settles()
    restarting(world, workers=4)
    assert len(world.workers(1)) == 3
    assert len(starting(world, 2)) == 4
    world.settles()
    assert len(world.workers(2)) == 4, "and what TTIN has added is forgotten"


def test_what_ttin_has_added_stays_if_the_new_code_wants_as_many_as_the_old() -> None:
    world = running(workers=2)
    world.is_scaled(+1)
    restarting(world)
    world.settles()
    assert len(world.workers(2)) == 3


def test_200_requests_at_once_lead_to_two_loads_and_200_answers() -> None:
    world = running()
    world.is_asked(*range(200))
    world.settles()
    assert len(world.loads) == 3
    assert [world.answers[number].generation for number in range(200)] == [2] + [3] * 199


def test_without_preload_what_has_loaded_the_program_becomes_the_first_worker() -> None:
    world = World(Options(workers=2))
    world.begin()
    world.gets_ready(the_server(world, 1), Options(workers=2, preload=False))
    assert verbs(world) == ["start", "become", "start"]
    world.settles()
    assert world.server(1) is None
    assert world.serving(1) == 2


def test_without_preload_a_worker_too_many_waits_as_a_loaded_server_until_there_is_room() -> None:
    world = restarting(running(workers=1, preload=False, grace=30.0))
    world.gets_ready(starting(world, 2)[0])
    assert told(world, 1) == [["drain"]]
    restarting(world)
    assert the_server(world, 3).is_kept, "one drains and one serves, which is twice what is wanted"
    world.ends(world.workers(1)[0])
    assert world.log[-1][0] == "become"


# --- with batch


def test_with_batch_an_old_worker_goes_for_each_new_one_that_is_ready() -> None:
    world = restarting(running(workers=3, batch=1))
    assert len(starting(world, 2)) == 1
    world.gets_ready(starting(world, 2)[0])
    assert told(world, 1) == [["drain"], [], []]
    assert not starting(world, 2), "the next only when one has gone"
    world.ends(world.workers(1)[0])
    assert len(starting(world, 2)) == 1
    world.settles()
    assert world.answers["operator"].ok


def test_with_batch_a_rollback_fills_up_from_the_old_fork_server() -> None:
    world = restarting(running(workers=3, batch=1))
    world.gets_ready(starting(world, 2)[0])
    world.ends(world.workers(1)[0])
    world.ends(starting(world, 2)[0], "killed by SIGSEGV")
    assert world.answers["operator"].reason == "killed by SIGSEGV"
    assert told(world, 2) == [["drain"]]
    assert len(starting(world, 1)) == 1
    world.settles()
    assert (world.current, world.serving(1)) == (1, 3)


def test_with_batch_the_old_generation_is_filled_up_as_soon_as_the_new_one_is_known_to_fail() -> None:
    world = restarting(running(workers=2, batch=1, soak=60.0))
    world.gets_ready(starting(world, 2)[0])
    world.ends(world.workers(1)[0])
    world.gets_ready(starting(world, 2)[0])
    world.ends(world.workers(1)[0])
    world.hangs(world.workers(2)[0])
    assert len(starting(world, 1)) == 1
    assert "operator" not in world.answers, "its traceback is still to come"


# --- new code that fails


def test_new_code_that_ends_while_it_loads_is_thrown_away_and_the_reason_is_told() -> None:
    world = running()
    world.is_asked("operator")
    world.passes(0.5)
    world.ends(the_server(world, 2), "exit 1", "SyntaxError: invalid syntax")
    outcome = world.answers["operator"]
    assert (outcome.ok, outcome.stage, outcome.reason) == (False, "load", "exit 1")
    assert (outcome.detail, outcome.stages) == ("SyntaxError: invalid syntax", {"load": 0.5})
    assert world.rollout.is_idle


def test_new_code_that_hangs_while_it_loads_is_aborted_then_killed_then_given_up() -> None:
    world = running(ready_timeout=10.0)
    world.is_asked("operator")
    server, began = the_server(world, 2), world.now
    for _ in range(3):
        world.passes_to_the_deadline()
    assert {verb: when - began for verb, when in server.told.items()} == {"abort": 10.0, "kill": 12.0}
    assert world.now - began == 17.0
    assert world.answers["operator"].reason == "the new code did not reach main() within 10 s"


def test_the_dump_of_a_hang_is_in_the_outcome() -> None:
    world = running(ready_timeout=10.0)
    world.is_asked("operator")
    world.passes_to_the_deadline()
    world.ends(the_server(world, 2), "killed by SIGABRT", "File app.py, line 3, in connect")
    outcome = world.answers["operator"]
    assert outcome.reason == "the new code did not reach main() within 10 s"
    assert outcome.detail == "File app.py, line 3, in connect"


def test_a_worker_that_fails_before_it_is_ready_rolls_all_of_them_back() -> None:
    world = restarting(running(workers=3))
    world.gets_ready(starting(world, 2)[0])
    world.ends(starting(world, 2)[0], "exit 3")
    assert (world.answers["operator"].stage, world.answers["operator"].reason) == ("ready", "exit 3")
    assert told(world, 2) == [["drain"], ["drain"]], "who was ready may have accepted work"
    assert told(world, 1) == [[], [], []]


def test_a_worker_that_does_not_get_ready_rolls_all_of_them_back_and_is_not_replaced_meanwhile() -> None:
    world = restarting(running(workers=2, ready_timeout=10.0))
    world.gets_ready(starting(world, 2)[0])
    world.passes_to_the_deadline()
    assert told(world, 2) == [[], ["abort"]]
    world.ends(world.workers(2)[1], "killed by SIGABRT")
    assert world.answers["operator"].reason == "the new code did not get ready within 10 s"


def test_a_worker_that_dies_in_the_soak_rolls_back() -> None:
    world = restarting(running(workers=1, soak=10.0))
    world.gets_ready(starting(world, 2)[0])
    world.passes(9.0)
    world.ends(world.workers(2)[0], "exit 1")
    assert world.answers["operator"].stage == "soak"
    assert world.answers["operator"].stages["soak"] == 9.0


def test_a_worker_that_hangs_in_the_soak_is_not_committed_however_long_it_takes_to_die() -> None:
    world = restarting(running(workers=2, soak=1.0))
    for worker in starting(world, 2):
        world.gets_ready(worker)
    world.hangs(world.workers(2)[0])
    world.is_scaled(-1)
    world.passes(1.5)
    assert world.coming == 2
    world.ends(world.workers(2)[0], "killed by SIGABRT")
    assert world.answers["operator"].reason == "it hangs"


def test_a_soak_does_not_end_while_a_worker_asked_for_meanwhile_is_missing() -> None:
    world = restarting(running(workers=1, soak=1.0))
    world.gets_ready(starting(world, 2)[0])
    world.is_scaled(+1)
    world.gets_ready(starting(world, 1)[0])
    world.passes(2.0)
    assert world.coming == 2, "two serve, and the new generation has only one"
    world.gets_ready(starting(world, 2)[0])
    assert world.current == 2


def test_a_new_worker_that_is_one_too_many_fails_nobody_when_it_drains_too_long() -> None:
    world = restarting(running(workers=2, grace=1.0))
    world.is_scaled(-1)
    assert ["drain"] in told(world, 2)
    world.passes(1.0)
    assert ["drain", "abort"] in told(world, 2)
    world.gets_ready(starting(world, 2)[0])
    assert world.answers["operator"].ok


def test_a_drain_that_takes_longer_than_its_grace_is_aborted_then_killed() -> None:
    world = restarting(running(workers=1, grace=30.0))
    world.gets_ready(starting(world, 2)[0])
    old, began = world.workers(1)[0], world.now
    for _ in range(3):
        world.passes_to_the_deadline()
    assert {verb: when - began for verb, when in old.told.items()} == {"drain": 0.0, "abort": 30.0, "kill": 32.0}


# --- the first generation


@pytest.mark.parametrize("stage", ["load", "ready", "soak"])
def test_a_first_generation_that_fails_ends_the_program_with_status_1(stage: str) -> None:
    world = World(Options(workers=1, soak=1.0))
    world.begin()
    if stage != "load":
        world.gets_ready(the_server(world, 1))
    if stage == "soak":
        world.gets_ready(world.workers(1)[0])
    world.ends([*world.workers(1), the_server(world, 1)][0])
    world.settles()
    assert world.outcomes[0].stage == stage
    assert world.status == 1


def test_who_asked_during_a_first_load_that_fails_is_told_that_the_program_stops() -> None:
    world = World()
    world.begin()
    world.is_asked("early")
    world.ends(the_server(world, 1))
    assert world.answers["early"].stage == "stop"


def test_the_first_term_after_a_failed_first_generation_still_lets_its_workers_drain() -> None:
    world = World(Options(workers=2))
    world.begin()
    world.gets_ready(the_server(world, 1))
    world.gets_ready(starting(world, 1)[0])
    world.ends(starting(world, 1)[0])
    world.is_stopped()
    assert told(world, 1) == [["drain"]]
    world.is_stopped()
    assert told(world, 1) == [["drain", "kill"]]


# --- stop


@pytest.mark.parametrize("stage", ["serving", "load", "ready", "soak", "draining"])
@pytest.mark.parametrize("obeys", ["drain", "abort", "kill", "nothing"])
def test_term_ends_the_program_in_every_stage(stage: str, obeys: str) -> None:
    world = running(workers=1, soak=5.0)
    if stage != "serving":
        world.is_asked("operator")
    if stage in ("ready", "soak", "draining"):
        world.gets_ready(the_server(world, 2))
    if stage in ("soak", "draining"):
        world.gets_ready(starting(world, 2)[0])
    if stage == "draining":
        world.passes_to_the_deadline()
    world.comes_to_an_end(obeys)
    assert world.status == 0
    if stage in ("load", "ready", "soak"):
        assert world.answers["operator"].stage == "stop"


def test_a_second_term_kills_at_once() -> None:
    world = running(workers=2)
    world.is_stopped()
    assert told(world, 1) == [["drain"], ["drain"]]
    world.is_stopped()
    assert told(world, 1) == [["drain", "kill"], ["drain", "kill"]]
    assert list(the_server(world, 1).told) == ["kill"]
    deadline = world.rollout.deadline()
    world.is_stopped()
    assert world.rollout.deadline() == deadline, "asking again does not put off the end"


def test_who_asks_for_a_restart_while_it_stops_is_told_so() -> None:
    world = running()
    world.is_stopped()
    world.is_asked("late")
    assert (world.answers["late"].ok, world.answers["late"].stage) == (False, "stop")


# --- what goes on between restarts


def test_ttin_and_ttou_change_the_number_and_leave_one_at_least() -> None:
    world = running(workers=2)
    world.is_scaled(+2)
    world.settles()
    assert world.serving(1) == 4
    world.is_scaled(-9)
    world.settles()
    assert world.serving(1) == 1


def test_workers_that_ask_to_be_replaced_are_replaced_one_at_a_time() -> None:
    world = running(workers=3)
    old = world.workers(1)
    for worker in old[:2]:
        world.asks_to_be_replaced(worker)
    assert len(starting(world, 1)) == 1
    assert told(world, 1) == [[], [], [], []], "it serves until its replacement does"
    world.gets_ready(starting(world, 1)[0])
    assert [list(worker.told) for worker in old] == [["drain"], [], []]
    assert not starting(world, 1), "the next only when this one has gone"
    world.ends(old[0], "exit 0")
    assert len(starting(world, 1)) == 1
    world.settles()
    assert world.serving(1) == 3
    assert not old[2].is_gone


def test_a_worker_is_replaced_at_its_max_age_and_a_share_of_it_more() -> None:
    world = running(workers=1, max_age=100.0, jitter=0.1)
    (old,) = world.workers(1)
    assert world.rollout.deadline() == world.now + 105.0  # half of a tenth: the share in this world is 0.5
    world.passes_to_the_deadline()
    world.settles()
    assert old.is_gone
    assert world.rollout.deadline() == world.now + 105.0


def test_a_worker_that_hangs_is_replaced_while_it_dies() -> None:
    world = running(workers=2)
    world.hangs(world.workers(1)[0])
    assert told(world, 1) == [["abort"], [], []]
    world.settles()
    assert world.serving(1) == 2


def test_when_the_fork_server_dies_its_workers_go_on_and_it_is_loaded_again() -> None:
    world = running(workers=2)
    world.ends(the_server(world, 1))
    assert not world.rollout.is_idle
    assert world.serving(1) == 2
    world.ends(world.workers(1)[0])
    world.passes_to_the_deadline()
    assert not starting(world, 1)
    world.gets_ready(the_server(world, 1), Options(workers=7))
    assert len(starting(world, 1)) == 1, "and what it says that it wants now is of no interest"
    world.settles()


def pause_after(world: World, *ends: Body) -> float:
    """How long it takes until a worker is started again."""
    for body in ends:
        world.ends(body)
    began = world.now
    world.passes_to_the_deadline()
    assert starting(world, 1)
    return round(world.now - began, 6)


def test_the_pauses_of_a_crash_loop_double_from_a_tenth_to_30_seconds() -> None:
    world = running(workers=1)
    pauses = [pause_after(world, world.workers(1)[0]) for _ in range(11)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]


def test_workers_that_crash_together_are_one_crash() -> None:
    world = running(workers=4)
    assert [pause_after(world, *world.workers(1)) for _ in range(3)] == [0.1, 0.2, 0.4]


def test_a_worker_that_hangs_before_it_is_ready_is_in_a_crash_loop_however_long_it_takes() -> None:
    world = running(workers=1, ready_timeout=60.0)
    for pause in (0.1, 0.2, 0.4, 0.8):
        assert pause_after(world, *world.workers(1)) == pause
        world.passes_to_the_deadline()
        assert told(world, 1) == [["abort"], []]


def test_a_worker_that_has_served_5_seconds_ends_the_crash_loop() -> None:
    world = running(workers=1)
    for _ in range(3):
        pause_after(world, world.workers(1)[0])
    world.settles()
    world.passes(5.0)
    assert pause_after(world, world.workers(1)[0]) == 0.1


def test_a_crash_loop_that_is_over_is_forgotten_even_if_nobody_of_it_has_died_since() -> None:
    world = running(workers=2)
    for _ in range(3):
        pause_after(world, world.workers(1)[-1])
    world.settles()
    world.passes(5.0)
    world.is_scaled(+1)
    assert pause_after(world, starting(world, 1)[0]) == 0.1


# --- messages that come twice or late


def test_a_message_that_comes_twice_or_late_changes_nothing() -> None:
    world = World(Options(workers=2))
    world.begin()
    loaded = Options(workers=2, preload=False)
    first = the_server(world, 1)
    world.gets_ready(first, loaded)
    other = starting(world, 1)[-1]
    world.gets_ready(other)
    world.says_again(first, "loaded", loaded)
    assert world.coming == 1, "having loaded is not being ready"
    world.settles()
    world.ends(other)
    mark = len(world.log)
    for message in ("ended", "ready", "loaded", "hung"):
        world.says_again(other, message, loaded)
    assert verbs(world, mark) == []


def test_workers_are_not_all_replaced_after_the_same_number_of_jobs() -> None:
    drawn = {_with_jitter(Options(workers=2, max_jobs=1000, jitter=0.5)) for _ in range(100)}
    assert 1000 <= min(drawn) < max(drawn) <= 1500
    assert _with_jitter(Options(workers=2, max_jobs=1000, jitter=0.0)) == 1000


# --- of the code


@pytest.mark.parametrize("name", ["rollout", "plan", "generation"])
def test_the_decisions_import_nothing_that_could_do_io(name: str) -> None:
    source = Path(hotrestart.__file__).with_name("rolling").joinpath(f"{name}.py").read_text()
    body = [node for node in ast.parse(source).body if not isinstance(node, ast.If)]  # for type checkers alone
    found = {each.module for node in body for each in ast.walk(node) if isinstance(each, ast.ImportFrom)}
    assert not any(isinstance(each, ast.Import) for node in body for each in ast.walk(node))
    assert found <= {"__future__", "random", "outcome", "generation", "plan"}
