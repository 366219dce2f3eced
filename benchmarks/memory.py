"""The memory of a whole tree of processes: four workers, and 100 MB of Python objects made at import.

The floor is `gunicorn --preload -w 4` with the same WSGI application; its reload is its HUP, which forks workers anew
from the memory of its master and brings no new code. Ours loads the program anew each time. Memory is the proportional
set size (PSS): a page that several processes share counts once. Each side is started, measured, reloaded ten times, and
measured again. What is there during a reload is sampled, process by process while they come and go, and the highest
sample is the peak: that one is rough.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import FLOOR, Comparison, Table, clean_environment, command_line, installed_package
from processes import children, family, free_port, rollup

WORKERS = 4
RELOADS = int(os.environ.get("BENCHMARK_RELOADS", "10"))
HEAP = int(os.environ.get("BENCHMARK_HEAP", "100"))  # MB
REQUESTS = int(os.environ.get("BENCHMARK_REQUESTS", "200"))  # before each measurement: work unshares what it writes to
PATIENCE = 120.0  # seconds until a program that does not answer is given up

OURS = {"ours": "batch=None", "ours, batch=1": "batch=1", "ours, preload=False, batch=1": "preload=False, batch=1"}

_APP = """
import os

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

heap, least = [], resident() + {heap} * 1000000
while resident() < least:
    for number in range(1000):
        heap.append({{"number": number, "name": "object %d" % len(heap), "about": (number / 3, [number])}})

def app(environ, start_response):
    one = heap[int(environ["QUERY_STRING"]) % len(heap)]
    body = ("%d %s" % (os.getpid(), one["name"])).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""

_OURS = """
import hotrestart
from hotrestart import serving
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from app import app

class Quiet(WSGIRequestHandler):
    def log_message(self, *about):
        pass

@hotrestart.restartable(workers={workers}, {options})
def main():
    listener = hotrestart.listen("127.0.0.1:{port}")
    server = WSGIServer(("127.0.0.1", {port}), Quiet, bind_and_activate=False)
    server.server_name, server.server_port = "localhost", {port}
    server.setup_environ()
    server.set_app(app)
    with hotrestart.worker_loop() as loop:
        serving.serve(server, listener, loop)

main()
"""


class Tree:
    """A server that runs, and all its processes."""

    def __init__(self, folder: Path, command: list[str], package: Path, port: int, size: int) -> None:
        self.port, self.size = port, size
        self._errors = folder / "stderr.txt"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**clean_environment(), "PYTHONPATH": f"{folder}{os.pathsep}{package}", "PWD": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )
        self.pid = self._process.pid

    def settle(self, old: set[int] | None = None) -> None:
        """Wait until all old workers have gone and all new ones answer, and let them work."""
        self._wait(lambda: len(self.processes()) == self.size and not set(self.workers()) & (old or set()))
        seen: set[int] = set()
        self._wait(lambda: seen.add(self._ask(0)) or len(seen) == WORKERS)
        for number in range(REQUESTS):
            self._ask(number * 9973)

    def reload(self) -> None:
        old = set(self.workers())
        os.kill(self.pid, signal.SIGHUP)
        self.settle(old)

    def peak_of_a_reload(self) -> float:
        """The most memory that there was from the HUP until all is quiet, in MB."""
        samples: list[float] = []
        is_over = threading.Event()

        def sample() -> None:
            while not is_over.wait(0.005):
                samples.append(self.pss())

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            self.reload()
        finally:
            is_over.set()
            sampler.join()
        return max(samples)

    def processes(self) -> list[int]:
        """All of them, the first one first."""
        return family(self.pid)

    def workers(self) -> list[int]:
        """Those that have no children."""
        return [pid for pid in self.processes()[1:] if not children(pid)]

    def pss(self) -> float:
        """Of all processes, in MB."""
        return sum(rollup(pid)["Pss"] for pid in self.processes())

    def _ask(self, number: int) -> int:
        """The pid of the worker that answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/?{number}", timeout=PATIENCE) as answer:
            return int(answer.read().split()[0])

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass  # it does not listen yet
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"a server is not as it should be: {self._errors.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def measure(runs: int) -> list[Comparison | Table]:
    order = [*OURS, *([FLOOR] if importlib.util.find_spec("gunicorn") else [])]
    found: dict[str, dict[str, list[float]]] = {}
    parts: dict[str, list[float]] = {}
    with installed_package() as package:
        for _ in range(runs):
            random.shuffle(order)
            for side in order:
                with tempfile.TemporaryDirectory() as folder:
                    for what, value in _measure(side, Path(folder), package):
                        if what.startswith("PSS of the tree"):
                            found.setdefault(what, {}).setdefault(side, []).append(value)
                        else:
                            parts.setdefault(f"{side}: {what}", []).append(value)
    rows = sorted(parts.items())
    comparisons: list[Comparison | Table] = []
    if FLOOR in order:
        for what, of in found.items():
            comparisons.append(Comparison(what, "MB", {side: of[side] for side in (FLOOR, *OURS)}))
    else:
        rows += [(f"{side}: {what}", values) for what, of in found.items() for side, values in of.items()]
    title = f"What each process holds, in MB; {WORKERS} workers, {HEAP} MB of objects, the floor is gunicorn"
    table = Table(title, ["what", "median", "lowest", "highest"])
    for what, values in rows:
        table.rows.append([what, *(round(each(values), 2) for each in (statistics.median, min, max))])
    return [*comparisons, table]


def _measure(side: str, folder: Path, package: Path) -> Iterator[tuple[str, float]]:
    port = free_port()
    (folder / "app.py").write_text(_APP.format(heap=HEAP))
    (folder / "ours.py").write_text(_OURS.format(workers=WORKERS, options=OURS.get(side), port=port))
    if side == FLOOR:
        options = ["--preload", "-w", str(WORKERS), "-b", f"127.0.0.1:{port}", "--log-level", "error"]
        command = [sys.executable, "-m", "gunicorn", *options, "app:app"]
    else:
        command = [sys.executable, "ours.py"]
    one_more = 2 if "preload" not in OURS.get(side, "preload") else 1  # a fork server, besides who has them all
    with Tree(folder, command, package, port, WORKERS + one_more) as tree:
        tree.settle()
        yield "PSS of the tree at first start", tree.pss()
        yield from _parts(side, tree, "at first start")
        for _ in range(RELOADS):
            tree.reload()
        steady = tree.pss()
        yield f"PSS of the tree after {RELOADS} reloads", steady
        yield from _parts(side, tree, f"after {RELOADS} reloads")
        peak = tree.peak_of_a_reload()
        yield "PSS of the tree at the peak of a reload", peak
        yield "the peak of a reload, as a multiple of the steady state", peak / steady


def _parts(side: str, tree: Tree, when: str) -> Iterator[tuple[str, float]]:
    """Which process holds what."""
    workers, first = tree.workers(), tree.pid
    roles = {("the master" if side == FLOOR else "the supervisor"): [first], "a worker": workers}
    roles["the fork server"] = [pid for pid in tree.processes() if pid not in (first, *workers)]
    for role, pids in roles.items():
        for quantity in ("Pss", "Rss"):
            for pid in pids:
                yield f"{quantity.upper()} of {role} {when}", rollup(pid)[quantity]


if __name__ == "__main__":
    command_line(__file__, measure, runs=5)
