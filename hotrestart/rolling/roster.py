"""The roster: the members of a program under supervision, and what they say and do, told as events of the rollout.

A worker's end is seen by its pidfd, and its status is told by its fork server: whichever comes first, what it has said
last (why it failed) is read before it counts as gone.
"""

from __future__ import annotations

import os
import selectors
import signal
from time import monotonic

from .. import log
from ..errors import LifelineError
from ..processes import STATUS_UNKNOWN, reap
from ..reporting import resident
from . import privileges
from .beats import PLACES, Beats, Watch
from .generation import DRAINING, NEVER, READY
from .hearing import Hearing, close_all
from .home import Home
from .listening import Listening
from .members import Grandchild, Member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ..processes import Child
    from .hearing import Observer


__all__ = ["Roster"]

_STATUS_MAY_TAKE = 5.0  # seconds from the end of a worker until its fork server has told the status, or is stuck
_BATCHES = 4  # of messages in a row: who never stops talking does not hold up the others
_RSS_EVERY = 5.0  # seconds between two looks at the memory of workers that have a limit


class Roster:
    """The members; `observer` is told of all that matters."""

    def __init__(self, selector: selectors.BaseSelector, beats: Beats, observer: Observer) -> None:
        self.members: dict[int, Member] = {}
        self.listening: Listening = Listening()
        self.beats = beats
        self._hearing = Hearing(self, observer)
        self._selector, self._observer = selector, observer
        self._places = set(range(PLACES - 1))
        self._next_rss = 0.0
        _reap_the_left()

    def adopt(self, member: Member) -> None:
        """Listen to a member from now on."""
        self.members[member.process.id] = member
        self._places.discard(member.place)  # it may have come over an exec with it
        if member.lifeline is not None:
            self._watch(member, member.lifeline, self._on_lifeline)
        if member.child is not None and member.child.can_be_watched:
            member.watched = member.child.fileno()
            self._watch(member, member.watched, self._on_end)
        if member.relay is not None:
            self._watch(member, member.relay, self._on_output)

    def post(self, member: Member, kind: str, **fields: Any) -> None:
        """Send a message, now or when there is room."""
        if member.lifeline is not None:
            member.lifeline.post(kind, **fields)
            self._look_for_room(member)

    def take_place(self, member: Member) -> int:
        """A place on the page of beats."""
        member.place = self._places.pop() if self._places else -1
        self.beats.numbers[member.place] = 0
        return member.place % PLACES  # of those for whom there is none the last is the common one, and nobody looks

    def forget(self, member: Member) -> None:
        """Let go of a member that has ended, or that is to be started anew."""
        self.members.pop(member.process.id, None)
        self._drop_lifeline(member)
        if member.relay is not None:
            member.relay.pump()
            self._unregister(member.relay)
            member.relay.close()
        if member.child is not None:
            self._unregister(member.watched)
            self.reap_later(member.child)
        if member.place != -1:
            self._places.add(member.place)

    def send_signal(self, number: int) -> None:
        """To every worker."""
        for member in list(self.members.values()):
            if not member.process.is_server:
                member.send_signals(number)

    def reap_all(self) -> None:
        """For a process that is nobody's host: its children are members, strangers, and as pid 1 all orphans."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            for member in list(self.members.values()):
                if member.child is not None and member.child.pid == ended.si_pid:
                    self._on_end(member)
            try:
                os.waitpid(ended.si_pid, os.WNOHANG)
            except ChildProcessError:
                continue  # the member's own end has been noted

    def distrust(self, member: Member, reason: str) -> None:
        """What it says makes no sense, so nothing that it does can be relied upon."""
        member.reason = reason
        log.error(f"{member}: {reason}; killing it")
        member.send_signals(signal.SIGKILL)
        self._drop_lifeline(member)

    def close(self) -> None:
        """Let go of all."""
        for member in list(self.members.values()):
            self.forget(member)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Reaper):
                self._selector.unregister(key.fd)
                _left.append(key.data.child.pid)
                key.data.child.close()
        _reap_the_left()
        self.listening.close()

    @property
    def is_quiet(self) -> bool:
        """No member is about to be gone, no message is halfway, and nothing is about to be closed."""
        return self.listening.deadline == NEVER and all(
            member.ended_at is None and member.lifeline is not None and member.lifeline.is_at_rest
            for member in self.members.values()
        )

    def home_of(self, generation: int) -> Home | None:
        """Which interpreter and library a generation runs on."""
        homes = [
            each.home
            for each in self.members.values()
            if each.process.generation == generation and each.home and privileges.are_ours(each.pid)
        ]
        return homes[0] if homes else None

    # -- the passing of time ----------------------------------------------------------------------------------------

    def deadline(self, now: float) -> float:
        """When `look` is next wanted; infinity for never."""
        times = [member.ended_at + _STATUS_MAY_TAKE for member in self.members.values() if member.ended_at is not None]
        times += [watch.deadline(self.beats.numbers[member.place], now) for member, watch in self._watched()]
        times.append(self.listening.deadline)
        if any(each.max_rss is not None for each in self._observer.limits().values()):
            times.append(self._next_rss)
        return min(times, default=NEVER)

    def look(self, now: float) -> None:
        """Look for workers that hang, have grown too big, or whose status nobody tells; close unwanted listeners."""
        self.listening.look(now)
        for member, watch in list(self._watched()):
            if now >= watch.deadline(self.beats.numbers[member.place], now):
                self._observer.happened("hung", member.process, f"no turn of its loop for {watch.timeout:g} s")
        for member in list(self.members.values()):
            if member.ended_at is not None and now >= member.ended_at + _STATUS_MAY_TAKE:
                self.gone(member, STATUS_UNKNOWN)
        if now >= self._next_rss:
            self._next_rss = now + _RSS_EVERY
            self._look_for_the_fat()

    def _look_for_the_fat(self) -> None:
        limits = self._observer.limits()
        for member in list(self.members.values()):
            options = limits.get(member.process.generation)
            limit = options.max_rss if options is not None else None
            if limit and member.process.state == READY and member.child and resident(member.child.pid) > limit:
                self._observer.happened("retire", member.process)

    def _watched(self) -> Iterator[tuple[Member, Watch]]:
        for member in self.members.values():
            if member.watch is not None and member.place != -1 and member.process.state in (READY, DRAINING):
                yield member, member.watch

    # -- what can be heard and seen of members ----------------------------------------------------------------------

    def _on_output(self, member: Member) -> None:
        assert member.relay is not None
        member.relay.pump()
        if member.relay.has_ended:
            self._unregister(member.relay)

    def _on_lifeline(self, member: Member) -> None:
        self._hear(member)
        if member.lifeline is None and (member.child is None or member.child.pidfd == -1):
            self._on_end(member)

    def _hear(self, member: Member) -> None:
        """Everything that it has said and that has not been heard yet."""
        lifeline = member.lifeline
        if lifeline is None:
            return
        messages: list[tuple[dict[str, Any], list[int]]] = []
        try:
            lifeline.flush()
            for _ in range(_BATCHES):
                messages = messages or lifeline.receive()
                while messages and member.lifeline is lifeline:  # a message may make us let go of who has sent it
                    self._hearing.understand(member, *messages.pop(0))
                if member.lifeline is not lifeline:
                    break
        except LifelineError as error:
            self.distrust(member, str(error))
        except Exception as error:  # whatever a member can say, it must not be able to end the supervisor
            self.distrust(member, f"what it says cannot be acted upon: {error!r}")
        for _, rights in messages:
            close_all(rights)
        if member.lifeline is not lifeline:
            return
        if lifeline.has_ended:
            self._drop_lifeline(member)
        else:
            self._look_for_room(member)

    def _on_end(self, member: Member) -> None:
        """Its pidfd says so; or, where there is none, its lifeline."""
        self._unregister(member.watched)  # before the number is closed and given to something else
        member.watched = -1
        status = member.child.poll() if member.child is not None else STATUS_UNKNOWN
        if status is not None:
            self.gone(member, status)
        elif member.parent not in self.members:
            self.gone(member, STATUS_UNKNOWN)  # nobody is left who could tell
        elif member.ended_at is None:
            member.ended_at = monotonic()

    def gone(self, member: Member, status: int, reason: str = "") -> None:
        """It has ended. A fork server takes with it whom it was about to fork, and all knowledge of its children."""
        self._hear(member)  # it may have asked to be started anew: then that has been done
        if self.members.get(member.process.id) is not member:
            return
        if member.relay is not None:
            member.relay.pump()
        why, detail = member.why_it_ended(status)
        is_server, generation = member.process.is_server, member.process.generation
        self._observer.mourn(member, reason or why)
        self.forget(member)
        self._observer.happened("ended", member.process, reason or why, detail=detail)
        if is_server:
            for each in list(self.members.values()):
                if each.process.generation == generation and (each.child is None or each.ended_at is not None):
                    self.gone(each, STATUS_UNKNOWN)

    # -- what they are made of -------------------------------------------------------------------------------------

    def _drop_lifeline(self, member: Member) -> None:
        if member.lifeline is not None:
            self._unregister(member.lifeline)
            member.lifeline.close()
            member.lifeline = None

    def _look_for_room(self, member: Member) -> None:
        if member.lifeline is not None:
            key = self._selector.get_key(member.lifeline)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if member.lifeline.is_sending else 0)
            if key.events != events:
                self._selector.modify(member.lifeline, events, key.data)

    def reap_later(self, child: Child) -> None:
        """A child of ours that nobody cares about any more shall not stay as a zombie."""
        if child.poll() is not None or isinstance(child, Grandchild) or not child.can_be_watched:
            child.close()
            return
        self._selector.register(child.fileno(), selectors.EVENT_READ, _Reaper(child, self._unregister))

    def _watch(self, member: Member, file: Any, seen: Callable[[Member], None]) -> None:
        def if_still_here() -> None:
            if self.members.get(member.process.id) is member:  # it may have been forgotten in this very turn
                seen(member)

        self._selector.register(file, selectors.EVENT_READ, if_still_here)

    def _unregister(self, file: Any) -> None:
        try:
            self._selector.unregister(file)
        except (KeyError, ValueError):
            pass  # it was never watched, or is not any more; its number may be closed by now


_left: list[int] = []
"""The children of closed rosters that had not ended yet. They are reaped when there is another roster, or it is closed:
until then nobody drives anything, and the host knows nothing of them."""


def _reap_the_left() -> None:
    _left[:] = reap(_left)


class _Reaper:
    """Called when a forgotten child has ended."""

    def __init__(self, child: Child, unregister: Callable[[int], None]) -> None:
        self.child, self._fd, self._unregister = child, child.fileno(), unregister

    def __call__(self) -> None:
        if self.child.poll() is not None:
            self._unregister(self._fd)
