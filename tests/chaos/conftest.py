from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def busy_cores(full: bool) -> Iterator[None]:
    """Two processes that do nothing but compute; where other tests run at the same time, these keep the cores busy."""
    has_company = "PYTEST_XDIST_WORKER" in os.environ and not full
    commands = [] if has_company else [[sys.executable, "-c", "while True: pass"]] * 2
    burners = [subprocess.Popen(command) for command in commands]
    yield
    for burner in burners:
        burner.kill()
        burner.wait()
