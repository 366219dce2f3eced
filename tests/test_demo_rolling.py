"""The rolling half of `python -m hotrestart demo`: it works anywhere, cleans up, and tells the truth.

As for the other half: made-up records go into the ledger, and saboteurs' servers through the whole demonstration.
"""

from __future__ import annotations

import io
import os
import pkgutil
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotrestart.demo import rolling, story, traffic_ledger
from hotrestart.demo.display import Display
from hotrestart.demo.ledger import Release
from hotrestart.demo.process import Process
from hotrestart.demo.traffic import Answer, Death, Failure, Traffic
from hotrestart.demo.traffic_ledger import Hang, TrafficLedger
from tests.harness import CHECKOUT, PATIENCE, clean_environment, tried_three_times
from tests.test_demo import COMMAND, all_pids, await_end_of_session, be_patient, is_clean, run_on_a_terminal, show

ROLLING = [*COMMAND[:-1], "rolling"]


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """An environment whose temporary folder is `tmp_path / "tmp"`."""
    (tmp_path / "tmp").mkdir()
    return clean_environment(TMPDIR=str(tmp_path / "tmp"), TERM="xterm")


def still_there(surroundings: dict[str, str]) -> list[int]:
    """Processes that work in a folder of a demonstration."""
    found = []
    for pid in all_pids(0):
        try:
            if os.readlink(f"/proc/{pid}/cwd").startswith(surroundings["TMPDIR"]):
                found.append(pid)
        except OSError:
            continue
    return found


def await_end_of_all(surroundings: dict[str, str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while members := still_there(surroundings):
        assert time.monotonic() < deadline, f"left behind: {members}"
        time.sleep(0.01)


# --- the whole thing


@tried_three_times
def test_both_halves_keep_every_promise_in_time(tmp_path: Path, surroundings: dict[str, str]) -> None:
    (tmp_path / "empty").mkdir(exist_ok=True)
    began = time.monotonic()
    ran = subprocess.run(
        COMMAND[:-1], cwd=tmp_path / "empty", env=surroundings, capture_output=True, text=True, timeout=PATIENCE
    )
    took = time.monotonic() - began
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
    assert took < 40, "20 on two busy cores, and more if tests keep them busy"
    assert ran.stdout.count("Every promise was kept.") == 2
    rows = dict(re.findall(r"^  (\w.*?) {3,}(.*)$", ran.stdout, re.MULTILINE))
    assert rows["requests sent"] == rows["requests answered"]
    kept = rows["on kept connections"]
    assert int(rows["requests sent"].replace(",", "")) > int(kept.replace(",", "")) > 100
    assert (rows["requests failed"], rows["kept connections that died"]) == ("0", "0")
    assert rows["reloads"] == "4 of 4 took effect"
    refusals = "load: ModuleNotFoundError: No module named 'forgotten_dependency'; {}: LookupError: no such table"
    possible = [refusals.format(stage) for stage in ("soak", "ready")]  # ready, if the other worker is late
    assert rows["refusals"] in [f"2 ({each})" for each in possible]
    assert re.search(rf"version 1 serves on 127.0.0.1:\d+, supervisor {rows['pid'].split(',')[0]}, ", ran.stdout)
    assert re.fullmatch(r"\d+ ms before, \d+ ms during reloads", rows["longest time without an answer"])
    assert rows["lost with the hung worker"].startswith("1 request (on purpose), ")
    assert ran.stdout.count("on disk, HUP: first answer") == 4
    assert re.search(r"its stack is in the log \(server\.py, line \d+\), it is killed; \d+ serves", ran.stdout)
    assert not {"\r", "\x1b"} & set(ran.stdout)
    await_end_of_all(surroundings)
    assert is_clean(surroundings)
    assert os.listdir(tmp_path / "empty") == []


@tried_three_times
def test_on_a_terminal_the_requests_can_be_seen(surroundings: dict[str, str]) -> None:
    status, written = run_on_a_terminal(CHECKOUT, {**surroundings, "NO_COLOR": "1"}, ROLLING)
    assert status == 0, written
    assert re.search(r"\r\x1b\[K *\d+\.\d s  version 1, [\d,]+ requests answered, 0 failed", written)
    assert "HUP for version 2" in written
    seen = [line.rpartition("\r\x1b[K")[2] for line in written.split("\r\n")]
    assert not [line for line in seen if "requests answered," in line or "HUP for" in line]
    assert seen[-2].startswith("Every promise was kept.")
    assert is_clean(surroundings)


# --- its end, before the end


@pytest.fixture
def demo(surroundings: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(ROLLING, cwd=CHECKOUT, env=surroundings, stdout=pipe, stderr=pipe, text=True) as process:
        yield process
        process.kill()


def read_until(demo: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert demo.stdout is not None
    said = ""
    for line in demo.stdout:
        said += line
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"it has not said {pattern!r}: {said}{demo.communicate()}")


@pytest.mark.parametrize(
    ("how", "when", "later"),
    [
        (signal.SIGINT, "A server with two", 0.05),
        (signal.SIGTERM, "serves on", 0.2),
        (signal.SIGINT, "version 2 on disk", 0.35),
        (signal.SIGINT, "spin for ever", 0.3),
    ],
    ids=["starting", "at work", "reloading", "hanging"],
)
def test_it_can_be_interrupted_and_leaves_nothing_behind(
    demo: subprocess.Popen[str], surroundings: dict[str, str], how: int, when: str, later: float
) -> None:
    read_until(demo, when)
    time.sleep(later)
    demo.send_signal(how)
    _, said = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 130
    assert said == "hotrestart demo: interrupted; what it started is ended, its folder removed\n"
    await_end_of_all(surroundings)
    assert is_clean(surroundings)


def test_if_it_is_killed_all_that_it_has_started_ends_by_itself(
    demo: subprocess.Popen[str], surroundings: dict[str, str]
) -> None:
    supervisor = int(read_until(demo, r"supervisor (\d+)")[1])
    demo.kill()
    demo.wait()
    await_end_of_session(supervisor)
    await_end_of_all(surroundings)


# --- it tells the truth: what the client writes down


def test_the_records_are_read_as_they_grow(tmp_path: Path) -> None:
    file, traffic = tmp_path / "client.log", Traffic()
    file.write_text("answered 1.5 2.5 3 77 1\nfailed 2.0 3.0 Oops: it is")
    with traffic.reading(file):
        traffic.look()
        assert (traffic.answers, traffic.failures) == ([Answer(1.5, 2.5, 3, 77, True)], [])
        with file.open("a") as stream:
            stream.write(" no use\ndied 4.0 78\nsent 2\nTraceback (most\nanswered 1 2\n")
    assert traffic.failures == [Failure(2.0, 3.0, "Oops: it is no use")]
    assert (traffic.deaths, traffic.sent) == ([Death(4.0, 78)], 2)
    assert traffic.noise == ["Traceback (most", "answered 1 2"]


FICKLE = """
import itertools, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print("port", listener.getsockname()[1], flush=True)
for number in itertools.count():
    connection, _ = listener.accept()
    for turn in range(3):
        head = b""
        while not head.endswith(b"\\r\\n\\r\\n"):
            chunk = connection.recv(4096)
            if not chunk:
                break
            head += chunk
        if not head or turn == 2 or b"/1/2 " in head:
            break
        path = head.split()[1]
        body = b"/nonsense" if path == b"/3/2" else path
        about = b"X-Version: 1\\r\\nX-Worker: 7\\r\\nContent-Length: %d" % len(body)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\n" + about + b"\\r\\n\\r\\n" + body)
        if b"close" in head:
            break
    connection.close()
"""


def test_the_client_sees_what_is_done_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a server that drops a request, answers another wrongly, and ends kept connections after two answers."""
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    (tmp_path / "fickle.py").write_text(FICKLE)
    traffic = Traffic()
    with Process(tmp_path, "fickle", "fickle.py") as server:
        deadline = time.monotonic() + PATIENCE
        while not (port := re.findall(r"port (\d+)\n", server.log())):
            assert time.monotonic() < deadline, server.log()
        client = Process(tmp_path, "client", "-m", "hotrestart.demo.client", port[0])
        with client, traffic.reading(client.log_file):
            while not (len(traffic.failures) >= 2 and len(traffic.deaths) >= 3):
                assert time.monotonic() < deadline, client.log()
                traffic.look()
            assert client.let_go() == 0
    assert traffic.noise == []
    assert traffic.sent == len(traffic.answers) + len(traffic.failures)
    reasons = {each.reason.partition(":")[0] for each in traffic.failures}
    assert reasons == {"RemoteDisconnected", "ValueError"} or reasons == {"ConnectionResetError", "ValueError"}
    assert {each.worker for each in traffic.deaths} == {7}
    assert any(each.is_kept for each in traffic.answers)
    assert not all(each.is_kept for each in traffic.answers)


# --- it tells the truth: the ledger

RELEASES = [
    Release(2, 10.0, 11.0),
    Release(3, 12.0, 12.5, is_broken=True, refusal="load: SyntaxError: invalid syntax"),
    Release(4, 14.0, 15.0),
]
HANG = Hang(202, 13.0, 13.8, "server.py, line 7", True, 203)


def answer(at: float, version: int, worker: int = 0) -> Answer:
    return Answer(at - 0.01, at, version, worker or 100 * version + 1, True)


def traffic_in_which_all_is_well() -> Traffic:
    traffic = Traffic()
    traffic.answers = [answer(9 + n / 10, 1) for n in range(13)]
    traffic.answers += [answer(10.3 + n / 10, 2) for n in range(40)]
    traffic.answers += [answer(14.5 + n / 10, 4) for n in range(11)]
    traffic.deaths = [Death(13.7, 202)]
    traffic.sent = len(traffic.answers)
    return traffic


def test_a_ledger_in_which_all_is_well() -> None:
    ledger = TrafficLedger(traffic_in_which_all_is_well(), RELEASES, HANG, 77, 0)
    assert ledger.faults() == []
    assert ledger.rows() == [
        ("requests sent", "64"),
        ("requests answered", "64"),
        ("requests failed", "0"),
        ("on kept connections", "64"),
        ("kept connections that died", "0"),
        ("reloads", "2 of 2 took effect"),
        ("refusals", "1 (load: SyntaxError: invalid syntax)"),
        ("pid", "77, from first to last"),
        ("HUP to first answer by new code", "300 / 400 / 500 ms (min / median / max)"),
        ("longest time without an answer", "100 ms before, 300 ms during reloads"),
        ("workers that served", "3"),
        ("lost with the hung worker", "1 request (on purpose), 1 kept connection; 100 ms of silence"),
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"answers": []}, "no request was answered at all"),
        ({"failures": [Failure(10.0, 10.1, "OSError: no")]}, "1 request has failed: OSError: no"),
        (
            {"failures": [Failure(10.0, 10.1, each) for each in "abbcd"]},
            "5 requests have failed: b, a, c, ...",
        ),
        ({"deaths": [Death(10.5, 101)]}, "1 kept connection died, and had to be made again"),
        ({"sent": 66}, "2 requests are not accounted for"),
        ({"sent": -1}, "the client has ended before it could say how many requests it had sent"),
        ({"noise": ["MemoryError"]}, "the client has said: MemoryError"),
        ({"more": [answer(11.5, 1)]}, "version 1 answered after version 2 had taken over"),
        ({"more": [answer(13.0, 3)]}, "version 3 answered after version 3 was refused"),
        ({"until": 14.9}, "no request was answered any more after version 4 had taken over"),
        ({"without": (10.5, 11.6)}, "nobody answered for 1100 ms while a reload was under way"),
        ({"status": -9}, "the program ended with status -9, not 0"),
        ({"missed": "HUP for version 9"}, "this did not come about in time: HUP for version 9"),
        ({"is_early": True}, "the pid did not stay 77: that process ended before it was asked to"),
        ({"hang": HANG._replace(pid=0)}, "the request that was to make a worker hang was not taken"),
        ({"hang": HANG._replace(is_gone=False)}, "worker 202 hung and was not ended"),
        ({"hang": HANG._replace(dump="")}, "worker 202 hung and the log does not say where"),
        ({"hang": HANG._replace(successor=0)}, "worker 202 hung and was not replaced"),
        ({"releases": [*RELEASES, Release(5, 15.2, 15.4)]}, "the reload did not lead to version 5"),
        (
            {"releases": [*RELEASES, Release(5, 15.2, 15.4, refusal="ready: OSError: no")]},
            "the reload did not lead to version 5: it was refused: ready: OSError: no",
        ),
        ({"releases": [Release(2, 10.0, 11.0, is_broken=True)]}, "version 2 is broken and was not refused"),
    ],
)
def test_each_broken_promise_is_a_fault(change: dict[str, object], fault: str) -> None:
    traffic = traffic_in_which_all_is_well()
    facts = {"releases": RELEASES, "hang": HANG, "pid": 77, "status": 0, "is_early": False, "missed": ""}
    for name, value in change.items():
        if name in facts:
            facts[name] = value
        elif name == "more":
            traffic.answers = sorted([*traffic.answers, *value], key=lambda each: each.at)  # type: ignore[misc]
        elif name == "until":
            traffic.answers = [each for each in traffic.answers if each.at < value]  # type: ignore[operator]
        elif name == "without":
            traffic.answers = [each for each in traffic.answers if not value[0] < each.at < value[1]]  # type: ignore[index]
        else:
            setattr(traffic, name, value)
    assert fault in TrafficLedger(traffic, **facts).faults()  # type: ignore[arg-type]


def test_a_ledger_of_nothing_can_be_shown() -> None:
    screen = io.StringIO()
    assert story.settle(TrafficLedger(Traffic(), [], None, 77, 1, True), Display(screen), log_tail=[]) == 1
    assert "FAILED: no request was answered at all\n" in screen.getvalue()


# --- it tells the truth: saboteurs

ANSWERS = "        body = self.path.encode()\n"
VANISHES = """
import http.server, os, signal, socket
VERSION = 1
signal.signal(signal.SIGHUP, lambda *_: os.fork() and os._exit(0))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.path.encode()
        head = f"X-Version: {VERSION}\\r\\nX-Worker: {os.getpid()}\\r\\nContent-Length: {len(body)}"
        self.wfile.write(b"HTTP/1.0 200 OK\\r\\n" + head.encode() + b"\\r\\n\\r\\n" + body)
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print("serving on port", server.server_address[1])
print("hotrestart: generation 1 serves after 0.00 s [pid 1]", flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize(
    ("code", "sabotaged", "fault"),
    [
        (
            ANSWERS,
            ANSWERS
            + "        if hotrestart.state.should_stop:\n"
            + "            self.close_connection = True\n"
            + "            return\n",
            r"kept connections? died",
        ),
        (ANSWERS, ANSWERS.replace("()", "() * (1 + (self.path[-2:] == '00'))"), r"failed: ValueError: asked for"),
        ("", VANISHES, r"the pid did not stay \d+"),
        ("VERSION = 1", "VERSION = 1; VERSION = 1", r"the reload did not lead to version 2\n"),
        ("VERSION = 1\n", "VERSION = 1\nassert VERSION != 2\n", r"version 2: it was refused: load: AssertionError"),
        (", timeout=1.0", "", r"worker \d+ hung and was not ended"),
        ("timeout=1.0", "timeout=5.0", None),
    ],
    ids=["drops", "garbles", "changes its pid", "stays", "refuses", "hangs on", "harmless"],
)
def test_a_server_that_breaks_a_promise_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, sabotaged: str, fault: str | None
) -> None:
    source = (pkgutil.get_data("hotrestart.demo", "server.py") or b"").decode()
    assert code in source
    source = source.replace(code, sabotaged) if code else sabotaged
    monkeypatch.setattr(pkgutil, "get_data", lambda *_: source.encode())
    monkeypatch.setattr(rolling, "_RELEASES", (2,))
    monkeypatch.setattr(rolling, "_UNDISTURBED", 0.3)
    monkeypatch.setattr(traffic_ledger, "_SILENCE", PATIENCE)
    vain = {"did not lead": "HUP for", "not ended": " hangs"}
    be_patient(monkeypatch, but_for=next((step for why, step in vain.items() if why in (fault or "")), "nothing"))
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    status, shown = show(rolling.demonstrate, tmp_path)
    assert status == (1 if fault else 0), shown
    assert re.search(f"FAILED: .*{fault}" if fault else "Every promise was kept.", shown), shown
    await_end_of_all({"TMPDIR": str(tmp_path)})


def test_broken_code_that_is_not_refused_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "_RELEASES", (4,))
    monkeypatch.setattr(rolling, "_FLAWS", {4: [("VERSION = ", "VERSION = ")]})
    monkeypatch.setattr(rolling, "_UNDISTURBED", 0.3)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    status, shown = show(rolling.demonstrate, tmp_path)
    assert status == 1
    assert "FAILED: version 4 is broken and was not refused\n" in shown
