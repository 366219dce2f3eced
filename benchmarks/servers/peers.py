"""Each server: how it is started and reloaded, by the book, with two workers (or one process that restarts in place).

What the one who asks for a reload is told: a signal tells nothing; a command has its exit status.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import CHECKOUT
from processes import children, has_gone

from .service import Service, wait_for

OURS = "hotrestart"

_PROGRAMS = Path(__file__).parent / "programs"
_RECIPES = CHECKOUT / "tests" / "recipes" / "programs"

Reload = Callable[[Service, int], str]
"""Ask for the reload to this version; returns what the one who asks is told, or nothing."""


@dataclass(frozen=True)
class Peer:
    name: str
    package: str  # the distribution that it needs
    kind: str  # of the application: WSGI or ASGI
    command: Callable[[Service], list[str]]
    reload: Reload
    asks: Reload | None = None  # a way to ask that tells the outcome, for the broken deploys
    is_held: bool = False  # its listener is held by the measuring process
    is_single: bool = False  # one process, no workers
    only_broken: bool = False  # differs from another in broken deploys alone

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)

    def version(self) -> str:
        """Of its package; PackageNotFoundError if it is not installed."""
        return "" if self.package == "" else f"{self.package} {importlib.metadata.version(self.package)}"


def _hup(service: Service, _: int) -> str:
    service.send(signal.SIGHUP)
    return ""


# -- commands ----------------------------------------------------------------------------------------------------------


def _gunicorn(*options: str) -> Callable[[Service], list[str]]:
    def command(service: Service) -> list[str]:
        shared = ["-w", "2", "-b", f"127.0.0.1:{service.port}", "--pid", "service.pid", "--log-level", "error"]
        shared += ["--timeout", f"{service.ready_timeout:.0f}"]
        return [service.python, "-m", "gunicorn", *shared, *options, "app:app"]

    return command


def _uvicorn(service: Service) -> list[str]:
    where = ["--fd", str(service.held.fileno())] if service.held else ["--port", str(service.port)]
    quiet = ["--log-level", "warning", "--no-access-log"]
    limit = ["--timeout-worker-healthcheck", f"{service.ready_timeout:.0f}"]  # for a worker that is still loading, too
    return [service.python, "-m", "uvicorn", "--workers", "2", *where, *quiet, *limit, "app:app"]


def _hypercorn(service: Service) -> list[str]:
    where = ["-b", f"127.0.0.1:{service.port}", "--backlog", "1024"]
    return [service.python, "-m", "hypercorn", "-w", "2", *where, "app:app"]


def _granian(service: Service) -> list[str]:
    options = ["--interface", "asgi", "--workers", "2", "--host", "127.0.0.1", "--port", str(service.port)]
    if service.loads:  # an old worker goes so long after the new one has been started, ready or not
        options += ["--respawn-interval", f"{service.loads + 2:g}"]
    return [service.python, "-m", "granian", *options, "--log-level", "warning", "app:app"]


def _uwsgi(service: Service) -> list[str]:
    program = shutil.which("uwsgi", path=sysconfig.get_path("scripts")) or "uwsgi"
    options = ["--http11-socket", f"127.0.0.1:{service.port}", "--master", "--workers", "2", "--listen", "1024"]
    options += ["--threads", "16"]  # a kept connection holds a thread, and two would hold all workers
    options += ["--lazy-apps", "--need-app", "--die-on-term", "--disable-logging", "--master-fifo", "fifo"]
    home = ["--home", sys.prefix] if sys.prefix != sys.base_prefix else []
    return [program, *options, *home, "--pythonpath", ".", "--module", "app:app"]


def _circus(service: Service) -> list[str]:
    quiet = "--log-level warning --no-access-log"
    (service.folder / "circus.ini").write_text(
        f"[circus]\nendpoint = tcp://127.0.0.1:{service.second_port}\n"
        f"pubsub_endpoint = tcp://127.0.0.1:{service.third_port}\n"
        f"[watcher:app]\ncmd = {service.python} -m uvicorn --fd $(circus.sockets.web) {quiet} app:app\n"
        "numprocesses = 2\nuse_sockets = True\ncopy_env = True\n"
        f"[socket:web]\nhost = 127.0.0.1\nport = {service.port}\n"
    )
    return [service.python, "-m", "circus.circusd", "--log-level", "error", "circus.ini"]


def _by_hand(service: Service) -> list[str]:
    shutil.copy(_PROGRAMS / "by_hand.py", service.folder)
    return [service.python, "by_hand.py", str(service.port)]


def _ours(program: Path, *options: str) -> Callable[[Service], list[str]]:
    """The program by the letter, with the application and the options of the measurement."""

    def command(service: Service) -> list[str]:
        head, _, rest = program.read_text().partition("VERSION = 0\n")
        rest = rest[rest.index("\nclass ") :]  # its own application is left out
        given = ", ".join([*options, f"ready_timeout={service.ready_timeout:g}"])
        head = head.replace("from flask import Flask\n", "") + "\nfrom app import app\n"
        (service.folder / "ours.py").write_text(head + rest.replace("(workers=2)", f"({given})"))
        return [service.python, "ours.py", f"127.0.0.1:{service.port}"]

    return command


# -- reloads -----------------------------------------------------------------------------------------------------------


def _chain(service: Service, _: int) -> str:
    try:
        fifo = os.open(service.folder / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return "nobody reads the fifo"
    os.write(fifo, b"c")
    os.close(fifo)
    return ""


def _dance(service: Service, version: int) -> str:
    """A second master beside the first; when the new code has answered the first one goes, and else the second."""
    old = service.pid
    if not Path(f"/proc/{old}").exists():
        return "exit 1"
    before = set(children(old))
    service.send(signal.SIGUSR2)
    if not wait_for(lambda: set(children(old)) - before, 5.0):
        return "exit 1"
    new = max(set(children(old)) - before)  # it may have gone before it has written its pid file
    second = service.folder / "service.pid.2"
    patience = min(service.ready_timeout, 15.0)
    is_decided = wait_for(lambda: has_gone(new) or service.ask(1.0)[0] == version, patience)
    if is_decided and not has_gone(new):  # so the new code has answered
        wait_for(lambda: len(children(new)) >= 2, 5.0)
        service.send(signal.SIGTERM, old)  # WINCH is for daemons alone, and QUIT does not wait for requests
        wait_for(lambda: not second.exists(), 35.0)
        return "exit 0"
    service.send(signal.SIGQUIT, new)  # on TERM it waits for workers that hang; until it has gone, USR2 is ignored
    wait_for(lambda: has_gone(new), 35.0)
    return "exit 1"


def _circusctl(*options: str) -> Reload:
    def reload(service: Service, _: int) -> str:
        endpoint = f"tcp://127.0.0.1:{service.second_port}"
        command = ["-m", "circus.circusctl", "--endpoint", endpoint, "--timeout", "30", "reload", "app", "--waiting"]
        return f"exit {service.run(service.python, *command, *options)}"

    return reload


def _stop_start(service: Service, _: int) -> str:
    service.send(signal.SIGTERM)
    has_ended = service.wait_end()
    service.start()
    return "" if has_ended else "the old one did not end on TERM"


def _restart(service: Service, _: int) -> str:
    return f"exit {service.run(service.python, '-m', 'hotrestart', 'restart', str(service.pid))}"


def _mine(what: str, package: str, kind: str, program: Path, *options: str, only_broken: bool = False) -> Peer:
    command = _ours(program, *options)
    is_single = "in place" in what
    return Peer(f"{OURS}, {what}", package, kind, command, _hup, _restart, is_single=is_single, only_broken=only_broken)


_WSGIREF = _PROGRAMS / "ours_wsgiref.py"
_WAITRESS, _UVICORN = _RECIPES / "wsgi_waitress.py", _RECIPES / "asgi_uvicorn.py"

PEERS: Sequence[Peer] = (
    _mine("rolling, wsgiref", "", "WSGI", _WSGIREF, "workers=2"),
    _mine("rolling, waitress", "waitress", "WSGI", _WAITRESS, "workers=2"),
    _mine("rolling, uvicorn", "uvicorn", "ASGI", _UVICORN, "workers=2"),
    _mine("rolling, uvicorn, preload=False", "uvicorn", "ASGI", _UVICORN, "workers=2", "preload=False"),
    _mine("rolling, uvicorn, batch=1", "uvicorn", "ASGI", _UVICORN, "workers=2", "batch=1"),
    _mine("rolling, uvicorn, soak=2", "uvicorn", "ASGI", _UVICORN, "workers=2", "soak=2", only_broken=True),
    _mine("in place, wsgiref", "", "WSGI", _WSGIREF),
    _mine("in place, uvicorn", "uvicorn", "ASGI", _UVICORN),
    Peer("gunicorn sync, HUP", "gunicorn", "WSGI", _gunicorn(), _hup),
    Peer("gunicorn gthread, HUP", "gunicorn", "WSGI", _gunicorn("-k", "gthread", "--threads", "4"), _hup),
    Peer("gunicorn --preload, HUP", "gunicorn", "WSGI", _gunicorn("--preload"), _hup),
    Peer("gunicorn, USR2 and a script", "gunicorn", "WSGI", _gunicorn(), _dance),
    Peer("uvicorn --workers, HUP", "uvicorn", "ASGI", _uvicorn, _hup),
    Peer("hypercorn, HUP", "hypercorn", "ASGI", _hypercorn, _hup),
    Peer("granian, HUP", "granian", "ASGI", _granian, _hup),
    Peer("uwsgi, chain reload", "uwsgi", "WSGI", _uwsgi, _chain),
    Peer("uwsgi, HUP", "uwsgi", "WSGI", _uwsgi, _hup),
    Peer("circus and uvicorn, circusctl", "circus", "ASGI", _circus, _circusctl()),
    Peer("circus and uvicorn, circusctl --sequential", "circus", "ASGI", _circus, _circusctl("--sequential")),
    Peer("stop and start, uvicorn", "uvicorn", "ASGI", _uvicorn, _stop_start),
    Peer("stop and start, socket held", "uvicorn", "ASGI", _uvicorn, _stop_start, is_held=True),
    Peer("exec in place by hand, wsgiref", "", "WSGI", _by_hand, _hup, is_single=True),
)
SHORT = ("hotrestart, rolling, wsgiref", "gunicorn sync, HUP")
