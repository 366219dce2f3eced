"""The roster: what members say and how they end becomes events, whatever comes first and however wrong it is.

The processes are real, and so are their lifelines; what they say over them is said by the test.
"""

from __future__ import annotations

import array
import errno
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hotrestart import fds, processes
from hotrestart.options import Options
from hotrestart.processes import STATUS_UNKNOWN, Child, spawn
from hotrestart.rolling import hearing, privileges, roster
from hotrestart.rolling.beats import PLACES, Beats
from hotrestart.rolling.generation import ABORTED, DRAINING, KILLED, READY, STARTING, Process
from hotrestart.rolling.home import Home
from hotrestart.rolling.lifeline import PROTOCOL, Lifeline, pair
from hotrestart.rolling.members import Grandchild, Member, Relay
from hotrestart.rolling.privileges import are_ours, are_parent_and_child
from hotrestart.rolling.roster import Roster
from tests.harness import PATIENCE

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not processes.has_pidfd(), reason="no pidfd here"),
]

LISTEN = {
    "address": "127.0.0.1:0",
    "resolved": None,
    "name": None,
    "backlog": 5,
    "reuse_port": False,
    "mode": None,
    "owner": None,
}


class House:
    """A roster, the processes in it, and what it has told."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.beats = Beats()
        self.events: list[tuple[Any, ...]] = []
        self.mourned: list[tuple[int, str]] = []
        self.loaded_again: list[Member] = []
        self.options = {1: Options(workers=4), 2: Options(workers=4)}
        self.on_event: Callable[[str], None] = lambda _event: None
        self.on_load_again: Callable[[Member], None] = lambda _member: None
        self.roster = Roster(self.selector, self.beats, self)
        self._processes: list[Child] = []
        self._ends: list[Lifeline] = []
        self._next = 1

    # what a roster wants of its observer

    def happened(self, event: str, *about: Any, **more: Any) -> None:
        self.events.append((event, *[each.id if isinstance(each, Process) else each for each in about], more))
        self.on_event(event)

    def mourn(self, member: Member, why: str) -> None:
        self.mourned.append((member.process.id, why))

    def stop(self) -> None:
        self.events.append(("stop", {}))

    def load_again(self, member: Member) -> None:
        self.loaded_again.append(member)
        self.on_load_again(member)

    def limits(self) -> dict[int, Options]:
        return self.options

    # the processes

    def process(self) -> Child:
        child = spawn(["/bin/sleep", "600"], env={})
        self._processes.append(child)
        return child

    def end_of(self, lifeline: Lifeline) -> Lifeline:
        self._ends.append(lifeline)
        return lifeline

    def new(self, generation: int = 1, *, is_server: bool = False) -> Member:
        member = Member(Process(self._next, generation, is_server=is_server))
        self._next += 1
        return member

    def server(self, generation: int = 1) -> tuple[Member, Lifeline]:
        """A fork server, and the other end of its lifeline."""
        member = self.new(generation, is_server=True)
        member.child = self.process()
        ours, theirs = pair()
        member.lifeline = Lifeline(ours)
        self.roster.adopt(member)
        return member, self.end_of(Lifeline(theirs))

    def unborn(self, generation: int = 1) -> Member:
        """A worker that a fork server has been asked for."""
        member = self.new(generation)
        self.roster.adopt(member)
        self.roster.take_place(member)
        return member

    def fork(self, server: Lifeline, number: int, *, pidfd: bool = True) -> tuple[Child, Lifeline]:
        """A worker's process and its end of the lifeline, of which its fork server has told."""
        child = self.process()
        ours, theirs = pair()
        with ours:
            watch = [child.pidfd] if pidfd else []
            server.send("forked", ours.fileno(), *watch, worker=number, pid=child.pid)
        return child, self.end_of(Lifeline(theirs))

    def worker(self, server: Lifeline, generation: int = 1) -> tuple[Member, Child, Lifeline]:
        member = self.unborn(generation)
        child, end = self.fork(server, member.process.id)
        self.until(lambda: member.child is not None)
        return member, child, end

    def turn(self, timeout: float = 0.0) -> None:
        for key, _ in self.selector.select(timeout):
            key.data()
        self.roster.look(time.monotonic())

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.events
            self.turn(0.01)

    def ended(self) -> dict[int, str]:
        """Who has ended, and why."""
        numbers = [event[1] for event in self.events if event[0] == "ended"]
        assert len(numbers) == len(set(numbers)), f"ended twice: {self.events}"
        return {event[1]: event[2] for event in self.events if event[0] == "ended"}

    def close(self) -> None:
        for child in self._processes:
            child.send_signal(signal.SIGKILL)  # the roster lets go of its own without ending them
        self.roster.close()
        self.selector.close()
        self.beats.close()
        del self.beats, self.roster.beats
        for end in self._ends:
            end.close()
        for child in self._processes:
            child.kill()


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    def are_parent_and_child(_server: int, child: int, pidfd: int = -1) -> bool:
        """The workers are children of the test, which speaks for the fork server."""
        return privileges.are_parent_and_child(os.getpid(), child, pidfd)

    monkeypatch.setattr(
        hearing, "privileges", SimpleNamespace(are_parent_and_child=are_parent_and_child, are_ours=are_ours)
    )
    each = House()
    yield each
    each.close()


def hello(**changes: Any) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "version": "9.9",
        "options": Options(workers=2).as_document(),
        "home": Home.own().as_document(),
        **changes,
    }


def garbage(end: Lifeline, text: bytes = b"garbage") -> None:
    end.socket.sendall(len(text).to_bytes(4, "big") + b"\0" + text)


def has_been_killed(child: Child) -> bool:
    return child.wait(PATIENCE) == -signal.SIGKILL


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- hello


def test_a_fork_server_that_has_loaded_is_ready_with_its_options(house: House) -> None:
    server, end = house.server()
    end.send("hello", **hello())
    house.until(lambda: house.events)
    ((event, number, more),) = house.events
    assert (event, number) == ("ready", server.process.id)
    assert more["options"].as_document() == Options(workers=2).as_document()
    assert server.home == Home.own()
    assert house.roster.home_of(1) == Home.own()
    assert house.roster.home_of(2) is None


def test_a_worker_without_preload_that_says_hello_becomes_one(house: House) -> None:
    member = house.new()
    member.child = house.process()
    ours, theirs = pair()
    member.lifeline, end = Lifeline(ours), house.end_of(Lifeline(theirs))
    house.roster.adopt(member)
    end.send("hello", **hello())
    house.until(lambda: member.place != -1)
    assert [message for message, _ in end.receive()] == [{"type": "become", "place": member.place}]


def without(key: str) -> dict[str, Any]:
    document = hello()
    del document[key]
    return document


def with_options(**changes: Any) -> dict[str, Any]:
    return hello(options={**Options(workers=2).as_document(), **changes})


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "another protocol": (hello(protocol=99), ["9.9", "99", f"speaks {PROTOCOL}", "stop the program and start it"]),
    "protocol 0": (hello(protocol=0), ["protocol 0", f"speaks {PROTOCOL}"]),
    "no options": (without("options"), ["options"]),
    "options are a list": (hello(options=[1]), ["mapping"]),
    "options are null": (hello(options=None), ["mapping"]),
    "an unknown option": (with_options(colour="red"), ["colour"]),
    "an option of the wrong type": (with_options(grace="long"), ["grace", "long"]),
    "workers=None": (with_options(workers=None), ["does not ask for workers= any more"]),
    "workers=0": (with_options(workers=0), ["workers"]),
    "no home": (without("home"), ["home"]),
    "a home that is none": (hello(home={"python": 1, "file": [], "library": "", "version": ""}), ["interpreter"]),
    "a home without a version": (hello(home={"python": "", "file": [], "library": ""}), ["version"]),
    "a home that is a list": (hello(home=["python"]), [""]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_fork_server_that_cannot_be_worked_with_is_killed_and_reported(
    house: House, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    document, words = REFUSED[kind]
    server, end = house.server()
    assert server.child is not None
    pid = server.child.pid
    end.send("hello", **document)
    house.until(house.ended)
    reason = house.ended()[server.process.id]
    for word in words:
        assert word in reason
    assert [event[0] for event in house.events] == ["ended"]
    assert house.mourned == [(server.process.id, reason)]
    assert f"fork server {pid} of generation 1: {reason}; killing it" in caplog.text
    assert house.roster.members == {}


def test_an_options_document_with_parts_missing_has_the_defaults_for_them(house: House) -> None:
    """Within one protocol an option may be new."""
    _, end = house.server()
    end.send("hello", **hello(options={"workers": 3}))
    house.until(lambda: house.events)
    assert house.events[0][2]["options"].as_document() == Options(workers=3).as_document()


def test_after_a_refused_hello_nothing_more_is_heard(house: House) -> None:
    server, end = house.server()
    frames = pair()
    both = Lifeline(frames[0])
    both.send("hello", **hello(protocol=99))
    both.send("hello", **hello())
    both.close()
    end.socket.sendall(frames[1].recv(1 << 20))  # both in one piece
    frames[1].close()
    house.until(house.ended)
    assert [event[:2] for event in house.events] == [("ended", server.process.id)]


# --- garbage


GARBAGE = [b"garbage", b'{"type": "reboot"}', b'{"type": "forked", "worker": 1, "pid": NaN}', b"[" * 50_000]


@pytest.mark.parametrize("text", GARBAGE, ids=["no JSON", "unknown", "NaN", "deep"])
def test_a_fork_server_that_sends_garbage_is_killed_and_reported(house: House, text: bytes) -> None:
    server, end = house.server()
    garbage(end, text)
    house.until(house.ended)
    assert "what came over a lifeline is no message" in house.ended()[server.process.id]


@pytest.mark.parametrize("text", GARBAGE, ids=["no JSON", "unknown", "NaN", "deep"])
def test_a_worker_that_sends_garbage_is_killed_and_reported(house: House, text: bytes) -> None:
    server, told = house.server()
    worker, child, end = house.worker(told)
    garbage(end, text)
    house.turn(PATIENCE)
    assert has_been_killed(child)
    told.send("exited", worker=worker.process.id, status=-9, reason="")
    house.until(house.ended)
    assert "what came over a lifeline is no message" in house.ended()[worker.process.id]
    assert house.roster.members == {server.process.id: server}


@pytest.mark.parametrize("kind", ["fork", "become", "serving", "listening", "refused"])
def test_what_only_a_supervisor_says_is_nothing_that_it_is_told(house: House, kind: str) -> None:
    server, end = house.server()
    fields: dict[str, dict[str, Any]] = {
        "fork": {"worker": 1, "place": 1},
        "become": {"place": 1},
        "refused": {"errno": None, "reason": ""},
    }
    end.send(kind, **fields.get(kind, {}))
    house.until(house.ended)
    assert house.ended()[server.process.id] == f"{kind!r} is nothing that a supervisor is told"


@pytest.mark.parametrize("count", [0, 3, 8])
def test_a_worker_with_the_wrong_number_of_descriptors_is_garbage(house: House, count: int) -> None:
    server, end = house.server()
    house.unborn()
    before = open_descriptors()
    end.send("forked", *[0] * count, worker=2, pid=1)
    house.until(lambda: server.process.id in house.ended())
    assert "that is no birth of a worker" in house.ended()[server.process.id]
    assert open_descriptors() <= before


@pytest.mark.parametrize("count", [0, 2])
def test_a_question_about_a_listener_without_one_socket_for_the_answer_is_garbage(house: House, count: int) -> None:
    server, end = house.server()
    end.send("listen", *[0] * count, **LISTEN)
    house.until(house.ended)
    assert "has no socket for the answer" in house.ended()[server.process.id]


def test_what_follows_garbage_in_the_same_piece_leaks_nothing(house: House) -> None:
    """Messages with descriptors behind one that makes no sense."""
    server, end = house.server()
    before = open_descriptors()
    for _ in range(3):
        end.send("listen", 0, 0, **LISTEN)
        end.send("ready", 0, 0)
    house.until(lambda: server.process.id in house.ended())
    assert open_descriptors() <= before


@pytest.mark.parametrize(
    "kind",
    [
        "forked",
        "listen",
    ],
)
def test_a_descriptor_that_is_no_socket_is_garbage_and_is_closed(house: House, kind: str) -> None:
    server, end = house.server()
    worker, child = house.unborn(), house.process()
    before = null_devices()
    with open(os.devnull) as null:
        if kind == "listen":
            end.send("listen", null.fileno(), **LISTEN)
        else:
            end.send("forked", null.fileno(), worker=worker.process.id, pid=child.pid)
    house.until(lambda: server.process.id in house.ended())
    leaked = null_devices() - before
    for fd in leaked:
        os.close(fd)
    assert leaked == set()


def null_devices() -> set[int]:
    """By what they are: their numbers may have been other files' before."""
    return {fd for fd in fds.open_fds() if os.path.samestat(os.fstat(fd), os.stat(os.devnull))}


@pytest.mark.parametrize("pid", [0, -1, -12345, 2**80])
def test_a_pid_that_cannot_be_one_is_garbage(house: House, pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _number: killed.append(pid))
    _, end = house.server()
    worker = house.unborn()
    ours, theirs = pair()
    with ours, theirs:
        end.send("forked", theirs.fileno(), worker=worker.process.id, pid=pid)
        house.turn(PATIENCE)
        assert worker.child is None
    assert killed == []


# --- forked


def test_a_worker_is_watched_from_the_moment_it_is_known(house: House) -> None:
    _, told = house.server()
    worker, child, end = house.worker(told)
    assert worker.child is not None
    assert worker.child.pid == child.pid
    house.roster.post(worker, "serving")
    assert [message for message, _ in end.receive()] == [{"type": "serving"}]
    end.send("ready")
    house.until(lambda: house.events)
    assert house.events == [("ready", worker.process.id, {})]


def test_signals_that_were_due_before_it_was_born_are_sent_at_its_birth(house: House) -> None:
    _, told = house.server()
    member = house.unborn()
    member.send_signals(signal.SIGTERM, signal.SIGCONT)
    child, _ = house.fork(told, member.process.id)
    house.until(lambda: member.child is not None)
    assert child.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize("pidfd", [True, False])
@pytest.mark.parametrize("who", ["unknown", "given up", "known already", "another generation's"])
def test_a_worker_that_nobody_waits_for_is_killed_and_let_go(house: House, who: str, pidfd: bool) -> None:
    _, told = house.server()
    if who == "known already":
        number = house.worker(told)[0].process.id
    elif who == "another generation's":
        number = house.unborn(generation=2).process.id
    else:
        member = house.unborn()
        number = member.process.id if who == "given up" else 999
        house.roster.forget(member)
    house.turn()
    before, watched = open_descriptors(), len(house.selector.get_map())
    child, end = house.fork(told, number, pidfd=pidfd)
    house.turn(PATIENCE)
    assert has_been_killed(child)
    end.receive()
    assert end.has_ended
    end.close()
    assert open_descriptors() == before
    assert len(house.selector.get_map()) == watched
    assert house.ended() == {}


def test_without_a_pidfd_the_end_of_the_lifeline_is_the_end(house: House) -> None:
    _, told = house.server()
    member = house.unborn()
    child, end = house.fork(told, member.process.id, pidfd=False)
    house.until(lambda: member.child is not None)
    child.kill()
    end.close()
    house.until(lambda: member.ended_at is not None)
    told.send("exited", worker=member.process.id, status=-9, reason="")
    house.until(house.ended)
    assert house.ended() == {member.process.id: "a worker was killed by signal 9"}


# --- the end of a worker


def test_exited_before_the_pidfd(house: House) -> None:
    _, told = house.server()
    worker, child, _ = house.worker(told)
    told.send("exited", worker=worker.process.id, status=3, reason="")
    house.until(house.ended)
    child.kill()
    for _ in range(3):
        house.turn()
    assert house.ended() == {worker.process.id: "a worker ended with status 3"}


def test_exited_after_the_pidfd(house: House) -> None:
    _, told = house.server()
    worker, child, _ = house.worker(told)
    child.kill()
    house.until(lambda: worker.ended_at is not None)
    assert house.ended() == {}
    assert house.roster.deadline(time.monotonic()) <= time.monotonic() + roster._STATUS_MAY_TAKE
    told.send("exited", worker=worker.process.id, status=-9, reason="")
    house.until(house.ended)
    assert house.ended() == {worker.process.id: "a worker was killed by signal 9"}


def test_a_status_that_nobody_tells_is_not_waited_for_long(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "_STATUS_MAY_TAKE", 0.5)
    _, told = house.server()
    worker, child, _ = house.worker(told)
    child.kill()
    house.until(house.ended)
    assert house.ended() == {worker.process.id: "a worker is gone"}
    told.send("exited", worker=worker.process.id, status=-9, reason="")  # late: nobody knows it any more
    house.turn(PATIENCE)
    assert len(house.ended()) == 1


def test_while_it_waits_for_the_status_nothing_spins(house: House) -> None:
    _, told = house.server()
    worker, child, end = house.worker(told)
    child.kill()
    end.close()
    house.until(lambda: worker.ended_at is not None)
    house.turn()
    assert house.selector.select(0) == []


def test_why_it_failed_is_read_before_it_counts_as_gone(house: House) -> None:
    """Whatever is seen first: all is there at the same time."""
    _, told = house.server()
    worker, child, end = house.worker(told)
    end.send("failed", reason="KeyError: 'port'", detail="Traceback...")
    end.close()
    child.kill()
    told.send("exited", worker=worker.process.id, status=1, reason="")
    house.until(house.ended)
    assert [event[:3] for event in house.events[:-1]] == [("leaving", worker.process.id, "KeyError: 'port'")]
    _, number, reason, more = house.events[-1]
    assert (number, reason, more) == (worker.process.id, "KeyError: 'port'", {"detail": "Traceback..."})


@pytest.mark.parametrize("state", [STARTING, ABORTED, KILLED])
def test_a_fork_server_that_ends_has_loaded_the_program_only_if_it_has_said_so(house: House, state: str) -> None:
    """One that hangs while it loads is aborted, and has not come further by that."""
    (loads, _), (has_loaded, _) = house.server(), house.server()
    has_loaded.process.since = 1.0
    for each in (loads, has_loaded):
        each.process.state = state
        each.send_signals(signal.SIGKILL)
    house.until(lambda: len(house.ended()) == 2)
    assert house.ended()[loads.process.id] == "the new code was killed by signal 9 before it called main()"
    after = "the fork server was killed by signal 9 after it had loaded the program"
    assert house.ended()[has_loaded.process.id] == after


def test_a_fork_that_failed_is_the_end_of_the_worker_with_the_reason(house: House) -> None:
    _, told = house.server()
    worker = house.unborn()
    told.send("exited", worker=worker.process.id, status=STATUS_UNKNOWN, reason="no process is to be had")
    house.until(house.ended)
    assert house.ended() == {worker.process.id: "no process is to be had"}


def test_a_fork_server_cannot_tell_of_another_generation_s_workers(house: House) -> None:
    _, one = house.server()
    _, other = house.server(generation=2)
    worker, _, _ = house.worker(one)
    other.send("exited", worker=worker.process.id, status=0, reason="")
    house.turn(PATIENCE)
    assert house.ended() == {}


def test_only_a_fork_server_is_believed_that_others_have_ended(house: House) -> None:
    _, told = house.server()
    _, _, end = house.worker(told)
    other, _, _ = house.worker(told)
    end.send("exited", worker=other.process.id, status=0, reason="")
    house.turn(PATIENCE)
    house.turn()
    assert other.process.id in house.roster.members


def test_only_a_fork_server_is_believed_that_others_were_born(house: House) -> None:
    _, told = house.server()
    one, process, end = house.worker(told)
    unborn = house.unborn()
    house.fork(end, unborn.process.id)
    house.turn(PATIENCE)
    assert has_been_killed(process)
    assert one.reason == "that is no birth of a worker"
    assert unborn.child is None


# --- the end of a fork server


def test_a_fork_server_s_death_takes_the_unforked_and_the_ended_with_it(house: House) -> None:
    server, told = house.server()
    lives, _, _ = house.worker(told)
    dead, child, _ = house.worker(told)
    unforked = house.unborn()
    elsewhere, elsewhere_told = house.server(generation=2)
    unborn_elsewhere = house.unborn(generation=2)
    child.kill()
    house.until(lambda: dead.ended_at is not None)
    assert server.child is not None
    server.child.send_signal(signal.SIGKILL)
    house.until(lambda: len(house.ended()) == 3)
    assert house.ended() == {
        server.process.id: "the new code was killed by signal 9 before it called main()",
        dead.process.id: "a worker is gone",
        unforked.process.id: "a worker is gone",
    }
    left = (lives, elsewhere, unborn_elsewhere)
    assert set(house.roster.members) == {each.process.id for each in left}
    assert not elsewhere_told.has_ended


def test_a_worker_without_its_fork_server_ends_with_an_unknown_status(house: House) -> None:
    server, told = house.server()
    worker, child, _ = house.worker(told)
    assert server.child is not None
    server.child.send_signal(signal.SIGKILL)
    house.until(house.ended)
    child.kill()
    house.until(lambda: worker.process.id in house.ended())
    assert house.ended()[worker.process.id] == "a worker is gone"


def test_whoever_is_told_of_an_end_finds_the_dead_gone_and_the_others_there(house: House) -> None:
    """The observer may act on the others at once, from within the event."""
    server, _ = house.server()
    unforked = [house.unborn() for _ in range(3)]
    seen: list[set[int]] = []
    house.on_event = lambda _event: seen.append(set(house.roster.members))
    assert server.child is not None
    server.child.send_signal(signal.SIGKILL)
    house.until(lambda: len(house.ended()) == 4)
    numbers = [each.process.id for each in unforked]
    assert seen == [set(numbers[left:]) for left in range(4)]


@pytest.mark.parametrize("first", ["lifeline", "pidfd"])
def test_the_end_of_a_fork_server_is_told_once_whatever_is_seen_first(house: House, first: str) -> None:
    server, end = house.server()
    assert server.child is not None
    lifeline, pidfd = server.lifeline, server.child.fileno()
    os.kill(server.child.pid, signal.SIGKILL)
    end.send("failed", reason="its last words", detail="")
    end.close()
    os.waitid(os.P_PID, server.child.pid, os.WEXITED | os.WNOWAIT)
    house.selector.get_key(lifeline if first == "lifeline" else pidfd).data()  # type: ignore[arg-type]
    house.until(house.ended)
    for _ in range(3):
        house.turn()
    assert house.ended() == {server.process.id: "its last words"}
    assert set(house.mourned) == {(server.process.id, "its last words")}
    assert len(house.selector.get_map()) == 0


def test_a_worker_that_is_heard_of_after_the_death_of_its_fork_server(house: House) -> None:
    """It has forked, told so, and died; its pidfd is seen first, and numbers of descriptors are used again."""
    server, end = house.server()
    worker = house.unborn()
    assert server.child is not None
    pidfd = server.child.fileno()
    child, worker_end = house.fork(end, worker.process.id)
    os.kill(server.child.pid, signal.SIGKILL)
    end.close()
    os.waitid(os.P_PID, server.child.pid, os.WEXITED | os.WNOWAIT)
    house.selector.get_key(pidfd).data()
    house.until(house.ended)
    assert house.ended().keys() == {server.process.id}
    assert house.roster.members == {worker.process.id: worker}
    worker_end.send("ready")
    house.until(lambda: house.events[-1][:2] == ("ready", worker.process.id))
    child.kill()
    house.until(lambda: worker.process.id in house.ended())


def test_reap_all_tells_the_ends_of_members_and_reaps_the_others(house: House) -> None:
    """As pid 1 has to. In a child of its own: there are children of the test's."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            house.roster.members.clear()
            server, _ = house.server()
            assert server.child is not None
            orphan = os.posix_spawn("/bin/true", ["/bin/true"], {})
            os.kill(server.child.pid, signal.SIGKILL)
            for each in (orphan, server.child.pid):
                os.waitid(os.P_PID, each, os.WEXITED | os.WNOWAIT)
            house.roster.reap_all()
            assert house.ended().keys() == {server.process.id}
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


# --- what else they say


def test_requests_of_members_become_events(house: House) -> None:
    _, told = house.server()
    worker, _, end = house.worker(told)
    end.send("restart")
    end.send("retire", why="max_jobs")
    end.send("stop")
    house.until(lambda: len(house.events) == 3)
    assert house.events == [("restart", None, {}), ("retire", worker.process.id, {}), ("stop", {})]


def test_stale_bytecode_is_loaded_again(house: House) -> None:
    server, end = house.server()
    end.send("stale")
    house.until(lambda: house.loaded_again)
    assert house.loaded_again == [server]


def test_stale_bytecode_is_loaded_again_also_if_the_end_is_seen_first(house: House) -> None:
    """It says so and ends at once. What is started in its place has not ended."""
    server, end = house.server()
    output, printed = os.pipe()
    os.close(printed)
    server.relay = Relay(output)
    house.on_load_again = house.roster.forget
    end.send("stale")
    server.send_signals(signal.SIGKILL)
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
    house.roster._on_end(server)  # as SIGCHLD has it
    assert house.loaded_again == [server]
    assert house.events == []


def test_what_is_posted_to_one_that_does_not_read_waits_for_room(house: House) -> None:
    server, end = house.server()
    for number in range(20_000):
        house.roster.post(server, "fork", worker=number, place=number)
    assert server.lifeline is not None
    assert server.lifeline.is_sending
    got: list[int] = []
    while len(got) < 20_000:
        got += [message["worker"] for message, _ in end.receive()]
        house.turn()
    assert got == list(range(20_000))
    assert house.selector.select(0) == []  # nobody waits for room any more


def test_one_that_never_stops_talking_does_not_hold_up_the_others(house: House) -> None:
    server, end = house.server()
    data = b"".join(_frame(b'{"type": "retire", "why": ""}') for _ in range(200))
    for _ in range(3):
        try:
            while True:
                end.socket.send(data)
        except BlockingIOError:
            pass
        before = len(house.events)
        house.selector.get_key(server.lifeline).data()  # type: ignore[arg-type]
        assert 0 < len(house.events) - before < 100_000


def _frame(text: bytes) -> bytes:
    return len(text).to_bytes(4, "big") + b"\0" + text


def test_what_a_member_prints_is_passed_on_and_its_end_is_kept_for_the_detail(
    house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    server = house.new(is_server=True)
    server.child, server.relay = house.process(), Relay(reader)
    house.roster.adopt(server)
    os.write(writer, b'  File "x.py", line 1\n    1/0\nZeroDivisionError: division by zero\n')
    os.close(writer)
    server.child.send_signal(signal.SIGTERM)
    server.child.send_signal(0)
    house.until(house.ended)
    assert house.ended() == {server.process.id: "the new code was killed by signal 15 before it called main()"}
    assert house.events[0][-1]["detail"].endswith("ZeroDivisionError: division by zero")
    assert capfd.readouterr().err.endswith("ZeroDivisionError: division by zero\n")


# --- hanging


def test_one_that_hangs_is_told_of_and_one_that_rests_is_not(house: House) -> None:
    house.options[1] = Options(workers=4, timeout=0.05)
    _, told = house.server()
    hangs, _, hanging = house.worker(told)
    rests, _, resting = house.worker(told)
    for member, end in ((hangs, hanging), (rests, resting)):
        end.send("ready")
        house.turn(PATIENCE)
        assert member.watch is not None
        member.process.state = READY
    house.beats.numbers[hangs.place] = 1
    house.until(lambda: [event for event in house.events if event[0] == "hung"])
    assert {event[1] for event in house.events if event[0] == "hung"} == {hangs.process.id}
    assert house.events[-1][2] == "no turn of its loop for 0.05 s"
    hangs.process.state = DRAINING
    house.events.clear()
    house.until(lambda: house.events)
    assert house.events[0][0] == "hung"
    hangs.process.state = "killed"
    assert house.roster.deadline(0.0) == 0.05  # of the one that rests


def test_one_that_has_grown_too_big_retires(house: House) -> None:
    house.options[1] = Options(workers=4, max_rss=1)
    _, told = house.server()
    worker, _, _ = house.worker(told)
    worker.process.state = READY
    house.roster._next_rss = 0.0
    house.turn()
    assert house.events == [("retire", worker.process.id, {})]
    house.events.clear()
    house.turn()
    assert house.events == []  # it is looked at every few seconds


# --- places


def test_places_are_given_back_and_used_again(house: House) -> None:
    taken: list[int] = []
    for _ in range(PLACES + 10):
        member = house.new()
        house.roster.adopt(member)
        place = house.roster.take_place(member)
        assert house.beats.numbers[place] == 0
        house.beats.numbers[place] = 5
        taken.append(place)
        house.roster.forget(member)
    assert set(taken) == set(range(PLACES - 1))  # the last is for those for whom there is none


def test_no_two_have_the_same_place(house: House) -> None:
    _, told = house.server()
    members = [house.worker(told)[0] for _ in range(5)]
    assert len({each.place for each in members}) == 5
    told.send("exited", worker=members[2].process.id, status=0, reason="")
    house.until(house.ended)
    members[2:3] = [house.worker(told)[0] for _ in range(5)]
    assert len({each.place for each in members}) == 9


def test_one_that_has_come_over_an_exec_keeps_its_place(house: House) -> None:
    member = house.new()
    member.place = 3
    house.roster.adopt(member)
    assert [house.roster.take_place(house.new()) for _ in range(5)] == [0, 1, 2, 4, 5]


def test_closing_the_roster_lets_go_of_everything_and_of_nobody_s_life(house: House) -> None:
    server, told = house.server()
    _, child, end = house.worker(told)
    house.unborn()
    pid = server.pid
    house.roster.close()
    for each in (told, end):
        each.receive()
        assert each.has_ended
    assert house.roster.members == {}
    assert len(house.selector.get_map()) == 0
    assert child.poll() is None
    os.kill(pid, signal.SIGKILL)  # it is there


@pytest.mark.parametrize("when", ["made", "closed"])
def test_who_ends_after_its_roster_was_closed_is_reaped_by_the_next(house: House, when: str) -> None:
    """The process goes on, as somebody's host, and nobody else knows of its child."""
    server, _ = house.server()
    pid = server.pid
    other = House()
    house.roster.close()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    houses = [other, *([House()] if when == "made" else [])]
    if when == "closed":
        other.roster.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    for each in houses:
        each.close()


def test_a_grandchild_is_never_reaped(house: House) -> None:
    child = house.process()
    grandchild = Grandchild(child.pid, os.dup(child.pidfd))
    assert grandchild.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert grandchild.poll() is None
    grandchild.send_signal(signal.SIGTERM)  # to nobody
    grandchild.close()
    assert child.wait(PATIENCE) == -signal.SIGKILL


def test_the_messages_of_a_member_with_many_descriptors_leak_none(house: House) -> None:
    server, end = house.server()
    before = open_descriptors()
    rights = array.array("i", [0] * 8)
    text = b'{"type": "restart"}'
    for _ in range(20):
        frame = len(text).to_bytes(4, "big") + b"\x08" + text
        end.socket.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    house.until(lambda: len(house.events) == 20)
    assert open_descriptors() == before
    assert server.process.id in house.roster.members


# --- who is who


def test_a_worker_that_cannot_be_looked_at_for_want_of_descriptors_does_not_cost_the_fork_server(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the last good code in its memory. The worker is forked anew, as after any other death."""
    member, server = house.server()
    worker = house.unborn()

    look, looks = privileges._stat, list[int]()

    def look_once_in_vain(pid: int) -> list[str]:
        looks.append(pid)
        if len(looks) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return look(pid)

    before = open_descriptors()
    monkeypatch.setattr(privileges, "_stat", look_once_in_vain)
    child, end = house.fork(server, worker.process.id)
    house.until(lambda: child.poll() is not None)
    assert child.poll() == -signal.SIGKILL
    assert end.receive() == []
    assert end.has_ended
    assert open_descriptors() == before + 1  # the test's end; the child's pidfd is closed by poll()
    server.send("exited", worker=worker.process.id, status=-signal.SIGKILL, reason="")
    house.until(house.ended)
    assert house.ended() == {worker.process.id: "the supervisor has no room for it: Too many open files"}
    house.worker(server)
    assert house.roster.members[member.process.id] is member


def test_a_worker_is_a_child_of_the_fork_server_that_tells_of_it(house: House) -> None:
    """Nobody can have strangers killed by saying that they are workers."""
    child, other = house.process(), house.process()
    assert are_parent_and_child(os.getpid(), child.pid)
    assert are_parent_and_child(os.getpid(), child.pid, child.pidfd)
    assert not are_parent_and_child(other.pid, child.pid)
    assert not are_parent_and_child(os.getpid(), child.pid, other.pidfd)
    assert not are_parent_and_child(os.getpid(), os.getpid())
    assert not are_parent_and_child(os.getpid(), 1)


def test_one_that_has_gone_by_now_may_have_been_one(house: House) -> None:
    child = house.process()
    pidfd = os.dup(child.pidfd)
    child.kill()
    assert are_parent_and_child(os.getpid(), child.pid, pidfd)
    assert are_parent_and_child(os.getpid(), child.pid)
    os.close(pidfd)


def test_a_stranger_is_not_taken_for_a_worker(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "privileges", privileges)
    server, told = house.server()
    stranger, end = house.fork(told, house.unborn().process.id)  # a child of the test's
    house.until(lambda: server.process.id in house.ended())
    assert house.ended()[server.process.id] == f"process {stranger.pid} is no child of it"
    assert stranger.poll() is None
    end.receive()
    assert end.has_ended
