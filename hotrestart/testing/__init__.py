"""For your own test suite: prove that a restart of your program loses nothing.

    from hotrestart.testing import Program, Traffic

    def test_a_restart_loses_no_request(tmp_path):
        with Program(tmp_path) as program:
            program.deploy(Path("server.py"))
            program.start("server.py").wait_ready()
            with Traffic(lambda number: fetch(f"http://127.0.0.1:8000/{number}")) as traffic:
                for _ in range(20):
                    assert program.restart().ok
            traffic.check()

The programs are real, and so are the restarts. With pytest there is the fixture `hotrestart_program`, as soon as the
package is installed. Nothing here is loaded before it is used.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .program import Program
    from .traffic import Jobs, Traffic

__all__ = ["Jobs", "Program", "Traffic"]

_HOMES = {"Jobs": "traffic", "Program": "program", "Traffic": "traffic"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.{_HOMES[name]}"
    __import__(home)
    value: object = getattr(sys.modules[home], name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
