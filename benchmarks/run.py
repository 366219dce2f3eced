"""Run the benchmarks, and write `results/*.json` and `results/README.md`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from measure import RESULTS, clean_environment, markdown

BENCHMARKS = ("inplace", "rolling", "primitives", "restart_path", "memory")

_HEAD = """# Results

Ours and the floor take turns, in shuffled order, in one run; what counts is the ratio of the medians and its interval.
The floor is the same thing written by hand with bare system calls, without what hotrestart promises. The times are of
one machine on one day; run `python benchmarks/run.py` for yours.

"""


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
    text = _HEAD
    for name in BENCHMARKS:
        file = results / f"{name}.json"
        if file.exists():
            pythons = json.loads(file.read_text())["pythons"]
            text += markdown(name, pythons) + "\n" + _machine(pythons[0])
    return text.rstrip() + "\n"


def _machine(facts: dict[str, object]) -> str:
    return f"{facts['date']}, {facts['kernel']}, {facts['machine']}, {facts['cpus']} CPUs.\n\n"


if __name__ == "__main__":
    main()
