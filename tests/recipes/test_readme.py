"""What the README shows of the recipes is in the programs that are tested, word for word."""

from __future__ import annotations

import re

import pytest

from tests.harness import CHECKOUT
from tests.recipes.load import FOLDERS


@pytest.mark.parametrize("section", ["Servers of others", "Brokers", "A scheduler that must be alone"])
def test_readme_shows_what_is_tested_here(section: str) -> None:
    readme = (CHECKOUT / "README.md").read_text()
    text = readme.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    assert text, "no such section"
    programs = [path.read_text() for path in FOLDERS[1].glob("*.py")]
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        assert any(block in program for program in programs), block
    for name in re.findall(r"`(\w+\.py)`", text):
        assert (FOLDERS[1] / name).exists(), name
