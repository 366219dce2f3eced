"""Workers of real queues, restarted under load in both ways: no job is lost or repeated."""

from __future__ import annotations

import random
import socket
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Protocol

import pytest

from hotrestart.testing import Jobs
from tests.harness import PATIENCE
from tests.recipes import figures
from tests.recipes.load import KINDS, deploy
from tests.rolling.programs import Rolling


class Queue(Protocol):
    """A queue, as seen by the test."""

    app: str
    address: str

    def put(self, job: int) -> object: ...

    def done(self, program: Rolling) -> Iterable[tuple[int, int]]:
        """The jobs that were done, and by which version."""

    def left(self) -> int:
        """How many jobs are still there, in hand or not."""


class Reporting:
    """The ledger of programs that report what they have done."""

    def done(self, program: Rolling) -> Iterable[tuple[int, int]]:
        return [(int(str(each["done"])), int(str(each["version"]))) for each in program.reports()]


class RedisList(Reporting):
    app = "redis_list"

    def __init__(self, address: str) -> None:
        import redis

        self.address, self.redis = address, redis.Redis(unix_socket_path=address)

    def put(self, job: int) -> None:
        self.redis.rpush("jobs", job)

    def left(self) -> int:
        return len(self.redis.keys("jobs*"))

    def close(self) -> None:
        self.redis.close()


class RedisStream(RedisList):
    app = "redis_streams"

    def put(self, job: int) -> None:
        self.redis.xadd("jobs", {"job": job})

    def left(self) -> int:
        (group,) = self.redis.xinfo_groups("jobs")
        return int(group["pending"]) + int(group["lag"]) + int(group["consumers"])


class SQLite:
    app = "sqlite_queue"

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.database = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        self.database.execute("CREATE TABLE jobs (job INTEGER PRIMARY KEY)")
        self.database.execute("CREATE TABLE done (job INTEGER, version INTEGER)")
        self.feeder = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)

    def put(self, job: int) -> None:
        self.feeder.execute("INSERT INTO jobs VALUES (?)", (job,))

    def done(self, program: Rolling) -> Iterable[tuple[int, int]]:
        return self.database.execute("SELECT job, version FROM done").fetchall()

    def left(self) -> int:
        return int(self.database.execute("SELECT count(*) FROM jobs").fetchone()[0])

    def close(self) -> None:
        self.database.close()
        self.feeder.close()


class PostgreSQL:
    app = "postgres_queue"

    def __init__(self, address: str) -> None:
        import psycopg

        self.address, self.database = address, psycopg.connect(address, autocommit=True)
        self.database.execute("DROP TABLE IF EXISTS jobs, done")
        self.database.execute("CREATE TABLE jobs (job INTEGER PRIMARY KEY)")
        self.database.execute("CREATE TABLE done (job INTEGER, version INTEGER)")

    def put(self, job: int) -> None:
        self.database.execute("INSERT INTO jobs VALUES (%s)", (job,))
        self.database.execute("NOTIFY jobs")

    def done(self, program: Rolling) -> Iterable[tuple[int, int]]:
        return self.database.execute("SELECT job, version FROM done").fetchall()

    def left(self) -> int:
        return self.database.execute("SELECT count(*) FROM jobs").fetchone()[0]

    def close(self) -> None:
        self.database.close()


class RabbitMQ(Reporting):
    app = "rabbitmq"

    def __init__(self, address: str) -> None:
        import pika

        self.address = address
        self.connection = pika.BlockingConnection(pika.URLParameters(address))
        self.channel = self.connection.channel()
        self.channel.queue_declare("jobs", durable=True)

    def put(self, job: int) -> None:
        self.channel.basic_publish("", "jobs", str(job).encode())

    def left(self) -> int:
        declared = self.channel.queue_declare("jobs", durable=True, passive=True).method
        return int(declared.message_count + declared.consumer_count)

    def close(self) -> None:
        self.connection.close()


def restart_and_account(program: Rolling, queue: Queue, kind: str, restarts: int) -> None:
    program.deploy("", "ledger.py")
    deploy(program, queue.app, 1, kind)
    program.start("app.py", queue.address).wait_ready()
    with Jobs(queue.put, lambda: [job for job, _ in queue.done(program)], every=0.005) as jobs:
        for version in range(1, restarts + 1):
            wait_worked(program, queue, version)
            deploy(program, queue.app, version + 1, kind)
            assert program.restart().ok
        wait_worked(program, queue, restarts + 1)
    jobs.check()
    assert program.stop() == 0, program.log()
    program.wait_gone()
    figures.note(queue.app, kind, restarts, len(jobs.given), failed=len(jobs.lost), repeated=len(jobs.repeated))
    jobs.check()
    assert queue.left() == 0
    assert "Traceback" not in program.log()


def wait_worked(program: Rolling, queue: Queue, version: int) -> None:
    program.wait_until(lambda: version in {each for _, each in queue.done(program)}, f"a job by version {version}")


@pytest.fixture
def rolling(tmp_path: Path):
    with Rolling(tmp_path / "program") as each:
        yield each


@pytest.fixture(params=["redis_list", "redis_streams", "sqlite_queue"])
def queue(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "sqlite_queue":
        with closing(SQLite(tmp_path / "queue.sqlite")) as found:
            yield found
    else:
        kind = RedisList if request.param == "redis_list" else RedisStream
        with closing(kind(request.getfixturevalue("redis_socket"))) as found:
            yield found


@pytest.mark.figures
@pytest.mark.parametrize("kind", KINDS)
def test_no_job_is_lost_or_repeated(rolling: Rolling, queue: Queue, kind: str, full: bool) -> None:
    restart_and_account(rolling, queue, kind, 100 if full else 4)


def test_a_job_in_a_transaction_survives_kill_9(rolling: Rolling, tmp_path: Path) -> None:
    with closing(SQLite(tmp_path / "queue.sqlite")) as queue:
        deploy(rolling, queue.app, 1, "workers")
        rolling.start("app.py", queue.address).wait_ready()
        with Jobs(queue.put, lambda: [job for job, _ in queue.done(rolling)], every=0.001) as jobs:
            killed: set[int] = set()
            while len(killed) < 5:
                rolling.wait_until(lambda: len(queue.done(rolling)) > len(killed) * 10, "work goes on")
                worker = rolling.wait_until(lambda: set(rolling.workers()) - killed, "a worker").pop()
                time.sleep(random.uniform(0, 0.02))  # at whatever moment
                rolling.kill(worker)
                killed.add(worker)
        jobs.check()


@pytest.mark.figures
@pytest.mark.parametrize(("server", "client"), [("rabbitmq_url", RabbitMQ), ("postgres_url", PostgreSQL)])
def test_no_job_of_a_big_server_is_lost_or_repeated(
    tmp_path: Path, request: pytest.FixtureRequest, server: str, client: type[RabbitMQ | PostgreSQL], full: bool
) -> None:
    """Both kinds with one server, which takes longer to start than they need."""
    address = request.getfixturevalue(server)
    for kind in KINDS:
        with closing(client(address)) as queue, Rolling(tmp_path / kind) as program:
            restart_and_account(program, queue, kind, 100 if full else 3)


def test_a_restart_in_place_takes_up_what_was_cut_off_from_a_list(rolling: Rolling, redis_socket: str) -> None:
    queue = RedisList(redis_socket)
    start_in_place(rolling, queue)
    queue.redis.rpush(f"jobs:{rolling.pid}", 7, 8)
    take_up(rolling, queue)


def test_a_restart_in_place_takes_up_what_was_cut_off_from_a_stream(rolling: Rolling, redis_socket: str) -> None:
    """Its own entries at once, those of others when they are old."""
    queue = RedisStream(redis_socket)
    start_in_place(rolling, queue)
    names = [f"{socket.gethostname()}-{rolling.pid}", "killed", "busy"]
    for job, name in enumerate(names, start=7):
        with queue.redis.pipeline(transaction=True) as both:  # or the program would be quicker
            both.xadd("jobs", {"job": job})
            both.xreadgroup("workers", name, {"jobs": ">"}, count=1)
            ((_, (entry,)),) = dict(both.execute()[1]).items()
        if name == "killed":
            queue.redis.xclaim("jobs", "workers", name, 0, [entry[0]], idle=3_600_000)
    take_up(rolling, queue)
    assert [each["consumer"] for each in queue.redis.xpending_range("jobs", "workers", "-", "+", 9)] == [b"busy"]


def start_in_place(program: Rolling, queue: Queue) -> None:
    program.deploy("", "ledger.py")
    deploy(program, queue.app, 1, "in place")
    program.start("app.py", queue.address).wait_ready()


def take_up(program: Rolling, queue: RedisList) -> None:
    """Restart: jobs 7 and 8 are done, and then a new one."""
    assert program.restart().ok
    program.wait_until(lambda: len(list(queue.done(program))) >= 2, "they are taken up")
    queue.put(1)
    program.wait_report(done=1)
    assert program.stop() == 0
    assert sorted(job for job, _ in queue.done(program)) == [1, 7, 8]
    queue.close()
