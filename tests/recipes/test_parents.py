"""A real supervisord and Debian's systemd-socket-activate as parents of both kinds, restarted under a small load.

The parent notices nothing: the same pid, no end, no start, and the clients neither.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.asking import ask, ask_json
from tests.conftest import missing
from tests.harness import PATIENCE, Program
from tests.recipes.load import KINDS, Load, deploy, wait_served

kinds = pytest.mark.parametrize("kind", KINDS)

SUPERVISORD = """
[supervisord]
nodaemon=true
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid

[unix_http_server]
file={folder}/supervisor.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{folder}/supervisor.sock

[program:app]
command={python} app.py 127.0.0.1:{port}
directory={folder}
environment=PWD="{folder}"
autorestart=true
stopwaitsecs=40
redirect_stderr=true
stdout_logfile={folder}/app.log
"""


class Served(Program):
    """The HTTP server of tests/apps, started by somebody else."""

    def __init__(self, folder: Path, port: int, kind: str) -> None:
        super().__init__(folder)
        self.port, self.kind = port, kind
        self.deploy_version(1)

    def deploy_version(self, version: int) -> None:
        deploy(self, "http_threads", version, self.kind)

    def wait_served(self) -> None:
        wait_served(self, self.port)

    def restart_in_all_ways(self, server: int) -> None:
        """By HUP and by the command line, in turn, under load, at last with broken code; its pid is `server`."""
        with Load(self.port, new=1, kept=1, pausing=1) as load:
            load.wait_for(self, 1)
            for version in range(2, 6):
                self.deploy_version(version)
                if version % 2:
                    outcome = ask_json("restart", server, status=0)
                    assert (outcome["pid"], outcome["generation"]) == (server, version)
                else:
                    os.kill(server, signal.SIGHUP)
                load.wait_for(self, version, alone=True)
            self.deploy("import there_is_no_such_thing")
            assert "there_is_no_such_thing" in ask_json("restart", server, status=1)["reason"]
        load.check(5)
        assert ask_json("status", server, status=0)["program"]["generation"] == 5


class Supervisord(Served):
    """Under supervisord, which is asked by its own supervisorctl."""

    def __init__(self, folder: Path, port: int, kind: str) -> None:
        super().__init__(folder, port, kind)
        self.configuration = folder / "supervisord.conf"
        self.configuration.write_text(SUPERVISORD.format(folder=folder, python=sys.executable, port=port))
        self.start("-m", "supervisor.supervisord", "-c", str(self.configuration))

    def ctl(self, *command: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self.configuration), *command],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return ran.stdout

    def events(self) -> list[str]:
        """What supervisord has done about the program: spawned, exited, stopped."""
        log = (self.folder / "supervisord.log").read_text()
        words = (line.split(" ", 3)[-1] for line in log.splitlines())
        return [word.split(":")[0] for word in words if word.startswith(("spawned", "exited", "stopped", "gave up"))]


@kinds
def test_supervisord(tmp_path: Path, port: int, kind: str) -> None:
    if importlib.util.find_spec("supervisor") is None:
        missing("supervisor")
    with Supervisord(tmp_path / "app", port, kind) as parent:
        parent.wait_served()
        parent.wait_until(lambda: "RUNNING" in parent.ctl("status", "app"), "RUNNING")
        server = int(parent.ctl("pid", "app"))
        parent.restart_in_all_ways(server)
        assert f"RUNNING   pid {server}," in parent.ctl("status", "app")
        assert parent.events() == ["spawned"]

        assert "stopped" in parent.ctl("stop", "app")
        assert parent.events() == ["spawned", "stopped"]
        assert "(exit status 0)" in (parent.folder / "supervisord.log").read_text()
        assert not Path(f"/proc/{server}").exists()
        parent.deploy_version(8)
        assert "started" in parent.ctl("start", "app")
        parent.wait_served()
        assert ask("stop", parent.ctl("pid", "app").strip()).returncode == 0  # autorestart=true starts it again
        parent.wait_until(lambda: parent.events().count("spawned") == 3, "a third start")
        parent.wait_served()
        assert parent.stop() == 0


@kinds
def test_systemd_socket_activate(tmp_path: Path, port: int, kind: str) -> None:
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        missing("systemd-socket-activate (Debian: apt-get install systemd)")
        return
    with Served(tmp_path / "app", port, kind) as server:
        address = f"127.0.0.1:{port}"
        passed = [f"--setenv={name}" for name in ("REPORT", "PYTHONPATH", "PWD", "PATH", "TMPDIR", "SPT_NOENV")]
        server.start_command([activate, "-l", address, *passed, sys.executable, "app.py", address])
        server.wait_served()  # it becomes the program with the first connection
        server.restart_in_all_ways(server.pid)
        assert ask("stop", server.pid).returncode == 0
        assert server.wait_exit() == 0
