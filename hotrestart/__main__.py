"""The command line, `python3 -m hotrestart COMMAND`: what can be asked for. A command loads its code when it runs.

Exit statuses that all commands share: 2 for wrong usage, 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys

from . import __version__, commands, watching
from .rolling import running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["main"]

_EXAMPLE = """\
examples:
  python3 -m hotrestart demo                      restarts under load, with good code and with broken; nothing needed
  python3 -m hotrestart restart /run/app.pid      and wait: exit status 0 means that the new code serves
  python3 -m hotrestart status /run/app.pid
  python3 -m hotrestart run --workers 2 --listen 127.0.0.1:8000 -- uvicorn --fd 3 app:app
                                                  the same for a command that knows nothing of hotrestart
  python3 -m hotrestart watch -- python3 app.py   for development: restart whenever a file changes
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments` (default: this process's own); its exit status. SystemExit(2) for wrong usage."""
    _open_missing_streams()
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except BrokenPipeError:  # whoever read the output has seen enough
        status = 1
    except KeyboardInterrupt:
        status = 130
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"hotrestart: standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # do not meet it again in the flush at exit
    return status


def _open_missing_streams() -> None:
    """Those that whoever started us has closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - there to the end
    reconfigure: Any = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")  # a path of any bytes can be shown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m hotrestart",
        description="Hot restart for any long-running Python program: same pid, no connection refused, no job lost.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hotrestart {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_to(subparsers)
    running.add_to(subparsers)
    watching.add_to(subparsers)
    _add_demo(subparsers)
    return parser


def _add_demo(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = "see restarts under load, in twenty seconds, with nothing installed"
    demo = subparsers.add_parser(
        "demo",
        help=what,
        description="In a temporary folder, a worker takes jobs from a queue while its code is changed and it is sent "
        "HUP, again and again, once with code that is broken. Then an HTTP server with two workers is reloaded while "
        "clients ask, also with code that does not load, with code that dies once it is ready, and with a worker that "
        "hangs. Every job and every request is accounted for.",
        epilog="exit status: 0 if no job was lost or repeated and no request failed, every restart led to the new "
        "code, the broken code was refused and the pid stayed; 1 if not.",
    )
    demo.add_argument(
        "half", nargs="?", choices=("in-place", "rolling"), help="only the restart in place, or only the rolling one"
    )
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from .demo import HALVES, run

    return run((options.half,) if options.half else HALVES)


if __name__ == "__main__":
    sys.exit(main())
