"""`shrugging`: a process under a supervisor takes no notice of what is sent to the whole process group.

A terminal sends INT to all of a program's processes, and an operator may send HUP so; only the supervisor is to act.
"""

from __future__ import annotations

from . import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable
    from typing import Any
else:
    import _signal as signal  # the module signal imports enum: 2 to 5 ms of every restart

__all__ = ["FOR_SUPERVISORS", "shrugging"]

FOR_SUPERVISORS: tuple[int, ...] = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGTTIN", "SIGTTOU", "SIGUSR1") if hasattr(signal, name)
)
"""What a terminal or an operator may send to the whole process group, and only the supervisor acts on."""


class shrugging(signals.handling):
    """Do nothing for these signals inside a `with` block: for a process whose supervisor acts on them.

    A handler that does nothing, rather than SIG_IGN: what is ignored stays ignored in every program started from here.
    TTIN and TTOU are ignored all the same: with a handler, a write to a terminal that has `tostop` is tried for ever.
    USR1 is left alone if it has a handler already: the supervisor passes it on, to have logs reopened.
    """

    def __init__(self, numbers: Iterable[int] = FOR_SUPERVISORS) -> None:
        taken = {getattr(signal, "SIGUSR1", None)}
        mine = [n for n in numbers if n not in taken or signal.getsignal(n) == signal.SIG_DFL]
        super().__init__(restart=mine, stop=(), on_restart=lambda: None)
        self._wanted.update({n: signal.SIG_IGN for n in (signal.SIGTTIN, signal.SIGTTOU) if n in self._wanted})

    def _install(self, number: int, handler: Callable[[int, Any], None]) -> None:
        if signal.getsignal(number) != signal.SIG_IGN:
            super()._install(number, handler)
