"""The recipes for other people's servers and brokers, in their long form: what was lost, tried again or done twice.

Runs the tests of the recipes, `tests/recipes/`, with `--full` (about an hour; `--short`: a few minutes), and makes one
table of what they have counted. A test that fails is shown with its figures, and the command fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import CHECKOUT, RESULTS, clean_environment, facts

_FIELDS = ("recipe", "kind", "restarts", "count", "failed", "retried", "repeated")
_COLUMNS = ["recipe", "kind", "restarts", "requests, jobs or ticks", "lost", "tried again", "done twice"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="as many restarts as in a normal run of the tests")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="tests at the same time (default: 2)")
    parser.add_argument("--only", metavar="WORD", help="tests whose names contain it, as for pytest -k")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write recipes.json and recipes.md to")
    arguments = parser.parse_args()
    selection = ["tests/recipes", "-m", "figures", "-n", str(arguments.processes)]
    selection += ["--full"] * (not arguments.short) + (["-k", arguments.only] if arguments.only else [])
    with tempfile.NamedTemporaryFile() as figures:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selection]
        environment = {**clean_environment(), "HOTRESTART_FIGURES": figures.name}
        status = subprocess.run(command, cwd=CHECKOUT, env=environment, check=False).returncode
        found = [json.loads(line) for line in Path(figures.name).read_text().splitlines()]
    document = {**facts(), "benchmark": "recipes", "passed": status == 0, "figures": found}
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "recipes.json").write_text(json.dumps(document, indent=1) + "\n")
    (arguments.results / "recipes.md").write_text(page(document))
    sys.exit(status)


def page(document: dict[str, Any]) -> str:
    """The table."""
    figures = sorted(document["figures"], key=lambda each: (each["recipe"], each["kind"]))
    rows = [_COLUMNS, ["---"] * len(_COLUMNS), *([each[name] for name in _FIELDS] for each in figures)]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    where = f"Python {document['python']}, {document['kernel']}, {document['cpus']} CPUs, {document['date']}."
    return "\n".join(["# Recipes under load", "", where, "", *lines, ""])


if __name__ == "__main__":
    main()
