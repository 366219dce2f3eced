"""The restart in place, as design section 7 has it: real programs, real signals."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.harness import Program, worker

pytestmark = pytest.mark.core


def test_a_hup_starts_the_new_code_under_the_same_pid(program: Program) -> None:
    program.deploy(worker(version=1))
    program.start()
    program.wait_report(ready=1, version=1)
    program.deploy(worker(version=2))
    program.hup()
    program.wait_report(ready=2, version=2)
    assert program.stop() == 0
    assert program.reports()[-1] == {"ended": "stop"}


JOB_IN_HAND = """
import atexit, os, time
import hotrestart
atexit.register(report, exit_handler=hotrestart.state.generation)

@hotrestart.restartable({options})
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        while loop.running:
            if os.path.exists("job"):
                report(began=hotrestart.state.generation)
                while os.path.exists("job"):
                    time.sleep(0.005)
                report(finished=hotrestart.state.generation)
            loop.sleep(0.01)

main()
report(ended=hotrestart.state.reason)
"""


def with_a_job_in_hand(program: Program, options: str = "") -> Program:
    program.deploy(JOB_IN_HAND.format(options=options))
    program.start()
    program.wait_report(ready=1)
    (program.folder / "job").touch()
    program.wait_report(began=1)
    return program


def finish_the_job(program: Program) -> None:
    (program.folder / "job").unlink()


def preflight_has_passed(program: Program) -> None:
    """The second thread is the watch over the grace: it is there once the flag is set, and stays."""
    tasks = program.folder / "tasks"
    tasks.unlink(missing_ok=True)
    status = f"/proc/{program.pid}/status"

    def drains() -> bool:
        with open(status) as file:
            return "Threads:\t2" in file.read() and not program.children()

    program.wait_until(drains, "the drain")


def test_the_job_in_hand_is_finished_before_the_restart(program: Program) -> None:
    with_a_job_in_hand(program)
    program.hup()
    preflight_has_passed(program)
    assert not program.reports(finished=1)
    finish_the_job(program)
    program.wait_report(ready=2)
    assert [key for each in program.reports() for key in each] == [
        "ready",
        "began",
        "finished",
        "ended",
        "exit_handler",
        "ready",
    ]


def test_a_term_after_a_hup_turns_the_restart_into_a_stop(program: Program) -> None:
    with_a_job_in_hand(program)
    program.hup()
    preflight_has_passed(program)
    program.term()
    finish_the_job(program)
    assert program.wait_exit() == 0
    assert program.reports()[-3:] == [{"finished": 1}, {"ended": "stop"}, {"exit_handler": 1}]


def test_an_int_after_a_hup_turns_the_restart_into_a_stop(program: Program) -> None:
    with_a_job_in_hand(program)
    program.hup()
    preflight_has_passed(program)
    program.process.send_signal(signal.SIGINT)
    finish_the_job(program)
    assert program.wait_exit() == 0
    assert program.reports()[-2] == {"ended": "stop"}


def test_a_hup_after_a_term_changes_nothing(program: Program) -> None:
    with_a_job_in_hand(program)
    program.term()
    program.hup()
    program.hup()
    finish_the_job(program)
    assert program.wait_exit() == 0
    assert program.reports()[-1] == {"exit_handler": 1}


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_term_or_int_ends_the_program_at_once(program: Program, second: signal.Signals) -> None:
    with_a_job_in_hand(program)
    program.term()
    program.wait_until(lambda: caught(program) & {signal.SIGTERM, signal.SIGINT} == set(), "the first TERM")
    program.process.send_signal(second)
    assert program.wait_exit() == -second
    assert not program.reports(finished=1)


def caught(program: Program) -> set[int]:
    """The signals for which the program has handlers."""
    with open(f"/proc/{program.pid}/status") as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def test_grace_bounds_the_job_in_hand_and_the_restart_happens_all_the_same(program: Program) -> None:
    with_a_job_in_hand(program, "grace=0.3")
    program.hup()
    log = program.wait_log("grace of 0.3 s is over")
    assert "the main thread, in main() at" in log
    program.wait_report(exit_handler=1)
    program.wait_report(ready=2)
    finish_the_job(program)
    program.stop()


def test_grace_bounds_a_stop_too(program: Program) -> None:
    with_a_job_in_hand(program, "grace=0.3")
    program.term()
    assert program.wait_exit() == -signal.SIGTERM
    assert "grace of 0.3 s is over" in program.log()


def test_grace_ends_what_no_signal_handler_can_reach(program: Program) -> None:
    program.deploy("""
import ctypes, os
import hotrestart

@hotrestart.restartable(grace=0.3 if hotrestart.state.generation == 1 else 60)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, pid=os.getpid())
        while loop.running:
            loop.sleep(60)
    if hotrestart.state.generation == 1:  # a C function that goes on after a signal, with the GIL released
        libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)
main()
""")
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2, pid=program.pid)
    assert program.stop() == 0


def test_grace_bounds_threads_that_never_end_and_names_them(program: Program) -> None:
    program.deploy("""
import atexit, threading
import hotrestart
atexit.register(report, exit_handler=hotrestart.state.generation)

@hotrestart.restartable(grace=2 if hotrestart.state.generation == 1 else 60)
def main():
    if hotrestart.state.generation == 1:
        threading.Thread(target=threading.Event().wait, name="stuck-one").start()
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        while loop.running:
            loop.sleep(5)
main()
""")
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2)
    assert "thread 'stuck-one', in wait() at" in program.log()
    assert len(program.reports(exit_handler=1)) == 1
    assert program.stop() == 0


def test_grace_bounds_an_exit_handler_that_never_ends(program: Program) -> None:
    program.deploy("""
import atexit, time
import hotrestart
atexit.register(report, exit_handler=hotrestart.state.generation)
if hotrestart.state.generation == 1:
    atexit.register(time.sleep, 1000)

@hotrestart.restartable(grace=2 if hotrestart.state.generation == 1 else 60)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        while loop.running:
            loop.sleep(5)
main()
""")
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2)
    assert "the end of the program" in program.log()
    assert program.stop() == 0


def test_whatever_ends_main_the_restart_that_was_asked_for_happens(program: Program) -> None:
    program.deploy("""
import sys
import hotrestart

@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        while loop.running:
            loop.sleep(5)
    if hotrestart.state.generation == 1:
        raise RuntimeError("in the last job")
    if hotrestart.state.generation == 2:
        sys.exit(3)
main()
""")
    program.start()
    for generation in (1, 2):
        program.wait_report(ready=generation)
        program.hup()
    program.wait_report(ready=3)
    assert "RuntimeError: in the last job" in program.log()
    assert program.stop() == 0


def test_a_program_that_was_asked_nothing_ends_as_it_likes(program: Program) -> None:
    program.deploy("""
import sys
import hotrestart

@hotrestart.restartable
def main():
    with hotrestart.worker_loop():
        sys.exit(7)
main()
""")
    assert program.start().wait_exit() == 7


def test_a_restart_can_be_asked_for_from_any_thread(program: Program) -> None:
    program.deploy("""
import threading
import hotrestart

@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        ask = hotrestart.request_restart if hotrestart.state.generation < 4 else hotrestart.request_stop
        threading.Thread(target=ask).start()
        while loop.running:
            loop.sleep(60)
main()
report(ended=hotrestart.state.reason)
""")
    assert program.start().wait_exit() == 0
    assert [each["ready"] for each in program.reports() if "ready" in each] == [1, 2, 3, 4]
    assert program.reports()[-1] == {"ended": "stop"}


def test_on_stop_is_called_at_once_while_the_main_thread_is_busy(program: Program) -> None:
    program.deploy("""
import socketserver, threading
import hotrestart

@hotrestart.restartable
def main():
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        hotrestart.on_stop(lambda: 1 / 0)
        hotrestart.on_stop(server.shutdown)
        hotrestart.ready()
        report(ready=hotrestart.state.generation)
        server.serve_forever()
main()
report(ended=hotrestart.state.reason)
""")
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2)
    assert "raised ZeroDivisionError" in program.log()
    assert program.stop() == 0


def test_state_and_files_pass_from_generation_to_generation(program: Program) -> None:
    program.deploy("""
import os, socket
import hotrestart

@hotrestart.restartable
def main():
    numbers = hotrestart.inherited("numbers", [])
    pair = hotrestart.inherited("pair")
    log = hotrestart.inherited("log")
    if pair is None:
        pair, other = socket.socketpair()
        other.send(b"from generation 1")  # three bytes are read in each
        hotrestart.bequeath("other", other)
        log = os.open("kept", os.O_CREAT | os.O_RDWR | os.O_APPEND)
    os.write(log, b"%d " % hotrestart.state.generation)
    hotrestart.bequeath("pair", pair)
    hotrestart.bequeath("log", os.fdopen(log, "rb", closefd=False))
    hotrestart.bequeath("numbers", numbers + [hotrestart.state.generation])
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, numbers=numbers, got=pair.recv(3, socket.MSG_DONTWAIT).decode())
        while loop.running:
            loop.sleep(5)
main()
""")
    program.start()
    for generation in (1, 2):
        program.wait_report(ready=generation)
        program.hup()
    assert program.wait_report(ready=3) == {"ready": 3, "numbers": [1, 2], "got": "ene"}
    assert (program.folder / "kept").read_text() == "1 2 3 "
    assert program.stop() == 0


def test_nothing_grows_over_a_hundred_restarts(program: Program, full: bool) -> None:
    program.deploy("""
import hotrestart
listener = hotrestart.listen("127.0.0.1:0")

@hotrestart.restartable(preflight=hotrestart.state.generation % 10 == 0)
def main():
    hotrestart.bequeath("count", hotrestart.inherited("count", 0) + 1)
    with hotrestart.worker_loop() as loop:
        loop.sleep(0)  # all is loaded now that an ending needs
        report(ready=hotrestart.state.generation)
        while loop.running:
            loop.sleep(5)
main()
""")
    program.start()
    program.wait_report(ready=1)

    def grown() -> tuple[list[str], list[int]]:
        looks = [[fd for fd in program.fds() if "memfd" not in fd] for _ in range(5)]  # some are open for a moment
        return min(looks, key=len), program.children()

    program.hup()
    program.wait_report(ready=2)
    fds_before, _ = grown()
    memory: list[int] = []
    for generation in range(3, 1003 if full else 103):
        program.hup()
        program.wait_report(ready=generation)
        if generation % 10 == 3:
            memory.append(private_memory(program.pid))
    fds_after, children = grown()
    assert len(fds_after) == len(fds_before)
    assert children == []
    third = len(memory) // 3
    assert min(memory[-third:]) < min(memory[:third]) * 1.02, memory
    assert program.stop() == 0


def private_memory(pid: int) -> int:
    """What this process alone has written to, in KiB."""
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line[1]) for line in lines if line[0] == "Private_Dirty:")
