"""What a service manager gets to hear of programs of both kinds, and from whom: a recording notify socket.

A real systemd hears it in recipes/test_systemd_wired.py.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hotrestart import control
from hotrestart.options import Options
from hotrestart.rolling.desk import _longest
from tests.harness import PATIENCE, Program, copy_library
from tests.rolling.programs import Rolling
from tests.test_systemd import Recorder, linux

pytestmark = linux

KINDS = {"in place": "", "rolling": "workers=2"}
kinds = pytest.mark.parametrize("kind", KINDS)

APP = """
import os, sys, threading, time
import hotrestart
from hotrestart import state

VERSION = {version}
{top}

@hotrestart.restartable({options})
def main():
    {first}
    report(boots=VERSION)
    with hotrestart.worker_loop() as loop:
        report(ready=state.generation, version=VERSION, pid=os.getpid())
        while loop.running:
            {turn}
            loop.sleep(0.01)
        while os.path.exists("job"):
            {job}

main()
"""
WAIT = 'while os.path.exists("wait"): time.sleep(0.005)'
BROKEN = "import there_is_no_such_thing"


def app(
    kind: str,
    version: int = 1,
    *,
    top: str = "",
    first: str = "pass",
    turn: str = "pass",
    job: str = "time.sleep(0.005)",
    more: str = "",
) -> str:
    """A program that reports what it does: `top`: code run at import; `first`: at the beginning of main(); `turn`: in
    the loop; `job`: after the loop, as long as there is a file "job"; `more`: options."""
    options = ", ".join(filter(None, [KINDS[kind], more]))
    return APP.format(version=version, options=options, top=top, first=first, turn=turn, job=job)


class Heard:
    """One message: who has sent it, and what it says by name."""

    def __init__(self, pid: int, lines: list[str]) -> None:
        self.pid, self.said = pid, dict(line.split("=", 1) for line in lines)
        self.at = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000

    def __repr__(self) -> str:
        return f"{self.pid}: {self.said}"

    @property
    def word(self) -> str:
        """READY, RELOADING, STOPPING, or nothing."""
        return next((each for each in ("READY", "RELOADING", "STOPPING") if self.said.get(each) == "1"), "")


class Manager:
    """Listens, as long as its block lasts."""

    def __init__(self, address: str) -> None:
        self._recorder = Recorder(address)
        self.address = address
        self.heard: list[Heard] = []
        self._marked = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._listen)

    def settle(self) -> None:
        """Until all that has been said so far is heard."""
        self._say(b"X_MARK=1")
        self._marked.acquire()

    def _say(self, what: bytes) -> None:
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.connect(address)
            other.send(what)

    def _listen(self) -> None:
        while True:
            message = Heard(*self._recorder.hear())
            if "X_END" in message.said:
                return
            if "X_MARK" in message.said:
                self._marked.release()
            else:
                self.heard.append(message)

    def words(self, since: int = 0) -> list[str]:
        """READY, RELOADING and STOPPING in their order."""
        return [each.word for each in self.heard[since:] if each.word]

    def __enter__(self) -> Manager:
        self._recorder.socket.settimeout(None)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._say(b"X_END=1")
        self._thread.join()
        self._recorder.close()


class Managed(Rolling):
    """A program of either kind under a manager that listens."""

    def __init__(self, folder: Path, manager: Manager) -> None:
        super().__init__(folder)
        self.manager = manager

    def begin(self, source: str, *, env: dict[str, str] | None = None) -> Managed:
        """Start it, and wait until the manager knows that it is ready."""
        self.deploy(source)
        self.start(env={"NOTIFY_SOCKET": self.manager.address, **(env or {})})
        self.wait_words("READY")
        return self

    def wait_words(self, last: str, *, since: int = 0, count: int = 1) -> None:
        """Wait until such a word is the last since then, and has been said so often."""

        def is_so() -> bool:
            words = self.manager.words(since)
            return words.count(last) >= count and words[-1] == last

        self.wait_until(is_so, f"{count} times {last}, at last; heard: {self.manager.heard[since:]}")

    def wait_heard(self, name: str, *, since: int = 0, count: int = 1) -> Heard:
        """The `count`th message with this name in it."""

        def found() -> list[Heard]:
            return [each for each in self.manager.heard[since:] if name in each.said][count - 1 : count]

        return self.wait_until(found, f"{count} times {name}")[0]

    def now(self) -> int:
        self.manager.settle()
        return len(self.manager.heard)

    def wait_exit(self, timeout: float | None = None) -> int:
        """And all that it has said until then is heard."""
        status = super().wait_exit(timeout)
        self.manager.settle()
        return status

    def assert_one_restart(self, since: int, began: int) -> Heard:
        """A reload was told at once, perhaps again for later stages, and then its end; the message of that."""
        told = [each for each in self.manager.heard[since:] if each.word]
        assert [each.word for each in told] == ["RELOADING"] * (len(told) - 1) + ["READY"]
        times = [int(each.said["MONOTONIC_USEC"]) for each in told[:-1]]
        assert times
        assert [began, *times] == sorted([began, *times])
        assert all(time <= each.at for time, each in zip(times, told, strict=False))
        assert {each.pid for each in self.manager.heard} == {self.pid}
        return told[-1]


def clock() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def made(folder: str, *, abstract: bool) -> Manager:
    return Manager(f"@hotrestart/{os.getpid()}/{folder}" if abstract else f"{folder}/notify")


@pytest.fixture
def manager() -> Iterator[Manager]:
    with tempfile.TemporaryDirectory() as folder, made(folder, abstract=False) as each:
        yield each


@pytest.fixture
def managed(tmp_path: Path, manager: Manager) -> Iterator[Managed]:
    with Managed(tmp_path / "program", manager) as each:
        yield each


@kinds
@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_a_start_a_restart_and_a_stop(tmp_path: Path, kind: str, abstract: bool) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        made(folder, abstract=abstract) as manager,
        Managed(tmp_path / "program", manager) as managed,
    ):
        managed.begin(app(kind))
        assert manager.words() == ["READY"]
        if kind == "rolling":  # in place nobody but the program is there before main()
            assert "EXTEND_TIMEOUT_USEC" in manager.heard[0].said | manager.heard[1].said
        for version in (2, 3):
            managed.deploy(app(kind, version))
            since, began = managed.now(), clock()
            managed.hup()
            managed.wait_words("READY", since=since)
            assert len(managed.reports(boots=version)) == (1 if kind == "in place" else 2)
            ready = managed.assert_one_restart(since, began)
            assert ready.said["STATUS"] == f"generation {version} serves"
        since = managed.now()
        assert managed.stop() == 0
        assert manager.words(since) == ["STOPPING"]
        assert "EXTEND_TIMEOUT_USEC" in manager.heard[-1].said
        assert {each.pid for each in manager.heard} == {managed.pid}
        assert not any("WATCHDOG" in each.said for each in manager.heard)


@kinds
def test_a_restart_that_fails_is_over_too_and_the_reason_is_told(managed: Managed, kind: str) -> None:
    managed.begin(app(kind))
    managed.deploy(app(kind, 2, top=BROKEN))
    for _ in range(2):
        since, began = managed.now(), clock()
        managed.hup()
        managed.wait_words("READY", since=since)
        ready = managed.assert_one_restart(since, began)
        assert "generation 1" in ready.said["STATUS"]
        assert "there_is_no_such_thing" in ready.said["STATUS"]
    managed.deploy(app(kind, 3))
    since, began = managed.now(), clock()
    managed.hup()
    managed.wait_words("READY", since=since)
    assert managed.assert_one_restart(since, began).said["STATUS"].endswith(" serves")


def test_workers_that_do_not_get_ready_are_a_reason_too(managed: Managed) -> None:
    managed.begin(app("rolling"))
    managed.deploy(app("rolling", 2, first="raise LookupError('no such luck')"))
    since, began = managed.now(), clock()
    managed.hup()
    managed.wait_words("READY", since=since)
    assert "no such luck" in managed.assert_one_restart(since, began).said["STATUS"]


@pytest.mark.parametrize(
    ("kind", "stage"), [("in place", "trial"), ("in place", "drain"), ("in place", "boot"), ("rolling", "load")]
)
def test_a_stop_in_the_midst_of_a_restart_is_the_last_word(managed: Managed, kind: str, stage: str) -> None:
    managed.begin(app(kind))
    where = {"drain": {}, "boot": {"first": WAIT}}.get(stage, {"top": WAIT})
    managed.deploy(app(kind, 2, **where))
    (managed.folder / ("job" if stage == "drain" else "wait")).touch()
    since = managed.now()
    managed.hup()
    managed.wait_words("RELOADING", since=since, count={"drain": 2, "boot": 3}.get(stage, 1))
    managed.term()
    if stage == "drain":
        managed.wait_words("STOPPING", since=since)
        (managed.folder / "job").unlink()
    if stage == "boot":  # main() does not look at the flag before its loop
        managed.wait_words("STOPPING", since=since)
        (managed.folder / "wait").unlink()
    assert managed.wait_exit() == 0
    words = managed.manager.words(since)
    assert words == ["RELOADING"] * (len(words) - 1) + ["STOPPING"]


@kinds
def test_every_request_is_followed_by_a_reload_and_by_its_end(managed: Managed, kind: str, full: bool) -> None:
    managed.begin(app(kind))
    asked = []
    requests = 20 if full else 8
    for number in range(requests):
        managed.deploy(app(kind, number))
        since = managed.now()
        asked.append(clock())
        managed.hup()
        if number % 4 == 1:  # into whatever is going on just then
            managed.wait_until(lambda since=since: "RELOADING" in managed.manager.words(since), "it reloads")
        elif number % 4 == 3:
            managed.wait_words("READY", since=since)

    def all_are_over() -> bool:
        told = [each for each in managed.manager.heard if each.word]
        times = [int(each.said["MONOTONIC_USEC"]) for each in told if each.word == "RELOADING"]
        return times[-1] >= asked[-1] and told[-1].word == "READY"

    managed.wait_until(all_are_over, "the last request has its end")
    managed.wait_report(version=requests - 1)
    assert {each.pid for each in managed.manager.heard} == {managed.pid}
    since = managed.now()
    assert managed.stop() == 0
    assert managed.manager.words(since) == ["STOPPING"]


@pytest.mark.parametrize(("kind", "file"), [("in place", "job"), ("in place", "wait"), ("rolling", "wait")])
def test_who_asks_during_a_restart_hears_of_a_reload_after_that(managed: Managed, kind: str, file: str) -> None:
    """As `Type=notify-reload` wants it: its time is not older than the HUP."""
    managed.begin(app(kind))
    managed.deploy(app(kind, 2, top=WAIT))
    (managed.folder / file).touch()
    managed.hup()
    managed.wait_words("RELOADING", count=2 if file == "job" else 1)
    asked = clock()
    managed.hup()
    (managed.folder / file).unlink()

    def is_told() -> bool:
        heard = managed.manager.heard
        later = [each for each in heard if each.word == "RELOADING" and int(each.said["MONOTONIC_USEC"]) >= asked]
        return bool(later) and managed.manager.words(heard.index(later[0]))[-1] == "READY"

    managed.wait_until(is_told, f"a reload that begins after {asked}: {managed.manager.heard}")


@kinds
@pytest.mark.parametrize("by", ["itself", "control"])
def test_a_restart_that_is_asked_for_otherwise(managed: Managed, kind: str, by: str) -> None:
    ask = 'state.generation == 1 and os.path.exists("go") and hotrestart.request_restart()'
    managed.begin(app(kind, turn=ask))
    since, began = managed.now(), clock()
    if by == "control":
        assert control.restart(managed.pid, timeout=PATIENCE).ok
    else:
        (managed.folder / "go").touch()
    managed.wait_words("READY", since=since)
    if kind == "in place" or by == "control":  # else both workers ask, each until it ends
        managed.assert_one_restart(since, began)
    if by == "control":
        since = managed.now()
        control.stop(managed.pid)
        assert managed.wait_exit() == 0
        assert managed.manager.words(since) == ["STOPPING"]


def test_without_a_preflight_the_drain_is_the_beginning(managed: Managed) -> None:
    managed.begin(app("in place", more="preflight=False"))
    since, began = managed.now(), clock()
    managed.hup()
    managed.wait_words("READY", since=since)
    managed.assert_one_restart(since, began)
    assert managed.manager.words(since) == ["RELOADING", "RELOADING", "READY"]  # drain, boot


def test_a_supervisor_that_moves_to_another_hotrestart_goes_on_telling(managed: Managed) -> None:
    library = managed.folder / "library"
    for name in ("1.0", "2.0"):
        first = copy_library(managed.folder / name) / "__init__.py"
        text, count = re.subn("__version__ = .*", f'__version__ = "{name}"', first.read_text())
        assert count == 1
        first.write_text(text)
    library.symlink_to("1.0")
    managed.begin(app("rolling"), env={**WATCHED, "PYTHONPATH": str(library)})
    library.unlink()
    library.symlink_to("2.0")
    for _ in range(2):
        since, began = managed.now(), clock()
        managed.hup()
        managed.wait_words("READY", since=since)
        managed.assert_one_restart(since, began)
        managed.wait_log("the supervisor moves to")
        managed.wait_heard("WATCHDOG", since=managed.now(), count=3)
    assert managed.stop() == 0
    assert managed.manager.words()[-2:] == ["READY", "STOPPING"]


def test_a_command_that_is_run_is_told_of_in_the_same_way(managed: Managed) -> None:
    command = ("-m", "hotrestart", "run", "--workers", "2", "--settle", "0.1", "--", "sleep", "1000")
    managed.start(*command, env={"NOTIFY_SOCKET": managed.manager.address, **WATCHED})
    managed.wait_words("READY")
    assert managed.manager.words() == ["READY"]
    managed.wait_heard("WATCHDOG", count=2)
    since, began = managed.now(), clock()
    managed.hup()
    managed.wait_words("READY", since=since)
    managed.assert_one_restart(since, began)
    assert managed.stop() == 0
    assert managed.manager.words()[-1] == "STOPPING"


def test_a_program_that_ends_by_itself_says_so(managed: Managed) -> None:
    managed.begin(app("in place", turn='if os.path.exists("go"): break'))
    since = managed.now()
    (managed.folder / "go").touch()
    assert managed.wait_exit() == 0
    assert managed.manager.words(since) == ["STOPPING"]


BLOCK = """
import os, time
import hotrestart

with hotrestart.worker_loop() as loop:
    while not os.path.exists("go"):
        loop.sleep(0.01)
report(over=True)
while not os.path.exists("end"):
    time.sleep(0.005)
"""


def test_a_block_that_ends_is_not_the_program_s_end(managed: Managed) -> None:
    managed.begin(BLOCK)
    managed.deploy(f"import os, time\n{WAIT}\n" + BLOCK)
    (managed.folder / "wait").touch()
    managed.hup()
    managed.wait_words("RELOADING")
    (managed.folder / "go").touch()
    managed.wait_report(over=True)
    managed.wait_words("READY", count=2)
    (managed.folder / "end").touch()
    assert managed.wait_exit() == 0
    assert "STOPPING" not in managed.manager.words()


FORKS = """
def child(what):
    pid = os.fork()
    if not pid:
        what()
        os._exit(0)
    os.waitpid(pid, 0)

@hotrestart.restartable
def its_own_main():
    with hotrestart.worker_loop():
        pass

def stop():
    hotrestart.request_stop()
    time.sleep(0.2)  # whoever wanted to tell of it would have

child(its_own_main)
"""


def test_a_forked_child_has_nothing_to_tell(managed: Managed) -> None:
    managed.begin(app("in place", top=FORKS, turn="state.generation == 1 and child(stop)"))
    managed.wait_report(ready=1)
    managed.hup()
    managed.wait_words("READY", count=2)
    assert managed.stop() == 0
    assert {each.pid for each in managed.manager.heard} == {managed.pid}
    assert managed.manager.words().count("STOPPING") == 1


def test_a_request_that_is_refused_before_the_program_is_ready_does_not_make_it_ready(managed: Managed) -> None:
    (managed.folder / "wait").touch()
    managed.deploy(app("in place", first=f"report(main=True)\n    {WAIT}"))
    managed.start(env={"NOTIFY_SOCKET": managed.manager.address})
    managed.wait_report(main=True)
    managed.deploy(BROKEN)
    managed.hup()
    managed.wait_until(
        lambda: any("there_is_no_such_thing" in each.said.get("STATUS", "") for each in managed.manager.heard),
        "why not",
    )
    assert set(managed.manager.words()) == {"RELOADING"}
    (managed.folder / "wait").unlink()
    managed.wait_words("READY")
    assert managed.manager.words().count("READY") == 1


def test_where_nobody_listens_nothing_is_loaded_for_it(program: Program) -> None:
    loaded = 'report(loaded=[name for name in ("_socket", "socket") if name in sys.modules])'
    source = app("in place", turn=loaded, more="control=False")
    program.deploy(source)
    program.start()
    program.wait_report(loaded=[])
    program.hup()
    program.wait_report(ready=2)
    program.wait_report(loaded=[])
    program.term()
    assert program.wait_exit() == 0
    assert program.reports(loaded=[]) == [each for each in program.reports() if "loaded" in each]


# -- the watchdog ---------------------------------------------------------------------------------------------------

WATCHED = {"WATCHDOG_USEC": "300000"}

LIVES = """
import os, socket, threading, time
import hotrestart

@hotrestart.restartable
def main():
    ours, theirs = socket.socketpair()
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        while loop.running:
            {turn}

{how}
"""
TURNS = {
    "running": "time.sleep(0.001)",
    "sleep": "loop.sleep()",
    "short": "loop.sleep(0.001)",
    "wait": "loop.wait(ours)",
    "poll": "loop.wait(ours, timeout=0)",
    "iterates": "for turn in loop: time.sleep(0.001)",
}


@pytest.mark.parametrize("turn", TURNS)
def test_every_turn_and_every_wait_is_a_sign_of_life(managed: Managed, turn: str) -> None:
    managed.begin(LIVES.format(turn=TURNS[turn], how="main()"), env=WATCHED)
    managed.wait_heard("WATCHDOG", count=4)
    managed.hup()
    managed.wait_words("READY", count=2)
    managed.wait_heard("WATCHDOG", since=managed.now(), count=4)
    assert {each.pid for each in managed.manager.heard} == {managed.pid}
    assert managed.stop() == 0


TELLS_WHEN = """
from hotrestart import systemd
def notify(*said, notify=systemd.notify):
    if "WATCHDOG=1" in said:
        report(watchdog=True, at=time.monotonic())
    return notify(*said)
systemd.notify = notify
main()
"""


def test_the_time_between_two_signs_of_life_is_half_of_what_is_allowed(managed: Managed) -> None:
    managed.begin(LIVES.format(turn=TURNS["short"], how=TELLS_WHEN), env={"WATCHDOG_USEC": "400000"})
    managed.wait_report(count=6, watchdog=True)
    times = [float(str(each["at"])) for each in managed.reports(watchdog=True)]
    assert all(after - before > 0.1 for before, after in zip(times, times[2:], strict=False))


HANGS = """
import os, threading, time
import hotrestart

def turns():
    with hotrestart.worker_loop() as loop:
        while loop.running:
            loop.sleep(0.01)
            report(turns=True)

@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        thread = threading.Thread(target=turns)
        thread.start()
        while loop.running:
            loop.sleep(0.01)
            while os.path.exists("hang"):
                report(hangs=True)
                time.sleep(0.01)

main()
"""


def test_another_thread_s_loop_is_no_sign_of_life_of_the_main_thread_s(managed: Managed) -> None:
    managed.begin(HANGS, env={"WATCHDOG_USEC": "20000"})
    managed.wait_heard("WATCHDOG", count=3)
    (managed.folder / "hang").touch()
    managed.wait_report(hangs=True)
    since, turns = managed.now(), len(managed.reports(turns=True))
    managed.wait_report(turns=True, count=turns + 30)
    assert managed.manager.heard[since:] == []
    (managed.folder / "hang").unlink()
    managed.wait_heard("WATCHDOG", since=since)


def test_the_time_is_longer_while_the_program_drains_and_boots(managed: Managed) -> None:
    managed.begin(app("in place"), env=WATCHED)
    for generation in (2, 3):
        since = managed.now()
        managed.hup()
        managed.wait_words("READY", since=since)
        told: list[Any] = [each.said for each in managed.manager.heard[since:] if "WATCHDOG_USEC" in each.said]
        assert [each["WATCHDOG_USEC"] for each in told] == ["100000000", "300000"]
        assert [each["WATCHDOG"] for each in told] == ["1", "1"]
        assert told[1]["READY"] == "1"
        managed.wait_report(ready=generation)


def test_a_time_that_is_long_enough_is_left_as_it_is(managed: Managed) -> None:
    managed.begin(app("in place"), env={"WATCHDOG_USEC": "100000000"})
    since = managed.now()
    managed.hup()
    managed.wait_words("READY", since=since)
    assert not any("WATCHDOG_USEC" in each.said for each in managed.manager.heard)
    assert [each.said["WATCHDOG"] for each in managed.manager.heard if "WATCHDOG" in each.said] == ["1"]


def test_a_supervisor_lives_while_new_code_loads_and_while_nothing_happens(managed: Managed) -> None:
    managed.begin(app("rolling"), env=WATCHED)
    managed.wait_heard("WATCHDOG", count=4)
    managed.deploy(app("rolling", 2, top=WAIT))
    (managed.folder / "wait").touch()
    managed.hup()
    managed.wait_words("RELOADING")
    managed.wait_heard("WATCHDOG", since=managed.now(), count=8)
    assert managed.manager.words()[-1] == "RELOADING"
    (managed.folder / "wait").unlink()
    managed.wait_words("READY", count=2)
    assert {each.pid for each in managed.manager.heard} == {managed.pid}
    assert managed.stop() == 0


@kinds
def test_a_watchdog_that_watches_another_process_is_not_ours(managed: Managed, kind: str) -> None:
    managed.begin(app(kind), env={"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
    managed.hup()
    managed.wait_words("READY", count=2)
    assert not any("WATCHDOG" in name for each in managed.manager.heard for name in each.said)


@pytest.mark.parametrize(
    ("options", "stage", "seconds"),
    [
        (Options(workers=4), "load", 60),
        (Options(workers=4, soak=7), "soak", 7),
        (Options(workers=4), "ready", 90),
        (Options(workers=5, batch=2), "ready", 270),
        (Options(workers=2, batch=9), "ready", 90),
    ],
    ids=["load", "soak", "ready", "batches", "one batch"],
)
def test_how_long_a_stage_may_last(options: Options, stage: str, seconds: float) -> None:
    assert _longest(stage, options) == seconds
