"""`restart`, `stop`, `status` and `scale`: the commands that ask a running program for something, and wait.

Their exit statuses are a promise: 0, it is so; 1, it failed, or was refused, and the old code still serves; 3, nobody
is there, or the program has ended; 4, no answer in time, and it may happen yet. They hold also if nobody reads what is
printed. With --json one object is printed, whatever comes of it.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from functools import partial
from time import monotonic

from . import control, showing
from .errors import ControlError, HotRestartError, TimedOutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any, TextIO

    Answer = tuple[dict[str, Any], str]  # for machines, and for people

__all__ = ["FAILED", "INTERRUPTED", "NOBODY", "NO_ANSWER", "OK", "add_to"]

OK, FAILED, NOBODY, NO_ANSWER, INTERRUPTED = 0, 1, 3, 4, 130

_LONGEST = 1e6  # seconds: poll() takes so many milliseconds, and no more than twice as many

_STATUSES = """\
exit status:
  0    {done}
  1    {failed}
  2    wrong usage
  3    nobody is there, or the program has ended
  4    no answer within --timeout: it may happen yet
  130  Ctrl-C: it may happen yet
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
    ask: Callable[[argparse.Namespace], Answer],
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


def _run(given: argparse.Namespace, name: str, ask: Callable[[argparse.Namespace], Answer]) -> int:
    began = monotonic()
    document: dict[str, Any]
    try:
        document, text = ask(given)
        status = OK
        if document.get("ok") is False:
            status = NOBODY if document["stage"] == "stop" else FAILED
    except (HotRestartError, OSError) as error:
        status = NO_ANSWER if isinstance(error, TimedOutError) else NOBODY
        if isinstance(error, ControlError):
            status = FAILED
        document, text = {"ok": False, "reason": str(error)}, str(error)
    except KeyboardInterrupt:
        status, text = INTERRUPTED, "not waiting any longer"
        if name in ("restart", "stop"):
            text += f"; the {name} goes on"
        document = {"ok": False, "reason": text}
    if given.json:
        common = {"ok": True, "reason": "", "seconds": monotonic() - began}
        _say(json.dumps({"command": name, "status": status, **common, **document}), sys.stdout)
    elif status != OK:
        _say(f"hotrestart: {text}", sys.stderr)
    elif not given.quiet:
        _say(text, sys.stdout)
    return status


def _say(text: str, file: TextIO) -> None:
    try:
        try:
            print(text, file=file, flush=True)
        except UnicodeEncodeError:  # a file name that is not UTF-8, or a letter that this locale does not have
            print(text.encode(file.encoding, "backslashreplace").decode(file.encoding), file=file, flush=True)
    except OSError:  # a reader that has gone, a full disk, a lost terminal: what has happened has happened all the same
        pass


def _restart(given: argparse.Namespace) -> Answer:
    shows_stages = sys.stdout.isatty() and not given.json and not given.quiet

    def on_stage(stage: str, generation: int) -> None:
        if shows_stages:
            _say(f"generation {generation}: {stage}", sys.stdout)

    outcome = control.restart(given.target, timeout=given.timeout, on_stage=on_stage)
    return outcome.as_document(), showing.outcome(outcome)


def _stop(given: argparse.Namespace) -> Answer:
    control.stop(given.target, timeout=given.timeout)
    return {}, "stopped"


def _status(given: argparse.Namespace) -> Answer:
    document = control.status(given.target, timeout=given.timeout)
    return {"program": document}, showing.status(document)


def _scale(given: argparse.Namespace) -> Answer:
    name, number = given.number
    workers = control.scale(given.target, timeout=given.timeout, **{name: number})
    return {"workers": workers}, f"{workers} workers wanted"


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
    if not 0 < seconds <= _LONGEST:
        raise ArgumentTypeError(f"seconds, more than 0 and {_LONGEST:.0f} at most, not {text!r}")
    return seconds
