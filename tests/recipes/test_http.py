"""Servers of the standard library under load from new and from kept connections, restarted in both ways: 0 lost."""

from __future__ import annotations

import threading
import time

import pytest

from tests.harness import PATIENCE, Program
from tests.recipes import load
from tests.recipes.load import KINDS, Client, Load, deploy, reload, reload_and_account, start


@pytest.mark.figures
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("app", ["http_threads", "streams", "wsgi", "tcp_threads", "tcp_forks", "plain"])
def test_reloads_under_load_lose_nothing(program: Program, port: int, app: str, kind: str, full: bool) -> None:
    keeps = app in ("http_threads", "streams")
    often = app == "http_threads" and kind == "workers"
    reloads = 100 if full else 6 if often else 3
    clients = {} if keeps else {"new": 5, "kept": 0, "pausing": 0}
    reload_and_account(program, port, app, kind, reloads, **clients)


def test_the_longest_silence_with_and_without_reloads(program: Program, port: int, full: bool) -> None:
    """Measured, for `pytest -s`; asserted is only that the clients did not notice."""
    start(program, "http_threads", port, "workers")
    runs, reloads = (5, 10) if full else (1, 3)
    with Load(port) as load:
        silences: list[float] = []
        first = 2
        for run in range(runs):
            began = time.monotonic()
            reload(program, load, "http_threads", "workers", range(first, first + reloads))
            first, until = first + reloads, time.monotonic()
            silences.append(load.longest_silence(began, until))
            time.sleep(until - began)
            silences.append(load.longest_silence(until, time.monotonic()))
            print(f"run {run}: longest silence {silences[-2] * 1000:.0f} ms, without reloads {silences[-1] * 1000:.0f}")
    ratio = max(silences[::2]) / max(silences[1::2])
    print(f"ratio of the maxima {ratio:.2f}, of the sums {sum(silences[::2]) / sum(silences[1::2]):.2f}")
    load.check(first - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slow_import_changes_nothing_for_the_clients(program: Program, port: int, kind: str, full: bool) -> None:
    """A busy machine may be silent for a moment in any of the reloads; what an import holds up it holds up in each."""
    loads, versions = 8.0 if full else 2.0, range(2, 8)
    start(program, "http_threads", port, kind)
    with Load(port) as load:
        load.wait_for(program, 1, alone=True)
        began = time.monotonic()
        time.sleep(loads)
        steady = load.longest_silence(began, time.monotonic())
        # In place: one boot of the program, in which clients wait in the queue; and not the preflight's.
        least, most = (0.0, loads / 10 + 2 * steady) if kind == "workers" else (loads, 2 * loads)
        silences: list[float] = []
        for version in versions:
            began = time.monotonic()
            reload(program, load, "http_threads", kind, range(version, version + 1), loads=loads)
            silences.append(load.longest_silence(began, time.monotonic()))
            if least < silences[-1] < most:
                break
    print(f"import takes {loads} s, {kind}: longest silences {silences}, without reloads {steady}")
    load.check(version)
    assert least < silences[-1] < most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("app", ["http_threads", "streams"])
def test_what_is_in_flight_is_finished(program: Program, port: int, app: str, kind: str, full: bool) -> None:
    slow, stream = (3, 10) if full else (1.5, 2.5)
    asked = [f"/slow?{slow}"] * 3 + [f"/stream?{stream}"] * 2 * (app == "http_threads")
    asked += ["/until?go"] * (kind == "workers")  # only there the new code serves while the old one finishes
    bodies: dict[int, bytes | str] = {}
    begun = threading.Barrier(len(asked) + 1)

    def fetch(number: int, path: str) -> None:
        try:
            with Client(port) as client:
                client.ask(keep=True)
                client.send(path, keep=True)
                begun.wait(PATIENCE)
                bodies[number] = client.receive(keep=True)
        except (OSError, EOFError) as error:
            bodies[number] = repr(error)

    start(program, app, port, kind)
    threads = [threading.Thread(target=fetch, args=each) for each in enumerate(asked)]
    for thread in threads:
        thread.start()
    begun.wait(PATIENCE)
    deploy(program, app, 2, kind)
    with Load(port) as load:
        load.wait_for(program, 1)
        program.hup()
        load.wait_for(program, 2, alone=True)
        (program.folder / "go").touch()
        for thread in threads:
            thread.join()
    load.check(2)
    assert list(bodies.values()).count(b"1") == 3 + (kind == "workers"), bodies
    if app == "http_threads":
        assert list(bodies.values()).count(b"1" * round(stream / 0.05)) == 2, bodies


def test_an_answer_is_not_lost_to_a_body_that_nobody_reads(
    program: Program, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients have a second to take it, and here as long as a busy machine may hold them up."""
    patient = "from hotrestart.serving import keeping\nkeeping._PATIENCE = keeping.KeepAlive.linger = 60.0\n"
    source = load.source_of("http_threads").replace("VERSION = 0\n", "VERSION = 0\n" + patient)
    monkeypatch.setattr(load, "source_of", lambda _: source)
    start(program, "http_threads", port, "workers")
    stop = threading.Event()
    answers: list[bytes] = []
    errors: list[str] = []

    def post() -> None:
        body = b"x" * 300_000
        while not stop.is_set():
            try:
                with Client(port) as client:
                    request = b"Content-Length: %d\r\n" % len(body)
                    client._socket.sendall(b"POST / HTTP/1.1\r\nConnection: close\r\n" + request + b"\r\n" + body)
                    answers.append(client._until(b"\r\n\r\n"))
            except (OSError, EOFError) as error:
                errors.append(repr(error))

    threads = [threading.Thread(target=post) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with Load(port, new=1, kept=1, pausing=0) as others:
            reload(program, others, "http_threads", "workers", range(2, 5))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert answers
    others.check(4)


def test_idle_connections_hold_a_drain_up_for_no_longer_than_they_may(program: Program, port: int) -> None:
    start(program, "http_threads", port, "in place")
    with Client(port) as used, Client(port), Client(port) as late:
        used.ask(keep=True)
        late.ask(keep=True)
        deploy(program, "http_threads", 2, "in place")
        time.sleep(1.2)  # longer than `linger`
        assert late.ask(keep=True) == b"1"
        began = time.monotonic()
        program.hup()
        program.wait_until(used.has_been_closed, "the idle connection is closed")
        closed = time.monotonic() - began
        program.wait_until(late.has_been_closed, "the other one too")
        lingered = time.monotonic() - began
    print(f"closed after {closed:.2f} s, and what was used just before after {lingered:.2f} s")
    assert closed <= lingered
    with Client(port) as client:
        assert client.ask(keep=False) == b"2"
