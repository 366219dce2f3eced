"""Queue workers restarted with new code: other people's, ours, and the same by hand, on the same jobs.

One numbered job each 20 ms is put into Redis from outside; a worker takes one at a time and writes down which it has
begun and done, by which version of the code. A restart is asked for when the queue is empty. All sides take turns, in
shuffled order. The floor is a flag, a loop that ends, and a bare `os.execv`, with redis-py imported. A second HUP comes
while a side boots: at any time from its exec (its HUP, if it has no exec) to its first job, by its own median. Needs
redis-server; makes an environment of its own for the peers. A side that cannot be installed or started is shown with
the reason.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from measure import FLOOR, RESULTS, Comparison, Table, facts, heed_signals, installed_package, markdown, ratio
from workers.broker import redis_server
from workers.environment import environment
from workers.sides import FLOORS, HAND_FLOOR, HUEY, IN_PLACE, IN_PLACE_BARE, IN_PLACE_HAND, OURS, PEERS, ROLLING, Side
from workers.subject import Where, WorkerError
from workers.tries import Restarts, good_restarts, hup_then_term, second_hups, syntax_error

AIM = 1.10
PREFLIGHT = "the preflight boots the program once before anything is stopped; the old code works on meanwhile"
OWN_MODULES = "its own modules, the control socket's too, take 6 to 20 ms of so short a boot: see restart_path"
NOISE = "the interval holds the aim: this run cannot tell"


@dataclass(frozen=True)
class Plan:
    """How much is done: `turns` of `restarts` good ones for each side, second HUPs, and the other tries so often."""

    turns: int
    restarts: int
    second_hups: int
    tries: int


WHOLE, SHORT = Plan(turns=3, restarts=4, second_hups=20, tries=2), Plan(1, 2, 2, 1)


COUNTS = (
    "side",
    "version",
    "restarts",
    "HUP to first job, lowest to highest, ms",
    "jobs",
    "lost",
    "repeated",
    "died of a second HUP, in the boot",
    "HUP, then TERM, with a job in hand",
    "HUP with a syntax error in the new code",
)


class Report:
    """What is known of each side so far."""

    def __init__(self, sides: list[Side]) -> None:
        self.sides = sides
        self.restarts = {side.name: Restarts() for side in sides}
        self.died: dict[str, list[str]] = {side.name: [] for side in sides}
        self.seen: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
        self.reasons: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def attempt(self, side: Side, what: str, doing: Callable[[], object]) -> None:
        """Do it unless the side has failed before; what goes wrong is the reason why there is no figure."""
        if side.name in self.reasons:
            return
        try:
            doing()
        except (WorkerError, OSError) as error:  # OSError: its feeder could not load it either
            self.reasons[side.name] = f"{what}: {error}"

    @property
    def measured(self) -> list[Side]:
        return [side for side in self.sides if self.restarts[side.name].to_first_job]


def measure(plan: Plan, sides: list[Side], where: Where, report: Report) -> None:
    """All of it. A side is alone on the machine while it is timed; what is only counted is done two sides at a time."""
    for turn in range(plan.turns):
        for side in random.sample(sides, len(sides)):
            into, began = report.restarts[side.name], time.monotonic()
            restart = partial(good_restarts, where, side, plan.restarts, into)
            report.attempt(side, "good restarts", restart)
            _say(f"good restarts, turn {turn + 1}", side, began)
    with ThreadPoolExecutor(2) as pool:
        others = [side for side in reversed(sides) if not side.is_stopped_and_started]  # the slowest first
        list(pool.map(partial(_bad_moments, plan, where, report), others))


def _say(what: str, side: Side, began: float) -> None:
    print(f"{what}: {side.name}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _bad_moments(plan: Plan, where: Where, report: Report, side: Side) -> None:
    died, began = report.died[side.name], time.monotonic()
    if report.restarts[side.name].boots:
        window = report.restarts[side.name].window
        report.attempt(side, "second HUP", lambda: died.extend(second_hups(where, side, plan.second_hups, window)))
    for name, attempt in (("HUP, TERM", hup_then_term), ("syntax error", syntax_error)):
        seen = report.seen[side.name, name]
        for _ in range(plan.tries):
            report.attempt(side, name, lambda attempt=attempt, seen=seen: seen.append(attempt(where, side)))
    _say("bad moments", side, began)


# --- the tables


def results(report: Report) -> list[Comparison | Table]:
    measured = report.measured
    floor = FLOOR if any(side.name == FLOOR for side in measured) else HAND_FLOOR
    order = sorted(measured, key=lambda side: side.name != floor)
    tables: list[Comparison | Table] = []
    for what, attribute in (
        ("HUP to first job by the new code", "to_first_job"),
        ("longest time without a job around a restart (one is put in each 20 ms)", "without_a_job"),
    ):
        found = {side.name: getattr(report.restarts[side.name], attribute) for side in order}
        samples = {name: [1e3 * each for each in seconds] for name, seconds in found.items() if seconds}
        if floor in samples:
            samples = {FLOOR: samples.pop(floor), **samples}
            tables.append(Comparison(what, "ms", samples))
    return [*tables, _counts(report), targets(report), *_notes(report), *_reasons(report)]


def _counts(report: Report) -> Table:
    table = Table("What a restart costs besides time", list(COUNTS))
    for side in report.measured:
        of, died = report.restarts[side.name], report.died[side.name]
        table.rows.append(
            [
                side.name,
                report.versions.get(side.package, ""),
                len(of.to_first_job),
                f"{1e3 * min(of.to_first_job):.0f} to {1e3 * max(of.to_first_job):.0f}",
                of.jobs,
                of.lost,
                f"{of.repeated} ({_counted(of.repeats)})" if of.repeats else 0,
                f"{_killed(died)}, in {of.window:.2f} s" if died else "-",
                _counted(report.seen[side.name, "HUP, TERM"]),
                _counted(report.seen[side.name, "syntax error"]),
            ]
        )
    return table


def _killed(seen: list[str]) -> str:
    """ "3 of 20", or "3 of 20, 1 stuck"."""
    stuck = seen.count("is stuck")
    return f"{seen.count('died')} of {len(seen)}{f', {stuck} stuck' if stuck else ''}" if seen else "-"


def _counted(seen: list[str]) -> str:
    """ "cuts the job, exit 1 (2 of 2)"."""
    return "; ".join(f"{what} ({count} of {len(seen)})" for what, count in collections.Counter(seen).items()) or "-"


def targets(report: Report) -> Table:
    """Whether what we aim at is reached; the medians of this run."""
    table = Table("Targets", ["target", "figure", "reached", "if not, why"])
    pairs = ((IN_PLACE_BARE, FLOOR, "redis-py", ""), (IN_PLACE_HAND, HAND_FLOOR, "30-line client", OWN_MODULES))
    for ours, floor, client, why in pairs:
        found = _ratio(report, ours, floor)
        if found:
            target = f"in place without preflight, {client}: HUP to first new job at most {AIM:.2f} of the floor"
            table.rows.append([target, _interval(found), *_reached(found["ratio"] <= AIM, found["low"] <= AIM, why)])
    for ours, what, attribute in (
        (IN_PLACE_BARE, "HUP to first new job ahead of huey", "to_first_job"),
        (IN_PLACE, "HUP to first new job, preflight and all, ahead of huey", "to_first_job"),
        (IN_PLACE, "longest time without a job below huey's", "without_a_job"),
        (ROLLING, "longest time without a job below huey's", "without_a_job"),
    ):
        found = _ratio(report, ours, HUEY, attribute)
        if found:
            verdict = _reached(
                found["ratio"] < 1.0, found["low"] < 1.0, PREFLIGHT if "preflight and all" in what else ""
            )
            table.rows.append([f"{ours}: {what}", f"{_interval(found)} of huey's", *verdict])
    for side in (side for side in OURS if report.restarts.get(side.name, Restarts()).to_first_job):
        of = report.restarts[side.name]
        figure = f"{of.lost} lost, {of.repeated} repeated of {of.jobs}"
        table.rows.append([f"{side.name}: no job lost, none repeated", figure, *_reached(not of.lost + of.repeated)])
        died = report.died[side.name]
        if died:
            is_reached = set(died) == {"lives"}
            table.rows.append([f"{side.name}: no second HUP kills it", _killed(died), *_reached(is_reached)])
    return table


def _ratio(report: Report, ours: str, other: str, attribute: str = "to_first_job") -> dict[str, float]:
    samples = [getattr(report.restarts.get(name, Restarts()), attribute) for name in (ours, other)]
    return ratio(*samples) if all(samples) else {}


def _interval(found: dict[str, float]) -> str:
    return f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _reached(is_reached: bool, may_be: bool = False, why: str = "") -> tuple[str, str]:
    """`may_be`: the interval of the figure holds the aim; `why` is the known cause if it is missed."""
    return ("reached", "") if is_reached else ("**not reached**", why or (NOISE if may_be else "not known"))


def _notes(report: Report) -> list[Table]:
    rows: list[list[Any]] = [[side.name, side.note] for side in report.measured if side.note]
    for side in report.measured:
        late = report.restarts[side.name].not_caught_up
        rows += [[side.name, f"{late} restarts with jobs that waited in the queue"]] if late else []
    return [Table("To be known", ["side", "what"], rows)] if rows else []


def _reasons(report: Report) -> list[Table]:
    rows: list[list[Any]] = [[name, reason.replace("|", "/")] for name, reason in report.reasons.items()]
    return [Table("Not measured, or not to the end", ["side", "why"], rows)] if rows else []


# --- the command line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="ours and the floor, with a 30-line client: some seconds")
    parser.add_argument("--turns", type=int, help=f"turns of {WHOLE.restarts} restarts each (default: {WHOLE.turns})")
    parser.add_argument("--only", metavar="TEXT", help="the floor, and sides with this in their name")
    parser.add_argument("--environment", type=Path, help="where the peers are installed (default: below the temporary)")
    parser.add_argument(
        "--results", type=Path, help="folder for queues.json and queues.md (default, if whole: results)"
    )
    arguments = parser.parse_args()
    if arguments.turns is not None and arguments.turns < 1:
        parser.error("--turns is 1 or more")
    sides = [side for side in [*OURS, *FLOORS, *PEERS] if (arguments.only or "") in side.name or side.name == FLOOR]
    if arguments.short:
        sides = [side for side in sides if side.client == "by_hand"]
    plan = SHORT if arguments.short else WHOLE
    heed_signals()
    report = Report(sides)
    with tempfile.TemporaryDirectory() as scratch, installed_package() as package, redis_server(Path(scratch)) as port:
        python = Path(sys.executable)
        if not arguments.short:
            python, report.versions, missing = environment(arguments.environment)
            report.reasons |= {side.name: missing[side.package] for side in sides if side.package in missing}
        plan = replace(plan, turns=arguments.turns or plan.turns)
        measure(plan, sides, Where(Path(scratch), python, package, port), report)
    raw = {
        name: {**asdict(of), "after_a_second_hup": report.died[name]} for name, of in report.restarts.items() if of.jobs
    }
    result = {**facts(), "results": [each.as_json() for each in results(report)], "raw": raw}
    text = markdown("queues", [result])
    print(text)
    folder = arguments.results or (None if arguments.short or arguments.only else RESULTS)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        document = {"benchmark": "queues", "pythons": [result]}
        (folder / "queues.json").write_text(json.dumps(document, indent=1) + "\n")
        (folder / "queues.md").write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()
