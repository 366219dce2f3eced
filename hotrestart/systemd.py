"""systemd, as a program speaks with it: sockets that were opened for it before it started, and how it is doing.

The same protocol is spoken by other managers and by container engines. Without the variables of the environment that
it consists of, everything here does nothing and says so. No library of theirs is needed.
"""

from __future__ import annotations

import os

__all__ = ["extend_timeout", "is_notified", "listen_fds", "notify", "reloading", "watchdog"]

_FIRST = 3  # SD_LISTEN_FDS_START
_LONGEST = 4096  # bytes (PIPE_BUF): a longer message is ignored as a whole, READY=1 and all
_PATIENCE = 0.1  # seconds
# Both line breaks separate assignments; a NUL voids the message, and so does a backslash at its end, for systemd 252
# takes those for escapes.
_HARMLESS = str.maketrans("\n\r\0\\", "   /")


def listen_fds(*, unset: bool = True) -> list[tuple[int, str]]:
    """The descriptors passed in LISTEN_FDS, each with its name from LISTEN_FDNAMES ("unknown" if it has none).

    Empty if the variables are missing, garbled, or meant for another process (LISTEN_PID). With `unset` they are
    removed from os.environ, so that no child takes them for its own; a restart puts them back, and since it keeps pid
    and numbers they stay true in the next generation. Source: sd_listen_fds(3).
    """
    take = os.environ.pop if unset else os.environ.get
    pid, count, names = (take(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not (pid.isdecimal() and count.isdecimal()) or int(pid) != os.getpid():
        return []
    labels = names.split(":") if names else []
    labels += ["unknown"] * (int(count) - len(labels))
    return [(_FIRST + index, labels[index]) for index in range(int(count))]


def is_notified() -> bool:
    """Whether there is a $NOTIFY_SOCKET, so that somebody wants to hear how this program is doing."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(*assignments: str) -> bool:
    """Tell the service manager, as `notify("READY=1", "STATUS=serves")`: all in one datagram to $NOTIFY_SOCKET.

    True if it was handed over. False if nobody is to be told, nobody listens, or nobody reads: for room in a full queue
    it waits 0.1 s at most. It raises for no such reason, so there is no need to ask before. A line break or NUL within
    an assignment becomes a space, a backslash a slash, and a message over 4096 bytes is cut at its end: what matters
    goes first.

    For any thread; nothing is kept between calls, so also after a fork or an exec. In a signal handler it works, but
    may wait. systemd looks at who sends: with `NotifyAccess=main` only the main process. Source: sd_notify(3).
    """
    target = os.environ.get("NOTIFY_SOCKET", "")
    if target[:1] not in ("/", "@") or len(target) == 1 or not assignments:
        return False
    address = b"\0" + os.fsencode(target[1:]) if target[0] == "@" else os.fsencode(target)
    try:
        import _socket  # the module socket costs 10 ms of every restart

        channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    except (OSError, AttributeError):  # no descriptor left; no such sockets here
        return False
    try:
        channel.settimeout(_PATIENCE)
        channel.connect(address)  # only so can a full queue be waited for: poll(2) has to know which
        channel.send(_message(assignments))
    except OSError:
        return False
    finally:
        channel.close()
    return True


def reloading(status: str = "") -> bool:
    """RELOADING=1, with the time that `Type=notify-reload` (systemd 253) asks for; say READY=1 once it is over.

    The time tells this reload from one before: microseconds of CLOCK_MONOTONIC, in the same datagram, or systemd waits
    for it until it gives up. True and False as `notify`.
    """
    import time

    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    return notify("RELOADING=1", f"MONOTONIC_USEC={now}", *([f"STATUS={status}"] if status else []))


def extend_timeout(seconds: float) -> bool:
    """Ask for so many seconds from now, where systemd would give up on a start, a reload or a stop.

    It counts only if what the unit has configured (`TimeoutStartSec=`...) would be over by then; say it again before
    the time is out. True and False as `notify`.
    """
    return notify(f"EXTEND_TIMEOUT_USEC={max(round(seconds * 1_000_000), 1)}")


def watchdog() -> float | None:
    """How many seconds may pass from one `notify("WATCHDOG=1")` to the next: half of what `WatchdogSec=` allows.

    None if the unit has no watchdog, or if it watches another process. It is the same after an exec: the pid stays.
    Source: sd_watchdog_enabled(3).
    """
    period = _number(os.environ.get("WATCHDOG_USEC", ""))
    pid = os.environ.get("WATCHDOG_PID")
    if not period or (pid is not None and _number(pid) != os.getpid()):
        return None
    return period / 2_000_000


def _message(assignments: tuple[str, ...]) -> bytes:
    lines = "\n".join(each.translate(_HARMLESS) for each in assignments)
    whole = lines.encode(errors="replace")[:_LONGEST]  # a surrogate, from a file name, would void a STATUS
    return whole.decode(errors="ignore").encode()  # so would half a character at the cut


def _number(text: str) -> int | None:
    """What is nothing but digits of ASCII, and not beyond all measure (in microseconds: 31 years)."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 15 else None
