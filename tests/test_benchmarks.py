"""The benchmarks run, in a short form, and what they write is well-formed. Nothing is said about times here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import missing
from .harness import CHECKOUT, PATIENCE, clean_environment

BENCHMARKS = CHECKOUT / "benchmarks"
WITHOUT_FLOOR = {"restart_path"}


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), "--runs", "2", *arguments]
    environment = clean_environment(BENCHMARK_HEAP="5", BENCHMARK_RELOADS="2")  # of memory.py; MB
    ran = subprocess.run(command, env=environment, capture_output=True, timeout=10 * PATIENCE)
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout.decode()


def check(document: dict, name: str) -> None:
    assert document["benchmark"] == name
    for python in document["pythons"]:
        assert {"python", "kernel", "cpus", "date"} <= python.keys()
        assert python["results"]
        for result in python["results"]:
            if "rows" in result:
                assert result["rows"]
                assert {len(row) for row in result["rows"]} == {len(result["columns"])}
            else:
                assert set(result["sides"]) == {"floor", *result["ratios"]}
                assert all(side["runs"] >= 2 for side in result["sides"].values())
                assert all(side["q1"] <= side["median"] <= side["q3"] for side in result["sides"].values())
                assert all(each["low"] <= each["high"] for each in result["ratios"].values())
    assert any("ratios" in result for result in document["pythons"][0]["results"]) or name in WITHOUT_FLOOR
    assert str(Path.home()) not in json.dumps(document)
    assert sys.prefix not in json.dumps(document)


@pytest.mark.parametrize("name", ["inplace", "rolling", "primitives", "restart_path", "memory"])
def test_a_benchmark_prints_a_table_and_writes_its_numbers(name: str, tmp_path: Path) -> None:
    if name == "memory" and importlib.util.find_spec("gunicorn") is None:
        missing("gunicorn")
    numbers = tmp_path / "numbers.json"
    printed = run(f"{name}.py", "--json", str(numbers))
    assert f"## {name}" in printed
    assert "| ---" in printed or "|---" in printed
    check(json.loads(numbers.read_text()), name)


def test_run_writes_all_results_and_a_summary(tmp_path: Path) -> None:
    some = ("primitives", "restart_path")
    run("run.py", "--results", str(tmp_path), "--only", *some)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["README.md", *(f"{name}.json" for name in some)]
    summary = (tmp_path / "README.md").read_text()
    assert all(f"## {name}" in summary for name in some)
    run("run.py", "--results", str(tmp_path), "--only", "primitives")
    assert (tmp_path / "README.md").read_text().count("## ") == len(some), "the others are kept"


def test_a_wrong_number_of_runs_is_refused() -> None:
    command = [sys.executable, str(BENCHMARKS / "primitives.py"), "--runs", "0"]
    ran = subprocess.run(command, env=clean_environment(), stderr=subprocess.PIPE, timeout=PATIENCE)
    assert ran.returncode == 2
    assert b"1 or more" in ran.stderr
