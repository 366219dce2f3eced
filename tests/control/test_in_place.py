"""A program that restarts in place, asked over its control socket: the truth, whatever happens meanwhile."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hotrestart import Outcome, control
from hotrestart.errors import ControlError, HotRestartError, NotThereError, TimedOutError
from tests.control.asking import Asking, Visitor, names_of, threads_of, wait_heard, wait_state
from tests.control.attacker import GARBAGE
from tests.harness import PATIENCE, Program, open_files, worker
from tests.rolling.programs import children_of

pytestmark = pytest.mark.core

BROKEN = "import hotrestart\ndef broken():\n    raise RuntimeError('the new code is broken')\nbroken()\n"
ON_TRIAL = (
    "import hotrestart\nif hotrestart.command.first.is_preflight:\n    raise RuntimeError('the new code is broken')\n"
)

HOLDING = """
import hotrestart, os, time

VERSION = {version!r}
{top}

def wait_for(name):
    report(waits=name)
    while not os.path.exists(name):
        time.sleep(0.005)

@hotrestart.restartable{options}
def main():
    {first}
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, version=VERSION)
        while loop.running:
            {job}
    {last}

if __name__ == "__main__":
    main()
    report(ended=hotrestart.state.reason)
"""


def holding(version: object = 1, options: str = "", **parts: str) -> str:
    """A worker with code of ours at its import, at the beginning and the end of main(), and as its job."""
    filled = {"top": "", "first": "pass", "job": "loop.sleep(5)", "last": "pass", **parts}
    return HOLDING.format(version=version, options=options, **filled)


def launch(program: Program, source: str, **more: Any) -> Program:
    program.deploy(source)
    program.start(**more)
    program.wait_report(ready=1)
    return program


def restart(target: int | str, **more: Any) -> Outcome:
    return control.restart(target, **{"timeout": PATIENCE, **more})


# -- what is told ------------------------------------------------------------------------------------------------------


def test_a_restart_is_answered_by_the_new_generation(program: Program) -> None:
    launch(program, worker(1))
    program.deploy(worker(2))
    stages: list[tuple[str, int]] = []
    outcome = restart(program.pid, on_stage=lambda stage, generation: stages.append((stage, generation)))
    assert outcome.ok
    assert outcome.generation == 2
    assert outcome.pid == program.pid
    assert outcome.stage == "ready"
    assert outcome.reason == outcome.detail == ""
    assert list(outcome.stages) == ["preflight", "drain", "load", "ready"] == [stage for stage, _ in stages]
    assert {generation for _, generation in stages} == {2}
    assert 0.5 * outcome.seconds < sum(outcome.stages.values()) < outcome.seconds + 1e-6
    assert program.wait_report(ready=2)["version"] == 2


def test_who_has_no_more_to_say_waits_for_the_outcome(program: Program) -> None:
    launch(program, worker(1))
    with Visitor(program.pid) as visitor:
        visitor.ask("restart").socket.shutdown(socket.SHUT_WR)
        assert visitor.lines()[-1]["outcome"]["ok"]


def test_no_preflight_is_no_stage(program: Program) -> None:
    launch(program, worker(1, "(preflight=False)"))
    program.deploy(worker(2, "(preflight=False)"))
    outcome = restart(program.pid)
    assert outcome.ok
    assert list(outcome.stages) == ["drain", "load", "ready"]


def test_a_main_loop_that_is_quicker_than_whoever_has_told_it_has_drained_too(program: Program) -> None:
    slow = "import hotrestart.state as s, time; end = s.end; s.end = lambda why: (end(why), time.sleep(0.5))"
    launch(program, holding(1, "(preflight=False)", top=slow, job="loop.sleep(0.01)"))
    assert list(restart(program.pid).stages) == ["drain", "load", "ready"]


def test_a_refusal_names_the_exception_and_shows_where(program: Program) -> None:
    launch(program, worker(1))
    program.deploy(BROKEN)
    outcome = restart(program.pid)
    assert not outcome.ok
    assert outcome.stage == "preflight"
    assert outcome.generation == 2
    assert outcome.pid == program.pid
    assert "RuntimeError" in outcome.reason
    assert "the new code is broken" in outcome.reason
    assert "\n" not in outcome.reason
    assert outcome.detail.rstrip().endswith("RuntimeError: the new code is broken")
    assert "in broken" in outcome.detail
    assert list(outcome.stages) == ["preflight"]
    status = wait_state(program, generation=1, state="serving")
    assert status["last"]["reason"] == outcome.reason
    program.deploy(worker(2))
    assert restart(program.pid).ok
    assert wait_heard(program)["last"]["ok"]


def test_who_waits_for_a_stop_sees_the_end_of_the_process(program: Program) -> None:
    launch(program, holding(last="wait_for('go on')"))
    asking = Asking(control.stop, program.pid, timeout=PATIENCE)
    program.wait_report(waits="go on")
    assert not asking.is_over
    (program.folder / "go on").touch()
    asking.result()
    assert program.wait_exit() == 0
    assert program.reports(ended="stop")
    assert not names_of(program.pid)


def test_status_is_plain_data(program: Program) -> None:
    launch(program, worker(1))
    status = wait_state(program, state="serving")
    assert status["pid"] == program.pid
    assert status["kind"] == "in place"
    assert status["generation"] == status["wanted"] == 1
    assert status["stage"] == ""
    assert status["last"] is None
    assert status["uptime"] > 0
    assert status["workers"][0]["pid"] == program.pid
    assert status["workers"][0]["memory"] > 1_000_000
    restart(program.pid)
    later = wait_state(program, generation=2)
    assert later["uptime"] > status["uptime"]
    assert later["workers"][0]["age"] < later["uptime"]
    assert later["last"]["ok"]


def test_there_is_nothing_to_scale(program: Program) -> None:
    launch(program, worker(1))
    with pytest.raises(ControlError, match="workers=N"):
        control.scale(program.pid, by=1)


def test_a_pid_file_and_a_path_lead_to_it_too(program: Program, tmp_path: Path) -> None:
    path, pidfile = str(tmp_path / "c.sock"), str(tmp_path / "pid")
    launch(program, worker(1, f"(control={path!r}, pidfile={pidfile!r})"))
    for generation, target in enumerate([program.pid, str(program.pid), path, pidfile, Path(path)], 2):
        assert restart(target).generation == generation  # type: ignore[arg-type]
    assert names_of(program.pid)
    control.stop(path)
    assert program.wait_exit() == 0
    assert not os.path.lexists(path)
    assert not names_of(program.pid)


# -- it dies -----------------------------------------------------------------------------------------------------------


def test_a_program_that_is_killed_answers_by_its_end(program: Program) -> None:
    launch(program, worker(1))
    program.deploy(holding(2, first="wait_for('never')"))
    told = set[int]()
    askings = [Asking(restart, program.pid, on_stage=lambda *_, each=each: told.add(each)) for each in range(3)]
    program.wait_report(waits="never")
    program.wait_until(lambda: len(told) == 3, "all of them have asked")
    program.process.kill()  # type: ignore[union-attr]
    for each in askings:
        with pytest.raises(NotThereError, match=f"process {program.pid} has died"):
            each.result()
    with pytest.raises(NotThereError, match=r"no process|no control socket"):
        program.wait_exit()
        restart(program.pid)


@pytest.mark.parametrize("option", ["", "(preflight=False)"], ids=["preflight", "none"])
def test_new_code_that_fails_before_it_is_ready_is_told(program: Program, option: str) -> None:
    launch(program, worker(1, option))
    program.deploy(holding(2, option, first="raise RuntimeError('no database')"))
    outcome = restart(program.pid)
    assert not outcome.ok
    assert "RuntimeError: no database" in outcome.reason
    assert "no database" in outcome.detail
    assert outcome.generation == 2
    assert outcome.stage in ("ready", "stop")
    assert program.wait_exit() == 1


def test_new_code_that_cannot_be_loaded_ends_the_connection(program: Program) -> None:
    launch(program, worker(1, "(preflight=False)"))
    program.deploy(BROKEN)
    with pytest.raises(NotThereError, match="has died before"):
        restart(program.pid)
    assert program.wait_exit() == 1


def test_an_exec_that_fails_ends_the_connection(program: Program) -> None:
    launch(
        program,
        holding(
            1,
            top="import os",
            last="hotrestart.command.first.executable = '/nonexistent/python'\n"
            "    hotrestart.command.first.argv[0] = '/nonexistent/python'\n"
            "    os.execve = lambda *_: (_ for _ in ()).throw(OSError(7, 'too long'))",
        ),
    )
    with pytest.raises(NotThereError, match="has died before"):
        restart(program.pid)
    assert program.wait_exit() == 71
    assert not names_of(program.pid)


def test_a_program_that_is_never_ready_is_waited_for_as_long_as_one_likes(program: Program) -> None:
    launch(program, worker(1))
    program.deploy(holding(2, first="wait_for('go on')"))
    with pytest.raises(TimedOutError, match="no answer from process"):
        restart(program.pid, timeout=1.0)
    program.wait_report(waits="go on")
    later = Asking(control.status, program.pid)
    assert later.result()["state"] == "starting"
    (program.folder / "go on").touch()
    program.wait_report(ready=2)
    assert program.stop() == 0


# -- who asks ----------------------------------------------------------------------------------------------------------


def test_an_asker_that_hangs_up_is_forgotten(program: Program) -> None:
    launch(program, holding(1, options="(preflight=False)", last="wait_for('go on')"))
    with Visitor(program.pid) as gone:
        gone.ask("restart")
        program.wait_report(waits="go on")
    with Visitor(program.pid) as stays:
        stays.ask("restart")
        wait_state(program, stage="drain")  # who asks for this is heard later
        (program.folder / "go on").touch()
        *_, last = stays.lines()
    assert last["outcome"]["generation"] == 2
    assert wait_state(program, state="serving")["generation"] == 2


def test_who_asks_while_the_new_generation_starts_gets_one_that_is_newer(program: Program) -> None:
    """What it has deployed since is not in the code that is being loaded."""
    launch(program, worker(1))
    program.deploy(holding(2, first="wait_for('go on')"))
    first = Asking(restart, program.pid)
    program.wait_report(waits="go on")
    program.deploy(worker(3))
    second = Asking(restart, program.pid)
    wait_state(program, state="starting")
    program.wait_until(lambda: control.status(program.pid)["stage"] not in ("load", "ready"), "it has been asked")
    (program.folder / "go on").touch()
    assert first.result().ok
    assert second.result().generation == 3
    assert program.wait_report(ready=3)["version"] == 3


def test_who_asks_while_the_new_generation_starts_is_told_of_a_refusal(program: Program) -> None:
    launch(program, worker(1))
    program.deploy(holding(2, first="wait_for('go on')"))
    first = Asking(restart, program.pid)
    program.wait_report(waits="go on")
    program.deploy(BROKEN)
    outcome = restart(program.pid)
    assert not outcome.ok
    assert "the new code is broken" in outcome.reason
    assert not first.is_over
    (program.folder / "go on").touch()
    assert first.result().ok
    assert first.result().generation == 2


def test_a_refusal_is_not_told_to_who_has_asked_later(program: Program) -> None:
    launch(program, worker(1))
    program.deploy("import os, time\nwhile not os.path.exists('go on'): time.sleep(0.005)\n" + BROKEN)
    first = Asking(restart, program.pid)
    program.wait_until(lambda: children_of(program.pid), "a preflight")
    wait_state(program, stage="preflight")
    program.deploy(worker(2))
    second = Asking(restart, program.pid)
    assert second.result().ok
    assert first.result().ok  # its preflight was overtaken: the newest code counts
    assert program.wait_report(ready=2)["version"] == 2


def test_fifty_who_ask_at_any_moment_are_all_told_the_truth(program: Program, full: bool) -> None:
    """Whoever is told "ok" is served by a generation that has begun to load after the request."""
    source = "import time\nLOADS = time.monotonic()\n" + worker(1).replace(
        "report(ready=hotrestart.state.generation", "report(loads=LOADS, ready=hotrestart.state.generation"
    )
    launch(program, source)
    told: list[tuple[float, Outcome]] = []
    ends = threading.Event()

    def ask_again_and_again(seed: int) -> None:
        chance = random.Random(seed)
        while not ends.wait(chance.random() * 0.5):
            asked = time.monotonic()
            told.append((asked, restart(program.pid)))

    askings = [Asking(ask_again_and_again, seed) for seed in range(50)]
    program.wait_until(lambda: len(program.reports()) > (20 if full else 8), "many restarts", 2 * PATIENCE)
    ends.set()
    for each in askings:
        each.result()
    program.wait_report(ready=max(outcome.generation for _, outcome in told))
    loads = {int(str(each["ready"])): float(str(each["loads"])) for each in program.reports() if "loads" in each}
    assert len(told) >= 50
    for asked, outcome in told:
        assert outcome.ok, outcome
        assert loads[outcome.generation] > asked


def test_hup_and_control_mix(program: Program) -> None:
    launch(program, worker(1))
    for version in range(2, 12):
        program.deploy(worker(version))
        program.hup()
        outcome = restart(program.pid)
        assert outcome.ok
        program.hup()
        reports = program.wait_report(ready=outcome.generation)
        assert reports["version"] == version


# -- stop and restart --------------------------------------------------------------------------------------------------


def test_a_stop_beats_a_restart_that_drains(program: Program) -> None:
    launch(program, holding(1, last="wait_for('go on')"))
    asking = Asking(restart, program.pid)
    program.wait_report(waits="go on")
    stopping = Asking(control.stop, program.pid, timeout=PATIENCE)
    wait_state(program, state="stopping")
    (program.folder / "go on").touch()
    stopping.result()
    outcome = asking.result()
    assert not outcome.ok
    assert outcome.stage == "stop"
    assert program.wait_exit() == 0
    assert len(program.reports(ready=2)) == 0


def test_a_stop_beats_a_restart_at_its_very_end(program: Program, tmp_path: Path) -> None:
    """main() has returned, and exit handlers run."""
    pidfile = str(tmp_path / "pid")
    top = "import atexit\natexit.register(lambda: wait_for('go on'))"
    launch(program, holding(1, top=top, options=f"(pidfile={pidfile!r})"))
    asking = Asking(restart, program.pid)
    program.wait_report(waits="go on")
    program.term()
    wait_state(program, state="stopping")
    (program.folder / "go on").touch()
    try:
        assert not asking.result().ok
    except NotThereError:
        pass  # true as well
    assert program.wait_exit() == 0
    assert len(program.reports(ready=2)) == 0
    assert not os.path.exists(pidfile)
    assert not names_of(program.pid)


def test_a_restart_of_a_program_that_stops_is_refused(program: Program) -> None:
    launch(program, holding(1, last="wait_for('go on')"))
    program.term()
    program.wait_report(waits="go on")
    outcome = restart(program.pid)
    assert not outcome.ok
    assert outcome.stage == "stop"
    (program.folder / "go on").touch()
    assert program.wait_exit() == 0


def test_a_preflight_that_is_stopped_tells_its_asker(program: Program) -> None:
    launch(program, worker(1))
    program.deploy("import time\ntime.sleep(1000)\n")
    asking = Asking(restart, program.pid)
    wait_state(program, stage="preflight")
    program.term()
    outcome = asking.result()
    assert (outcome.ok, outcome.stage) == (False, "stop")
    assert program.wait_exit() == 0


# -- whatever the main thread does -------------------------------------------------------------------------------------

JOBS = {
    "python": "sum(range(1000))",
    "time.sleep": "time.sleep(0.2)",
    "lock": "__import__('threading').Lock().acquire() and lock.acquire(timeout=0.2)",
    "select": "__import__('select').select([], [], [], 0.2)",
    "recv": "receive()",
    "subprocess": "__import__('subprocess').run(['sleep', '0.2'])",
}


@pytest.mark.parametrize("job", JOBS)
def test_it_answers_whatever_the_main_thread_does(program: Program, job: str) -> None:
    top = """
import socket, threading
lock = threading.Lock()
lock.acquire()
here, there = socket.socketpair()
def receive():
    here.settimeout(0.2)
    try:
        here.recv(1)
    except TimeoutError:
        pass
"""
    launch(program, holding(1, top=top, job=JOBS[job]))
    for generation in range(2, 5):
        assert wait_heard(program)["state"] == "serving"
        assert restart(program.pid).generation == generation


@pytest.mark.parametrize(
    "job",
    ["time.sleep(1000)", "lock.acquire()", "here.recv(1)", "select.select([], [], [])"],
    ids=["sleep", "lock", "recv", "select"],
)
def test_status_of_a_main_thread_that_blocks_for_ever(program: Program, job: str) -> None:
    top = "import select, socket, threading\nlock = threading.Lock()\nlock.acquire()\nhere, there = socket.socketpair()"
    launch(program, holding(1, "(grace=0.2, preflight=False)", top=top, job=f"report(blocks=1); {job}"))
    program.wait_report(blocks=1)
    assert wait_heard(program)["state"] == "serving"
    program.deploy(worker(2, "(preflight=False)"))
    outcome = restart(program.pid)
    assert outcome.ok
    assert program.wait_report(ready=2)


def test_the_signal_finds_the_main_thread_among_many(program: Program) -> None:
    top = "import threading\nfor _ in range(50): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()"
    launch(program, holding(1, top=top, job="time.sleep(0.2)"))
    for generation in range(2, 5):
        assert wait_heard(program)["generation"] == generation - 1
        assert restart(program.pid).generation == generation


def test_h17_a_signal_that_nobody_notices_is_sent_once_more(program: Program) -> None:
    """It came in the last instruction before a system call, and its handler runs after that."""
    top = """
from hotrestart.control.signalled import SignalDriven
heard, signals = SignalDriven.nudge, []
def nudge(self):
    signals.append(len(signals))
    if len(signals) > 2:
        heard(self)
SignalDriven.nudge = nudge"""
    launch(program, holding(1, top=top))
    status = control.status(program.pid, timeout=PATIENCE)
    assert (status["state"], status["generation"]) == ("serving", 1)
    assert program.stop() == 0


def test_asyncio(program: Program) -> None:
    source = """
import asyncio, hotrestart
@hotrestart.restartable
async def main():
    with hotrestart.worker_loop() as loop:
        asked = asyncio.Event()
        asyncio.get_running_loop().add_reader(loop.fileno(), asked.set)
        report(ready=hotrestart.state.generation)
        await asked.wait()
if __name__ == "__main__":
    asyncio.run(main())
"""
    launch(program, source)
    for generation in range(2, 5):
        assert wait_heard(program)["state"] == "serving"
        assert restart(program.pid).generation == generation
    control.stop(program.pid)
    assert program.wait_exit() == 0
    assert "Traceback" not in program.log()


def test_a_handler_of_the_program_s_own_keeps_its_signal(program: Program) -> None:
    top = "import signal\nsignal.signal(signal.SIGURG, lambda *_: report(urged=True))"
    launch(program, holding(1, top=top))
    for generation in range(2, 5):
        assert wait_heard(program)["state"] == "serving"
        assert restart(program.pid).generation == generation
    assert not program.reports(urged=True)
    os.kill(program.pid, signal.SIGURG)
    program.wait_report(urged=True)
    assert wait_heard(program)["state"] == "serving"


def test_a_handler_may_come_and_go_with_a_version(program: Program) -> None:
    top = "import signal\nsignal.signal(signal.SIGURG, lambda *_: report(urged=True))"
    launch(program, worker(1))
    for generation in range(2, 8):
        program.deploy(holding(generation, top=top if generation % 2 == 0 else ""))
        assert restart(program.pid).generation == generation
        assert wait_heard(program)["state"] == "serving"
    assert not program.reports(urged=True)


# -- children ----------------------------------------------------------------------------------------------------------


def unix_sockets_of(pid: int) -> set[str]:
    return set(open_files(pid).values()) & {
        f"socket:[{each.split()[6]}]" for each in Path("/proc/net/unix").read_text().splitlines()[1:]
    }


FORKS = {
    "os.fork": "os.fork() or (time.sleep(1000), os._exit(0))",
    "multiprocessing": "multiprocessing.get_context('fork').Process(target=time.sleep, args=(1000,)).start()",
    "subprocess": "subprocess.Popen(['sleep', '1000'], close_fds=False)",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", FORKS)
def test_a_child_holds_nothing_of_it(program: Program, how: str) -> None:
    top = "import multiprocessing, subprocess"
    launch(program, holding(1, "(preflight=False)", top=top, last=f"wait_for('fork'); {FORKS[how]}; wait_for('never')"))
    with Visitor(program.pid) as silent, Visitor(program.pid) as half:
        half.send(b'{"request": ')
        asking = Asking(restart, program.pid)
        program.wait_report(waits="fork")
        wait_state(program, stage="drain")
        (program.folder / "fork").touch()
        program.wait_report(waits="never")
        (child,) = children_of(program.pid)
        try:
            program.wait_until(lambda: not unix_sockets_of(child), "the child has closed them")
            program.process.kill()  # type: ignore[union-attr]
            with pytest.raises(NotThereError, match="has died"):
                asking.result()
            assert silent.line() is None  # the end of the connection, although the child lives on
            assert half.line() is None
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


# -- nothing is left ---------------------------------------------------------------------------------------------------


def test_nobody_there_no_thread(program: Program) -> None:
    launch(program, worker(1))
    with Visitor(program.pid) as visitor:
        program.wait_until(lambda: threads_of(program.pid) == 2, "a thread that serves")
        visitor.ask("status")
        assert visitor.line() is not None
    program.wait_until(lambda: threads_of(program.pid) == 1, "no thread")


def test_many_restarts_leave_nothing(program: Program, full: bool) -> None:
    launch(program, worker(1))
    assert restart(program.pid).ok
    program.wait_until(lambda: threads_of(program.pid) == 1, "no thread")
    before = len(program.fds())
    for _ in range(100 if full else 25):
        assert restart(program.pid).ok
    program.wait_until(lambda: threads_of(program.pid) == 1, "no thread")
    program.wait_until(lambda: len(program.fds()) == before, "no descriptor is left")
    assert children_of(program.pid) == []


def test_control_false_is_no_socket(program: Program) -> None:
    launch(program, worker(1, "(control=False)"))
    with pytest.raises(NotThereError, match="control=False"):
        control.status(program.pid)
    assert not names_of(program.pid)
    program.deploy(worker(2))
    program.hup()
    program.wait_report(ready=2)
    assert wait_heard(program)["generation"] == 2
    program.deploy(worker(3, "(control=False)"))
    outcome = restart(program.pid)
    assert outcome.ok
    program.wait_until(lambda: not names_of(program.pid), "no socket any more")
    assert restart_by_hup(program, 4)


def restart_by_hup(program: Program, generation: int) -> bool:
    program.hup()
    return bool(program.wait_report(ready=generation))


def test_a_program_that_closes_every_descriptor_restarts_all_the_same(program: Program) -> None:
    """Nobody can be told any more, but the service goes on, and has a control socket again."""
    job = (
        "os.closerange(3, 256); report(closed=1)\n            while not hotrestart.state.should_stop: time.sleep(0.01)"
    )
    launch(program, holding(1, job=job))
    program.wait_report(closed=1)
    program.deploy(worker(2))
    program.hup()
    assert program.wait_report(ready=2)["version"] == 2
    assert wait_heard(program)["generation"] == 2


def test_control_moves_with_a_restart(program: Program, tmp_path: Path) -> None:
    paths: list[Any] = [True, str(tmp_path / "one"), str(tmp_path / "two"), True]
    launch(program, worker(0, f"(control={paths[0]!r})"))
    for generation, path in enumerate(paths[1:], 2):
        program.deploy(worker(generation, f"(control={path!r})"))
        assert restart(program.pid).ok
        assert wait_heard(program, program.pid if path is True else path)["generation"] == generation
        assert wait_heard(program)["generation"] == generation
        assert len(names_of(program.pid)) == 1
        for other in paths:
            assert isinstance(other, bool) or other == path or not os.path.lexists(other)


def test_a_path_that_cannot_be_had_at_a_restart_is_no_reason_to_leave_anybody_waiting(
    program: Program, tmp_path: Path
) -> None:
    launch(program, worker(1))
    program.deploy(worker(2, f"(control={str(tmp_path / 'not' / 'there')!r})"))
    assert restart(program.pid).generation == 2
    assert "a control socket cannot be at" in program.log()
    program.deploy(worker(3))
    assert restart(program.pid).generation == 3


def test_a_path_that_cannot_be_is_an_error_at_the_start(program: Program, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    options = f"(control={str(tmp_path / 'not' / 'there')!r}, pidfile={str(pidfile)!r})"
    program.deploy(worker(1, options))
    program.start()
    assert program.wait_exit() == 1
    assert "AddressError: a control socket cannot be at" in program.log()
    assert not pidfile.exists()


def test_two_programs_cannot_be_controlled_at_the_same_path(program: Program, tmp_path: Path) -> None:
    path = str(tmp_path / "c.sock")
    launch(program, worker(1, f"(control={path!r})"))
    with Program(tmp_path / "second") as second:
        second.deploy(worker(1, f"(control={path!r})"))
        second.start()
        assert second.wait_exit() == 1
        assert f"another program is controlled at '{path}'" in second.log()
    assert wait_heard(program, path)["pid"] == program.pid


@pytest.mark.parametrize("number", range(3))
def test_of_programs_that_start_together_one_is_controlled_there(tmp_path: Path, number: int) -> None:
    path = str(tmp_path / f"{number}.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    programs = [Program(tmp_path / str(each)) for each in range(8)]
    try:
        for each in programs:
            each.deploy(worker(1, f"(control={path!r})"))
            each.start()
        deadline = time.monotonic() + PATIENCE
        while sum(each.process.poll() is not None for each in programs) < 7:  # type: ignore[union-attr]
            assert time.monotonic() < deadline, [each.log() for each in programs]
            time.sleep(0.01)
        (left,) = [each for each in programs if each.process.poll() is None]  # type: ignore[union-attr]
        assert wait_heard(left, path)["pid"] == left.pid
    finally:
        for each in programs:
            each.__exit__()


def test_a_block_without_the_decorator_has_a_socket_as_long_as_it_lasts(program: Program) -> None:
    source = """
import hotrestart, os, time
with hotrestart.worker_loop() as loop:
    report(ready=hotrestart.state.generation)
    while loop.running and not os.path.exists("leave"):
        loop.sleep(0.01)
report(left=hotrestart.state.reason)
while hotrestart.state.reason != "restart" and not os.path.exists("end"):
    time.sleep(0.01)
"""
    launch(program, source)
    assert restart(program.pid).generation == 2
    assert wait_heard(program)["state"] == "serving"
    (program.folder / "leave").touch()
    program.wait_report(left=None)
    assert not names_of(program.pid)
    with pytest.raises(NotThereError):
        control.status(program.pid)
    os.kill(program.pid, signal.SIGURG)
    (program.folder / "end").touch()
    assert program.wait_exit() == 0


# -- under attack ------------------------------------------------------------------------------------------------------


def test_hundreds_of_clients_under_a_busy_main_thread(program: Program, full: bool) -> None:
    launch(program, holding(1, job="sum(range(100))"))
    before = len(program.fds())
    for _ in range(2000 if full else 200):
        with Visitor(program.pid) as visitor:
            assert visitor.ask("status").line()["status"]["state"] == "serving"  # type: ignore[index]
    program.wait_until(lambda: threads_of(program.pid) == 1, "no thread")
    program.wait_until(lambda: len(program.fds()) <= before, "as many descriptors as before")
    assert restart(program.pid).ok


def test_a_storm(program: Program, full: bool) -> None:
    """Whatever comes, in whatever order: the program serves, and the last request leads to the newest code."""
    launch(program, worker(1))
    chance = random.Random(7)
    silent: list[Visitor] = []
    askings: list[Asking] = []
    version = 1
    ends = time.monotonic() + (8 if full else 4)
    while time.monotonic() < ends:
        what = chance.choice(["hup", "restart", "status", "garbage", "silent", "broken", "good", "gone", "pause"])
        if what == "hup":
            program.hup()
        elif what == "restart":
            askings.append(Asking(restart, program.pid))
        elif what == "status":
            askings.append(Asking(control.status, program.pid, timeout=PATIENCE))
        elif what == "garbage":
            with Visitor(program.pid) as visitor:
                try:
                    visitor.send(chance.choice(GARBAGE))
                except OSError:
                    pass
        elif what == "silent":
            silent.append(Visitor(program.pid))
        elif what == "broken":
            program.deploy(ON_TRIAL + worker("broken"))  # what is broken after a preflight has passed is another matter
        elif what == "good":
            version += 1
            program.deploy(worker(version))
        elif what == "gone":
            with Visitor(program.pid) as visitor:
                visitor.ask("restart")
        else:
            time.sleep(chance.random() * 0.2)
        assert program.process.poll() is None, program.log()  # type: ignore[union-attr]
    program.deploy(worker("last"))
    outcome = restart(program.pid)
    assert outcome.ok, outcome
    for each in askings:
        try:
            each.result()
        except HotRestartError as error:
            if "others are waiting" not in str(error):
                raise
    assert program.wait_report(ready=outcome.generation)["version"] == "last"
    for visitor in silent:
        visitor.close()
    program.wait_until(lambda: threads_of(program.pid) == 1, "no thread")
    assert children_of(program.pid) == []
    control.stop(program.pid)
    assert program.wait_exit() == 0
    assert "Exception" not in program.log().replace("RuntimeError", ""), program.log()
