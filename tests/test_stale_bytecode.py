"""Hazard 59, a restart that lies: the source is new, but its bytecode passes for valid, and the old code runs.

A `.pyc` notes the time in seconds and the size of its source. So a source changed within the same second to the same
size, or deployed with its old time, is not compiled again. `VALUE` below always has three letters.
"""

from __future__ import annotations

import importlib.util
import os
import py_compile
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Program, worker

pytestmark = pytest.mark.core

BARE = """
import helper, os, signal, sys
signal.signal(signal.SIGHUP, lambda *_: os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]]))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])  # blocked while its handler runs, and so after the exec
report(ready=0, version=helper.VALUE)
while True:
    signal.pause()
"""


def app(options: str = "", imports: str = "import helper") -> str:
    return f"{imports}\n" + worker("?", options).replace("'?'", "helper.VALUE")


def app_that_loads_in_main(options: str = "") -> str:
    source = worker("?", options).replace("version=VERSION", "version=helper.VALUE")
    return source.replace("        report(", "        import helper\n        report(")


def without_helper(options: str = "") -> str:
    return worker("none", options)


def write(program: Program, value: str, name: str = "helper.py") -> Path:
    path = program.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"VALUE = {value!r}\n")
    return path


def within_the_second(before: os.stat_result) -> int:
    second, fraction = divmod(before.st_mtime_ns, 10**9)
    return second * 10**9 + (fraction + 10**9 // 2) % 10**9 // 10 * 9  # another, and not rounded up to the next


def old_time(before: os.stat_result) -> int:
    return before.st_mtime_ns


Stamp = Callable[[os.stat_result], int]
STAMPS = pytest.mark.parametrize("stamp", [within_the_second, old_time])
PREFLIGHT = pytest.mark.parametrize("options", ["", "(preflight=False)"], ids=["preflight", "no preflight"])


def change(program: Program, value: str, stamp: Stamp = old_time, name: str = "helper.py", *, new: bool = True) -> None:
    """Change the source so that its bytecode passes for valid, some time after that was written."""
    path = program.folder / name
    before, cached = path.stat(), cache_of(path)
    text = re.sub("VALUE = '...'", f"VALUE = {value!r}", path.read_text())
    if new:
        (path.parent / "new").write_text(text)
        (path.parent / "new").replace(path)
    else:
        path.write_text(text)
    assert len(text) == before.st_size
    while True:
        os.utime(path, ns=(stamp(before), stamp(before)))
        if path.stat().st_ctime_ns > cached.stat().st_mtime_ns:
            break  # else within a tick of the file system's clock
        time.sleep(0.005)
    assert path.stat().st_mtime_ns // 10**9 == before.st_mtime_ns // 10**9


def cache_of(path: Path) -> Path:
    cached = Path(importlib.util.cache_from_source(str(path)))
    assert cached.exists(), "the bytecode that is to be stale"
    return cached


# --- the trap itself


@STAMPS
def test_h59_a_bare_execv_runs_the_old_code(program: Program, stamp: Stamp) -> None:
    write(program, "one")
    program.deploy(BARE)
    program.start()
    program.wait_report(ready=0)
    change(program, "two", stamp)
    program.hup()
    assert program.wait_report(ready=0, count=2)["version"] == "one"


# --- modules that the old generation has loaded


@STAMPS
@PREFLIGHT
@pytest.mark.parametrize("new", [True, False], ids=["new file", "same file"])
def test_h59_a_changed_module_is_new_in_the_next_generation(
    program: Program, stamp: Stamp, options: str, new: bool
) -> None:
    write(program, "one")
    program.deploy(app(options))
    program.start()
    program.wait_report(ready=1, version="one")
    for generation, value in ((2, "two"), (3, "six")):
        change(program, value, stamp, new=new)
        program.hup()
        assert program.wait_report(ready=generation)["version"] == value
    assert program.stop() == 0


@PREFLIGHT
@pytest.mark.parametrize("name", ["package/__init__.py", "package/deep.py"])
def test_h59_a_changed_package_is_new_in_the_next_generation(program: Program, options: str, name: str) -> None:
    write(program, "non", "package/__init__.py")
    write(program, "one", name)
    module = "package" if "init" in name else "package.deep"
    program.deploy(app(options, f"import {module} as helper"))
    program.start()
    program.wait_report(ready=1, version="one")
    change(program, "two", name=name)
    program.hup()
    assert program.wait_report(ready=2)["version"] == "two"
    assert program.stop() == 0


@PREFLIGHT
def test_h59_a_changed_main_module_is_new_in_the_next_generation(program: Program, options: str) -> None:
    """`python -m app` writes bytecode for the main module too."""
    program.deploy(worker("?", options).replace("VERSION = '?'", "VALUE = 'one'\nVERSION = VALUE"))
    program.start("-m", "app")
    program.wait_report(ready=1, version="one")
    change(program, "two", name="app.py")
    program.hup()
    assert program.wait_report(ready=2)["version"] == "two"
    assert program.stop() == 0


@PREFLIGHT
def test_h59_a_module_loaded_only_while_serving_is_new_in_the_next_generation(program: Program, options: str) -> None:
    write(program, "one")
    program.deploy(app_that_loads_in_main(options))
    program.start()
    program.wait_report(ready=1, version="one")
    change(program, "two")
    program.hup()
    assert program.wait_report(ready=2)["version"] == "two"
    assert program.stop() == 0


@PREFLIGHT
def test_h59_bytecode_that_is_never_checked_is_new_in_the_next_generation(program: Program, options: str) -> None:
    """`compileall --invalidation-mode unchecked-hash`: the source may change as it likes."""
    path = write(program, "one")
    py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    program.deploy(app(options))
    program.start()
    program.wait_report(ready=1, version="one")
    change(program, "two")
    program.hup()
    assert program.wait_report(ready=2)["version"] == "two"
    assert program.stop() == 0


@PREFLIGHT
def test_h59_bytecode_kept_elsewhere_is_new_in_the_next_generation(program: Program, options: str) -> None:
    """PYTHONPYCACHEPREFIX, and the source in a folder that is not the program's."""
    write(program, "one")
    program.deploy(app(options))
    program.start(env={"PYTHONPYCACHEPREFIX": str(program.folder / "cache")})
    program.wait_report(ready=1, version="one")
    [cached] = (program.folder / "cache").rglob("helper.*.pyc")
    local = Path(importlib.util.cache_from_source(str(program.folder / "helper.py")))
    local.parent.mkdir()
    local.write_bytes(b"")  # only so that `change` finds how old the bytecode is
    os.utime(local, ns=(cached.stat().st_mtime_ns,) * 2)
    change(program, "two")
    program.hup()
    assert program.wait_report(ready=2)["version"] == "two"
    assert program.stop() == 0


@PREFLIGHT
def test_h59_bytecode_of_the_same_moment_is_not_trusted(program: Program, options: str) -> None:
    """File times come from a clock of some milliseconds: the change may have come after the bytecode all the same."""
    write(program, "one")
    program.deploy(app(options))
    program.start()
    program.wait_report(ready=1, version="one")
    change(program, "two")
    source = program.folder / "helper.py"
    os.utime(cache_of(source), ns=(source.stat().st_ctime_ns,) * 2)
    program.hup()
    assert program.wait_report(ready=2)["version"] == "two"


# --- modules that the old generation has not loaded


@STAMPS
@pytest.mark.parametrize("options", ["", "(preflight=False)"])
def test_h59_a_module_that_only_the_new_code_loads_is_new(program: Program, stamp: Stamp, options: str) -> None:
    path = write(program, "one")
    program.deploy(without_helper(options))
    program.start()
    program.wait_report(ready=1, version="none")
    py_compile.compile(str(path))
    change(program, "two", stamp)
    program.deploy(app(options))
    program.hup()
    assert program.wait_report(ready=2)["version"] == "two"
    assert program.stop() == 0


def test_h59_broken_code_is_refused_though_stale_bytecode_hides_it(program: Program) -> None:
    """The preflight must not pass for the old bytecode, and the restart then fail for the new source."""
    path = write(program, "one")
    program.deploy(without_helper())
    program.start()
    program.wait_report(ready=1, version="none")
    py_compile.compile(str(path))
    change(program, "two")
    stamp = path.stat().st_mtime_ns
    path.write_text("VALUE = 1 / 0\n")
    os.utime(path, ns=(stamp, stamp))
    program.deploy(app())
    program.hup()
    program.wait_log("restart refused, the old code goes on: ZeroDivisionError")
    assert [each for each in program.reports() if "ready" in each] == [{"ready": 1, "version": "none"}]
    assert program.stop() == 0


@pytest.mark.parametrize("options", ["", "(preflight=False)"])
def test_h59_a_module_that_only_the_new_main_loads_is_new(program: Program, options: str) -> None:
    path = write(program, "one")
    program.deploy(without_helper(options))
    program.start()
    program.wait_report(ready=1, version="none")
    py_compile.compile(str(path))
    change(program, "two")
    program.deploy(app_that_loads_in_main(options))
    program.hup()
    assert program.wait_report(ready=2)["version"] == "two"
    assert program.stop() == 0


@pytest.mark.parametrize("between", ["a restart", "a refusal"])
def test_h59_a_module_changed_before_an_earlier_hup_is_new_too(program: Program, between: str) -> None:
    """The module was changed, then came a HUP that had no use for it, and then the code that loads it."""
    path = write(program, "one")
    program.deploy(without_helper())
    program.start()
    program.wait_report(ready=1, version="none")
    py_compile.compile(str(path))
    change(program, "two")
    program.wait_until(lambda: time.time() > path.stat().st_ctime + 2, "two seconds after the change")
    generation = 2
    if between == "a restart":
        program.hup()
        program.wait_report(ready=2, version="none")
        generation = 3
    else:
        program.deploy("1 / 0")
        program.hup()
        program.wait_log("restart refused")
    program.deploy(app())
    program.hup()
    assert program.wait_report(ready=generation)["version"] == "two"
    assert program.stop() == 0


# --- what is not stale


@PREFLIGHT
def test_bytecode_that_is_not_stale_is_left_alone(program: Program, options: str) -> None:
    """Neither what has not changed, nor what was compiled after its source had changed."""
    write(program, "one")
    write(program, "any", "unchanged.py")
    program.deploy(app(options, "import helper, unchanged"))
    program.start()
    program.wait_report(ready=1, version="one")
    unchanged = cache_of(program.folder / "unchanged.py").stat()
    change(program, "two")
    source = program.folder / "helper.py"
    cache = cache_of(source)
    while cache.stat().st_mtime_ns <= source.stat().st_ctime_ns:  # within a tick of the file system's clock
        py_compile.compile(str(source))
    compiled = cache.stat()
    program.hup()
    assert program.wait_report(ready=2)["version"] == "two"
    assert cache_of(program.folder / "unchanged.py").stat().st_ino == unchanged.st_ino
    assert cache.stat().st_ino == compiled.st_ino
    assert program.stop() == 0


LAZY = """
import importlib.util, sys
spec = importlib.util.find_spec("lazy")
spec.loader = importlib.util.LazyLoader(spec.loader)
lazy = sys.modules["lazy"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lazy)
"""


@PREFLIGHT
def test_a_module_that_waits_to_be_loaded_is_not_loaded_by_the_restart(program: Program, options: str) -> None:
    """importlib.util.LazyLoader. Loading it would run new code in the old generation, here broken code."""
    program.deploy("VALUE = 'one'\n", "lazy.py")
    program.deploy(LAZY + worker(1, options))
    program.start()
    program.wait_report(ready=1)
    program.deploy("import os\nreport(lazy_loaded_by=os.getpid())\n1 / 0\n", "lazy.py")
    program.deploy(worker(2, options))
    program.hup()
    program.wait_until(lambda: program.reports(ready=2) or program.reports(lazy_loaded_by=program.pid), "a verdict")
    assert program.reports(lazy_loaded_by=program.pid) == []
    program.wait_report(ready=2, version=2)
    assert program.stop() == 0
