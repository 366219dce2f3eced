"""Hot restart for any long-running Python program: same pid, no connection refused, no job lost or repeated.

Names are loaded on first use, so that importing this costs next to nothing: every restart pays for it. What importing
does at once: it notes how the program was started, and takes what the generation before this one has left.
"""

from __future__ import annotations

import os
import sys

from . import command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import (
        aio,
        control,
        errors,
        fds,
        inheritance,
        listeners,
        pidfile,
        processes,
        reexec,
        rolling,
        serving,
        signals,
        sleeper,
        state,
        systemd,
        testing,
    )
    from .callbacks import on_stop
    from .errors import HotRestartError
    from .inheritance import bequeath, inherited
    from .listeners import listen
    from .loop import worker_loop
    from .outcome import Outcome
    from .program import restartable
    from .role import ready, request_restart, request_stop
    from .rolling.supervisor import Supervisor
    from .sleeper import Sleeper

__version__ = "0.1.0"

__all__ = [
    "HotRestartError",
    "Outcome",
    "Sleeper",
    "Supervisor",
    "aio",
    "bequeath",
    "command",
    "control",
    "errors",
    "fds",
    "inheritance",
    "inherited",
    "listen",
    "listeners",
    "on_stop",
    "pidfile",
    "processes",
    "ready",
    "reexec",
    "request_restart",
    "request_stop",
    "restartable",
    "rolling",
    "serving",
    "signals",
    "sleeper",
    "state",
    "systemd",
    "testing",
    "worker_loop",
]

_HOMES = {
    "HotRestartError": "errors",
    "Outcome": "outcome",
    "Sleeper": "sleeper",
    "Supervisor": "rolling.supervisor",
    "bequeath": "inheritance",
    "inherited": "inheritance",
    "listen": "listeners",
    "on_stop": "callbacks",
    "ready": "role",
    "request_restart": "role",
    "request_stop": "role",
    "restartable": "program",
    "worker_loop": "loop",
}

if command.VARIABLE in os.environ:
    from . import takeover

    takeover.take_over()
    if takeover.membership is not None:
        from .rolling import asking

        asking.begin(takeover.membership.lifeline)


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.{_HOMES.get(name, name)}"
    __import__(home)  # importlib.import_module would import importlib and warnings, 1 ms of every restart
    value: object = getattr(sys.modules[home], name) if name in _HOMES else sys.modules[home]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
