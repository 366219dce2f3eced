"""`restart`, `stop`, `status` and `scale`: the commands that ask a running program for something, and wait.

Their exit statuses are a promise: 0, it is so; 1, it failed, or was refused, and the old code still serves; 3, nobody
is there, or the program has ended; 4, no answer in time, and it may happen yet. With --json one object is printed,
whatever happens.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from functools import partial
from time import monotonic

from . import control, showing
from .errors import ControlError, HotRestartError, OptionError, TimedOutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

__all__ = ["FAILED", "NOBODY", "NO_ANSWER", "OK", "USAGE", "add_to"]

OK, FAILED, USAGE, NOBODY, NO_ANSWER = 0, 1, 2, 3, 4

_STATUSES = """\
exit status:
  0  {done}
  1  {failed}
  2  wrong usage
  3  nobody is there, or the program has ended
  4  no answer within --timeout: it may happen yet
"""

_TARGET = "a pid, a pid file, or the path of a control socket"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the four to a command line."""
    _add(
        commands,
        "restart",
        _restart,
        "restart a program, and wait until its new code serves",
        300.0,
        done="the new code serves",
        failed="it failed, and the old code still serves; why is printed, with the end of the traceback",
        example="restart /run/app.pid && echo deployed",
    )
    _add(
        commands,
        "stop",
        _stop,
        "stop a program gracefully, and wait until it has ended",
        300.0,
        done="it has ended",
        failed="it refused",
        example="stop /run/app.pid",
    )
    _add(
        commands,
        "status",
        _status,
        "show how a program is: generation, workers, last restart",
        10.0,
        done="it has answered",
        failed="it refused",
        example="status 4711 --json",
    )
    scale = _add(
        commands,
        "scale",
        _scale,
        "change the number of workers, until new code asks for another",
        10.0,
        done="so many are wanted now",
        failed="it cannot be",
        example="scale /run/app.pid +2",
    )
    scale.add_argument("number", metavar="NUMBER", type=_number, help="4: so many; +1, -1: so many more or fewer")


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    ask: Callable[[argparse.Namespace], dict[str, Any]],
    what: str,
    timeout: float,
    *,
    done: str,
    failed: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=_STATUSES.format(done=done, failed=failed) + f"\nexample:\n  python3 -m hotrestart {example}\n",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="TARGET", help=_TARGET)
    how_long = f"wait so long for the answer ({timeout:g})"
    parser.add_argument("--timeout", type=_seconds, default=timeout, metavar="SECONDS", help=how_long)
    parser.add_argument("--json", action="store_true", help="print one JSON object, for machines")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.set_defaults(run=partial(_run, name=name, ask=ask))
    return parser


def _run(given: argparse.Namespace, name: str, ask: Callable[[argparse.Namespace], dict[str, Any]]) -> int:
    answer: dict[str, Any]
    began = monotonic()
    status, answer = OK, {}
    try:
        answer = ask(given)
        if answer.get("ok") is False:
            status = NOBODY if answer["stage"] == "stop" else FAILED
    except (HotRestartError, OSError) as error:
        status = NO_ANSWER if isinstance(error, TimedOutError) else NOBODY
        if isinstance(error, (ControlError, OptionError)):
            status = FAILED
        answer = {"ok": False, "reason": str(error)}
        if not given.json:
            print(f"hotrestart: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"hotrestart: not waiting any longer; the {name} goes on", file=sys.stderr)
        raise
    if given.json:
        common = {"ok": True, "reason": "", "seconds": monotonic() - began}
        print(json.dumps({"command": name, "status": status, **common, **answer}))
    return status


def _restart(given: argparse.Namespace) -> dict[str, Any]:
    shows_stages = sys.stdout.isatty() and not given.json and not given.quiet

    def on_stage(stage: str, generation: int) -> None:
        if shows_stages:
            print(f"generation {generation}: {stage}", flush=True)

    outcome = control.restart(given.target, timeout=given.timeout, on_stage=on_stage)
    if not given.json:
        if not outcome.ok:
            print(f"hotrestart: {showing.outcome(outcome)}", file=sys.stderr)
        elif not given.quiet:
            print(showing.outcome(outcome))
    return outcome.as_document()


def _stop(given: argparse.Namespace) -> dict[str, Any]:
    control.stop(given.target, timeout=given.timeout)
    if not given.json and not given.quiet:
        print("stopped")
    return {}


def _status(given: argparse.Namespace) -> dict[str, Any]:
    document = control.status(given.target, timeout=given.timeout)
    if not given.json and not given.quiet:
        print(showing.status(document))
    return {"program": document}


def _scale(given: argparse.Namespace) -> dict[str, Any]:
    name, number = given.number
    workers = control.scale(given.target, timeout=given.timeout, **{name: number})
    if not given.json and not given.quiet:
        print(f"{workers} workers wanted")
    return {"workers": workers}


def _number(text: str) -> tuple[str, int]:
    try:
        return "by" if text[:1] in ("+", "-") else "to", int(text)
    except ValueError:
        raise ArgumentTypeError(f"a number, as 4, +1 or -1, not {text!r}") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise ArgumentTypeError(f"seconds, more than 0, not {text!r}")
    return seconds
