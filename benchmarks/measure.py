"""What all benchmarks share: taking turns, statistics, the command line, JSON.

A number taken alone says more about the machine than about the code. So what is compared runs in turn, in shuffled
order, in one run of the script, and what counts is the ratio of the medians, with its bootstrap interval.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"

# The first two hide or slow what is measured; the rest would make a program think that somebody passed it something.
_UNWANTED = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "HOTRESTART", "LISTEN_FDS", "NOTIFY_SOCKET")

FLOOR = "floor"


@dataclass
class Comparison:
    """One quantity, for the floor and for ours: `samples[side]` are the runs of each side, in `unit`."""

    name: str
    unit: str
    samples: dict[str, list[float]]

    def as_json(self) -> dict[str, Any]:
        floor = self.samples[FLOOR]
        ours = {side: values for side, values in self.samples.items() if side != FLOOR}
        return {
            "name": self.name,
            "unit": self.unit,
            "sides": {side: summary(values) for side, values in self.samples.items()},
            "ratios": {side: ratio(values, floor) for side, values in ours.items()},
        }


@dataclass
class Table:
    """What is no comparison: where time goes, and how often something happens."""

    title: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"title": self.title, "columns": self.columns, "rows": self.rows}


def in_turn(sides: Mapping[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Call each side `runs` times, all sides once a turn, in shuffled order; what each call returned."""
    samples: dict[str, list[float]] = {side: [] for side in sides}
    order = list(sides)
    for _ in range(runs):
        random.shuffle(order)
        for side in order:
            samples[side].append(sides[side]())
    return samples


def summary(values: Sequence[float]) -> dict[str, Any]:
    """The number of runs, their median and the quartiles around it."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"runs": len(values), "median": _short(statistics.median(values)), "q1": _short(low), "q3": _short(high)}


def ratio(ours: Sequence[float], floor: Sequence[float], *, resamples: int = 2000) -> dict[str, float]:
    """The ratio of the medians, and the interval that holds 95 % of it when the runs are drawn again at random."""
    draw = random.Random(1)
    drawn = sorted(
        statistics.median(draw.choices(ours, k=len(ours))) / statistics.median(draw.choices(floor, k=len(floor)))
        for _ in range(resamples)
    )
    return {
        "ratio": round(statistics.median(ours) / statistics.median(floor), 3),
        "low": round(drawn[int(0.025 * resamples)], 3),
        "high": round(drawn[int(0.975 * resamples)], 3),
    }


def clean_environment() -> dict[str, str]:
    """The environment for a program under measurement."""
    return {name: value for name, value in os.environ.items() if name not in _UNWANTED}


def heed_signals() -> None:
    """What nohup, or the background of a shell, has us ignore, programs under measurement would ignore as well."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@contextmanager
def installed_package(checkout: Path = CHECKOUT) -> Iterator[Path]:
    """A folder for sys.path with a compiled copy of the package, as an installation would leave it."""
    with tempfile.TemporaryDirectory(prefix="hotrestart-benchmark-") as folder:
        package = Path(folder, "hotrestart")
        shutil.copytree(checkout / "hotrestart", package, ignore=shutil.ignore_patterns("*.pyc.*"))
        subprocess.run([sys.executable, "-m", "compileall", "-q", package], check=True, env=clean_environment())
        yield Path(folder)


def facts() -> dict[str, Any]:
    """What a reader must know about the machine, and nothing that identifies it."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d"),
    }


def command_line(script: str, measure: Callable[[int], list[Comparison | Table]], *, runs: int) -> None:
    """The command line of a benchmark: measure for every Python that is named, print the tables, keep the numbers."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("pythons", nargs="*", default=[sys.executable], help="interpreters (default: this one)")
    parser.add_argument("--runs", type=int, default=runs, help=f"runs of each side (default: {runs})")
    parser.add_argument("--json", metavar="FILE", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs is 1 or more")
    heed_signals()
    name = Path(script).stem
    results = []
    for python in arguments.pythons:
        if os.path.abspath(python) == os.path.abspath(sys.executable):
            result = {**facts(), "results": [each.as_json() for each in measure(arguments.runs)]}
        else:
            result = _measure_with(python, script, arguments.runs)
        results.append(result)
        print(markdown(name, [result]), file=sys.stderr if arguments.json == Path("-") else sys.stdout, flush=True)
    document = json.dumps({"benchmark": name, "pythons": results}, indent=1) + "\n"
    if arguments.json == Path("-"):
        sys.stdout.write(document)
    elif arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(document)


def markdown(name: str, pythons: Sequence[Mapping[str, Any]]) -> str:
    """The results of one benchmark as Markdown tables: the comparisons of all Pythons in one, then each other table."""
    lines: list[str] = []
    comparisons = [(each["python"], result) for each in pythons for result in each["results"] if "ratios" in result]
    if comparisons:
        lines += ["| what | Python | side | median (quartiles) | runs | ratio to the floor (95 %) |", "|---" * 6 + "|"]
        for python, result in sorted(comparisons, key=lambda each: _order(each, comparisons)):
            for side, of in result["sides"].items():
                times = f"{of['median']} ({of['q1']} to {of['q3']}) {result['unit']}"
                r = result["ratios"].get(side)
                against = f"**{r['ratio']:.2f}** ({r['low']:.2f} to {r['high']:.2f})" if r else ""
                lines.append(f"| {result['name']} | {python} | {side} | {times} | {of['runs']} | {against} |")
        lines.append("")
    for each in pythons:
        for table in (result for result in each["results"] if "rows" in result):
            lines += [f"**{table['title']}** (Python {each['python']})", ""]
            lines += ["| " + " | ".join(table["columns"]) + " |", "|---" * len(table["columns"]) + "|"]
            lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table["rows"]]
            lines.append("")
    return "\n".join([f"## {name}", "", *lines])


def _order(each: tuple[str, Any], comparisons: Sequence[tuple[str, Any]]) -> int:
    """Next to each other: the same quantity for all Pythons."""
    return [result["name"] for _, result in comparisons].index(each[1]["name"])


def _measure_with(python: str, script: str, runs: int) -> Any:
    """Let `python` run the script itself; its result."""
    command = [python, script, "--runs", str(runs), "--json", "-"]
    ran = subprocess.run(command, env=clean_environment(), capture_output=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{python} {script} ended with {ran.returncode}:\n{ran.stderr.decode(errors='replace')}")
    return json.loads(ran.stdout)["pythons"][0]


def _short(value: float) -> float:
    """Four significant digits; the rest is noise."""
    return float(f"{value:.4g}")
