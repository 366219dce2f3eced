"""Where the restart in place spends its time: its stretches, its modules, its system calls, against the floor's.

The stretches come from stamps that the program writes, the modules from `-X importtime` of a generation that has one
before it, the system calls from strace (left out where it is not installed or not allowed).
"""

from __future__ import annotations

import collections
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from measure import Comparison, Table, command_line, in_turn, installed_package
from worker import PATIENCE, Worker, source

FORM = "small"
OURS = "ours, no preflight"
SIDES = ("floor", OURS)

STRETCHES = (
    ("HUP to end of the loop (job in hand)", "hup", "loop-ended"),
    ("end of the loop to the restart's imports (end, exec, boot, own imports)", "loop-ended", "first-line"),
    ("the restart's imports (floor: signal)", "first-line", "imported"),
    ("imports to first job (the doors)", "imported", "first-job"),
)

_IMPORTED = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s*(\S+)")
_CALL = re.compile(r"^(?:\[pid +\d+\] |\d+ +)?(?:<\.\.\. (\w+) resumed|(\w+)\()")


def measure(runs: int) -> list[Comparison | Table]:
    with installed_package() as package:
        tables: list[Comparison | Table] = [_stretches(package, runs), *_modules(package, runs)]
        calls = _system_calls(package)
    return tables if calls is None else [*tables, calls]


def _stretches(package: Path, runs: int) -> Table:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stamps: dict[str, list[dict[str, int]]] = {side: [] for side in SIDES}
        turns = {}
        for side in SIDES:
            worker = stack.enter_context(Worker(Path(folder, side), package, source(FORM, side, all_stamps=True)))
            worker.restart()
            turns[side] = lambda worker=worker, side=side: len(stamps[side].append(worker.restart()) or ())
        in_turn(turns, runs)
    table = Table("Stretches of a restart, medians", ["stretch", "floor, ms", "ours, ms", "more, ms"])
    for name, start, end in STRETCHES:
        floor, ours = (statistics.median((run[end] - run[start]) / 1e6 for run in stamps[side]) for side in SIDES)
        table.rows.append([name, f"{floor:.2f}", f"{ours:.2f}", f"{ours - floor:+.2f}"])
    return table


def _modules(package: Path, runs: int) -> list[Table]:
    """What our generations import that the floor's do not, and what it costs in each module alone."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        loads = {}
        for side in SIDES:
            program = Worker(Path(folder, side), package, source(FORM, side), flags="-X importtime")
            worker = stack.enter_context(program)
            worker.restart()
            loads[side] = []
            for _ in range(max(1, runs // 5)):
                worker.errors.write_bytes(b"")  # what follows is of the next generation, and of the old one's last act
                worker.restart()
                loads[side].append(_microseconds(worker.errors.read_text()))
    more = [name for name in loads[OURS][-1] if name not in loads["floor"][-1]]
    costs = {name: statistics.median(load[name] for load in loads[OURS] if name in load) for name in more}
    table = Table("Modules that a restart loads and the floor does not, medians", ["module", "itself, us"])
    table.rows = [[name, f"{costs[name]:.0f}"] for name in more]
    table.rows.append([f"sum of {len(more)} modules", f"{sum(costs.values()):.0f}"])
    return [table]


def _microseconds(importtime: str) -> dict[str, int]:
    return {name: int(alone) for alone, _, name in _IMPORTED.findall(importtime)}


def _system_calls(package: Path) -> Table | None:
    """The system calls from the end of the old loop to the new first job."""
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "true"], capture_output=True, check=False).returncode:
        return None
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in SIDES:
            trace = Path(folder, f"{side}.strace")
            wrapper = (strace, "-D", "-f", "-s", "16", "-o", str(trace))  # -D: the program is our child, not strace
            text = source(FORM, side, all_stamps=True)
            with Worker(Path(folder, side), package, text, wrapper=wrapper) as worker:
                worker.restart()
                worker.restart()
            deadline = time.monotonic() + PATIENCE
            while "+++ killed by SIGKILL" not in trace.read_text(errors="replace") and time.monotonic() < deadline:
                time.sleep(0.01)
            counts[side] = _between_stamps(trace.read_text(errors="replace"))
    table = Table("System calls from the end of the old loop to the new first job", ["call", "floor", "ours", "more"])
    names = sorted(counts["floor"] | counts[OURS], key=lambda n: counts["floor"][n] - counts[OURS][n])
    table.rows = [[n, counts["floor"][n], counts[OURS][n], counts[OURS][n] - counts["floor"][n]] for n in names]
    floor, ours = (sum(counts[side].values()) for side in SIDES)
    table.rows = [row for row in table.rows if row[-1]]
    table.rows.append(["all", floor, ours, ours - floor])
    return table


def _between_stamps(trace: str) -> collections.Counter[str]:
    """The calls between the last "loop-ended" and the first job after it."""
    calls = trace[: trace.rindex('"first-job')]
    calls = calls[calls.rindex('"loop-ended') :]
    found = (_CALL.match(line) for line in calls.splitlines()[1:])
    return collections.Counter(match[2] for match in found if match and match[2])


if __name__ == "__main__":
    command_line(__file__, measure, runs=40)
