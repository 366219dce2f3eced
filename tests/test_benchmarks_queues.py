"""The benchmark of queue workers runs in a short form, ours and one floor, no peers. Nothing is said about times."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .conftest import missing
from .harness import CHECKOUT, PATIENCE, clean_environment

BENCHMARKS = CHECKOUT / "benchmarks"


def test_the_short_form_loses_nothing_and_writes_its_figures(tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        missing("redis-server (Debian: apt-get install redis-server)")
    if not Path("/proc/self/auxv").exists():
        missing("/proc/PID/auxv")
    command = [sys.executable, str(BENCHMARKS / "queues.py"), "--short", "--results", str(tmp_path)]
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
        assert len(raw["to_first_job"]) == len(raw["boots"]) == rows[side]["restarts"]
        assert all(0 < boot <= whole for boot, whole in zip(raw["boots"], raw["to_first_job"], strict=True)), side
    assert [value for name, value in ours.items() if "TERM" in name] == ["finishes, exit 0 (1 of 1)"]
    assert {row[2] for row in targets["rows"] if "1.10" not in row[0]} == {"reached"}
    assert str(tmp_path) not in json.dumps(document)


def test_the_extra_in_pyproject_is_what_the_benchmark_installs() -> None:
    extra = re.search(r"^queues = \[(.*?)\]$", (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert extra is not None
    named = re.findall(r'"([^">=]+)[^"]*"', extra[1])
    environment = (BENCHMARKS / "workers" / "environment.py").read_text()
    installed = re.search(r"^PACKAGES = \((.*?)\)", environment, re.MULTILINE | re.DOTALL)
    assert installed is not None
    assert sorted(named) == sorted(re.findall(r'"([^"]+)"', installed[1]))
