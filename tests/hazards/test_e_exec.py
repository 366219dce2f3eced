"""What crosses the exec: the process stays the one that everybody knows, and nothing of the old image bites the new."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import Program, copy_library, open_files, worker
from tests.hazards.sources import is_running, is_zombie, mask

pytestmark = pytest.mark.core


def identity(pid: int) -> list[str]:
    """Parent, group, session, terminal and start time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [*fields[1:5], fields[19]]


def test_h36_pid_parent_session_and_start_time_stay(program: Program) -> None:
    program.deploy(worker())
    program.start()
    program.wait_report(ready=1)
    before = identity(program.pid)
    for generation in (2, 3):
        program.hup()
        program.wait_report(ready=generation)
        assert identity(program.pid) == before


@pytest.mark.parametrize("timer", ["REAL", "PROF", "VIRTUAL"])
def test_h36_a_timer_of_the_old_generation_does_not_kill_the_new(program: Program, timer: str) -> None:
    source = worker(options="(preflight=False)")
    setting = f"""        import signal
        for each in (signal.SIGALRM, signal.SIGPROF, signal.SIGVTALRM):
            signal.signal(each, lambda *_: None)
        signal.setitimer(signal.ITIMER_{timer}, 0.0005, 0.0005)
"""
    program.deploy(source.replace("        while", f"{setting}        while"))
    program.start()
    program.wait_report(ready=1)
    busy = "import time\nend = time.process_time() + 0.05\nwhile time.process_time() < end: pass\n"
    program.deploy(busy + worker(version=2).replace("        while", f"        {busy.splitlines()[0]}\n        while"))
    program.hup()
    program.wait_report(ready=2, version=2)
    assert program.stop() == 0


CHILD = """
import ctypes, os, signal, subprocess, hotrestart
def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
@hotrestart.restartable
def main():
    if hotrestart.state.generation == 1:
        child = subprocess.Popen(["sleep", "60"], preexec_fn=die_with_parent)
        short = os.posix_spawn("/bin/true", ["true"], {})
        os.waitid(os.P_PID, short, os.WEXITED | os.WNOWAIT)
        report(child=child.pid, short=short)
        hotrestart.bequeath("children", [child.pid, short])
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        loop.sleep(None)
    for pid in hotrestart.inherited("children", []):
        os.kill(pid, signal.SIGTERM)  # the second is a zombie, which does not mind
        report(pid=pid, status=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
main()
"""


def test_h36_children_stay_children_and_can_be_waited_for(program: Program) -> None:
    program.deploy(CHILD)
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2)
    report = program.reports()[0]
    child, short = int(report["child"]), int(report["short"])  # type: ignore[call-overload]
    assert is_running(child)  # PDEATHSIG does not fire either: the thread that started it has not ended
    assert identity(child)[0] == str(program.pid)
    assert program.stop() == 0
    assert program.reports(pid=child, status=-signal.SIGTERM)
    assert program.reports(pid=short, status=0)


def test_h36_no_child_of_ours_is_left_whatever_became_of_the_restarts(program: Program) -> None:
    program.deploy(worker())
    program.start()
    program.wait_report(ready=1)
    clean = len(open_files(program.pid))
    for generation in range(2, 6):
        program.deploy("import missing_module")
        program.hup()
        program.wait_log("restart refused", count=generation - 1)
        program.deploy(worker())
        program.hup()
        program.wait_report(ready=generation)
        program.wait_until(lambda: program.children() == [], "no child is left")
    program.wait_until(lambda: len(open_files(program.pid)) == clean, "as many descriptors as at first")


PIDFILE = """
import fcntl, os, hotrestart
fd = hotrestart.inherited("pidfile")
if fd is None:
    fd = os.open("app.pid", os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
if os.get_inheritable(fd):
    raise SystemExit("children would hold the lock")
hotrestart.bequeath("pidfile", os.fdopen(os.dup(fd)))
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        loop.sleep(None)
main()
"""


def test_h37_a_bequeathed_pid_file_stays_locked(program: Program) -> None:
    program.deploy(PIDFILE)
    program.start()
    program.wait_report(ready=1)
    with (program.folder / "app.pid").open() as file:
        for generation in (2, 3):
            program.hup()
            while not program.reports(ready=generation):
                with pytest.raises(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                assert program.process is not None
                assert program.process.poll() is None, program.log()
        program.stop()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


THREADED = """
import _thread, signal, threading, hotrestart
def now():
    return [len(signal.pthread_sigmask(signal.SIG_BLOCK, ())), threading.get_native_id()]
at_start = now()
def ask():
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    hotrestart.request_restart()
    threading.Event().wait()
@hotrestart.restartable(preflight=PREFLIGHT, grace=GRACE)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, at_start=at_start)
        if hotrestart.state.generation < 4:
            threading.Thread(target=ask, daemon=DAEMON).start()
        loop.sleep(None)
main()
"""


@pytest.mark.parametrize("preflight", [False, True])
@pytest.mark.parametrize(("daemon", "grace"), [(True, 30), (False, 0.1)], ids=["", "after grace"])
def test_h38_no_mask_of_another_thread_crosses_the_exec(
    program: Program, preflight: bool, daemon: bool, grace: float
) -> None:
    source = THREADED.replace("PREFLIGHT", str(preflight)).replace("DAEMON", str(daemon)).replace("GRACE", str(grace))
    program.deploy(source)
    program.start()
    program.wait_report(ready=4)
    # HUP may be blocked until hotrestart is imported, and is not afterwards
    assert [each["at_start"] for each in program.reports()] == [[0, program.pid]] * 4
    assert mask(program.pid) == set()


IN_A_PID_NAMESPACE = ["unshare", "--fork", "--pid", "--kill-child"]


def test_h39_pid_1_restarts_and_stops(program: Program) -> None:
    if not shutil.which("unshare") or subprocess.run([*IN_A_PID_NAMESPACE, "true"], check=False).returncode:
        pytest.skip("no pid namespaces here")
    program.deploy("import os\nreport(pid=os.getpid())\n" + worker())
    program.start_command([*IN_A_PID_NAMESPACE, sys.executable, "app.py"])
    program.wait_report(ready=1)
    assert program.reports()[0] == {"pid": 1}
    (inside,) = program.children()
    for generation in (2, 3):
        os.kill(inside, signal.SIGHUP)
        program.wait_report(ready=generation)
    os.kill(inside, signal.SIGTERM)
    assert program.wait_exit() == 0


SHARED_MEMORY = """
import os, hotrestart
from multiprocessing import shared_memory
block = shared_memory.SharedMemory(create=True, size=100)
@hotrestart.restartable(preflight=False)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        loop.sleep(None)
main()
block.close()
block.unlink()
"""


def test_h40_the_resource_trackers_of_former_generations_do_not_pile_up(program: Program) -> None:
    program.deploy(SHARED_MEMORY)
    program.start()
    for generation in range(1, 5):
        program.wait_report(ready=generation)
        program.hup()
    program.wait_report(ready=5)
    program.wait_until(lambda: sum(map(is_running, program.children())) == 1, "the former trackers have ended")
    assert len([pid for pid in program.children() if is_zombie(pid)]) <= 2, "each is reaped by a later restart"


def that_has_slept(source: str) -> str:
    """What a restart needs is loaded in the first pause, not before the first job."""
    return source.replace("        report(ready", "        loop.sleep(0)\n        report(ready")


def test_h35_with_the_library_gone_for_a_moment_the_old_code_hears_the_next_request(program: Program) -> None:
    """As when a HUP comes while `pip install --upgrade hotrestart` is at work."""
    library = copy_library(program.folder / "site")
    program.deploy(that_has_slept(worker()))
    program.start(env={"PYTHONPATH": str(library.parent)})
    program.wait_report(ready=1)
    away = library.rename(program.folder / "away")
    library.mkdir()
    (library / "__init__.py").write_text("raise ImportError('half of it is here')\n")
    program.hup()
    program.wait_log("restart refused")
    shutil.rmtree(library)
    away.rename(library)
    program.hup()
    program.wait_report(ready=2)


def test_h35_with_the_library_gone_and_no_preflight_the_exec_needs_nothing_of_it(program: Program) -> None:
    library = copy_library(program.folder / "site")
    program.deploy(that_has_slept(worker(options="(preflight=False)")))
    program.start(env={"PYTHONPATH": str(library.parent)})
    program.wait_report(ready=1)
    library.rename(program.folder / "away")
    program.deploy("report(ready=2)\n")
    program.hup()
    program.wait_exit()
    assert program.reports(ready=2), program.log()


STALE_THREAD = """
import hotrestart
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        hotrestart.request_stop()
        loop.sleep(None)
main()
"""


def test_h38_a_thread_started_at_the_end_does_not_crash_the_end(tmp_path: Path) -> None:
    """3.10 frees the state of a thread that was started and has not run yet; the allocator for debugging shows it."""
    for number in range(20):
        with Program(tmp_path / str(number)) as program:
            program.deploy(STALE_THREAD)
            program.start(env={"PYTHONMALLOC": "debug", "PYTHONFAULTHANDLER": "1"})  # says what it died of
            status = program.wait_exit()
            assert status == 0, f"program {number} ended with {status}; log:\n{program.log()}"


ODD_MODULE = """
import sys, hotrestart
class Odd:
    "Stands in sys.modules, as lazy importers and proxies do, and does not like to be looked at."
    def __getattribute__(self, name):
        raise RuntimeError("working outside of a context")
sys.modules["odd"] = Odd()
@hotrestart.restartable(preflight=PREFLIGHT)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation)
        loop.sleep(None)
main()
"""


@pytest.mark.parametrize("preflight", [False, True], ids=["", "with preflight"])
def test_h59_an_odd_object_among_the_modules_does_not_cost_the_restart(program: Program, preflight: bool) -> None:
    program.deploy(ODD_MODULE.replace("PREFLIGHT", str(preflight)))
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_until(lambda: program.reports(ready=2) or "context" in program.log(), "an outcome")
    assert program.reports(ready=2), program.log()
