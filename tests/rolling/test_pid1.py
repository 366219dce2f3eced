"""As pid 1 of a container: all orphans are its children, nobody restarts it, and signals without a handler are lost."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import missing
from tests.rolling.programs import Rolling, Traffic, children_of, is_running, service

pytestmark = pytest.mark.core

ENTER = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


@functools.cache
def can_enter() -> bool:
    try:
        return subprocess.run([*ENTER, "true"], capture_output=True, timeout=60).returncode == 0
    except OSError:
        return False


class Container(Rolling):
    """A program that is pid 1. `pid` and all other numbers are as we see them; what it reports are its own. It has a
    folder for sockets to itself: all programs out here would seem dead to it, and it would wake them up to see."""

    def start(self, *arguments: str, **more: Any) -> Container:
        runtime = self.folder / "runtime"
        runtime.mkdir(mode=0o700, exist_ok=True)
        more["env"] = {"XDG_RUNTIME_DIR": str(runtime), **(more.get("env") or {})}
        self.start_command([*ENTER, self.python, *(arguments or ("app.py",))], **more)
        self.wait_until(lambda: children_of(super(Container, self).pid), "the first process")
        return self

    @property
    def pid(self) -> int:
        return children_of(super().pid)[0]

    def members(self) -> set[int]:
        """`unshare` itself is none."""
        return super().members() - {super().pid}

    def ready_workers(self, version: object) -> set[int]:
        ready = {each["pid"] for each in self.reports(ready=True, version=version)}
        return {pid for pid in self.workers() if number_inside(pid) in ready}

    def zombies(self) -> list[int]:
        return [child for pid in (self.pid, *self.members()) for child in children_of(pid) if not is_running(child)]


def number_inside(pid: int) -> int:
    """The number that the process has in its container; 0 once it is gone."""
    try:
        return int(Path(f"/proc/{pid}/status").read_text().split("\nNSpid:")[1].split("\n")[0].split()[-1])
    except (OSError, IndexError):
        return 0


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    if not can_enter():
        missing("unshare --pid (of util-linux, and for root only)")
    with Container(tmp_path / "program") as each:
        yield each


def test_pid_1_restarts_on_hup_without_losing_a_request(container: Container) -> None:
    container.launch(service())
    assert number_inside(container.pid) == 1
    with Traffic(container) as traffic:
        for version in range(2, 6):
            container.reload(service(version), expect=version)
            container.wait_until(lambda v=version: len(container.ready_workers(v)) == 2, "new workers")
        container.wait_until(lambda: "5" in traffic.versions(), "the newest code")
    assert number_inside(container.pid) == 1
    container.wait_until(lambda: len(container.members()) == 4, "supervisor, fork server, two workers")
    container.wait_until(lambda: not container.zombies(), "no zombie")


def test_pid_1_keeps_the_old_code_if_the_new_is_broken(container: Container) -> None:
    container.launch(service())
    container.deploy("import missing_module")
    container.hup()
    container.wait_log("generation 2 failed at stage load: ModuleNotFoundError")
    assert container.ask()[1] == "1"
    container.wait_until(lambda: not container.zombies(), "no zombie")
    container.reload(service(3), expect=3)


def test_pid_1_reaps_strangers(container: Container) -> None:
    """Grandchildren of a worker whose parent has ended: they are nobody's but pid 1's."""
    container.launch(service())
    known = container.members()
    for _ in range(5):
        container.ask(
            "exec subprocess = __import__('subprocess'); subprocess.run('sleep 1000 & sleep 1001 &', shell=True)"
        )

    def strangers() -> list[int]:
        return [pid for pid in children_of(container.pid) if pid not in known]

    container.wait_until(lambda: len(strangers()) == 10, "ten orphans under pid 1")
    for pid in strangers():
        os.kill(pid, signal.SIGKILL)
    container.wait_until(lambda: not strangers(), "they are reaped")
    assert container.ask()[1] == "1"
    assert container.members() == known
    container.reload(service(2), expect=2)


def test_strangers_that_end_all_the_time_disturb_no_restart(container: Container) -> None:
    container.launch(service(options="workers=2, soak=0.2"))
    orphans = "subprocess.Popen('(while true; do (true &) ; sleep 0.005; done) &', shell=True).wait()"
    container.ask(f"exec import subprocess; {orphans}")
    with Traffic(container):
        for version in range(2, 5):
            container.reload(service(version, "workers=2, soak=0.2"), expect=version)
    container.wait_until(lambda: len(container.ready_workers(4)) == 2, "two workers")


def test_killed_workers_are_replaced_and_leave_no_zombie(container: Container) -> None:
    container.launch(service())
    for _ in range(3):
        old = container.wait_until(lambda: len(all_ := container.ready_workers(1)) == 2 and all_, "two workers")
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        container.wait_until(
            lambda o=old: len(new := container.ready_workers(1)) == 2 and not new & o, "two workers in their place"
        )
    assert container.ask()[1] == "1"
    container.wait_until(lambda: not container.zombies(), "no zombie")


def test_a_killed_fork_server_is_replaced_and_its_workers_serve_on_under_pid_1(container: Container) -> None:
    container.launch(service())
    workers = container.ready_workers(1)
    (server,) = container.servers()
    with Traffic(container):
        os.kill(server, signal.SIGKILL)
        container.wait_until(lambda: not Path(f"/proc/{server}").exists(), "it is reaped")
        container.wait_report(imported=True, count=2)
    assert set(children_of(container.pid)) >= workers  # its children are pid 1's now
    victim = workers.pop()
    os.kill(victim, signal.SIGKILL)
    container.wait_until(lambda: not Path(f"/proc/{victim}").exists(), "it is reaped")
    container.wait_report(ready=True, count=3)
    assert container.ask()[1] == "1"
    container.reload(service(2), expect=2)
    container.wait_until(lambda: len(container.members()) == 4, "the old generation ends")
    container.wait_until(lambda: not container.zombies(), "no zombie")


def test_all_killed_at_once_are_replaced(container: Container) -> None:
    container.launch(service())
    for _ in range(2):
        old = container.members() - {container.pid}
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        container.wait_until(
            lambda o=old: len(container.ready_workers(1)) == 2 and not container.members() & o, "all anew"
        )
    assert container.ask()[1] == "1"
    container.wait_until(lambda: not container.zombies(), "no zombie")


def test_without_preload_pid_1_knows_the_status_of_its_workers_although_it_reaps_everybody(
    container: Container,
) -> None:
    container.launch(service(options="workers=2, preload=False"))
    try:
        container.ask("exec os._exit(3)")
    except OSError:
        pass  # no answer: it has ended
    container.wait_log("ended with status 3")
    container.wait_report(ready=True, count=3)
    assert container.ask()[1] == "1"


def test_pid_1_ends_on_term_with_status_0_after_the_jobs_in_hand(container: Container) -> None:
    container.launch(service())
    with container.connect("hold gate") as connection:
        container.wait_report(job="hold gate")
        container.term()
        container.wait_report(drained="stop")
        (container.folder / "gate").touch()
        assert connection.recv(100).startswith(b"hold 1 ")
    assert container.wait_exit() == 0
    container.wait_gone()


def test_pid_1_ends_on_term_with_strangers_around(container: Container) -> None:
    container.launch(service())
    container.reload(service(2), expect=2)
    container.ask("exec subprocess = __import__('subprocess'); subprocess.run('sleep 1000 &', shell=True)")
    assert container.stop() == 0
    container.wait_gone()
