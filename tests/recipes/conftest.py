from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import missing, need
from tests.harness import PATIENCE
from tests.systemd_box import Box, Unavailable


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A real systemd, one for all tests of this process. Every `tmp_path` is the same folder in there."""
    shared = tmp_path_factory.getbasetemp().resolve()
    try:
        each = Box(tmp_path_factory.mktemp("systemd").resolve(), shared)
    except Unavailable as reason:
        if os.environ.get("HOTRESTART_CI"):
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    yield each
    each.close()


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """A port that nobody else is given meanwhile."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


@pytest.fixture
def port() -> Iterator[int]:
    with held_port() as number:
        yield number


@contextlib.contextmanager
def running(
    command: list[str], log: Path, is_up: Callable[[], bool], end: int = signal.SIGTERM, **more: object
) -> Iterator[None]:
    """A server of our own, as long as the block lasts. `end`: the signal that ends it soon."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **more)
    try:
        deadline = time.monotonic() + 5 * PATIENCE  # RabbitMQ computes for some seconds, and others compute too
        while not is_up():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        yield
    finally:
        process.send_signal(end)
        process.wait()


@pytest.fixture
def redis_socket(tmp_path: Path) -> Iterator[str]:
    """A redis-server of our own on a unix socket."""
    need("redis")
    server = shutil.which("redis-server")
    if server is None:
        missing("redis-server (Debian: apt-get install redis-server)")
    path = tmp_path / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    with running([str(server), *options], tmp_path / "redis.log", path.exists):
        yield str(path)


@pytest.fixture
def rabbitmq_url(tmp_path: Path) -> Iterator[str]:
    """A rabbitmq-server of our own, which takes some seconds to start. It has an epmd of our own too: it would start
    one that outlives it."""
    need("pika")
    server = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # the one on PATH is a wrapper that runs as another user
    if not server.exists() or shutil.which("epmd") is None:
        missing("rabbitmq-server (Debian: apt-get install rabbitmq-server)")
    with held_port() as port, held_port() as nodes, held_port() as names:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ")}
        env.update(
            HOME=str(tmp_path),
            RUNNING_UNDER_SYSTEMD="true",  # then it is this process, and not a child of it
            ERL_EPMD_ADDRESS="127.0.0.1",
            ERL_EPMD_PORT=str(names),
            RABBITMQ_NODENAME=f"test{port}@localhost",
            RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
            RABBITMQ_NODE_PORT=str(port),
            RABBITMQ_DIST_PORT=str(nodes),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}",
            RABBITMQ_CONF_ENV_FILE="/dev/null",
            RABBITMQ_MNESIA_BASE=str(tmp_path / "mnesia"),
            RABBITMQ_LOG_BASE=str(tmp_path / "log"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(tmp_path / "plugins"),
            RABBITMQ_PID_FILE=str(tmp_path / "pid"),
        )
        with (
            running(["epmd"], tmp_path / "epmd.log", lambda: is_listening(names), env=env),
            running([str(server)], tmp_path / "rabbitmq.log", lambda: is_listening(port), signal.SIGKILL, env=env),
        ):
            yield f"amqp://guest:guest@127.0.0.1:{port}/"


@pytest.fixture
def postgres_url(tmp_path: Path) -> Iterator[str]:
    """A PostgreSQL of our own on a unix socket. It refuses to run as root."""
    need("psycopg")
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if binaries is None:
        missing("postgres (Debian: apt-get install postgresql)")
    user = {"user": "postgres"} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder:  # where that user can come to
        if user:
            shutil.chown(folder, "postgres")
        data = ["-D", f"{folder}/data"]
        setup = [f"{binaries}/initdb", *data, "--auth=trust", "--username=test", "--no-sync", "--no-instructions"]
        subprocess.run(setup, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
        server = [f"{binaries}/postgres", *data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
        log = tmp_path / "postgres.log"
        with running(server, log, lambda: "ready to accept" in log.read_text(), signal.SIGQUIT, cwd=folder, **user):
            yield f"host={folder} user=test dbname=postgres"


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
