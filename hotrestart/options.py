"""`Options`: what `@restartable` and its like can be told, checked where it is written and never later."""

from __future__ import annotations

import os

from .errors import OptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["LONGEST_SOCKET_PATH", "Options"]

LONGEST_SOCKET_PATH = 103
"""Bytes: `sun_path` has 104 on macOS and the BSDs, 108 on Linux, with a NUL at the end."""

_FOREVER = 4e6  # seconds, 46 days: the C library does not take just any number
_MOST_WORKERS = 2048


class Options:
    """The options of one generation; for reading. `workers` is None for a program that restarts in place.

    Raises OptionError for a value that cannot work, and for an option that does nothing without `workers`.
    """

    preload: bool
    preflight: bool
    grace: float
    soak: float

    __slots__ = (
        "batch",
        "control",
        "grace",
        "jitter",
        "max_age",
        "max_jobs",
        "max_rss",
        "pidfile",
        "preflight",
        "preload",
        "ready_timeout",
        "soak",
        "timeout",
        "workers",
    )

    def __init__(
        self,
        *,
        workers: int | None = None,
        preload: bool = True,
        preflight: bool = True,
        ready_timeout: float = 60.0,
        grace: float = 30.0,
        timeout: float | None = None,
        batch: int | None = None,
        soak: float = 0.0,
        max_jobs: int | None = None,
        max_age: float | None = None,
        max_rss: int | None = None,
        jitter: float = 0.1,
        control: bool | str | os.PathLike[str] = True,
        pidfile: str | os.PathLike[str] | None = None,
    ) -> None:
        self.workers: int | None = _count("workers", workers, most=_MOST_WORKERS)
        self.preload, self.preflight = _flag("preload", preload), _flag("preflight", preflight)
        self.ready_timeout: float = _seconds("ready_timeout", ready_timeout)
        self.grace, self.soak = _seconds("grace", grace), _seconds("soak", soak)
        self.timeout: float | None = None if timeout is None else _seconds("timeout", timeout, positive=True)
        self.max_age: float | None = None if max_age is None else _seconds("max_age", max_age, positive=True)
        self.batch: int | None = _count("batch", batch)
        self.max_jobs: int | None = _count("max_jobs", max_jobs)
        self.max_rss: int | None = _count("max_rss", max_rss, unit="bytes")
        self.jitter: float = _seconds("jitter", jitter, unit="a share, as 0.1 for a tenth")
        self.control: bool | str = control if isinstance(control, bool) else _path("control", control)
        self.pidfile: str | None = None if pidfile is None else _path("pidfile", pidfile)
        if workers is None:
            self._refuse_what_needs_workers()

    @classmethod
    def checked(cls, options: dict[str, Any]) -> Options:
        """What was given as keyword arguments."""
        unknown = [name for name in options if name not in cls.__slots__]
        if unknown:
            raise TypeError(f"there is no option {unknown[0]!r}; there are {', '.join(cls.__slots__)}")
        return cls(**options)

    def as_document(self) -> dict[str, Any]:
        """As plain data, for JSON; `Options(**document)` is the way back."""
        return {name: getattr(self, name) for name in self.__slots__}

    def _refuse_what_needs_workers(self) -> None:
        for name in ("timeout", "batch", "max_jobs", "max_age", "max_rss"):
            if getattr(self, name) is not None:
                raise OptionError(f"{name} needs workers=: in place there is nobody to watch over the program")
        if self.soak or not self.preload:
            raise OptionError("soak and preload need workers=: they are about a generation beside the old one")


def _path(name: str, value: Any) -> str:
    """An absolute path: later the program may be in another directory."""
    given: object = value.__fspath__() if hasattr(value, "__fspath__") else value
    if not isinstance(given, str) or not given or "\0" in given:
        raise OptionError(f"{name} is a path, not {value!r}")
    path = os.path.abspath(given)
    if name == "control" and len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise OptionError(f"control={path!r} is too long for a socket: {LONGEST_SOCKET_PATH} bytes are the most")
    return path


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name} is True or False, not {value!r}")
    return value


def _seconds(name: str, value: object, *, positive: bool = False, unit: str = "a number of seconds") -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (isinstance(value, (int, float)) and number and value >= 0 and (value or not positive)):  # catches NaN
        raise OptionError(f"{name} is {unit}, {'more than 0' if positive else '0 or more'}, not {value!r}")
    return min(value, _FOREVER)


def _count(name: str, value: object, *, most: int | None = None, unit: str = "") -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (most and value > most):
        upto = f", {most} at most" if most else ""
        raise OptionError(f"{name} is a number{' of ' + unit if unit else ''}, 1 or more{upto}, not {value!r}")
    return value
