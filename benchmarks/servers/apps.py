"""The application: one line with its version and the process that answers. And the ways in which new code is broken.

Each version is a file of another size: within one second, Python could take the bytecode of the old for the new, and
that is not what is compared here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_WSGI = """
def app(environ, start_response):
    {each}body = b"{version} %d" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""

_ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({{"type": message["type"] + ".complete"}})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] != "http":
        return
    {each}body = b"{version} %d" % os.getpid()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""

_KINDS = {"WSGI": _WSGI, "ASGI": _ASGI}

# At import; the last one at the first request, so that it strikes who serves and nobody else.
BROKEN = {
    "syntax error": "def (:",
    "raises": "raise RuntimeError('this code is broken')",
    "hangs": "import time; time.sleep(3600)",
    "dies 0.7 s after": "import threading; bomb = threading.Timer(0.7, os._exit, [1]); bomb.daemon = True",
}
_ARM = "bomb.ident or bomb.start(); "


class Slow(NamedTuple):
    """An import that takes its time: asleep, as for a network, or busy, as for bytecode and tables."""

    seconds: float  # of a clock, or of a processor
    is_busy: bool = False

    @property
    def name(self) -> str:
        return f"{self.seconds:g} s{' busy' if self.is_busy else ''}"

    @property
    def takes(self) -> float:
        """Seconds of a clock at most, about: who is busy shares the processors with another worker and the clients."""
        return self.seconds * (2 if self.is_busy else 1)

    @property
    def first(self) -> str:
        if not self.is_busy:
            return f"import time; time.sleep({self.seconds})"
        spins = "while time.thread_time() < until:\n    for _ in range(1000):\n        pass"
        return f"import time; until = time.thread_time() + {self.seconds}\n{spins}"


def deploy(folder: Path, kind: str, version: int, first: str = "") -> None:
    """Put a version of the application in place, in one step. `first`: what it does before all else."""
    body = _KINDS[kind].format(version=version, each=_ARM if "bomb" in first else "")
    new = folder / "app.py.new"
    new.write_text(f"import os\n{first}\n{body}\n#{'.' * version}\n")
    os.replace(new, folder / "app.py")
