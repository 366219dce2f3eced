"""The house: floors, sizes, what importing costs, what is at the top level."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import CHECKOUT, PATIENCE, clean_environment

pytestmark = pytest.mark.core

PACKAGE = CHECKOUT / "hotrestart"

# From the ground up. A module imports only from floors below its own, and on its own floor only from its left.
FLOORS = [
    "errors state log cjson exits callbacks fds address sleeper command systemd bytecode options outcome leash role",
    "titles signals shrugging binding listeners processes last_words inheritance pids pidfile",
    "reporting control takeover announcing preflight reexec grace inplace rolling",
    "program aio loop serving",
    "demo showing commands watching testing __main__",
]
ORDER = [name for floor in FLOORS for name in floor.split()]


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py" or path.parent != PACKAGE:
            yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), ast.parse(path.read_text())


def imported(tree: ast.Module) -> set[str]:
    """The modules of the package that a module imports, anywhere in it, except for type checkers alone."""
    found: set[str] = set()
    typing_only: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            typing_only.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found.update(name.split(".")[0] for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hotrestart"):
            found.update([*(node.module or "").split("."), *(alias.name for alias in node.names)][1:])
    return found & {path.stem for path in PACKAGE.iterdir()}


def test_every_module_stands_on_a_floor() -> None:
    assert {name for name, _ in modules()} == set(ORDER)


def test_a_module_imports_only_from_floors_below_its_own() -> None:
    for name, tree in modules():
        above = [other for other in imported(tree) if ORDER.index(other) >= ORDER.index(name) and other != name]
        assert not above, f"{name} imports upward: {above}"


def test_files_are_one_idea_long_and_functions_fit_in_the_head() -> None:
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        assert source.count("\n") <= 330, f"{path.name} is long: which idea is missing?"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno < 46, f"{path.name}: {node.name} is long"


def test_every_public_name_is_documented() -> None:
    for name, tree in modules():
        if name in ("demo", "__main__"):
            continue  # nobody imports them
        for node in public(tree):
            overload = any(isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list)
            assert overload or ast.get_docstring(node), f"{name}.{node.name} has no docstring"


def public(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """What users see: nothing of a function's inside or a private class's, and nothing that is for type checkers."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def test_the_top_level_has_what_it_shall_have_and_nothing_else() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    allowed = {"pyproject.toml", "README.md", "hotrestart", "tests", "benchmarks", "CHANGELOG.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} == allowed


def modules_after(code: str) -> set[str]:
    """What is in sys.modules after `code` in a fresh interpreter, over what is there anyway."""
    script = f"import sys, os\nbefore = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\n{script}"]
    return set(
        subprocess.run(command, check=True, capture_output=True, text=True, env=clean_environment()).stdout.split()
    )


HEAVY = {"typing_extensions", "asyncio", "logging", "subprocess", "json", "typing", "threading", "socket", "enum", "re"}
HEAVY |= {
    "contextlib",
    "functools",
    "dataclasses",
    "inspect",
    "signal",
    "weakref",
    "collections",
    "tempfile",
    "traceback",
}


def test_importing_hotrestart_imports_nothing_heavy() -> None:
    assert not modules_after("import hotrestart") & HEAVY


def test_the_whole_way_to_the_first_job_imports_nothing_heavy() -> None:
    code = """
import hotrestart
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        while loop.running:
            break
main()
"""
    found = modules_after(code)
    assert not found & HEAVY
    assert {name for name in found if not name.startswith("hotrestart")} <= {
        "__future__",
        "posix",
        "_socket",
        "fcntl",
        "select",
    }


RESTARTING = """
import os, sys
sys.path.insert(0, {checkout!r})
import hotrestart

def look(event, arguments):
    if event == "os.exec":
        os.write(1, " ".join(sorted(set(sys.modules) - before)).encode() + b"\\n")

@hotrestart.restartable(preflight={preflight})
def main():
    global before
    with hotrestart.worker_loop() as loop:
        before = set(sys.modules)
        sys.addaudithook(look)
        if hotrestart.state.generation <= 2:
            hotrestart.request_restart()
            while loop.running:
                loop.sleep()
            os.write(1, b"asked\\n")

main()
"""


@pytest.mark.parametrize("preflight", [False, True], ids=["without preflight", "with preflight"])
def test_the_restart_itself_imports_nothing_heavy(tmp_path: Path, preflight: bool) -> None:
    """All that a generation imports from its first turn to its exec; also one that was started by an exec."""
    path = tmp_path / "app.py"
    path.write_text(RESTARTING.format(checkout=str(CHECKOUT), preflight=preflight))
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(path)],
        check=True,
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=PATIENCE,
    )
    lines = done.stdout.splitlines()
    assert lines[::2] == ["asked"] * 2, "two restarts"
    for line in lines[1::2]:
        found = set(line.split())
        assert "hotrestart.reexec" in found
        assert {name for name in found if not name.startswith("hotrestart")} <= {"atexit", "_json", "_socket", "fcntl"}


def test_every_name_of_the_package_can_be_had_and_no_other() -> None:
    code = "import hotrestart\nfor name in hotrestart.__all__: getattr(hotrestart, name)\nprint(dir(hotrestart) != [])"
    modules_after(code)
    import hotrestart

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        hotrestart.nonsense  # noqa: B018


def test_the_package_imports_on_windows() -> None:
    """As far as it can be shown here: with what Windows lacks taken out of os, signal and select."""
    code = """
import os, sys, _signal, select
for name in ("fork", "register_at_fork", "posix_spawn", "pidfd_open", "memfd_create", "execve", "get_blocking"):
    if hasattr(os, name): delattr(os, name)
for name in ("SIGHUP", "pthread_sigmask", "pthread_kill", "setitimer", "ITIMER_REAL", "pidfd_send_signal"):
    if hasattr(_signal, name): delattr(_signal, name)
del select.poll
import hotrestart
for name in hotrestart.__all__: getattr(hotrestart, name)
@hotrestart.restartable
def main(): pass
try:
    main()
except hotrestart.HotRestartError as error:
    assert "POSIX" in str(error), error
else:
    raise AssertionError("it should have said that it cannot work here")
"""
    modules_after(code)


def test_no_path_of_a_machine_and_no_leftover_is_in_the_package() -> None:
    for path in [*PACKAGE.rglob("*.py"), CHECKOUT / "README.md", CHECKOUT / "CHANGELOG.md"]:
        text = path.read_text()
        for word in ("TODO", "FIXME", "XXX", str(Path.home()), "/work/"):
            assert word not in text or word == "/", f"{path.name} has {word!r} in it"
