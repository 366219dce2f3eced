"""`@restartable`: the decorator on `main()` that makes a program restartable."""

from __future__ import annotations

import sys

from . import command, role
from .options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable
    from typing import Any, TypeVar, overload

    from typing_extensions import ParamSpec

    from .inplace import InPlace
    from .role import Role

    P = ParamSpec("P")
    R = TypeVar("R")
    Main = TypeVar("Main", bound=Callable[..., Any])

__all__ = ["Running", "restartable"]

_ANNOTATIONS = "__annotate__" if sys.version_info >= (3, 14) else "__annotations__"  # 3.14: to look is to evaluate
_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE; importing inspect costs 10 ms of every restart

if TYPE_CHECKING:

    @overload
    def restartable(main: Main, /) -> Main: ...

    @overload
    def restartable(
        *,
        workers: int | None = ...,
        preload: bool = ...,
        preflight: bool = ...,
        ready_timeout: float = ...,
        grace: float = ...,
        timeout: float | None = ...,
        batch: int | None = ...,
        soak: float = ...,
        max_jobs: int | None = ...,
        max_age: float | None = ...,
        max_rss: int | None = ...,
        jitter: float = ...,
        control: bool | str | os.PathLike[str] = ...,
        pidfile: str | os.PathLike[str] | None = ...,
    ) -> Callable[[Main], Main]: ...


def restartable(main: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make the program whose `main` this is restart on HUP, or `request_restart()`: in place, or rolling.

    For functions and coroutine functions, with and without parentheses. While `main` runs, HUP asks for a restart,
    TERM and INT for a stop; `main` learns it from `state.should_stop`, a `worker_loop()` or `on_stop`.

    **In place**, without `workers`: when `main` has returned (or raised: a restart that was asked for happens all the
    same), non-daemon threads are joined, every exit handler runs, and the program starts anew under the same pid.

    `preflight`: first run the new code in a child up to the call of `main`; if that fails, nothing else happens and the
    log says why. `ready_timeout`: seconds that may take. `grace`: seconds between the request and the end; then the
    restart happens all the same, and a stop ends the process.

    **Rolling**, with `workers=N`: the process becomes a supervisor with nothing of the program in it, and `main` runs
    in N worker processes. A restart loads the new code beside the old; only when N new workers have said that they are
    ready (`worker_loop()` or `ready()`) do the old ones drain. Whatever fails before that changes nothing. The call of
    `main` does not return; a worker ends after it, and runs the exit handlers that were registered in it.

    `preload`: load the program once for each generation, and fork its workers; otherwise each worker loads it for
    itself. `ready_timeout`: seconds the program may take to load, and then each worker to get ready. `grace`: seconds
    an old worker may take to finish. `soak`: seconds in which no new worker may die before the old ones are let go.
    `batch`: start so many new ones at a time, and let as many old ones go; all at once, if not given. `timeout`:
    seconds without a turn of its `worker_loop` after which a worker counts as hung, and is replaced. `max_jobs` (turns
    of the loop), `max_age` (seconds), `max_rss` (bytes): a worker that has reached it is replaced, without a gap and
    not all at the same time: the first two are stretched by a random share, `jitter` at most.

    Both: `control`: serve a control socket, for `python -m hotrestart restart` and its like: at the place to which the
    pid leads (True), at a path of yours, or not at all (False). `pidfile`: a path, where the pid stands for as long as
    the program runs.

    Call the decorated function in the main thread. Raises OptionError for a wrong option, at once; when it is called,
    WrongThreadError, NotRestartableError, and PidFileError or AddressError if a path cannot be had. Called inside
    itself it is the plain function. A forked child is only told to stop.
    """
    checked = Options.checked(options)

    def decorator(main: Callable[..., Any]) -> Callable[..., Any]:
        return _decorated(main, checked)

    if main is None:
        return decorator
    return _decorated(main, checked)


class Running:
    """Around the code that serves: the door for a preflight, the program if none runs yet, and its end."""

    def __init__(self, options: Options, *, for_good: bool) -> None:
        self._options, self._for_good = options, for_good
        self._mine: InPlace | None = None

    def __enter__(self) -> Role:
        if command.first.is_preflight:
            from . import takeover

            takeover.arrive()
        if role.current is not None and not getattr(role.current, "is_off", False):
            return role.current
        if getattr(sys.modules.get(f"{__package__}.takeover"), "membership", None) is not None:
            from .errors import NotRestartableError

            raise NotRestartableError(
                "the new code does not ask for workers= any more: stop the program and start it again"
            )
        from . import inplace

        if isinstance(role.current, inplace.InPlace):
            role.current.give_way()
        self._mine = inplace.InPlace(self._options)
        self._mine.enter()
        return self._mine

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._mine is not None:
            self._mine.leave(error, for_good=self._for_good)


def _decorated(main: Callable[..., Any], options: Options) -> Callable[..., Any]:
    _check_callable(main)
    around = _in_workers if options.workers else _around_coroutine if _makes_coroutines(main) else _around_function
    wrapper: Any = around(main, options)
    for name in ("__module__", "__name__", "__qualname__", "__doc__", _ANNOTATIONS):
        try:
            setattr(wrapper, name, getattr(main, name))
        except AttributeError:
            continue  # a callable object without a name
    wrapper.__wrapped__ = main
    decorated: Callable[..., Any] = wrapper
    return decorated


def _around_function(main: Callable[P, R], options: Options) -> Callable[P, R]:
    def restartable_main(*args: P.args, **kwargs: P.kwargs) -> R:
        with Running(options, for_good=True):
            return main(*args, **kwargs)

    return restartable_main


def _around_coroutine(main: Callable[P, Awaitable[R]], options: Options) -> Callable[P, Awaitable[R]]:
    async def restartable_main(*args: P.args, **kwargs: P.kwargs) -> R:
        with Running(options, for_good=True):
            return await main(*args, **kwargs)

    return restartable_main


def _in_workers(main: Callable[P, Any], options: Options) -> Callable[P, Any]:
    """No coroutine function for a coroutine function: workers are forked before there is an event loop, and the
    caller's own runner then gets the coroutine in each of them."""
    is_coroutine = _makes_coroutines(main)

    def restartable_main(*args: P.args, **kwargs: P.kwargs) -> Any:
        if command.first.is_preflight:
            from . import takeover

            takeover.arrive()
        from .rolling import door, worker

        if isinstance(role.current, worker.Worker):
            return main(*args, **kwargs)
        mine = door.enter(options)
        run = mine.run_coroutine if is_coroutine else mine.run
        return run(lambda: main(*args, **kwargs))

    return restartable_main


def _makes_coroutines(main: object) -> bool:
    """Whether it is a coroutine function, or a partial, a staticmethod or an object around one."""
    inherited = getattr(type(main), "__call__", None)  # noqa: B004
    inner = (main, getattr(main, "func", None), getattr(main, "__func__", None), inherited)
    return any(getattr(getattr(each, "__code__", None), "co_flags", 0) & _CO_COROUTINE for each in inner)


def _check_callable(main: object) -> None:
    if not callable(main):
        from .errors import OptionError

        raise OptionError(f"@restartable goes on a function, not on {main!r}")
