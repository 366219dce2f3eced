"""Programs of both kinds, and the command line that asks them: run for real, and what it prints as JSON checked."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import missing
from tests.harness import PATIENCE, clean_environment

COMMAND = [sys.executable, "-m", "hotrestart"]

OPTIONS = {"in place": "", "rolling": "workers=2, "}

APP = """
import os, time
import hotrestart
from hotrestart import state

def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.005)

report(imported={version})
{top}

@hotrestart.restartable({options})
def main():
    {first}
    with hotrestart.worker_loop() as loop:
        report(ready=state.generation, version={version}, pid=os.getpid())
        {ready}
        while loop.running:
            loop.sleep(5)
        {last}

if __name__ == "__main__":
    main()
"""


def app(
    kind: str,
    version: int = 1,
    options: str = "",
    *,
    top: str = "",
    first: str = "pass",
    ready: str = "pass",
    last: str = "pass",
) -> str:
    """The source of a program without work. `top`: code at import; the others: a line at that point of `main()`."""
    every = f"{OPTIONS[kind]}pidfile='app.pid', {options}"
    return APP.format(version=version, options=every, top=top, first=first, ready=ready, last=last)


def ask(*arguments: object, cwd: Path | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [*COMMAND, *(str(each) for each in arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **more}
    return subprocess.run(
        command, cwd=cwd, env=clean_environment(), text=True, timeout=2 * PATIENCE, check=False, **pipes
    )


def begin(*arguments: object, cwd: Path | None = None, **more: Any) -> subprocess.Popen[str]:
    """Start the command line; use it in a `with` block."""
    command = [*COMMAND, *(str(each) for each in arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **more}
    return subprocess.Popen(command, cwd=cwd, env=clean_environment(), text=True, **pipes)


def ask_json(*arguments: object, cwd: Path | None = None, status: int) -> dict[str, Any]:
    """With --json: the one object that is printed, checked, and nothing else; the exit status is `status`."""
    ran = ask(*arguments, "--json", cwd=cwd)
    assert (ran.returncode, ran.stderr) == (status, ""), ran
    return document_of(ran.stdout, status)


def document_of(text: str, status: int) -> dict[str, Any]:
    """The one line of JSON, checked."""
    assert text.count("\n") == 1, text
    document: dict[str, Any] = json.loads(text)
    _validator().validate(document)
    assert document["status"] == status
    return document


@functools.cache
def _validator() -> Any:
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        missing("jsonschema")
    schema = json.loads((Path(__file__).parent / "answers.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)
