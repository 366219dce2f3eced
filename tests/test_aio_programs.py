"""Programs of both kinds around `async with worker_loop()`: what wakes them, what runs beside it, who watches them.

All run in asyncio's debug mode with every warning an error: what is not closed, awaited or taken back shows in the log.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hotrestart import control
from tests.harness import PATIENCE
from tests.rolling.programs import Rolling, Traffic
from tests.test_notifying import Managed, made

pytestmark = pytest.mark.core

APP = """
import asyncio, os, signal, sys, threading, time
import hotrestart
from hotrestart import serving, state

VERSION = {version}

async def wait_for(name):
    while not os.path.exists(name):
        await asyncio.sleep(0.005)

def told(**what):
    report(**what, generation=state.generation, pid=os.getpid(), version=VERSION)

{top}

{decorator}
async def main():
    asyncio.get_running_loop().slow_callback_duration = 3600  # of which debug mode tells: a busy machine has them
    {first}
    async with hotrestart.worker_loop() as loop:
        told(ready=True)
        {body}
        told(asked=state.reason, running=loop.running)
    {last}

if __name__ == "__main__":
    {how}
"""

KINDS = {
    "decorated": "@hotrestart.restartable",
    "bare": "",
    "rolling": "@hotrestart.restartable(workers=2)",
}
kinds = pytest.mark.parametrize("kind", KINDS)
in_place = pytest.mark.parametrize("kind", ["decorated", "bare"])


def app(
    kind: str,
    version: int = 1,
    *,
    top: str = "",
    first: str = "pass",
    body: str = "await loop.stopping()",
    last: str = "pass",
    how: str = "asyncio.run(main())",
    options: str = "",
) -> str:
    decorator = f"@hotrestart.restartable({options})" if options else KINDS[kind]
    first, body = first.replace("\n", "\n    "), body.replace("\n", "\n        ")
    parts = {"top": top, "first": first, "body": body, "last": last, "how": how}
    return APP.format(decorator=decorator, version=version, **parts)


class Awaiting(Rolling):
    """A program of either kind, with one generation after another."""

    kind = "decorated"
    each = 1  # how many say that they are ready

    def begin(self, kind: str, source: str, *, ready: int = 0) -> Awaiting:
        self.kind, self.source, self.each = kind, source, ready or (2 if kind == "rolling" else 1)
        self.deploy(source)
        self.start("-X", "dev", "-W", "error", "app.py")
        return self.wait_generation(1)

    def wait_generation(self, generation: int) -> Awaiting:
        self.wait_report(ready=True, generation=generation, count=self.each)
        if self.kind == "rolling":
            self.wait_log(f"generation {generation} serves")
        return self

    def assert_clean(self) -> None:
        if self.kind == "rolling":
            for word in ("Warning", "Error", "Traceback", "asyncio"):
                assert word not in self.log()
        else:
            assert self.log() == ""

    def assert_goes_on_and_ends(self, generation: int) -> None:
        """Once more, then TERM; nothing was complained of."""
        self.hup()
        self.wait_generation(generation)
        assert self.stop() == 0
        self.assert_clean()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Awaiting]:
    with Awaiting(tmp_path / "program") as each:
        yield each


def ask_by_hup(program: Awaiting) -> None:
    program.hup()


def ask_by_socket(program: Awaiting) -> None:
    assert control.restart(program.pid, timeout=PATIENCE).ok


def ask_from_inside(program: Awaiting) -> None:
    (program.folder / "ask").touch()
    program.wait_report(ready=True, generation=2)


ASKS = """
async def ask():
    await wait_for("ask")
    try:
        os.unlink("ask")
    except FileNotFoundError:
        return  # another worker was first
    hotrestart.request_restart()
"""
SLEEPS = {
    "stopping": "await loop.stopping()",
    "sleep": "told(slept=await loop.sleep(0.001), zero=await loop.sleep(0))\ntold(woken=await loop.sleep(3600))",
    "turns": "async for turn in loop: await asyncio.sleep(0.001)",
    "running": "while loop.running: await loop.sleep(0.001)",
}


@kinds
@pytest.mark.parametrize("asks", [ask_by_hup, ask_by_socket, ask_from_inside])
def test_whoever_asks_wakes_it(program: Awaiting, kind: str, asks: Any) -> None:
    source = app(kind, top=ASKS, first="task = asyncio.ensure_future(ask())", last="task.cancel()")
    program.begin(kind, source)
    asks(program)
    program.wait_generation(2)
    program.wait_report(asked="stop" if kind == "rolling" else "restart", running=False, generation=1)
    program.assert_goes_on_and_ends(3)
    program.wait_report(asked="stop", running=False, generation=3)


@kinds
@pytest.mark.parametrize("sleep", SLEEPS)
def test_whatever_it_does_meanwhile(program: Awaiting, kind: str, sleep: str) -> None:
    program.begin(kind, app(kind, body=SLEEPS[sleep]))
    program.assert_goes_on_and_ends(2)
    if sleep == "sleep":
        program.wait_report(slept=False, zero=False, generation=1)
        program.wait_report(woken=True, generation=1)


@kinds
def test_code_that_is_refused_wakes_nobody(program: Awaiting, kind: str) -> None:
    program.begin(kind, app(kind, body="await loop.stopping()"))
    program.deploy("import nowhere")
    program.hup()
    program.wait_log("No module named 'nowhere'")
    assert not control.restart(program.pid, timeout=PATIENCE).ok
    assert "asked" not in {name for each in program.reports() for name in each}
    program.deploy(program.source)
    program.hup()
    program.wait_report(ready=True, version=1, count=4 if kind == "rolling" else 2)
    assert program.stop() == 0


@in_place
def test_a_body_that_raises(program: Awaiting, kind: str) -> None:
    program.begin(kind, app(kind, body="await wait_for('raise')\nraise KeyError('body')"))
    (program.folder / "raise").touch()
    assert program.wait_exit() == 1
    assert "KeyError: 'body'" in program.log()
    assert "Warning" not in program.log()


@in_place
def test_a_body_that_raises_in_its_drain_restarts_all_the_same(program: Awaiting, kind: str) -> None:
    program.begin(kind, app(kind, body="await loop.stopping()\nif state.generation == 1: raise KeyError('body')"))
    program.hup()
    program.wait_generation(2)
    assert program.stop() == 0
    assert "it restarts" in program.log()
    assert "Warning" not in program.log()


SEVERAL = """
async def one(name):
    async with hotrestart.worker_loop() as loop:
        told(entered=name)
        await loop.stopping()
        told(left=name)

async def serve(reader, writer):
    await reader.readline()
    writer.write(b"here %d %d" % (VERSION, os.getpid()))
"""


@pytest.mark.parametrize("kind", ["decorated", "rolling"])
def test_several_and_a_server_in_one_program(program: Awaiting, kind: str) -> None:
    first = """
listener = hotrestart.listen("127.0.0.1:0")
told(address=listener.getsockname())
for _ in range(3):
    async with hotrestart.worker_loop() as loop:
        await loop.sleep(0.001)
tasks = [asyncio.ensure_future(one(name)) for name in "abc"]
"""
    body = "await serving.serve_streams(serve, listener, loop)\nawait asyncio.gather(*tasks)\nlistener.close()"
    source = app(kind, top=SEVERAL, first=first, body=body)
    program.begin(kind, source)
    with Traffic(program):
        for generation in (2, 3):
            program.hup()
            program.wait_generation(generation)
    assert program.stop() == 0
    program.assert_clean()
    each = 2 if kind == "rolling" else 1
    for name in "abc":
        assert len(program.reports(left=name)) == 3 * each


def test_two_event_loops_after_each_other_in_one_main(program: Awaiting) -> None:
    top = """
async def one(name):
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
    asyncio.get_running_loop().slow_callback_duration = 3600
    async with hotrestart.worker_loop() as loop:
        told(entered=name)
        while loop.running and not os.path.exists(name):
            await loop.sleep(0.005)

@hotrestart.restartable
def both():
    for name in "ab":
        asyncio.run(one(name))
    with hotrestart.worker_loop() as loop:
        told(ready=True)
        loop.sleep()
    asyncio.run(one("c"))
"""
    program.deploy(app("bare", top=top, how="both()"))
    program.start("-X", "dev", "-W", "error", "app.py")
    for name in "ab":
        program.wait_report(entered=name)
        (program.folder / name).touch()
    program.wait_generation(1)
    program.assert_goes_on_and_ends(2)
    assert len(program.reports(entered="c")) == 2


THREAD = """
async def in_thread():
    asyncio.get_running_loop().slow_callback_duration = 3600
    async with hotrestart.worker_loop() as loop:
        told(entered=True)
        told(woken=await loop.sleep())

@hotrestart.restartable
def both():
    thread = threading.Thread(target=asyncio.run, args=(in_thread(),))
    thread.start()
    with hotrestart.worker_loop() as loop:
        told(ready=True)
        loop.sleep()
    thread.join()
"""


def test_the_event_loop_of_a_thread(program: Awaiting) -> None:
    program.deploy(app("bare", top=THREAD, how="both()"))
    program.start("-X", "dev", "-W", "error", "app.py")
    program.wait_generation(1).wait_report(entered=True, generation=1)
    program.hup()
    program.wait_generation(2).wait_report(entered=True, generation=2)
    assert program.stop() == 0
    assert len(program.reports(woken=True)) == 2
    program.assert_clean()


SIGNALLED = """
def strike():
    while not os.path.exists("strike"):
        time.sleep(0.005)
    signal.pthread_kill(threading.get_ident(), signal.{name})  # not the thread in which Python runs handlers
    while not state.should_stop:
        time.sleep(0.005)
"""


@pytest.mark.parametrize("host", [False, True], ids=["ours", "a_handler_of_asyncio_s"])
@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
@in_place
def test_a_signal_that_another_thread_gets_wakes_the_event_loop(
    program: Awaiting, kind: str, name: str, host: bool
) -> None:
    body = f"""
thread = threading.Thread(target=strike)
if {host}: asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
if state.generation == 1: thread.start()
told(woken=await loop.sleep(3600))"""
    program.begin(kind, app(kind, top=SIGNALLED.format(name=name), body=body))
    (program.folder / "strike").touch()
    program.wait_report(woken=True)
    if name == "SIGHUP":
        program.wait_generation(2)
        program.term()
    assert program.wait_exit() == 0


@pytest.mark.parametrize("how", ["loop.fileno()", "on_stop"])
@pytest.mark.parametrize("kind", KINDS)
def test_h17_a_signal_that_comes_as_the_event_loop_goes_to_sleep_is_not_slept_through(
    program: Awaiting, kind: str, how: str
) -> None:
    """In a plain `with worker_loop()`. (That another thread takes it looks the same to the main thread.)"""
    watch, unwatch = "events.add_reader(loop.fileno(), asked.set)", "events.remove_reader(loop.fileno())"
    if how == "on_stop":
        watch, unwatch = "hotrestart.on_stop(lambda: events.call_soon_threadsafe(asked.set))", "pass"
    body = f"""
events, asked = asyncio.get_running_loop(), asyncio.Event()
{watch}
threading.Thread(target=strike, daemon=True).start()
await asked.wait()
{unwatch}"""
    options = "workers=1" if kind == "rolling" else ""
    source = app(kind, top=SIGNALLED.format(name="SIGTERM"), body=body, options=options)
    program.begin(kind, source.replace("async with", "with"), ready=1)
    (program.folder / "strike").touch()
    program.wait_report(asked="stop")
    if kind == "rolling":
        (program.folder / "strike").unlink()  # of the worker in its place
        program.term()
    assert program.wait_exit() == 0


def test_a_signal_that_another_thread_of_a_worker_gets(program: Awaiting) -> None:
    body = """
thread = threading.Thread(target=strike)
if state.generation == 1: thread.start()
told(woken=await loop.sleep(3600))"""
    source = app("rolling", top=SIGNALLED.format(name="SIGTERM"), body=body, options="workers=1")
    program.begin("rolling", source, ready=1)
    (program.folder / "strike").touch()
    program.wait_report(woken=True)
    (program.folder / "strike").unlink()
    assert program.stop() == 0


HOST = """
def host(name):
    told(host=name)
    if name == "ask":
        hotrestart.request_restart()
    if name == "end":
        hotrestart.request_stop()
"""


@in_place
def test_handlers_of_the_event_loop_s_own(program: Awaiting, kind: str) -> None:
    """One for another signal is called; one for HUP or TERM takes the place of ours, and may ask for what it wants."""
    body = """
events = asyncio.get_running_loop()
events.add_signal_handler(signal.SIGUSR1, host, "usr1")
events.add_signal_handler(signal.SIGHUP, host, "hup")
events.add_signal_handler(signal.SIGUSR2, host, "ask")
events.add_signal_handler(signal.SIGTERM, host, "end")
told(set=True)
await loop.stopping()"""
    program.begin(kind, app(kind, top=HOST, body=body))
    program.wait_report(set=True, generation=1)
    for number, name in ((signal.SIGUSR1, "usr1"), (signal.SIGHUP, "hup"), (signal.SIGUSR1, "usr1")):
        count = len(program.reports(host=name))
        os.kill(program.pid, number)
        program.wait_report(host=name, count=count + 1)
    assert not program.reports(asked="restart")
    os.kill(program.pid, signal.SIGUSR2)
    program.wait_generation(2).wait_report(set=True, generation=2)
    assert program.stop() == 0
    program.wait_report_anyhow(host="end")
    program.assert_clean()


def test_a_handler_that_was_there_before_is_called_as_well(program: Awaiting) -> None:
    """Of a program without the decorator: the signal's number still goes to the event loop's own pipe."""
    first = "asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, host, 'hup')"
    program.begin("bare", app("bare", top=HOST, first=first))
    program.hup()
    program.wait_generation(2).wait_report(host="hup")
    assert program.stop() == 0
    program.assert_clean()


@kinds
def test_subprocesses_run_on_beside_it(program: Awaiting, kind: str) -> None:
    body = """
process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
process.stdin.write(b"before")
told(said=(await process.stdout.read(6)).decode())
await loop.stopping()
told(said=(await process.communicate(b"after"))[0].decode(), status=process.returncode)"""
    program.begin(kind, app(kind, body=body))
    program.wait_report(said="before", count=2 if kind == "rolling" else 1)
    program.hup()
    program.wait_generation(2)
    program.wait_report(said="before", generation=2, count=2 if kind == "rolling" else 1)
    assert program.stop() == 0
    program.assert_clean()
    assert len(program.reports(said="after", status=0)) == len(program.reports(said="before"))


def test_descriptors_are_back_to_what_they_were(program: Awaiting) -> None:
    top = "def fds(): return len(os.listdir('/proc/self/fd'))"
    first = """
for turn in range(100):
    async with hotrestart.worker_loop() as loop:
        await loop.sleep(0)
    if turn == 0: before = fds()
told(grown=fds() - before)"""
    program.begin("decorated", app("decorated", top=top, first=first))
    for generation in range(2, 5):
        program.hup()
        program.wait_generation(generation)
    assert program.stop() == 0
    assert len(program.reports(grown=0)) == 4
    program.assert_clean()


# --- signs of life

BLOCKS = """
async def block():
    await wait_for("block")
    try:
        os.unlink("block")
    except FileNotFoundError:
        return
    told(blocks=True)
    for turn in range(10 ** 6):
        if os.path.exists("unblock"):
            break
        time.sleep(0.05)
        report(still_blocks=turn)
    told(unblocked=True)
"""


def test_an_event_loop_that_is_blocked_is_aborted_and_replaced(program: Awaiting) -> None:
    body = "task = asyncio.ensure_future(block())\nawait loop.stopping()\ntask.cancel()"
    program.begin("rolling", app("rolling", top=BLOCKS, body=body, options="workers=2, timeout=2"))
    (program.folder / "block").touch()
    pid = program.wait_report(blocks=True)["pid"]
    told = re.compile(f"worker {pid}.*: no turn of its loop for 2 s")
    program.wait_until(lambda: told.search(program.log()), "it is seen to hang")
    program.wait_report(ready=True, count=3)
    program.wait_log("in block")  # the dump of its stacks
    assert not program.reports(unblocked=True)
    assert program.stop() == 0


def test_beats_do_not_count_as_jobs_and_turns_do(program: Awaiting) -> None:
    body = """
await wait_for("jobs")
async for turn in loop: await asyncio.sleep(0.001)"""
    options = "workers=2, timeout=4, max_jobs=3, jitter=0"
    program.begin("rolling", app("rolling", body=body, options=options))

    def least_beats() -> int:
        return min((worker["beats"] for worker in control.status(program.pid)["workers"]), default=0)

    program.wait_until(lambda: least_beats() > 6, "beats")
    assert len(program.reports(ready=True)) == 2 + program.log().count("no turn of its loop")
    (program.folder / "jobs").touch()
    program.wait_report(ready=True, count=4)
    (program.folder / "jobs").unlink()
    assert program.stop() == 0


def test_pings_while_the_event_loop_turns_and_none_while_it_is_blocked(tmp_path: Path) -> None:
    body = "task = asyncio.ensure_future(block())\nawait loop.stopping()\ntask.cancel()"
    with (
        tempfile.TemporaryDirectory() as folder,
        made(folder, abstract=False) as manager,
        Managed(tmp_path / "program", manager) as managed,
    ):
        managed.begin(app("decorated", top=BLOCKS, body=body), env={"WATCHDOG_USEC": "100000"})
        managed.wait_heard("WATCHDOG", count=4)
        (managed.folder / "block").touch()
        managed.wait_report(still_blocks=0)
        since = managed.now()
        managed.wait_report(still_blocks=10)
        assert not any("WATCHDOG" in each.said for each in manager.heard[since:])
        (managed.folder / "unblock").touch()
        managed.wait_heard("WATCHDOG", since=since, count=4)
        managed.hup()
        managed.wait_words("READY", count=2)
        managed.wait_heard("WATCHDOG", since=managed.now(), count=4)
        assert {each.pid for each in manager.heard} == {managed.pid}
