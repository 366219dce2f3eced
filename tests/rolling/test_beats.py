"""The beats: what a worker's number says, when it counts as hung, and the page that all of them share."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart.options import _MOST_WORKERS
from hotrestart.rolling.beats import PLACES, Beats, Pulse, Watch
from tests.conftest import missing
from tests.rolling.programs import Rolling

pytestmark = pytest.mark.core

STEPS = ("turn", "rest", "work")


@pytest.fixture
def beats() -> Iterator[Beats]:
    page = Beats()
    yield page
    page.close()
    del page.numbers  # the page itself, of which mmap keeps a descriptor of its own


def never() -> None:
    raise AssertionError("nobody asked for that")


class Page(Beats):
    """Numbers in this process alone: hypothesis makes many."""

    def __init__(self) -> None:
        self.numbers = memoryview(bytearray(8 * 16)).cast("Q")


# --- a worker's number


@given(st.lists(st.sampled_from(STEPS)))
def test_an_odd_number_says_at_work_and_an_even_one_at_rest(steps: list[str]) -> None:
    page = Page()
    pulse = Pulse(page, 3, 0, never)
    for step in steps:
        before = page.numbers[3]
        getattr(pulse, step)()
        after = page.numbers[3]
        assert after % 2 == (step != "rest")
        assert after >= before
        if step == "turn":
            assert after > before  # always to be seen
        elif before % 2 == after % 2:
            assert after == before  # said twice
    assert [page.numbers[place] for place in range(16) if place != 3] == [0] * 15


def test_a_new_number_is_at_rest(beats: Beats) -> None:
    """The time before the loop may last: `ready_timeout` watches over that."""
    assert {number % 2 for number in beats.numbers} == {0}
    assert len(beats.numbers) == PLACES


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_at_the_limit_of_jobs_it_retires_once(limit: int) -> None:
    calls: list[int] = []
    page = Page()
    pulse = Pulse(page, 0, limit, lambda: calls.append(pulse._turns))
    for _ in range(5 * limit):
        pulse.turn()
        pulse.rest()
        pulse.work()
    assert calls == [limit]


def test_without_a_limit_it_never_retires() -> None:
    pulse = Pulse(Page(), 0, 0, never)
    for _ in range(100):
        pulse.turn()


def test_the_limit_counts_this_worker_s_turns_not_those_of_who_had_the_place_before() -> None:
    page = Page()
    page.numbers[0] = 12_345
    calls: list[int] = []
    pulse = Pulse(page, 0, 3, lambda: calls.append(pulse._turns))
    for _ in range(10):
        pulse.turn()
    assert calls == [3]


def test_the_loop_of_another_thread_does_not_cover_up_one_that_hangs() -> None:
    page = Page()
    pulse = Pulse(page, 0, 3, never)
    pulse.turn()
    for step in STEPS:
        thread = threading.Thread(target=getattr(pulse, step))
        thread.start()
        thread.join()
    assert page.numbers[0] == 1


def test_the_loop_of_a_forked_child_does_not_cover_up_a_parent_that_hangs(beats: Beats) -> None:
    pulse = Pulse(beats, 0, 3, never)
    pulse.turn()
    pid = os.fork()
    if pid == 0:
        try:
            for step in STEPS:
                getattr(pulse, step)()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert beats.numbers[0] == 1
    pulse.turn()
    assert beats.numbers[0] == 3


# --- what the supervisor makes of it


def test_one_that_works_too_long_has_hung_after_the_timeout() -> None:
    watch = Watch(5.0, now=100.0)
    assert watch.deadline(1, 101.0) == 106.0
    assert watch.deadline(1, 105.9) == 106.0
    assert watch.deadline(1, 106.0) == 106.0  # now: it has hung


def test_one_that_rests_never_hangs() -> None:
    watch = Watch(5.0, now=0.0)
    for now in range(0, 1000, 7):
        assert watch.deadline(4, now) == now + 5.0


def test_a_change_begins_the_time_anew() -> None:
    watch = Watch(5.0, now=0.0)
    assert watch.deadline(1, 1.0) == 6.0
    assert watch.deadline(3, 5.9) == 10.9
    assert watch.deadline(3, 10.0) == 10.9


def test_one_that_goes_from_rest_to_work_has_the_whole_time() -> None:
    watch = Watch(5.0, now=0.0)
    assert watch.deadline(2, 4.0) == 9.0
    assert watch.deadline(3, 8.0) == 13.0


def test_a_watch_of_one_that_never_began_does_not_hang() -> None:
    assert Watch(1.0, now=0.0).deadline(0, 1e6) == 1e6 + 1.0


@given(
    timeout=st.floats(0.1, 100),
    steps=st.lists(st.tuples(st.sampled_from([*STEPS, "look"]), st.floats(0, 60)), max_size=40),
)
def test_hung_is_exactly_who_works_without_a_turn_for_the_timeout(
    timeout: float, steps: list[tuple[str, float]]
) -> None:
    """The supervisor looks whenever the deadline that it was told has come, and at other times too."""
    page = Page()
    pulse, watch = Pulse(page, 0, 0, never), Watch(timeout, 0.0)
    now = changed = 0.0
    deadline = watch.deadline(page.numbers[0], now)

    def look(at: float) -> float:
        later = watch.deadline(page.numbers[0], at)
        has_hung = at >= later
        works = page.numbers[0] % 2 == 1
        if has_hung:
            assert works, "hung while resting"
            assert at - changed >= timeout * (1 - 1e-9), "hung too early"
        else:
            assert not works or at - changed < 2 * timeout * (1 + 1e-9) + 1e-9, "hung, and not noticed"
        return later

    for step, pause in steps:
        end = now + pause
        while deadline <= end:
            now = max(now, deadline)
            deadline = look(now)
            if deadline <= now:
                return  # it has hung, rightly
        now = end
        if step == "look":
            deadline = look(now)
        else:
            before = page.numbers[0]
            getattr(pulse, step)()
            changed = now if page.numbers[0] != before else changed


# --- the page


def test_the_page_is_close_on_exec_and_above_the_standard_streams(beats: Beats) -> None:
    assert not os.get_inheritable(beats.fd)
    assert beats.fd > 2


def test_the_page_outlives_its_descriptor() -> None:
    page = Beats()
    page.close()
    page.numbers[5] = 7
    assert page.numbers[5] == 7


def test_a_page_made_by_another_is_shared_and_not_closed(beats: Beats) -> None:
    other = Beats(beats.fd)
    other.numbers[7] = 9
    other.close()
    assert beats.numbers[7] == 9
    assert os.fstat(beats.fd)


def test_without_memory_files_a_temporary_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    page = Beats()
    assert os.fstat(page.fd).st_nlink == 0
    assert not os.get_inheritable(page.fd)
    page.numbers[PLACES - 1] = 3
    assert Beats(page.fd).numbers[PLACES - 1] == 3
    page.close()


def test_many_processes_beat_at_once_each_in_its_own_place(beats: Beats) -> None:
    children = []
    for place in range(5):
        pid = os.fork()
        if pid == 0:
            try:
                page = beats if place % 2 else Beats(os.dup(beats.fd))  # as after fork, and as after exec
                pulse = Pulse(page, place, 0, never)
                for _ in range(20_000):
                    pulse.turn()
                if place == 4:
                    pulse.rest()
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0) == (pid, 0)
    assert list(beats.numbers[:6]) == [39_999, 39_999, 39_999, 39_999, 40_000, 0]


def test_the_supervisor_sees_a_worker_stop_and_go_on(beats: Beats) -> None:
    """A real one: it turns when it is told to."""
    told, teller = os.pipe()
    answer, answerer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(teller)
            pulse = Pulse(beats, 1, 0, never)
            while step := os.read(told, 1):
                getattr(pulse, {b"t": "turn", b"r": "rest", b"w": "work"}[step])()
                os.write(answerer, b".")
        finally:
            os._exit(0)
    os.close(told)
    watch, found = Watch(1.0, 0.0), []
    for now, step in enumerate([b"t", b"", b"t", b"r", b"", b"", b"w", b""], start=1):
        if step:
            os.write(teller, step)
            assert os.read(answer, 1) == b"."
        found.append(watch.deadline(beats.numbers[1], now) <= now)
    for fd in (teller, answer, answerer):
        os.close(fd)
    os.waitpid(pid, 0)
    assert found == [False, True, False, False, False, False, False, True]


def test_there_are_places_for_two_generations_of_the_most_workers() -> None:
    assert PLACES >= 2 * _MOST_WORKERS


# --- what it costs

TURNING = """
import os, hotrestart

@hotrestart.restartable(workers=1, timeout=60)
def main():
    with hotrestart.worker_loop() as loop:
        turns = 0
        os.access("while", os.F_OK)
        while loop.running:
            turns += 1
            if turns == 10_000:
                break
        os.access("for", os.F_OK)
        for turn in loop:
            if turn == 10_000:
                break
        os.access("end", os.F_OK)
        report(worker=os.getpid())
        loop.sleep()

main()
"""


def test_a_turn_costs_no_system_call(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "-qq", "-o", os.devnull, "true"], check=False).returncode != 0:
        missing("a strace that may trace")
    with Rolling(tmp_path / "program") as program:
        program.deploy(TURNING)
        trace = program.folder / "trace"
        options = ["-D", "-f", "-qq", "-o", str(trace)]  # -D: the program is our child, and strace its grandchild
        program.start_command([str(strace), *options, program.python, "app.py"])
        worker = program.wait_until(lambda: program.told("worker"), "ten thousand turns, twice")[0]
        program.stop()
        program.wait_gone()  # then all has been written
    found = [line.split(maxsplit=1) for line in trace.read_text().splitlines()]
    calls = [call for pid, call in found if int(pid) == worker]
    marks = [next(n for n, call in enumerate(calls) if f'"{name}", F_OK' in call) for name in ("while", "for", "end")]
    for begin, end in pairwise(marks):
        assert end - begin - 1 < 10, calls[begin:end][:20]
