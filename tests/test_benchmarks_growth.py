"""The growth benchmark runs in a short form, and its fit tells a line from a square."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import missing
from .harness import CHECKOUT, PATIENCE, clean_environment

SIZES = (1, 2, 8, 32, 128)


@pytest.fixture(scope="module")
def fitting() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fitting", CHECKOUT / "benchmarks" / "fitting.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def samples(constant: float, each: float, exponent: float, noise: float, *, runs: int = 7) -> dict[int, list[float]]:
    draw = random.Random(1)
    return {
        size: [constant + each * size**exponent + draw.uniform(-noise, noise) for _ in range(runs)] for size in SIZES
    }


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("constant", [0.0, 100.0])
def test_a_constant_part_does_not_hide_the_exponent(fitting: ModuleType, constant: float, exponent: float) -> None:
    found = fitting.fit(samples(constant, 1.0, exponent, 0.1))
    assert found["exponent"] == pytest.approx(exponent, abs=0.1)
    assert found["low"] <= found["exponent"] <= found["high"]
    assert ("worse than linear" in found["verdict"]) == (exponent > 1)
    assert found["verdict"] != "linear" or exponent == 1


def test_what_does_not_grow_is_flat(fitting: ModuleType) -> None:
    found = fitting.fit(samples(100.0, 0.0, 1.0, 5.0))
    assert found["exponent"] is None
    assert "worse" not in found["verdict"]


def test_runs_that_are_all_the_same_and_single_runs_are_fitted(fitting: ModuleType) -> None:
    assert fitting.fit({1: [5.0, 5.0], 10: [5.0, 5.0]})["verdict"] == "flat: within the spread"
    assert fitting.fit({size: [2.0 * size] for size in SIZES})["verdict"] == "linear"


def test_an_increase_that_shows_at_one_size_is_held_against_a_line(fitting: ModuleType) -> None:
    noise = [-1.0, 0.0, 1.0]
    line = {1: noise, 10: [each + 1 for each in noise], 100: [each + 11 for each in noise]}
    assert fitting.fit(line)["verdict"] == "seen at the largest size only, as a line would be"
    step = {1: noise, 10: noise, 100: [each + 100 for each in noise]}
    assert fitting.fit(step)["verdict"] == "a step, or worse than linear"
    bump = {1: noise, 10: [each + 100 for each in noise], 100: noise}
    assert "flat" in fitting.fit(bump)["verdict"]


def test_what_one_more_costs_is_the_slope(fitting: ModuleType) -> None:
    assert fitting.fit(samples(50.0, 3.0, 1.0, 0.0))["each"] == pytest.approx(3.0)


def test_the_short_form_prints_tables_and_writes_figures(tmp_path: Path) -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        missing("/proc/PID/smaps_rollup")
    numbers = tmp_path / "growth.json"
    script = str(CHECKOUT / "benchmarks" / "growth.py")
    command = [sys.executable, script, "--short", "--runs", "2", "--json", str(numbers)]
    ran = subprocess.run(command, env=clean_environment(), capture_output=True, timeout=10 * PATIENCE)
    assert ran.returncode == 0, ran.stderr.decode()
    printed = ran.stdout.decode()
    document = json.loads(numbers.read_text())
    assert document["benchmark"] == "growth"
    results = document["pythons"][0]["results"]
    about_forks, *axes = results[-1]["rows"]
    assert "about N forks" in about_forks[0]
    assert [row[0].partition(":")[0] for row in axes] == [each["title"] for each in results if "figures" in each]
    for unit in ("workers", "listeners", "state", "descriptors", "objects"):
        assert any(unit in result.get("title", "") for result in results), unit
    for result in results:
        if "rows" in result:
            assert result["title"] in printed
            assert {len(row) for row in result["rows"]} == {len(result["columns"])}
            for figure in result.get("figures", {}).values():
                assert all(size["runs"] == 2 for size in figure["sizes"].values())
                assert figure["verdict"]
        else:
            assert "os.fork()" in result["name"]
            assert set(result["sides"]) == {"floor", *result["ratios"]}
    assert str(Path.home()) not in json.dumps(document)
