"""The control socket: ask a running program for a restart, and wait for its true outcome.

>>> from hotrestart import control
>>> outcome = control.restart("/run/app.pid")  # doctest: +SKIP
>>> outcome.ok, outcome.generation  # doctest: +SKIP
(True, 8)

Whoever may write to the socket controls the program: it is made with mode 0600 in a folder with mode 0700, and only the
program's own user and root are listened to. Names are loaded on first use.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .client import restart, scale, status, stop

__all__ = ["restart", "scale", "status", "stop"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    __import__(f"{__name__}.client")
    value: object = getattr(sys.modules[f"{__name__}.client"], name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
