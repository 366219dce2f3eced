"""`python -m hotrestart run`: what is asked for on the command line, and the way from there into the bare supervisor.

Addresses are bound here, so that one that cannot be had is told at once, and by this process: nothing has been started.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from functools import partial

from ..address import Address
from ..errors import AddressError, HotRestartError, OptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from ..options import Options

__all__ = ["add_to", "run"]

_OPTIONS = ("workers", "batch", "soak", "grace", "ready_timeout", "max_age", "max_rss", "control", "pidfile")
_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.*)", re.DOTALL)

_EXAMPLES = """\
examples:
  python3 -m hotrestart run --workers 2 --listen 127.0.0.1:8000 -- uvicorn app:app --fd 3
  python3 -m hotrestart run --notify --listen unix:/run/app.sock -- /usr/bin/app
  python3 -m hotrestart run --settle 5 -- ./worker.sh

The command finds its listeners as from systemd: LISTEN_FDS, LISTEN_PID, descriptors from 3 upward. HUP starts new
workers beside the old; TERM and INT let them finish and end; QUIT ends at once; TTIN and TTOU are one worker more, one
fewer.

exit status: 0 after a stop; 1 if an address cannot be bound, or the command cannot be started or get ready for the
first time; 2 for wrong usage.
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a command line."""
    parser = commands.add_parser(
        "run",
        help="a command under a supervisor: restarted without a gap, and without a line of change",
        usage="%(prog)s [options] -- COMMAND [ARGUMENT...]",
        description="Run a command in one worker or several. On HUP, new ones are started beside the old, which are\n"
        "told to end once all the new are ready; if a new one fails before, the old go on.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_options(parser)
    parser.set_defaults(run=partial(run, refuse=parser.error))


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workers", type=int, default=1, metavar="N", help="how many (1)")
    what = "HOST:PORT, unix:PATH, udp:HOST:PORT, or NAME=ADDRESS for LISTEN_FDNAMES; again for more. None: systemd's"
    add("--listen", action="append", default=[], metavar="ADDRESS", help=what)
    what = "its listeners do not block; for servers that rely on it and do not see to it themselves, as nginx"
    add("--nonblocking", action="store_true", help=what)
    ready = parser.add_mutually_exclusive_group()
    what = "a worker that has lived so long is ready (2); READY=1 to $NOTIFY_SOCKET says it sooner"
    ready.add_argument("--settle", type=float, default=2.0, metavar="SECONDS", help=what)
    ready.add_argument("--notify", action="store_true", help="a worker is ready when it says READY=1, and only then")
    add("--ready-timeout", type=float, default=60.0, metavar="SECONDS", help="how long it may take to get ready (60)")
    add("--grace", type=float, default=30.0, metavar="SECONDS", help="how long it may take to end; then KILL (30)")
    add("--stop-signal", default="TERM", metavar="NAME", help="what asks a worker to end (TERM; nginx: QUIT)")
    add("--soak", type=float, default=0.0, metavar="SECONDS", help="none may die so long after all are ready (0)")
    add("--batch", type=int, metavar="N", help="so many at a time, each taking the place of an old one (all)")
    add("--max-age", type=float, metavar="SECONDS", help="a worker this old is replaced")
    add("--max-rss", type=int, metavar="BYTES", help="a worker this big is replaced")
    add("--pidfile", metavar="PATH", help="written while the program lives")
    control = parser.add_mutually_exclusive_group()
    what = "where the control socket is to be, through which it can be asked and waited for (a place found by pid)"
    control.add_argument("--control", default=True, metavar="PATH", help=what)
    control.add_argument("--no-control", dest="control", action="store_false", help="no control socket")
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(given: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> int:
    """Become the supervisor of `given.command`. The exit status if that cannot be; `refuse` is for wrong usage."""
    from .. import listeners
    from ..options import Options

    argv: list[str] = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not argv:
        refuse("which command? write it after --")
    try:
        options = Options(preload=False, **{name: getattr(given, name) for name in _OPTIONS})
        task: dict[str, Any] = {
            "argv": argv,
            "listen": [_parted(each) for each in given.listen],
            "nonblocking": given.nonblocking,
            "settle": _settle(given),
            "signal": _signal_number(given.stop_signal),
        }
    except (OptionError, AddressError) as error:
        refuse(str(error))
    try:
        for address, name in task["listen"]:
            listeners.listen(address, name=name)
        _become(options, task)
    except (OSError, HotRestartError) as error:
        print(f"hotrestart: {error}", file=sys.stderr)
        return 1


def _become(options: Options, task: dict[str, Any]) -> NoReturn:
    from .. import reexec, signals
    from . import becoming, desk
    from .ties import Ties

    prepared = desk.prepare(options)
    reexec.flush_streams()
    is_restart_due = signals.take_held()
    mask = signals.block(becoming.SIGNALS)
    ties = Ties()
    document = {
        "options": options.as_document(),
        "ties": ties.numbers(),
        "restart": is_restart_due,
        "desk": prepared,
        "run": task,
    }
    try:
        becoming.become(document, set())
    except OSError:
        ties.close()
        desk.withdraw(prepared)
        signals.restore_mask(mask)
        raise


def _parted(text: str) -> tuple[str, str | None]:
    """Address and name of what --listen says; AddressError if it cannot be understood."""
    named = _NAMED.fullmatch(text)
    name, address = named.groups() if named else (None, text)
    parsed = Address.parse(address)
    if parsed.kind == "unix" and not parsed.host.startswith("@"):
        parsed.host = os.path.abspath(parsed.host)
    return str(parsed), name


def _settle(given: argparse.Namespace) -> float | None:
    from .readiness import can_notify

    if given.notify:
        if not can_notify():
            raise OptionError("--notify needs Linux: nothing else tells who has said READY=1")
        return None
    if not 0 <= given.settle < given.ready_timeout:
        raise OptionError(f"--settle is 0 or more seconds, and less than --ready-timeout, not {given.settle:g}")
    return float(given.settle)


def _signal_number(name: str) -> int:
    try:
        return int(signal.Signals["SIG" + name.upper().removeprefix("SIG")])
    except KeyError:
        raise OptionError(f"--stop-signal is a name like TERM, QUIT, INT, not {name!r}") from None
