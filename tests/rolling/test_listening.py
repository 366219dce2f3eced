"""Listening under a supervisor: bound once, the same for every generation, closed when none wants it any more."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hotrestart import listeners, systemd
from hotrestart.errors import AddressError
from hotrestart.rolling import asking
from hotrestart.rolling.generation import NEVER
from hotrestart.rolling.lifeline import Lifeline, pair
from hotrestart.rolling.listening import Listening

pytestmark = pytest.mark.core


@pytest.fixture
def listening() -> Iterator[Listening]:
    each = Listening()
    yield each
    each.close()
    listeners.forget()


class Answer:
    """What comes back for a question."""

    def __init__(self, listening: Listening, generation: int, address: str, **question: Any) -> None:
        ours, theirs = pair()
        end = Lifeline(ours)
        try:
            question = {
                "resolved": None,
                "name": None,
                "backlog": 5,
                "reuse_port": False,
                "mode": None,
                "owner": None,
                **question,
            }
            listening.answer(generation, {"address": address, **question}, theirs.detach())
            ((message, rights),) = end.receive()
            self.errno, self.reason = message.get("errno"), message.get("reason")
            self.kind = message["type"]
            self.socket = socket.socket(fileno=rights[0]) if rights else None
            end.receive()
            assert end.has_ended  # the reply socket is closed
        finally:
            end.close()

    @property
    def inode(self) -> int:
        assert self.socket is not None, self.reason
        return os.fstat(self.socket.fileno()).st_ino

    @property
    def port(self) -> int:
        assert self.socket is not None, self.reason
        return int(self.socket.getsockname()[1])

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()


@pytest.fixture
def ask(listening: Listening) -> Iterator[Any]:
    answers: list[Answer] = []

    def ask(generation: int, address: str, **question: Any) -> Answer:
        answers.append(Answer(listening, generation, address, **question))
        return answers[-1]

    yield ask
    for each in answers:
        each.close()


def answers_on(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_it_is_bound_once_however_often_it_is_asked_for(ask: Any) -> None:
    one, other = ask(1, "127.0.0.1:0"), ask(1, "127.0.0.1:0")
    assert one.inode == other.inode
    assert one.kind == "listening"


def test_the_next_generation_gets_the_same(listening: Listening, ask: Any) -> None:
    one = ask(1, "127.0.0.1:0")
    one.close()
    assert answers_on(one_port := ask(2, "127.0.0.1:0").port)
    listening.commit(2, now=0.0)
    listening.look(1e9)
    assert ask(2, "127.0.0.1:0").port == one_port


def test_names_tell_listeners_with_port_0_apart(ask: Any) -> None:
    assert ask(1, "127.0.0.1:0", name="a").inode != ask(1, "127.0.0.1:0", name="b").inode
    assert ask(2, "127.0.0.1:0", name="a").inode == ask(1, "127.0.0.1:0", name="a").inode


def test_what_is_handed_out_listens_and_is_close_on_exec(ask: Any) -> None:
    answer = ask(1, "127.0.0.1:0")
    assert answers_on(answer.port)
    assert not os.get_inheritable(answer.socket.fileno())


def test_after_a_commit_what_was_not_asked_for_is_closed_in_a_while(listening: Listening, ask: Any) -> None:
    old, both = ask(1, "127.0.0.1:0", name="old"), ask(1, "127.0.0.1:0", name="both")
    assert ask(2, "127.0.0.1:0", name="both").inode == both.inode
    for each in (old, both):
        each.close()
    listening.commit(2, now=100.0)
    assert listening.asked.keys() == {2}
    assert 100.0 < listening.deadline < 200.0
    listening.look(100.1)
    listening.look(listening.deadline)
    assert listening.deadline == NEVER
    assert ask(2, "127.0.0.1:0", name="both").socket is not None


def test_a_port_that_nobody_wants_is_free_again(listening: Listening, ask: Any) -> None:
    answer = ask(1, "127.0.0.1:0")
    port = answer.port
    answer.close()
    listening.commit(2, now=0.0)
    assert answers_on(port)  # generation 2 may be about to ask
    listening.look(listening.deadline - 0.1)
    assert answers_on(port)
    listening.look(listening.deadline)
    assert not answers_on(port)


def test_who_asks_after_the_commit_keeps_it(listening: Listening, ask: Any) -> None:
    port = ask(1, "127.0.0.1:0").port
    listening.commit(2, now=0.0)
    assert ask(2, "127.0.0.1:0").port == port
    listening.look(1e9)
    assert answers_on(port)


@pytest.mark.parametrize(("before", "after"), [(None, "web"), ("web", None), ("web", "api")])
def test_a_name_that_changes_closes_nothing_that_is_wanted(
    listening: Listening, ask: Any, before: str | None, after: str | None
) -> None:
    """The address is the same, and so is the listener."""
    free = ask(1, "127.0.0.1:0")
    address = f"127.0.0.1:{free.port}"
    free.close()
    listening.commit(2, now=0.0)
    listening.look(listening.deadline)
    port = ask(2, address, name=before).port
    assert ask(3, address, name=after).port == port
    listening.commit(3, now=0.0)
    listening.look(1e9)
    assert answers_on(port)
    assert ask(4, address, name=after).port == port


def test_without_anything_to_close_there_is_no_deadline(listening: Listening, ask: Any) -> None:
    assert listening.deadline == NEVER
    ask(2, "127.0.0.1:0")
    listening.commit(2, now=0.0)
    assert listening.deadline == NEVER


def test_a_rollback_closes_what_only_the_new_one_wanted_at_the_next_commit(listening: Listening, ask: Any) -> None:
    kept, extra = ask(1, "127.0.0.1:0", name="kept").port, ask(2, "127.0.0.1:0", name="extra")
    port = extra.port
    extra.close()
    assert ask(3, "127.0.0.1:0", name="kept").port == kept
    listening.commit(3, now=0.0)
    listening.look(1e9)
    assert not answers_on(port)
    assert answers_on(kept)


def test_two_commits_in_a_row_close_what_neither_wanted(listening: Listening, ask: Any) -> None:
    ports = {}
    for generation in (1, 2, 3):
        answer = ask(generation, "127.0.0.1:0", name=str(generation))
        ports[generation] = answer.port
        answer.close()
        listening.commit(generation, now=generation)
    listening.look(1e9)
    assert [answers_on(ports[generation]) for generation in (1, 2, 3)] == [False, False, True]


def test_close_closes_everything(listening: Listening, ask: Any) -> None:
    answers = [ask(1, "127.0.0.1:0", name="a"), ask(2, "127.0.0.1:0", name="b")]
    ports = [each.port for each in answers]
    for each in answers:
        each.close()
    listening.commit(2, now=0.0)
    listening.close()
    assert [answers_on(port) for port in ports] == [False, False]


# --- refusals


def test_a_port_that_is_taken(ask: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = ask(1, f"127.0.0.1:{port}")
    assert (answer.kind, answer.errno) == ("refused", errno.EADDRINUSE)
    assert answer.reason == f"listen('127.0.0.1:{port}'): Address already in use"


def test_no_permission(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    answer = ask(1, "127.0.0.1:80")
    assert (answer.kind, answer.errno) == ("refused", errno.EACCES)
    assert answer.reason == (
        "listen('127.0.0.1:80'): Permission denied; bind before dropping privileges, or use systemd"
    )


def test_a_path_in_a_folder_that_does_not_exist(ask: Any) -> None:
    answer = ask(1, "unix:/no/such/folder/socket")
    assert (answer.kind, answer.errno) == ("refused", errno.ENOENT)
    assert "/no/such/folder/socket" in answer.reason


def test_a_path_that_is_a_file(ask: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    answer = ask(1, f"unix:{tmp_path / 'file'}")
    assert (answer.kind, answer.errno) == ("refused", errno.EEXIST)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("address", ["", "nonsense", "127.0.0.1:http", "127.0.0.1:99999", "unix:", "a" * 10_000])
def test_an_address_that_is_none(ask: Any, address: str) -> None:
    answer = ask(1, address)
    assert answer.kind == "refused"
    assert answer.reason


@pytest.mark.parametrize(
    "question",
    [{"backlog": -1}, {"mode": -1}, {"mode": 2**40}, {"owner": []}, {"owner": [1]}, {"owner": ["a", "b"]}],
    ids=str,
)
def test_options_that_cannot_work(ask: Any, tmp_path: Path, question: dict[str, Any]) -> None:
    answer = ask(1, f"unix:{tmp_path / 'socket'}", **question)
    assert answer.kind == "refused"
    assert answer.reason


@pytest.mark.parametrize("owner", [[-5, 0], [2**40, 0], [0, 2**80]], ids=str)
def test_an_owner_that_cannot_be(ask: Any, tmp_path: Path, owner: list[int]) -> None:
    assert ask(1, f"unix:{tmp_path / 'socket'}", owner=owner).kind == "refused"


@pytest.mark.parametrize("form", ["unix:{}/a.sock", "unix:../{}/a.sock", "unix:a.sock", "unix:./a.sock"])
def test_for_who_has_dropped_its_privileges_no_path_is_made(
    listening: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    address = form.format(tmp_path if "unix:{}" in form else "here")
    ours, theirs = pair()
    question = {"address": address, "resolved": None, "name": None, "backlog": 5, "reuse_port": False}
    listening.answer(1, {**question, "mode": 0o666, "owner": None}, theirs.detach(), may_make_files=False)
    end = Lifeline(ours)
    ((message, rights),) = end.receive()
    end.close()
    assert (message["type"], message["errno"], rights) == ("refused", errno.EPERM, [])
    assert not list(tmp_path.rglob("*.sock"))


@pytest.mark.parametrize("what", ["is lost", "gets another mode"])
def test_for_who_has_dropped_its_privileges_no_path_is_changed(listening: Listening, tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.sock"
    question: dict[str, Any] = {"address": f"unix:{path}", "resolved": None, "name": None, "backlog": 5}
    question = {**question, "reuse_port": False, "mode": 0o600, "owner": None}
    ours, theirs = pair()
    listening.answer(1, question, theirs.detach())
    Lifeline(ours).close()
    if what == "is lost":
        path.unlink()
    ours, theirs = pair()
    listening.answer(1, {**question, "mode": 0o666}, theirs.detach(), may_make_files=False)
    end = Lifeline(ours)
    ((message, rights),) = end.receive()
    end.close()
    for fd in rights:
        os.close(fd)
    if what == "is lost":
        assert (message["type"], message["errno"], path.exists()) == ("refused", errno.EPERM, False)
    else:
        assert (message["type"], stat.S_IMODE(path.stat().st_mode)) == ("listening", 0o600)


def test_a_path_with_a_nul(ask: Any) -> None:
    assert ask(1, "unix:/tmp/a\0b").kind == "refused"


def test_mode_of_a_path(ask: Any, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert ask(1, f"unix:{path}", mode=0o600, owner=[os.getuid(), os.getgid()]).kind == "listening"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_refusal_is_not_remembered(listening: Listening, ask: Any) -> None:
    ask(1, "nonsense")
    assert listening.asked == {}


@given(st.text(max_size=30).filter(lambda text: "\0" not in text))
@example("udp:")
@example("\udcff:80")
@example("[::1:80")
@example("unix:@")
def test_whatever_is_asked_for_there_is_an_answer(address: str) -> None:
    listening = Listening()
    here = os.getcwd()
    os.chdir("/proc")  # where nothing can be made
    try:
        answer = Answer(listening, 1, address.replace("unix:", "unix:/proc/no/"))
        assert answer.kind in ("listening", "refused")
        answer.close()
    finally:
        os.chdir(here)
        listening.close()
        listeners.forget()


# --- those who ask


def test_one_that_has_gone_by_the_time_of_the_answer_is_harmless(listening: Listening) -> None:
    ours, theirs = pair()
    ours.close()
    question = {
        "address": "127.0.0.1:0",
        "resolved": None,
        "name": None,
        "backlog": 5,
        "reuse_port": False,
        "mode": None,
        "owner": None,
    }
    listening.answer(1, question, theirs.detach())
    ours, theirs = pair()
    ours.close()
    listening.answer(1, {**question, "address": "nonsense"}, theirs.detach())
    assert listening.asked == {1: {("127.0.0.1:0", None)}}


def test_what_systemd_has_passed_is_handed_out_and_never_closed(
    listening: Listening, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        port = passed.getsockname()[1]
        monkeypatch.setattr(systemd, "listen_fds", lambda: [(os.dup(passed.fileno()), "web")])
        by_name, by_address = ask(1, "127.0.0.1:1", name="web"), ask(1, f"127.0.0.1:{port}")
        assert by_name.port == by_address.port == port
        listening.commit(2, now=0.0)
        listening.look(1e9)
        assert ask(3, "127.0.0.1:1", name="web").port == port
        listening.close()
        assert listeners.systemd_fds() != []
    assert answers_on(port)


class Supervised:
    """This process as a member: `listen()` asks over a lifeline; a thread answers as the supervisor would."""

    def __init__(self, answer: Any) -> None:
        ours, theirs = pair()
        self.end, self._answer = Lifeline(theirs), answer
        asking.begin(Lifeline(ours))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self.end.has_ended:
            select.select([self.end], [], [], 1)
            for message, rights in self.end.receive():
                self._answer(message, rights)

    def close(self) -> None:
        assert asking.lifeline is not None
        asking.lifeline.close()
        self._thread.join()
        self.end.close()


@pytest.fixture
def no_lifeline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(asking, "lifeline", None)
    monkeypatch.setattr(listeners, "elsewhere", None)
    yield
    listeners.forget()


@pytest.mark.usefixtures("no_lifeline")
def test_listen_in_a_member_gets_what_the_supervisor_has_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:

        def answer(message: dict[str, Any], rights: list[int]) -> None:
            asked.append(message)
            reply = Lifeline(socket.socket(fileno=rights[0]))
            reply.post("listening", bound.fileno())
            reply.close()

        asked: list[dict[str, Any]] = []
        supervised = Supervised(answer)
        try:
            with listeners.listen(("127.0.0.1", 0), name="web", backlog=7) as listener:
                assert listener.getsockname() == bound.getsockname()
            with listeners.listen("127.0.0.1:0", name="web") as again:
                assert again.getsockname() == bound.getsockname()
        finally:
            supervised.close()
    assert len(asked) == 1  # once it has it, it need not ask again
    assert {**asked[0], "type": ""} == {
        "type": "",
        "address": "127.0.0.1:0",
        "resolved": [socket.AF_INET, ["127.0.0.1", 0]],
        "name": "web",
        "backlog": 7,
        "reuse_port": False,
        "mode": None,
        "owner": None,
    }


@pytest.mark.usefixtures("no_lifeline")
def test_a_refusal_is_the_error_that_it_would_be_without_a_supervisor() -> None:
    def answer(_message: dict[str, Any], rights: list[int]) -> None:
        reply = Lifeline(socket.socket(fileno=rights[0]))
        reply.post("refused", errno=errno.EADDRINUSE, reason="listen('x:1'): Address already in use")
        reply.close()

    supervised = Supervised(answer)
    try:
        with pytest.raises(AddressError, match="Address already in use") as caught:
            listeners.listen("127.0.0.1:1")
        assert caught.value.errno == errno.EADDRINUSE
    finally:
        supervised.close()


@pytest.mark.usefixtures("no_lifeline")
@pytest.mark.parametrize("answers", ["nothing", "garbage"])
def test_a_supervisor_that_does_not_answer_is_an_error(answers: str) -> None:
    def answer(_message: dict[str, Any], rights: list[int]) -> None:
        with socket.socket(fileno=rights[0]) as reply:
            if answers == "garbage":
                reply.send(b"\xff" * 10)

    supervised = Supervised(answer)
    try:
        with pytest.raises(AddressError, match=r"listen\('127\.0\.0\.1:1'\): the supervisor binds, and"):
            listeners.listen("127.0.0.1:1")
    finally:
        supervised.close()


@pytest.mark.usefixtures("no_lifeline")
def test_without_a_supervisor_any_more_it_is_an_error() -> None:
    ours, theirs = pair()
    theirs.close()
    own = asking.begin(Lifeline(ours))
    with pytest.raises(AddressError, match="the supervisor is gone"):
        listeners.listen("127.0.0.1:1")
    own.close()
