"""A rolling program, asked over its control socket: the supervisor's loop serves it."""

from __future__ import annotations

import os
import random
import selectors
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hotrestart import Outcome, control
from hotrestart.control import whereabouts
from hotrestart.errors import ControlError, NotThereError
from hotrestart.options import Options
from hotrestart.rolling.desk import Desk
from tests.control.asking import Asking, Visitor, names_of, wait_heard, wait_state
from tests.harness import PATIENCE, copy_library, open_files
from tests.rolling.programs import Rolling, Traffic, service

pytestmark = pytest.mark.core

BROKEN = "raise RuntimeError('the new code is broken')"


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Rolling]:
    with Rolling(tmp_path / "program") as each:
        yield each


def restart(target: int | str, **more: Any) -> Outcome:
    return control.restart(target, **{"timeout": PATIENCE, **more})


def wait_answer(program: Rolling, version: str) -> None:
    """Old workers, which have just been told to drain, may take a job yet."""
    program.wait_until(lambda: program.ask()[1] == version, f"an answer of {version}")


def test_a_restart_is_told_when_the_new_generation_serves(program: Rolling) -> None:
    program.launch(service())
    program.deploy(service(2))
    stages: list[tuple[str, int]] = []
    outcome = restart(program.pid, on_stage=lambda stage, generation: stages.append((stage, generation)))
    assert outcome.ok
    assert (outcome.generation, outcome.pid, outcome.stage) == (2, program.pid, "commit")
    wait_answer(program, "2")
    assert [stage for stage, _ in stages][:2] == ["load", "ready"]
    assert {generation for _, generation in stages} == {2}
    assert set(outcome.stages) >= {"load", "ready"}
    assert wait_heard(program)["last"]["ok"]


@pytest.mark.parametrize(
    ("source", "stage"),
    [(BROKEN, "load"), (service(2, first="raise RuntimeError('the new code is broken')"), "ready")],
    ids=["load", "ready"],
)
def test_broken_code_is_told_with_its_reason(program: Rolling, source: str, stage: str) -> None:
    program.launch(service())
    program.deploy(source)
    outcome = restart(program.pid)
    assert not outcome.ok
    assert outcome.stage == stage
    assert outcome.generation == 2
    assert "RuntimeError: the new code is broken" in outcome.reason
    assert outcome.detail.rstrip().endswith("RuntimeError: the new code is broken")
    status = wait_state(program, generation=1, state="serving")
    assert status["last"]["reason"] == outcome.reason
    program.deploy(service(3))
    assert restart(program.pid).ok
    wait_answer(program, "3")


def test_a_stop_is_over_when_all_are_gone(program: Rolling) -> None:
    program.launch(service())
    program.connect("hold go").close()
    program.wait_report(job="hold go")
    asking = Asking(control.stop, program.pid, timeout=PATIENCE)
    wait_state(program, state="stopping")
    assert not asking.is_over
    (program.folder / "go").touch()
    asking.result()
    assert program.wait_exit() == 0
    assert not names_of(program.pid)
    program.wait_gone()


def test_status_and_scale(program: Rolling) -> None:
    program.launch(service())
    status = wait_state(program, state="serving")
    assert status["kind"] == "rolling"
    assert status["pid"] == program.pid
    assert status["wanted"] == 2
    assert {each["pid"] for each in status["workers"]} == program.wait_workers(2)
    assert control.scale(program.pid, by=1) == 3
    program.wait_workers(3)
    assert control.scale(program.pid, to=1) == 1
    program.wait_workers(1)
    assert control.scale(program.pid, to=1) == 1
    for wrong in ({"by": -1}, {"to": 0}, {"to": 5000}):
        with pytest.raises(ControlError, match="1 to 2048 workers"):
            control.scale(program.pid, **wrong)
    wait_state(program, wanted=1)


def test_of_two_who_ask_for_as_many_workers_at_once_neither_is_told_what_is_not_so(program: Rolling) -> None:
    program.launch(service())
    program.send_signal(signal.SIGSTOP)
    with Visitor(program.pid) as one, Visitor(program.pid) as other:
        for each in (one, other):
            each.ask("scale", to=4)
        program.send_signal(signal.SIGCONT)
        assert (one.line(), other.line()) == ({"workers": 4}, {"workers": 4})
    assert control.status(program.pid)["wanted"] == 4
    program.wait_workers(4)


def test_who_asks_during_a_restart_gets_the_next_one(program: Rolling) -> None:
    program.launch(service())
    program.deploy(service(2, first="wait_for('go')"))
    first = Asking(restart, program.pid)
    wait_state(program, stage="ready", state="restarting", generation=1)
    program.deploy(service(3))
    with ExitStack() as stack:
        later = [stack.enter_context(Visitor(program.pid)).ask("restart") for _ in range(3)]
        wait_heard(program)  # and so were they, who came before
        assert not first.is_over
        (program.folder / "go").touch()
        assert first.result().generation == 2
        assert [each.lines()[-1]["outcome"]["generation"] for each in later] == [3, 3, 3]
    wait_answer(program, "3")


def test_many_who_ask_at_any_moment_are_told_the_truth(program: Rolling) -> None:
    """Whoever is told "ok" is served by a generation that has begun to load after the request."""
    program.launch(service(top="told(loads=time.monotonic())"))
    told: list[tuple[float, Outcome]] = []
    ends = threading.Event()

    def ask_again_and_again(seed: int) -> None:
        chance = random.Random(seed)
        while not ends.wait(chance.random() * 0.5):
            asked = time.monotonic()
            told.append((asked, restart(program.pid)))

    askings = [Asking(ask_again_and_again, seed) for seed in range(20)]
    program.wait_until(
        lambda: len(program.told("loads")) > 6 and len(told) >= 20, "some restarts, and outcomes", 2 * PATIENCE
    )
    ends.set()
    for each in askings:
        each.result()
    loads = {int(str(each["generation"])): float(str(each["loads"])) for each in program.reports() if "loads" in each}
    assert len(told) >= 20
    for asked, outcome in told:
        assert outcome.ok, outcome
        assert loads[outcome.generation] > asked


def test_a_supervisor_that_is_killed_answers_by_its_end(program: Rolling) -> None:
    program.launch(service())
    program.deploy(service(2, "workers=2, grace=1", first="wait_for('never')"))
    asking = Asking(restart, program.pid)
    wait_state(program, stage="ready")
    with Visitor(program.pid) as silent:
        program.kill_supervisor()
        with pytest.raises(NotThereError, match=f"process {program.pid} has died"):
            asking.result()
        assert silent.line() is None
    program.wait_gone()


def test_a_stop_during_a_restart_is_told(program: Rolling) -> None:
    program.launch(service())
    program.deploy(service(2, "workers=2, grace=1", first="wait_for('never')"))
    asking = Asking(restart, program.pid)
    wait_state(program, stage="ready")
    control.stop(program.pid, timeout=PATIENCE)
    outcome = asking.result()
    assert not outcome.ok
    assert outcome.stage == "stop"
    assert program.wait_exit() == 0


def test_a_program_whose_workers_all_die_does_not_serve(program: Rolling) -> None:
    program.launch(service())
    assert control.status(program.pid)["state"] == "serving"
    program.deploy(service(2, "workers=2", first="hotrestart.ready(); wait_for('die'); os._exit(3)"))
    program.hup()
    program.wait_log("generation 2 serves")
    (program.folder / "die").touch()
    wait_state(program, state="starting", generation=2)
    program.reload(service(3), expect=3)
    wait_state(program, state="serving", generation=3)


def test_nobody_but_the_supervisor_holds_the_connections(program: Rolling) -> None:
    program.launch(service())
    with Visitor(program.pid):
        assert restart(program.pid).ok
        program.wait_until(lambda: len(program.members()) == 4, "the old ones have gone")
        own = set(open_files(program.pid).values())
        unix = {
            f"socket:[{line.split()[6]}]"
            for line in Path("/proc/net/unix").read_text().splitlines()[1:]
            if ".sock" in line
        }
        control_sockets = own & unix
        assert control_sockets
        for pid in program.members() - {program.pid}:
            assert not control_sockets & set(open_files(pid).values())


def test_under_attack_nothing_is_lost(program: Rolling) -> None:
    program.launch(service())
    assert restart(program.pid).ok
    program.wait_workers(2)
    before = program.fds()
    chance = random.Random(3)
    silent: list[Visitor] = []
    ends = time.monotonic() + 3
    restarts = 0
    with Traffic(program):
        asking = Asking(restart, program.pid)
        while time.monotonic() < ends or not restarts or not asking.is_over:
            if asking.is_over and (time.monotonic() < ends or not restarts):
                assert asking.result().ok
                restarts += 1
                asking = Asking(restart, program.pid)
            time.sleep(0.002)
            visitor = Visitor(program.pid)
            try:
                visitor.send(chance.choice([b"", b"\n", b"{", b"\0" * 9000, b"x" * 100_000, b'{"request": "restart"']))
            except OSError:
                pass
            if chance.random() < 0.5:
                silent.append(visitor)
            else:
                visitor.close()
        assert asking.result().ok
    assert restarts
    for each in silent:
        each.close()
    assert wait_heard(program)["state"] == "serving"
    program.wait_until(
        lambda: len(program.fds()) <= len(before), f"no descriptor is left: {before} and now {program.fds()}"
    )


@pytest.mark.parametrize("kind", ["path", "place"])
def test_the_socket_and_the_pid_file_go_along_when_the_supervisor_moves(
    program: Rolling, tmp_path: Path, kind: str
) -> None:
    """Its exec: here to another copy of the library."""
    lib = program.folder / "lib"
    for name in ("one", "two"):
        package = copy_library(program.folder / name)
        source = (package / "__init__.py").read_text()
        (package / "__init__.py").write_text(source.replace('__version__ = "', f'__version__ = "{name}.'))
    lib.symlink_to("one")
    path, pidfile = str(tmp_path / "c.sock"), tmp_path / "pid"
    options = f"workers=2, pidfile={str(pidfile)!r}" + (f", control={path!r}" if kind == "path" else "")
    program.launch(service(1, options), env={"PYTHONPATH": str(lib)})
    assert wait_heard(program)["hotrestart"].startswith("one")
    (program.folder / "new").symlink_to("two")
    (program.folder / "new").replace(lib)
    program.deploy(service(2, options))
    target = path if kind == "path" else program.pid
    inode = pidfile.stat().st_ino
    assert restart(target).generation == 2
    program.wait_until(lambda: wait_heard(program, target)["hotrestart"].startswith("two"), "an exec")
    status = wait_heard(program, target)
    assert (status["generation"], status["pid"]) == (2, program.pid)
    assert status["last"]["generation"] == 2
    assert restart(target).generation == 3
    assert pidfile.stat().st_ino == inode
    assert len(names_of(program.pid)) == 1
    assert program.stop() == 0
    assert not pidfile.exists()
    assert not os.path.lexists(path)
    assert not names_of(program.pid)


def test_the_socket_and_the_pid_file_move_with_a_commit(program: Rolling, tmp_path: Path) -> None:
    controls: list[Any] = [True, str(tmp_path / "one"), str(tmp_path / "two"), True]
    pidfiles = [None, tmp_path / "pid1", tmp_path / "pid2", None]

    def source(version: int) -> str:
        path, pidfile = controls[version - 1], pidfiles[version - 1]
        return service(version, f"workers=1, control={path!r}, pidfile={str(pidfile) if pidfile else None!r}")

    program.launch(source(1), ready=1)
    for version in (2, 3, 4):
        program.deploy(source(version))
        assert restart(program.pid).generation == version
        path, pidfile = controls[version - 1], pidfiles[version - 1]
        if path is not True:
            program.wait_until(lambda path=path: os.path.exists(path), "the new socket")  # type: ignore[misc]
        program.wait_until(
            lambda path=path: (
                not [each for each in controls if each is not True and each != path and os.path.exists(each)]
            ),  # type: ignore[misc]
            "the old socket is gone",
        )
        assert wait_heard(program, program.pid if path is True else path)["generation"] == version
        assert wait_heard(program)["generation"] == version
        assert [each for each in pidfiles if each and each.exists()] == ([pidfile] if pidfile else [])
        assert pidfile is None or pidfile.read_text().strip() == str(program.pid)


def test_control_false_takes_it_away_and_true_brings_it_back(program: Rolling) -> None:
    program.launch(service(1, "workers=1, control=False"), ready=1)
    with pytest.raises(NotThereError):
        control.status(program.pid)
    program.reload(service(2, "workers=1"), expect=2)
    assert wait_heard(program)["generation"] == 2
    program.deploy(service(3, "workers=1, control=False"))
    assert restart(program.pid).ok
    program.wait_until(lambda: not names_of(program.pid), "no socket any more")
    program.reload(service(4, "workers=1"), expect=4)
    assert wait_heard(program)["generation"] == 4


@pytest.mark.parametrize("wanted", [True, "/nonexistent/c.sock"])
def test_the_socket_stays_if_there_can_be_no_other(
    tmp_path: Path, wanted: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("folders", "candidates"):
        monkeypatch.setattr(whereabouts, name, lambda *_: [])
    path = str(tmp_path / "c.sock")
    with selectors.DefaultSelector() as watch:
        desk = Desk(SimpleNamespace(watch=watch))  # type: ignore[arg-type]
        desk.listen(path)
        desk.adopt(Options(workers=1, control=wanted))
        desk.look(time.monotonic())
        Visitor(path).close()
        desk.close()


def test_two_programs_cannot_be_controlled_at_the_same_path(program: Rolling, tmp_path: Path) -> None:
    path = str(tmp_path / "c.sock")
    program.launch(service(1, f"workers=1, control={path!r}"), ready=1)
    with Rolling(tmp_path / "second") as second:
        second.deploy(service(1, f"workers=1, control={path!r}"))
        second.start()
        assert second.wait_exit() == 1
        assert f"another program is controlled at '{path}'" in second.log()
        second.wait_gone()
    assert wait_heard(program, path)["pid"] == program.pid


HOST = """
import hotrestart, os, sys, time
supervisor = hotrestart.Supervisor([sys.executable, "service.py"], control="c.sock")
report(started=True)
status = supervisor.run()
supervisor.close()
report(status=status, fds=len(os.listdir("/proc/self/fd")))
while not os.path.exists("end"):
    time.sleep(0.01)
"""


def test_a_supervisor_within_a_host(program: Rolling) -> None:
    program.deploy(service(1), "service.py")
    program.deploy(HOST)
    program.start()
    program.wait_report(ready=True, count=2)
    path = str(program.folder / "c.sock")
    assert wait_heard(program, path)["pid"] == program.pid
    assert restart(path).generation == 2
    assert control.scale(path, by=1) == 3
    with Visitor(path) as silent:
        control.stop(path, timeout=PATIENCE)  # the program has ended, its host has not
        assert silent.line() is None
    program.wait_report(status=0)
    assert not os.path.exists(path)
    assert program.process is not None
    assert program.process.poll() is None
    (program.folder / "end").touch()
    assert program.wait_exit() == 0


def test_a_storm(program: Rolling, full: bool) -> None:
    """Whatever comes, in whatever order: the program serves, and the last request leads to the newest code."""
    program.launch(service())
    chance = random.Random(11)
    askings: list[Asking] = []
    silent: list[Visitor] = []
    ends = time.monotonic() + (6 if full else 3)
    with Traffic(program):
        while time.monotonic() < ends:
            what = chance.choice(["hup", "restart", "status", "garbage", "silent", "broken", "good", "scale", "pause"])
            if what == "hup":
                program.hup()
            elif what == "restart":
                askings.append(Asking(restart, program.pid))
            elif what == "status":
                askings.append(Asking(control.status, program.pid, timeout=PATIENCE))
            elif what == "scale":
                askings.append(Asking(control.scale, program.pid, to=chance.randint(1, 3), timeout=PATIENCE))
            elif what == "garbage":
                Visitor(program.pid).send(b"garbage\n").close()
            elif what == "silent":
                silent.append(Visitor(program.pid))
            elif what == "broken":
                program.deploy(BROKEN)
            elif what == "good":
                program.deploy(service(2))
            time.sleep(chance.random() * 0.1)
        program.deploy(service("last"))
        outcome = restart(program.pid)
    assert outcome.ok, outcome
    for each in askings:
        each.result()
    wait_answer(program, "last")
    for visitor in silent:
        visitor.close()
    program.assert_no_zombie()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_it_costs_no_thread(program: Rolling) -> None:
    program.launch(service())
    with Visitor(program.pid):
        wait_heard(program)
        assert len(os.listdir(f"/proc/{program.pid}/task")) == 1
    os.kill(program.pid, signal.SIGURG)
    assert wait_heard(program)["state"] == "serving"
