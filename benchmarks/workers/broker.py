"""A redis-server of our own, on a free port of 127.0.0.1."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DATABASES = 64
_PATIENCE = 30.0


@contextmanager
def redis_server(folder: Path) -> Iterator[int]:
    """Its port."""
    server = shutil.which("redis-server")
    if server is None:
        raise SystemExit("redis-server is not installed (Debian: apt-get install redis-server)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen([server, *options, "--databases", str(DATABASES)], stdout=log, stderr=log)
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.wait()


def flush(port: int, database: int) -> None:
    """Nothing is in it any more: its number may have been used before."""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as connection, connection.makefile() as said:
        connection.sendall(f"SELECT {database}\r\nFLUSHDB\r\n".encode())
        if [said.readline() for _ in range(2)] != ["+OK\n"] * 2:
            raise SystemExit("redis-server does not empty a database")


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("redis-server does not start") from None
            time.sleep(0.01)
        else:
            return
