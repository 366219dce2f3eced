"""New code that does not work, in every way it can not work: the old goes on serving, and the log says why.

Each time an old worker is killed afterwards, to see that it is replaced from memory and not from the broken disk; then
the code is mended, and the next restart brings it.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotrestart.testing import Traffic as ServedTraffic
from tests.control.asking import wait_state
from tests.harness import PATIENCE
from tests.rolling.programs import Rolling, Traffic, answer_on, service


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Rolling]:
    with Rolling(tmp_path / "program") as each:
        yield each


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"

SOON_AFTER = """
def soon_after_it_was_ready(end):
    def run():
        wait_for("soaks")
        end()
    threading.Thread(target=run, daemon=True).start()
"""

BROKEN = {
    "a syntax error": ("def main(:\n", "load", "SyntaxError"),
    "a missing module": ("import missing_module\n", "load", "No module named 'missing_module'"),
    "raises at import": (service(2, top="raise RuntimeError('as it loads')"), "load", "RuntimeError: as it loads"),
    "hangs in import": (
        service(2, top="def stuck_here():\n    wait_for('never')\nstuck_here()"),
        "load",
        "did not reach main() within 6 s",
    ),
    "exits with 0 at import": (service(2, top="sys.exit(0)"), "load", "ended before it called main()"),
    "exits with a message": (service(2, top="sys.exit('no configuration')"), "load", "no configuration"),
    "is no program with workers": (service(2, "grace=5"), "load", "workers="),
    "never calls main": ("print('hello')\n", "load", "ended before it called main()"),
    "has a wrong option": (service(2, "workers=0"), "load", "OptionError"),
    "is killed as it loads": (service(2, top=KILLED), "load", "killed by signal 9"),
    "aborts as it loads": (service(2, top="os.abort()"), "load", "killed by signal 6"),
    "cannot bind": (service(2, address="203.0.113.1:1"), "ready", "203.0.113.1:1"),
    "cannot bind at import": (service(2, top="hotrestart.listen('203.0.113.1:1')"), "load", "203.0.113.1:1"),
    "raises in main": (service(2, first="raise RuntimeError('in main')"), "ready", "RuntimeError: in main"),
    "returns from main": (service(2, first="return"), "ready", "main() has returned"),
    "exits in main": (service(2, first="sys.exit(3)"), "ready", "sys.exit(3)"),
    "is killed at boot": (service(2, first=KILLED), "ready", "killed by signal 9"),
    "never gets ready": (
        service(2, "workers=2, ready_timeout=4.0", first="wait_for('never')"),
        "ready",
        "did not get ready within 4 s",
    ),
    "dies soon after it was ready": (
        service(2, "workers=2, soak=60.0", top=SOON_AFTER, first="soon_after_it_was_ready(lambda: " + KILLED + ")"),
        "soak",
        "killed by signal 9",
    ),
    "exits soon after it was ready": (
        service(2, "workers=2, soak=60.0", top=SOON_AFTER, first="soon_after_it_was_ready(lambda: os._exit(5))"),
        "soak",
        "ended with status 5",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("batch", ["", ", batch=1"])
def test_the_old_code_serves_on_and_heals_from_memory_until_the_code_is_mended(
    program: Rolling, how: str, batch: str
) -> None:
    source, stage, reason = BROKEN[how]
    old = "workers=2" + batch
    if how == "hangs in import":
        old += ", ready_timeout=6.0"  # the limit for the load is the old code's
    source = source.replace("@hotrestart.restartable(workers=2", "@hotrestart.restartable(workers=2" + batch)
    program.launch(service(1, old))
    before = program.wait_workers(2)
    with Traffic(program, forgiven=2 if stage == "soak" else 0) as traffic:
        program.deploy(source)
        program.hup()
        if stage == "soak":
            wait_state(program, stage="soak")
            (program.folder / "soaks").touch()
        log = program.wait_log("generation 2 failed")
        said = next(line for line in log.splitlines() if "generation 2 failed" in line)
        assert f"at stage {stage}: " in said
        assert reason in said
        # With batch an old worker may have been let go already: then another of its code stands in for it.
        after = program.wait_workers(2, version=1)
        if not batch:
            assert after == before
    assert traffic.versions() == {"1"} or stage == "soak"
    victim = after.pop()
    program.kill(victim)
    program.wait_workers(2, version=1, without={victim})
    program.wait_until(lambda: len(program.servers()) == 1, "nothing of the broken generation is left")
    program.reload(service(3), expect=3)
    program.wait_workers(2, version=3)
    assert program.ask()[1] == "3"
    program.assert_no_zombie()


def test_the_stack_of_a_hang_in_import_is_in_the_log(program: Rolling) -> None:
    program.launch(service(options="workers=2, ready_timeout=6.0"))
    program.deploy(BROKEN["hangs in import"][0])
    program.hup()
    program.wait_log("generation 2 failed")
    program.wait_until(lambda: "in stuck_here" in program.log(), "the stack")
    program.wait_until(lambda: len(program.servers()) == 1, "the stuck one is gone")


def test_the_stack_of_a_worker_that_never_gets_ready_is_in_the_log(program: Rolling) -> None:
    program.launch(service())
    program.deploy(
        service(2, "workers=1, ready_timeout=4.0", top="def stuck_here(): wait_for('never')", first="stuck_here()")
    )
    program.hup()
    program.wait_log("generation 2 failed")
    program.wait_until(lambda: "in stuck_here" in program.log(), "the stack")
    program.wait_until(lambda: len(program.servers()) == 1, "the stuck ones are gone")


def test_a_hang_that_ignores_every_signal_is_killed(program: Rolling) -> None:
    program.launch(service(options="workers=2, ready_timeout=6.0"))
    top = (
        "for n in (signal.SIGABRT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(n, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); wait_for('never')"
    )
    program.deploy(service(2, top=top))
    program.hup()
    program.wait_log("generation 2 failed")
    program.wait_until(lambda: len(program.servers()) == 1, "the stuck one is gone")
    assert program.ask()[1] == "1"


def test_what_the_broken_code_has_printed_is_quoted_below_the_reason(program: Rolling) -> None:
    program.launch(service())
    program.deploy(service(2, top="print('reading settings', file=sys.stderr); settings = {}; settings['colour']"))
    program.hup()
    log = program.wait_log("generation 2 failed")
    assert "generation 2 failed at stage load: KeyError: 'colour'" in log
    program.wait_until(lambda: "    reading settings" in program.log().split("generation 2 failed")[1], "the quotation")
    assert "Traceback" in program.log().split("generation 2 failed")[1]


def test_the_traceback_of_a_worker_that_raises_is_quoted(program: Rolling) -> None:
    program.launch(service())
    program.deploy(service(2, first="raise RuntimeError('in main')"))
    program.hup()
    program.wait_until(lambda: "in main\n" in "".join(program.log().split("generation 2 failed")[1:]), "the traceback")
    assert "Traceback" in program.log().split("generation 2 failed")[1]


BRIEFLY = """
def as_long_as_it_lives(loop, listener):
    found = loop.wait(listener, timeout=0.02)
    if VERSION == 2 and os.path.exists("soaks"):
        {end}  # with nothing in hand: what is in the queue belongs to all
    return found
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise RuntimeError('late')"])
def test_the_old_code_serves_everybody_while_the_new_dies_soon_after_it_was_ready(program: Rolling, end: str) -> None:
    def briefly(version: int, options: str) -> str:
        source = service(version, options, top=BRIEFLY.format(end=end))
        return source.replace("in loop.wait(listener)", "in as_long_as_it_lives(loop, listener)")

    program.launch(briefly(1, "workers=2"))
    before = program.wait_workers(2)
    address = tuple(program.told("address")[0])

    def ask(_: int) -> str:
        with socket.create_connection(address, PATIENCE) as connection:
            connection.sendall(b"who\n")
            return answer_on(connection)[1]

    with ServedTraffic(ask, clients=4) as traffic:
        traffic.wait_for("1")
        program.deploy(briefly(2, "workers=2, soak=60"))
        program.hup()
        wait_state(program, stage="soak")
        traffic.wait_for("2")
        (program.folder / "soaks").touch()
        program.wait_log("generation 2 failed at stage soak")
        program.wait_until(lambda: len(program.servers()) == 1, "nothing of the broken generation is left")
        traffic.wait_for("1")
    traffic.check()
    assert {each.answer for each in traffic.answers} == {"1", "2"}
    assert program.wait_workers(2) == before


def test_with_batch_a_late_failure_puts_the_old_workers_back(program: Rolling) -> None:
    """The third new worker raises, when two old ones have been let go."""
    options = "workers=3, batch=1"
    program.launch(service(1, options), ready=3)
    before = program.wait_workers(3)
    first = "told(boot=True); len(program_reports()) < 3 or sys.exit('the third one')"
    top = (
        "def program_reports(): return [l for l in open(os.environ['REPORT']) if 'boot' in l and '\"version\": 2' in l]"
    )
    with Traffic(program):
        program.deploy(service(2, options, top=top, first=first))
        program.hup()
        log = program.wait_log("generation 2 failed at stage ready")
        assert "the third one" in log.split("generation 2 failed at stage ready")[1]
        after = program.wait_workers(3, version=1)
        assert len(after & before) <= 2  # some are new, of the old code
        program.wait_until(lambda: len(program.servers()) == 1, "the new generation is gone")
    assert len(program.reports(imported=True, version=1)) == 1


def test_one_broken_restart_after_another_changes_nothing(program: Rolling) -> None:
    program.launch(service())
    before = program.wait_workers(2)
    with Traffic(program) as traffic:
        for number, how in enumerate(list(BROKEN)[:3] * 3):
            program.deploy(BROKEN[how][0])
            program.hup()
            program.wait_log(f"generation {number + 2} failed")
    assert traffic.versions() == {"1"}
    assert program.wait_workers(2) == before
    assert program.servers() == [program.servers()[0]]


def test_a_deleted_program_is_no_reason_to_stop_serving(program: Rolling) -> None:
    program.launch(service())
    (program.folder / "app.py").unlink()
    program.hup()
    program.wait_log("generation 2 failed at stage load")
    victim = program.workers()[0]
    program.kill(victim)
    program.wait_workers(2, version=1, without={victim})


def test_a_deleted_interpreter_is_no_reason_to_stop_serving(program: Rolling, tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(program.python)
    program.deploy(service())
    program.start_command([str(link), "app.py"])
    program.wait_report(ready=True, count=2)
    link.unlink()
    program.hup()
    program.wait_log("generation 2 failed at stage load")
    victim = program.workers()[0]
    program.kill(victim)
    program.wait_workers(2, version=1, without={victim})
    link.symlink_to(program.python)
    program.reload(service(3), expect=3)


# -- the very first generation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (service(top="raise RuntimeError('as it loads')"), "RuntimeError: as it loads"),
        (service(first="raise RuntimeError('in main')"), "RuntimeError: in main"),
        (service(first="sys.exit('no configuration')"), "no configuration"),
        (service(first=KILLED), "killed by signal 9"),
        (service(address="203.0.113.1:1"), "203.0.113.1:1"),
        (service(options="workers=2, ready_timeout=4.0", first="wait_for('never')"), "did not get ready within 4 s"),
        (service(options="workers=2, soak=60.0", first="threading.Timer(0.7, os._exit, (3,)).start()"), "status 3"),
    ],
)
def test_a_first_generation_that_cannot_start_ends_the_program_with_1_and_its_error(
    program: Rolling, source: str, said: str
) -> None:
    program.deploy(source)
    program.start()
    assert program.wait_exit() == 1
    assert said in program.log()
    program.wait_gone()


def test_the_error_of_a_first_generation_with_threads_is_printed(program: Rolling) -> None:
    """Its fork server is a fresh interpreter."""
    top = "threading.Thread(target=time.sleep, args=(0,), daemon=True).start() or wait_for('.')\n"
    top += "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    program.deploy(service(top=top, first="raise RuntimeError('in main')"))
    program.start()
    assert program.wait_exit() == 1
    assert "RuntimeError: in main" in program.log()


def test_a_restart_asked_for_while_the_first_generation_fails_does_not_keep_it_alive(program: Rolling) -> None:
    program.deploy(service(first="told(boot=True); wait_for('gate'); sys.exit(3)"))
    program.start()
    program.wait_report(boot=True)
    program.hup()
    (program.folder / "gate").touch()
    assert program.wait_exit(PATIENCE) == 1
    program.wait_gone()


def test_the_signals_of_the_test_are_those_of_a_foreground_program() -> None:
    assert signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    assert os.getpid() > 1
