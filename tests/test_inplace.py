"""The restart in place, as design section 7 has it: real programs, real signals."""

from __future__ import annotations

import pytest

from tests.harness import Program, worker

pytestmark = pytest.mark.core


def test_a_hup_starts_the_new_code_under_the_same_pid(program: Program) -> None:
    program.deploy(worker(version=1))
    program.start()
    program.wait_report(ready=1, version=1)
    program.deploy(worker(version=2))
    program.hup()
    program.wait_report(ready=2, version=2)
    assert program.stop() == 0
    assert program.reports()[-1] == {"ended": "stop"}
