"""`worker_loop`: the context manager around a worker's loop; entering it says "ready"."""

from __future__ import annotations

from . import role, state
from .options import Options
from .program import Running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from .role import Role
    from .rolling.beats import Pulse
    from .sleeper import File, Sleeper

__all__ = ["WorkerLoop", "worker_loop"]


def worker_loop(*, preflight: bool = True, ready_timeout: float = 60.0, grace: float = 30.0) -> WorkerLoop:
    """The context manager around a worker's loop.

    Entering it says that the program is ready. Inside `@restartable` that is all it needs. Without the decorator it
    makes the program restartable itself, with the same options, in the main thread: it handles HUP, TERM and INT while
    the block lasts, puts back what it found when the block ends, and lets the program restart when it ends if that was
    asked for; a preflight then runs the new code up to this point, with all that happens before it. Once it has been
    asked to end, the program has `grace` seconds, also for what comes after the block.

    Any number of threads may each have a loop inside one program; `timeout` and `max_jobs` look at that of the main
    thread. Handlers in threads of their own rather read `state.should_stop`. Raises OptionError, and what
    `@restartable` raises.

    >>> import hotrestart
    >>> with hotrestart.worker_loop() as loop:
    ...     while loop.running:
    ...         woken = loop.sleep(0.001)
    ...         break
    """
    around = Running(Options(preflight=preflight, ready_timeout=ready_timeout, grace=grace), for_good=False)
    pulse = getattr(role.current, "pulse", None)
    return WorkerLoop(around) if pulse is None else _BeatingLoop(around, pulse)


class WorkerLoop:
    """What `worker_loop()` gives: read `running` each turn, or iterate; sleep and wait only through it."""

    __slots__ = ("_around", "_program")

    _program: Role

    def __init__(self, around: Running) -> None:
        self._around = around

    def __enter__(self) -> Self:
        self._program = self._around.__enter__()
        self._program.ready()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._around.__exit__(kind, error, trace)

    @property
    def running(self) -> bool:
        """True until the program is asked to end, to restart or to stop. The job in hand can be finished."""
        return not state.should_stop

    def __iter__(self) -> Iterator[int]:
        """Turn after turn, counted from 0, as long as `running`: `for turn in loop: ...`"""
        turn = 0
        while not state.should_stop:
            yield turn
            turn += 1

    def sleep(self, timeout: float | None = None) -> bool:
        """Sleep `timeout` seconds (None: until asked to end). True, at once, if the program is asked to end."""
        return self._sleeper().sleep(timeout)

    def wait(self, *files: File, timeout: float | None = None) -> list[File]:
        """Wait until one of `files` (sockets, connections, descriptors) is readable; the list of those that are.

        Empty, at once, if the program is asked to end, and when `timeout` seconds have passed. Wait here, then make
        the blocking call: a blocking call itself is not ended by a signal (PEP 475).
        """
        return self._sleeper().wait(*files, timeout=timeout)

    def fileno(self) -> int:
        """A descriptor that is readable once the program is asked to end, for an event loop of your own."""
        return self._sleeper().fileno()

    def _sleeper(self) -> Sleeper:
        try:
            self._program.prepare_to_end()
            return self._program.sleeper
        except AttributeError:
            from .errors import HotRestartError

            raise HotRestartError("enter the loop first: with hotrestart.worker_loop() as loop") from None


class _BeatingLoop(WorkerLoop):
    """The loop of a worker under a supervisor, which sees whether it turns."""

    __slots__ = ("_pulse",)

    def __init__(self, around: Running, pulse: Pulse) -> None:
        super().__init__(around)
        self._pulse = pulse

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._pulse.rest()
        super().__exit__(kind, error, trace)

    @property
    def running(self) -> bool:
        """As ever; and a turn of the loop."""
        self._pulse.turn()
        return not state.should_stop

    def __iter__(self) -> Iterator[int]:
        for turn in super().__iter__():
            self._pulse.turn()
            yield turn

    def sleep(self, timeout: float | None = None) -> bool:
        """As ever; it may last."""
        self._pulse.rest()
        try:
            return super().sleep(timeout)
        finally:
            self._pulse.work()

    def wait(self, *files: File, timeout: float | None = None) -> list[File]:
        """As ever; it may last."""
        self._pulse.rest()
        try:
            return super().wait(*files, timeout=timeout)
        finally:
            self._pulse.work()
