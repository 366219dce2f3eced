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


OF_MEMORY = {"BENCHMARK_HEAP": "5", "BENCHMARK_RELOADS": "1", "BENCHMARK_REQUESTS": "20"}  # MB, and counts
RUNS = {"primitives": 2}  # else 1: what several of them come to is arithmetic, and tested there


def run(script: str, *arguments: str, runs: int = 1) -> str:
    command = [sys.executable, str(BENCHMARKS / script), "--runs", str(runs), *arguments]
    environment = clean_environment(**OF_MEMORY)
    ran = subprocess.run(command, env=environment, capture_output=True, timeout=10 * PATIENCE)
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout.decode()


def check(document: dict, name: str, runs: int) -> None:
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
                assert all(side["runs"] >= runs for side in result["sides"].values())
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
    runs = RUNS.get(name, 1)
    printed = run(f"{name}.py", "--json", str(numbers), runs=runs)
    assert f"## {name}" in printed
    assert "| ---" in printed or "|---" in printed
    check(json.loads(numbers.read_text()), name, runs)


def test_run_writes_all_results_and_a_summary(tmp_path: Path) -> None:
    some = ("primitives", "restart_path")
    run("run.py", "--results", str(tmp_path), "--only", *some)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["README.md", *(f"{name}.json" for name in some)]
    summary = (tmp_path / "README.md").read_text()
    assert all(f"## {name}" in summary for name in some)
    run("run.py", "--results", str(tmp_path), "--only", "primitives")
    parts = (tmp_path / "README.md").read_text().count("\n## ")
    assert parts == len(["Aims", *some]), "the others are kept"


def test_a_wrong_number_of_runs_is_refused() -> None:
    command = [sys.executable, str(BENCHMARKS / "primitives.py"), "--runs", "0"]
    ran = subprocess.run(command, env=clean_environment(), stderr=subprocess.PIPE, timeout=PATIENCE)
    assert ran.returncode == 2
    assert b"1 or more" in ran.stderr


def test_an_aim_is_held_against_the_worst_of_the_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import run as all_benchmarks

    def python(peak: float) -> dict:
        titles = {"PSS of the tree after 10 reloads": 100.0, "PSS of the tree at the peak of a reload": peak}
        sides = {name: {"ours, batch=1": {"median": value}, "ours": {"median": 1.0}} for name, value in titles.items()}
        ratios = {"ours": {"ratio": 1.05}, "ours, batch=1": {"ratio": 1.0}}
        return {"results": [{"name": name, "sides": of, "ratios": ratios} for name, of in sides.items()]}

    def lines(*peaks: float) -> list[str]:
        text = all_benchmarks._aims({"memory": [python(peak) for peak in peaks]})
        return [line for line in text.splitlines() if "at the peak" in line]

    assert [("1.30 | 1.20 to 1.25 | reached" in line) for line in lines(120.0, 125.0)] == [True]
    assert [("1.30 | 1.20 to 1.50 | **not reached**" in line) for line in lines(120.0, 150.0)] == [True]
