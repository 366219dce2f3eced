"""`@restartable`: the decorator on `main()` that makes a program restartable."""

from __future__ import annotations

from . import command, inplace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, TypeVar, overload

    from typing_extensions import ParamSpec

    P = ParamSpec("P")
    R = TypeVar("R")
    Main = TypeVar("Main", bound=Callable[..., Any])

__all__ = ["Running", "check_options", "restartable"]

_FOREVER = 4e6  # seconds, 46 days: the C library does not take just any number

_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE; importing inspect costs 10 ms of every restart

if TYPE_CHECKING:

    @overload
    def restartable(main: Main, /) -> Main: ...

    @overload
    def restartable(
        *, preflight: bool = ..., ready_timeout: float = ..., grace: float = ...
    ) -> Callable[[Main], Main]: ...


def restartable(
    main: Callable[..., Any] | None = None,
    /,
    *,
    preflight: bool = True,
    ready_timeout: float = 60.0,
    grace: float = 30.0,
) -> Any:
    """Make the program whose `main` this is restart in place: on HUP, or `request_restart()`.

    For functions and coroutine functions, with and without parentheses. While `main` runs, HUP asks for a restart,
    TERM and INT for a stop; `main` learns it from `state.should_stop`, a `worker_loop()` or `on_stop`. When it has
    returned (or raised: a restart that was asked for happens all the same), non-daemon threads are joined, every exit
    handler runs, and the program starts anew under the same pid.

    `preflight`: first run the new code in a child up to the call of `main`; if that fails, nothing else happens and the
    log says why. `ready_timeout`: seconds that may take. `grace`: seconds between the request and the end; then the
    restart happens all the same, and a stop ends the process.

    Call the decorated function in the main thread. Raises OptionError for a wrong option, at once; WrongThreadError and
    NotRestartableError when it is called. Called inside itself it is the plain function. A forked child is only
    told to stop.
    """
    options = check_options(preflight=preflight, ready_timeout=ready_timeout, grace=grace)

    def decorator(main: Callable[..., Any]) -> Callable[..., Any]:
        return _decorated(main, options)

    if main is None:
        return decorator
    return _decorated(main, options)


class Running:
    """Around the code that serves: the door for a preflight, the program if none runs yet, and its end."""

    def __init__(self, options: dict[str, Any], *, for_good: bool) -> None:
        self._options, self._for_good = options, for_good
        self._mine: inplace.InPlace | None = None

    def __enter__(self) -> inplace.InPlace:
        if command.first.is_preflight:
            from . import takeover

            takeover.arrive()
        if inplace.current is not None:
            return inplace.current
        self._mine = inplace.InPlace(**self._options)
        self._mine.enter()
        return self._mine

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._mine is not None:
            self._mine.leave(error, for_good=self._for_good)


def check_options(*, preflight: bool, ready_timeout: float, grace: float) -> dict[str, Any]:
    """The options as they are, or OptionError."""
    from .errors import OptionError

    if not isinstance(preflight, bool):
        raise OptionError(f"preflight is True or False, not {preflight!r}")
    for name, value in (("ready_timeout", ready_timeout), ("grace", grace)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise OptionError(f"{name} is a number of seconds, 0 or more, not {value!r}")
    return {
        "preflight": preflight,
        "ready_timeout": min(ready_timeout, _FOREVER),
        "grace": min(grace, _FOREVER),
    }


def _decorated(main: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    _check_callable(main)
    around = _around_coroutine if _makes_coroutines(main) else _around_function
    wrapper = around(main, options)
    for name in ("__module__", "__name__", "__qualname__", "__doc__", "__annotations__"):
        try:
            setattr(wrapper, name, getattr(main, name))
        except AttributeError:
            continue  # a callable object without a name
    wrapper.__wrapped__ = main  # type: ignore[attr-defined]
    return wrapper


def _around_function(main: Callable[P, R], options: dict[str, Any]) -> Callable[P, R]:
    def restartable_main(*args: P.args, **kwargs: P.kwargs) -> R:
        with Running(options, for_good=True):
            return main(*args, **kwargs)

    return restartable_main


def _around_coroutine(main: Callable[P, Awaitable[R]], options: dict[str, Any]) -> Callable[P, Awaitable[R]]:
    async def restartable_main(*args: P.args, **kwargs: P.kwargs) -> R:
        with Running(options, for_good=True):
            return await main(*args, **kwargs)

    return restartable_main


def _makes_coroutines(main: object) -> bool:
    """Whether it is a coroutine function, or a partial, a staticmethod or an object around one."""
    inner = (main, getattr(main, "func", None), getattr(main, "__func__", None), vars(type(main)).get("__call__"))
    return any(getattr(getattr(each, "__code__", None), "co_flags", 0) & _CO_COROUTINE for each in inner)


def _check_callable(main: object) -> None:
    if not callable(main):
        from .errors import OptionError

        raise OptionError(f"@restartable goes on a function, not on {main!r}")
