"""The environment with the peers: made by venv and pip, once, and used again."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import clean_environment

PACKAGES = ("celery[redis]", "dramatiq[redis]", "huey", "rq", "redis")  # the extra `queues` in pyproject.toml
_LINES = 3  # of what pip said last


def environment(folder: Path | None) -> tuple[Path, dict[str, str], dict[str, str]]:
    """Its interpreter, the versions of what is in it, and for what is missing the reason.

    One after another: a package that cannot be installed keeps no other out. redis-py is what ours and the floor need.
    """
    number = f"{sys.version_info[0]}.{sys.version_info[1]}"
    folder = folder or Path(tempfile.gettempdir(), f"hotrestart-benchmark-queues-{number}")
    python = folder / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(folder)], check=True)
    reasons = {}
    for package in PACKAGES:
        name = package.partition("[")[0]
        if name not in _versions(python):
            ran = _run([str(python), "-m", "pip", "install", "--quiet", package])
            if ran.returncode:
                said = ran.stderr.decode(errors="replace").strip().splitlines()
                reasons[name] = "pip: " + " / ".join(said[-_LINES:])
    return python, _versions(python), reasons


def _versions(python: Path) -> dict[str, str]:
    ran = _run([str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"], check=True)
    return {each["name"]: each["version"] for each in json.loads(ran.stdout)}


def _run(command: list[str], *, check: bool = False) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, env=clean_environment(), capture_output=True, check=check)
