"""The rolling restart: from the HUP to the first job of a new worker, while the old one works on.

The floor is what cannot be left out, by hand: a process that starts a fresh interpreter on the HUP, which imports what
the program imports and forks, and the child works. It waits for nobody, hands nothing over, and notices no failure.
No side is timed while the other still ends its old generation: after each turn there is a wait for that, on both.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from inplace import FORMS, can_run
from measure import Comparison, Table, command_line, in_turn, installed_package
from processes import family, has_gone
from worker import IMPORTS, JOBS, PATIENCE, Worker

OURS = """
{imports}
import hotrestart
{jobs}
@hotrestart.restartable(workers=1)
def main():
    with hotrestart.worker_loop() as loop:
        while loop.running:
            handle(take())

if __name__ == "__main__":
    main()
"""

_FLOOR = """
import os, sys
if len(sys.argv) == 2:  # the one that is sent the HUP
    import signal, subprocess
    generations = [0]
    def load(*_):
        command = [sys.executable, *sys.argv, str(generations[-1]), str(os.getpid())]
        generations.append(subprocess.Popen(command, start_new_session=True).pid)
    signal.signal(signal.SIGHUP, load)
    load()
    while True:
        signal.pause()
{imports}
{jobs}
parent, before = int(sys.argv[3]), int(sys.argv[2])
if os.fork():
    while os.getppid() == parent:
        time.sleep(0.1)
    os.killpg(0, 9)
handle(take())
if before:
    os.killpg(before, 9)
while True:
    handle(take())
"""


def measure(runs: int) -> list[Comparison | Table]:
    with installed_package() as package:
        return [_compare(form, what, package, runs) for form, what in FORMS.items() if can_run(form)]


def _compare(form: str, what: str, package: Path, runs: int) -> Comparison:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides = {}
        for side, text in {"floor": _FLOOR, "ours": OURS}.items():
            program = text.format(imports=IMPORTS[form], jobs=JOBS)
            worker = stack.enter_context(Worker(Path(folder, side), package, program, rests=False))
            worker.restart()  # from here on every generation has one before it, and all bytecode is warm
            _settle(worker)
            sides[side] = partial(_one_turn, worker)
        return Comparison(f"HUP to first job of a new worker, {what}", "ms", in_turn(sides, runs))


def _one_turn(worker: Worker) -> float:
    taken = worker.milliseconds_to_first_job()
    _settle(worker)
    return taken


def _settle(worker: Worker) -> None:
    """Wait until there is one generation: who is sent the HUP, who has loaded the program, and the worker."""
    deadline = time.monotonic() + PATIENCE
    while sum(not has_gone(pid) for pid in family(worker.pid)) != 3:
        if time.monotonic() > deadline:
            raise SystemExit(f"an old generation does not go: {worker.errors.read_text(errors='replace')[-2000:]}")
        time.sleep(0.005)


if __name__ == "__main__":
    command_line(__file__, measure, runs=40)
