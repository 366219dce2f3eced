"""How a restart grows: with workers, listeners, state, open descriptors and the heap; and N workers against N forks.

Each program is restarted through its control socket, at rest before and after. "reload" is the time from the request to
the answer that the new generation serves (all its workers are ready); "first new worker" to the first turn of a new
loop. CPU is that of the process with the known pid: the supervisor's, or the program's own. PSS counts a shared page
once. The exponent is that of the increase above the smallest size (fitting.py): 1 is linear. All sizes are started
before the first run, and take turns in shuffled order. Then the targets, and whether this run has reached them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fitting import Samples, fit
from measure import FLOOR, Comparison, Table, clean_environment, command_line, in_turn, installed_package, summary
from processes import family, rollup

PATIENCE = 120.0  # seconds until a program that does not answer is given up
WATCHED = 1.0 if "--short" not in sys.argv else 0.05  # seconds for which the CPU of a program at rest is counted
PRELOADED = "workers={size}"
ABOUT = 1.25  # forks by hand that a worker more may cost
EACH_WORKER = (
    "each worker has its own pipes, pidfd and shared page and reports over its own lifeline, and the supervisor "
)
EACH_WORKER += "books it; a bare fork does none of that"

PROGRAM = """
import os, sys, time
import hotrestart
{at_import}

def stamp():
    os.write(1, b"%d %d\\n" % (hotrestart.state.generation, time.monotonic_ns()))

@hotrestart.restartable({options})
def main():
    {in_main}
    with hotrestart.worker_loop() as loop:
        stamp()
        while loop.running:
            loop.sleep(3600)

main()
"""

# Forks so many children of a process with the same memory, and waits for a byte from each.
BARE = """
import os, signal, sys, time
import hotrestart
for line in sys.stdin:
    size, (reader, writer), children = int(line), os.pipe(), []
    began = time.monotonic_ns()
    for _ in range(size):
        child = os.fork()
        if child == 0:
            os.write(writer, b"x")
            signal.pause()
        children.append(child)
    came = 0
    while came < size:
        came += len(os.read(reader, 4096))
    print(time.monotonic_ns() - began, flush=True)
    os.close(reader), os.close(writer)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""

HEAP = """
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

heap, least = [], resident() + {size} * 1000000
while {size} and resident() < least:
    for number in range(1000):
        heap.append({{"number": number, "name": "object %d" % len(heap), "about": (number / 3, [number])}})
"""

_LISTEN = 'kept = [hotrestart.listen("unix:%d.sock" % number) for number in range({size})]'
_STATE = 'hotrestart.bequeath("state", hotrestart.inherited("state") or ["x" * 1000] * {size} * 1000)'
_OPEN = 'kept = [os.open("/dev/null", os.O_RDONLY) for _ in range({size})]'


@dataclass(frozen=True)
class Axis:
    """What grows: the program's text with `{size}` for how much of it there is."""

    title: str
    unit: str
    sizes: tuple[int, ...]
    options: str = ""
    at_import: str = ""
    in_main: str = "pass"

    def source(self, size: int) -> str:
        parts = {"options": self.options, "at_import": self.at_import, "in_main": self.in_main}
        return PROGRAM.format(**{name: text.format(size=size) for name, text in parts.items()})

    def workers(self, size: int) -> int:
        """0 for a program in place."""
        return int(self.options.format(size=size).partition("=")[2] or 0)


_LISTENERS, _OPENED, _HEAPS = (1, 10, 100, 1000), (10, 1000, 10000), (0, 100, 500)
_TWO = "workers=2"
WORKERS = Axis("idle preloaded workers", "worker", (1, 2, 8, 32, 128), PRELOADED)
AXES = (
    WORKERS,
    Axis("listeners, in place", "listener", _LISTENERS, in_main=_LISTEN),
    Axis("listeners, rolling, 2 workers", "listener", _LISTENERS, _TWO, in_main=_LISTEN),
    Axis("MB of bequeathed state, in place", "MB", (0, 1, 100), in_main=_STATE),
    Axis("open descriptors, in place", "descriptor", _OPENED, at_import=_OPEN),
    Axis("open descriptors, rolling, 2 workers", "descriptor", _OPENED, _TWO, at_import=_OPEN),
    Axis("MB of objects made at import, in place", "MB", _HEAPS, at_import=HEAP),
    Axis("MB of objects made at import, rolling, 2 workers", "MB", _HEAPS, _TWO, at_import=HEAP),
)
FULL = {"worker": (1, 2, 8, 32, 128, 512)}
SHORT = {"worker": (1, 2, 4), "listener": (1, 20), "MB": (0, 2), "descriptor": (10, 100)}


class Grown:
    """A running program of one size."""

    def __init__(self, folder: Path, package: Path, axis: Axis, size: int) -> None:
        from hotrestart.testing import Program

        self._program = Program(folder, env={"PYTHONPATH": str(package)}, patience=PATIENCE)
        self._program.deploy(axis.source(size))
        self._stamps, self._axis, self._workers = folder / "stamps", axis, axis.workers(size)

    def __enter__(self) -> Grown:
        with self._stamps.open("ab") as stamps:
            self._program.start("app.py", stdout=stamps)
        self._settle(1)
        self.restart()  # from here on every generation has one before it, and all bytecode is warm
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(AssertionError), self._program:
            self._program.stop()

    def restart(self) -> dict[str, float]:
        """Restart it; what was measured, by name."""
        pid = self._program.pid
        cpu, began = cpu_seconds(pid), time.monotonic_ns()
        outcome = self._program.restart()
        ended = time.monotonic_ns()
        if not outcome.ok:
            raise SystemExit(f"a restart has failed: {outcome}\n{self._program.log()[-2000:]}")
        stamps = self._settle(outcome.generation)
        found = {"reload, ms": (ended - began) / 1e6, "first new worker, ms": (min(stamps) - began) / 1e6}
        found |= {f"stage {name}, ms": seconds * 1e3 for name, seconds in outcome.stages.items() if name != "soak"}
        found["CPU of a reload, ms"] = (cpu_seconds(pid) - cpu) * 1e3
        if self._axis is WORKERS:
            cpu = cpu_seconds(pid)
            time.sleep(WATCHED)
            found["CPU at rest, ms/s"] = (cpu_seconds(pid) - cpu) / WATCHED * 1e3
        found["RSS of the pid, MB"] = rollup(pid)["Rss"]
        found["PSS of the pid, MB"] = rollup(pid)["Pss"]
        if self._workers:
            found["PSS of all processes, MB"] = sum(rollup(each)["Pss"] for each in family(pid))
        return found

    def _settle(self, generation: int) -> list[int]:
        """Wait until the whole generation works and the one before has gone; when its loops began."""

        def stamps() -> list[int]:
            lines = (line.split() for line in self._stamps.read_text().splitlines())
            return [int(moment) for number, moment in lines if int(number) == generation]

        processes = self._workers + 2 if self._workers else 1
        expected = max(1, self._workers)
        wait = self._program.wait_until
        wait(lambda: len(stamps()) >= expected, f"{expected} workers of generation {generation}")
        wait(lambda: len(family(self._program.pid)) == processes, f"{processes} processes")
        self._program.wait_ready(generation)
        return stamps()


@dataclass
class Growth(Table):
    """One axis as a table; in JSON also the figures."""

    axis: Axis | None = None
    samples: dict[str, Samples] | None = None

    def as_json(self) -> dict[str, Any]:
        figures = {
            quantity: {"sizes": {size: summary(values) for size, values in of.items()}, **fit(of)}
            for quantity, of in (self.samples or {}).items()
        }
        return {**super().as_json(), "figures": figures}


def measure(runs: int) -> list[Comparison | Table]:
    size = os.environ.get("BENCHMARK_GROWTH", "")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    results: list[Comparison | Table] = []
    with installed_package() as package:
        sys.path.insert(0, str(package))
        for axis in AXES:
            sizes = {"short": SHORT, "full": FULL}.get(size, {}).get(axis.unit, axis.sizes)
            with tempfile.TemporaryDirectory() as folder:
                samples = _run(axis, sizes, Path(folder), package, runs)
            results.append(_table(axis, samples))
            print(f"measured: {axis.title}", file=sys.stderr, flush=True)
            if axis is WORKERS:
                results += _against_forks(samples)
    return [*results, targets([each.as_json() for each in results if isinstance(each, Growth)])]


def targets(grown: Sequence[Mapping[str, Any]]) -> Table:
    """Of the axes as they are in JSON."""
    table = Table("Targets", ["target", "figure", "reached", "if not, why"])
    for axis in grown:
        verdicts = {quantity: of["verdict"].replace("*", "") for quantity, of in axis["figures"].items()}
        if "bare forks, ms" in verdicts:
            ours, bare = (axis["figures"][quantity]["each"] for quantity in ("reload, ms", "bare forks, ms"))
            figure = f"{ours:g} ms a worker more, {bare:g} ms a fork more: {ours / bare:.1f}"
            verdict = ("reached", "") if ours <= ABOUT * bare else ("**not reached**", EACH_WORKER)
            target = f"the reload of N idle preloaded workers is about N forks: at most {ABOUT:g} each"
            table.rows.append([target, figure, *verdict])
        bad = {quantity: verdict for quantity, verdict in verdicts.items() if "worse" in verdict}
        is_known = any(verdict == "worse than linear" for verdict in bad.values())
        verdict = "**not reached**" if is_known else "cannot be told" if bad else "reached"
        why = "; ".join(f"{quantity}: {verdict}" for quantity, verdict in bad.items())
        figure = f"{len(verdicts) - len(bad)} of {len(verdicts)} quantities"
        table.rows.append([f"{axis['title']}: nothing worse than linear", figure, verdict, why])
    return table


def _run(axis: Axis, sizes: tuple[int, ...], folder: Path, package: Path, runs: int) -> dict[str, dict[int, Any]]:
    """`found[quantity][size]`: the runs."""
    with ExitStack() as stack:
        sides: dict[str, Callable[[], Any]] = {}
        for size in sizes:
            program = stack.enter_context(Grown(folder / str(size), package, axis, size))
            sides[str(size)] = program.restart
        if axis is WORKERS:
            bare = stack.enter_context(_bare_forks(folder, package))
            sides |= {f"bare {size}": partial(bare, size) for size in sizes}
        turns = in_turn(sides, runs)
    found: dict[str, dict[int, Any]] = {}
    for size in sizes:
        for quantity in turns[str(size)][0]:
            found.setdefault(quantity, {})[size] = [turn[quantity] for turn in turns[str(size)]]
        if axis is WORKERS:
            found.setdefault("bare forks, ms", {})[size] = turns[f"bare {size}"]
    return found


@contextlib.contextmanager
def _bare_forks(folder: Path, package: Path) -> Iterator[Callable[[int], float]]:
    (folder / "bare.py").write_text(BARE)
    with subprocess.Popen(
        [sys.executable, "bare.py"],
        cwd=folder,
        env={**clean_environment(), "PYTHONPATH": str(package)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def forks(size: int) -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{size}\n")
            process.stdin.flush()
            return int(process.stdout.readline()) / 1e6

        forks(1)
        yield forks


def _against_forks(samples: dict[str, dict[int, list[float]]]) -> list[Comparison]:
    """The stage in which the workers are forked and become ready, and the whole, against as many forks by hand."""
    ours = {"ours, workers forked and ready": "stage ready, ms", "ours, the whole reload": "reload, ms"}
    return [
        Comparison(
            f"{size} new preloaded workers; floor: so many os.fork() and a byte from each",
            "ms",
            {FLOOR: forks, **{side: samples[quantity][size] for side, quantity in ours.items()}},
        )
        for size, forks in samples["bare forks, ms"].items()
    ]


def _table(axis: Axis, samples: dict[str, dict[int, list[float]]]) -> Growth:
    sizes = list(samples["reload, ms"])
    columns = ["median (quartiles)", *map(str, sizes), f"a {axis.unit} more", "exponent (95 %)", "growth", "runs"]
    table = Growth(f"Growth with {axis.title}", columns, axis=axis, samples=dict(samples))
    for quantity, of in samples.items():
        cells = [f"{each['median']} ({each['q1']} to {each['q3']})" for each in map(summary, of.values())]
        found = fit(of)
        exponent = "" if found["exponent"] is None else f"{found['exponent']} ({found['low']} to {found['high']})"
        runs = min(len(values) for values in of.values())
        table.rows.append([quantity, *cells, f"{found['each']:+}", exponent, found["verdict"], runs])
    return table


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, by its own clock: /proc/PID/stat counts in steps of 10 ms."""
    return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) makes of a pid on Linux


if __name__ == "__main__":
    for form in ("short", "full"):  # before the common options: how far to grow goes to all Pythons in the environment
        if f"--{form}" in sys.argv:
            sys.argv.remove(f"--{form}")
            os.environ["BENCHMARK_GROWTH"] = form
    command_line(__file__, measure, runs=7)
