"""A rolling program from its start to its end, as its user, its operator and its host see it: real processes."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import hotrestart
from tests.harness import CHECKOUT, PATIENCE, clean_environment, copy_library
from tests.rolling.programs import Rolling, Traffic, answer_on, children_of, is_running, service


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Rolling]:
    with Rolling(tmp_path / "program") as each:
        yield each


def voluntary_switches(pid: int) -> int:
    """How often the process has gone to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


# -- the first start -----------------------------------------------------------------------------------------------


def test_the_process_that_was_started_becomes_the_supervisor_and_workers_serve_beside_it(program: Rolling) -> None:
    program.launch(service())
    answer, version, pid = program.ask()
    assert (answer, version) == ("here", "1")
    assert pid in program.wait_workers(2)
    assert pid != program.pid
    assert is_running(program.pid)
    assert program.members() == {program.pid, *program.servers(), *program.workers()}


def test_the_supervisor_has_nothing_of_the_program(program: Rolling) -> None:
    program.launch(service(top="import decimal, sqlite3; heap = bytearray(50_000_000)"))
    maps = Path(f"/proc/{program.pid}/maps").read_text()
    for library in ("_decimal", "_sqlite3"):
        assert library not in maps
    assert "_decimal" in Path(f"/proc/{program.workers()[0]}/maps").read_text()
    rollup = Path(f"/proc/{program.pid}/smaps_rollup").read_text()
    assert int(rollup.split("\nPss:")[1].split()[0]) * 1024 < 15_000_000
    arguments = Path(f"/proc/{program.pid}/cmdline").read_bytes().split(b"\0")
    assert arguments[0] == program.python.encode()
    assert arguments[1:3] == [b"-I", b"-S"]
    assert not [fd for fd in program.fds() if "report.jsonl" in fd]


def test_the_first_workers_are_forked_from_the_process_that_loaded_the_program(program: Rolling) -> None:
    program.launch(service(options="workers=3"), ready=3)
    assert len(program.reports(imported=True)) == 1
    imported_in = program.pid  # the process that the user has started; its copy is the fork server
    assert program.reports(imported=True)[0]["pid"] == imported_in
    assert len(program.servers()) == 1


def test_later_generations_are_loaded_once_in_a_fresh_interpreter(program: Rolling) -> None:
    program.launch(service())
    program.reload(service(2), expect=2)
    loaded = program.reports(imported=True, version=2)
    assert [each["generation"] for each in loaded] == [2]
    assert loaded[0]["pid"] not in (program.pid, *program.workers())


def test_threads_at_import_give_the_first_generation_a_fresh_fork_server(program: Rolling) -> None:
    top = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    program.launch(service(top=top))
    first, second = program.reports(imported=True)
    assert first["pid"] == program.pid
    assert second["pid"] in program.servers()
    program.reload(service(2, top=top), expect=2)


def test_main_never_returns_and_the_clauses_around_it_run_once_in_the_fork_server(program: Rolling) -> None:
    source = service(top="import atexit; atexit.register(lambda: told(at='exit'))").replace(
        "    main()\n", "    try:\n        main()\n    finally:\n        told(at='finally')\n"
    )
    program.launch(source)
    server = program.servers()[0]
    program.reload(source.replace("VERSION = 1", "VERSION = 2"), expect=2)
    program.wait_report(at="exit", version=1)
    assert [each["pid"] for each in program.reports(at="finally")] == [server]
    assert [each["pid"] for each in program.reports(at="exit")] == [server]
    assert program.stop() == 0
    program.wait_gone()
    for at in ("exit", "finally"):
        assert [each["version"] for each in program.reports(at=at)] == [1, 2]
    assert not program.reports(returned=True)


def test_exit_handlers_of_a_worker_run_once_in_that_worker(program: Rolling) -> None:
    program.launch(service(first="import atexit; atexit.register(lambda: told(at='exit'))"))
    workers = program.wait_workers(2)
    assert program.stop() == 0
    assert {each["pid"] for each in program.reports(at="exit")} == workers
    assert len(program.reports(at="exit")) == 2


@pytest.mark.parametrize("arguments", [("app.py",), ("-m", "app"), ("-m", "package"), ("-O", "-X", "dev", "app.py")])
def test_it_restarts_however_it_was_launched(program: Rolling, arguments: tuple[str, ...]) -> None:
    name = "package/__main__.py" if arguments[-1] == "package" else "app.py"
    program.deploy("", "package/__init__.py")
    program.deploy(service(), name)
    program.start(*arguments)
    program.wait_log("generation 1 serves")
    program.deploy(service(2), name)
    program.reload(expect=2)
    program.wait_workers(2, version=2)
    assert program.ask()[1] == "2"
    assert program.evaluate("sys.flags.optimize") == ("1" if "-O" in arguments else "0")


def test_the_program_is_stopped_with_status_0(program: Rolling) -> None:
    program.launch(service())
    assert program.stop() == 0
    assert len(program.reports(drained="stop")) == 2


# -- restarts ------------------------------------------------------------------------------------------------------


def test_a_hup_brings_new_code_without_losing_a_request_and_the_pid_stays(program: Rolling) -> None:
    program.launch(service())
    with Traffic(program) as traffic:
        for version in range(2, 6):
            program.reload(service(version), expect=version)
            program.wait_workers(2, version=version)
        program.wait_until(lambda: "5" in traffic.versions(), "the newest code")
    assert is_running(program.pid)
    program.wait_until(lambda: len(program.servers()) == 1, "the old fork servers end")
    program.assert_no_zombie()


def test_a_job_in_hand_is_finished_by_the_old_code_while_the_new_serves(program: Rolling) -> None:
    program.launch(service())
    with program.connect("hold gate") as connection:
        holder = program.wait_report(job="hold gate")["pid"]
        program.reload(service(2), expect=2)
        program.wait_until(lambda: len(program.workers()) == 3, "the other old worker ends")
        assert program.ask()[1] == "2"
        assert is_running(int(str(holder)))
        (program.folder / "gate").touch()
        assert answer_on(connection) == ("hold", "1", holder)
    program.wait_report(drained="stop", pid=holder)
    program.wait_workers(2, version=2)


def test_a_burst_of_hups_makes_two_restarts_at_most_and_ends_with_the_newest_code(program: Rolling) -> None:
    program.launch(service())
    program.deploy(service(2, top="wait_for('gate')"))
    program.hup()
    program.wait_report(imported=True, version=2)
    for version in range(3, 203):
        program.deploy(service(version))
        program.hup()
    (program.folder / "gate").touch()
    program.wait_workers(2, version=202)
    program.wait_until(lambda: len(program.servers()) == 1, "one generation is left")
    assert [each["version"] for each in program.reports(imported=True)] == [1, 2, 202]


def test_hups_as_fast_as_reloads_end_with_the_newest_code(program: Rolling) -> None:
    program.launch(service())
    with Traffic(program):
        for version in range(2, 102):
            program.deploy(service(version))
            program.hup()
            threading_event_wait(0.002 * (version % 10))
        program.wait_workers(2, version=101)
    program.wait_until(lambda: len(program.servers()) == 1, "one generation is left")
    program.assert_no_zombie()


def test_a_hup_while_a_restart_is_under_way_is_kept_for_the_next(program: Rolling) -> None:
    program.launch(service())
    program.deploy(service(2, top="wait_for('gate')"))
    program.hup()
    program.wait_report(imported=True, version=2)
    program.deploy(service(3))
    program.hup()
    (program.folder / "gate").touch()
    program.wait_log("generation 3 serves")
    program.wait_workers(2, version=3)


def test_a_hup_in_the_first_boot_is_kept(program: Rolling) -> None:
    program.deploy(service(first="wait_for('gate')"))
    program.start()
    program.wait_until(lambda: takes_hups(program.pid), "main() is entered")
    program.hup()
    (program.folder / "gate").touch()
    program.wait_log("generation 2 serves")


def test_a_hup_at_any_moment_of_the_first_boot_is_kept(program: Rolling, moment: float) -> None:
    """From the call of main() on: through the fork of the first fork server and the exec into the supervisor."""
    program.deploy(service())
    program.start()
    program.wait_until(lambda: takes_hups(program.pid), "main() is entered")
    threading_event_wait(moment * 0.035)
    program.hup()
    program.wait_log("generation 2 serves")


@pytest.mark.parametrize("step", ["os.fork", "os.exec"])
def test_a_hup_within_the_first_start_is_kept(program: Rolling, step: str) -> None:
    """Sent by the process to itself, right before it forks the fork server and right before it is the supervisor."""
    top = f"""
once = [os.getpid()]
def hup(event, arguments):
    if event == {step!r} and os.getpid() in once:
        os.kill(once.pop(), signal.SIGHUP)
sys.addaudithook(hup)
"""
    program.deploy(service(top=top))
    program.start()
    program.wait_log("generation 2 serves")


def takes_hups(pid: int) -> bool:
    """Whether HUP is blocked or has a handler: it does not kill any more."""
    lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    return any(int(lines[name], 16) & 1 << signal.SIGHUP - 1 for name in ("SigBlk", "SigCgt"))


def threading_event_wait(seconds: float) -> None:
    """Let some time pass: the moment is what is varied, and every one is fine."""
    import threading

    threading.Event().wait(seconds)


def test_a_worker_asks_for_a_restart(program: Rolling) -> None:
    program.launch(service())
    program.deploy(service(2))
    program.ask("exec hotrestart.request_restart()")
    program.wait_log("generation 2 serves")
    program.wait_workers(2, version=2)


def test_a_worker_asks_for_the_end(program: Rolling) -> None:
    program.launch(service())
    program.ask("exec hotrestart.request_stop()")
    assert program.wait_exit() == 0
    assert len(program.reports(drained="stop")) == 2


def test_a_changed_number_of_workers_takes_effect(program: Rolling) -> None:
    program.launch(service())
    program.reload(service(2, "workers=4"), expect=2)
    program.wait_workers(4, version=2)
    program.reload(service(3, "workers=1"), expect=3)
    program.wait_workers(1, version=3)


def test_with_batch_workers_are_replaced_one_at_a_time(program: Rolling) -> None:
    options = "workers=3, batch=1"
    program.launch(service(1, options), ready=3)
    with Traffic(program):
        program.deploy(service(2, options))
        program.hup()
        most, least = program.most_and_least(lambda: "generation 2 serves" in program.log(), "generation 2 serves")
        program.wait_workers(3, version=2)
    assert most <= 4
    assert least >= 3
    ready = [each["pid"] for each in program.reports(ready=True, version=2)]
    drained = [each["pid"] for each in program.reports(version=1) if "drained" in each]
    assert len(ready) == len(drained) == 3


def test_new_code_brings_its_own_batch(program: Rolling) -> None:
    program.launch(service(1, "workers=3"), ready=3)
    gated = "wait_for('gate-%d' % len(os.listdir('started'))) if os.makedirs('started/%d' % os.getpid()) else None"
    program.deploy(service(2, "workers=3, batch=1", first=f"told(born=True); {gated.replace('if', 'if not')}"))
    program.hup()
    for number in (1, 2, 3):
        program.wait_report(born=True, version=2, count=number)
        assert len(program.reports(born=True, version=2)) == number
        (program.folder / f"gate-{number}").touch()
        program.wait_report(ready=True, version=2, count=number)
    program.wait_workers(3, version=2)


def test_soak_keeps_the_old_until_it_has_passed(program: Rolling) -> None:
    program.launch(service())
    old = program.wait_workers(2)
    program.deploy(service(2, "workers=2, soak=1.0"))
    began = time.monotonic()
    program.hup()
    program.wait_report(ready=True, version=2, count=2)
    are_kept = all(is_running(pid) for pid in old) and not program.reports(drained="stop")
    assert are_kept or time.monotonic() - began > 1.0  # we have been held up ourselves
    log = program.wait_log("generation 2 serves")
    soaked = float(log.split("generation 2 serves")[1].split("soak ")[1].split()[0])
    assert soaked >= 1.0
    program.wait_workers(2, version=2)


def test_without_preload_each_worker_is_an_interpreter_of_its_own(program: Rolling) -> None:
    options = "workers=2, preload=False"
    program.launch(service(1, options))
    first = set(program.servers())  # nobody forks: workers are the supervisor's own children
    assert {each["pid"] for each in program.reports(ready=True)} == first
    # The first to load it is the process that the user has started, and goes on as one of them.
    assert len(program.reports(imported=True)) == 2
    with Traffic(program) as traffic:
        program.reload(service(2, options), expect=2)
        program.wait_report(ready=True, version=2, count=2)  # a worker tells the supervisor first, and then us
        second = {int(str(each["pid"])) for each in program.reports(ready=True, version=2)}
        program.wait_until(lambda: set(program.servers()) == second, "the old ones end")
        program.wait_until(lambda: "2" in traffic.versions(), "the new code")
    assert {each["pid"] for each in program.reports(imported=True, version=2)} == second
    program.kill(second.pop())
    program.wait_report(ready=True, version=2, count=3)


def test_a_stop_that_comes_right_before_a_process_becomes_a_worker_is_heard(program: Rolling) -> None:
    """It has said that it has loaded the program, and is busy; the supervisor has made it a worker meanwhile."""
    busy = "import gc; gc.collect = lambda *_: (told(busy=True), time.sleep(1.0))"
    program.deploy(service(1, "workers=1, preload=False, grace=10", top=busy))
    program.start()
    program.wait_report(busy=True)
    program.term()
    assert program.wait_exit() == 0
    assert "aborting" not in program.log()


def test_a_fork_server_that_does_not_fork_is_replaced(program: Rolling) -> None:
    program.launch(service(1, "workers=2, ready_timeout=5"))
    (server,) = program.servers()
    victim, other = program.wait_workers(2)
    os.kill(server, signal.SIGSTOP)
    program.kill(victim)
    program.wait_report(ready=True, count=3)
    assert is_running(other)
    assert "it does not fork" in program.log()
    assert server not in program.servers()
    assert program.stop() == 0


def test_a_program_changes_between_preload_and_none(program: Rolling) -> None:
    program.launch(service())
    program.reload(service(2, "workers=2, preload=False"), expect=2)
    program.wait_until(lambda: len(program.servers()) == 2, "two workers and no fork server")
    program.reload(service(3), expect=3)
    program.wait_workers(2, version=3)
    program.wait_report(drained="stop", version=2, count=2)  # children of the supervisor, as the others are not
    assert program.ask()[1] == "3"


def test_a_switched_release_link_is_followed_and_the_old_release_can_go(program: Rolling) -> None:
    current = program.folder / "current"
    for number in (1, 2):
        program.deploy(service(number), f"release-{number}/app.py")
    current.symlink_to("release-1")
    program.start(cwd=current)
    program.wait_log("generation 1 serves")
    shutil.rmtree(program.folder / "release-1")
    current.unlink()
    current.symlink_to("release-2")
    program.reload(expect=2)
    program.wait_workers(2, version=2)
    assert program.evaluate("os.path.basename(os.getcwd())") == "release-2"


def test_every_generation_begins_with_the_environment_of_the_first(program: Rolling) -> None:
    top = "os.environ['GROWS'] = os.environ.get('GROWS', '') + 'x'; os.environ.pop('ONCE', '') or told(gone=True)"
    program.deploy(service(top=top))
    program.start(env={"ONCE": "secret"})
    program.wait_log("generation 1 serves")
    for generation in (2, 3):
        program.reload(service(generation, top=top), expect=generation)
        program.wait_workers(2, version=generation)
        assert program.evaluate("os.environ['GROWS']") == "x"
        assert program.evaluate("'HOTRESTART' in os.environ") == "False"
    assert not program.told("gone")


def test_a_program_without_standard_streams_restarts(program: Rolling) -> None:
    """Descriptors 0 to 2 must not become a lifeline or a listener that somebody writes to."""
    program.deploy(service())
    closed = "import os, sys; os.closerange(0, 3); os.execv(sys.executable, [sys.executable, 'app.py'])"
    program.start_command([program.python, "-c", closed])
    program.wait_report(ready=True, count=2)
    with Traffic(program):
        for generation in (2, 3):
            program.deploy(service(generation))
            program.hup()
            program.wait_workers(2, version=generation)
    program.wait_until(lambda: len(program.members()) == 4, "the old generations end")
    assert program.stop() == 0


def test_a_program_whose_sys_stderr_is_no_file_restarts(program: Rolling) -> None:
    top = "import io; sys.stderr = io.StringIO()"
    program.launch(service(top=top))
    program.reload(service(2, top=top), expect=2)
    program.wait_workers(2, version=2)


@pytest.mark.parametrize("reader", ["is gone", "does not read"])
def test_a_standard_error_that_nobody_reads_holds_nothing_up(program: Rolling, reader: str) -> None:
    read_end, write_end = os.pipe()
    try:
        program.deploy(service())
        take_it = f"import os, sys; os.dup2({write_end}, 2); os.execv(sys.executable, [sys.executable, 'app.py'])"
        program.start_command([program.python, "-c", take_it], pass_fds=[write_end])
        program.wait_report(ready=True, count=2)
        if reader == "is gone":
            os.close(read_end)
            read_end = -1
        else:
            os.set_blocking(write_end, False)
            try:
                while True:
                    os.write(write_end, bytes(4096))
            except BlockingIOError:
                os.set_blocking(write_end, True)
        with Traffic(program):
            program.deploy("report(tried=True)\nimport missing_module")
            program.hup()
            program.wait_report(tried=True)
            program.wait_until(lambda: len(program.servers()) == 1, "it is thrown away")
            program.deploy(service(3))
            program.hup()
            program.wait_workers(2, version=3)
    finally:
        for fd in (read_end, write_end):
            if fd != -1:
                os.close(fd)
    assert program.stop() == 0


def test_a_supervisor_that_runs_out_of_descriptors_recovers(program: Rolling) -> None:
    program.launch(service())
    limits = resource.prlimit(program.pid, resource.RLIMIT_NOFILE)
    workers = program.wait_workers(2)
    used = max(int(each.split()[0]) for each in program.fds()) + 1
    resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (used, limits[1]))
    program.deploy(service(2))
    program.hup()
    program.wait_log("generation 2 failed")
    assert program.wait_workers(2, version=1) == workers
    victim = workers.pop()
    program.kill(victim)
    program.wait_until(lambda: not is_running(victim), "it is gone")
    for _ in range(20):
        assert program.ask()[1] == "1"
    resource.prlimit(program.pid, resource.RLIMIT_NOFILE, limits)
    program.wait_until(lambda: len(program.workers()) == 2, "two workers again")
    program.reload(service(3), expect=3)
    program.wait_workers(2, version=3)
    program.wait_until(lambda: len(program.members()) == 4, "nothing else is left")


# -- the supervisor's own exec -


def on_a_copy(program: Rolling, source: str) -> str:
    """The source, with another installation of hotrestart."""
    other = program.folder / "other"
    if not other.exists():
        copy_library(other)
    return f"import sys; sys.path.insert(0, {str(other)!r})\n{source}"


def library_of_the_supervisor(program: Rolling) -> str:
    arguments = Path(f"/proc/{program.pid}/cmdline").read_text().split("\0")
    return arguments[6] if len(arguments) > 6 else ""  # in the midst of an exec there are none


def test_the_supervisor_moves_to_the_library_of_the_new_code_and_nothing_is_lost(program: Rolling) -> None:
    program.launch(service(options="workers=2, timeout=3600"))
    with program.connect("hold gate") as connection:
        program.wait_report(job="hold gate")
        with Traffic(program):
            program.reload(on_a_copy(program, service(2)), expect=2)
            program.wait_report(ready=True, version=2, count=2)
            assert library_of_the_supervisor(program) == str(CHECKOUT)  # an old worker drains
            (program.folder / "gate").touch()
            assert answer_on(connection)[1] == "1"
            moved = str(program.folder / "other")
            program.wait_until(lambda: library_of_the_supervisor(program) == moved, "it moves")
    workers = program.wait_workers(2, version=2)
    victim = workers.pop()
    program.kill(victim)
    assert workers < program.wait_workers(2, version=2, without={victim})
    os.kill(program.pid, signal.SIGTTIN)
    program.wait_workers(3, version=2)
    with Traffic(program):
        program.reload(service(3), expect=3)
        program.wait_workers(3, version=3)
        program.wait_until(lambda: library_of_the_supervisor(program) == str(CHECKOUT), "it moves back")
    assert len({tuple(address) for address in program.told("address")}) == 1
    program.assert_no_zombie()
    assert program.stop() == 0


def test_moving_leaks_no_descriptor(program: Rolling) -> None:
    program.launch(service())
    counts = []
    for generation in range(2, 8):
        there = generation % 2 == 0
        program.reload(on_a_copy(program, service(generation)) if there else service(generation), expect=generation)
        wanted = str(program.folder / "other") if there else str(CHECKOUT)
        program.wait_until(lambda: library_of_the_supervisor(program) == wanted, "it moves")  # noqa: B023
        program.wait_workers(2, version=generation)
        program.wait_until(lambda: len(program.members()) == 4, "the old generation ends")
        counts.append(len(program.fds()))
    # One more: the pipe of what a generation prints, if it has not been closed yet.
    program.wait_until(lambda: len(program.fds()) <= min(counts[:3]) + 1, "as many descriptors as at first")


@pytest.mark.parametrize("end", ["HUP", "TERM"])
def test_no_signal_is_lost_while_the_supervisor_moves(program: Rolling, end: str, moment: float) -> None:
    program.launch(service())
    program.reload(on_a_copy(program, service(2)), expect=2)
    if end == "TERM":
        threading_event_wait(moment * 0.03)
        program.term()
        assert program.wait_exit() == 0
        program.wait_gone()
        return
    program.deploy(service(3))
    for _ in range(10):
        program.hup()
        threading_event_wait(moment * 0.008)
    program.wait_workers(2, version=3)
    last = [each["generation"] for each in program.reports(imported=True)]
    assert max(map(str, last)) >= "3"


# -- as pid 1 -


def test_as_pid_1_it_restarts_reaps_strangers_and_ends(program: Rolling) -> None:
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("unshare is not allowed here")
    program.deploy(service())
    (program.folder / "runtime").mkdir(mode=0o700)  # programs out here would seem dead to it
    program.start_command(
        [*unshare, program.python, "app.py"], env={"XDG_RUNTIME_DIR": str(program.folder / "runtime")}
    )
    program.wait_report(ready=True, count=2)
    supervisor = program.children()[0]
    orphan = "os.system('sh -c \"sleep 0.2 & exit 0\"')"
    for generation in (2, 3):
        for _ in range(5):
            program.ask(f"exec {orphan}")
        program.deploy(service(generation))
        os.kill(supervisor, signal.SIGHUP)
        program.wait_report(ready=True, version=generation, count=2)
        program.wait_until(lambda: program.ask()[1] == str(generation), "the new code")  # noqa: B023
        program.wait_until(lambda: len(children_of(supervisor)) == 1, "only the fork server is left, and no zombie")
    os.kill(supervisor, signal.SIGTERM)
    assert program.wait_exit() == 0


# -- listeners -----------------------------------------------------------------------------------------------------


def test_a_port_that_the_kernel_chose_is_kept_over_generations(program: Rolling) -> None:
    program.launch(service())
    for version in (2, 3):
        program.reload(service(version), expect=version)
    assert len({tuple(address) for address in program.told("address")}) == 1


def test_a_listener_made_at_import_is_kept_over_generations(program: Rolling) -> None:
    top = "bound = hotrestart.listen('127.0.0.1:0', name='early'); told(early=bound.getsockname()[1])"
    program.launch(service(top=top))
    program.reload(service(2, top=top), expect=2)
    first, second = program.told("early")
    assert first == second
    with socket.create_connection(("127.0.0.1", first)):
        pass


def test_a_unix_socket_serves_over_generations(program: Rolling) -> None:
    program.launch(service(address="unix:service.sock"))
    os.chdir(program.folder)  # a path in a socket's address is 107 bytes at most
    with Traffic(program):
        program.reload(service(2, address="unix:service.sock"), expect=2)
        program.wait_workers(2, version=2)
        program.wait_until(lambda: program.ask()[1] == "2", "the new code")


def test_a_datagram_socket_is_kept_over_generations(program: Rolling) -> None:
    def udp(version: int) -> str:
        first = (
            "udp = hotrestart.listen('udp:127.0.0.1:0'); told(udp=udp.getsockname()[1]); "
            "threading.Thread(target=lambda: [told(got=udp.recv(99).decode()) for _ in iter(int, 1)"
            " if loop_wait(udp)], daemon=True).start()"
        )
        top = "import select\ndef loop_wait(file): return select.select([file], [], [])[0]"
        return service(version, "workers=1", top=top, first=first)

    program.launch(udp(1), ready=1)
    program.reload(udp(2), expect=2)
    program.wait_workers(1, version=2)
    first, second = program.told("udp")
    assert first == second
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", ("127.0.0.1", first))
    program.wait_report(got="hello", version=2)


def test_an_address_that_nobody_asks_for_any_more_is_closed_after_the_commit(program: Rolling) -> None:
    top = "bound = hotrestart.listen('127.0.0.1:0', name='early'); told(early=bound.getsockname()[1])"
    program.launch(service(top=top))
    port = program.told("early")[0]

    def is_open() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return False
        return True

    assert is_open()
    program.reload(service(2), expect=2)
    program.wait_until(lambda: not is_open(), "the port is closed")
    assert program.ask()[1] == "2"


def test_a_rollback_closes_no_address_of_the_old_code(program: Rolling) -> None:
    program.launch(service())
    program.deploy("import missing_module")
    program.hup()
    program.wait_log("generation 2 failed")
    assert program.ask()[1] == "1"
    program.reload(service(3), expect=3)
    assert len({tuple(address) for address in program.told("address")}) == 1


def test_sockets_from_the_service_manager_reach_every_generation(program: Rolling) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        address = f"127.0.0.1:{port}"
        pass_it_on = (
            f"import os, sys; os.dup2({listener.fileno()}, 3); os.environ['LISTEN_PID'] = str(os.getpid());"
            "os.execv(sys.executable, [sys.executable, 'app.py'])"
        )
        program.deploy(service(address=address))
        program.start_command(
            [sys.executable, "-c", pass_it_on],
            env={"LISTEN_FDS": "1"},
            pass_fds=[listener.fileno()],
        )
        program.wait_log("generation 1 serves")
        inode = os.fstat(listener.fileno()).st_ino
    # Ours is closed: only the program has it now.
    with Traffic(program) as traffic:
        for version in (2, 3):
            program.reload(service(version, address=address), expect=version)
        program.wait_until(lambda: "3" in traffic.versions(), "the newest code")
    program.wait_workers(2, version=3)
    inodes = f"[os.fstat(each.fileno()).st_ino for each in [hotrestart.listen({address!r}, name='service')]]"
    assert program.evaluate(inodes) == f"[{inode}]"


# -- embedded in a host --------------------------------------------------------------------------------------------

HOST = """
import asyncio, multiprocessing, os, selectors, signal, socket, subprocess, sys, time
import hotrestart

def seven():
    sys.exit(7)

async def by_asyncio():
    process = await asyncio.create_subprocess_exec("sh", "-c", "exit 7")
    return await process.wait()

def as_it_is():
    handlers = [str(signal.getsignal(number)) for number in range(1, signal.NSIG) if number not in (32, 33)]
    wakeup_fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup_fd)
    return handlers, wakeup_fd, sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))), dict(os.environ)

def main():
    signal.signal(signal.SIGTERM, lambda *_: stop())
    signal.signal(signal.SIGHUP, lambda *_: (due.append("children"), supervisor.restart(told)))
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    before = as_it_is()
    supervisor = hotrestart.Supervisor([sys.executable, "app.py"])
    def stop():
        supervisor.stop()
    def told(outcome):
        report(outcome=outcome.as_document())
        due.append("children")
    mine = selectors.DefaultSelector()
    mine.register(supervisor, selectors.EVENT_READ)
    mine.register(woken, selectors.EVENT_READ)
    codes, children, due = set(), [], ["children"] * 3
    while supervisor.exit_status is None:
        for key, _ in mine.select(min(supervisor.timeout(), 3600)):  # nothing but its word, and a signal, ends it
            if key.fileobj is woken:
                woken.recv(100)
        supervisor.step()
        if due:  # also in the midst of a restart
            due.pop()
            child = multiprocessing.get_context("spawn").Process(target=seven)
            child.start()
            children += [child, subprocess.Popen(["sh", "-c", "sleep 0.1; exit 7"])]
            codes.add(asyncio.run(by_asyncio()))
    for child in children:
        codes.add(child.wait() if isinstance(child, subprocess.Popen) else child.join() or child.exitcode)
    supervisor.close()
    mine.close()
    report(host=os.getpid(), status=supervisor.exit_status, codes=sorted(map(str, codes)), same=as_it_is() == before)

if __name__ == "__main__":
    main()
"""


def test_a_host_drives_a_supervisor_in_its_own_loop_and_keeps_its_children_and_signals(program: Rolling) -> None:
    program.deploy(HOST, "host.py")
    program.deploy(service())
    program.start("host.py")
    program.wait_report(ready=True, count=2)
    program.deploy(service(2))
    program.hup()
    good = program.wait_until(lambda: program.told("outcome"), "outcome")
    assert good[0]["ok"] is True
    assert good[0]["generation"] == 2
    assert good[0]["stage"] == "commit"
    program.deploy("import missing_module")
    program.hup()
    bad = program.wait_until(lambda: program.told("outcome")[1:], "the second outcome")
    assert bad[0]["ok"] is False
    assert bad[0]["stage"] == "load"
    assert "missing_module" in bad[0]["reason"]
    assert program.ask()[1] == "2"
    program.term()
    assert program.wait_exit() == 0
    told = program.wait_until(lambda: program.reports(status=0), "the end")[0]
    assert told["codes"] == ["7"]
    assert told["same"] is True
    assert told["host"] == program.pid


def test_an_embedded_supervisor_that_is_closed_lets_its_members_drain(program: Rolling) -> None:
    host = """
import sys, hotrestart
supervisor = hotrestart.Supervisor([sys.executable, "app.py"])
import os, selectors
mine = selectors.DefaultSelector()
mine.register(supervisor, selectors.EVENT_READ)
while not os.path.exists("enough"):
    mine.select(min(supervisor.timeout(), 0.01))
    supervisor.step()
supervisor.close()
report(closed=sorted(os.listdir("/proc/self/fd")))
"""
    program.deploy(host, "host.py")
    program.deploy(service())
    program.start("host.py")
    program.wait_report(ready=True, count=2)
    (program.folder / "enough").touch()
    assert program.wait_exit() == 0
    program.wait_gone()
    assert len(program.reports(drained="stop")) == 2


def test_an_embedded_supervisor_says_when_the_program_cannot_be_started(program: Rolling) -> None:
    host = """
import hotrestart
try:
    supervisor = hotrestart.Supervisor(["/nonexistent/python", "app.py"])
    report(status=supervisor.run())
    supervisor.close()
except OSError as error:
    report(refused=str(error))
"""
    program.deploy(host, "host.py")
    program.start("host.py")
    program.wait_exit()
    assert program.reports(status=1) or [each for each in program.reports() if "refused" in each]


# -- nothing leaks, and idleness costs nothing ------------------------------------------------------------------------


def test_many_restarts_leave_no_descriptor_and_no_process_behind(program: Rolling, full: bool) -> None:
    program.launch(service())
    counts = "len(os.listdir('/proc/self/fd'))"

    def at_rest() -> tuple[int, str, int]:
        program.wait_until(lambda: len(program.servers()) == 1 and len(program.workers()) == 2, "one generation")
        program.assert_no_zombie()
        server = program.servers()[0]
        return len(program.fds()), program.evaluate(counts), len(os.listdir(f"/proc/{server}/fd"))

    for generation in range(2, 5):
        program.reload(service(generation), expect=generation)
    early = at_rest()
    last = 31 if full else 14
    for generation in range(5, last + 1):
        program.reload(service(generation), expect=generation)
    assert program.wait_workers(2, version=last)
    program.wait_until(lambda: at_rest() == early, "as many descriptors as at first")
    assert len(program.members()) == 4


def test_an_idle_program_does_not_wake_up(program: Rolling) -> None:
    program.launch(service())
    program.reload(service(2), expect=2)
    program.wait_workers(2, version=2)
    program.wait_until(lambda: len(program.servers()) == 1, "the old generation ends")
    everybody = [program.pid, *program.servers(), *program.workers()]

    def asleep_for_two_seconds() -> bool:
        before = [voluntary_switches(pid) for pid in everybody]
        threading_event_wait(2.0)
        return [voluntary_switches(pid) for pid in everybody] == before

    program.wait_until(asleep_for_two_seconds, "nobody wakes up for two seconds")


def test_only_the_supervisor_wakes_up_for_a_timeout_and_no_more_often_than_that(program: Rolling) -> None:
    program.launch(service(options="workers=2, timeout=0.5"))
    members = [*program.servers(), *program.workers()]

    def is_calm() -> bool:
        began, before = time.monotonic(), voluntary_switches(program.pid)
        theirs = [voluntary_switches(pid) for pid in members]
        threading_event_wait(2.0)
        woken = voluntary_switches(program.pid) - before
        slept = [voluntary_switches(pid) for pid in members] == theirs
        return slept and woken <= 2 * (time.monotonic() - began) / 0.5

    program.wait_until(is_calm, "a wake-up or two for each timeout and worker")


def test_the_workers_of_a_generation_have_no_descriptor_of_each_other(program: Rolling) -> None:
    """A sibling that held a lifeline would hide the supervisor's end, or another's."""
    program.launch(service(options="workers=3"), ready=3)
    program.wait_workers(3)
    for worker in program.workers():
        files = {os.readlink(f"/proc/{worker}/fd/{fd}") for fd in os.listdir(f"/proc/{worker}/fd")}
        assert len([each for each in files if each.startswith("socket:")]) == 2  # its lifeline, and the listener
    assert not [child for worker in program.workers() for child in children_of(worker)]


def test_members_do_not_hand_the_inheritance_on_to_programs_that_they_start(program: Rolling) -> None:
    program.launch(service(options="workers=1"), ready=1)
    program.reload(service(2, "workers=1"), expect=2)
    program.wait_workers(1, version=2)
    look = "__import__('subprocess').run(['sh','-c','ls /proc/self/fd; echo $HOTRESTART'],capture_output=True).stdout"
    seen = eval(program.evaluate(look))
    assert seen.split() in ([b"0", b"1", b"2", b"3"], [b"0", b"1", b"2"])


def test_a_clean_environment_is_what_the_tests_run_in() -> None:
    assert "HOTRESTART" not in clean_environment()
    assert signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


def test_h17_a_signal_that_the_kernel_hands_to_another_thread_of_the_host_is_acted_upon(program: Rolling) -> None:
    """And so is one that comes when Python has looked for signals for the last time before it sleeps."""
    program.deploy(service(), "served.py")
    program.deploy(
        """
import signal, sys, threading
import hotrestart
supervisor = hotrestart.Supervisor([sys.executable, "served.py"])
signal.signal(signal.SIGTERM, lambda *_: supervisor.stop())
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
status = supervisor.run()
supervisor.close()
assert signal.set_wakeup_fd(-1) == -1
sys.exit(status)
"""
    )
    program.start()
    program.wait_report(ready=True, count=2)
    assert program.stop() == 0


def test_who_is_told_to_end_is_not_loaded_again_for_its_stale_bytecode() -> None:
    supervisor = hotrestart.Supervisor([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        supervisor.step()
        (member,) = supervisor.roster.members.values()
        supervisor.rollout.is_stopping = True
        supervisor._happened("tick")  # and it is killed; what it has said before comes to be heard after that
        supervisor._load_again(member)
        assert list(supervisor.roster.members.values()) == [member]
        deadline = time.monotonic() + PATIENCE
        while supervisor.exit_status is None and time.monotonic() < deadline:
            time.sleep(0.005)
            supervisor.step()
        assert supervisor.exit_status is not None
    finally:
        supervisor.close()
