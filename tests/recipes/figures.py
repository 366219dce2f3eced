"""What the recipes' tests have counted, for the table of `benchmarks/recipes.py`: a JSON line each in $FIGURES."""

from __future__ import annotations

import json
import os

FILE = "HOTRESTART_FIGURES"


def note(
    recipe: str, kind: str, restarts: int, count: int, *, failed: int, retried: int = 0, repeated: int = 0
) -> None:
    """`count`: requests or jobs. Called before the test asserts that nothing has failed."""
    figures = {"recipe": recipe, "kind": kind, "restarts": restarts, "count": count, "failed": failed}
    figures |= {"retried": retried, "repeated": repeated}
    print(*(f"{name}: {value}" for name, value in figures.items()), sep=", ")
    if FILE in os.environ:
        with open(os.environ[FILE], "a") as file:
            file.write(json.dumps(figures) + "\n")
