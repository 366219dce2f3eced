"""Servers of others and ours: reloads under load, and broken deploys. One command, an environment of its own.

    python benchmarks/peers.py

makes a virtual environment for the moment, installs the peers there (the extra `peers` of pyproject.toml), runs each in
turn, in shuffled order, and writes results/servers.json, servers.md and two plots. It takes an hour or two. A peer
that cannot be installed or does not work is named in the tables, with the reason. With `--many` it is ours alone, a
hundred rolling reloads of each server under each load, and what is lost in them: results/reloads.json and reloads.md.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from measure import CHECKOUT, RESULTS, clean_environment, facts, heed_signals, installed_package, markdown
from servers import broken, plots, reloads, tables
from servers.peers import OURS, PEERS, SHORT, Peer

AT_A_TIME = 2  # peers whose broken deploys are measured side by side, each with all its kinds: who is served, not when

_SERVERS = """# Servers under reload, and broken deploys

Every peer serves the same application, which answers with its version and its pid, with two workers (in place: one
process). Clients, servers and all run on one machine, in turn and in shuffled order; the times are of that machine and
day. Run `python benchmarks/peers.py` for yours. A figure is the median of the runs, with the lowest and the highest.
Lost is a request without an answer, by the way it failed; a retry is a kept connection that died after the request was
sent, where an HTTP library asks again, but not for a POST. Steady is the same service under the same load before its
first reload. A request has 15 s, and the import, until it is lost; at the end of a load all have their time.

One service runs at a time, but for the broken deploys: eight at a time there (all kinds of two peers), for it is about
who is served and told, and in seconds. An import of 3 s is asleep for so long, as for a network; one of "3 s busy"
computes, for 3 s of a processor that it shares with the workers and the clients.

How to read it:

* The clients are one asyncio program on the two processors that the servers have too, and the only load there is.
  It takes its share, and what it measures at full CPU is the pair of them.
* New code has 60 s to be loaded (5 s in the broken deploys), where that can be said: `ready_timeout` of ours,
  `--timeout` of gunicorn, `--timeout-worker-healthcheck` of uvicorn, the patience of the script around USR2 (15 s at
  most). granian has no limit but a fixed wait, `--respawn-interval`, after which an old worker goes: its default, and
  2 s more than the import where that is slow. hypercorn, uwsgi and circus have nothing to set.
* uvicorn makes the listener of `--workers`, circus and the measurement (socket held) make theirs, without naming the
  protocol, and asyncio sets TCP_NODELAY only where it is named: a small answer may wait for a delayed ACK. That is the
  p99 of 48 ms and more that these rows have in the closed loop, in the steady state too.
* uwsgi speaks HTTP/1.1 on `--http11-socket`, where a kept connection holds a thread: so it has 16 in each worker.
* circusctl is a command and gunicorn's USR2 a script: the time from the trigger has the boot of circusctl in it, as
  it has for whoever deploys so. All others are sent a signal, or a letter through a pipe.
* "The old one did not end on TERM": stop and start waits 30 s for it, and kills it then. uvicorn waits for its
  connections for as long as they last, unless `--timeout-graceful-shutdown` is given, which nobody here has to give.

"""
_RELOADS = """# Many rolling reloads, one soon after another

As in [servers.md](servers.md), with ours alone and two services side by side on the same processors: look at what is
lost, and not at the times. Run `python benchmarks/peers.py --many` for yours.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one peer and ours, one reload each: does it work?")
    parser.add_argument("--many", action="store_true", help="ours, many rolling reloads: is anything lost?")
    parser.add_argument("--runs", type=int, help="of the reloads to code that loads fast (default: 3)")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="peers with this in their name")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--here", action="store_true", help="no environment: measure what this Python has installed")
    parser.add_argument("--environment", type=Path, help="make the environment there, and keep it; or use it again")
    parser.add_argument("--missing", type=json.loads, default={}, help=argparse.SUPPRESS)  # why, by distribution
    arguments = parser.parse_args()
    if arguments.here:
        _measure_and_write(arguments)
    elif arguments.environment:
        _in_environment(arguments.environment)
    else:
        with tempfile.TemporaryDirectory(prefix="peers-") as folder:
            _in_environment(Path(folder))


def _in_environment(folder: Path) -> None:
    """Run this very command there."""
    python = str(folder / "bin" / "python")
    if not Path(python).exists():
        print("making an environment", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, env=clean_environment())
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(CHECKOUT)], check=True, env=clean_environment())
    listing = "import importlib.metadata as m; print(*m.requires('hotrestart'), sep='\\n')"
    required = subprocess.run([python, "-c", listing], check=True, capture_output=True, text=True).stdout
    missing = {}
    for line in required.splitlines():
        requirement, _, condition = line.partition(";")
        if "peers" in condition:  # one by one: one that cannot be built shall not hold up the others
            ran = subprocess.run([*pip, requirement], capture_output=True, text=True, env=clean_environment())
            if ran.returncode:
                name = requirement.split("=")[0].split(">")[0].strip()
                missing[name] = ([*ran.stderr.strip().splitlines(), "?"])[-2]
                print(f"{requirement} cannot be installed: {missing[name]}", file=sys.stderr, flush=True)
    command = [python, __file__, *sys.argv[1:], "--here", "--missing", json.dumps(missing)]
    measuring = subprocess.Popen(command, env=clean_environment())
    try:
        sys.exit(measuring.wait())
    except KeyboardInterrupt:
        measuring.wait()  # it was interrupted too, and ends what it has started
        raise


def _measure_and_write(arguments: argparse.Namespace) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (min(most, 65536), most)
    )  # a silent server gets 200 connections a second
    heed_signals()
    plan = reloads.MANY if arguments.many else reloads.SHORT if arguments.short else reloads.Plan()
    plan = plan if arguments.runs is None else replace(plan, runs=arguments.runs)
    chosen = [peer for peer in PEERS if _is_wanted(peer, arguments)]
    if not chosen:
        raise SystemExit("no peer has such a name")
    with installed_package() as package:
        found = asyncio.run(Measurement(chosen, plan, package, arguments.missing).run())
    if arguments.many:
        _write("reloads", _RELOADS, found, plan, arguments.results)
        return
    _write("servers", _SERVERS, found, plan, arguments.results)
    try:
        drawn = plots.draw(found, arguments.results)
        print("plots:", *(file.name for file in drawn))
    except ImportError as error:
        print(f"no plots: {error}")


def _write(name: str, head: str, found: Sequence[dict[str, Any]], plan: reloads.Plan, folder: Path) -> None:
    shown = [table.as_json() for table in tables.all_tables(found) if table.rows]
    result = {**facts(), "plan": asdict(plan), "results": shown, "peers": found}
    folder.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": name, "pythons": [result]}
    (folder / f"{name}.json").write_text(json.dumps(_rounded(document)) + "\n")
    text = markdown(name, [result])
    machine = f"{result['date']}, {result['kernel']}, {result['machine']}, {result['cpus']} CPUs; "
    machine += ", ".join(sorted({each["version"] for each in found} - {""})) + ".\n\n"
    (folder / f"{name}.md").write_text(head + machine + text.partition("\n\n")[2].rstrip() + "\n")
    print(text)


def _is_wanted(peer: Peer, arguments: argparse.Namespace) -> bool:
    if arguments.only:
        return any(word in peer.name for word in arguments.only)
    if arguments.many:
        return peer.name.startswith(f"{OURS}, rolling") and not peer.only_broken
    return peer.name in SHORT if arguments.short else True


class Measurement:
    """All peers in turn; a peer that fails is out, with the reason, and the others go on."""

    def __init__(self, peers: Sequence[Peer], plan: reloads.Plan, package: Path, missing: dict[str, str]) -> None:
        self._plan, self._package = plan, package
        self._began = time.monotonic()
        self._peers = list(peers)
        self._found: dict[str, dict[str, Any]] = {}
        for peer in peers:
            self._found[peer.name] = {"name": peer.name, "kind": peer.kind, "version": "", "missing": None}
            try:
                self._found[peer.name]["version"] = peer.version()
            except importlib.metadata.PackageNotFoundError:
                self._fail(peer, missing.get(peer.package, f"{peer.package} is not installed"))

    async def run(self) -> list[dict[str, Any]]:
        for number in range(self._plan.runs):
            await self._all(lambda peer, of=number: self._reload(peer, of), self._plan.side_by_side)
        for number in range(self._plan.slow_runs if self._plan.slow else 0):
            await self._all(lambda peer, of=number: self._slow(peer, of), 1)
        if self._plan.broken:
            await self._all(self._broken, AT_A_TIME, broken_only=True)
        return list(self._found.values())

    async def _all(
        self, measure: Callable[[Peer], Awaitable[None]], at_a_time: int, *, broken_only: bool = False
    ) -> None:
        order = self._shuffled(broken_only=broken_only)
        for first in range(0, len(order), at_a_time):
            some = order[first : first + at_a_time]
            await asyncio.gather(*(self._attempt(peer, measure(peer)) for peer in some))

    def _shuffled(self, *, broken_only: bool) -> list[Peer]:
        order = [
            peer for peer in self._peers if not self._found[peer.name]["missing"] and broken_only >= peer.only_broken
        ]
        random.shuffle(order)
        return order

    async def _attempt(self, peer: Peer, measuring: Awaitable[None]) -> None:
        try:
            await measuring
        except Exception as error:  # whatever it is: of one peer, and told in the table
            self._fail(peer, f"{type(error).__name__}: {error}")

    async def _reload(self, peer: Peer, number: int) -> None:
        result = await reloads.run(peer, self._package, self._plan)
        timeline = result.pop("timeline")
        self._found[peer.name].setdefault("timeline", timeline)
        self._found[peer.name].setdefault("runs", []).append(result)
        lost = " and ".join(str(sum(result[load]["lost"].values())) for load in ("open", "closed"))
        silence = result["open"]["silence"]
        self._say(f"run {number + 1} of {self._plan.runs}", peer, f"lost {lost}, longest silence {silence:.3f} s")

    async def _slow(self, peer: Peer, number: int) -> None:
        found = await reloads.slow(peer, self._package, self._plan)
        for name, result in found.items():
            self._found[peer.name].setdefault("slow", {}).setdefault(name, []).append(result)
        silent = ", ".join(f"{each}: {found[each]['silence']:.2f} s silent" for each in found)
        self._say(f"slow imports, {number + 1} of {self._plan.slow_runs}", peer, silent)

    async def _broken(self, peer: Peer) -> None:
        kinds = self._plan.broken
        found = await broken.all_kinds(peer, self._package, kinds)
        self._found[peer.name]["broken"] = found
        served = ", ".join(f"{kind} {found[kind]['availability']:.0f} %" for kind in kinds)
        self._say("broken deploys", peer, served)

    def _fail(self, peer: Peer, reason: str) -> None:
        self._found[peer.name]["missing"] = " ".join(reason.split())[:300].replace("|", "/")
        self._say("not measured", peer, reason)

    def _say(self, what: str, peer: Peer, result: str) -> None:
        spent = time.monotonic() - self._began
        print(f"{spent:5.0f} s  {what}: {peer.name}: {result}", file=sys.stderr, flush=True)


def _rounded(value: Any) -> Any:
    """Four significant digits of each number with a fraction; the rest is noise."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
