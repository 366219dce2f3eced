"""How outcomes and a status look to a person. No I/O here."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .outcome import Outcome

__all__ = ["amount", "outcome", "span", "status"]

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def outcome(told: Outcome) -> str:
    """Its line; if it has failed, the end of what the new code said, indented, and who serves now."""
    lines = [str(told), *(f"    {line}" for line in told.detail.splitlines())]
    if not told.ok:
        lines.append("the program has ended, or ends" if told.stage == "stop" else "the old code still serves")
    return "\n".join(lines)


def status(document: dict[str, Any]) -> str:
    """What `control.status` has told, on a screen."""
    how = document["state"] + (f" ({document['stage']})" if document["stage"] else "")
    who = f"pid {document['pid']}, {document['kind']}, {how}, generation {document['generation']}"
    made_of = f"Python {document['python']}, hotrestart {document['hotrestart']}"
    command = " ".join(document["command"])
    lines = [command, f"{who}, up {span(document['uptime'])}, {made_of}", "", *_table(document["workers"])]
    missing = document["wanted"] - sum(each["state"] in ("ready", "serving") for each in document["workers"])
    if document["kind"] != "in place" and missing > 0:
        lines.append(f"{document['wanted']} wanted, {missing} of them not ready")
    if document["last"]:
        what = "start" if document["last"]["generation"] == 1 else "last restart"
        lines += ["", f"{what}: {_line_of(document['last'])}"]
    return "\n".join(lines)


def span(seconds: float | None) -> str:
    """A time, in its two biggest units."""
    if seconds is None:
        return "-"
    left, parts = int(seconds), list[str]()
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def amount(size: int | None) -> str:
    """So many bytes."""
    if size is None:
        return "-"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _table(workers: list[dict[str, Any]]) -> list[str]:
    rows = [("worker", "generation", "state", "age", "beats", "memory")]
    for each in workers:
        beats = "-" if each["beats"] is None else str(each["beats"])
        about = (span(each["age"]), beats, amount(each["memory"]))
        rows.append((str(each["pid"] or "-"), str(each["generation"]), each["state"], *about))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _line_of(last: dict[str, Any]) -> str:
    from .outcome import Outcome

    return str(Outcome.from_document(last))
