"""A real systemd as pid 1 of namespaces of its own, and services in it: `systemctl` there is the real thing.

Seen from inside, files and network are this machine's, so a test reaches a service on 127.0.0.1 and shares a folder
with it. Private are processes, /run, /tmp and /dev/console, and the control groups: those of the services are beneath
one of the box's own, so that several boxes do not end each other's. What a test needs of the hidden folders is mounted
at its old place.

systemd is booted with no units but those of the test: what the distribution would start at boot sets up a machine,
this one, and empties /tmp. The box goes when it is closed, and with the process that made it, however that ends; of one
that was killed, empty control groups are left.
"""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import threading
import time
import tty
from pathlib import Path
from typing import Any

from tests.harness import CHECKOUT, PATIENCE, Program, clean_environment

SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("systemctl", "nsenter", "unshare", "setpriv")
HIDDEN = (Path("/run"), Path("/tmp"))

# As pid 1 of new namespaces. $1: the control group to live in; $2...: for $BOOT.
ENTER = """set -e
echo 0 >"$1/cgroup.procs"
group=$1
shift
exec unshare --cgroup -- sh -c "$BOOT" "$group" "$@"
"""

# $0: the control group, which is to be the root of them; $1: the terminal to log to; $2...: what is to be kept of the
# hidden folders, held in /run until they are covered.
BOOT = """set -e
mount -t proc proc /proc
mount --bind "$1" /dev/console
mount --bind "$0" /sys/fs/cgroup
shift
mount -t tmpfs tmpfs /run
number=0
for each in "$@"; do
    number=$((number + 1))
    mkdir -p /run/held/$number
    mount --rbind "$each" /run/held/$number
done
mount -t tmpfs tmpfs /tmp
number=0
for each in "$@"; do
    number=$((number + 1))
    mkdir -p "$each"
    mount --move /run/held/$number "$each"
done
exec "$SYSTEMD" --system --unit=basic.target --log-target=console --log-level=info --show-status=no
"""


class Unavailable(Exception):
    """There can be no box here; the message says why."""


class Box:
    """A systemd that has booted; close it. `shared`: a folder that is the same inside, for the programs and reports.

    Raises Unavailable where it cannot be had: it takes root, Debian's package systemd, namespaces and control groups.
    """

    def __init__(self, folder: Path, shared: Path) -> None:
        self._check_that_it_can_be_had()
        self.folder, self.units = folder, folder / "units"
        self.units.mkdir(parents=True)
        for target in ("sysinit", "basic", "sockets", "shutdown"):  # what units depend on by default
            (self.units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        self._said = bytearray()
        self._inner = 0
        self._group = make_group(f"hotrestart-{os.getpid()}-{folder.name}")
        try:
            self._master, self._slave = pty.openpty()
            tty.setraw(self._slave)
            self._outer = self._start(shared)
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()
        except BaseException:
            remove_group(self._group)
            raise
        try:
            self._wait_for_boot()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _check_that_it_can_be_had() -> None:
        if os.geteuid() != 0:
            raise Unavailable("a systemd of our own takes root")
        absent = [name for name in TOOLS if shutil.which(name) is None] + [str(SYSTEMD)] * (not SYSTEMD.exists())
        if absent:
            raise Unavailable(f"{absent[0]} is not installed (Debian: apt-get install systemd)")

    def _start(self, shared: Path) -> subprocess.Popen[bytes]:
        wanted = {shared, self.folder, CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)}
        kept = sorted(str(each) for each in wanted if any(each.is_relative_to(hidden) for hidden in HIDDEN))
        unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--ipc", "--uts", "--"]
        enter = ["sh", "-c", ENTER, "enter", str(self._group), os.ttyname(self._slave), *kept]
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *unshare, *enter],
            stdin=subprocess.DEVNULL,
            stdout=self._slave,
            stderr=self._slave,
            cwd="/",
            start_new_session=True,  # a Ctrl-C of the terminal is not for it
            env={
                "PATH": os.defpath + ":/usr/sbin:/sbin",
                "BOOT": BOOT,
                "SYSTEMD": str(SYSTEMD),
                "SYSTEMD_UNIT_PATH": str(self.units),
                "SYSTEMD_GENERATOR_PATH": str(self.folder / "none"),
                "SYSTEMD_ENVIRONMENT_GENERATOR_PATH": str(self.folder / "none"),
                "SYSTEMD_LOG_COLOR": "0",
                "container": "hotrestart",  # leaves the machine's clock, console and kernel settings alone
            },
        )

    def _wait_for_boot(self) -> None:
        deadline = time.monotonic() + PATIENCE
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        while True:
            if self._outer.poll() is not None or time.monotonic() > deadline:
                time.sleep(0.1)  # for its last words
                raise Unavailable(f"systemd does not boot in namespaces of its own: {self.log()[-2000:]!r}")
            found = children.read_text().split()
            if found:
                self._inner = int(found[0])
                if self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded"):
                    return
            time.sleep(0.02)

    def _listen(self) -> None:
        while True:
            try:
                self._said += os.read(self._master, 65536)
            except OSError:  # EIO: nobody has the terminal any more
                return

    def log(self) -> str:
        """What systemd has logged so far."""
        return self._said.decode(errors="replace")

    def run(self, *command: str, check: bool = True, cwd: str = "/") -> subprocess.CompletedProcess[str]:
        """Run a command beside systemd, until it ends."""
        inside = ["nsenter", "--target", str(self._inner), "--all", "env", "-C", cwd, *command]
        try:
            done = subprocess.run(
                inside, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            if not (check and done.returncode):
                return done
            failure = f"status {done.returncode}: {done.stdout}{done.stderr}"
        except subprocess.TimeoutExpired:
            failure = f"not within {PATIENCE} s"
        raise AssertionError(f"{' '.join(command)}: {failure}\nsystemd's log:\n{self.log()[-4000:]}")

    def systemctl(self, *arguments: str) -> str:
        """What `systemctl` prints; it must succeed."""
        return self.run("systemctl", "--no-pager", *arguments).stdout

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, as text: "MainPID", "NRestarts", "ActiveState", "StatusText"..."""
        lines = self.systemctl("show", unit, "--property", ",".join(properties)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def unit(self, name: str, text: str) -> None:
        """Make a unit known, or another text of it."""
        path = self.units / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        self.systemctl("daemon-reload")

    def remove(self, *names: str) -> None:
        """End units, whatever state they are in, and forget them."""
        self.run("systemctl", "kill", "--signal=KILL", *names, check=False)
        self.run("systemctl", "stop", *names, check=False)
        self.run("systemctl", "reset-failed", *names, check=False)
        for name in names:
            (self.units / name).unlink(missing_ok=True)
            shutil.rmtree(self.units / f"{name}.d", ignore_errors=True)

    def close(self) -> None:
        """End systemd, and with it everything in there."""
        if self._outer.poll() is None:
            try:
                os.kill(self._inner or self._outer.pid, 9)
            except ProcessLookupError:
                pass  # has just ended
        self._outer.wait()
        os.close(self._slave)
        self._listener.join()
        os.close(self._master)
        remove_group(self._group)


class Service(Program):
    """A program run by a unit; leave its `with` block, and the unit is gone.

    `unit`: its text, with {python}, {folder} and {name} filled in. What it prints and reports is where any program has
    it. `others`: more units, by suffix: {"socket": text} is NAME.socket.
    """

    def __init__(self, box: Box, folder: Path, unit: str, others: dict[str, str] | None = None, **values: object):
        super().__init__(folder)
        self.box = box
        self.name = f"{folder.parent.name}-{folder.name}".replace("[", "-").replace("]", "-").replace(" ", "-")
        known = {"python": self.python, "folder": folder, "name": self.name, **values}
        self.unit = f"{self.name}.service"
        self._names = [self.unit, *(f"{self.name}.{suffix}" for suffix in others or {})]
        variables = clean_environment(REPORT=str(self.report_file), PWD=str(folder))
        told = [f'Environment="{name}={variables[name]}"' for name in ("REPORT", "PYTHONPATH", "PWD")]
        output = [f"Standard{stream}=append:{self.log_file}" for stream in ("Output", "Error")]
        box.unit(f"{self.unit}.d/test.conf", "\n".join(["[Service]", f"WorkingDirectory={folder}", *told, *output, ""]))
        for name, text in zip(self._names, [unit, *(others or {}).values()], strict=True):
            box.unit(name, text.format(**known))

    def systemctl(self, verb: str) -> None:
        """`systemctl VERB` this service: start, reload, restart, stop."""
        try:
            self.box.systemctl(verb, self.unit)
        except AssertionError as error:
            raise AssertionError(f"{error}\nthe program's log:\n{self.log()[-4000:]}") from None

    def show(self, name: str) -> str:
        """One property of the service."""
        return self.box.show(self.unit, name)[name]

    def wait_show(self, name: str, value: str) -> None:
        """Wait until a property has this value."""
        self.wait_until(lambda: self.show(name) == value, f"{name}={value}")

    @property
    def pid(self) -> int:
        """MainPID, as it is numbered inside; 0 if it does not run."""
        return int(self.show("MainPID"))

    def hup(self) -> None:
        """There is a better way to it."""
        self.systemctl("reload")

    def stop(self) -> int:
        """`systemctl stop`; the exit status of the main process."""
        self.systemctl("stop")
        assert self.box.show(self.unit, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
        return int(self.show("ExecMainStatus"))

    def wait_until(self, condition, what: str, timeout: float = PATIENCE):
        """As for any program, but not so often: most looks are a systemctl. A failure shows systemd's log too."""

        def slowly() -> Any:
            time.sleep(0.05)
            return condition()

        try:
            return super().wait_until(slowly, what, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\nsystemd's log:\n{self.box.log()[-4000:]}") from None

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.box.remove(*self._names)


def make_group(name: str) -> Path:
    """A new control group (of the second version, which is mounted beside the first's) beneath the one we are in."""
    mounts = [line.partition(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    places = [left.split()[3:5] for left, _, right in mounts if right.startswith("cgroup2 ")]
    ours = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    if not places or not ours:
        raise Unavailable("no control groups of the second version are mounted")
    root, place = places[0]
    group = Path(place, ours[0].removeprefix(root).lstrip("/"), name)
    try:
        group.mkdir()
    except OSError as error:
        raise Unavailable(f"no control group of our own: {error}") from None
    return group


def remove_group(top: Path) -> None:
    """Remove a control group with all beneath it, once nobody is left in there."""
    deadline = time.monotonic() + PATIENCE
    for path, _, _ in os.walk(top, topdown=False):
        while True:
            try:
                os.rmdir(path)
                break
            except OSError:  # EBUSY: somebody in there is just ending
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
