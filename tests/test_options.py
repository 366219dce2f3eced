"""The two doors, `@restartable` and `worker_loop`: what they accept and refuse, and what they leave as it was."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import signal
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hotrestart
from hotrestart import errors
from tests.harness import Program, worker

pytestmark = pytest.mark.core

# --- options


def is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(), st.none(), max_size=1),
    st.just(object()),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324, 10**400, -(10**400)]),
)

DOORS = pytest.mark.parametrize(
    "door",
    [lambda **options: hotrestart.restartable(**options)(print), hotrestart.worker_loop],
    ids=["decorator", "loop"],
)


@DOORS
@pytest.mark.parametrize("name", ["ready_timeout", "grace"])
@given(value=ANYTHING)
def test_a_duration_is_a_number_of_seconds_or_refused(door: Any, name: str, value: Any) -> None:
    if is_seconds(value):
        door(**{name: value})
    else:
        with pytest.raises(errors.OptionError, match=f"^{name} is a number of seconds, 0 or more, not") as caught:
            door(**{name: value})
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, hotrestart.HotRestartError)


@DOORS
@given(value=ANYTHING)
def test_preflight_is_true_or_false_or_refused(door: Any, value: Any) -> None:
    if isinstance(value, bool):
        door(preflight=value)
    else:
        with pytest.raises(errors.OptionError, match=r"^preflight is True or False, not"):
            door(preflight=value)


@DOORS
def test_an_option_that_does_not_exist_is_refused(door: Any) -> None:
    with pytest.raises(TypeError, match="redy_timeout"):
        door(redy_timeout=1)


@pytest.mark.parametrize("thing", [1, "main", object(), [], classmethod(print)])
def test_what_cannot_be_called_is_refused(thing: Any) -> None:
    with pytest.raises(errors.OptionError, match="goes on a function"):
        hotrestart.restartable(thing)
    with pytest.raises(errors.OptionError, match="goes on a function"):
        hotrestart.restartable()(thing)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ready_timeout", "10 ** 400"),
        ("ready_timeout", "float('inf')"),
        ("ready_timeout", "1e300"),
        ("grace", "10 ** 400"),
        ("grace", "float('inf')"),
        ("grace", "1e300"),
    ],
)
def test_a_duration_that_is_accepted_works(program: Program, name: str, value: str) -> None:
    program.deploy(worker(1, f"({name}={value})"))
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_until(lambda: program.reports(ready=2) or "Error" in program.log(), "restarted, or an error")
    assert program.log() == ""
    assert program.stop() == 0


def test_a_wrong_option_ends_the_first_start_with_a_clear_error(program: Program) -> None:
    program.deploy(worker(1, "(grace='long')"))
    program.start()
    assert program.wait_exit() == 1
    assert "OptionError: grace is a number of seconds, 0 or more, not 'long'" in program.log()


# --- what can be decorated


def test_the_decorated_function_keeps_its_name_and_says_what_it_wraps() -> None:
    def main(port: int = 80) -> str:
        """Serve."""
        return f"served {port}"

    for decorated in (
        hotrestart.restartable(main),
        hotrestart.restartable()(main),
        hotrestart.restartable(grace=1)(main),
    ):
        for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
            assert getattr(decorated, name) == getattr(main, name)
        assert decorated.__wrapped__ is main
        assert inspect.signature(decorated) == inspect.signature(main)
        assert not inspect.iscoroutinefunction(decorated)
        assert decorated(port=81) == "served 81"


def test_a_decorated_coroutine_function_is_one() -> None:
    @hotrestart.restartable
    async def main(port: int) -> int:
        """Serve."""
        await asyncio.sleep(0)
        return port

    assert (main.__name__, main.__doc__) == ("main", "Serve.")
    assert inspect.iscoroutinefunction(main)
    assert asyncio.run(main(80)) == 80


class Service:
    """Things to decorate."""

    @hotrestart.restartable
    def run(self, port: int) -> tuple[Service, int]:
        return self, port

    @hotrestart.restartable(grace=1)
    async def run_async(self, port: int) -> tuple[Service, int]:
        return self, port

    @staticmethod
    @hotrestart.restartable
    def run_static(port: int) -> int:
        return port

    @classmethod
    @hotrestart.restartable
    def run_class(cls, port: int) -> tuple[type[Service], int]:
        return cls, port

    def __call__(self, port: int) -> tuple[Service, int]:
        return self, port


def test_methods_and_callable_objects_can_be_decorated() -> None:
    service = Service()
    assert service.run(1) == (service, 1)
    assert asyncio.run(service.run_async(2)) == (service, 2)
    assert Service.run_static(3) == 3
    assert Service.run_class(4) == (Service, 4)
    assert hotrestart.restartable(service)(5) == (service, 5)
    assert hotrestart.restartable(service.__call__)(6) == (service, 6)
    assert hotrestart.restartable(lambda: 7)() == 7


def test_annotations_are_not_evaluated_by_decorating(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 3.14 on to look at them is to evaluate them, and a name may be there for type checkers only."""
    from hotrestart import program

    class Main:
        @property
        def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
            raise NameError("name 'Config' is not defined")

        def __call__(self) -> int:
            return 1

    monkeypatch.setattr(program, "_ANNOTATIONS", "__annotate__")
    assert hotrestart.restartable(Main())() == 1


def test_a_loop_under_a_watchdog_takes_the_same_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000000")
    with hotrestart.worker_loop(control=False) as loop:
        for timeout in (-1.0, float("nan")):
            with pytest.raises(ValueError, match="a timeout of 0 seconds or more"):
                loop.sleep(timeout)
            with pytest.raises(ValueError, match="a timeout of 0 seconds or more"):
                loop.wait(timeout=timeout)


class AsyncService:
    async def __call__(self) -> bool:
        return is_handled()

    @staticmethod
    async def static() -> bool:
        return is_handled()


class AsyncHeir(AsyncService):
    pass


def is_handled() -> bool:
    """Whether a program runs: HUP does not kill."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL


@pytest.mark.parametrize("main", [AsyncService(), AsyncHeir(), AsyncService.__dict__["static"]])
def test_whatever_makes_a_coroutine_runs_as_a_program(main: Any) -> None:
    async def run() -> bool:
        return bool(await hotrestart.restartable(main)())

    assert asyncio.run(run())


def test_called_inside_itself_it_is_the_plain_function() -> None:
    @hotrestart.restartable
    def main(depth: int) -> list[Any]:
        return [signal.getsignal(signal.SIGHUP), *(main(depth - 1) if depth else [])]

    handlers = main(3)
    assert len(handlers) == 4
    assert all(each == handlers[0] for each in handlers)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_what_main_raises_is_raised_and_everything_is_put_back() -> None:
    @hotrestart.restartable
    def main() -> None:
        raise KeyError("port")

    before = left_as_found()
    for _ in range(3):
        with pytest.raises(KeyError, match="port"):
            main()
        assert left_as_found() == before


@DOORS
def test_outside_of_the_main_thread_it_is_refused(door: Any) -> None:
    found: list[BaseException] = []

    def enter() -> None:
        try:
            thing = door()
            with thing if hasattr(thing, "__enter__") else hotrestart.worker_loop():
                pass
        except BaseException as error:
            found.append(error)

    before = left_as_found()
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    [error] = found
    assert isinstance(error, errors.WrongThreadError)
    assert left_as_found() == before
    with hotrestart.worker_loop() as loop:  # and it has not spoilt it for the main thread
        assert loop.running


@pytest.mark.parametrize("generation", [1, 2])
def test_outside_of_the_main_thread_it_is_refused_in_each_generation(program: Program, generation: int) -> None:
    source = worker(1).replace(
        "    main()\n    report",
        f"    import threading\n    def wrong():\n        try: main()\n"
        f"        except BaseException as error: report(wrong=repr(error))\n"
        f"    if hotrestart.state.generation == {generation}:\n"
        f"        thread = threading.Thread(target=wrong)\n        thread.start()\n        thread.join()\n"
        f"    main()\n    report",
    )
    program.deploy(source.replace("import hotrestart", "import hotrestart, os, signal", 1))
    program.start()
    program.wait_report(ready=1)
    if generation == 2:
        program.hup()  # and the preflight is told the same
        program.wait_report(ready=2)
    wrong = [str(each["wrong"]) for each in program.reports() if "wrong" in each]
    assert len(wrong) == generation
    assert all(each.startswith("WrongThreadError") for each in wrong)
    assert program.stop() == 0


# --- worker_loop without the decorator


def left_as_found() -> tuple[Any, ...]:
    wakeup_fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup_fd)
    return (
        [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)],
        wakeup_fd,
        signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        hotrestart.state.should_stop,
    )


@pytest.mark.parametrize("mask", [set(), {signal.SIGHUP}, {signal.SIGUSR1, signal.SIGTERM}])
@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None])
def test_a_loop_puts_back_what_it_found(handler: Any, mask: set[int]) -> None:
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    handlers_before = [signal.signal(number, handler) for number in numbers]
    mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, mask)
    try:
        before = left_as_found()
        for _ in range(2):
            with hotrestart.worker_loop() as loop:
                assert loop.running
                if handler is not signal.SIG_IGN:
                    assert all(signal.getsignal(number) != handler for number in numbers)
                else:
                    assert all(signal.getsignal(number) == handler for number in numbers)
            assert left_as_found() == before
            with pytest.raises(KeyError), hotrestart.worker_loop():
                raise KeyError
            assert left_as_found() == before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask_before)
        for number, each in zip(numbers, handlers_before, strict=True):
            signal.signal(number, each)


def test_a_loop_leaves_somebody_elses_wakeup_fd_alone() -> None:
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    try:
        with hotrestart.worker_loop():
            assert left_as_found()[1] == theirs.fileno()
        assert left_as_found()[1] == theirs.fileno()
    finally:
        signal.set_wakeup_fd(-1)
        ours.close()
        theirs.close()


BARE_LOOP = """
import hotrestart, atexit
VERSION = {version}
atexit.register(lambda: report(exit_handler=hotrestart.state.generation))
with hotrestart.worker_loop() as loop:
    report(ready=hotrestart.state.generation, version=VERSION)
    for turn in loop:
        loop.sleep()
report(after_the_block=hotrestart.state.reason)
"""


def test_a_program_with_a_loop_and_no_decorator_restarts_when_it_ends(program: Program) -> None:
    for version in (1, 2, 3):
        program.deploy(BARE_LOOP.format(version=version))
        if version == 1:
            program.start()
        else:
            program.hup()
        program.wait_report(ready=version, version=version)
    assert program.stop() == 0
    assert [next(iter(each)) for each in program.reports()] == ["ready", "after_the_block", "exit_handler"] * 3
    assert program.reports()[-2:] == [{"after_the_block": "stop"}, {"exit_handler": 3}]


def test_a_hup_between_two_loops_is_the_hosts_own_affair(program: Program) -> None:
    """The block has put back what it found: a handler of the host's."""
    program.deploy(
        "import hotrestart, signal\nsignal.signal(signal.SIGHUP, lambda *_: report(host='hup'))\n"
        "with hotrestart.worker_loop() as loop:\n    pass\n"
        "report(between=True)\nwhile not signal.sigtimedwait([signal.SIGUSR1], 0.01): pass\n"
        "with hotrestart.worker_loop() as loop:\n    report(ready=hotrestart.state.generation)\n    loop.sleep()\n"
    )
    program.deploy((program.folder / "app.py").read_text().replace("report(between", BLOCK_USR1 + "report(between"))
    program.start()
    program.wait_report(between=True)
    program.hup()
    program.wait_report(host="hup")
    os.kill(program.pid, signal.SIGUSR1)
    program.wait_report(ready=1)
    assert program.stop() == 0


BLOCK_USR1 = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"


# --- the loop


def test_iterating_counts_turns_until_the_program_is_asked_to_end(program: Program) -> None:
    program.deploy(
        """
import hotrestart
turns = []
with hotrestart.worker_loop(preflight=False) as loop:
    for turn in loop:
        turns.append(turn)
        if turn == 4:
            hotrestart.request_stop()
report(turns=turns)
"""
    )
    program.start()
    assert program.wait_exit() == 0
    assert program.reports() == [{"turns": [0, 1, 2, 3, 4]}]


def test_waiting_gives_what_is_readable_and_ends_when_the_program_is_asked_to_end(program: Program) -> None:
    program.deploy(
        "import hotrestart, os, socket\na, b = socket.socketpair()\nread_end, write_end = os.pipe()\n"
        "with hotrestart.worker_loop() as loop:\n"
        "    report(nothing=loop.wait(a, read_end, timeout=0.01))\n"
        "    b.send(b'x')\n    report(socket=loop.wait(a, read_end) == [a])\n"
        "    os.write(write_end, b'x')\n    report(both=loop.wait(a, read_end) == [a, read_end])\n"
        "    a.recv(1), os.read(read_end, 1)\n"
        "    report(ready=hotrestart.state.generation)\n"
        "    report(ended=loop.wait(a, read_end), running=loop.running)\n"
    )
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2)
    assert program.reports()[:5] == [
        {"nothing": []},
        {"socket": True},
        {"both": True},
        {"ready": 1},
        {"ended": [], "running": False},
    ]
    assert program.stop() == 0


def test_several_threads_each_have_a_loop_in_one_program(program: Program) -> None:
    program.deploy(
        """
import hotrestart, threading

def work(number):
    with hotrestart.worker_loop() as loop:
        report(working=number, generation=hotrestart.state.generation)
        while loop.running:
            loop.sleep()
        report(done=number, generation=hotrestart.state.generation)

@hotrestart.restartable
def main():
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

main()
"""
    )
    program.start()
    for generation in (1, 2):
        for number in range(4):
            program.wait_report(working=number, generation=generation)
        program.hup()
        for number in range(4):
            program.wait_report(done=number, generation=generation)
    program.wait_report(working=3, generation=3)
    assert program.stop() == 0


def test_a_loop_can_be_entered_while_another_thread_loads_what_an_ending_needs(program: Program) -> None:
    """The first sleep of one thread loads modules; a slow disk is played by a loader that waits."""
    program.deploy(
        """
import hotrestart, threading
from importlib.machinery import SourceFileLoader

is_loading, may_load = threading.Event(), threading.Event()
load = SourceFileLoader.exec_module

def load_slowly(self, module):
    if module.__name__ == "hotrestart.takeover":
        is_loading.set()
        may_load.wait(2)
    load(self, module)

SourceFileLoader.exec_module = load_slowly

def sleep():
    with hotrestart.worker_loop() as loop:
        loop.sleep(0)
    is_loading.set()

def enter():
    is_loading.wait()
    try:
        with hotrestart.worker_loop() as loop:
            report(running=loop.running)
    except Exception as error:
        report(error=repr(error))
    may_load.set()

@hotrestart.restartable
def main():
    threads = [threading.Thread(target=each) for each in (sleep, enter)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

main()
"""
    )
    program.start()
    assert program.wait_exit() == 0
    assert program.reports() == [{"running": True}]


# --- asyncio

ASYNC = """
import asyncio, hotrestart, signal

def told_by_callback(loop, asked, worker_loop):
    hotrestart.on_stop(lambda: loop.call_soon_threadsafe(asked.set))

def told_by_descriptor(loop, asked, worker_loop):
    loop.add_reader(worker_loop.fileno(), asked.set)

def told_by_descriptor_and_flag(loop, asked, worker_loop):
    loop.add_reader(worker_loop.fileno(), lambda: hotrestart.state.should_stop and asked.set())

@hotrestart.restartable
async def main():
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    loop.slow_callback_duration = 3600  # dev mode logs callbacks of 0.1 s: a busy machine has them
    signal.signal(signal.SIGUSR1, lambda *_: report(usr1=True))
    with hotrestart.worker_loop() as worker_loop:
        {told}(loop, asked, worker_loop)
        report(ready=hotrestart.state.generation)
        waiting = asyncio.ensure_future(asked.wait())
        while not waiting.done():
            await asyncio.wait([waiting], timeout=0.01)
        report(asked=hotrestart.state.should_stop)
        loop.remove_reader(worker_loop.fileno())

asyncio.run(main())
report(ended=hotrestart.state.reason)
"""
TOLD = pytest.mark.parametrize(
    "told",
    ["told_by_callback", "told_by_descriptor_and_flag", "told_by_descriptor"],
)


@TOLD
@pytest.mark.parametrize("options", [[], ["-X", "dev", "-W", "error"]], ids=["", "dev"])
def test_a_coroutine_restarts_when_its_event_loop_has_ended(program: Program, told: str, options: list[str]) -> None:
    program.deploy(ASYNC.format(told=told))
    program.start(*options, "app.py")
    for generation in (1, 2):
        program.wait_report(ready=generation)
        program.hup()
    program.wait_report(ready=3)
    assert program.reports(asked=True) == [{"asked": True}] * 2
    assert program.log() == ""
    program.term()
    program.wait_report(ended="stop")


@TOLD
def test_an_event_loop_is_not_told_to_end_by_a_hup_that_is_refused(program: Program, told: str) -> None:
    program.deploy(ASYNC.format(told=told))
    program.start()
    program.wait_report(ready=1)
    program.deploy("1 / 0")
    program.hup()
    program.wait_log("restart refused")
    os.kill(program.pid, signal.SIGUSR1)
    program.wait_report(usr1=True)
    assert program.reports()[-1] == {"usr1": True}
    program.term()
    program.wait_report(ended="stop")


@TOLD
def test_an_event_loop_is_not_told_to_end_by_a_signal_of_the_hosts(program: Program, told: str) -> None:
    program.deploy(ASYNC.format(told=told))
    program.start()
    program.wait_report(ready=1)
    for count in range(1, 6):
        os.kill(program.pid, signal.SIGUSR1)
        program.wait_report(usr1=True, count=count)
    assert [each for each in program.reports() if "asked" in each] == []
    program.term()
    program.wait_report(ended="stop")
