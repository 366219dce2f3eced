"""Three workers with long jobs, restarted one after another: the pitfall of a bare HUP, and its end.

HUP returns at once, and who goes on to the next worker then has all of them finish a long job at the same time: nobody
takes a new one. `restart` returns when the new code serves, so a loop around it, or an Ansible play, has one at a time.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.fleet import availability
from tests.harness import CHECKOUT, PATIENCE, Program, clean_environment

HERE = Path(__file__).resolve().parent
HOSTS = ("one", "two", "three")

WORKER = """
import time
import hotrestart
from hotrestart import state

def now():
    return time.monotonic()

def work():
    end = now() + {job}
    while now() < end:
        time.sleep(end - now())

@hotrestart.restartable(pidfile="app.pid")
def main():
    hotrestart.on_stop(lambda: report(takes=False, at=now()))
    number = 0
    at = now()  # who restarts it may hear that it is ready before the next line is reached
    with hotrestart.worker_loop() as loop:
        report(takes=True, at=at, version={version}, generation=state.generation)
        while loop.running:
            number += 1
            report(took=[state.generation, number])
            work()
            report(did=[state.generation, number])

if __name__ == "__main__":
    main()
"""


class Fleet:
    """One worker in a folder of its own for each host."""

    def __init__(self, folder: Path, job: float) -> None:
        self.folder, self.job = folder, job
        self.hosts = {name: Program(folder / name) for name in HOSTS}

    def start(self) -> None:
        for name, host in self.hosts.items():
            self.deploy(name, 1)
            host.start()
        for host in self.hosts.values():
            host.wait_report(takes=True)

    def deploy(self, name: str, version: int) -> None:
        self.hosts[name].deploy(WORKER.format(job=self.job, version=version))

    def reports(self) -> dict[str, list[dict[str, object]]]:
        return {name: host.reports() for name, host in self.hosts.items()}

    def wait_versions(self, expected: list[object]) -> None:
        """Until each host has reported that it runs this; it may be said to serve a moment before."""

        def are_there() -> bool:
            return [host.reports(takes=True)[-1]["version"] for host in self.hosts.values()] == expected

        next(iter(self.hosts.values())).wait_until(are_there, f"versions {expected}")

    def stop(self) -> None:
        """Stop all of them; every job that was taken has been done, once."""
        for host in self.hosts.values():
            host.term()
        for host in self.hosts.values():
            assert host.wait_exit() == 0
            took, did = ([each[what] for each in host.reports() if what in each] for what in ("took", "did"))
            assert took == did
            assert len({str(each) for each in took}) == len(took)

    def assert_serves_on(self) -> None:
        """Each host takes another job."""
        for host in self.hosts.values():
            before = sum("took" in each for each in host.reports())
            host.wait_until(lambda h=host, n=before: sum("took" in each for each in h.reports()) > n, "another job")


@pytest.fixture
def job(full: bool) -> float:
    """Seconds that a job takes."""
    return 6.0 if full else 2.0


@pytest.fixture
def fleet(tmp_path: Path, job: float) -> Iterator[Fleet]:
    each = Fleet(tmp_path, job)
    with ExitStack() as stack:
        for host in each.hosts.values():
            stack.enter_context(host)
        each.start()
        yield each


# -- what the tests measure with ------------------------------------------------------------------------------------


def test_who_takes_jobs_is_counted() -> None:
    def said(*changes: tuple[float, bool]) -> list[dict[str, object]]:
        return [{"did": 1}, *({"takes": takes, "at": at} for at, takes in changes)]

    reports = {
        "one": said((0.0, True), (2.0, False), (6.0, True)),
        "two": said((1.0, True), (3.0, False), (7.0, True)),
    }
    assert availability.over_time(reports) == [(1.0, 2), (2.0, 1), (3.0, 0), (6.0, 1), (7.0, 2)]
    assert availability.fewest(reports) == 0
    assert availability.longest_without(reports) == 3.0
    assert availability.longest_without({"one": said((0.0, True))}) == 0.0


# -- the pitfall ----------------------------------------------------------------------------------------------------


def test_with_bare_hups_there_are_times_when_nobody_takes_a_job(tmp_path: Path, job: float) -> None:
    # A sixth of a job between two HUPs, as a person would wait who has been told nothing. On a machine so busy that a
    # job is over before the next worker has seen its HUP, jobs have to be longer for that.
    for tried in range(4):
        fleet = Fleet(tmp_path / str(tried), job * 2**tried)
        with ExitStack() as stack:
            for host in fleet.hosts.values():
                stack.enter_context(host)
            fleet.start()
            for name, host in fleet.hosts.items():
                fleet.deploy(name, 2)
                host.hup()
                time.sleep(fleet.job / 6)
            for host in fleet.hosts.values():
                host.wait_report(takes=True, version=2)
            fleet.stop()
            if availability.longest_without(fleet.reports()) > fleet.job / 2:
                assert availability.fewest(fleet.reports()) == 0
                return
    pytest.fail("there was always somebody who took jobs: the pitfall is gone?")


# -- its end: a plain loop ------------------------------------------------------------------------------------------


def environment(fleet: Fleet) -> dict[str, str]:
    """In which python3 is this one."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return clean_environment(PATH=path, HOME=str(fleet.folder), FLEET=str(fleet.folder))


def loop(fleet: Fleet) -> subprocess.CompletedProcess[str]:
    """The loop in README, with an ssh that goes into a folder instead; /run is there too."""
    ssh = 'ssh() { cd "$FLEET/$1"; shift; "$@"; }\n'
    script = ssh + (HERE / "loop.sh").read_text().replace("/run/", "")
    return subprocess.run(
        ["sh", "-c", script], env=environment(fleet), capture_output=True, text=True, timeout=4 * PATIENCE, check=False
    )


def test_a_loop_around_restart_has_one_at_a_time(fleet: Fleet) -> None:
    for name in HOSTS:
        fleet.deploy(name, 2)
    ran = loop(fleet)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("generation 2 serves") == 3
    fleet.wait_versions([2, 2, 2])
    fleet.assert_serves_on()
    assert availability.fewest(fleet.reports()) == 2
    fleet.stop()


def test_a_loop_stops_at_the_first_host_whose_code_is_broken(fleet: Fleet) -> None:
    for name in HOSTS:
        fleet.deploy(name, 2)
    fleet.hosts["two"].deploy("import there_is_no_such_thing")
    ran = loop(fleet)
    assert ran.returncode == 1
    assert "ModuleNotFoundError: No module named 'there_is_no_such_thing'" in ran.stderr
    assert ran.stderr.endswith("the old code still serves\n")
    assert_stopped_at_the_second(fleet)


def assert_stopped_at_the_second(fleet: Fleet) -> None:
    """One has new code, two goes on with the old, nobody has asked three; no moment with fewer than two."""
    fleet.wait_versions([2, 1, 1])
    three = fleet.hosts["three"]
    ran = subprocess.run(
        [sys.executable, "-m", "hotrestart", "status", "--json", str(three.pid)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    program = json.loads(ran.stdout)["program"]
    assert (program["generation"], program["last"]) == (1, None)
    fleet.assert_serves_on()
    assert availability.fewest(fleet.reports()) == 2
    fleet.stop()


# -- its end: Ansible -----------------------------------------------------------------------------------------------


def play(fleet: Fleet) -> subprocess.CompletedProcess[str]:
    """The playbook in README, on three hosts that are folders of this one."""
    ansible = Path(sys.executable).with_name("ansible-playbook")
    if not ansible.exists():
        missing("ansible-core")
    inventory = fleet.folder / "inventory.ini"
    lines = [f"{name} pidfile={fleet.hosts[name].folder}/app.pid" for name in HOSTS]
    common = ["[workers:vars]", "ansible_connection=local", f"ansible_python_interpreter={sys.executable}"]
    inventory.write_text("\n".join(["[workers]", *lines, *common, ""]))
    env = {**environment(fleet), "LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(fleet.folder / "ansible")}
    (fleet.folder / "ansible.cfg").touch()
    env |= {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(fleet.folder / "ansible.cfg")}
    return subprocess.run(
        [str(ansible), "-i", str(inventory), str(HERE / "restart.yml")],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE,
        check=False,
    )


def recap(ran: subprocess.CompletedProcess[str]) -> dict[str, tuple[int, int]]:
    """How many tasks were ok and how many failed, for each host that the play has come to."""
    found = re.findall(r"^(\w+) +: ok=(\d+) .*failed=(\d+)", ran.stdout, re.MULTILINE)
    return {name: (int(ok), int(failed)) for name, ok, failed in found}


def test_a_play_has_one_at_a_time(fleet: Fleet) -> None:
    for name in HOSTS:
        fleet.deploy(name, 2)
    ran = play(fleet)
    assert ran.returncode == 0, ran
    assert recap(ran) == {"one": (1, 0), "two": (1, 0), "three": (1, 0)}
    fleet.wait_versions([2, 2, 2])
    fleet.assert_serves_on()
    assert availability.fewest(fleet.reports()) == 2
    fleet.stop()


def test_a_play_stops_at_the_first_host_whose_code_is_broken(fleet: Fleet) -> None:
    for name in HOSTS:
        fleet.deploy(name, 2)
    fleet.hosts["two"].deploy("import there_is_no_such_thing")
    ran = play(fleet)
    assert ran.returncode not in (0, 4), ran  # 4: a host could not be reached
    assert recap(ran) == {"one": (1, 0), "two": (0, 1)}
    assert "ModuleNotFoundError: No module named 'there_is_no_such_thing'" in ran.stdout
    assert_stopped_at_the_second(fleet)


@pytest.mark.parametrize("name", ["restart.yml", "loop.sh"])
def test_readme_shows_what_is_tested_here(name: str) -> None:
    readme = (CHECKOUT / "README.md").read_text()
    section = readme.partition("\n## Fleets\n")[2].partition("\n## ")[0]
    assert section, "no such section"
    assert f"\n{(HERE / name).read_text()}```\n" in section
