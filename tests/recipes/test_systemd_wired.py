"""What a real systemd makes of what both kinds of restart tell it: states and texts, more time, signs of life."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from tests.recipes.load import Load
from tests.recipes.test_systemd_units import SOCKET, Server
from tests.systemd_box import Box, Service
from tests.test_notifying import BROKEN, KINDS, WAIT, app

UNIT = """
[Unit]
{needs}

[Service]
Type=notify
NotifyAccess=main
ExecStart={python} {start}
ExecReload={reload}
KillMode=mixed
{more}
"""
BY_HUP, WAITS = "kill -HUP $MAINPID", f"{sys.executable} -m hotrestart restart $MAINPID"
JOB = "time.sleep(5); report(ended=True); break"
HELD = f"{WAIT}\n            {JOB}"
SLOW = "time.sleep(5)"  # longer than systemd would wait in these tests

kinds = pytest.mark.parametrize("kind", KINDS)
reloads = pytest.mark.parametrize("reload", [BY_HUP, WAITS], ids=["by HUP", "and waits"])


class Unit(Service):
    """A small program of either kind, by a unit of `Type=notify`."""

    def __init__(self, box: Box, folder: Path, *more: str, reload: str = WAITS, start: str = "{folder}/app.py") -> None:
        start = start.format(folder=folder)
        super().__init__(box, folder, UNIT, needs="", start=start, reload=reload, more="\n".join(more))

    def begin(self, source: str) -> int:
        """Deploy, start, and be sure that it is ready; the pid."""
        self.deploy(source)
        self.systemctl("start")
        assert self.reports(boots=1)
        assert self.show("StatusText") == "generation 1 serves"
        self.assert_undisturbed(self.pid)
        return self.pid

    def assert_undisturbed(self, pid: int) -> None:
        """It runs, and was not started again."""
        wanted = {"MainPID": str(pid), "NRestarts": "0", "ActiveState": "active", "Result": "success"}
        assert pid
        assert self.box.show(self.unit, *wanted) == wanted, self.box.log()

    def wait_settled(self, pid: int, status: str) -> None:
        """Until systemd thinks so."""
        self.wait_show("StatusText", status)
        self.wait_show("ActiveState", "active")
        self.assert_undisturbed(pid)

    def has_timed_out(self) -> bool:
        return "timed out" in self.box.log().split(self.unit, 1)[1]


def behind_a_socket(more: str) -> str:
    """The text of a unit."""
    text = UNIT.replace("{needs}", "Requires={name}.socket").replace("{start}", "{folder}/app.py {arguments}")
    return text.replace("{reload}", WAITS).replace("{more}", more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path.resolve() / "app"


# -- states and texts -----------------------------------------------------------------------------------------------


@kinds
@reloads
def test_a_reload_lasts_until_the_new_generation_serves(box: Box, folder: Path, kind: str, reload: str) -> None:
    with Unit(box, folder, reload=reload) as unit:
        pid = unit.begin(app(kind))
        (folder / "wait").touch()
        unit.deploy(app(kind, 2, top=WAIT))
        reloading = threading.Thread(target=unit.systemctl, args=["reload"])
        reloading.start()
        unit.wait_show("StatusText", "generation 2 on trial" if kind == "in place" else "generation 2: load")
        unit.wait_show("ActiveState", "reloading")
        if reload == WAITS:
            assert reloading.is_alive()
        (folder / "wait").unlink()
        reloading.join()
        if reload == WAITS:
            assert unit.reports(boots=2)
        unit.wait_settled(pid, "generation 2 serves")

        unit.systemctl("restart")
        assert unit.show("StatusText") == "generation 1 serves"
        assert unit.pid != pid
        unit.assert_undisturbed(unit.pid)
        assert unit.stop() == 0


@kinds
def test_a_hup_by_hand_is_seen_as_a_reload(box: Box, folder: Path, kind: str) -> None:
    with Unit(box, folder) as unit:
        pid = unit.begin(app(kind))
        for source, status in [(BROKEN, ""), (app(kind, 2), f"generation {2 if kind == 'in place' else 3} serves")]:
            (folder / "wait").touch()
            unit.deploy(f"import os, time\n{WAIT}\n{source}")
            box.run("kill", "-HUP", str(pid))
            unit.wait_show("ActiveState", "reloading")
            (folder / "wait").unlink()
            unit.wait_show("ActiveState", "active")
            assert status or "there_is_no_such_thing" in unit.show("StatusText")
            unit.wait_settled(pid, status or unit.show("StatusText"))
        assert unit.stop() == 0


@kinds
def test_a_reload_that_fails_is_told_with_its_reason_and_leaves_the_service_as_it_is(
    box: Box, folder: Path, kind: str
) -> None:
    with Unit(box, folder) as unit:
        pid = unit.begin(app(kind))
        unit.deploy(BROKEN)
        with pytest.raises(AssertionError, match=r"Job for .* failed"):
            unit.systemctl("reload")
        unit.assert_undisturbed(pid)
        assert "there_is_no_such_thing" in unit.show("StatusText")
        unit.deploy(app(kind, 2))
        unit.systemctl("reload")
        assert unit.reports(boots=2)
        unit.assert_undisturbed(pid)


# -- times that are too short ---------------------------------------------------------------------------------------


def test_workers_may_take_longer_to_get_ready_than_a_start_may_take(box: Box, folder: Path) -> None:
    with Unit(box, folder, "TimeoutStartSec=4500ms") as unit:
        unit.begin(app("rolling", first=SLOW))
        assert unit.stop() == 0


def test_a_command_may_take_longer_to_get_ready_than_a_start_may_take(box: Box, folder: Path) -> None:
    start = "-m hotrestart run --settle 5 -- sleep 1000"
    with Unit(box, folder, "TimeoutStartSec=4500ms", start=start) as unit:
        unit.systemctl("start")
        unit.assert_undisturbed(unit.pid)
        assert unit.stop() == 0


@kinds
def test_before_main_only_the_program_itself_can_ask_for_more_time(box: Box, folder: Path, kind: str) -> None:
    with Unit(box, folder, "TimeoutStartSec=4500ms") as unit:
        unit.deploy(app(kind, top=SLOW))
        with pytest.raises(AssertionError, match="a timeout was exceeded"):
            unit.systemctl("start")
        box.run("systemctl", "reset-failed", unit.unit)
        unit.begin(app(kind, top=f"from hotrestart import systemd; systemd.extend_timeout(100)\n{SLOW}"))
        assert unit.stop() == 0


@kinds
def test_a_reload_may_take_longer_than_a_start_may(box: Box, folder: Path, kind: str) -> None:
    """Not with `ExecReload=kill`: when that ends after more time was asked for, systemd begins to count anew."""
    with Unit(box, folder, "TimeoutStartSec=4500ms") as unit:
        pid = unit.begin(app(kind))
        unit.deploy(app(kind, 2, top=SLOW))
        unit.systemctl("reload")
        unit.wait_settled(pid, "generation 2 serves")
        assert not unit.has_timed_out()


@pytest.mark.parametrize(("kind", "first"), [("in place", ""), ("in place", "reload"), ("rolling", "")])
def test_what_is_in_hand_may_take_longer_than_a_stop_may(box: Box, folder: Path, kind: str, first: str) -> None:
    """With `first`, the stop comes while the program drains for a restart."""
    with Unit(box, folder, "TimeoutStopSec=2") as unit:
        pid = unit.begin(app(kind, job=HELD))
        (folder / "job").touch()
        (folder / "wait").touch()
        if first:
            box.run("kill", "-HUP", str(pid))
            unit.wait_show("StatusText", "generation 1 finishes its work")
        stopping = threading.Thread(target=unit.stop)
        stopping.start()
        unit.wait_show("ActiveState", "deactivating")
        (folder / "wait").unlink()
        stopping.join()
        assert box.show(unit.unit, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
        assert unit.reports(ended=True)
        assert not unit.has_timed_out()


# -- the watchdog ---------------------------------------------------------------------------------------------------


def test_a_drain_and_a_boot_may_last_longer_than_the_watchdog_allows(box: Box, folder: Path) -> None:
    with Unit(box, folder, "WatchdogSec=4") as unit:
        pid = unit.begin(app("in place", job=JOB))
        (folder / "job").touch()
        unit.deploy(app("in place", 2, top=SLOW, turn='while os.path.exists("hang"): time.sleep(0.01)'))
        unit.systemctl("reload")
        assert unit.reports(boots=2)
        unit.assert_undisturbed(pid)
        wait_signs_of_life(unit, 2)
        unit.assert_undisturbed(pid)
        (folder / "hang").touch()  # and now it is as strict as before
        unit.wait_show("Result", "watchdog")
        assert unit.show("NRestarts") == "0"


@pytest.mark.parametrize("turn", ["loop.sleep()", "loop.wait(0)", "time.sleep(0.01)"], ids=["sleep", "wait", "running"])
def test_a_program_that_waits_lives(box: Box, folder: Path, turn: str) -> None:
    with Unit(box, folder, "WatchdogSec=4") as unit:
        pid = unit.begin(
            f"import os\nos.set_blocking(0, False)\nos.dup2(os.pipe()[0], 0)\n{app('in place', turn=turn)}"
        )
        wait_signs_of_life(unit, 2)
        unit.assert_undisturbed(pid)
        assert unit.stop() == 0


@kinds
def test_a_stop_may_last_longer_than_the_watchdog_allows(box: Box, folder: Path, kind: str) -> None:
    with Unit(box, folder, "WatchdogSec=4") as unit:
        unit.begin(app(kind, job=JOB))
        (folder / "job").touch()
        assert unit.stop() == 0
        assert unit.reports(ended=True)


def test_a_supervisor_lives_until_it_hangs(box: Box, folder: Path) -> None:
    with Unit(box, folder, "WatchdogSec=4") as unit:
        pid = unit.begin(app("rolling"))
        wait_signs_of_life(unit, 2)
        unit.deploy(app("rolling", 2, top=SLOW))
        unit.systemctl("reload")
        assert len(unit.reports(boots=2)) == 2
        unit.assert_undisturbed(pid)
        wait_signs_of_life(unit, 1)  # until then the watchdog, too, has the time that was asked for the restart
        box.run("kill", "-STOP", str(pid))
        unit.wait_show("Result", "watchdog")


def wait_signs_of_life(unit: Service, count: int) -> None:
    for _ in range(count):
        before = unit.show("WatchdogTimestampMonotonic")
        unit.wait_until(lambda before=before: unit.show("WatchdogTimestampMonotonic") != before, "a sign of life")


@kinds
def test_whoever_is_busy_with_requests_and_restarts_lives_until_he_hangs(
    box: Box, folder: Path, port: int, kind: str
) -> None:
    served = {"in place": "in place", "rolling": "workers"}[kind]
    with Server(box, folder, port, served, behind_a_socket("WatchdogSec=4"), socket=SOCKET) as server:
        box.systemctl("start", f"{server.name}.socket")
        with Load(port) as load:
            load.wait_for(server, 1)
            server.wait_show("ActiveState", "active")
            pid = server.pid
            for version in (2, 3):
                wait_signs_of_life(server, 1)
                server.reload(load, version)
                server.assert_undisturbed(pid)
            wait_signs_of_life(server, 2)
            server.assert_undisturbed(pid)
        load.check(3)
        box.run("kill", "-STOP", str(pid))
        server.wait_show("Result", "watchdog")


# -- under load -----------------------------------------------------------------------------------------------------


@kinds
def test_reloads_behind_a_socket_unit_lose_nothing(box: Box, folder: Path, port: int, kind: str, full: bool) -> None:
    served = {"in place": "in place", "rolling": "workers"}[kind]
    text = behind_a_socket("WatchdogSec=30\nTimeoutStartSec=100\nTimeoutStopSec=40")
    with Server(box, folder, port, served, text, socket=SOCKET) as server:
        box.systemctl("start", f"{server.name}.socket")
        assert server.pid == 0
        with Load(port) as load:  # the first of them has it started
            load.wait_for(server, 1)
            server.wait_show("ActiveState", "active")
            pid = server.pid
            last = 11 if full else 5
            for version in range(2, last + 1):
                server.reload(load, version)
                server.assert_undisturbed(pid)
                assert server.show("StatusText") == f"generation {version} serves"
        load.check(last)
        assert server.stop() == 0
