"""Workers: how they end, coroutines, hangs, and those that have done enough."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.asking import begin
from tests.harness import PATIENCE, clean_environment
from tests.rolling.programs import Rolling, Traffic, answer_on, is_running, service

pytestmark = pytest.mark.core

IS_FIRST = """
def is_first():
    try:
        os.mkdir("one")
        return True
    except FileExistsError:
        return False
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Rolling]:
    with Rolling(tmp_path / "program") as each:
        yield each


# -- the loop and the end --------------------------------------------------------------------------------------


def test_on_stop_is_called_in_the_worker_as_soon_as_it_is_asked_to_end(program: Rolling) -> None:
    program.launch(service(first="hotrestart.on_stop(lambda: told(stopping=True))"))
    with program.connect("hold gate") as connection:
        holder = program.wait_report(job="hold gate")["pid"]
        program.hup()
        program.wait_report(stopping=True, pid=holder)
        (program.folder / "gate").touch()
        assert answer_on(connection)[0] == "hold"


@pytest.mark.parametrize("where", ["top", "first"])
def test_on_stop_is_called_also_in_a_worker_that_ends_at_once(program: Rolling, where: str) -> None:
    program.launch(service(**{where: "hotrestart.on_stop(lambda: told(stopping=True))"}))
    workers = program.wait_workers(2)
    assert program.stop() == 0
    program.wait_gone()
    assert {each["pid"] for each in program.reports(stopping=True)} == workers
    assert len(program.reports(stopping=True)) == 2


def test_on_stop_registered_at_import_is_called_in_each_worker_and_nowhere_else(program: Rolling) -> None:
    top, last = "hotrestart.on_stop(lambda: told(stopping=True))", "time.sleep(0.5)"  # see above
    program.launch(service(top=top, last=last))
    workers = program.wait_workers(2)
    program.reload(service(2, top=top, last=last), expect=2)
    workers |= program.wait_workers(2, version=2)
    assert program.stop() == 0
    program.wait_gone()
    assert {each["pid"] for each in program.reports(stopping=True)} == workers
    assert len(program.reports(stopping=True)) == 4


def test_the_state_module_tells_workers_of_their_generation_and_of_the_end(program: Rolling) -> None:
    program.launch(service())
    assert program.evaluate("(state.generation, state.should_stop, state.reason)") == "(1,_False,_None)"
    program.reload(service(2), expect=2)
    program.wait_workers(2, version=2)
    assert program.evaluate("(state.generation, state.should_stop, state.reason)") == "(2,_False,_None)"
    program.wait_report(drained="stop", generation=1, count=2)


def test_ready_is_enough_for_a_program_with_a_loop_of_its_own(program: Rolling) -> None:
    source = """
import os, time, hotrestart
@hotrestart.restartable(workers=2)
def main():
    hotrestart.ready()
    report(ready=True, version={}, generation=hotrestart.state.generation, pid=os.getpid())
    while not hotrestart.state.should_stop:
        time.sleep(0.01)
main()
"""
    program.launch(source.format(1))
    program.reload(source.format("1 + 1"), expect=2)
    program.wait_workers(2, version=2)


def test_a_worker_that_returns_although_nobody_asked_it_to_is_replaced(program: Rolling) -> None:
    program.launch(service())
    program.ask("exec state.should_stop = True")
    program.wait_report(drained=None)
    program.wait_report(ready=True, count=3)
    program.wait_workers(2)


def test_a_non_daemon_thread_of_a_worker_is_waited_for(program: Rolling) -> None:
    thread = "threading.Thread(target=lambda: (wait_for('gate'), told(thread='done'))).start()"
    program.launch(service(options="workers=1", first=thread), ready=1)
    program.term()
    program.wait_report(drained="stop")
    assert program.process is not None
    assert program.process.poll() is None
    (program.folder / "gate").touch()
    assert program.wait_exit() == 0
    assert program.reports(thread="done")


def test_what_workers_print_arrives_whole_in_every_generation(program: Rolling) -> None:
    """Without a flush: standard output is a file, and buffered."""
    first = "print('to output', VERSION); print('to error', VERSION, file=sys.stderr)"
    last = "print('output at the end', VERSION); print('error at the end', VERSION, file=sys.stderr)"
    program.launch(service(first=first, last=last))
    program.reload(service(2, first=first, last=last), expect=2)
    program.wait_workers(2, version=2)
    assert program.stop() == 0
    program.wait_gone()
    for version in (1, 2):
        for text in ("to output", "to error", "output at the end", "error at the end"):
            assert program.log().count(f"{text} {version}\n") == 2


def test_a_workers_traceback_is_written_in_one_piece(program: Rolling) -> None:
    """Many may fail at the same moment, and write into one file."""
    top = """
class Stream:
    def write(self, text):
        told(written=text)
    def flush(self):
        pass
"""
    program.launch(service())
    program.deploy(service(2, top=top, first="sys.stderr = Stream(); raise RuntimeError('at the same moment')"))
    program.hup()
    program.wait_log("generation 2 failed at stage ready")
    program.wait_report(version=2, count=2)
    for written in (str(each["written"]) for each in program.reports(version=2) if "written" in each):
        assert written.startswith("Traceback")
        assert written.endswith("at the same moment\n")


@pytest.mark.parametrize(
    "end", ["raise RuntimeError('for a reason')", "sys.exit('for a reason')"], ids=["raises", "exits"]
)
def test_why_a_worker_fails_is_told_also_when_it_cannot_be_written(program: Rolling, end: str) -> None:
    program.launch(service())
    program.deploy(service(2, first=f"sys.stderr = open('/dev/full', 'w', buffering=1); {end}"))
    program.hup()
    assert "for a reason" in program.wait_log("generation 2 failed at stage ready").splitlines()[-1]


def test_a_reason_that_is_no_text_is_logged_and_changes_nothing(program: Rolling) -> None:
    """As of a file whose name is not UTF-8. One of the two fails when the other is ready, and that one is let go."""
    program.launch(service())
    fail = "\ndef fail():\n    wait_for('fail')\n    raise OSError('caf\\udce9')\n"
    program.deploy(service(2, top=IS_FIRST + fail, first="is_first() or fail()"))
    with begin("restart", program.pid, "--timeout", PATIENCE / 2) as asking:
        program.wait_report(ready=True, version=2)
        (program.folder / "fail").touch()
        _, said = asking.communicate(timeout=PATIENCE)
    assert asking.returncode == 1
    assert r"caf\udce9" in said
    assert r"caf\udce9" in program.wait_log("generation 2 failed at stage ready")
    assert "Unicode" not in program.log()
    program.wait_report(drained="stop", version=2)
    program.wait_until(lambda: len(program.members()) == 4, "the new generation is gone")
    program.reload(service(3), expect=3)


def test_a_job_is_finished_and_on_stop_is_called_although_no_thread_is_to_be_had(program: Rolling) -> None:
    top, first = "threading.stack_size(1 << 47)", "hotrestart.on_stop(lambda: told(stopping=True))"
    program.launch(service(options="workers=1", top=top, first=first), ready=1)
    with program.connect("hold gate") as connection:
        program.wait_report(job="hold gate")
        program.reload(service(2, "workers=1"), expect=2)
        (program.folder / "gate").touch()
        assert answer_on(connection)[0] == "hold"
    program.wait_report(drained="stop", version=1)
    program.wait_report(stopping=True, version=1)
    assert "Traceback" not in program.log()


@pytest.mark.parametrize("status", ["-3", "257", "2**31", "2**64"])
def test_a_worker_ends_as_cpython_does_whatever_it_gives_to_sys_exit(program: Rolling, status: str) -> None:
    """And goes back to nobody."""
    source = service(options="workers=1", top=f"plain = {status}", first="told(boot=True); sys.exit(plain)")
    program.deploy(source.replace("    main()\n", "    try:\n        main()\n    finally:\n        told(back=True)\n"))
    program.start()
    worker = program.wait_report(boot=True)["pid"]
    program.wait_exit()
    assert not program.reports(back=True, pid=worker)
    ends = f"import sys; sys.exit({status})", f"import hotrestart.exits; hotrestart.exits.end_now({status})"
    quiet = {"stderr": subprocess.DEVNULL, "env": clean_environment()}
    codes = [subprocess.call([program.python, "-c", end], **quiet) for end in ends]
    assert codes[0] == codes[1]


def test_an_excepthook_of_the_programs_own_shows_what_a_worker_raises(program: Rolling) -> None:
    hook = "sys.excepthook = lambda kind, error, trace: told(raised=repr(error))"
    program.launch(service())
    program.deploy(service(2, top=hook, first="raise RuntimeError('broken')"))
    program.hup()
    program.wait_report(version=2, raised="RuntimeError('broken')")  # the other may be told to end before it begins


def test_what_is_in_the_buffer_at_the_fork_is_printed_once(program: Rolling) -> None:
    program.launch(service(top="print('imported once')"))
    program.reload(service(2, top="print('imported twice')"), expect=2)
    assert program.stop() == 0
    program.wait_gone()
    assert program.log().count("imported once") == 1
    assert program.log().count("imported twice") == 1


def test_a_workers_random_numbers_are_its_own(program: Rolling) -> None:
    program.launch(service(options="workers=3", top="import random, ssl", first="told(drawn=random.random())"), ready=3)
    assert len(set(program.told("drawn"))) == 3


def test_workers_can_have_children_of_every_kind(program: Rolling) -> None:
    top = """
import asyncio, multiprocessing, subprocess
def seven():
    sys.exit(7)
async def by_asyncio():
    return await (await asyncio.create_subprocess_exec("sh", "-c", "exit 7")).wait()
def codes():
    child = multiprocessing.get_context("fork").Process(target=seven)
    child.start()
    child.join()
    return [child.exitcode, subprocess.call(["sh", "-c", "exit 7"]), asyncio.run(by_asyncio())]
"""
    program.launch(service(top=top))
    assert program.evaluate("codes()") == "[7,_7,_7]"
    assert len(program.wait_workers(2)) == 2


def test_a_child_of_a_worker_can_be_stopped_by_its_signals(program: Rolling) -> None:
    """It has inherited no mask, no ignored signal and no handler."""
    program.launch(service(top="import subprocess"))
    kill = "subprocess.call(['sh', '-c', 'kill -' + name + ' $$; sleep 60'])"
    names = "('HUP', 'TERM', 'INT', 'USR1')"
    assert program.evaluate(f"[{kill} for name in {names}]") == "[-1,_-15,_-2,_-10]"


# -- coroutines ------------------------------------------------------------------------------------------------

COROUTINE = """
import asyncio, atexit, os
import hotrestart

VERSION = {version!r}

def told(**what):
    report(**what, version=VERSION, generation=hotrestart.state.generation, pid=os.getpid())

def blocking():
    import time
    time.sleep(0.05)
    told(executor="done")

async def sleeper():
    try:
        await asyncio.sleep(3600)
    finally:
        told(task="cancelled")

async def numbers():
    try:
        while True:
            yield 1
            await asyncio.sleep(0)
    finally:
        told(generator="closed")

async def serve(reader, writer):
    job = (await reader.readline()).decode().strip()
    if job.startswith("hold"):
        told(job=job)
        while not os.path.exists(job.split()[1]):
            await asyncio.sleep(0.005)
    writer.write(f"here {{VERSION}} {{os.getpid()}}".encode())
    await writer.drain()
    writer.close()

@hotrestart.restartable({options})
async def main():
    listener = hotrestart.listen("127.0.0.1:0", name="service")
    told(address=listener.getsockname())
    task = asyncio.create_task(sleeper())
    kept = numbers()
    await kept.__anext__()
    asyncio.get_running_loop().run_in_executor(None, blocking)
    atexit.register(lambda: told(at="exit"))
    {first}
    server = await asyncio.start_server(serve, sock=listener)
    with hotrestart.worker_loop() as loop:
        told(ready=True)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(loop.fileno(), ended.set)
        await ended.wait()
        asyncio.get_running_loop().remove_reader(loop.fileno())
        server.close()
        jobs = asyncio.all_tasks() - {{task, asyncio.current_task()}}
        if jobs:
            await asyncio.wait(jobs)
    told(drained=hotrestart.state.reason)

asyncio.run(main())
told(returned=True)
"""


def coroutine(version: int = 1, options: str = "workers=2", first: str = "pass") -> str:
    return COROUTINE.format(version=version, options=options, first=first)


def test_a_coroutine_restarts_and_its_loop_is_wound_up_in_each_worker(program: Rolling) -> None:
    program.launch(coroutine())
    with program.connect("hold gate") as connection:
        program.wait_report(job="hold gate")
        program.reload(coroutine(2), expect=2)
        program.wait_until(lambda: program.ask()[1] == "2", "the new code")
        (program.folder / "gate").touch()
        assert answer_on(connection)[1] == "1"
    program.wait_workers(2, version=2)
    assert program.stop() == 0
    program.wait_gone()
    for version in (1, 2):
        for what in ({"task": "cancelled"}, {"generator": "closed"}, {"executor": "done"}, {"at": "exit"}):
            assert len(program.reports(version=version, **what)) == 2, what
    assert not program.reports(returned=True)
    assert "Traceback" not in program.log()
    assert "never awaited" not in program.log()


def test_a_coroutine_that_raises_is_a_broken_generation(program: Rolling) -> None:
    program.launch(coroutine())
    program.deploy(coroutine(2, first="raise RuntimeError('in main')"))
    program.hup()
    program.wait_log("generation 2 failed at stage ready: RuntimeError: in main")
    assert program.ask()[1] == "1"


def test_a_coroutine_in_a_dying_supervisors_worker_ends_too(program: Rolling) -> None:
    program.launch(coroutine())
    program.kill_supervisor()
    program.wait_gone()
    assert len(program.reports(drained="stop")) == 2


# -- hangs -----------------------------------------------------------------------------------------------------


def test_a_worker_that_hangs_is_dumped_and_replaced_while_the_others_serve(program: Rolling) -> None:
    top = "def endless_job():\n    while True:\n        pass"
    program.launch(service(options="workers=2, timeout=2.0", top=top))
    with program.connect("exec endless_job()"):
        hung = int(str(program.wait_report(job="exec endless_job()")["pid"]))
        with Traffic(program, forgiven=2) as traffic:  # a busy machine may hold up the other for 2 s, too
            program.wait_until(lambda: not is_running(hung), "the hung one is gone")
            program.wait_workers(2, without={hung})
        assert traffic.answers
    assert "no turn of its loop for 2 s" in program.log()
    assert "in endless_job" in program.log()
    assert len(program.reports(imported=True)) == 1


def test_a_worker_that_hangs_and_blocks_every_signal_is_killed(program: Rolling) -> None:
    program.launch(service(options="workers=2, timeout=1.0"))
    job = "exec signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); wait_for('never')"
    with program.connect(job):
        hung = int(str(program.wait_report(job=job)["pid"]))
        program.wait_until(lambda: not is_running(hung), "the hung one is gone")
    program.wait_workers(2, without={hung})


def test_a_worker_that_hangs_while_it_drains_is_aborted_long_before_its_grace(program: Rolling) -> None:
    program.launch(service(options="workers=1, timeout=1.0, grace=3600"), ready=1)
    with program.connect("busy"):
        hung = int(str(program.wait_report(job="busy")["pid"]))
        program.reload(service(2, "workers=1"), expect=2)
        program.wait_until(lambda: not is_running(hung), "the hung one is gone")
    program.wait_workers(1, version=2)


def test_a_worker_that_sleeps_or_waits_is_not_hung(program: Rolling) -> None:
    for version, pause in enumerate(("loop.sleep(None)", "loop.wait()", "loop.sleep(3600)"), 1):
        source = f"""
import os, hotrestart
@hotrestart.restartable(workers=2, timeout=0.5)
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=True, version={version}, generation=hotrestart.state.generation, pid=os.getpid())
        while loop.running:
            {pause}
main()
"""
        if version == 1:
            program.launch(source)
        else:
            program.reload(source, expect=version)
        workers = program.wait_workers(2, version=version)
        looked_at = voluntary_switches(program.pid)
        # The supervisor looks at them once in a timeout.
        program.wait_until(lambda: voluntary_switches(program.pid) > looked_at + 3, "three looks")  # noqa: B023
        assert program.wait_workers(2, version=version) == workers
    assert "no turn" not in program.log()


def voluntary_switches(pid: int) -> int:
    """How often the process has gone to sleep."""
    return int(Path(f"/proc/{pid}/status").read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0])


def test_the_time_that_a_worker_takes_to_boot_is_not_counted(program: Rolling) -> None:
    options = "workers=1, timeout=1.0"
    program.launch(service(1, options, first="time.sleep(2.5)"), ready=1)
    program.reload(service(2, options, top="time.sleep(2.5)"), expect=2)
    program.wait_workers(1, version=2)
    assert "no turn" not in program.log()


def test_the_time_after_the_loop_is_not_counted(program: Rolling) -> None:
    program.launch(service(options="workers=1, timeout=1.0", last="wait_for('gate'); told(last=True)"), ready=1)
    program.hup()
    program.wait_log("generation 2 serves")
    looked_at = voluntary_switches(program.pid)
    program.wait_until(lambda: voluntary_switches(program.pid) > looked_at + 3, "three looks")
    (program.folder / "gate").touch()
    program.wait_report(last=True)
    assert "no turn" not in program.log()


# -- those that have done enough -------------------------------------------------------------------------------


def test_a_worker_that_has_done_its_jobs_is_replaced_and_nobody_notices(program: Rolling) -> None:
    program.launch(service(options="workers=2, max_jobs=20, jitter=0.0"))
    first = program.wait_workers(2)
    with Traffic(program) as traffic:
        most, least = program.most_and_least(
            lambda: len(program.reports(drained="stop")) >= 4 and not first & set(program.workers()),
            "four workers are replaced",
        )
    assert most <= 4  # one that comes and one that drains, beside the two
    assert least >= 2
    assert len(traffic.answers) > 40
    assert len(program.reports(imported=True)) == 1
    assert not program.wait_workers(2) & first
    # The replacement comes to its loop before the one that it replaces is told to drain, and one at a time.
    reports = program.reports()
    at_the_loop = [number for number, each in enumerate(reports) if "address" in each]
    drained = [number for number, each in enumerate(reports) if "drained" in each]
    for number, position in enumerate(drained):
        assert at_the_loop[2 + number] < position


def test_a_worker_that_is_too_old_is_replaced(program: Rolling) -> None:
    program.launch(service(options="workers=2, max_age=1.0"))
    first = program.wait_workers(2)
    with Traffic(program):
        _, least = program.most_and_least(lambda: not set(program.workers()) & first, "both are replaced")
    assert least >= 2
    assert len(program.reports(imported=True)) == 1


def test_a_worker_that_has_grown_too_big_is_replaced(program: Rolling) -> None:
    program.launch(service(options=f"workers=2, max_rss={80 * 2**20}"))
    first = program.wait_workers(2)
    program.ask("exec global heap; heap = b'x' * (100 * 2**20)")
    fat = int(str(program.wait_until(lambda: [e for e in program.reports() if "job" in e], "the job")[0]["pid"]))
    with Traffic(program):
        program.wait_until(lambda: not is_running(fat), "the fat one is gone")
    now = program.wait_workers(2)
    assert now & first == first - {fat}


def test_workers_are_recycled_as_many_at_a_time_as_batch_says(program: Rolling) -> None:
    """All are due at the same moment; a job in hand keeps the first that drains."""
    program.launch(service(options="workers=3, max_age=15.0, jitter=0.0"), ready=3)
    first = program.wait_workers(3)
    connections = [program.connect("hold gate")]
    holder = program.wait_report(job="hold gate")["pid"]
    try:
        while len(program.reports(job="hold gate")) < 3:
            connections.append(program.connect("hold gate"))
            program.wait_report(job="hold gate", count=len(connections))
        program.wait_report(ready=True, count=4)
        program.wait_until(lambda: len(program.workers()) == 4, "one more")
        # As long as one drains, no other is let go: the fifth would be there in a moment.
        switches = voluntary_switches(program.pid)
        os.kill(program.pid, signal.SIGUSR1)
        program.wait_until(lambda: voluntary_switches(program.pid) > switches, "the supervisor has had a turn")
        assert len(program.workers()) == 4
        assert len(first & set(program.workers())) == 3
        (program.folder / "gate").touch()
        assert {answer_on(connection)[2] for connection in connections} == first
    finally:
        for connection in connections:
            connection.close()
    assert holder in first
    program.wait_until(lambda: not set(program.workers()) & first, "all three are replaced")


def test_a_worker_loads_nothing_for_itself(program: Rolling) -> None:
    """Each would do it again, in memory of its own; `socket.getaddrinfo` loads a codec for a name that is text."""
    program.deploy("""
import os, socket, sys
import hotrestart
loaded = set()
os.register_at_fork(after_in_child=lambda: loaded.update(sys.modules))
@hotrestart.restartable(workers=2, max_jobs=100)
def main():
    hotrestart.listen("127.0.0.1:0")
    with hotrestart.worker_loop() as loop:
        report(loaded=sorted(set(sys.modules) - loaded))
        loop.sleep()
main()
""")
    program.start()
    program.wait_report(count=2)
    assert program.reports() == [{"loaded": []}] * 2


def test_nothing_of_the_supervisor_is_loaded_on_the_way_of_new_code(program: Rolling) -> None:
    """It would be as much again as all that a generation loads of this package."""
    program.launch(service())
    program.reload(service(2), expect=2)
    program.wait_workers(2, version=2)
    parts = "{each.rpartition('.')[2] for each in sys.modules if each.startswith('hotrestart.')}"
    loaded = program.evaluate(f"sorted({{'supervisor', 'rollout', 'roster', 'desk', 'bare', 'random'}} & {parts})")
    assert loaded == "[]"
