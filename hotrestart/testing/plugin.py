"""The pytest plugin: fixtures. pytest loads it in every project where hotrestart is installed, so it loads nothing."""

from __future__ import annotations

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .program import Program

__all__ = ["hotrestart_program"]


@pytest.fixture
def hotrestart_program(tmp_path: Path) -> Iterator[Program]:
    """A `hotrestart.testing.Program` in a folder of its own, ended with the test; if that fails, its log is shown."""
    from .program import Program

    with Program(tmp_path / "program") as program:
        yield program
        print(program.log())  # pytest shows it if the test has failed
