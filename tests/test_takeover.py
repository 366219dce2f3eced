"""The first thing a new generation does: take what is sound and meant for it, and be left unharmed by all else."""

from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart import command, inheritance, leash, listeners, signals, state, takeover
from hotrestart.shrugging import FOR_SUPERVISORS
from tests.harness import PATIENCE, clean_environment

pytestmark = pytest.mark.core

VARIABLE = command.VARIABLE


@pytest.fixture(autouse=True)
def nothing_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All that `take_over` changes is put back."""
    for name in ("generation", "should_stop", "reason"):
        monkeypatch.setattr(state, name, getattr(state, name))
    first = copy.copy(command.first)
    monkeypatch.setattr(takeover, "report_fd", -1)
    hook = sys.excepthook
    yield
    forget()
    for name in command.Command.__slots__:
        setattr(command.first, name, getattr(first, name))
    sys.excepthook = hook
    os.environ.pop(VARIABLE, None)


def forget() -> None:
    signals.release()
    listeners.forget()
    inheritance.forget()


def sound(**changes: Any) -> dict[str, Any]:
    """A document as the generation before writes it, for this process."""
    return {
        "role": "generation",
        "pid": os.getpid(),
        "generation": 7,
        "listeners": [],
        "kept": {},
        "state": {"jobs": [1, 2]},
        "fds": {"3": [4, 5]},
        "blocked": [int(signal.SIGUSR2)],
        "ignored": [int(signal.SIGUSR1)],
        "held": [int(signal.SIGHUP)],
        "since": 4e9,
        "helpers": [],
        "member": [],
        "announcing": {},
        "timeout": 60,
        "report": -1,
        **changes,
    }


def take_over(document: dict[str, Any]) -> None:
    fd, os.environ[VARIABLE] = inheritance.write(document)
    try:
        takeover.take_over()
    finally:
        assert VARIABLE not in os.environ
        try:
            os.close(fd)
        except OSError:
            pass  # it was meant for us, and is closed


def nothing_was_taken() -> bool:
    return state.generation == 1 and inheritance.inherited("jobs") is None


def test_a_sound_document_is_taken_over_as_a_whole() -> None:
    take_over(sound())
    assert state.generation == 7
    assert inheritance.inherited("jobs") == [1, 2]
    assert command.first.fds == {3: (4, 5)}
    assert (command.first.blocked, command.first.ignored) == ([signal.SIGUSR2], [signal.SIGUSR1])
    assert command.first.since == 4e9
    assert signals._held is not None


def test_without_the_variable_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    takeover.take_over()
    assert nothing_was_taken()
    assert caplog.records == []


def test_a_signal_that_came_before_is_told_to_the_first_block() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        signal.raise_signal(signal.SIGHUP)
        take_over(sound())
        with signals.handling():
            assert state.reason == "restart"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_listeners_and_kept_files_are_taken_over() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        fd, kept = os.dup(bound.fileno()), os.open(os.devnull, os.O_RDONLY)
        os.set_inheritable(kept, True)
        take_over(
            sound(
                listeners=[{"fd": fd, "inode": os.fstat(fd).st_ino, "address": "127.0.0.1:0", "name": "web"}],
                kept={"null": {"fd": kept, "inode": os.fstat(kept).st_ino}},
            )
        )
        with listeners.listen("127.0.0.1:0", name="web") as listener:
            assert listener.getsockname() == bound.getsockname()
        assert inheritance.inherited("null") == kept
        assert not os.get_inheritable(kept)
        os.close(kept)


def test_what_is_not_the_file_it_says_is_left_out_with_a_warning_each(caplog: pytest.LogCaptureFixture) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        take_over(
            sound(
                listeners=[
                    {"fd": null, "inode": os.fstat(null).st_ino, "address": "a device", "name": None},
                    {"fd": 10**6, "inode": 1, "address": "not open", "name": None},
                ],
                kept={"changed": {"fd": null, "inode": 1}, "closed": {"fd": 10**6, "inode": 1}},
            )
        )
        assert state.generation == 7
        assert len(caplog.records) == 4
        assert inheritance.inherited("changed") is None
        assert inheritance.inherited("closed") is None
        assert os.fstat(null)
    finally:
        os.close(null)


@pytest.mark.parametrize("key", list(takeover._SHAPE))
def test_a_document_with_a_part_missing_is_ignored_as_a_whole(key: str, caplog: pytest.LogCaptureFixture) -> None:
    document = sound()
    del document[key]
    take_over(document)
    assert nothing_was_taken()
    assert len(caplog.records) == 1


GARBLED: list[dict[str, Any]] = [
    {"member": None},
    {"member": {}},
    {"announcing": []},
    {"announcing": {"fds": ["3"]}},
    {"announcing": {"fds": [-1]}},
    {"member": ["3"]},
    {"member": [-1]},
    {"member": [3.0]},
    {"member": [2**31]},
    {"member": [None, 1, 2]},
    {"role": "master"},
    {"role": None},
    {"generation": "7"},
    {"generation": True},
    {"generation": 7.0},
    {"since": "now"},
    {"since": None},
    {"report": "x"},
    {"state": []},
    {"state": None},
    {"kept": []},
    {"kept": {"x": None}},
    {"kept": {"x": {}}},
    {"kept": {"x": {"fd": "3", "inode": 1}}},
    {"kept": {"x": {"fd": -1, "inode": 1}}},
    {"kept": {"x": {"fd": 3, "inode": None}}},
    {"kept": {"x": 3}},
    {"listeners": {}},
    {"listeners": [None]},
    {"listeners": ["x"]},
    {"listeners": [[]]},
    {"listeners": [{}]},
    {"listeners": [{"fd": 3, "inode": 1, "address": 5, "name": None}]},
    {"listeners": [{"fd": 3, "inode": 1, "address": "x", "name": 5}]},
    {"listeners": [{"fd": -3, "inode": 1, "address": "x", "name": None}]},
    {"listeners": [{"fd": 3.0, "inode": 1, "address": "x", "name": None}]},
    {"fds": {"x": [1, 2]}},
    {"fds": {"3": [1]}},
    {"fds": {"3": None}},
    {"fds": {"-3": [1, 2]}},
    {"fds": {"3": ["1", "2"]}},
    {"blocked": [-1]},
    {"blocked": ["x"]},
    {"blocked": [65]},
    {"ignored": [None]},
    {"held": [1.0]},
    {"held": [[]]},
    {"held": {"1": 1}},
]


@pytest.mark.parametrize("change", GARBLED, ids=str)
def test_a_garbled_document_is_ignored_as_a_whole_with_one_warning(
    change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    before = os.listdir("/proc/self/fd")
    take_over(sound(**change))
    assert nothing_was_taken()
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


NO_NUMBERS = st.recursive(
    st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.sampled_from([key for key in takeover._SHAPE if key != "state"]), NO_NUMBERS)
def test_any_part_replaced_by_anything_never_crashes_or_leaks(
    caplog: pytest.LogCaptureFixture, key: str, value: Any
) -> None:
    caplog.clear()
    state.generation = 1
    before = os.listdir("/proc/self/fd")
    take_over(sound(**{key: value}))
    assert len(caplog.records) == (1 if state.generation == 1 else 0)
    forget()
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("change", [{"pid": 1}, {"format": 99}, {"pid": None, "parent": -1}], ids=str)
def test_a_document_for_somebody_else_is_ignored(change: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    take_over(sound(**change))
    assert nothing_was_taken()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_in_another_thread_signals_stay_blocked_until_the_first_block() -> None:
    """A program may import hotrestart in a thread."""
    code = """if True:
        import os, signal, threading
        from hotrestart import inheritance, signals, state, takeover
        from tests.test_takeover import sound
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
        _, os.environ["HOTRESTART"] = inheritance.write(sound())
        thread = threading.Thread(target=takeover.take_over)
        thread.start()
        thread.join()
        signal.raise_signal(signal.SIGHUP)
        assert state.generation == 7
        with signals.handling():
            assert state.reason == "restart"
    """
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


# the real thing: a fresh interpreter that imports hotrestart with the variable in its environment


class Import:
    """Starts Python with a document meant for it, and tells what it printed and reported."""

    def __init__(self) -> None:
        self.reported = b""
        self.output = ""
        self.returncode = 0

    def run(self, code: str, keep: tuple[int, ...] = (), **changes: Any) -> Import:
        report, report_end = os.pipe()
        document = {**sound(report=report_end, **changes), "parent": os.getpid()}
        del document["pid"]
        fd, value = inheritance.write(document)
        try:
            done = subprocess.run(
                [sys.executable, "-c", code],
                env=clean_environment(**{VARIABLE: value}),
                pass_fds=[fd, report_end, *keep],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        finally:
            os.close(fd)
            os.close(report_end)
        self.returncode, self.output = done.returncode, done.stdout + done.stderr
        self.reported = os.read(report, 100)
        os.close(report)
        return self


ARRIVE = "import hotrestart; from hotrestart import takeover\n"


def test_a_generation_imports_what_it_inherits() -> None:
    done = Import().run("import hotrestart as h; print(h.state.generation, h.inherited('jobs'))")
    assert (done.returncode, done.output) == (0, "7 [1, 2]\n")


def test_the_children_of_a_generation_do_not_take_themselves_for_one() -> None:
    child = "import hotrestart as h; print(h.state.generation)"
    done = Import().run(f"import hotrestart, subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])")
    assert (done.returncode, done.output) == (0, "1\n")


def test_at_the_door_a_generation_just_goes_on() -> None:
    done = Import().run(ARRIVE + "takeover.arrive(); print('main')")
    assert (done.returncode, done.output, done.reported) == (0, "main\n", b"")


def test_at_the_door_a_preflight_says_that_it_has_loaded_and_ends() -> None:
    done = Import().run(ARRIVE + "takeover.arrive(); print('main')", role="preflight")
    assert (done.returncode, done.output, done.reported) == (0, "", takeover.LOADED)


@pytest.mark.parametrize("change", [{"format": 99}, {"format": None}, {"since": "now"}])
def test_a_preflight_that_does_not_understand_the_old_generation_never_comes_to_main(change: dict[str, Any]) -> None:
    done = Import().run(ARRIVE + "print('main')", role="preflight", **change)
    assert done.returncode == 1
    assert "what the generation before has left is ignored" in done.output
    assert "main" not in done.output
    assert done.reported == b""


def test_a_generation_that_does_not_understand_the_one_before_is_not_deaf() -> None:
    code = "import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])\n" + ARRIVE
    done = Import().run(code + "print(signal.pthread_sigmask(signal.SIG_BLOCK, []))", format=99)
    assert done.output.startswith("set()\n")


def test_a_preflight_runs_nobody_s_exit_handlers() -> None:
    code = "import atexit; atexit.register(print, 'tidied up')\n" + ARRIVE
    assert Import().run(code + "takeover.arrive()", role="preflight").output == ""
    assert "tidied up" not in Import().run(code + "raise SystemExit('no')", role="preflight").output
    assert "tidied up" not in Import().run(code + "1/0", role="preflight").output
    assert "tidied up" not in Import().run(code, role="preflight").output


@pytest.mark.parametrize("ending", ["1/0", "raise SystemExit('why')", "raise SystemExit(0)", "pass"])
def test_a_preflight_that_never_comes_to_the_door_says_nothing_and_fails(ending: str) -> None:
    done = Import().run(ARRIVE + ending, role="preflight")
    assert done.reported == b""
    assert done.returncode == 1
    assert ("ZeroDivisionError" in done.output) == (ending == "1/0")


def test_the_report_s_descriptor_does_not_pass_to_the_children_of_a_preflight() -> None:
    code = ARRIVE + "import os; print(os.get_inheritable(takeover.report_fd), flush=True); takeover.arrive()"
    assert Import().run(code, role="preflight").output == "False\n"


def test_a_preflight_leaves_the_blocking_mode_of_shared_listeners_alone() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        port = bound.getsockname()[1]
        name = f"127.0.0.1:{port}"
        document = {"fd": bound.fileno(), "inode": os.fstat(bound.fileno()).st_ino, "address": name, "name": None}
        code = ARRIVE + f"hotrestart.listen({name!r}); takeover.arrive()"
        done = Import().run(code, keep=(bound.fileno(),), role="preflight", listeners=[document])
        assert (done.output, done.reported) == ("", takeover.LOADED)
        assert os.get_blocking(bound.fileno())


def test_threads_of_a_preflight_do_not_keep_it_alive() -> None:
    code = ARRIVE + "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    assert Import().run(code + "takeover.arrive()", role="preflight").reported == takeover.LOADED


# a member: what a supervisor has started


class Member:
    """A process that has been told that it is a member, and that does what its code says."""

    def __init__(self, code: str, *, parent: int | None = None, **changes: Any) -> None:
        self.tether = leash.Tether()
        self.lifeline, theirs = socket.socketpair()
        null = os.open(os.devnull, os.O_RDWR)
        numbers = [theirs.fileno(), null, self.tether.read_end, null]
        document = {
            **sound(**{"role": "member", "member": numbers, **changes}),
            "parent": os.getpid() if parent is None else parent,
        }
        del document["pid"]
        fd, value = inheritance.write(document)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-c", code],
                env=clean_environment(**{VARIABLE: value}),
                pass_fds=[fd, null, theirs.fileno(), self.tether.read_end],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        finally:
            os.close(fd)
            os.close(null)
            theirs.close()

    def line(self) -> str:
        """The next line that it prints; "" at its end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.lifeline.close()
        self.tether.close()


SLEEP = "\nprint('up')\nimport time\nwhile True: time.sleep(600)"


def test_a_member_knows_what_ties_it_to_its_supervisor() -> None:
    code = """if True:
        import hotrestart, os
        from hotrestart import takeover
        ties = takeover.membership
        numbers = [ties.lifeline, ties.beats, ties.tether, ties.stderr]
        print(hotrestart.state.generation, [os.get_inheritable(fd) for fd in numbers], takeover.report_fd)
        os.write(ties.lifeline, b"hello")
    """
    with Member(code) as member:
        assert member.line() == "7 [False, False, False, False] -1"
        assert member.lifeline.recv(100) == b"hello"
        assert member.wait() == 0


def test_others_are_no_members() -> None:
    done = Import().run("import hotrestart; from hotrestart import takeover; print(takeover.membership)")
    assert done.output == "None\n"


@pytest.mark.parametrize(
    "change", [{"format": 99}, {"since": "now"}, {"member": [-1, 1, 1, 1]}, {"member": None}, {"held": ["x"]}], ids=str
)
def test_a_member_that_does_not_understand_its_supervisor_never_comes_to_main(change: dict[str, Any]) -> None:
    with Member("import hotrestart\nprint('main')", **change) as member:
        assert "what the generation before has left is ignored" in member.line()
        assert member.line() == ""
        assert member.wait() == 1


@pytest.mark.parametrize(
    "numbers",
    [
        [],
        [0],
        [0, 0, 0, 0, 0, 0],
    ],
    ids=str,
)
def test_a_member_with_the_wrong_number_of_ties_never_comes_to_main(numbers: list[int]) -> None:
    document = {**sound(role="member", member=numbers), "parent": os.getpid()}
    del document["pid"]
    fd, value = inheritance.write(document)
    done = subprocess.run(
        [sys.executable, "-c", "import hotrestart\nprint('main')"],
        env=clean_environment(**{VARIABLE: value}),
        pass_fds=[fd],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    os.close(fd)
    assert (done.returncode, done.stdout) == (1, "")
    assert "what the generation before has left is ignored" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_member_ends_when_its_supervisor_goes() -> None:
    with Member("import hotrestart" + SLEEP) as member:
        assert member.line() == "up"
        assert member.process.poll() is None
        member.tether.let_go()
        assert member.wait() == -signal.SIGTERM


def test_a_member_whose_supervisor_has_gone_before_it_was_there_never_comes_to_main() -> None:
    code = "import sys; sys.stdin.readline()\nimport hotrestart" + SLEEP
    with Member(code) as member:
        member.tether.let_go()
        assert member.process.stdin is not None
        member.process.stdin.write("go on\n")
        member.process.stdin.flush()
        assert member.wait() == -signal.SIGTERM
        assert member.line() == ""


def test_an_orphaned_member_ends() -> None:
    """Its supervisor is gone, and so it is another's child, or init's, by the time it reads what it is."""
    parent = subprocess.Popen([sys.executable, "-c", "pass"])
    parent.wait()
    with Member("import hotrestart\nprint('main')", parent=parent.pid) as member:
        assert member.line() == ""
        assert member.wait() == 1


def test_a_program_that_a_member_s_variable_leaks_to_is_no_member() -> None:
    """Its parent is another process, and the supervisor lives."""
    code = "import hotrestart; from hotrestart import takeover; print('main', takeover.membership)"
    with Member(code, parent=os.getppid()) as member:
        assert "it is meant for another process" in member.line()
        assert member.line() == "main None"


def test_a_member_shrugs_off_what_is_meant_for_the_supervisor() -> None:
    """Also what came before it had the handlers, for it was started with these blocked; TERM is for it."""
    mine = [int(number) for number in FOR_SUPERVISORS]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, mine)
    code = "import sys; sys.stdin.readline()\nimport hotrestart" + SLEEP
    try:
        with Member(code, held=mine) as member:
            for number in mine:
                member.process.send_signal(number)
            assert member.process.stdin is not None
            member.process.stdin.write("go on\n")
            member.process.stdin.flush()
            assert member.line() == "up"
            for number in mine:
                member.process.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                member.process.wait(0.05)
            member.process.terminate()
            assert member.wait() == -signal.SIGTERM
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_the_children_of_a_member_do_not_shrug() -> None:
    """A handler, not SIG_IGN: what a program starts can be hung up."""
    code = """if True:
        import hotrestart, os, signal, subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGHUP) == 0)"])
        child.wait()
        pid = os.fork()
        if pid == 0:
            print(signal.getsignal(signal.SIGHUP) == signal.SIG_DFL, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
    """
    with Member(code, held=[]) as member:
        assert [member.line(), member.line()] == ["True", "True"]
        assert member.wait() == 0


def test_a_member_that_hangs_shows_where_when_it_is_aborted() -> None:
    with Member("import hotrestart\ndef stuck():\n    print('up')\n    while True: pass\nstuck()") as member:
        assert member.line() == "up"
        member.process.send_signal(signal.SIGABRT)
        assert "in stuck" in member.process.communicate(timeout=PATIENCE)[0]
        assert member.wait() == -signal.SIGABRT


def test_a_member_may_import_hotrestart_in_a_thread() -> None:
    code = """if True:
        import threading
        def load():
            import hotrestart
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
        from hotrestart import takeover
        print(takeover.membership is not None)
    """
    with Member(code, held=[]) as member:
        assert member.line() == "True"
        assert member.wait() == 0
