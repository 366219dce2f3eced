"""What is tried with a worker: good restarts, and those at a bad moment or with bad code."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from .sides import Side
from .subject import Line, Subject, Where, WorkerError, how_it_ended

CATCH_UP = 20.0  # seconds in which what waits in the queue is done before the next restart
SLOW = 1_000_000  # numbers of slow jobs begin here
IN_HAND = 1.0  # seconds that a slow job takes
LATE = 8.0  # seconds after which a worker that has not ended goes on
MOST_RESTARTING, MOST_HUPPING = 25.0, 90.0  # seconds for the good restarts of a turn, for all second HUPs
BROKEN = "this is no Python\n"


@dataclass
class Restarts:
    """Good restarts of one side: seconds each, and the jobs over all of them."""

    to_first_job: list[float] = field(default_factory=list)
    without_a_job: list[float] = field(default_factory=list)
    boots: list[float] = field(default_factory=list)  # from the exec (HUP, if there is none) to the first job
    jobs: int = 0
    lost: int = 0
    repeats: list[str] = field(default_factory=list)  # how, for each job that was repeated
    not_caught_up: int = 0  # restarts with a queue that was not empty

    @property
    def repeated(self) -> int:
        return len(self.repeats)

    @property
    def window(self) -> float:
        """Seconds after the exec in which a second HUP meets a worker that boots."""
        return median(self.boots)


def good_restarts(where: Where, side: Side, times: int, into: Restarts) -> None:
    """Start it, feed it, restart it with new code so often, or fewer times if it takes too long, and look into the
    ledger. Each restart finds an empty queue, if it can be had. WorkerError if it dies."""
    began = time.monotonic()
    with Subject(where, side) as subject:
        subject.wait_calm()
        for _ in range(times):
            if time.monotonic() > began + MOST_RESTARTING:
                break
            into.not_caught_up += not subject.catch_up(CATCH_UP)
            asked, first, booting_since = _restart(subject)
            into.to_first_job.append(first.moment - asked)
            into.boots.append(max(0.0, first.moment - booting_since))  # an exec may be seen late
            subject.wait(lambda first=first: subject.begun_by(0, first.moment + 0.5), "jobs after the first")
            into.without_a_job.append(subject.longest_gap(asked))
        numbers = subject.finish()
        done = subject.done()
        into.jobs += numbers
        into.lost += sum(number not in done for number in range(numbers))
        into.repeats += subject.repeats()


def _restart(subject: Subject) -> tuple[float, Line, float]:
    """When it was asked for, the first job by the new code, and since when it was booted."""
    mark, version = subject.mark(), subject.deploy()
    asked = since = time.monotonic()
    if subject.side.is_stopped_and_started:
        subject.send(signal.SIGTERM)
        subject.wait(lambda: subject.exit_code() is not None, "the end", alive=False)
        since = time.monotonic()
        subject.start()
    else:
        subject.send(signal.SIGHUP)
        if subject.side.has_exec:
            subject.wait(lambda: subject.mark() not in (mark, b""), "the exec")
            since = time.monotonic()
    after = since if subject.side.is_stopped_and_started else asked
    subject.wait(lambda: subject.begun_by(version, after), "a job by the new code")
    first = subject.begun_by(version, after)
    assert first is not None
    return asked, first, since


def second_hups(where: Where, side: Side, tries: int, window: float) -> Iterator[str]:
    """For each try: what became of it after a second HUP within `window` seconds after its exec (rolling: after the
    first HUP): "lives", "died", or "is stuck": it does no job any more, and somebody has to start it again as well."""
    began = time.monotonic()
    subject = Subject(where, side)
    try:
        subject.start()
        subject.wait_calm()
        for number in range(tries):
            if time.monotonic() > began + MOST_HUPPING:
                break
            if subject.exit_code() is not None:
                subject.kill()
                subject.start()
                subject.wait_calm()
            yield _after_a_second_hup(subject, (number * 7 % tries) * window / tries)
    finally:
        subject.__exit__()


def _after_a_second_hup(subject: Subject, later: float) -> str:
    mark, version = subject.mark(), subject.deploy()
    subject.send(signal.SIGHUP)
    try:
        if subject.side.has_exec:
            subject.wait(lambda: subject.mark() not in (mark, b""), "the exec")
        time.sleep(later)
        subject.send(signal.SIGHUP)
        subject.wait(lambda: subject.begun_by(version), "a job after the second HUP")
        subject.wait_calm()
    except WorkerError:
        is_there = subject.exit_code() is None
        subject.kill()
        return "is stuck" if is_there else "died"
    return "lives"


def hup_then_term(where: Where, side: Side) -> str:
    """HUP and then TERM with a job in hand: what becomes of the job, and of the worker."""
    with Subject(where, side) as subject:
        subject.wait_calm()
        subject.slow_job(SLOW, IN_HAND)
        subject.wait(lambda: any(each.number == SLOW for each in subject.lines()), "the slow job")
        subject.deploy()
        subject.send(signal.SIGHUP)
        time.sleep(0.1)
        subject.send(signal.SIGTERM)
        termed = time.monotonic()
        try:
            subject.wait(lambda: subject.exit_code() is not None, "the end", IN_HAND + LATE, alive=False)
        except WorkerError:
            worked = subject.begun_by(0, termed + IN_HAND + 1.0)
            ending = "comes back and works on" if worked else "neither ends nor works"
        else:
            ending = how_it_ended(subject.exit_code())
        return f"{'finishes' if subject.done()[SLOW] else 'cuts the job'}, {ending}"


def syntax_error(where: Where, side: Side) -> str:
    """HUP with code that cannot be loaded: whether anybody works, some seconds later."""
    with Subject(where, side) as subject:
        subject.wait_calm()
        subject.deploy(BROKEN)
        subject.send(signal.SIGHUP)
        asked = time.monotonic()
        try:
            subject.wait(lambda: subject.exit_code() is not None, "the end", LATE, alive=False)
        except WorkerError:
            works = subject.begun_by(0, asked + LATE - 1.0)
            return "the old code works on" if works else "alive, does no job"
        return f"dies, {how_it_ended(subject.exit_code())}"
