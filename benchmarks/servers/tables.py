"""What was found, as Markdown tables. A figure is the median of the runs, with the lowest and the highest of them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from measure import Table

from . import apps
from .targets import highest_silences, targets

Found = Mapping[str, Any]
"""One peer: name, missing, runs, slow, broken, as `peers.py` writes it to servers.json."""


def all_tables(peers: Sequence[Found]) -> list[Table]:
    parts = (_open, _closed, _memory, _slow, _broken, _afterwards, targets)
    return [part(peers) for part in parts]


def _open(peers: Sequence[Found]) -> Table:
    return _loaded("open", "the open loop: 100 requests/s on new connections and 100 on kept ones", peers)


def _closed(peers: Sequence[Found]) -> Table:
    """With what can be seen only when all workers have as much to do as they can."""
    title = "the closed loop: 8 clients on new connections and 8 on kept ones, at full CPU"
    table = _loaded("closed", title, peers)
    table.columns += ["answers/s in the reload", "steady", "fewest workers that answer within 0.25 s", "steady"]
    for row in table.rows:
        runs = [run["closed"] for each in peers if each["name"] == row[0] for run in each.get("runs", ())]
        row += [_median(runs, name, 0) for name in ("per_second", "steady_per_second")]
        row += [min((run[name] for run in runs), default="") for name in ("workers", "steady_workers")]
    return table


def _loaded(load: str, title: str, peers: Sequence[Found]) -> Table:
    columns = ["peer", "runs", "reloads that took effect", "lost in all of them", "retries", "in the steady state"]
    columns += [
        "longest silence, s",
        "steady",
        "highest / highest steady",
        "p50 in the reload, ms",
        "steady",
        "p99",
        "steady",
        "max",
        "steady",
    ]
    columns += ["trigger to first new answer, s", "to last old answer, s"]
    table = Table(f"Reloads in {title}", columns)
    for each in _measured(peers, table, "runs"):
        runs = [run[load] for run in each["runs"]]
        took, reloads = (sum(run[name] for run in runs) for name in ("took_effect", "reloads"))
        row = [each["name"], len(runs), f"{took} of {reloads}{_told_also(runs)}", _lost(runs)]
        row += [_sum(runs, name) for name in ("retries", "steady_retries")]
        row += [_median(runs, name, 3) for name in ("silence", "steady_silence")]
        row.append(f"{highest_silences(runs):.1f}")
        for name in ("p50", "p99", "max"):
            row += [_median(runs, name, 1), _median(runs, f"steady_{name}", 1)]
        table.rows.append(row + [_median(runs, name, 2) for name in ("first_new", "last_old")])
    return table


def _memory(peers: Sequence[Found]) -> Table:
    columns = ["peer", "runs", "steady, MB", "peak of a reload, MB", "peak / steady"]
    table = Table("Memory of all processes (PSS), without load", columns)
    for each in _measured(peers, table, "runs"):
        runs = [run["memory"] for run in each["runs"]]
        row = [each["name"], len(runs), *(_median(runs, name, 1) for name in ("steady", "peak"))]
        table.rows.append([*row, _of([run["peak"] / run["steady"] for run in runs], 2)])
    return table


def _slow(peers: Sequence[Found]) -> Table:
    kinds = list(dict.fromkeys(kind for each in peers for kind in each.get("slow") or ()))
    columns = ["peer", "reloads each"]
    for kind in kinds:
        columns += [f"import of {kind}: longest silence, s", "max latency, ms", "lost in all of them", "first new, s"]
    table = Table("Reloads to code that takes its time to be imported, in the open loop", columns)
    for each in _measured(peers, table, "slow"):
        row = [each["name"], max(map(len, each["slow"].values()))]
        for runs in (each["slow"].get(kind, []) for kind in kinds):
            row += [_median(runs, "silence", 2), _median(runs, "max", 0), _lost(runs), _first_new(runs)]
        table.rows.append(row)
    return table


def _first_new(runs: Sequence[Found]) -> str:
    never = sum(not run["took_effect"] for run in runs)
    times = _median(runs, "first_new", 1) if never < len(runs) else "never"
    return f"{times}{f', never in {never} of {len(runs)}' if 0 < never < len(runs) else ''}{_told_also(runs)}"


def _broken(peers: Sequence[Found]) -> Table:
    title = "Broken code is deployed: % of requests answered within 2 s, over 10 s; and what the one who asks is told"
    table = Table(title, ["peer", *apps.BROKEN, *(f"told: {kind}" for kind in apps.BROKEN)])
    for each in _measured(peers, table, "broken"):
        kinds = [each["broken"].get(kind) for kind in apps.BROKEN]
        table.rows.append(
            [
                each["name"],
                *("" if kind is None else f"{kind['availability']:.1f}" for kind in kinds),
                *("" if kind is None else _told(kind) for kind in kinds),
            ]
        )
    return table


def _afterwards(peers: Sequence[Found]) -> Table:
    title = "Afterwards: % answered in the 3 s after a worker is killed, with the broken code still there; "
    title += "and seconds until mended code answers"
    columns = ["peer", *(f"crash: {kind}" for kind in apps.BROKEN), *(f"mended: {kind}" for kind in apps.BROKEN)]
    table = Table(title, columns)
    for each in _measured(peers, table, "broken"):
        kinds = [each["broken"].get(kind) for kind in apps.BROKEN]
        row = [each["name"]]
        for kind in kinds:
            crash = None if kind is None else kind["after_a_crash"]
            row.append("-" if crash is None else f"{crash:.0f}")
        for kind in kinds:
            if kind is None:
                row.append("")
            elif kind["is_dead"]:
                row.append(f"has ended, exit {kind['service_ended']}")
            else:
                row.append("never" if kind["recovery"] is None else f"{kind['recovery']:.1f}")
        table.rows.append(row)
    return table


def _measured(peers: Sequence[Found], table: Table, part: str) -> Iterable[Found]:
    """Those that have this part. The others are named in the table, with the reason."""
    for each in peers:
        if each.get(part):
            yield each
        elif each.get("missing"):
            table.rows.append([each["name"], f"not measured: {each['missing']}", *[""] * (len(table.columns) - 2)])


def _lost(runs: Iterable[Found]) -> str:
    kinds: Counter[str] = Counter()
    for run in runs:
        kinds.update(run["lost"])
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"**{kinds.total()}** ({named})" if kinds else "0"


def _told_also(runs: Iterable[Found]) -> str:
    """What those who asked were told, if it was not that all is well."""
    told: Counter[str] = Counter()
    for run in runs:
        told.update({text: count for text, count in run.get("told", {}).items() if text != "exit 0"})
    return f" ({', '.join(f'{count} of them: {text}' for text, count in told.items())})" if told else ""


def _sum(runs: Iterable[Found], name: str) -> int | str:
    """A dash if a run does not know."""
    values = [run.get(name) for run in runs]
    return "-" if None in values else sum(values)


def _told(kind: Found) -> str:
    after = "" if kind["told_after"] is None else f" after {kind['told_after']:.1f} s"
    return f"{kind['told']}{after}" if kind["told"] else "nothing"


def _median(runs: Sequence[Found], name: str, digits: int) -> str:
    return _of([run[name] for run in runs if run.get(name) is not None], digits)


def _of(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    middle = f"{statistics.median(values):.{digits}f}"
    low, high = (f"{each:.{digits}f}" for each in (min(values), max(values)))
    return f"{middle} ({low} to {high})" if low != high else middle
