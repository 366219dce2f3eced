"""`@restartable`: the decorator on `main()` that makes a program restartable."""

from __future__ import annotations

from .inplace import Running, check_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, TypeVar, overload

    from typing_extensions import ParamSpec

    P = ParamSpec("P")
    R = TypeVar("R")
    Main = TypeVar("Main", bound=Callable[..., Any])

__all__ = ["restartable"]

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
    NotRestartableError when it is called. Called inside itself it is the plain function; in a forked child too.
    """
    options = check_options(preflight=preflight, ready_timeout=ready_timeout, grace=grace)

    def decorator(main: Callable[..., Any]) -> Callable[..., Any]:
        return _decorated(main, options)

    if main is None:
        return decorator
    return _decorated(main, options)


def _decorated(main: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    _check_callable(main)
    if getattr(getattr(main, "__code__", None), "co_flags", 0) & _CO_COROUTINE:
        wrapper = _around_coroutine(main, options)
    else:
        wrapper = _around_function(main, options)
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


def _check_callable(main: object) -> None:
    if not callable(main):
        from .errors import OptionError

        raise OptionError(f"@restartable goes on a function, not on {main!r}")
