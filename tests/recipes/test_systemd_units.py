"""Both kinds of restart under a real systemd, under load: unit files as the README has them, and their likes."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import pytest

from tests.harness import CHECKOUT, PATIENCE, Program
from tests.recipes.load import KINDS, Client, Load, deploy, wait_served
from tests.systemd_box import Box, Service

SIMPLE = """
[Service]
Type=simple
ExecStart={python} {folder}/app.py {arguments}
ExecReload=kill -HUP $MAINPID
KillMode=mixed
TimeoutStopSec=40
Restart=on-failure
"""

SOCKET = """
[Socket]
ListenStream=127.0.0.1:{port}
"""

NOTIFY = """
[Service]
Type=notify
ExecStart={python} {folder}/app.py
ExecReload=kill -HUP $MAINPID
KillMode=mixed
TimeoutStopSec=40
{more}
"""

WAITS = """
[Service]
Type=notify
ExecStart={python} {folder}/app.py {arguments}
ExecReload={python} -m hotrestart restart $MAINPID
KillMode=mixed
TimeoutStopSec=40
WatchdogSec=30
Restart=on-failure
"""

kinds = pytest.mark.parametrize("kind", KINDS)


class Server(Service):
    """The HTTP server of tests/apps in a unit."""

    def __init__(self, box: Box, folder: Path, port: int, kind: str, unit: str = SIMPLE, **more: str) -> None:
        super().__init__(box, folder, unit, more, arguments=f"127.0.0.1:{port}", port=port)
        self.port, self.kind = port, kind
        self.deploy_version(1)

    def deploy_version(self, version: int) -> None:
        deploy(self, "http_threads", version, self.kind)

    def wait_served(self) -> None:
        wait_served(self, self.port)

    def reload(self, load: Load, version: int) -> None:
        """Another version and `systemctl reload`, until it serves alone."""
        load.wait_for(self, version - 1)
        self.deploy_version(version)
        self.systemctl("reload")
        load.wait_for(self, version, alone=True)

    def assert_undisturbed(self, pid: int) -> None:
        """systemd has noticed nothing but reloads."""
        seen = self.box.show(self.unit, "MainPID", "NRestarts", "ActiveState", "SubState", "Result")
        assert seen == {
            "MainPID": str(pid),
            "NRestarts": "0",
            "ActiveState": "active",
            "SubState": "running",
            "Result": "success",
        }, self.box.log()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path.resolve() / "app"


@kinds
def test_start_reload_restart_stop(box: Box, folder: Path, port: int, kind: str) -> None:
    with Server(box, folder, port, kind) as server:
        server.systemctl("start")
        server.wait_served()
        pid = server.pid
        with Load(port) as load:
            for version in (2, 3, 4):
                server.reload(load, version)
                server.assert_undisturbed(pid)
        load.check(4)

        server.systemctl("restart")
        server.wait_served()
        assert server.pid not in (0, pid)
        server.assert_undisturbed(server.pid)
        assert server.stop() == 0
        assert "SIGKILL" not in box.log().split(server.unit, 1)[1]
        assert server.box.show(server.unit, "NRestarts") == {"NRestarts": "0"}


@kinds
def test_code_that_does_not_load_leaves_the_service_as_it_is(box: Box, folder: Path, port: int, kind: str) -> None:
    with Server(box, folder, port, kind) as server:
        server.systemctl("start")
        server.wait_served()
        pid = server.pid
        with Load(port) as load:
            server.deploy("import there_is_no_such_thing")
            server.systemctl("reload")
            server.wait_log("ModuleNotFoundError")
            server.wait_log("restart refused" if kind == "in place" else "generation 2 failed")
            server.assert_undisturbed(pid)
            server.reload(load, 2)
        load.check(2)
        server.assert_undisturbed(pid)


@kinds
def test_what_is_in_hand_is_finished_before_a_stop(box: Box, folder: Path, port: int, kind: str) -> None:
    bodies: list[bytes] = []

    asked = threading.Event()

    def fetch() -> None:
        with Client(port) as client:
            client.send("/until?go", keep=False)
            asked.set()
            bodies.append(client.receive(keep=False))

    with Server(box, folder, port, kind) as server:
        server.systemctl("start")
        server.wait_served()
        asking = threading.Thread(target=fetch)
        asking.start()
        stopping = threading.Thread(target=server.stop)
        assert asked.wait(PATIENCE)
        server.wait_until(lambda: waiting_connections(port) == 0, "the request is taken")
        stopping.start()
        server.wait_show("ActiveState", "deactivating")
        (folder / "go").touch()
        stopping.join()
        asking.join()
        assert bodies == [b"1"]


def waiting_connections(port: int) -> int:
    """Connections to a port of ours that nobody has accepted; 1 as well as long as none was made."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = [row for row in rows if row[1].endswith(f":{port:04X}")]
    made = [row for row in ours if row[3] == "01"]
    return sum(int(row[4].split(":")[1], 16) for row in ours if row[3] == "0A") if made else 1


@kinds
def test_a_socket_unit_keeps_clients_over_reload_and_restart(box: Box, folder: Path, port: int, kind: str) -> None:
    with Server(box, folder, port, kind, socket=SOCKET) as server:
        box.systemctl("start", f"{server.name}.socket")
        assert server.pid == 0
        with Load(port) as load:  # the first of them has it started
            load.wait_for(server, 1)
            pid = server.pid
            server.reload(load, 2)
            server.reload(load, 3)
            server.assert_undisturbed(pid)
            server.deploy_version(4)
            server.systemctl("restart")
            load.wait_for(server, 4, alone=True)
            server.assert_undisturbed(server.pid)
            assert server.pid != pid
            server.reload(load, 5)
        load.check(5)
        assert box.show(f"{server.name}.socket", "ActiveState") == {"ActiveState": "active"}


@kinds
def test_start_and_reload_wait_for_the_outcome_and_have_it(box: Box, folder: Path, port: int, kind: str) -> None:
    with Server(box, folder, port, kind, WAITS) as server:
        server.systemctl("start")
        pid = server.pid
        with Load(port) as load:
            for version in (2, 3):
                server.deploy_version(version)
                server.systemctl("reload")
                if kind == "in place":  # workers of the old code are told to end at the same moment
                    with Client(port) as client:
                        assert client.ask(keep=False) == b"%d" % version
                else:
                    assert server.show("StatusText") == f"generation {version} serves"
                load.wait_for(server, version, alone=True)
                server.assert_undisturbed(pid)
            assert_broken_code_is_refused(server, pid)
            load.wait_for(server, 3)
        load.check(3)
        assert server.stop() == 0


def assert_broken_code_is_refused(server: Server, pid: int) -> None:
    server.deploy("import there_is_no_such_thing")
    with pytest.raises(AssertionError, match=r"Job for .* failed"):
        server.systemctl("reload")
    server.assert_undisturbed(pid)
    assert "there_is_no_such_thing" in server.show("StatusText")


def units_of_the_readme(kind: str, folder: Path, port: int) -> list[str]:
    """The very text of them, with paths and port of ours: the service's, and the socket's if there is one."""
    section = (CHECKOUT / "README.md").read_text().partition("\n## Under systemd\n")[2].partition("\n## ")[0]
    in_place, rolling = re.findall(r"```ini\n(.*?)```", section, re.DOTALL)
    texts = [in_place] if kind == "in place" else rolling.partition("# app.service")[2].split("# app.socket")
    ours = {
        "/srv/app/.venv/bin/python": sys.executable,
        "/srv/app/current/worker.py": f"{folder}/app.py 127.0.0.1:{port}",
        "/srv/app/current/server.py": f"{folder}/app.py 127.0.0.1:{port}",
        "Requires=app.socket": "Requires={name}.socket",
        "127.0.0.1:8000": f"127.0.0.1:{port}",
    }
    for theirs, mine in ours.items():
        texts = [text.replace(theirs, mine) for text in texts]
    assert not [text for text in texts if "app.socket" in text or "/srv/" in text]
    return texts


@kinds
def test_the_units_of_the_readme(box: Box, folder: Path, port: int, kind: str) -> None:
    service, *sockets = units_of_the_readme(kind, folder, port)
    assert len(sockets) == (kind != "in place")
    with Server(box, folder, port, kind, service, **dict(zip(["socket"], sockets, strict=False))) as server:
        if sockets:
            box.systemctl("start", f"{server.name}.socket")
            assert server.pid == 0
        else:
            server.systemctl("start")
        with Load(port) as load:
            load.wait_for(server, 1)
            server.wait_show("ActiveState", "active")
            pid = server.pid
            for version in (2, 3):
                server.reload(load, version)
                server.assert_undisturbed(pid)
            assert_broken_code_is_refused(server, pid)
        load.check(3)
        server.deploy_version(4)
        server.systemctl("restart")
        server.wait_served()
        assert server.pid not in (0, pid)
        server.assert_undisturbed(server.pid)
        assert server.stop() == 0
        said = [line for line in box.log().splitlines() if server.name in line]
        assert said
        assert not [line for line in said if "Unknown" in line or "ignor" in line]


BY_HAND = """
import os
import hotrestart
from hotrestart import systemd

@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        assert systemd.notify("READY=1", f"STATUS=by hand, generation {hotrestart.state.generation}")
        report(ready=hotrestart.state.generation, pid=os.getpid(), watchdog=systemd.watchdog())
        while loop.running:
            loop.sleep(60)

main()
"""

# Nothing of the library but the protocol.
BARE = """
import os, time
from hotrestart import systemd

report(watchdog=systemd.watchdog())
{said}
while True:
    {turn}
    time.sleep(0.05)
"""


def bare(said: str, turn: str = "pass") -> str:
    return BARE.format(said=said, turn=turn)


def test_a_program_that_notifies_by_hand(box: Box, folder: Path) -> None:
    with Service(box, folder, NOTIFY, more="WatchdogSec=3000") as service:
        service.deploy(BY_HAND)
        service.systemctl("start")
        service.wait_report(ready=1, watchdog=1500.0)
        service.wait_show("StatusText", "by hand, generation 1")
        pid = service.pid
        service.systemctl("reload")
        service.wait_report(ready=2, watchdog=1500.0, pid=pid)
        service.wait_show("StatusText", "by hand, generation 2")
        assert box.show(service.unit, "MainPID", "NRestarts") == {"MainPID": str(pid), "NRestarts": "0"}
        assert service.stop() == 0


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("a\nSTOPPING=1\rSTOPPING=1\0b", "a STOPPING=1 STOPPING=1 b"),
        ("C:\\temp\\", "C:/temp/"),
        (" \"one\" 'two' ", " \"one\" 'two' "),
        ("größer", "größer"),
        ("\udcff", "?"),
        ("x" * 5000, "x" * (4096 - len("READY=1\nSTATUS="))),
        ("ü" * 5000, "ü" * ((4096 - len("READY=1\nSTATUS=")) // 2)),
    ],
    ids=["breaks", "backslash", "quotes", "unicode", "surrogate", "long", "cut"],
)
def test_systemd_reads_what_was_said(box: Box, folder: Path, status: str, shown: str) -> None:
    with Service(box, folder, NOTIFY, more="") as service:
        service.deploy(bare(f'assert systemd.notify("READY=1", "STATUS=" + {status!a})'))
        service.systemctl("start")
        assert box.show(service.unit, "StatusText", "ActiveState") == {"StatusText": shown, "ActiveState": "active"}


def test_a_start_is_over_when_the_program_says_so(box: Box, folder: Path) -> None:
    wait = 'import pathlib\nwhile not os.path.exists("go"): time.sleep(0.01)\n'
    with Service(box, folder, NOTIFY, more="") as service:
        service.deploy(bare(wait + 'pathlib.Path("gone").touch(); systemd.notify("READY=1")'))
        starting = threading.Thread(target=service.systemctl, args=["start"])
        starting.start()
        service.wait_show("ActiveState", "activating")
        service.wait_report(watchdog=None)
        assert starting.is_alive()
        (folder / "go").touch()
        starting.join()
        assert (folder / "gone").exists()
        assert service.show("ActiveState") == "active"


def test_a_reload_that_is_told_is_seen(box: Box, folder: Path) -> None:
    turn = 'os.path.exists("go") and systemd.notify("READY=1", "STATUS=done")'
    with Service(box, folder, NOTIFY, more="") as service:
        service.deploy(bare('systemd.notify("READY=1"); systemd.reloading("loads")', turn))
        service.systemctl("start")
        service.wait_show("ActiveState", "reloading")
        assert service.show("StatusText") == "loads"
        (folder / "go").touch()
        service.wait_show("ActiveState", "active")
        assert service.show("StatusText") == "done"


def test_a_start_that_asks_for_more_time_gets_it(box: Box, folder: Path) -> None:
    said = 'assert systemd.extend_timeout(1000)\ntime.sleep(5)\nsystemd.notify("READY=1")'
    with Service(box, folder, NOTIFY, more="TimeoutStartSec=4500ms") as service:
        service.deploy(bare(said))
        service.systemctl("start")
        assert service.show("ActiveState") == "active"


def test_the_watchdog_is_what_the_unit_says_and_bites_who_falls_silent(box: Box, folder: Path) -> None:
    with Service(box, folder, NOTIFY, more="WatchdogSec=3") as service:
        service.deploy(bare('systemd.notify("READY=1")', 'os.path.exists("silent") or systemd.notify("WATCHDOG=1")'))
        service.systemctl("start")
        service.wait_report(watchdog=1.5)
        first = service.show("WatchdogTimestampMonotonic")
        service.wait_until(lambda: service.show("WatchdogTimestampMonotonic") != first, "a ping is heard")
        assert service.show("ActiveState") == "active"
        (folder / "silent").touch()
        service.wait_show("Result", "watchdog")


def test_a_box_shares_neither_tmp_nor_processes_nor_another_ones_units(box: Box, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no-such"):
        box.systemctl("start", "no-such")
    other = Box(tmp_path.resolve() / "other", tmp_path.resolve())
    try:
        for each in (box, other):
            each.unit("same.service", "[Service]\nExecStart=sleep 1000\n")
            each.systemctl("start", "same")
        other.remove("same.service")
        assert box.show("same", "ActiveState") == {"ActiveState": "active"}
        inside = other.run("sh", "-c", "ls /proc; ls -a /tmp").stdout.split()
        assert str(Program(tmp_path).folder.parent.name) not in inside
        assert sum(name.isdecimal() for name in inside) < 10
    finally:
        other.close()
        box.remove("same.service")
    assert not other._group.exists()
