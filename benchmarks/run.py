"""Run the benchmarks, and write `results/*.json` and `results/README.md`.

Every interpreter that is named needs `pip install '.[bench]'`: redis-py, which a worker imports, and gunicorn, which is
the floor of memory.py. What is not installed is left out. The other measurements have commands of their own: peers.py
and queues.py make their environments themselves, growth.py and against.py need none.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import RESULTS, clean_environment, markdown

BENCHMARKS = ("inplace", "rolling", "primitives", "restart_path", "memory")

_HEAD = """# Results

Ours and the floor take turns, in shuffled order, in one run; what counts is the ratio of the medians and its interval.
The floor is the same thing written by hand with bare system calls, without what hotrestart promises. The times are of
one machine on one day; run `python benchmarks/run.py` for yours.

"""


# What is aimed at: benchmark, beginning of the comparison's name, side, the most of the floor, and what costs more.
_OWN_IMPORTS = "its own modules, the control socket's too, take 6 to 20 ms of so short a boot: see restart_path"
_SLEEPER = "5 to 7 us of bytecode around the system calls, on both sides of one lock (the GIL): threads, forks, signals"
_LIFELINE = "the new generation reports over its lifeline and is told to fork, and the worker that it serves"
_FIRST_CALL = "a process's first call also finds out, by the clock, whether the system closes a range at once"
_FOUR = "supervisor and fork server are two processes, so that new code cannot harm the first; gunicorn has one"
_AIMS = (
    ("inplace", "HUP to first new job", "ours, no preflight", 1.10, _OWN_IMPORTS),
    ("inplace", "HUP to first new job", "ours, preflight apart", 1.10, _OWN_IMPORTS),
    ("rolling", "HUP to first job", "ours", 1.25, _LIFELINE),
    ("primitives", "sleeper", "ours", 1.2, _SLEEPER),
    ("primitives", "close_open_fds in a forked child", "ours", 2.0, "not known"),
    ("primitives", "close_open_fds in a forked child", "ours, first call", 2.0, _FIRST_CALL),
    ("primitives", "import", "import with both doors", 1.0, "not known"),
    ("memory", "PSS of the tree at first start", "ours", 1.10, _FOUR),
    ("memory", "PSS of the tree after", "ours", 1.10, _FOUR),
    ("memory", "PSS of the tree at first start", "ours", 1.0, _FOUR),
    ("memory", "PSS of the tree after", "ours", 1.0, _FOUR),
)
# What is aimed at within ours: the peak of a reload, as a multiple of what is there before and after.
_MOST_AT_THE_PEAK = 1.3
_PEAKS = {
    "ours, batch=1": "what the workers share is there twice while both generations are, whatever the batch",
    "ours, preload=False, batch=1": "not known",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*", default=[sys.executable], help="interpreters (default: this one)")
    parser.add_argument("--runs", type=int, help="runs of each side (default: each benchmark's own)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, help="leave the others as they are"
    )
    arguments = parser.parse_args()
    runs = [] if arguments.runs is None else ["--runs", str(arguments.runs)]
    for name in arguments.only:
        script = Path(__file__).with_name(f"{name}.py")
        command = [sys.executable, str(script), *arguments.pythons, *runs]
        subprocess.run(
            [*command, "--json", str(arguments.results / f"{name}.json")], env=clean_environment(), check=True
        )
    (arguments.results / "README.md").write_text(_summary(arguments.results))


def _summary(results: Path) -> str:
    """All results that are there, in one page."""
    files = {name: results / f"{name}.json" for name in BENCHMARKS}
    found = {name: json.loads(file.read_text())["pythons"] for name, file in files.items() if file.exists()}
    text = _HEAD + _aims(found)
    for name, pythons in found.items():
        text += markdown(name, pythons) + "\n" + _machine(pythons[0])
    return text.rstrip() + "\n"


def _aims(found: Mapping[str, Any]) -> str:
    """Which aims are reached: by the worst of the Pythons."""
    text = "## Aims\n\n| | aim | lowest to highest of the Pythons | reached | if not, why |\n|---|---|---|---|---|\n"
    for benchmark, beginning, side, most, why in _AIMS:
        ratios: dict[str, list[float]] = {}
        for each in (each for python in found.get(benchmark, ()) for each in python["results"]):
            if each.get("name", "").startswith(beginning):
                ratios.setdefault(each["name"], []).append(each["ratios"][side]["ratio"])
        for name, values in ratios.items():
            text += _aim(f"{name}: {side}", most, values, why)
    for side, why in _PEAKS.items():
        values = [_peak(python["results"], side) for python in found.get("memory", ())]
        if known := [value for value in values if value is not None]:
            text += _aim(f"PSS at the peak of a reload to the steady state's: {side}", _MOST_AT_THE_PEAK, known, why)
    return text + "\n"


def _aim(what: str, most: float, values: Sequence[float], why: str) -> str:
    reached = "reached | |" if max(values) <= most else f"**not reached** | {why} |"
    return f"| {what} | {most:.2f} | {min(values):.2f} to {max(values):.2f} | {reached}\n"


def _peak(results: Sequence[Mapping[str, Any]], side: str) -> float | None:
    """The ratio of the medians; None without gunicorn, or if the side was not measured."""

    def median(beginning: str) -> float | None:
        of = next((each["sides"] for each in results if each.get("name", "").startswith(beginning)), {})
        return of[side]["median"] if side in of else None

    peak, steady = median("PSS of the tree at the peak"), median("PSS of the tree after")
    return peak / steady if peak and steady else None


def _machine(facts: dict[str, object]) -> str:
    return f"{facts['date']}, {facts['kernel']}, {facts['machine']}, {facts['cpus']} CPUs.\n\n"


if __name__ == "__main__":
    main()
