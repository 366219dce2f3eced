"""`async with worker_loop()` in this process: what sleeps and when it wakes, what is left behind, who is watched."""

from __future__ import annotations

import asyncio
import math
import os
import select
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import ModuleType
from typing import Any

import pytest

import hotrestart
from hotrestart import aio, errors, fds, role, serving, state, systemd
from hotrestart.sleeper import Sleeper
from tests.harness import PATIENCE

pytestmark = pytest.mark.core


class Pulse:
    """What the supervisor would see of a worker."""

    period = 0.001

    def __init__(self) -> None:
        self.turns = self.beats = 0
        self.is_at_work = False

    def turn(self) -> None:
        self.turns += 1
        self.beat()

    def beat(self) -> None:
        self.beats, self.is_at_work = self.beats + 1, True

    def rest(self) -> None:
        self.is_at_work = False


class World:
    """A program that can be asked to end."""

    def __init__(self) -> None:
        self.sleeper = Sleeper()
        self.has_heir = False

    def ready(self) -> None: ...
    def prepare_to_end(self) -> None: ...

    def end(self) -> None:
        state.end("stop")
        self.sleeper.wake(for_good=True)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    before, role.current = role.current, world  # type: ignore[assignment]
    try:
        yield world
    finally:
        role.current = before
        state.reset()
        world.sleeper.close()


def run(main: Coroutine[Any, Any, object]) -> None:
    """Run it; what the event loop complains of is an error."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        await asyncio.wait_for(main, PATIENCE)

    asyncio.run(watched(), debug=True)
    assert complaints == []


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- sleeps


def test_a_sleep_says_whether_the_program_was_asked_to_end(world: World) -> None:
    async def main() -> None:
        async with hotrestart.worker_loop() as loop:
            assert [await loop.sleep(0), await loop.sleep(0.001)] == [False, False]
            for timeout in (None, 3600, math.inf):
                sleep = asyncio.ensure_future(loop.sleep(timeout))
                await turns()
                assert not sleep.done()
                sleep.cancel()
            sleeps = [asyncio.ensure_future(loop.sleep(each)) for each in (None, 3600, math.inf)]
            await turns()
            assert loop.running
            world.end()
            assert await asyncio.gather(*sleeps) == [True, True, True]
            assert not loop.running
            assert [await loop.sleep(0), await loop.sleep(3600), await loop.sleep()] == [True, True, True]
            await loop.stopping()

    run(main())


def test_what_is_no_time_is_refused(world: World) -> None:
    async def main() -> None:
        async with hotrestart.worker_loop() as loop:
            for timeout in (-1, -0.001, math.nan):
                with pytest.raises(ValueError, match="a timeout of 0 seconds or more"):
                    await loop.sleep(timeout)

    run(main())


def test_a_program_that_was_asked_before_sleeps_no_more(world: World) -> None:
    async def main() -> None:
        async with hotrestart.worker_loop() as loop:
            await loop.stopping()
            assert await loop.sleep(3600)
            assert [turn async for turn in loop] == []

    world.end()
    run(main())


def test_the_flag_counts_before_the_event_loop_has_had_its_turn(world: World) -> None:
    async def main() -> None:
        async with hotrestart.worker_loop() as loop:
            state.end("stop")
            assert await loop.sleep(0)

    run(main())


def test_a_sleep_that_is_cancelled_or_timed_out_leaves_all_usable(world: World) -> None:
    async def main() -> None:
        async with hotrestart.worker_loop() as loop:
            for sleep in (loop.stopping, loop.sleep, lambda: loop.sleep(3600)):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(sleep(), 0.001)  # type: ignore[operator]
                task = asyncio.ensure_future(sleep())  # type: ignore[operator]
                await turns()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert not await loop.sleep(0)
            last = asyncio.ensure_future(loop.stopping())
            await turns()
            assert not last.done()
            world.end()
            await last

    run(main())


def test_turns_are_counted_and_let_other_tasks_run(world: World) -> None:
    async def main() -> None:
        others: list[int] = []

        async def other() -> None:
            while True:
                others.append(0)
                await asyncio.sleep(0)

        async with hotrestart.worker_loop() as loop:
            task = asyncio.ensure_future(other())
            seen = []
            async for turn in loop:
                seen.append((turn, len(others)))
                if turn == 5:
                    world.end()
            assert [turn for turn, _ in seen] == list(range(6))
            assert len({count for _, count in seen}) == 6
            task.cancel()

    run(main())


def test_a_loop_that_is_broken_off_can_be_begun_anew(world: World) -> None:
    async def main() -> None:
        async with hotrestart.worker_loop() as loop:
            for _ in range(2):
                async for turn in loop:
                    if turn == 2:
                        break
                assert turn == 2

    run(main())


# --- several, and their ends


def test_several_at_the_same_time_and_after_each_other(world: World) -> None:
    async def sleeps() -> bool:
        async with hotrestart.worker_loop() as outer, hotrestart.worker_loop() as inner:
            return await inner.sleep() and await outer.sleep()

    async def main() -> None:
        os.write(world.sleeper.wakeup_fd(), b"x")
        for _ in range(3):
            async with hotrestart.worker_loop() as loop:
                assert not await loop.sleep(0.001)
        tasks = [asyncio.ensure_future(sleeps()) for _ in range(3)]
        await turns()
        os.write(world.sleeper.wakeup_fd(), b"xx")  # a signal: one of them reads it
        await asyncio.sleep(0.001)
        assert not any(task.done() for task in tasks)
        world.end()
        assert await asyncio.gather(*tasks) == [True] * 3

    run(main())


def test_the_same_object_serves_one_block_at_a_time(world: World) -> None:
    async def main() -> None:
        again = hotrestart.worker_loop()
        for _ in range(2):
            async with again as loop:
                with pytest.raises(errors.HotRestartError, match="a worker_loop\\(\\) of its own"):
                    async with again:
                        pytest.fail("entered")
                assert not await loop.sleep(0)

    run(main())


@pytest.mark.parametrize("asked", [True, False])
def test_the_end_of_the_block_ends_the_sleeps_of_its_tasks(world: World, asked: bool) -> None:
    async def main() -> None:
        async with hotrestart.worker_loop() as loop:
            sleeps = [asyncio.ensure_future(loop.sleep(each)) for each in (None, 3600)]
            await turns()
            if asked:
                world.end()  # and the body is faster than the event loop
        ends = await asyncio.gather(*sleeps, loop.sleep(), return_exceptions=True)
        if asked:
            assert ends == [True] * 3
        else:
            assert [type(each) for each in ends] == [errors.HotRestartError] * 3

    run(main())


def test_an_exception_in_the_body_goes_through(world: World) -> None:
    async def main() -> None:
        for error in (KeyError, SystemExit, KeyboardInterrupt, asyncio.CancelledError):
            with pytest.raises(error):
                async with hotrestart.worker_loop():
                    raise error

    run(main())


def test_a_block_that_cannot_be_entered_leaves_nothing_behind(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        def fails(self: object) -> None:
            raise KeyError("live")

        monkeypatch.setattr(aio.AsyncWorkerLoop, "_live", fails)
        with pytest.raises(KeyError, match="live"):
            async with hotrestart.worker_loop():
                pytest.fail("entered")
        monkeypatch.undo()

    world.sleeper.wakeup_fd()
    before = sorted(os.listdir("/dev/fd"))
    run(main())
    assert sorted(os.listdir("/dev/fd")) == before


def test_a_block_that_is_left_by_the_garbage_collector_gives_everything_back(world: World) -> None:
    async def main() -> None:
        async with hotrestart.worker_loop() as loop:
            await loop.stopping()

    world.pulse = Pulse()  # type: ignore[attr-defined]
    before = sorted(os.listdir("/dev/fd"))
    events, coroutine = asyncio.new_event_loop(), main()
    task = events.create_task(coroutine)
    events.run_until_complete(turns())
    events.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine.close()
    assert sorted(os.listdir("/dev/fd")) == before
    assert not world.pulse.is_at_work  # type: ignore[attr-defined]


def test_the_numbers_of_standard_streams_are_not_taken(world: World) -> None:
    async def main() -> None:
        saved = os.dup(0)
        os.close(0)
        try:
            async with hotrestart.worker_loop() as loop:
                with pytest.raises(OSError):
                    os.fstat(0)
                assert not await loop.sleep(0)
        finally:
            os.dup2(saved, 0)
            os.close(saved)

    run(main())


@pytest.mark.parametrize("where", ["entered in it", "entered before"])
def test_a_plain_block_lets_the_event_loop_wake_up_for_signals(world: World, where: str) -> None:
    nudges = world.sleeper.wakeup_fd()
    before = set(fds.open_fds())

    async def is_heard() -> bool:
        os.write(nudges, b"x")
        await turns()
        return world.sleeper.unheard() == b""

    async def main(loop: hotrestart.WorkerLoop) -> None:
        if where == "entered in it":
            with loop, loop:
                assert await is_heard()
        else:
            assert not await is_heard()
            loop.fileno()
        assert await is_heard() is (where == "entered before")

    loop = hotrestart.worker_loop()
    if where == "entered in it":
        run(main(loop))
    else:
        with loop:
            run(main(loop))
    assert set(fds.open_fds()) == before


def test_a_plain_block_can_be_entered_where_the_event_loop_cannot_watch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sleeper.wakeup_fd()
    before = set(fds.open_fds())

    async def main() -> None:
        inside = set(fds.open_fds())
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", None)
        with hotrestart.worker_loop() as loop:
            assert loop.running
            assert set(fds.open_fds()) == inside
        monkeypatch.undo()

    run(main())
    assert set(fds.open_fds()) == before


def test_a_block_can_be_entered_while_another_thread_imports_asyncio(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "asyncio", ModuleType("asyncio"))  # so it is there from the import's first moment
    with hotrestart.worker_loop() as loop:
        assert loop.running


def test_a_block_whose_entry_fails_leaves_no_watch_behind(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sleeper.wakeup_fd()

    def fail() -> None:
        raise OSError("nobody to tell")

    async def main() -> None:
        inside = set(fds.open_fds())
        monkeypatch.setattr(world, "ready", fail)
        with pytest.raises(OSError, match="nobody to tell"), hotrestart.worker_loop():
            pass
        assert set(fds.open_fds()) == inside

    run(main())


def test_a_wake_that_asks_for_nothing_does_not_keep_the_event_loop_busy(world: World) -> None:
    class Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
        turns = 0

        def select(self, timeout: float | None = None) -> Any:
            self.turns += 1
            return super().select(timeout)

    async def main() -> None:
        async with hotrestart.worker_loop() as loop:
            world.sleeper.wake(for_good=True)
            assert not await loop.sleep(0.05)

    selector = Selector()
    events = asyncio.SelectorEventLoop(selector)
    events.run_until_complete(main())
    events.close()
    assert selector.turns < 10


# --- signs of life


def test_beats_are_no_turns_and_turns_are_counted(world: World) -> None:
    async def main() -> None:
        pulse = world.pulse = Pulse()  # type: ignore[attr-defined]
        async with hotrestart.worker_loop() as loop:
            while pulse.beats < 10:
                assert not await loop.sleep(0.001)
            assert pulse.turns == 0
            assert pulse.is_at_work
            assert loop.running
            assert pulse.turns == 1
            async for turn in loop:
                if turn == 3:
                    break
            assert pulse.turns == 5
        beats = pulse.beats
        await asyncio.sleep(0.01)
        assert (pulse.beats, pulse.is_at_work) == (beats, False)

    run(main())


def test_a_handler_of_streams_that_does_not_await_is_seen(world: World) -> None:
    seen: list[object] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((pulse.turns, pulse.is_at_work))
        world.end()

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
            async with hotrestart.worker_loop() as loop:
                await serving.serve_streams(serve, listener, loop)

    pulse = world.pulse = Pulse()  # type: ignore[attr-defined]
    pulse.period = 3600
    run(main())
    assert seen == [(1, True)]


def in_a_thread(function: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def protected() -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=protected)
    thread.start()
    thread.join()
    assert failures == []


def test_the_loop_of_another_thread_leaves_signals_and_the_watchdog_to_the_main_thread(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(systemd, "notify", lambda *words: said.extend(words))
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    os.write(world.sleeper.wakeup_fd(), b"x")

    async def main() -> None:
        async with hotrestart.worker_loop() as loop:
            assert not await loop.sleep(0.02)

    in_a_thread(lambda: run(main()))
    assert said == []
    assert select.select([world.sleeper.nudge_fileno()], [], [], 0)[0]
    run(main())
    assert len(said) > 1
    assert not select.select([world.sleeper.nudge_fileno()], [], [], 0)[0]
