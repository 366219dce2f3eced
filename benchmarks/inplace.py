"""The restart in place: from the HUP to the first job of the new generation, against the same program by hand.

The floor is a handler that sets a module-level flag, a loop that ends, and a bare `os.execv` at the end of `main()`. It
loses signals, exit handlers and listeners; nothing that does the same can be faster. Ours is measured without the
preflight, which boots the program once more before anything is stopped, and with it.
"""

from __future__ import annotations

import importlib.util
import tempfile
from contextlib import ExitStack
from pathlib import Path

from measure import Comparison, Table, command_line, in_turn, installed_package
from worker import SIDES, Worker, source

FORMS = {"small": "small worker", "realistic": "worker with redis-py"}


def measure(runs: int) -> list[Comparison | Table]:
    with installed_package() as package:
        return [_compare(form, what, package, runs) for form, what in FORMS.items() if can_run(form)]


def can_run(form: str) -> bool:
    return form != "realistic" or importlib.util.find_spec("redis") is not None


def _compare(form: str, what: str, package: Path, runs: int) -> Comparison:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides = {}
        for side in SIDES:
            worker = stack.enter_context(Worker(Path(folder, side), package, source(form, side)))
            worker.restart()  # from here on every generation has one before it, and all bytecode is warm
            sides[side] = worker.milliseconds_to_first_job
        return Comparison(f"HUP to first new job, {what}", "ms", in_turn(sides, runs))


if __name__ == "__main__":
    command_line(__file__, measure, runs=60)
