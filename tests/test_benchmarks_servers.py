"""The measurement of servers works, in a short form, and its arithmetic is right. Nothing is said about times here."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from .conftest import missing
from .harness import CHECKOUT, PATIENCE, clean_environment

sys.path.insert(0, str(CHECKOUT / "benchmarks"))

from servers import apps, clients, ledger, tables, targets
from servers.clients import Load, Record
from servers.ledger import Window


def test_the_short_form_measures_ours_and_a_peer(tmp_path: Path) -> None:
    if importlib.util.find_spec("gunicorn") is None:
        missing("gunicorn")
    command = [sys.executable, str(CHECKOUT / "benchmarks" / "peers.py"), "--here", "--short"]
    command += ["--results", str(tmp_path)]
    ran = subprocess.run(command, env=clean_environment(), capture_output=True, timeout=5 * PATIENCE)
    assert ran.returncode == 0, ran.stderr.decode()
    (document,) = json.loads((tmp_path / "servers.json").read_text())["pythons"]
    assert {"python", "kernel", "cpus", "date"} <= document.keys()
    found = {each["name"]: each for each in document["peers"]}
    assert {name.partition(",")[0] for name in found} == {"hotrestart", "gunicorn sync"}
    for each in found.values():
        assert each["missing"] is None, each
        assert [run["open"]["took_effect"] for run in each["runs"]] == [1]
        assert [run["closed"]["took_effect"] for run in each["runs"]] == [1]
        assert each["runs"][0]["memory"]["steady"] > 1
        assert each["timeline"]["old"]
        assert each["timeline"]["new"]
    ours = next(each for name, each in found.items() if name.startswith("hotrestart"))
    assert ours["runs"][0]["open"]["lost"] == ours["slow"]["0.5 s busy"][0]["lost"] == {}
    assert ours["broken"]["raises"]["availability"] == 100
    assert ours["broken"]["raises"]["told"] == "exit 1"
    assert ours["broken"]["raises"]["recovery"] is not None
    for table in document["results"]:
        assert table["rows"], table["title"]
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert all(name in (tmp_path / "servers.md").read_text() for name in found)
    assert str(Path.home()) not in json.dumps(document)
    assert sys.prefix not in json.dumps(document)


def test_a_peer_that_is_not_installed_is_named_with_the_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PRETEND, "--here", "--short", "--only", "granian", "--results", str(tmp_path)]
    command += ["--missing", '{"granian": "it cannot be built"}']
    ran = subprocess.run(command, env=clean_environment(), capture_output=True, timeout=PATIENCE)
    assert ran.returncode == 0, ran.stderr.decode()
    assert "| granian, HUP | not measured: it cannot be built |" in (tmp_path / "servers.md").read_text()


PRETEND = f"""
import importlib.metadata, runpy, sys
def version(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = version
sys.path.insert(0, {str(CHECKOUT / "benchmarks")!r})
sys.argv[0] = {str(CHECKOUT / "benchmarks" / "peers.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


# -- the ledger --------------------------------------------------------------------------------------------------------


def record(sent: float, took: float, version: int = 1, *, pid: int = 10, failure: str = "") -> Record:
    return Record(sent, sent + took, 0 if failure else version, pid, False, failure, False)


RECORDS = [
    record(0.0, 0.1),
    record(1.0, 0.1, pid=11),
    record(2.0, 0.5),
    record(2.1, 0.2, failure="reset"),
    record(3.0, 0.1, 2),
    record(4.0, 0.1, 2, pid=11),
]
WINDOW = Window(version=2, began=1.5, ended=3.5, until=5.0)


def test_silence_is_the_longest_time_between_two_answers_and_the_ends() -> None:
    assert ledger.longest_silence(RECORDS, 0.0, 5.0) == pytest.approx(1.4)  # from 1.1 to 2.5: a failure is no answer
    assert ledger.longest_silence([], 0.0, 5.0) == 5.0


def test_a_reload_is_accounted_for() -> None:
    found = ledger.account(RECORDS, (0.0, 1.5), [WINDOW])
    assert (found["reloads"], found["took_effect"], found["lost"]) == (1, 1, {"reset": 1})
    assert found["lost_in_the_steady_state"] == {}
    assert found["first_new"] == pytest.approx(1.6)
    assert found["last_old"] == pytest.approx(1.0)
    assert found["max"] == pytest.approx(500)
    assert found["steady_max"] == pytest.approx(100)
    assert found["per_second"] == pytest.approx(1.0)


def test_new_code_that_never_answers_has_not_taken_effect() -> None:
    found = ledger.account(RECORDS[:4], (0.0, 1.5), [WINDOW])
    assert (found["took_effect"], found["first_new"], found["last_old"]) == (0, None, None)


@pytest.mark.parametrize(
    ("runs", "lost", "verdict"),
    [(200, {}, "reached"), (199, {}, "**not reached**"), (200, {"reset": 1}, "**not reached**")],
)
def test_that_nothing_is_lost_takes_two_hundred_reloads(runs: int, lost: dict[str, int], verdict: str) -> None:
    load = {**ledger.account(RECORDS, (0.0, 1.5), [WINDOW]), "lost": {}}
    found = [{"open": load, "closed": load} for _ in range(runs)]
    found[7] = {"open": {**load, "lost": lost}, "closed": {**load, "lost": lost}}
    rows = targets.targets([{"name": "hotrestart, rolling, one of them", "runs": found}]).rows
    verdicts = {row[0].partition(":")[0]: row[2] for row in rows if "nothing lost" in row[0]}
    assert verdicts == {"rolling, open loop": verdict, "rolling, closed loop": verdict}


def test_a_slow_import_sleeps_or_computes() -> None:
    asleep, busy = apps.Slow(0.1), apps.Slow(0.1, is_busy=True)
    assert (asleep.name, busy.name) == ("0.1 s", "0.1 s busy")
    for each, clock in ((asleep, time.monotonic), (busy, time.thread_time)):
        began = clock()
        exec(each.first, {})
        assert clock() - began >= 0.1


def test_an_answer_that_is_no_good_news_is_told_beside_what_took_effect() -> None:
    load = {**ledger.account(RECORDS, (0.0, 1.5), [WINDOW]), "told": {"exit 0": 1, "the old one did not end": 2}}
    run = {"open": load, "closed": load, "memory": {"steady": 1.0, "peak": 2.0}}
    table = tables.all_tables([{"name": "a peer", "runs": [run]}])[0].as_json()
    row = dict(zip(table["columns"], table["rows"][0], strict=False))
    assert row["reloads that took effect"] == "1 of 1 (2 of them: the old one did not end)"


def test_silence_is_held_against_the_steady_state() -> None:
    load = {**ledger.account(RECORDS, (0.0, 1.5), [WINDOW]), "lost": {}}
    rows = {}
    for restarting in (0.1, 0.3):
        run = {**load, "silence": restarting, "steady_silence": 0.2}
        found = {"name": "hotrestart, rolling, it", "runs": [{"open": run, "closed": run}], "slow": {"3 s": [run, run]}}
        rows[restarting] = [row for row in targets.targets([found]).rows if "longest silence" in row[0]]
    assert [len(each) for each in rows.values()] == [3, 3]
    assert {row[2] for row in rows[0.1]} == {"reached"}
    assert {row[2] for row in rows[0.3]} == {"**not reached**"}
    assert all("1.50: 0.300 s, steady 0.200 s (it)" in row[1] for row in rows[0.3])


def test_availability_is_the_share_of_what_was_sent_in_the_time() -> None:
    assert ledger.availability(RECORDS, 2.0, 3.0) == 50
    assert ledger.availability(RECORDS, 10.0, 11.0) == 0


def test_the_fewest_workers_are_counted_glance_by_glance() -> None:
    both = [record(at / 10, 0.0, pid=pid) for at in range(10) for pid in (10, 11)]
    assert ledger.fewest_workers(both, 0.0, 1.0) == 2
    assert ledger.fewest_workers([each for each in both if each.pid == 10 or each.sent < 0.5], 0.0, 1.0) == 1
    assert ledger.fewest_workers(both, 0.0, 2.0) == 0


# -- the clients -------------------------------------------------------------------------------------------------------

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def asked(serve: Serve | None, *, rate: float = 50.0, seconds: float = 0.3, timeout: float = 0.1) -> list[Record]:
    """What the clients note of a server like this; None: of nobody at all."""

    handlers: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        try:
            await (serve or answer)(reader, writer)
            await writer.drain()
        except OSError:
            pass  # a client that has gone
        finally:
            writer.transport.abort() if serve is reset else writer.close()

    async def run() -> list[Record]:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        if serve is None:
            server.close()
            await server.wait_closed()
        async with Load(port, rate=rate, timeout=timeout) as load:
            await asyncio.sleep(seconds)
        server.close()
        await asyncio.wait_for(asyncio.gather(*(task for task in handlers if task)), PATIENCE)
        return load.records

    return asyncio.run(run())


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while (head := await head_of(reader)) and b"close" not in head:
        writer.write(OK)
    writer.write(OK if head else b"")
    writer.close()


async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)
    await asyncio.sleep(3.5)
    writer.write(OK)
    writer.close()


async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """And end when asked again."""
    await head_of(reader)
    writer.write(OK)
    await head_of(reader)
    writer.close()


async def part(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)
    writer.write(OK[:-1])
    writer.close()


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)
    writer.write(b"HTTP/1.1 503 Not now\r\nContent-Length: 0\r\n\r\n")
    writer.close()


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def head_of(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n7 9"


@pytest.mark.parametrize("rate", [50.0, 0.0], ids=["open loop", "closed loop"])
def test_answers_are_noted_with_their_version_and_process(rate: float) -> None:
    records = asked(answer, rate=rate, timeout=PATIENCE)
    assert {(each.version, each.pid, each.failure, each.retried) for each in records} == {(7, 9, "", False)}
    assert {each.is_kept for each in records} == {False, True}


@pytest.mark.parametrize(
    ("serve", "kind"),
    [(None, "refused"), (reset, "reset"), (part, "EOF"), (fail, "5xx"), (say_nothing, "timeout")],
    ids=["refused", "reset", "EOF", "5xx", "timeout"],
)
def test_failures_are_told_apart(serve: Serve | None, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "AFTERWARDS", PATIENCE)
    records = asked(serve, timeout=0.1 if kind == "timeout" else PATIENCE)
    assert set(ledger.losses(records)) == {kind}
    assert not any(each.retried for each in records)


def test_what_is_under_way_at_the_end_has_its_time_and_is_no_timeout() -> None:
    records = asked(answer_late, timeout=PATIENCE)
    assert records
    assert ledger.losses(records) == {}


def test_what_is_cut_off_is_no_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "AFTERWARDS", 0.1 - PATIENCE)
    assert set(ledger.losses(asked(say_nothing, timeout=PATIENCE))) == {"cut off"}


def test_a_kept_connection_that_dies_after_the_request_is_a_retry_and_not_lost() -> None:
    records = asked(answer_once, timeout=PATIENCE, seconds=1.0)
    assert ledger.losses(records) == {}
    assert {each.is_kept for each in records if each.retried} == {True}
