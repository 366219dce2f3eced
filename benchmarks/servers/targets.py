"""What we aim at for rolling restarts, and whether this run has reached it; if not, the cause."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from measure import Table

from .peers import OURS

Found = Mapping[str, Any]
Row = list[Any]

_ROLLING = f"{OURS}, rolling, "
_FLOORS = {"wsgiref": "exec in place by hand, wsgiref"}  # a stop and start of uvicorn is no floor: it does more
_ENOUGH = 200
_FIRST_NEW, _STEADY_PSS, _PEAK_PSS = 1.25, (1.1, 1.0), 1.3

_CORES = "the new generation is loaded on the cores that the workers and the clients share"
_BOOT = "the fork server says that it has loaded, and a worker is forked, under the same load; an exec has no fork: "
_BOOT += "rolling.py has the floor that boots, imports and forks"
_SUPERVISOR = "supervisor and fork server are two processes, so that new code cannot harm the first; gunicorn has one"
_TWO_LOADED = "what the workers share is there twice for a while, and two workers share most of this small program; "
_TWO_LOADED += "see memory.json for four workers, and for preload=False"


def targets(peers: Sequence[Found]) -> Table:
    """Medians of the runs; the worst of our servers is the one that counts."""
    table = Table("Targets", ["target", "figure", "reached", "if not, why"])
    measured = {each["name"]: each for each in peers if each.get("runs")}
    rolling = {name: each for name, each in measured.items() if name.startswith(_ROLLING)}
    if rolling:
        for load in ("open", "closed"):
            table.rows += [_nothing_is_lost(load, rolling), _nobody_is_silent(load, rolling)]
        table.rows += _slow_imports_do_no_harm(rolling)
        table.rows += [*_first_answers(measured), *_memory(measured)]
    return table


def _nothing_is_lost(load: str, rolling: Mapping[str, Found]) -> Row:
    runs = [run[load] for each in rolling.values() for run in each["runs"]]
    lost, retries = (sum(of) for of in zip(*((sum(run["lost"].values()), run["retries"]) for run in runs), strict=True))
    reloads = sum(run["reloads"] for run in runs)
    why = "not known" if lost + retries else "too few reloads here; see reloads.md"
    target = f"rolling, {load} loop: nothing lost, no retry in at least {_ENOUGH} reloads"
    figure = f"{lost} lost, {retries} retries in {reloads} reloads"
    return _row(target, figure, lost + retries == 0 and reloads >= _ENOUGH, why)


def _nobody_is_silent(load: str, rolling: Mapping[str, Found]) -> Row:
    silent, figure = _silence({name: [run[load] for run in each["runs"]] for name, each in rolling.items()})
    return _row(f"rolling, {load} loop: longest silence not above the steady state's", figure, silent <= 1.0, _CORES)


def _silence(rolling: Mapping[str, Sequence[Found]]) -> tuple[float, str]:
    """The worst of the medians, as a multiple of the steady state's, and in words; and the same of the highest."""

    def silences(runs: Sequence[Found]) -> tuple[float, float]:
        restarting, steady = (statistics.median(run[name] for run in runs) for name in ("silence", "steady_silence"))
        return restarting, steady

    name, (restarting, steady) = _worst(rolling, silences, lambda pair: pair[0] / pair[1])
    highest, ratio = _worst(rolling, highest_silences, float)
    figure = f"{restarting / steady:.2f}: {restarting:.3f} s, steady {steady:.3f} s ({name}); "
    return restarting / steady, f"{figure}highest to highest: {ratio:.2f} ({highest})"


def highest_silences(runs: Sequence[Found]) -> float:
    """The longest silence of all reloads, as a multiple of the longest of all steady states."""
    return max(run["silence"] for run in runs) / max(run["steady_silence"] for run in runs)


def _slow_imports_do_no_harm(rolling: Mapping[str, Found]) -> Iterator[Row]:
    imported = {name: each["slow"] for name, each in rolling.items() if each.get("slow")}
    for kind in dict.fromkeys(kind for slow in imported.values() for kind in slow):
        runs = {name: slow[kind] for name, slow in imported.items() if kind in slow}
        silent, figure = _silence(runs)
        lost = sum(sum(run["lost"].values()) for each in runs.values() for run in each)
        target = f"rolling, import of {kind}: nothing lost, longest silence not above the steady state's"
        yield _row(target, f"{lost} lost; {figure}", lost == 0 and silent <= 1.0, _CORES)


def _first_answers(measured: Mapping[str, Found]) -> Iterator[Row]:
    for server, floor in _FLOORS.items():
        if floor in measured and (_ROLLING + server) in measured:
            ours, bare = (_median(measured[name], "open", "first_new") for name in (_ROLLING + server, floor))
            target = f"rolling, {server}: trigger to first new answer at most {_FIRST_NEW:.2f} of: {floor}"
            yield _row(target, f"{ours / bare:.2f} ({ours:.2f} s)", ours <= _FIRST_NEW * bare, _BOOT)


def _memory(measured: Mapping[str, Found]) -> Iterator[Row]:
    ours, preloaded, batched = f"{_ROLLING}wsgiref", "gunicorn --preload, HUP", f"{_ROLLING}uvicorn, batch=1"
    if ours in measured and preloaded in measured:
        share = _median(measured[ours], "memory", "steady") / _median(measured[preloaded], "memory", "steady")
        for most in _STEADY_PSS:
            target = f"rolling, wsgiref: steady PSS at most {most:.2f} of gunicorn --preload's"
            yield _row(target, f"{share:.2f}", share <= most, _SUPERVISOR)
    if batched in measured:
        share = _median(measured[batched], "memory", "peak") / _median(measured[batched], "memory", "steady")
        target = f"rolling, uvicorn, batch=1: peak PSS at most {_PEAK_PSS:.1f} of steady"
        yield _row(target, f"{share:.2f}", share <= _PEAK_PSS, _TWO_LOADED)


def _worst(of: Mapping[str, Any], figure: Callable[[Any], Any], size: Callable[[Any], float]) -> tuple[str, Any]:
    """Whose figure is the biggest, and it."""
    figures = {name.removeprefix(_ROLLING): figure(each) for name, each in of.items()}
    name = max(figures, key=lambda each: size(figures[each]))
    return name, figures[name]


def _median(each: Found, part: str, name: str) -> float:
    values: Iterable[Any] = (run[part][name] for run in each["runs"])
    return statistics.median([value for value in values if value is not None] or [float("nan")])


def _row(target: str, figure: str, is_reached: bool, why: str) -> Row:
    return [target, figure, *(("reached", "") if is_reached else ("**not reached**", why))]
