"""How a rolling program ends, and how it does not: signals to any of its processes, at any stage, and kill -9."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import PATIENCE
from tests.rolling.programs import Rolling, Traffic, answer_on, children_of, is_running, service

SOON = PATIENCE  # what ends soon does not use up the limits of the programs under test, which are far beyond that
HANGS = "wait_for('never')"
FOR_EVER = "workers=2, ready_timeout=3600, grace=3600"


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Rolling]:
    with Rolling(tmp_path / "program") as each:
        yield each


# -- to be in the midst of -


def loading(program: Rolling) -> None:
    """The new code is being imported, and that takes for ever."""
    program.launch(service(1, FOR_EVER))
    program.deploy(service(2, FOR_EVER, top=HANGS))
    program.hup()
    program.wait_report(imported=True, version=2)


IS_FIRST = """
def is_first():
    try:
        os.mkdir("one")
        return True
    except FileExistsError:
        return False
"""


def getting_ready(program: Rolling) -> None:
    """One of the new workers is ready, the other will never be."""
    first = "told(boot=True); is_first() or wait_for('never')"
    program.launch(service(1, FOR_EVER))
    program.deploy(service(2, FOR_EVER, top=IS_FIRST, first=first))
    program.hup()
    program.wait_report(boot=True, count=2)


def getting_ready_one_by_one(program: Rolling) -> None:
    """The first new worker has taken the place of an old one, the second will never be ready."""
    first = "told(boot=True); len(os.listdir('boots')) > 1 and wait_for('never')"
    top = "os.makedirs('boots', exist_ok=True)"
    options = FOR_EVER + ", batch=1"
    program.launch(service(1, options))
    old = program.servers()[0]
    program.deploy(service(2, options, top=top, first="open('boots/%d' % os.getpid(), 'w').close(); " + first))
    program.hup()
    program.wait_report(boot=True, count=2)
    program.wait_until(lambda: len(workers_of(old)) == 1, "one old worker is left")


def soaking(program: Rolling) -> None:
    """The new workers are ready, the old ones are not let go yet."""
    program.launch(service(1, FOR_EVER))
    program.deploy(service(2, FOR_EVER + ", soak=3600"))
    program.hup()
    program.wait_report(ready=True, version=2, count=2)


def draining(program: Rolling) -> None:
    """The new code serves, one old worker has not finished yet."""
    program.launch(service(1, FOR_EVER))
    hold(program)
    old = program.servers()[0]
    program.reload(service(2, FOR_EVER), expect=2)
    program.wait_until(lambda: len(workers_of(old)) <= 1, "the other old worker has ended")


def idle(program: Rolling) -> None:
    """Nothing is under way."""
    program.launch(service(1, FOR_EVER))


def hold(program: Rolling) -> None:
    """Give some worker a job that lasts until there is a file "gate"."""
    program.connect("hold gate").close()
    program.wait_report(job="hold gate")


STAGES: dict[str, Callable[[Rolling], None]] = {
    each.__name__.replace("_", " "): each
    for each in (idle, loading, getting_ready, getting_ready_one_by_one, soaking, draining)
}
each_stage = pytest.mark.parametrize("stage", STAGES)


# -- TERM, INT, QUIT -


@each_stage
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_it_soon_in_every_stage(program: Rolling, stage: str, number: signal.Signals) -> None:
    STAGES[stage](program)
    os.kill(program.pid, number)
    if stage == "draining":
        program.wait_report(drained="stop", version=2, count=2)
        assert is_running(program.pid)
        (program.folder / "gate").touch()
    assert program.wait_exit(SOON) == 0
    program.wait_gone(timeout=SOON)
    served = {each["pid"] for each in program.reports(ready=True)}
    assert {each["pid"] for each in program.reports(drained="stop")} >= served


@each_stage
def test_a_quit_ends_it_at_once_in_every_stage(program: Rolling, stage: str) -> None:
    STAGES[stage](program)
    if stage != "draining":
        hold(program)
    os.kill(program.pid, signal.SIGQUIT)
    program.wait_exit(SOON)
    program.wait_gone(timeout=SOON)


@each_stage
def test_a_second_stop_ends_it_at_once_in_every_stage(program: Rolling, stage: str) -> None:
    STAGES[stage](program)
    if stage != "draining":
        hold(program)
    before = len(program.reports(drained="stop"))
    program.term()
    program.wait_report(drained="stop", count=before + 1)  # two that are pending at the same time are one
    assert is_running(program.pid)
    program.term()
    program.wait_exit(SOON)
    program.wait_gone(timeout=SOON)


@each_stage
def test_grace_cuts_a_drain_that_never_ends_in_every_stage(
    program: Rolling, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "FOR_EVER", "workers=2, ready_timeout=3600, grace=1.0")
    STAGES[stage](program)
    if stage != "draining":
        hold(program)
    program.term()
    assert program.wait_exit(SOON) == 0
    program.wait_gone(timeout=SOON)


def test_what_is_cut_at_grace_leaves_its_stack_in_the_log(program: Rolling) -> None:
    top = "def endless_job():\n    wait_for('never')"
    program.launch(service(options="workers=2, grace=1.0", top=top))
    with program.connect("exec endless_job()"):
        stuck = int(str(program.wait_report(job="exec endless_job()")["pid"]))
        program.reload(service(2), expect=2)
        program.wait_until(lambda: not is_running(stuck), "the stuck one is gone")
    assert "in endless_job" in program.log()
    program.wait_workers(2, version=2)
    program.wait_until(lambda: len(program.servers()) == 1, "its fork server is gone")


def test_a_drain_that_blocks_every_signal_is_killed(program: Rolling) -> None:
    program.launch(service(options="workers=2, grace=0.5"))
    job = "exec signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); wait_for('never')"
    program.connect(job).close()
    program.wait_report(job=job)
    program.term()
    assert program.wait_exit(SOON) == 0
    program.wait_gone(timeout=SOON)


def test_a_stopped_worker_can_be_ended(program: Rolling) -> None:
    """TERM waits for CONT."""
    program.launch(service(options=FOR_EVER))
    os.kill(program.workers()[0], signal.SIGSTOP)
    program.term()
    assert program.wait_exit(SOON) == 0


def test_a_stopped_fork_server_cannot_hold_a_quit_up(program: Rolling) -> None:
    program.launch(service(options=FOR_EVER))
    os.kill(program.servers()[0], signal.SIGSTOP)
    os.kill(program.pid, signal.SIGQUIT)
    program.wait_exit(SOON)
    program.wait_gone(timeout=SOON)


def test_a_stop_while_the_first_generation_loads_ends_it(program: Rolling) -> None:
    program.deploy(service(options=FOR_EVER, first="told(boot=True); " + HANGS))
    program.start()
    program.wait_report(boot=True, count=2)
    program.term()
    assert program.wait_exit(SOON) == 0
    program.wait_gone(timeout=SOON)


def test_a_stop_at_any_moment_of_the_first_boot_ends_it(program: Rolling, moment: float) -> None:
    program.deploy(service(options=FOR_EVER))
    program.start()
    program.wait_report(imported=True)
    time.sleep(moment * 0.04)  # the moment is what is varied, and every one is fine
    program.term()
    assert program.wait_exit(SOON) in (0, -signal.SIGTERM)
    program.wait_gone(timeout=SOON)


def test_a_stop_at_any_moment_of_a_restart_ends_it_with_0(program: Rolling, moment: float) -> None:
    program.launch(service(options=FOR_EVER))
    program.deploy(service(2, FOR_EVER))
    program.hup()
    time.sleep(moment * 0.1)  # as above
    program.term()
    assert program.wait_exit(SOON) == 0
    program.wait_gone(timeout=SOON)


def test_a_stop_finishes_the_jobs_in_hand_and_restarts_asked_for_meanwhile_are_refused(program: Rolling) -> None:
    program.launch(service(options=FOR_EVER))
    with program.connect("hold gate") as connection:
        program.wait_report(job="hold gate")
        program.term()
        program.wait_report(drained="stop")
        program.hup()
        program.wait_log("the program stops")
        (program.folder / "gate").touch()
        assert answer_on(connection)[0] == "hold"
    assert program.wait_exit() == 0
    assert not program.reports(generation=2)


# -- the other signals -


def test_ttin_and_ttou_change_the_number_of_workers(program: Rolling) -> None:
    program.launch(service())
    os.kill(program.pid, signal.SIGTTIN)
    program.wait_workers(3)
    os.kill(program.pid, signal.SIGTTIN)
    program.wait_workers(4)
    os.kill(program.pid, signal.SIGTTOU)
    program.wait_workers(3)
    program.reload(service(2), expect=2)
    program.wait_workers(3, version=2)
    for count in (2, 1):
        os.kill(program.pid, signal.SIGTTOU)
        program.wait_workers(count)
    os.kill(program.pid, signal.SIGTTOU)
    program.wait_log("workers wanted: 1", count=2)  # two signals at once are delivered by number, TTIN first
    os.kill(program.pid, signal.SIGTTIN)
    program.wait_workers(2)  # one is the least, so this one counts from there


def test_usr1_reaches_the_workers_that_have_a_handler_for_it(program: Rolling) -> None:
    for generation, when in ((1, "top"), (2, "first")):
        handler = {when: "signal.signal(signal.SIGUSR1, lambda *_: told(reopened=True))"}
        source = service(generation, **handler)
        if generation == 1:
            program.launch(source)
        else:
            program.reload(source, expect=2)
        workers = program.wait_workers(2, version=generation)
        program.wait_until(lambda: len(program.servers()) == 1, "one generation")
        os.kill(program.pid, signal.SIGUSR1)
        program.wait_report(reopened=True, version=generation, count=2)
        assert {each["pid"] for each in program.reports(reopened=True, version=generation)} == workers


def test_usr1_kills_no_worker_without_a_handler(program: Rolling) -> None:
    program.launch(service())
    workers = program.wait_workers(2)
    os.kill(program.pid, signal.SIGUSR1)
    os.kill(program.pid, signal.SIGTTIN)  # when that has come into effect the other has too
    assert workers < program.wait_workers(3)


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("number", ["SIGHUP", "SIGINT", "SIGTTIN", "SIGTTOU", "SIGUSR1"])
def test_what_a_terminal_sends_to_workers_and_fork_servers_does_nothing(
    program: Rolling, number: str, generation: int
) -> None:
    program.launch(service())
    if generation == 2:
        program.reload(service(2), expect=2)
        program.wait_until(lambda: len(program.servers()) == 1, "one generation")
    members = {*program.servers(), *program.wait_workers(2, version=generation)}
    for pid in members:
        os.kill(pid, getattr(signal, number))
    assert program.ask()[1] == str(generation)
    os.kill(program.pid, signal.SIGTTIN)
    program.wait_workers(3, version=generation)
    assert members <= program.members()
    program.reload(service(3), expect=generation + 1)
    program.wait_workers(3, version=3)
    program.wait_report(drained="stop", version=generation, count=3)


@pytest.mark.parametrize("stage", ["loading", "getting ready"])
def test_what_a_terminal_sends_while_a_generation_boots_does_nothing(program: Rolling, stage: str) -> None:
    STAGES[stage](program)
    for pid in program.members() - {program.pid}:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTTIN, signal.SIGTTOU):
            os.kill(pid, number)
    (program.folder / "never").touch()
    program.wait_log("generation 2 serves")
    program.wait_workers(2, version=2)


def test_an_int_to_the_whole_process_group_is_a_graceful_stop(program: Rolling) -> None:
    program.deploy(service(options=FOR_EVER))
    program.start(start_new_session=True)
    program.wait_report(ready=True, count=2)
    with program.connect("hold gate") as connection:
        program.wait_report(job="hold gate")
        os.killpg(program.pid, signal.SIGINT)
        program.wait_report(drained="stop")
        (program.folder / "gate").touch()
        assert answer_on(connection)[0] == "hold"
    assert program.wait_exit() == 0
    assert "KeyboardInterrupt" not in program.log()


def test_a_hup_to_the_whole_process_group_is_one_restart(program: Rolling) -> None:
    program.deploy(service())
    program.start(start_new_session=True)
    program.wait_log("generation 1 serves")
    program.deploy(service(2))
    os.killpg(program.pid, signal.SIGHUP)
    program.wait_log("generation 2 serves")
    program.wait_workers(2, version=2)
    assert {each["generation"] for each in program.reports(imported=True)} == {1, 2}


def test_signals_that_were_ignored_when_it_was_started_stay_ignored(program: Rolling) -> None:
    program.deploy(service())
    program.start_command(["nohup", program.python, "app.py"])
    program.wait_report(ready=True, count=2)
    program.wait_log("generation 1 serves")
    program.hup()
    os.kill(program.pid, signal.SIGTTIN)
    program.wait_workers(3)
    assert not program.reports(generation=2)


# -- kill -9 -


def test_a_killed_worker_is_replaced_from_memory(program: Rolling) -> None:
    program.launch(service())
    program.deploy("import missing_module")
    victim = program.workers()[0]
    program.kill(victim)
    program.wait_workers(2, version=1, without={victim})
    assert len(program.reports(imported=True)) == 1
    assert "killed by signal 9" in program.log()
    program.assert_no_zombie()


def test_all_workers_killed_at_once_are_replaced(program: Rolling) -> None:
    program.launch(service(options="workers=3"), ready=3)
    victims = set(program.workers())
    for pid in victims:
        program.kill(pid)
    program.wait_workers(3, without=victims)


def test_workers_that_die_one_after_another_are_replaced_more_and_more_slowly(program: Rolling) -> None:
    """From a state on disk that the code cannot live with: new workers die as soon as they are ready."""
    program.launch(service(first="os.path.exists('cursed') and os._exit(3)"))
    (program.folder / "cursed").touch()
    victims = program.wait_workers(2)
    began = time.monotonic()
    for pid in victims:
        program.kill(pid)
    program.wait_log("ended with status 3", count=12)
    # 0.1 s doubling, two workers in a row: the pauses before these deaths are six seconds in all.
    assert time.monotonic() - began > 3.0
    (program.folder / "cursed").unlink()
    program.wait_workers(2, without=victims)
    # All is forgotten: a death is made good at once, also after a minute of pauses.
    program.assert_no_zombie()


def test_a_killed_fork_server_is_loaded_again_and_its_workers_serve_on(program: Rolling) -> None:
    program.launch(service())
    workers = program.wait_workers(2)
    server = program.servers()[0]
    with Traffic(program):
        program.kill(server)
        program.wait_until(lambda: program.servers() and program.servers() != [server], "a new fork server")
        program.wait_report(imported=True, count=2)
    assert all(is_running(pid) for pid in workers)
    victim = workers.pop()
    program.kill(victim)
    program.wait_report(ready=True, count=3)
    program.wait_until(lambda: len(program.workers()) == 1, "its replacement")
    assert is_running(workers.pop())
    program.reload(service(2), expect=2)
    program.wait_workers(2, version=2)
    program.wait_until(lambda: len(program.members()) == 4, "the old ones end")


def test_a_fork_server_that_cannot_be_loaded_again_leaves_its_workers_alone(program: Rolling) -> None:
    program.launch(service())
    workers = program.wait_workers(2)
    program.deploy("import missing_module")
    program.kill(program.servers()[0])
    program.wait_log("missing_module", count=3)
    assert all(is_running(pid) for pid in workers)
    assert program.ask()[1] == "1"
    program.reload(service(2), expect=2)
    program.wait_workers(2, version=2)
    program.wait_until(lambda: len(program.members()) == 4, "the old ones end")


def test_a_supervisor_that_is_killed_takes_everybody_along_after_their_jobs(program: Rolling) -> None:
    program.launch(service(options=FOR_EVER))
    with program.connect("hold gate") as connection:
        holder = int(str(program.wait_report(job="hold gate")["pid"]))
        program.kill_supervisor()
        program.wait_report_anyhow(drained="stop")
        assert is_running(holder)
        (program.folder / "gate").touch()
        assert answer_on(connection)[0] == "hold"
    program.wait_gone()
    assert len(program.reports(drained="stop")) == 2


@pytest.mark.parametrize("stage", [each for each in STAGES if each != "draining"])
def test_a_supervisor_that_is_killed_in_the_midst_leaves_no_orphan(program: Rolling, stage: str) -> None:
    STAGES[stage](program)
    program.kill_supervisor()
    (program.folder / "never").touch()  # who imports or boots must be let on: a supervisor would have killed it
    program.wait_gone()
    served = {each["pid"] for each in program.reports(ready=True)}
    assert {each["pid"] for each in program.reports(drained="stop")} >= served


def test_a_supervisor_that_is_killed_while_old_workers_drain_leaves_no_orphan(program: Rolling) -> None:
    draining(program)
    program.kill_supervisor()
    program.wait_report_anyhow(drained="stop", version=2, count=2)
    assert program.members()
    (program.folder / "gate").touch()
    program.wait_gone()


def test_the_grace_is_kept_when_the_supervisor_is_killed(program: Rolling) -> None:
    program.launch(service(options="workers=2, grace=1.0"))
    program.connect("hold never").close()
    program.wait_report(job="hold never")
    program.kill_supervisor()
    program.wait_gone()


def test_supervisor_and_fork_server_killed_leave_no_orphan(program: Rolling) -> None:
    """Their fork server is gone when the supervisor dies: nobody but the workers themselves can learn it."""
    program.launch(service(options="workers=2, ready_timeout=3600"))
    workers = program.wait_workers(2)
    program.deploy(service(1, FOR_EVER, top=HANGS))
    program.kill(program.servers()[0])
    program.wait_report(imported=True, count=2)
    assert all(is_running(pid) for pid in workers)
    program.kill_supervisor()
    (program.folder / "never").touch()
    program.wait_gone()
    assert {each["pid"] for each in program.reports(drained="stop")} >= workers


@pytest.mark.parametrize("order", ["supervisor first", "fork server first"])
def test_all_but_the_workers_killed_at_once_leave_no_orphan(program: Rolling, order: str) -> None:
    program.launch(service())
    pids = [program.pid, program.servers()[0]]
    for pid in pids if order == "supervisor first" else pids[::-1]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # the fork server has ended after the supervisor already
    program.wait_gone()
    assert len(program.reports(drained="stop")) == 2


def test_h47_a_worker_whose_fork_server_died_before_it_told_of_it_runs_nothing(program: Rolling) -> None:
    """The supervisor knows nothing of it, so no deadline and no signal would ever end it."""
    program.launch(service(1))
    dies = "os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGKILL))"
    program.deploy(service(2, FOR_EVER, top=dies, first=f"told(boot=True); {HANGS}"))
    program.hup()
    log = program.wait_log("generation 2 failed at stage ready")
    assert "the fork server was killed by signal 9" in log
    program.wait_until(lambda: len(program.members()) == 4, "the old ones are there, and no orphan")
    assert program.reports(boot=True) == []
    assert "Traceback" not in program.log()


def test_a_fork_server_that_misses_the_death_of_the_supervisor_ends_its_other_workers(program: Rolling) -> None:
    """A worker and the supervisor die while it is stopped: it learns the first, and has nobody to tell."""
    program.launch(service(options="workers=2, grace=1.0"))
    program.connect("hold never").close()
    holder = program.wait_report(job="hold never")["pid"]
    server = program.servers()[0]
    other = next(pid for pid in program.workers() if pid != holder)
    os.kill(server, signal.SIGSTOP)
    program.kill(other)
    program.wait_until(lambda: not is_running(other), "a zombie")
    program.kill_supervisor()
    os.kill(server, signal.SIGCONT)
    program.wait_gone()
    assert "Traceback" not in program.log()


def workers_of(server: int) -> list[int]:
    return [pid for pid in children_of(server) if is_running(pid)]


@pytest.mark.parametrize("whom", ["worker", "fork server"])
@pytest.mark.parametrize("stage", ["loading", "getting ready", "getting ready one by one", "soaking", "draining"])
def test_an_old_process_killed_in_the_midst_of_a_restart_is_made_good(program: Rolling, stage: str, whom: str) -> None:
    STAGES[stage](program)
    old = program.servers()[0]
    target = workers_of(old)[0] if whom == "worker" else old
    before = len(program.reports(ready=True, version=1))
    program.kill(target)
    if stage != "draining" and whom == "worker":
        program.wait_report(ready=True, version=1, count=before + 1)
    (program.folder / "never").touch()
    (program.folder / "gate").touch()
    if stage in ("loading", "getting ready", "getting ready one by one"):
        program.wait_log("generation 2 serves")
    program.wait_until(lambda: len(program.members()) == (7 if stage == "soaking" else 4), "all are there, and no more")
    assert program.ask()[1] in (("1", "2") if stage == "soaking" else "2")
    program.assert_no_zombie()


@pytest.mark.parametrize("whom", ["worker", "fork server"])
def test_a_new_process_killed_while_old_workers_drain_is_made_good(program: Rolling, whom: str) -> None:
    STAGES["draining"](program)
    server = program.servers()[-1]
    victim = workers_of(server)[0] if whom == "worker" else server
    program.wait_report(ready=True, version=2, count=2)
    program.kill(victim)
    if whom == "worker":
        program.wait_report(ready=True, version=2, count=3)
    else:
        program.wait_log("the fork server was killed by signal 9 after it had loaded the program")
        program.wait_report(imported=True, version=2, count=2)
    (program.folder / "gate").touch()
    program.wait_report(drained="stop", version=1, count=2)
    program.wait_until(lambda: len(program.members()) == 4, "all are there, and no more")
    assert program.ask()[1] == "2"


NEW = [("loading", "fork server")]
NEW += [(stage, whom) for stage in list(STAGES)[2:5] for whom in ("worker", "fork server")]


@pytest.mark.parametrize(("stage", "whom"), NEW)
def test_a_new_process_killed_in_the_midst_of_a_restart_rolls_it_back(program: Rolling, stage: str, whom: str) -> None:
    STAGES[stage](program)
    server = program.servers()[-1]
    program.kill(workers_of(server)[-1] if whom == "worker" else server)
    log = program.wait_log("generation 2 failed")
    assert "killed by signal 9" in log
    (program.folder / "never").touch()
    program.wait_until(lambda: len(program.servers()) == 1, "the new generation is gone")
    program.wait_workers(2, version=1)
    program.wait_until(lambda: len(program.members()) == 4, "nothing of the new generation is left")
    assert program.ask()[1] == "1"
    program.reload(service(3), expect=3)
    program.wait_workers(2, version=3)
    program.wait_until(lambda: len(program.members()) == 4, "nothing else is left")


def test_a_new_worker_killed_after_the_commit_is_replaced_by_new_code(program: Rolling) -> None:
    program.launch(service())
    program.reload(service(2), expect=2)
    program.deploy("import missing_module")
    victim = program.wait_workers(2, version=2).pop()
    program.kill(victim)
    program.wait_workers(2, version=2, without={victim})
