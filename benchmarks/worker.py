"""The programs under measurement: one worker, with its restart written by hand (the floor) or by hotrestart.

A worker takes jobs of 2 ms (of waiting, as for a disk or a network) from a file, and writes the time at which a
generation begins its first one to its standard output; CLOCK_MONOTONIC is the same in all processes. Everything but the
restart is the same text on both sides.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from measure import clean_environment

PATIENCE = 60.0  # seconds until a program that says nothing is given up

IMPORTS = {
    "small": "import os, socket, sys, time",
    "realistic": "import json, logging, os, sys, time\nimport redis",
}

JOBS = """
jobs = open(sys.argv[1], "rb")
is_first = True

def take():
    job = jobs.readline()
    if not job:
        jobs.seek(0)
        job = jobs.readline()
    return job

def stamp(what):
    os.write(1, b"%s %d\\n" % (what, time.monotonic_ns()))

def handle(job):
    global is_first
    if is_first:
        is_first = False
        stamp(b"first-job")
    time.sleep(0.002)
"""

_OURS = """
{stamp_line}import hotrestart
{stamp_import}
@hotrestart.restartable(preflight={preflight})
def main():
    with hotrestart.worker_loop() as loop:
        while loop.running:
            handle(take())
    {stamp_end}

if __name__ == "__main__":
    main()
"""

_FLOOR = """
{stamp_line}import signal
{stamp_import}
should_stop = False

def end(number, frame):
    global should_stop
    should_stop = True

def main():
    signal.signal(signal.SIGHUP, end)
    while not should_stop:
        handle(take())
    {stamp_end}
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

if __name__ == "__main__":
    main()
"""

# The preflight boots the program once more while the old code works on; the restart begins when it has passed.
_STAMP_THE_FLAG = """
def end(why, end=hotrestart.state.end):
    stamp(b"flag")
    end(why)
hotrestart.state.end = end
"""

SIDES = {
    "floor": _FLOOR,
    "ours, no preflight": _OURS.replace("{preflight}", "False"),
    "ours, preflight apart": _OURS.replace("{preflight}", "True").replace("{stamp_import}", _STAMP_THE_FLAG),
    "ours, preflight and all": _OURS.replace("{preflight}", "True"),
}


def source(form: str, side: str, *, all_stamps: bool = False) -> str:
    """The program's text. `all_stamps`: it also stamps its first line, its imports and the end of its loop."""
    stamps = {"stamp_line": "", "stamp_import": "", "stamp_end": ""}
    if all_stamps:
        stamps = {
            "stamp_line": 'stamp(b"first-line")\n',
            "stamp_import": 'stamp(b"imported")',
            "stamp_end": 'stamp(b"loop-ended")',
        }
    return IMPORTS[form] + "\n" + JOBS + SIDES[side].format(**stamps)


class Worker:
    """A running worker. Between measurements it `rests`: it is stopped (SIGSTOP), and does not disturb the others."""

    def __init__(
        self,
        folder: Path,
        package: Path,
        text: str,
        *,
        wrapper: tuple[str, ...] = (),
        flags: str = "",
        rests: bool = True,
    ) -> None:
        folder.mkdir(parents=True)
        (folder / "app.py").write_text(text)
        (folder / "jobs").write_text("".join(f"job {number}\n" for number in range(1000)))
        self.errors = folder / "stderr.txt"
        with self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*wrapper, sys.executable, *flags.split(), str(folder / "app.py"), str(folder / "jobs")],
                env={**clean_environment(), "PYTHONPATH": str(package), "PWD": str(folder)},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self.pid = self._process.pid
        self._rests = rests
        self.read_until("first-job")

    def read_until(self, wanted: str) -> dict[str, int]:
        """The stamps up to the next `wanted`, in nanoseconds, by their names."""
        assert self._process.stdout is not None
        stamps: dict[str, int] = {}
        while wanted not in stamps:
            line = self._process.stdout.readline().decode()
            if not line:
                raise SystemExit(f"a worker has ended: {self.errors.read_text(errors='replace')[-2000:]}")
            name, _, moment = line.partition(" ")
            stamps[name] = int(moment)
        return stamps

    def restart(self) -> dict[str, int]:
        """Send HUP; the stamps up to the first job of the new generation, and "hup"."""
        if self._rests:
            os.kill(self.pid, signal.SIGCONT)
        time.sleep(0.03)
        hup = time.monotonic_ns()
        os.kill(self.pid, signal.SIGHUP)
        stamps = {**self.read_until("first-job"), "hup": hup}
        time.sleep(0.01)
        self._rest()
        return stamps

    def milliseconds_to_first_job(self) -> float:
        stamps = self.restart()
        return (stamps["first-job"] - stamps.get("flag", stamps["hup"])) / 1e6

    def _rest(self) -> None:
        if self._rests:
            os.kill(self.pid, signal.SIGSTOP)

    def __enter__(self) -> Worker:
        self._rest()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
