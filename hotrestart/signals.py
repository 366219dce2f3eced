"""`handling`: route HUP, TERM and INT to the flag and the sleeper, and put back whatever was there before.

Three windows lose or misdirect signals, and each is closed by blocking first:

* between exec and the new handlers, a HUP kills: the old generation blocks it, `hold` remembers it from the import of
  hotrestart on, and `handling` replays it;
* in a forked child the parent's handlers swallow a TERM meant to end the child (as `multiprocessing` sends): the child
  gets back what was there before, and nothing is delivered to it until then;
* while handlers are being exchanged, a signal would meet a half of each.

A handler does nothing but write attributes and call one function, which must take no lock and may be interrupted by
itself. A signal that is ignored when we come (nohup, a shell's background job) stays ignored.
"""

from __future__ import annotations

import os
from _thread import get_ident

from . import state

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable
    from typing import Any

    from typing_extensions import Self

    from .sleeper import Sleeper
else:
    import _signal as signal  # the module signal imports enum: 2 to 5 ms of every restart

__all__ = ["RESTART", "STOP", "block", "handling", "hold", "restore_mask", "take_held", "waking"]

RESTART: tuple[int, ...] = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()
STOP: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)


class handling:
    """Handle signals inside a `with` block, in the main thread.

    One of `restart` calls `on_restart()`; the first of `stop` calls `on_stop()` and gives all of `stop` their default
    action, so that a second one ends the process at once, even if Python is stuck. Without these functions the flag
    in `state` is set and the sleeper woken for good. Both run in the main thread between two bytecodes: they must not
    block, log, or take a lock. While the block lasts, each signal ends the sleeper's sleeps: see `waking`.

    Raises WrongThreadError outside of the main thread. A forked child is out of the block; an exec ends it.
    """

    def __init__(
        self,
        sleeper: Sleeper | None = None,
        *,
        restart: Iterable[int] = RESTART,
        stop: Iterable[int] = STOP,
        on_restart: Callable[[], object] | None = None,
        on_stop: Callable[[], object] | None = None,
    ) -> None:
        self._sleeper = sleeper
        self._stop = tuple(stop)
        self._on_restart = on_restart or (lambda: self._end("restart"))
        self._on_stop = on_stop or (lambda: self._end("stop"))
        self._wanted: dict[int, Any] = {
            **dict.fromkeys(restart, self._restart_asked),
            **dict.fromkeys(self._stop, self._stop_asked),
        }
        self._found: dict[int, Any] = {}
        self._waking = None if sleeper is None else waking(sleeper)

    def __enter__(self) -> Self:
        if not hasattr(signal, "pthread_sigmask"):
            from .errors import HotRestartError

            raise HotRestartError("signals.handling() needs a POSIX system")
        held = _held
        with _blocked(self._wanted):
            for number, handler in self._wanted.items():
                self._install(number, handler)
            release()
        _active.append(self)
        _watch_forks()
        if self._waking is not None:
            self._waking.__enter__()
        unblock(_blocked_at_boot)
        _blocked_at_boot.clear()
        if held is not None and held.asked_to_stop:
            self._on_stop()
        elif held is not None and held.asked:
            self._on_restart()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Put back what was found, except where somebody else has installed a handler since."""
        if self in _active:
            _active.remove(self)
        with _blocked(self._wanted):
            if self._waking is not None:
                self._waking.__exit__()
            while self._found:
                number, before = self._found.popitem()
                if signal.getsignal(number) in (self._wanted[number], signal.SIG_DFL, _end_at_once):
                    _set(number, before)

    def installed(self) -> list[int]:
        """The signals that reach this block's handlers now."""
        return [number for number in self._found if signal.getsignal(number) == self._wanted[number]]

    def _install(self, number: int, handler: Callable[[int, Any], None]) -> None:
        before = signal.getsignal(number)
        if before == signal.SIG_IGN:
            if handler == self._restart_asked and state.generation == 1:
                from . import log

                log.warning("HUP was ignored when the program was started (nohup?), and stays ignored")
            return
        if before is None:
            from . import log

            log.warning(f"signal {number} has a handler that was not installed from Python: it is left alone")
            return
        _set(number, handler)
        # Never by way of the default action: another thread, in which it is not blocked, may be taking the signal.
        held = _held if _held is not None and before == _held._wanted.get(number) else None  # the program has no other
        self._found[number] = before if held is None else held._found.pop(number, before)

    def _restart_asked(self, _number: int, _frame: object) -> None:
        self._on_restart()

    def _stop_asked(self, _number: int, _frame: object) -> None:
        for each in self._stop:
            if each in self._found:
                signal.signal(each, _end_at_once if os.getpid() == 1 else signal.SIG_DFL)
        self._on_stop()

    def _end(self, why: Any) -> None:
        state.end(why)
        if self._sleeper is not None:
            self._sleeper.wake(for_good=True)


class waking:
    """Inside a `with` block, in the main thread: a signal with a Python handler ends a sleep of `sleeper`, or whatever
    else waits for its `nudge_fileno()`, so that the handler runs. Also a signal that the kernel hands to another
    thread, and one that comes when Python has looked for signals for the last time before it sleeps. Unless somebody
    else has the wakeup fd. In another thread it does nothing."""

    def __init__(self, sleeper: Sleeper) -> None:
        self._sleeper, self._fd = sleeper, -1

    def __enter__(self) -> Self:
        self._sleeper.owner = get_ident()
        mine = self._sleeper.wakeup_fd()
        try:
            before = signal.set_wakeup_fd(mine, warn_on_full_buffer=False)
        except ValueError:
            return self  # not the main thread
        if before == -1:
            self._fd = mine
        else:
            signal.set_wakeup_fd(before)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._fd != -1:
            present = signal.set_wakeup_fd(-1)
            if present != self._fd:
                signal.set_wakeup_fd(present)
            self._fd = -1


class _Held(handling):
    """Remembers what was asked for before the program was ready to be asked."""

    def __init__(self, restart: Iterable[int], stop: Iterable[int]) -> None:
        self.asked = self.asked_to_stop = False
        super().__init__(restart=restart, stop=stop, on_restart=self._remember, on_stop=self._remember_stop)

    def _remember(self) -> None:
        self.asked = True

    def _remember_stop(self) -> None:
        self.asked_to_stop = True


def _end_at_once(number: int, _frame: object) -> None:
    """The default action, for process 1 of a container: the kernel keeps that from it."""
    os._exit(128 + number)


def _set(number: int, handler: Any) -> None:
    try:
        signal.signal(number, handler)
    except ValueError:
        from .errors import WrongThreadError

        raise WrongThreadError("signals can be handled in the main thread only: enter there") from None


_held: _Held | None = None
_active: list[handling] = []


def hold(numbers: Iterable[int], stop: Iterable[int] = ()) -> None:
    """Remember these signals until the next `handling` begins, and unblock them.

    For a new generation: the one before has blocked them across the exec. Outside of the main thread they just stay
    blocked until then.
    """
    global _held
    held = _Held(numbers, stop)
    try:
        for number, handler in held._wanted.items():
            held._install(number, handler)
    except RuntimeError:  # WrongThreadError is one
        _blocked_at_boot.update(held._wanted)
        return
    _held = held
    _active.append(held)
    _watch_forks()
    unblock(held._wanted)


def release() -> None:
    """End what `hold` began."""
    global _held
    if _held is not None:
        _held.restore()
        _held = None


def take_held() -> bool:
    """End what `hold` began; whether a restart was asked for since.

    For a program with a HUP handler of its own and `reexec.exec_now()`: from the import of hotrestart until you install
    that handler, a HUP is remembered for you. Ask here, once, when it is in place. In the main thread.
    """
    asked = _held is not None and _held.asked
    release()
    return asked


def block(numbers: Iterable[int]) -> list[int]:
    """Block these signals in this thread; return the mask as it was, for `restore_mask`."""
    return [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, numbers)]


def disarm(numbers: Iterable[int]) -> None:
    """Let these signals do nothing in a process that is about to exec, whatever thread takes them. (Ignored, they would
    stay so in what is started from here.) Not for those that are ignored, nor outside of the main thread."""
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            try:
                signal.signal(number, lambda _number, _frame: None)
            except ValueError:
                return


def unblock(numbers: Iterable[int]) -> None:
    """Unblock these signals in this thread, one after another.

    Those that are pending would be delivered all at once, each interrupting the one before in its first instruction. If
    faulthandler is on they share its small stack: five frames of 3 KB were too many for 3.10 and 3.11.
    """
    for number in numbers:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))


def restore_mask(mask: Iterable[int]) -> None:
    """Make `mask` the set of signals blocked in this thread; what is pending and not in it is delivered now."""
    mask = [int(number) for number in mask]
    unblock(set(block(())) - set(mask))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


_blocked_at_boot: set[int] = set()


class _blocked:
    """Signals wait while handlers are exchanged."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = list(numbers)

    def __enter__(self) -> None:
        self._mask = block(self._numbers)

    def __exit__(self, *exc_info: object) -> None:
        restore_mask(self._mask)


_watching_forks = False
_masks: dict[int, list[int]] = {}  # of the threads that are forking just now


def _watch_forks() -> None:
    global _watching_forks
    if not _watching_forks:
        _watching_forks = True
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def _before_fork() -> None:
    if _active:
        _masks[get_ident()] = block({number for each in _active for number in each._wanted})


def _after_fork() -> None:
    mask = _masks.pop(get_ident(), None)
    if mask is not None:
        restore_mask(mask)


def _after_fork_in_child() -> None:
    global _held
    mask = _masks.pop(get_ident(), None)
    while _active:
        _active[-1].restore()
    _held = None  # what was asked for is the parent's to answer
    if mask is not None:
        restore_mask(mask)
