"""The benchmark of queue workers runs in a short form, ours and one floor, no peers. Nothing is said about times."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import missing
from .harness import CHECKOUT, PATIENCE, clean_environment

sys.path.insert(0, str(CHECKOUT / "benchmarks"))

import queues
from measure import markdown
from workers import broker, subject
from workers.tries import Restarts

BENCHMARKS = CHECKOUT / "benchmarks"


def test_the_short_form_loses_nothing_and_writes_its_figures(tmp_path: Path) -> None:
    """Under nohup, too: the programs under measurement do not ignore HUP because the measurement does."""
    if shutil.which("redis-server") is None:
        missing("redis-server (Debian: apt-get install redis-server)")
    if not Path("/proc/self/auxv").exists():
        missing("/proc/PID/auxv")
    command = ["nohup", sys.executable, str(BENCHMARKS / "queues.py"), "--short", "--results", str(tmp_path)]
    ran = subprocess.run(command, env=clean_environment(), capture_output=True, timeout=10 * PATIENCE)
    assert ran.returncode == 0, ran.stderr.decode()
    printed = ran.stdout.decode()
    assert (tmp_path / "queues.md").read_text().strip() == printed.strip()
    document = json.loads((tmp_path / "queues.json").read_text())
    assert document["benchmark"] == "queues"
    *compared, counts, targets = document["pythons"][0]["results"]  # a side that failed would add a table with reasons
    assert [set(each["sides"]) == {"floor", *each["ratios"]} for each in compared] == [True, True]
    assert all(side["runs"] >= 2 for each in compared for side in each["sides"].values())

    rows = {row[0]: dict(zip(counts["columns"], row, strict=True)) for row in counts["rows"]}
    (ours,) = (row for side, row in rows.items() if side.startswith("ours"))
    assert ours["jobs"] > 0
    assert ours["lost"] == ours["repeated"] == 0
    (killed,) = (value for name, value in ours.items() if "second HUP" in name)
    assert killed.startswith("0 of 2, in "), killed
    for side in rows:
        raw = document["pythons"][0]["raw"][side]
        assert raw["not_caught_up"] == 0, side
        assert len(raw["to_first_job"]) == len(raw["boots"]) == rows[side]["restarts"]
        assert all(0 <= boot <= whole for boot, whole in zip(raw["boots"], raw["to_first_job"], strict=True)), side
    assert [value for name, value in ours.items() if "TERM" in name] == ["finishes, exit 0 (1 of 1)"]
    assert {row[2] for row in targets["rows"] if "1.10" not in row[0]} == {"reached"}
    assert str(tmp_path) not in json.dumps(document)


def test_a_peer_that_dies_in_its_first_restart_is_in_the_tables_as_far_as_it_came() -> None:
    whole, dead = Restarts([0.1, 0.2], [0.1, 0.2], [0.1, 0.2], jobs=9), Restarts([0.3], boots=[0.3])
    report = queues.Report([*queues.FLOORS, *queues.PEERS[:1]])
    report.restarts.update({side.name: whole for side in queues.FLOORS}, **{queues.PEERS[0].name: dead})
    report.reasons[queues.PEERS[0].name] = "it died"
    text = markdown("queues", [{"python": "3", "results": [each.as_json() for each in queues.results(report)]}])
    assert text.count(f"| {queues.PEERS[0].name} |") == 4  # one time of two, counts, what they mean, the reason


def test_a_database_that_is_used_again_is_empty(tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        missing("redis-server (Debian: apt-get install redis-server)")
    with broker.redis_server(tmp_path) as port:
        import redis

        clients = [redis.Redis(port=port, db=number) for number in (3, 4)]
        for client in clients:
            client.rpush("jobs", "left")
        broker.flush(port, 3)
        assert [client.exists("jobs") for client in clients] == [0, 1]
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        (["-", "-"], "its queue does not tell"),
        (["a", "b"], "published twice"),
        (["a", "a"], "the same task again, not marked as redelivered"),
        (["a", "a redelivered"], "the same task again, marked as redelivered"),
    ],
)
def test_how_a_job_was_repeated_is_told(tasks: list[str], told: str) -> None:
    assert subject.how_repeated(tasks) == told


def test_the_extra_in_pyproject_is_what_the_benchmark_installs() -> None:
    extra = re.search(r"^queues = \[(.*?)\]$", (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert extra is not None
    named = re.findall(r'"([^">=]+)[^"]*"', extra[1])
    environment = (BENCHMARKS / "workers" / "environment.py").read_text()
    installed = re.search(r"^PACKAGES = \((.*?)\)", environment, re.MULTILINE | re.DOTALL)
    assert installed is not None
    assert sorted(named) == sorted(re.findall(r'"([^"]+)"', installed[1]))
