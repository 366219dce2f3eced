"""Stale bytecode is dropped, and no other: what the import after `drop_stale` loads is what is on the disk."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import PATIENCE, clean_environment

pytestmark = pytest.mark.core

PRELUDE = """
import importlib.util, os, sys, time
from pathlib import Path
from hotrestart import bytecode

def deploy(source, name="released", keep_times=False):
    # in place, as an editor may do it
    path = Path(name + ".py")
    before = path.stat() if path.exists() else None
    path.write_text(source)
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

def pyc(name="released"):
    return Path(importlib.util.cache_from_source(name + ".py"))

def wait_for_a_later_clock():
    # file times come from a clock that ticks every few ms
    first = now = 0
    while now <= first + 20_000_000:
        Path("clock").write_text("")
        now = os.stat("clock").st_ctime_ns
        first = first or now

def load():
    # as the next generation: from bytecode if CPython takes it
    sys.modules.pop("released", None)
    importlib.invalidate_caches()
    import released
    return released.version

# The checkout and site-packages are looked at too, and whoever edits a file there just now would be counted.
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] == "hotrestart" or "-packages" in (getattr(module, "__file__", None) or ""):
        del sys.modules[name]

began = time.time() - 2
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not under pytest's own, which nobody but its user can enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def run(folder: Path, code: str, **env: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        cwd=folder,
        env=clean_environment(**env),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr


SAME_SIZE = """
deploy("version = 1\\n")
os.utime("released.py", ns=(10**18, 10**18))
assert load() == 1
assert pyc().exists()
wait_for_a_later_clock()
deploy("version = 2\\n", keep_times=True)
assert load() == 1, "CPython has noticed by itself: this proves nothing"
"""


def test_h59_an_edit_of_the_same_size_with_the_old_time_is_loaded(folder: Path) -> None:
    """As rsync -t, image layers and reproducible builds deploy."""
    run(folder, SAME_SIZE + "assert bytecode.drop_stale(began) == 1\nassert load() == 2")


def test_h59_an_edit_of_the_same_size_within_the_same_second_is_loaded(folder: Path) -> None:
    run(
        folder,
        """
deploy("version = 1\\n")
assert load() == 1
wait_for_a_later_clock()
deploy("version = 2\\n")
second = int(pyc().stat().st_mtime)
os.utime("released.py", (second, int.from_bytes(pyc().read_bytes()[8:12], "little") + 0.5))
assert load() == 1, "CPython has noticed by itself: this proves nothing"
assert bytecode.drop_stale(began) == 1
assert load() == 2
""",
    )


def test_a_new_file_put_in_its_place_with_the_old_time_is_loaded(folder: Path) -> None:
    run(
        folder,
        """
deploy("version = 1\\n")
deploy("version = 2\\n", "prepared")
for name in ("released.py", "prepared.py"):
    os.utime(name, ns=(10**18, 10**18))
assert load() == 1
wait_for_a_later_clock()
os.replace("prepared.py", "released.py")
assert load() == 1, "CPython has noticed by itself: this proves nothing"
assert bytecode.drop_stale(began) == 1
assert load() == 2
""",
    )


def test_a_prefix_for_bytecode_is_honoured(folder: Path) -> None:
    run(folder, SAME_SIZE + "assert bytecode.drop_stale(began) == 1\nassert load() == 2", PYTHONPYCACHEPREFIX="pyc")


def test_modules_that_nobody_has_touched_keep_their_bytecode(folder: Path) -> None:
    run(
        folder,
        """
deploy("version = 1\\n")
deploy("x = 1\\n", "touched")
assert load() == 1
import touched
wait_for_a_later_clock()
os.utime("touched.py")
assert bytecode.drop_stale(began) == 1
assert pyc().exists()
assert not pyc("touched").exists()
""",
    )


def test_bytecode_younger_than_its_source_stays(folder: Path) -> None:
    run(
        folder,
        """
deploy("version = 1\\n")
wait_for_a_later_clock()
assert load() == 1
bytecode.drop_stale(began)
assert pyc().exists()
""",
    )


def test_what_changed_before_the_moment_asked_for_is_not_looked_at(folder: Path) -> None:
    run(folder, SAME_SIZE + "assert bytecode.drop_stale(time.time() + 60) == 0\nassert pyc().exists()")


def test_a_source_that_is_gone_is_passed_over(folder: Path) -> None:
    run(folder, SAME_SIZE + "os.unlink('released.py')\nassert bytecode.drop_stale(began) == 0")


def test_bytecode_that_is_gone_is_passed_over(folder: Path) -> None:
    run(folder, SAME_SIZE + "pyc().unlink()\nassert bytecode.drop_stale(began) == 0\nassert load() == 2")


def test_modules_of_every_odd_kind_are_passed_over(folder: Path) -> None:
    run(
        folder,
        """
import types
class Slotted:
    __slots__ = ()
odd = types.ModuleType("odd")
odd.__spec__ = types.SimpleNamespace(origin=None, cached="x")
sys.modules.update(odd=odd, none=None, number=5, slotted=Slotted(), bare=types.ModuleType("bare"))
assert bytecode.drop_stale(0) >= 0
""",
    )


def test_a_directory_that_is_not_ours_is_harmless(folder: Path) -> None:
    run(
        folder,
        SAME_SIZE
        + """
if os.geteuid() == 0:
    os.seteuid(65534)
else:
    pyc().parent.chmod(0o555)
assert bytecode.drop_stale(began) == 0
if os.getuid() == 0:
    os.seteuid(0)
else:
    pyc().parent.chmod(0o755)
assert pyc().exists()
""",
    )


def test_a_python_that_writes_no_bytecode_has_none_to_drop(folder: Path) -> None:
    run(
        folder,
        """
deploy("version = 1\\n")
assert load() == 1
assert not pyc().exists()
wait_for_a_later_clock()
deploy("version = 2\\n")
assert bytecode.drop_stale(began) == 0
assert load() == 2
""",
        PYTHONDONTWRITEBYTECODE="1",
    )
