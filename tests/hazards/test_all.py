"""No trap is forgotten."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.hazards import TRAPS, WITHOUT_A_TEST

HERE = Path(__file__).resolve().parent


def test_every_trap_has_a_test_that_is_named_after_it() -> None:
    tested: set[int] = set()
    for path in [*HERE.glob("test_*.py"), *(HERE.parent / "chaos").glob("test_*.py")]:
        names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        tested.update(int(found[1]) for name in names if (found := re.match(r"test_h(\d+)_", name)))
    assert sorted(tested) == [number for number in range(1, TRAPS + 1) if number not in WITHOUT_A_TEST]
