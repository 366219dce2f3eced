"""A real queue, Redis lists, restarted in place under load very often: nothing is lost, repeated or leaked."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotrestart.testing import Jobs
from tests.harness import Program
from tests.recipes import figures
from tests.recipes.load import deploy


def memory(pid: int) -> int:
    """Private memory in KiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_"))


@pytest.mark.figures
def test_many_restarts_lose_and_repeat_nothing(program: Program, redis_socket: str, full: bool) -> None:
    import redis

    restarts, early_fds, early_memory = 1000 if full else 15, 0, 0
    queue = redis.Redis(unix_socket_path=redis_socket)
    program.deploy("", "ledger.py")
    deploy(program, "redis_list", 1, "in place")
    program.start("app.py", redis_socket).wait_ready()
    done = [each["done"] for each in program.reports()]
    with Jobs(lambda number: queue.rpush("jobs", number), lambda: done, every=0.005) as jobs:
        for number in range(2, restarts + 2):
            deploy(program, "redis_list", number, "in place")
            outcome = program.restart()
            assert outcome.ok, outcome
            assert (outcome.generation, outcome.pid) == (number, program.pid)
            if 5 <= number <= (15 if full else 8):
                early_fds, early_memory = max(early_fds, len(program.fds())), max(early_memory, memory(program.pid))
    program.wait_until(lambda: queue.llen("jobs") == queue.llen(f"jobs:{program.pid}") == 0, "all jobs done")
    queue.close()
    done += [each["done"] for each in program.reports()]
    figures.note(
        "redis_list", "in place, leaks", restarts, len(jobs.given), failed=len(jobs.lost), repeated=len(jobs.repeated)
    )
    jobs.check()
    assert len(jobs.given) > restarts
    program.wait_until(lambda: len(program.fds()) <= early_fds, "as many descriptors as at first")
    assert program.children() == [], "zombies"
    assert memory(program.pid) < early_memory * 1.25
    assert "Traceback" not in program.log()
    assert program.stop() == 0
