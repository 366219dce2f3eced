"""Other event loops than asyncio's: uvloop, trio and anyio, in place and rolling, restarted while clients ask.

uvloop has asyncio's interface, so `async with worker_loop()` is for it too. trio, and anyio on trio, wait for the
loop's descriptor. trio sets a wakeup fd of its own and warns if there is one already: so either the program is entered
inside `trio.run` (in place), or the one that is there is taken away before (rolling, where workers are made first).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.hazards.event_loops import check_loop_of_its_own, check_shared_loop_refused
from tests.rolling.programs import Rolling, Traffic

TOP = """
import os, signal
import hotrestart
from hotrestart import serving, state

VERSION = {version}

def told(**what):
    report(**what, generation=state.generation, version=VERSION, pid=os.getpid())

def answer():
    return b"here %d %d" % (VERSION, os.getpid())
"""

UVLOOP = """
import uvloop

async def handle(reader, writer):
    await reader.readline()
    writer.write(answer())

async def serve():
    listener = hotrestart.listen("127.0.0.1:0")
    told(address=listener.getsockname())
    async with hotrestart.worker_loop() as loop:
        told(ready=True, library=type(loop._events).__module__)
        await serving.serve_streams(handle, listener, loop)
    listener.close()
    told(asked=state.reason)
"""

TRIO = """
import trio

async def accept(listener, handlers):
    while True:
        connection, _ = await listener.accept()
        handlers.start_soon(handle, trio.SocketStream(connection))

async def handle(stream):
    async with stream:
        await stream.receive_some()
        await stream.send_all(answer())

async def serve():
    with trio.socket.from_stdlib_socket(hotrestart.listen("127.0.0.1:0")) as listener:
        told(address=listener.getsockname())
        with hotrestart.worker_loop() as loop:
            told(ready=True, library="trio")
            async with trio.open_nursery() as handlers:       # waits for all of them
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(accept, listener, handlers)
                    await trio.lowlevel.wait_readable(loop.fileno())
                    accepting.cancel_scope.cancel()
    told(asked=state.reason)
"""

ANYIO = """
import anyio, anyio.abc, sniffio

async def accept(listener, handlers):
    while True:
        await anyio.wait_readable(listener)
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue                                          # another worker has it
        handlers.start_soon(handle, connection)               # an await here could be cancelled, and lose it

async def handle(connection):
    async with await anyio.abc.SocketStream.from_socket(connection) as stream:
        await stream.receive()
        await stream.send(answer())

async def serve():
    with hotrestart.listen("127.0.0.1:0") as listener:
        told(address=listener.getsockname())
        with hotrestart.worker_loop() as loop:
            told(ready=True, library=anyio.get_current_task().__class__.__name__)
            async with anyio.create_task_group() as handlers:
                async with anyio.create_task_group() as accepting:
                    accepting.start_soon(accept, listener, handlers)
                    await anyio.wait_readable(loop.fileno())
                    accepting.cancel_scope.cancel()
    told(asked=state.reason)
"""

IN_PLACE = """
@hotrestart.restartable
async def main():
    await serve()

if __name__ == "__main__":
    {run_main}
"""

ROLLING = """
@hotrestart.restartable(workers=2)
def main():
    {before}
    {run_serve}

if __name__ == "__main__":
    main()
"""

NONE = "signal.set_wakeup_fd(-1)  # trio has one of its own, and warns of another"
LIBRARIES = {
    "uvloop": (UVLOOP, "uvloop.run({}())", "pass"),
    "trio": (TRIO, "trio.run({})", NONE),
    "anyio-asyncio": (ANYIO, "anyio.run({})", "pass"),
    "anyio-trio": (ANYIO, "anyio.run({}, backend='trio')", NONE),
}
KINDS = {"in place": IN_PLACE, "rolling": ROLLING}


def source(library: str, kind: str, version: int) -> str:
    body, run, before = LIBRARIES[library]
    main = KINDS[kind].format(run_main=run.format("main"), run_serve=run.format("serve"), before=before)
    return TOP.format(version=version) + body + main


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Rolling]:
    with Rolling(tmp_path / "program") as each:
        yield each


def begin(program: Rolling, library: str, kind: str) -> None:
    need(*{*library.split("-")} - {"asyncio"})
    program.deploy(source(library, kind, 1))
    program.start("-X", "dev", "-W", "error", "app.py")
    wait_version(program, kind, 1)


def wait_version(program: Rolling, kind: str, version: int) -> None:
    program.wait_report(ready=True, version=version, count=2 if kind == "rolling" else 1)
    if kind == "rolling":
        program.wait_log(f"generation {version} serves")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_restarts_under_load(program: Rolling, library: str, kind: str) -> None:
    begin(program, library, kind)
    with Traffic(program) as traffic:
        for version in range(2, 4):
            program.deploy(source(library, kind, version))
            program.hup()
            wait_version(program, kind, version)
            program.wait_until(lambda: str(version) in traffic.versions(), "an answer of the new code")  # noqa: B023
    assert program.stop() == 0
    assert traffic.versions() == {"1", "2", "3"}
    for word in ("Traceback", "RuntimeWarning", "Error"):
        assert word not in program.log()
    pids = [(each["pid"], each["version"]) for each in program.reports(ready=True)]
    assert sorted(pids) == sorted((each["pid"], each["version"]) for each in program.reports() if "asked" in each)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_code_that_is_refused_leaves_the_old_at_work(program: Rolling, library: str, kind: str) -> None:
    begin(program, library, kind)
    with Traffic(program) as traffic:
        program.deploy("import nowhere")
        program.hup()
        program.wait_log("No module named 'nowhere'")
        seen = len(traffic.answers)
        program.wait_until(lambda: len(traffic.answers) > seen + 3, "answers of the old code")
    assert program.stop() == 0
    assert traffic.versions() == {"1"}


def test_h43_workers_refuse_a_uvloop_that_they_would_share(program: Rolling) -> None:
    need("uvloop")
    check_shared_loop_refused(program, "uvloop")


def test_h43_a_worker_that_was_not_forked_has_its_uvloop_to_itself(program: Rolling) -> None:
    need("uvloop")
    check_loop_of_its_own(program, "uvloop")
