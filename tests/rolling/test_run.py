"""`python -m hotrestart run`: the supervisor around commands that know nothing of it."""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from hotrestart import control, testing
from tests.asking import ask, ask_json, begin, document_of
from tests.conftest import missing
from tests.control.asking import Asking
from tests.harness import CHECKOUT, PATIENCE, clean_environment
from tests.recipes.conftest import held_port
from tests.recipes.load import Client, Load
from tests.rolling.programs import Rolling, Traffic, children_of, is_running
from tests.rolling.test_idle import assert_nobody_wakes_up, keep_apart

RUN = [sys.executable, "-m", "hotrestart", "run"]
SERVER = str(CHECKOUT / "tests" / "apps" / "takes_fds.py")
STAYS = ["sh", "-c", "exec sleep 1000"]

# What a worker says of itself: one line on the report, as Python it was started as.
TELLS = """
import json, os, resource, signal, socket, sys, time
def told(**what):
    fd = os.open(os.environ["REPORT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (json.dumps({"pid": os.getpid(), **what}) + "\\n").encode())
    os.close(fd)
def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(text, "\\0" + os.environ["NOTIFY_SOCKET"][1:])
"""
WAITS = "\nwhile True: signal.pause()\n"


class Run(Rolling):
    """A command under `hotrestart run`."""

    address: tuple[str, int] = ("", 0)

    def begin(self, *options: str, command: list[str], serves: bool = True, **more: object) -> Run:
        self.start_command([*RUN, *options, "--", *command], **more)
        if serves:
            self.wait_log("generation 1 serves")
            listens = re.search(r"listens on 127\.0\.0\.1:(\d+)", self.log())
            if listens is not None:
                self.address = ("127.0.0.1", int(listens[1]))
        return self

    def server(self, *options: str, version: str = "1", **more: object) -> Run:
        """The plain server, in two workers."""
        self.version(version)
        options = ("--workers", "2", "--settle", "0.2", "--listen", "127.0.0.1:0", *options)
        return self.begin(*options, command=[sys.executable, SERVER, str(self.folder / "version")], **more)

    def version(self, version: str) -> None:
        new = self.folder / ".version"
        new.write_text(version)
        new.replace(self.folder / "version")

    def tells(self, source: str, *options: str, **more: object) -> Run:
        """Python code of the test's own, with `told` and `notify`."""
        return self.begin(*options, command=[sys.executable, "-c", TELLS + source], **more)

    def connect(self, job: str) -> socket.socket:
        connection = socket.create_connection(self.address, PATIENCE)
        connection.sendall(job.encode() + b"\n")
        return connection

    def workers(self) -> list[int]:
        return [pid for pid in self.children() if is_running(pid)]

    def wait_count(self, count: int) -> set[int]:
        self.wait_until(lambda: len(self.workers()) == count, f"{count} workers")
        return set(self.workers())


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path) as it:
        yield it


@pytest.fixture
def port():
    with held_port() as number:
        yield number


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def grown(program: Run, serving: int) -> None:
    program.hup()
    program.wait_log(f"generation {serving} serves")


# -- restarts --------------------------------------------------------------------------------------------------------


def test_a_server_that_knows_nothing_of_us_loses_nothing_over_many_restarts(run, full):
    run.server("--settle", "0.05")
    pid, fds = run.pid, 9999
    with Traffic(run) as traffic:
        last = 22 if full else 10
        for generation in range(2, last + 1):
            run.version(str(generation))
            grown(run, generation)
            answers = len(traffic.answers)
            run.wait_until(lambda answers=answers: len(traffic.answers) > answers + 2, "answers")
            run.wait_count(2)
            fds = min(fds, len(run.fds()))  # an old worker may not be forgotten yet
        run.wait_until(lambda: str(last) in traffic.versions(), "the last version")
    assert run.pid == pid
    run.wait_until(lambda: len(run.fds()) == fds, f"{fds} descriptors: {run.fds()}")
    run.assert_no_zombie()


def test_new_workers_are_ready_before_old_ones_are_told_to_end(run):
    source = """
told(started=True)
signal.signal(signal.SIGTERM, lambda *_: (told(term=True), sys.exit()))
while not os.path.exists("go"): time.sleep(0.005)
notify(b"READY=1")
"""
    (run.folder / "go").touch()
    run.tells(source + WAITS, "--workers", "2", "--notify")
    old = run.wait_count(2)
    (run.folder / "go").unlink()
    run.hup()
    run.wait_report(started=True, count=4)
    assert old < set(run.workers())
    assert not run.reports(term=True)
    (run.folder / "go").touch()
    run.wait_log("generation 2 serves")
    run.wait_report(term=True, count=2)
    assert {each["pid"] for each in run.reports(term=True)} == old
    assert not run.wait_count(2) & old


def test_with_batch_new_workers_take_the_place_of_old_ones(run):
    run.server("--batch", "1")
    with Traffic(run):
        run.version("2")
        grown(run, 2)
        run.wait_until(lambda: {run.ask()[1] for _ in range(5)} == {"2"}, "only version 2")


def test_many_hups_lead_to_one_more(run):
    run.server()
    with Traffic(run) as traffic:
        for _ in range(200):
            run.hup()
        run.version("2")
        run.hup()
        run.wait_until(lambda: "2" in traffic.versions(), "version 2")
        run.wait_count(2)
        run.wait_until(lambda: {run.ask()[1] for _ in range(5)} == {"2"}, "only version 2")


# -- new versions that fail ------------------------------------------------------------------------------------------


def release(folder: Path, name: str, source: str) -> None:
    """A release of its own, and the symlink switched to it."""
    (folder / name).mkdir()
    script = folder / name / "worker"
    script.write_text(f"#!{sys.executable}\n{TELLS}{source}")
    script.chmod(0o755)
    link = folder / ".current"
    link.symlink_to(name)
    link.replace(folder / "current")


def test_a_broken_release_is_rolled_back_with_the_reason(run):
    release(run.folder, "good", 'told(started="good")\nnotify(b"READY=1")' + WAITS)
    run.begin("--settle", "30", "--workers", "2", command=["current/worker"])
    old = run.wait_count(2)
    release(run.folder, "broken", "import missing_module")
    run.hup()
    log = run.wait_log("generation 2 failed at stage ready")
    assert "failed at stage ready: ModuleNotFoundError: No module named 'missing_module'" in log
    assert log.count("Traceback (most recent call last):") >= 2  # as it was printed, and below the reason
    assert run.wait_count(2) == old
    release(run.folder, "mended", 'told(started="mended")\nnotify(b"READY=1")' + WAITS)
    grown(run, 3)
    assert len(run.reports(started="mended")) == 2


def test_a_command_that_has_gone_is_named_and_the_old_goes_on(run):
    release(run.folder, "good", 'notify(b"READY=1")' + WAITS)
    run.begin("--notify", command=["current/worker"])
    old = run.wait_count(1)
    (run.folder / "current").unlink()
    run.hup()
    run.wait_log("generation 2 failed at stage load: current/worker cannot be started: No such file or directory")
    assert run.wait_count(1) == old
    release(run.folder, "secret", WAITS)
    (run.folder / "secret" / "worker").chmod(0o644)
    run.hup()
    run.wait_log("current/worker cannot be started: Permission denied")
    assert run.wait_count(1) == old


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["no-such-command"], "at stage load: no-such-command cannot be started: No such file or directory"),
        (["/"], "at stage load: / cannot be started: Permission denied"),
        (["sh", "-c", "exit 3"], "at stage ready: sh ended with status 3"),
        (["sh", "-c", "echo alas >&2; exit 3"], "at stage ready: sh ended with status 3: alas"),
        (["true"], "at stage ready: true ended before it was ready"),
        (["sh", "-c", "kill -KILL $$"], "at stage ready: sh was killed by signal 9 before it was ready"),
    ],
    ids=["missing", "folder", "status", "last-words", "success", "killed"],
)
def test_a_first_generation_that_fails_ends_the_program_with_the_reason(run, command, reason):
    run.begin("--settle", "30", command=command, serves=False)
    assert run.wait_exit() == 1
    assert f"generation 1 failed {reason}" in run.log()


def test_a_worker_that_does_not_get_ready_in_time_is_killed(run):
    run.tells(
        'notify(b"READY=0")\nnotify(b"STATUS=READY=1")' + WAITS, "--notify", "--ready-timeout", "0.5", serves=False
    )
    assert run.wait_exit() == 1
    assert "failed at stage ready: the new code did not get ready within 0.5 s" in run.log()


def test_a_new_worker_that_dies_while_it_soaks_is_rolled_back(run):
    source = f"""
if os.path.exists("new"):
    notify(b"READY=1")
    while not os.path.exists("die"): time.sleep(0.005)
    print("that was all", file=sys.stderr)
    sys.exit(7)
notify(b"READY=1"){WAITS}"""
    run.tells(source, "--notify", "--soak", "5")
    old = run.wait_count(1)
    (run.folder / "new").touch()
    run.hup()
    run.wait_count(2)
    (run.folder / "die").touch()
    run.wait_log("generation 2 failed at stage soak: a worker ended with status 7: that was all")
    assert run.wait_count(1) == old


def test_a_worker_that_has_lived_long_enough_is_replaced_without_a_gap(run):
    run.server("--max-age", "0.5")
    old = run.wait_count(2)
    with Traffic(run):
        run.wait_until(lambda: not old & set(run.workers()), "others")


def test_a_worker_that_cannot_be_replaced_is_tried_again_and_the_log_says_why(run):
    release(run.folder, "good", 'notify(b"READY=1")' + WAITS)
    run.begin("--notify", command=["current/worker"])
    [worker] = run.workers()
    (run.folder / "current").unlink()
    run.kill(worker)
    run.wait_log("hotrestart: current/worker cannot be started: No such file or directory", count=2)
    (run.folder / "current").symlink_to("good")
    run.wait_count(1)


def test_a_worker_that_dies_is_replaced(run):
    run.server()
    old = run.wait_count(2)
    victim = min(old)
    run.kill(victim)
    run.wait_log(f"worker {victim} of generation 1: a worker was killed by signal 9")
    run.wait_until(lambda: len(set(run.workers()) - {victim}) == 2, "a new worker")


# -- more old workers than there is room for ---------------------------------------------------------------------------

BUSY = """
def end(*_):
    while not os.path.exists("done"): time.sleep(0.005)
    sys.exit()
signal.signal(signal.SIGTERM, end)
"""
SERVES = """
signal.signal(signal.SIGUSR1, lambda *_: told(usr1=True))
notify(b"READY=1")
told(ready=True)"""


def crowded(run: Run, source: str) -> Asking:
    """A second restart, to a worker that runs `source`, while the first one's old worker has a job in hand."""
    (run.folder / "source").write_text(SERVES)
    run.tells(f"{BUSY}exec(open('source').read()){WAITS}", "--notify", "--ready-timeout", "10")
    grown(run, 2)
    (run.folder / "source").write_text(source)
    return Asking(control.restart, run.pid, timeout=PATIENCE)


def test_a_worker_that_gets_ready_while_there_is_no_room_for_it_counts_once_there_is(run):
    asking = crowded(run, SERVES)
    run.wait_report(ready=True, count=3)
    assert control.status(run.pid)["state"] == "restarting"  # and what came before the question has been heard
    (run.folder / "done").touch()
    assert asking.result().ok


@pytest.mark.parametrize(
    ("begins", "who"),
    [("told(ready=True)", Path(sys.executable).name), (SERVES, "a worker")],
    ids=["not ready", "ready"],
)
def test_a_worker_that_fails_while_there_is_no_room_for_it_is_a_worker_like_others(run, begins, who):
    wait = "while not os.path.exists('fail'): time.sleep(0.005)\n"
    asking = crowded(run, f"{begins}\n{wait}sys.exit('no database')")
    run.wait_report(ready=True, count=3)
    os.kill(run.pid, signal.SIGUSR1)  # one that is not ready would die of it
    run.wait_report(usr1=True)
    (run.folder / "fail").touch()
    assert asking.result().reason == f"{who} ended with status 1: no database"
    (run.folder / "done").touch()


# -- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda number: number.name)
def test_a_stop_ends_all_with_status_0(run, number):
    run.begin("--workers", "2", "--settle", "0", command=STAYS)
    os.kill(run.pid, number)
    assert run.wait_exit() == 0
    run.wait_gone()


def test_who_ignores_term_is_killed_after_grace(run):
    stubborn = "trap '' TERM; touch stubborn; while :; do sleep 0.1; done"
    run.begin("--settle", "0.1", "--grace", "0.3", command=["sh", "-c", stubborn])
    run.wait_until((run.folder / "stubborn").exists, "its trap")
    run.term()
    assert run.wait_exit() == 0
    assert "it does not end; killing it" in run.log()
    assert "aborting" not in run.log()  # it would dump its core


def test_another_signal_may_ask_for_the_end(run):
    source = "for number in (signal.SIGTERM, signal.SIGQUIT): signal.signal(number, lambda n, _: sys.exit(told(got=n)))"
    run.tells(source + WAITS, "--stop-signal", "quit", "--settle", "0.3")
    run.wait_until(lambda: caught(run.workers()[0]) & 1 << signal.SIGQUIT - 1, "its handlers")
    assert run.stop() == 0
    assert run.reports(got=int(signal.SIGQUIT))


def caught(pid: int) -> int:
    return int(re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1], 16)


@pytest.mark.parametrize("stage", ["ready", "soak", "drain"])
def test_term_at_each_stage(run, stage):
    source = f"""
signal.signal(signal.SIGTERM, lambda *_: (told(term=True), time.sleep(0.3), sys.exit()))
told(started=True)
if not os.path.exists("stuck"):
    notify(b"READY=1"){WAITS}"""
    run.tells(source, "--workers", "2", "--notify", "--soak", "0" if stage == "drain" else "0.3")
    if stage == "ready":
        (run.folder / "stuck").touch()
    run.hup()
    if stage == "drain":
        run.wait_log("generation 2 serves")
    else:
        run.wait_report(started=True, count=3)
    assert run.stop() == 0
    run.wait_gone()


def test_if_the_supervisor_is_killed_its_workers_end_and_what_they_have_started(run):
    run.begin("--workers", "2", "--settle", "0.2", command=["sh", "-c", "sleep 1000 & wait"])
    run.wait_until(lambda: len(run.members()) == 5, "two shells and their children")
    run.kill_supervisor()
    run.wait_gone()


def test_the_stop_signal_is_what_a_killed_supervisor_leaves_behind(run):
    source = 'signal.signal(signal.SIGQUIT, lambda n, _: sys.exit(told(got=n)))\nnotify(b"READY=1")'
    run.tells(source + WAITS, "--stop-signal", "SIGQUIT", "--notify")
    run.kill_supervisor()
    run.wait_report_anyhow(got=int(signal.SIGQUIT))
    run.wait_gone()


def test_what_an_ended_worker_has_started_is_not_left_behind(run):
    run.begin("--settle", "0.2", command=["sh", "-c", "sleep 1000 & echo $! > helper; exec sleep 1000"])
    helper = int(run.wait_until(lambda: read(run.folder / "helper"), "its helper"))
    [worker] = run.workers()
    run.kill(worker)
    run.wait_until(lambda: not is_running(helper), "the end of its helper")


# -- readiness -------------------------------------------------------------------------------------------------------


def test_ready_counts_from_a_process_that_the_worker_has_started(run):
    """As systemd-notify does, which ends at once."""
    source = "\nif os.fork() == 0:\n    notify(b'STATUS=hello\\nREADY=1')\n    os._exit(0)\n"
    run.tells(source + WAITS, "--notify", "--ready-timeout", "30")
    grown(run, 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
@pytest.mark.parametrize("mine", [True, False], ids=["the-worker's", "a-stranger's"])
def test_ready_does_not_count_from_another_user_who_is_not_the_worker(run, mine):
    group = "os.getpgrp()" if mine else "os.setpgid(0, 0)"
    source = f"""
if os.fork() == 0:
    {group}
    os.setuid(65534)
    notify(b"READY=1")
    time.sleep(3)
    os._exit(0)
"""
    run.tells(source + WAITS, "--notify", "--ready-timeout", "60" if mine else "1.5", serves=False)
    if mine:
        run.wait_log("generation 1 serves")
    else:
        assert run.wait_exit() == 1
        assert "did not get ready" in run.log()


def test_a_command_that_says_nothing_is_ready_once_it_has_settled(run):
    started = time.monotonic()
    run.begin("--settle", "1.5", command=STAYS)
    assert time.monotonic() - started >= 1.5


# -- what a worker is started in -------------------------------------------------------------------------------------

INVENTORY = """
here = "/proc/self/fd/"
told(
    fds={fd: os.readlink(here + fd) for fd in os.listdir(here) if os.path.exists(here + fd)},
    env=dict(os.environ), cwd=os.getcwd(), group=os.getpgrp(), nofile=resource.getrlimit(resource.RLIMIT_NOFILE),
    blocked=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    blocking=[os.get_blocking(int(fd)) for fd in range(3, 3 + int(os.environ.get("LISTEN_FDS", 0)))],
)
notify(b"READY=1")
"""


def test_a_worker_has_its_listeners_and_the_leash_and_nothing_else_of_ours(run):
    given, kept = os.pipe()
    where = ["--listen", "127.0.0.1:0", "--listen", "web=udp:127.0.0.1:0", "--listen", "unix:app.sock"]
    source = INVENTORY + WAITS
    env = {"WATCHDOG_USEC": "1", "NOTIFY_SOCKET": "/nowhere", "LISTEN_FDNAMES": "x", "MINE": "kept"}
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (512, most))  # which the supervisor raises for itself
    run.tells(source, "--notify", *where, env=env, pass_fds=[given], preexec_fn=limit)
    for fd in (given, kept):
        os.close(fd)
    told = run.wait_report(group=run.workers()[0])
    assert sorted(map(int, told["fds"])) == [0, 1, 2, 3, 4, 5, 6]
    assert [told["fds"][number].split(":")[0] for number in "3456"] == ["socket", "socket", "socket", "pipe"]
    assert told["blocking"] == [True, True, True]
    pid = str(told["pid"])
    assert (told["env"]["LISTEN_PID"], told["env"]["LISTEN_FDS"]) == (pid, "3")
    assert told["env"]["LISTEN_FDNAMES"] == "unknown:web:unknown"
    assert told["env"]["MINE"] == "kept"
    assert not {"WATCHDOG_USEC", "HOTRESTART"} & set(told["env"])
    assert told["nofile"] == [512, most]
    assert told["blocked"] == []
    assert (run.folder / "app.sock").is_socket()


@pytest.mark.parametrize("from_systemd", [False, True], ids=["bound", "systemd's"])
def test_listeners_need_not_block(run, from_systemd):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        listen = [] if from_systemd else ["--listen", "127.0.0.1:0"]
        start = [*RUN, "--notify", "--nonblocking", *listen, "--", sys.executable, "-c", TELLS + INVENTORY + WAITS]
        if from_systemd:
            start = ["bash", "-c", f'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&{fd} {fd}<&-', "bash", *start]
        run.start_command(start, pass_fds=[fd])
        assert run.wait_report(cwd=str(run.folder))["blocking"] == [False]


def test_without_listeners_nothing_is_said_of_any(run):
    run.tells(INVENTORY + WAITS, "--notify")
    told = run.wait_report(cwd=str(run.folder))
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & set(told["env"])
    assert sorted(map(int, told["fds"])) == [0, 1, 2, 3]  # 3: the leash


def test_signals_are_as_they_were_given(run):
    """What was ignored and blocked when the supervisor was started; and SIGPIPE, which CPython ignores, is not."""

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])

    run.begin("--settle", "9", command=["grep", "Sig", "/proc/self/status"], serves=False, preexec_fn=ignore)
    assert run.wait_exit() == 1
    found = dict(re.findall(r"(Sig\w+):\s*(\w+)", run.log()))
    assert int(found["SigBlk"], 16) == 1 << signal.SIGUSR2 - 1
    glibcs = 1 << 31 | 1 << 32  # two that it keeps to itself, ignored or not as whoever started us has left them
    assert int(found["SigIgn"], 16) & ~glibcs == 1 << signal.SIGHUP - 1


def test_the_directory_is_found_by_its_name_each_time(run):
    for name in ("one", "two"):
        (run.folder / name).mkdir()
        (run.folder / name / "worker").write_text(f"#!/bin/sh\necho {name} > ../which\nexec sleep 1000\n")
        (run.folder / name / "worker").chmod(0o755)
    current = run.folder / "current"
    current.symlink_to("one")
    run.begin("--settle", "0.2", command=["./worker"], cwd=current)
    run.wait_until(lambda: read(run.folder / "which") == "one\n", "the one")
    current.unlink()
    current.symlink_to("two")
    grown(run, 2)
    run.wait_until(lambda: read(run.folder / "which") == "two\n", "the other")


def test_sockets_from_systemd_are_passed_on(run):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        source = "told(name=socket.socket(fileno=3).getsockname(), names=os.environ['LISTEN_FDNAMES'])\n"
        told_of = f'export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web; exec "$@" 3<&{fd} {fd}<&-'
        command = [sys.executable, "-c", TELLS + source + 'notify(b"READY=1")' + WAITS]
        start = ["bash", "-c", told_of, "bash", *RUN, "--notify", "--", *command]
        run.start_command(start, pass_fds=[fd])
        told = run.wait_report(names="web")
        assert tuple(told["name"]) == listener.getsockname()


def test_terminal_signals_are_the_supervisors_business(run):
    run.begin("--settle", "0.2", command=STAYS, start_new_session=True)
    [worker] = run.workers()
    assert os.getpgid(worker) == worker
    assert os.getpgid(run.pid) == run.pid


# -- standard error --------------------------------------------------------------------------------------------------


def test_nothing_that_a_worker_prints_to_standard_error_is_lost_if_it_is_read_slowly(run, tmp_path):
    count = 30000
    source = f"notify(b'READY=1')\nfor n in range({count}): os.write(2, b'line %d %s\\n' % (n, b'x' * 60))\n"
    command = [*RUN, "--notify", "--", sys.executable, "-c", TELLS + source + WAITS]
    env = clean_environment(REPORT=str(run.report_file))
    with subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        found = 0
        patience = threading.Timer(PATIENCE, process.kill)
        patience.start()
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith(b"line "):
                    assert line.split()[1] == b"%d" % found
                    found += 1
                    if found % 1000 == 0:
                        time.sleep(0.01)  # the pipe is full meanwhile
                if found == count:
                    break
        finally:
            process.terminate()
            process.stderr.read()
            patience.cancel()
    assert found == count


def test_a_standard_error_that_nobody_reads_does_not_hold_up_the_supervisor(run, tmp_path):
    source = "\nwhile True: os.write(2, b'x' * 4096)\n"
    read_end, write_end = os.pipe()
    try:
        run.tells(source, "--settle", "0.2", "--workers", "2", serves=False)
        run.wait_log("x" * 4096)
        run.stop()
        command = [*RUN, "--settle", "0.2", "--", sys.executable, "-c", TELLS + source]
        env = clean_environment(REPORT=str(run.report_file))
        with subprocess.Popen(command, env=env, cwd=tmp_path, stderr=write_end) as process:
            while not children_of(process.pid):
                time.sleep(0.005)
            time.sleep(0.3)
            process.terminate()
            assert process.wait(PATIENCE) == 0
    finally:
        os.close(read_end)
        os.close(write_end)


# -- the supervisor --------------------------------------------------------------------------------------------------


def test_the_supervisor_is_small(run):
    run.begin("--settle", "0", command=STAYS)
    rollup = Path(f"/proc/{run.pid}/smaps_rollup").read_text()
    kilobytes = int(re.search(r"Pss_Anon:\s*(\d+)", rollup)[1])
    assert kilobytes < 12000, rollup
    assert "-I -S" in Path(f"/proc/{run.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_an_idle_supervisor_does_not_wake_up(tmp_path, monkeypatch):
    keep_apart(tmp_path, monkeypatch)
    with Run(tmp_path / "program") as run:
        run.server()
        assert_nobody_wakes_up(run, 3)
        grown(run, 2)
        assert_nobody_wakes_up(run, 3)


def test_one_worker_more_and_one_fewer_and_usr1_for_all(run):
    source = """
told(begun=True)
while not os.path.exists("go"): time.sleep(0.005)
signal.signal(signal.SIGUSR1, lambda *_: told(usr1=True))
notify(b"READY=1")
told(ready=True)"""
    (run.folder / "go").touch()
    run.tells(source + WAITS, "--notify")
    (run.folder / "go").unlink()
    os.kill(run.pid, signal.SIGTTIN)
    run.wait_report(begun=True, count=2)
    os.kill(run.pid, signal.SIGUSR1)
    run.wait_report(usr1=True)
    assert len(run.workers()) == 2  # the one that was about to begin has not been killed by it
    (run.folder / "go").touch()
    run.wait_until(lambda: len(run.reports(ready=True)) == 2, "both are ready")
    os.kill(run.pid, signal.SIGTTOU)
    run.wait_count(1)


def test_it_can_be_asked_and_waited_for(run):
    release(run.folder, "good", 'notify(b"READY=1")' + WAITS)
    run.begin("--notify", "--workers", "2", "--pidfile", "run.pid", command=["current/worker"])
    target = str(run.folder / "run.pid")
    assert control.restart(target, timeout=PATIENCE).ok
    release(run.folder, "broken", "import missing_module")
    outcome = control.restart(target, timeout=PATIENCE)
    assert (outcome.ok, outcome.generation, outcome.stage) == (False, 3, "ready")
    assert outcome.reason == "ModuleNotFoundError: No module named 'missing_module'"
    assert "Traceback" in outcome.detail
    status = control.status(target)
    assert (status["kind"], status["generation"], status["command"]) == ("run", 2, ["current/worker"])
    assert {each["pid"] for each in status["workers"] if each["generation"] == 2} == run.wait_count(2)
    control.stop(target, timeout=PATIENCE)
    assert run.wait_exit() == 0
    assert not Path(target).exists()


def test_the_command_line_tells_what_becomes_of_it(run):
    """Each exit status, from a real run of its cause."""
    release(run.folder, "good", 'notify(b"READY=1")' + WAITS)
    run.begin("--notify", "--workers", "2", command=["current/worker"])
    assert ask_json("restart", run.pid, status=0)["generation"] == 2

    release(run.folder, "broken", "import missing_module")
    ran = ask("restart", run.pid)
    reason = "ModuleNotFoundError: No module named 'missing_module'"
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"hotrestart: generation 3 failed at stage ready: {reason}\n    Traceback (most")
    assert ran.stderr.endswith("\nthe old code still serves\n")
    document = ask_json("restart", run.pid, status=1)
    assert (document["reason"], document["stage"]) == (reason, "ready")
    program = ask_json("status", run.pid, status=0)["program"]
    assert (program["kind"], program["command"], program["generation"]) == ("run", ["current/worker"], 2)
    assert ask_json("scale", run.pid, "+1", status=0)["workers"] == 3

    release(run.folder, "stuck", "told(stuck=True)" + WAITS)
    with begin("restart", run.pid, "--json") as asking:
        run.wait_report(stuck=True)
        ran = ask("restart", run.pid, "--timeout", "0.2")
        assert (ran.returncode, ran.stderr) == (4, f"hotrestart: no answer from process {run.pid} within 0.2 s\n")
        assert ask_json("status", run.pid, status=0)["program"]["state"] == "restarting"
        assert ask("stop", run.pid).stdout == "stopped\n"
        assert "stop" in document_of(asking.communicate(timeout=PATIENCE)[0], 3)["reason"]
    assert run.wait_exit() == 0
    assert ask_json("restart", run.pid, status=3)["reason"] == f"there is no process {run.pid}"


def test_the_command_line_tells_that_it_has_been_killed(run):
    release(run.folder, "good", 'notify(b"READY=1")' + WAITS)
    run.begin("--notify", command=["current/worker"])
    release(run.folder, "stuck", "told(stuck=True)" + WAITS)
    with begin("restart", run.pid, "--json") as asking:
        run.wait_report(stuck=True)
        run.kill_supervisor()
        assert f"process {run.pid} has died" in document_of(asking.communicate(timeout=PATIENCE)[0], 3)["reason"]
    run.wait_gone()


# -- a server that people have ---------------------------------------------------------------------------------------

APPLICATION = """
import os, socket
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
                notify.sendto(b"READY=1", "\\0" + os.environ["NOTIFY_SOCKET"][1:])
            await send({"type": "lifespan.startup.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"VERSION %d" % os.getpid()})
"""


@pytest.mark.skipif(importlib.util.find_spec("uvicorn") is None, reason="uvicorn is not installed")
def test_uvicorn_with_new_code_beside_the_old(run):
    """What uvicorn itself drops when it is told to end, a connection that it has accepted and not read, is its own."""

    def deploy(version: str, source: str = APPLICATION) -> None:
        (run.folder / ".app").write_text(source.replace("VERSION", version))
        (run.folder / ".app").replace(run.folder / "served.py")

    def ask() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{run.address[1]}/", timeout=PATIENCE) as answer:
            return answer.read().decode().split()[0]

    deploy("one")
    command = [sys.executable, "-B", "-m", "uvicorn", "served:app", "--fd", "3"]
    run.begin("--workers", "2", "--settle", "30", "--listen", "127.0.0.1:0", command=command)
    assert ask() == "one"
    deploy("two")
    grown(run, 2)
    run.wait_count(2)
    assert {ask() for _ in range(10)} == {"two"}
    deploy("three", "import missing_module")
    run.hup()
    run.wait_log("generation 3 failed at stage ready: ModuleNotFoundError: No module named 'missing_module'")
    run.wait_count(2)
    assert {ask() for _ in range(10)} == {"two"}


@pytest.mark.skipif(importlib.util.find_spec("uvicorn") is None, reason="uvicorn is not installed")
def test_uvicorn_under_load_loses_nothing_but_what_it_drops_itself(run, full, monkeypatch):
    """A worker of uvicorn that is told to end drops, at one moment, connections that it has accepted and not read. So a
    request can need another connection once for each worker that ends, while it ends; and none can be refused."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    source = """
async def app(scope, receive, send):
    headers = [(b"content-length", b"%d" % len(b"VERSION"))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"VERSION"})
"""

    def deploy(version: int) -> None:
        (run.folder / ".app").write_text(source.replace("VERSION", str(version)))
        (run.folder / ".app").replace(run.folder / "served.py")

    deploy(1)
    command = ["uvicorn", "served:app", "--fd", "3", "--no-access-log"]
    run.begin("--workers", "2", "--settle", "1", "--listen", "127.0.0.1:0", command=command)
    clients, reloads, workers = 6, 20 if full else 3, 2
    asker = Asker(run.address[1], most=1 + workers)
    restarts: list[tuple[float, float]] = []
    with testing.Traffic(asker, clients=clients, pause=0.001) as traffic:
        traffic.wait_for(1, timeout=PATIENCE)
        for version in range(2, 2 + reloads):
            deploy(version)
            began = time.monotonic()
            assert control.restart(run.pid, timeout=PATIENCE).generation == version
            run.wait_count(workers)
            restarts.append((began, time.monotonic()))
            traffic.wait_for(version, timeout=PATIENCE)
    traffic.check()
    assert {each.answer for each in traffic.answers} == set(range(1, 2 + reloads))
    assert len(asker.drops) <= clients * workers * reloads
    for connected, dropped in asker.drops:
        assert any(connected < ended and dropped > began for began, ended in restarts), f"{asker.drops}, {restarts}"


class Asker:
    """Asks up to three times on a connection, and once more on `most` connections at the most, if one is dropped."""

    def __init__(self, port: int, *, most: int) -> None:
        self.port, self.most = port, most
        self.drops: list[tuple[float, float]] = []  # when it was connected, when it saw the end

    def __call__(self, number: int) -> int:
        for _ in range(self.most):
            connected = time.monotonic()
            with Client(self.port) as client:  # that it is refused is nobody's right
                try:
                    for _ in range(number % 3):
                        client.ask(keep=True)
                    return int(client.ask(keep=False))
                except (EOFError, ConnectionError):
                    self.drops.append((connected, time.monotonic()))
        raise ConnectionError(f"dropped {self.most} times")


NGINX = """
user root;
pid nginx.pid;
lock_file nginx.lock;
error_log stderr notice;
worker_processes 2;
events { worker_connections 512; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server { listen 127.0.0.1:PORT; location / { return 200 "VERSION"; } }
}
"""


def test_nginx_drops_no_new_connection(run, port, full):
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        missing("nginx (Debian: apt-get install nginx-light)")

    def deploy(version: int) -> None:
        (run.folder / ".conf").write_text(NGINX.replace("PORT", str(port)).replace("VERSION", str(version)))
        (run.folder / ".conf").replace(run.folder / "nginx.conf")

    deploy(1)
    options = ["--workers", "2", "--settle", "0.5", "--nonblocking", "--stop-signal", "QUIT"]
    options += ["--listen", f"127.0.0.1:{port}"]
    command = [nginx, "-p", str(run.folder), "-c", "nginx.conf", "-g", "daemon off;"]
    run.begin(*options, command=["env", "NGINX=3;", *command])
    reloads = 20 if full else 3
    with Load(port, new=6, kept=0, pausing=0) as load:
        load.wait_for(run, 1)
        for version in range(2, 2 + reloads):
            deploy(version)
            assert control.restart(run.pid, timeout=PATIENCE).generation == version
            load.wait_for(run, version, alone=True)
    load.check(1 + reloads)
    with Client(port) as early:  # is accepted, and says nothing until those who have it are asked to end
        processes = run.log().count("gracefully shutting down")
        assert control.restart(run.pid, timeout=PATIENCE).ok
        run.wait_log("gracefully shutting down", count=processes + 4)
        assert int(early.ask(keep=False)) == 1 + reloads
    run.wait_count(2)
    assert run.stop() == 0
    assert "it does not end" not in run.log()


# -- the command line ------------------------------------------------------------------------------------------------


def refused(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([*RUN, *arguments], capture_output=True, text=True, env=clean_environment(), timeout=PATIENCE)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "which command?"),
        (["--"], "which command?"),
        (["--workers", "0", "--", "true"], "workers is a number, 1 or more"),
        (["--workers", "two", "--", "true"], "--workers"),
        (["--batch", "0", "--", "true"], "batch is a number, 1 or more"),
        (["--grace", "-1", "--", "true"], "grace is a number of seconds"),
        (["--grace", "nan", "--", "true"], "grace is a number of seconds"),
        (["--settle", "nan", "--", "true"], "--settle is 0 or more seconds"),
        (["--settle", "60", "--", "true"], "less than --ready-timeout"),
        (["--settle", "1", "--notify", "--", "true"], "not allowed with"),
        (["--stop-signal", "NONE", "--", "true"], "--stop-signal is a name"),
        (["--listen", "8000", "--", "true"], "the host is missing"),
        (["--listen", "web=127.0.0.1:99999", "--", "true"], "the port is a number from 0 to 65535"),
        (["--listen", "unix:", "--", "true"], "the path is missing"),
    ],
    ids=lambda value: "-".join(value).strip("-") or "nothing" if isinstance(value, list) else "",
)
def test_wrong_usage_is_refused_with_status_2(arguments, why):
    status, said = refused(*arguments)
    assert status == 2
    assert why in said


def test_an_address_that_cannot_be_bound_is_told_with_status_1():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, said = refused("--listen", f"127.0.0.1:{taken.getsockname()[1]}", "--", "true")
    assert status == 1
    assert "Address already in use" in said
    assert said.count("\n") == 1


def test_the_command_may_have_options_like_ours(run):
    run.begin(
        "--settle", "0.1", command=["sh", "-c", 'echo "$@" > arguments; exec sleep 1000', "sh", "--", "--workers", "x"]
    )
    run.wait_until(lambda: read(run.folder / "arguments") == "-- --workers x\n", "the arguments")
