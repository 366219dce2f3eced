"""A real queue: Redis lists, jobs moved by BLMOVE into a processing list, restarted in place under load."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.harness import PATIENCE, Program

redis = pytest.importorskip("redis")

WORKER = """
import os, sys
import redis
import hotrestart

VERSION = {version}

@hotrestart.restartable
def main():
    queue = redis.Redis(unix_socket_path=sys.argv[1])
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, version=VERSION, pid=os.getpid())
        while loop.running:
            # Short, for nothing can end a blocking call in good order; what it returns is a job in hand.
            job = queue.blmove("jobs", "processing", 0.1, "LEFT", "RIGHT")
            if job is not None:
                with queue.pipeline() as done:
                    done.hincrby("done", job, 1)
                    done.lrem("processing", 1, job)
                    done.execute()

main()
"""


@pytest.fixture
def redis_socket(tmp_path: Path) -> Iterator[str]:
    """A redis-server of our own on a unix socket."""
    server = shutil.which("redis-server")
    if server is None:
        missing("redis-server (Debian: apt-get install redis-server)")
    path = tmp_path / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    with (tmp_path / "redis.log").open("wb") as log:
        process = subprocess.Popen([str(server), *options], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            assert process.poll() is None, (tmp_path / "redis.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield str(path)
    finally:
        process.terminate()
        process.wait()


class Feeder(threading.Thread):
    """Puts in a numbered job each 5 ms."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.queue = redis.Redis(unix_socket_path=path)
        self.number = 0
        self.enough = threading.Event()

    def run(self) -> None:
        while not self.enough.wait(0.005):
            self.number += 1
            self.queue.rpush("jobs", self.number)

    def finish(self) -> None:
        self.enough.set()
        self.join()
        self.queue.close()


def memory(pid: int) -> int:
    """Private memory in KiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_"))


def test_many_restarts_lose_and_repeat_nothing(program: Program, redis_socket: str, full: bool) -> None:
    restarts, early_fds, early_memory = 1000 if full else 60, 0, 0
    program.deploy(WORKER.format(version=0))
    program.start("app.py", redis_socket)
    program.wait_report(ready=1)
    feeder = Feeder(redis_socket)
    feeder.start()
    try:
        for number in range(1, restarts + 1):
            program.deploy(WORKER.format(version=number))
            program.hup()
            program.wait_report(ready=number + 1, version=number)
            if 5 <= number <= 15:  # it reports before it has connected
                early_fds, early_memory = max(early_fds, len(program.fds())), max(early_memory, memory(program.pid))
    finally:
        feeder.finish()

    queue = redis.Redis(unix_socket_path=redis_socket)
    program.wait_until(lambda: queue.llen("jobs") == queue.llen("processing") == 0, "all jobs done")
    done = queue.hgetall("done")
    queue.close()
    assert feeder.number > restarts
    assert sorted(int(job) for job in done) == list(range(1, feeder.number + 1)), "lost"
    assert set(done.values()) == {b"1"}, "repeated"
    assert {each["pid"] for each in program.reports()} == {program.pid}
    program.wait_until(lambda: len(program.fds()) <= early_fds, "as many descriptors as at first")
    assert program.children() == [], "zombies"
    assert memory(program.pid) < early_memory * 1.25
    assert "Traceback" not in program.log()
    assert program.stop() == 0
