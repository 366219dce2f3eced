"""Two plots, one row a peer: latency over time through a reload, and who is served when broken code is deployed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import apps, broken, ledger

OLD, NEW, LOST = "#4477aa", "#44aa77", "#cc3311"
_MOST = 20_000.0  # ms; above the timeout of a request
_LEAST = 0.3

Found = Mapping[str, Any]


def draw(peers: Sequence[Found], folder: Path) -> list[Path]:
    """Write the plots; raises ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update(
        {"svg.hashsalt": "servers", "svg.fonttype": "none", "font.size": 8, "font.family": "sans-serif"}
    )
    files = []
    if measured := [each for each in peers if each.get("timeline")]:
        files.append(_reloads(measured, folder / "servers_reload.svg"))
    if measured := [each for each in peers if each.get("broken")]:
        files.append(_broken(measured, folder / "servers_broken.svg"))
    return files


def _reloads(peers: Sequence[Found], file: Path) -> Path:
    figure, rows = _rows(len(peers), 1, 0.62)
    for (axes,), each in zip(rows, peers, strict=True):
        for side, colour in (("old", OLD), ("new", NEW)):
            points = each["timeline"][side]
            heights = [max(value, 2 * _LEAST) for _, value in points]
            axes.bar(
                [when for when, _ in points], heights, width=ledger.STEP, color=colour, align="edge", rasterized=True
            )
        lost = [when for when, _ in each["timeline"]["lost"]]
        axes.plot(lost, [_MOST / 8] * len(lost), "x", color=LOST, markersize=4)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set(yscale="log", ylim=(_LEAST, _MOST), yticks=[1, 100, 10_000], xlim=(-ledger.BEFORE, ledger.AFTER))
        axes.set_yticklabels(["1 ms", "0.1 s", "10 s"], fontsize=6)
        _name(axes, each["name"])
    rows[0][0].set_title(
        "The longest latency of what was sent in each 25 ms. Blue: answered by the old code; green: by the new; "
        "red: lost.\nThe reload is asked for at 0 s.",
        fontsize=8,
    )
    rows[-1][0].set_xlabel("seconds")
    return _save(figure, file)


def _broken(peers: Sequence[Found], file: Path) -> Path:
    figure, rows = _rows(len(peers), len(apps.BROKEN), 0.5)
    for row, each in zip(rows, peers, strict=True):
        for axes, kind in zip(row, apps.BROKEN, strict=True):
            axes.set(
                ylim=(0, 105), yticks=[], xlim=(-broken.BEFORE, broken.OBSERVED + broken.TIMEOUT + broken.CRASHED + 3)
            )
            if kind in each["broken"]:
                found = each["broken"][kind]
                times, shares = zip(*found["timeline"], strict=True)
                axes.fill_between(times, shares, step="post", color=NEW, linewidth=0, rasterized=True)
                crashed, mended = found["marks"]
                axes.axvline(0, color="black", linewidth=0.8)
                axes.axvline(mended, color=OLD, linewidth=0.8)
                if mended - crashed > 0.5:
                    axes.axvline(crashed, color=LOST, linewidth=0.8)
        _name(row[0], each["name"])
    for axes, kind in zip(rows[0], apps.BROKEN, strict=True):
        axes.set_title(kind, fontsize=8)
    for axes in rows[-1]:
        axes.set_xlabel("seconds")
    figure.suptitle(
        "The share of requests that are answered. Black: broken code, and a reload; "
        "red: a worker is killed; blue: mended code, and a reload.",
        fontsize=8,
    )
    return _save(figure, file)


def _rows(count: int, columns: int, height: float) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    size = (9.5, 1.1 + height * count)
    figure, rows = plt.subplots(count, columns, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for axes in rows.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, rows


def _name(axes: Any, name: str) -> None:
    axes.set_ylabel(name.replace(", ", ",\n", 1), rotation=0, ha="right", va="center", fontsize=7, labelpad=8)


def _save(figure: Any, file: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(file, metadata={"Date": None}, dpi=120)
    plt.close(figure)
    return file
