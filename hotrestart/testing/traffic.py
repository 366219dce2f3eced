"""`Traffic` and `Jobs`: load for a program under test, and the account of it."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import count, pairwise
from time import monotonic, sleep
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

__all__ = ["Answer", "Failure", "Jobs", "Traffic"]

_PAUSE = 0.1  # seconds after a failure: what fails fails fast
_SHOWN = 5


class Answer(NamedTuple):
    """A request that was answered. Times are of `time.monotonic`."""

    number: int
    asked: float
    answered: float
    answer: object


class Failure(NamedTuple):
    """A request that was not answered, and what was raised."""

    number: int
    asked: float
    failed: float
    error: BaseException


class Traffic:
    """Clients in threads, each of which asks again as soon as it has its answer, for as long as the `with` block lasts.

    `ask(number)` sends one request, the only one with that number, and returns the answer; whatever it raises is a
    failure. Let the answer say which version or generation gave it, and `wait_for` it.
    """

    def __init__(self, ask: Callable[[int], object], *, clients: int = 4, pause: float = 0.0) -> None:
        """`pause`: seconds that a client waits before its next request."""
        self.answers: list[Answer] = []
        self.failures: list[Failure] = []
        self._ask, self._pause = ask, pause
        self._ends: list[float] = []  # when it has begun and when it was over
        self._numbers = count()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Self:
        self._ends.append(monotonic())
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ends.append(monotonic())
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, answer: object, *, timeout: float = 60.0) -> None:
        """Wait until a request that is asked from now on is answered so. AssertionError if none is in time."""
        began = monotonic()
        while not any(each.asked >= began and each.answer == answer for each in self.answers[-1000:]):
            if monotonic() > began + timeout:
                latest = [each.answer for each in self.answers[-_SHOWN:]]
                raise AssertionError(f"no answer {answer!r} within {timeout:g} s; the latest are {latest}; {self}")
            sleep(0.005)

    def check(self) -> None:
        """AssertionError if a request has failed, or if there was none."""
        if self.failures or not self.answers:
            raise AssertionError(str(self))

    @property
    def longest_silence(self) -> float:
        """The longest time without any answer from begin to end, in seconds."""
        times = sorted([*self._ends, *(each.answered for each in self.answers)])
        return max((after - before for before, after in pairwise(times)), default=0.0)

    def __str__(self) -> str:
        found = f"{len(self.answers)} requests answered, {len(self.failures)} failed"
        shown = [
            f"number {each.number} after {each.failed - each.asked:.3f} s: {each.error!r}" for each in self.failures
        ]
        return "\n    ".join([found, *shown[:_SHOWN]])

    def _run(self) -> None:
        while not self._is_over.wait(self._pause):
            number, asked = next(self._numbers), monotonic()
            try:
                answer = self._ask(number)
            except BaseException as error:
                self.failures.append(Failure(number, asked, monotonic(), error))
                self._is_over.wait(_PAUSE)
            else:
                self.answers.append(Answer(number, asked, monotonic(), answer))


class Jobs:
    """A feeder that puts numbered jobs into your queue for as long as the `with` block lasts, and the account of them.

    `put(number)` puts in one job; `done()` gives the numbers of the jobs that were done so far, in any order, one for
    each time: from a file, a table or a list that your workers write to.
    """

    def __init__(self, put: Callable[[int], object], done: Callable[[], Iterable[int]], *, every: float = 0.01) -> None:
        """`every`: seconds between two jobs."""
        self.given: list[int] = []
        self._put, self._done, self._every = put, done, every
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    @property
    def lost(self) -> list[int]:
        """Jobs that were put in and not done so far."""
        return sorted(set(self.given) - set(self._done()))

    @property
    def repeated(self) -> list[int]:
        """Jobs that were done more than once."""
        return sorted(job for job, times in Counter(self._done()).items() if times > 1)

    def check(self, *, timeout: float = 60.0) -> None:
        """Wait until all are done. AssertionError if some are not in time, if one was repeated, or if there is none."""
        deadline = monotonic() + timeout
        while self.lost and monotonic() < deadline:
            sleep(0.01)
        if self.lost or self.repeated or not self.given:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        lost, repeated = self.lost, self.repeated
        found = f"{len(self.given)} jobs put in, {len(lost)} lost, {len(repeated)} repeated"
        return "\n    ".join(
            [found, *(f"lost: {each}" for each in lost[:_SHOWN]), *(f"repeated: {each}" for each in repeated[:_SHOWN])]
        )

    def _run(self) -> None:
        for number in count():
            if self._is_over.wait(self._every):
                return
            try:
                self._put(number)
            except BaseException as error:
                self._error = error
                return
            self.given.append(number)
