"""Before and after: another revision of this library, out of git, and the one that lies here, on the same restarts.

    python benchmarks/against.py REVISION --json benchmarks/results/against.json

Both take turns, in shuffled order, in one run; what counts is the ratio of the medians. The programs are those of
inplace.py, rolling.py and growth.py.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import rolling
from growth import AXES, WORKERS, Axis, Grown
from measure import CHECKOUT, FLOOR, Comparison, facts, in_turn, installed_package, markdown
from worker import IMPORTS, JOBS, Worker, source

LISTENERS = next(axis for axis in AXES if axis.title == "listeners, in place")
GROWN = ((WORKERS, 4), (WORKERS, 32), (WORKERS, 128), (LISTENERS, 1000))
BOTH = Mapping[str, Path]
"""The two packages, by the name of their side; the floor is the other revision."""


def measure(packages: BOTH, runs: int) -> Iterator[Comparison]:
    for side in ("ours, no preflight", "ours, preflight and all"):
        title = f"in place, small worker, {side.removeprefix('ours, ')}: HUP to first new job"
        yield _workers(title, source("small", side), packages, runs, rests=True)
    text = rolling.OURS.format(imports=IMPORTS["small"], jobs=JOBS)
    yield _workers("rolling, one small worker: HUP to first new job", text, packages, runs, rests=False)
    for axis, size in GROWN:
        yield _grown(axis, size, packages, max(1, runs // 4))


def _workers(title: str, text: str, packages: BOTH, runs: int, *, rests: bool) -> Comparison:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides: dict[str, Callable[[], float]] = {}
        for side, package in packages.items():
            worker = stack.enter_context(Worker(Path(folder, side), package, text, rests=rests))
            worker.restart()  # from here on every generation has one before it, and all bytecode is warm
            sides[side] = worker.milliseconds_to_first_job
        return Comparison(title, "ms", in_turn(sides, runs))


def _grown(axis: Axis, size: int, packages: BOTH, runs: int) -> Comparison:
    def milliseconds(program: Grown) -> float:
        return program.restart()["reload, ms"]

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides: dict[str, Callable[[], float]] = {}
        for side, package in packages.items():
            program = stack.enter_context(Grown(Path(folder, side), package, axis, size))
            sides[side] = partial(milliseconds, program)
        return Comparison(f"{size} {axis.title}: the whole restart", "ms", in_turn(sides, runs))


@contextmanager
def _revision(name: str) -> Iterator[Path]:
    """A folder with the sources of a revision."""
    command = ["git", "-C", str(CHECKOUT), "archive", "--format=tar", name, "hotrestart"]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="hotrestart-revision-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder)
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="what git knows it by")
    parser.add_argument("--runs", type=int, default=40, help="of each side; a quarter for many workers (default: 40)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    with _revision(arguments.revision) as checkout, installed_package(checkout) as before, installed_package() as now:
        sys.path.insert(0, str(now))
        found = [each.as_json() for each in measure({FLOOR: before, "now": now}, arguments.runs)]
    result = {**facts(), "revision": arguments.revision, "results": found}
    print(markdown(f"against {arguments.revision}, the floor", [result]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"benchmark": "against", "pythons": [result]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
