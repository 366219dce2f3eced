"""`Sleeper`: a sleep that a signal handler or another thread can end at once - the self-pipe, done with care.

PEP 475 makes every blocking call of Python go on after a signal, so a loop that sleeps must sleep in `poll` on a pipe.
What is less obvious:

* Threads that share one pipe steal each other's bytes: one wakes, the others sleep on. Each sleeping thread has a pipe
  of its own here. Pipes are kept for the next sleeper instead of closed, because `wake` may just be writing to one, and
  a closed number is soon somebody else's file.
* A forked child shares the pipe with its parent, and a signal to the child would wake the parent: the child gets new
  pipes under the old numbers.
* A thread may fork while another is in its first sleep. A module that it has only begun to import is locked for ever in
  the child (CPython does not renew those locks), so `select` is loaded when the sleeper is made.
* A signal that the kernel hands to another thread does not end the main thread's `poll`, and its Python handler waits.
  So the C part of the handler writes a byte (`signal.set_wakeup_fd`), into a pipe of its own: it only makes `poll`
  return, so that Python runs the handler; the sleep goes on unless the handler calls `wake`.
"""

from __future__ import annotations

import os
from _thread import allocate_lock, get_ident
from _weakref import ref  # the module weakref costs 2 ms of every restart
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeVar

    from typing_extensions import Self

    class HasFileno(Protocol):
        """A file, a socket, and whatever else select() takes."""

        def fileno(self) -> int:
            """The file descriptor."""
            ...

    File = TypeVar("File", bound="int | HasFileno")

__all__ = ["Sleeper"]

_WAKE = b"w"
_LONGEST_POLL = 2**31 - 1  # milliseconds: poll(2) takes an int
_NEVER = float("inf")


class Sleeper:
    """Sleep until a time has passed, a file is readable, or somebody calls `wake`.

    `wake` may be called in any thread and in a signal handler. Any number of threads may sleep at the same time. After
    a fork the child's sleeper is its own. After an exec nothing is left of it (its descriptors are close-on-exec).
    Make it in the main thread if it is to be used with `signals.handling`.

    >>> sleeper = Sleeper()
    >>> sleeper.sleep(0.001)
    False
    >>> sleeper.wake()
    >>> sleeper.sleep(60)
    True
    """

    def __init__(self) -> None:
        import select  # a shared object, 0.3 ms: only those who sleep pay

        self._select = select
        self.owner: int = (
            get_ident()
        )  # the thread that sleeps on the pipe of fileno(); all others have pipes of their own
        self._woken = False
        self._for_good = False
        self._pipes: list[_Pipe] = []
        self._pipes.append(_Pipe())
        self._nudges: _Pipe | None = None
        _remember(self)

    def fileno(self) -> int:
        """A descriptor that becomes readable with `wake`, for a poll or event loop of your own.

        It stays readable until the thread that made the sleeper calls `sleep` or `wait` (`sleep(0)` is enough); a sleep
        that was woken leaves it to the next one. After `wake(for_good=True)` it stays readable.
        """
        self._check_open()
        return self._pipes[0].read_end

    def wakeup_fd(self) -> int:
        """A descriptor for `signal.set_wakeup_fd`: what is written there lets the thread that made the sleeper run its
        signal handlers. It is no `wake`, and `fileno()` does not become readable."""
        self._check_open()
        if self._nudges is None:
            self._nudges = _Pipe()
        return self._nudges.write_end

    def unheard(self) -> bytes:
        """What has been written to `wakeup_fd()` and not been noticed: numbers of signals. It is noticed by this."""
        return b"" if self._nudges is None else self._nudges.read()

    def nudge_fileno(self) -> int:
        """A descriptor that is readable when something was written to `wakeup_fd()`; -1 if nobody has asked for that.

        For an event loop of your own: read it empty, and Python has run its signal handlers meanwhile."""
        return -1 if self._nudges is None else self._nudges.read_end

    def wake(self, *, for_good: bool = False) -> None:
        """End every sleep that is under way; if there is none, the next one ends at once.

        Several calls before a sleep count as one. With `for_good` every later sleep ends at once too.
        """
        if for_good:
            self._for_good = True
        self._woken = True
        for pipe in self._pipes:
            try:
                os.write(pipe.write_end, _WAKE)
            except OSError:
                continue  # full: its reader has a reason to wake already

    def sleep(self, timeout: float | None = None) -> bool:
        """Sleep for `timeout` seconds (None: for ever). True if woken by `wake`, False if the time has passed."""
        return self._wait((), timeout)[0]

    def wait(self, *files: File, timeout: float | None = None) -> list[File]:
        """Wait until one of `files` is readable, has an error or is at its end, and return those that are.

        A file is a descriptor or anything with `fileno()`, of any number (`poll`, not `select`). An empty list: woken
        by `wake`, or `timeout` seconds have passed. Raises OSError (EBADF) for a descriptor that is not open, and
        ValueError for a file object or socket that is closed.
        """
        return self._wait(files, timeout)[1]

    def close(self) -> None:
        """Give the descriptors back. No thread may be sleeping; `wake` does nothing afterwards."""
        pipes, self._pipes = self._pipes, []
        if self._nudges is not None:
            pipes.append(self._nudges)
            self._nudges = None
        for pipe in pipes:
            pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _wait(self, files: tuple[File, ...], timeout: float | None) -> tuple[bool, list[File]]:
        deadline = deadline_of(timeout)
        numbers = [file if isinstance(file, int) else file.fileno() for file in files]
        pipe = self._take_pipe()
        try:
            if self._for_good or self._woken:
                self._woken = False
                return True, []
            return self._poll(pipe, files, numbers, deadline)
        finally:
            pipe.busy.release()

    def _poll(
        self, pipe: _Pipe, files: tuple[File, ...], numbers: list[int], deadline: float
    ) -> tuple[bool, list[File]]:
        select = self._select
        poll = select.poll()
        poll.register(pipe.read_end, select.POLLIN)
        nudges = self._nudges if pipe is self._pipes[0] else None
        if nudges is not None:
            poll.register(nudges.read_end, select.POLLIN)
        for number in numbers:
            poll.register(number, select.POLLIN)
        while True:
            ready: set[int] = set()
            for number, event in poll.poll(_milliseconds(deadline)):
                if number == pipe.read_end:
                    if self._has_been_woken(pipe):
                        return True, []
                elif nudges is not None and number == nudges.read_end:
                    nudges.read()  # and the interpreter runs the handler
                else:
                    ready.add(number)
                if event & select.POLLNVAL:
                    raise OSError(9, f"wait(): descriptor {number} is not open")  # 9: EBADF everywhere
            if self._woken:
                continue  # by a handler that has just run: poll again, and it is seen
            if ready:
                return False, [file for file, number in zip(files, numbers, strict=True) if number in ready]
            if monotonic() >= deadline:
                return False, []

    def _has_been_woken(self, pipe: _Pipe) -> bool:
        """Whether it was `wake` that wrote. Its byte is left for the next sleep to clear away: this one is over now."""
        if self._woken or self._for_good:
            self._woken = False
            return True
        return bool(pipe.read())  # another thread was woken by the same call; or it was cleared away in between

    def _check_open(self) -> None:
        if not self._pipes:
            from .errors import HotRestartError

            raise HotRestartError("this Sleeper is closed")

    def _take_pipe(self) -> _Pipe:
        self._check_open()
        home = self._pipes[0]
        if get_ident() == self.owner and home.busy.acquire(False):
            if not self._for_good:
                home.read()
            return home
        for pipe in self._pipes[1:]:
            if pipe.busy.acquire(False):
                pipe.read()
                return pipe
        pipe = _Pipe()
        pipe.busy.acquire()
        self._pipes.append(pipe)
        return pipe

    def _renew_after_fork(self) -> None:
        self.owner = get_ident()
        self._woken = False
        for pipe in self._pipes[1:]:
            pipe.close()
        del self._pipes[1:]
        for pipe in self._pipes:
            pipe.renew()
            if self._for_good:
                os.write(pipe.write_end, _WAKE)
        if self._nudges is not None:
            self._nudges.renew()


class _Pipe:
    """Both ends non-blocking and close-on-exec; `busy` is held by the thread that sleeps on it."""

    __slots__ = ("busy", "read_end", "write_end")

    def __init__(self) -> None:
        self.busy = allocate_lock()
        self.read_end, self.write_end = _open_pipe()

    def read(self) -> bytes:
        """All that is in the pipe; at most 64 KiB a call, the size of a pipe."""
        try:
            return os.read(self.read_end, 65536)
        except BlockingIOError:
            return b""

    def renew(self) -> None:
        """Cut the tie to whoever else holds this pipe, and keep the numbers."""
        self.busy = allocate_lock()
        read_end, write_end = _open_pipe()
        os.dup2(read_end, self.read_end, inheritable=False)
        os.dup2(write_end, self.write_end, inheritable=False)
        os.close(read_end)
        os.close(write_end)

    def close(self) -> None:
        ends, self.read_end, self.write_end = (self.read_end, self.write_end), -1, -1
        for end in ends:
            try:
                os.close(end)
            except OSError:
                continue  # closed already; or by somebody who closes all descriptors


def _open_pipe() -> tuple[int, int]:
    if not hasattr(os, "register_at_fork"):
        from .errors import HotRestartError

        raise HotRestartError("a Sleeper needs a POSIX system: pipes cannot be polled here")
    ends = os.pipe()
    if min(ends) < 3:  # of a program without standard streams, which may close their numbers later
        from .fds import above_stdio

        ends = (above_stdio(ends[0]), above_stdio(ends[1]))
    for end in ends:
        os.set_blocking(end, False)
    return ends


def deadline_of(timeout: float | None) -> float:
    """When a sleep of so many seconds is over, by `monotonic`; infinity for None. Raises ValueError."""
    if timeout is not None and not timeout >= 0:  # catches NaN
        raise ValueError(f"a sleep takes a timeout of 0 seconds or more, or None, not {timeout!r}")
    return _NEVER if timeout is None else monotonic() + timeout


def _milliseconds(deadline: float) -> int | None:
    if deadline == _NEVER:
        return None
    return min(max(0, -int((monotonic() - deadline) * 1000 // 1)), _LONGEST_POLL)


_sleepers: dict[int, ref[Sleeper]] = {}


def _remember(sleeper: Sleeper) -> None:
    key = id(sleeper)
    _sleepers[key] = ref(sleeper, lambda _: _sleepers.pop(key, None))


def _renew_all_after_fork() -> None:
    for reference in list(_sleepers.values()):
        sleeper = reference()
        if sleeper is not None:
            sleeper._renew_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all_after_fork)
