"""The sides: how each is written, started and fed. All do the same jobs, from the same Redis, one at a time.

`app.py` is what a deploy replaces; it says its VERSION in each line of the ledger. `feeding.py` puts jobs in, in a
process of its own that is started before anything is broken.
"""

from __future__ import annotations

from dataclasses import dataclass

from measure import FLOOR

# In every folder: a job leaves two lines in the ledger, each by one write.
JOBS = """
import os, time

def do(version, number, seconds, task="-"):
    say(version, number, "begun", task)
    if seconds:
        time.sleep(seconds)
    say(version, number, "done", task)

def say(version, number, what, task):
    line = "%d %s %d %d %d %s\\n" % (number, what, os.getpid(), version, time.monotonic_ns(), task)
    with open("ledger", "ab", buffering=0) as ledger:
        ledger.write(line.encode())
"""

# The same two calls by redis-py, and by as little as can be.
REDIS_PY = """
import redis

class Queue:
    def __init__(self, port, database):
        self._client = redis.Redis(port=port, db=database)

    def take(self):
        found = self._client.blpop("jobs", 0.1)
        return found and found[1].split()

    def put(self, number, seconds):
        self._client.rpush("jobs", b"%d %f" % (number, seconds))
"""

BY_HAND = """
import socket

class Queue:
    def __init__(self, port, database):
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._ask(b"SELECT", b"%d" % database)

    def take(self):
        found = self._ask(b"BLPOP", b"jobs", b"0.1")
        return found and found[1].split()

    def put(self, number, seconds):
        self._ask(b"RPUSH", b"jobs", b"%d %f" % (number, seconds))

    def _ask(self, *words):
        asked = b"".join(b"$%d\\r\\n%b\\r\\n" % (len(word), word) for word in words)
        self._socket.sendall(b"*%d\\r\\n" % len(words) + asked)
        return self._answer()

    def _answer(self):
        line = self._file.readline()
        kind, value = line[:1], line[1:-2]
        if kind == b"*":
            return None if value == b"-1" else [self._answer() for _ in range(int(value))]
        if kind == b"$":
            return None if value == b"-1" else self._file.read(int(value) + 2)[:-2]
        return value
"""

_FED_BY_HAND = "from by_hand import Queue\nput = Queue({port}, {database}).put\n"

_FLOOR = """
import os, signal, sys
from {client} import Queue
from jobs import do

VERSION = {version}
asked = set()

def main():
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.add(number))
    queue = Queue({port}, {database})
    while not asked:
        job = queue.take()
        if job:
            do(VERSION, int(job[0]), float(job[1]))
    if signal.SIGTERM not in asked:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

main()
"""

_OURS = """
import hotrestart
from {client} import Queue
from jobs import do

VERSION = {version}

@hotrestart.restartable({options})
def main():
    queue = Queue({port}, {database})
    with hotrestart.worker_loop() as loop:
        while loop.running:
            job = queue.take()
            if job:
                do(VERSION, int(job[0]), float(job[1]))

main()
"""

_CELERY = """
from celery import Celery
from jobs import do

VERSION = {version}
app = Celery("app", broker="redis://127.0.0.1:{port}/{database}")

@app.task(bind=True, ignore_result=True)
def run(self, number, seconds):
    redelivered = " redelivered" if (self.request.delivery_info or {{}}).get("redelivered") else ""
    do(VERSION, number, seconds, self.request.id + redelivered)
"""

_DRAMATIQ = """
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from jobs import do

VERSION = {version}
dramatiq.set_broker(RedisBroker(url="redis://127.0.0.1:{port}/{database}"))

@dramatiq.actor
def run(number, seconds):
    do(VERSION, number, seconds)
"""

_HUEY = """
from huey import RedisHuey
from jobs import do

VERSION = {version}
huey = RedisHuey("app", url="redis://127.0.0.1:{port}/{database}", results=False)

@huey.task()
def run(number, seconds):
    do(VERSION, number, seconds)
"""

_RQ = """
from jobs import do

VERSION = {version}

def run(number, seconds):
    do(VERSION, number, seconds)
"""

_RQ_FED = """
import redis, rq
queue = rq.Queue(connection=redis.Redis(port={port}, db={database}))
put = lambda number, seconds: queue.enqueue("app.run", number, seconds, result_ttl=0)
"""


@dataclass(frozen=True)
class Side:
    """`command`: what is started in the folder, its first word a program in the environment's `bin`. `package`: what
    has to be installed, with its version shown."""

    name: str
    command: str
    app: str
    fed: str = _FED_BY_HAND
    package: str = ""
    client: str = "redis_py"
    options: str = ""
    is_stopped_and_started: bool = False
    note: str = ""  # for the table
    has_exec: bool = True  # its HUP ends in an exec of the pid, from which the boot window is counted

    def source(self, version: int, port: int, database: int) -> str:
        """The program. No two versions are of the same size: their bytecode would be taken for each other's."""
        values = {"version": version, "port": port, "database": database}
        return self.app.format(client=self.client, options=self.options, **values) + "#" * (version % 1000) + "\n"

    def feeding(self, port: int, database: int) -> str:
        return self.fed.format(port=port, database=database)


HAND_FLOOR = "floor with a 30-line client"
IN_PLACE, IN_PLACE_BARE, ROLLING = "ours, in place", "ours, in place, preflight=False", "ours, rolling"
IN_PLACE_HAND = "ours, in place, preflight=False, with a 30-line client"
HUEY = "huey (thread)"

OURS = [
    Side(IN_PLACE, "python app.py", _OURS),
    Side(IN_PLACE_BARE, "python app.py", _OURS, options="preflight=False"),
    Side(ROLLING, "python app.py", _OURS, options="workers=1", has_exec=False),
    Side(IN_PLACE_HAND, "python app.py", _OURS, client="by_hand", options="preflight=False"),
]
FLOORS = [
    Side(FLOOR, "python app.py", _FLOOR),
    Side(HAND_FLOOR, "python app.py", _FLOOR, client="by_hand"),
    Side("stop and start", "python app.py", _FLOOR, is_stopped_and_started=True),
]
_FED_BY_DELAY = "from app import run\nput = run.delay\n"
_FED_BY_SEND = "from app import run\nput = run.send\n"
_FED_BY_CALL = "from app import run\nput = run\n"
_CELERY_COMMAND = "celery -A app worker --loglevel error --concurrency 1 --pool "
_MINGLE = "at its start celery waits a second for other workers to tell of themselves, unless --without-mingle is given"
_WORK_HORSE = (
    "imports the job anew in a process forked for each, so that new code is taken without a restart, and HUP ends "
)
_WORK_HORSE += "it; what can be timed is a stop by TERM and a start, to the first job of the new process"
PEERS = [
    Side("celery (solo)", _CELERY_COMMAND + "solo", _CELERY, _FED_BY_DELAY, "celery", note=_MINGLE),
    Side("celery (solo) --without-mingle", f"{_CELERY_COMMAND}solo --without-mingle", _CELERY, _FED_BY_DELAY, "celery"),
    Side("celery (prefork)", _CELERY_COMMAND + "prefork", _CELERY, _FED_BY_DELAY, "celery"),
    Side("dramatiq", "dramatiq app --processes 1 --threads 1", _DRAMATIQ, _FED_BY_SEND, "dramatiq"),
    Side(HUEY, "huey_consumer app.huey --workers 1 --worker-type thread", _HUEY, _FED_BY_CALL, "huey"),
    Side(
        "rq, TERM and start",
        "rq worker --url redis://127.0.0.1:{port}/{database}",
        _RQ,
        _RQ_FED,
        "rq",
        is_stopped_and_started=True,
        note=_WORK_HORSE,
    ),
]
