"""Signals at random moments, for seconds on end, on a machine with both cores busy."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.harness import PATIENCE, Program

STORMED = """
import atexit, sys, threading, time
import hotrestart
atexit.register(report, exit_handler=hotrestart.state.generation)

@hotrestart.restartable(preflight={preflight}, grace={grace})
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, at=time.monotonic())
        threading.Thread(target=time.sleep, args=(0.005,)).start()
        while loop.running:
            loop.sleep(0.003)

main()
"""


def stormed(preflight: bool) -> str:
    """Grace must not end it: a program that hangs would end by TERM too, and later than a test waits."""
    return STORMED.format(preflight=preflight, grace=10 * PATIENCE)


def generations(program: Program) -> list[object]:
    """Those that became ready; none was skipped, and each of them has run its exit handler, once."""
    ready = [each["ready"] for each in program.reports() if "ready" in each]
    handlers = [each["exit_handler"] for each in program.reports() if "exit_handler" in each]
    assert ready == list(range(1, len(ready) + 1)), "a generation was skipped or came twice"
    assert len(set(handlers)) == len(handlers), "an exit handler ran twice"
    assert set(ready) <= set(handlers), "an exit handler did not run"
    return ready


def check_end_by_term(program: Program, status: int) -> None:
    """TERM itself may end it only where there is nothing to finish: from the exec, when all exit handlers have run, to
    the moment when the next generation takes signals, before it is ready. At all other times it ends as it likes."""
    assert status in (0, -signal.SIGTERM), f"ended with {status}:\n{program.log()}"
    generations(program)
    assert "grace" not in program.log()


def storm(program: Program, seconds: float, seed: int, *, generations: int = 0) -> float:
    """HUPs every 2 to 50 ms, and on until there were so many generations; the time of the last one."""
    dice = random.Random(seed)
    until = time.monotonic() + seconds
    last = 0.0
    while (now := time.monotonic()) < until or (now < until + PATIENCE and latest(program) < generations):
        assert program.process is not None
        assert program.process.poll() is None, f"died ({program.process.returncode}):\n{program.log()}"
        last = time.monotonic()
        program.hup()
        time.sleep(dice.uniform(0.002, 0.05))
    return last


def latest(program: Program) -> int:
    return max((int(str(each["ready"])) for each in program.reports() if "ready" in each), default=0)


@pytest.mark.parametrize("preflight", [False, True])
def test_h24_a_storm_of_hups_kills_nothing_and_the_last_leads_to_a_newer_generation(
    program: Program, preflight: bool, full: bool, busy_cores: None
) -> None:
    program.deploy(stormed(preflight))
    program.start()
    program.wait_report(ready=1)
    last = storm(program, 60 if full else 4, seed=os.getpid(), generations=4)
    program.wait_until(
        lambda: any(each.get("at", 0) > last for each in program.reports()), "a generation after the last HUP"
    )
    check_end_by_term(program, program.stop())
    assert len(generations(program)) > 3
    assert "Traceback" not in program.log()


@pytest.mark.parametrize("preflight", [False, True])
def test_h14_term_in_the_midst_of_a_storm_ends_the_program(
    program: Program, preflight: bool, full: bool, busy_cores: None
) -> None:
    program.deploy(stormed(preflight))
    dice = random.Random(os.getpid())
    for _ in range(100 if full else 6):
        program.forget_reports()
        program.start()
        program.wait_report(ready=1)
        storm(program, dice.uniform(0.0, 0.4), seed=dice.randrange(10**9))
        program.term()
        if dice.random() < 0.5:
            try:
                program.hup()
            except ProcessLookupError:
                pass
        check_end_by_term(program, program.wait_exit())
        assert not os.path.exists(f"/proc/{program.pid}")
