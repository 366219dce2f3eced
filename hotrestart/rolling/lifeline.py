"""The lifeline: a socket pair between the supervisor and each process under it, and the messages that go over it.

A frame is the length of its text, the number of descriptors that come with it, and one JSON object. Every message is
checked against one table, here, so what the rest of the code gets has the shape that the table says. The end of file is
a message too: the other side is gone.

A worker's lifeline carries nothing towards the worker, so nobody has to watch it: an answer (to `listen`) goes over a
socket that came with the question.
"""

from __future__ import annotations

import os
import socket
from collections import deque

from .. import cjson, fds
from ..errors import DescriptorError, LifelineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]
    Received = list[tuple[Message, list[int]]]

__all__ = ["PROTOCOL", "Lifeline", "pair"]

PROTOCOL = 1
"""Both ends speak the same one: processes of two versions of this library may be parent and child."""

_LIMIT = 256 * 1024  # bytes in a frame
_MOST_FDS = 8  # in a frame
_HEADER = 5
_WAIT = 10.0  # seconds in which the supervisor has to make room for a message: it never blocks

_MAYBE_INT = (int, type(None))
_MAYBE_STR = (str, type(None))

MESSAGES: dict[str, dict[str, Any]] = {
    # from a process that has come to the door of main(): what it is, and what it wants
    "hello": {"protocol": int, "version": str},  # and, in this protocol: options, home
    "stale": {},  # it has loaded old bytecode, dropped that, and wants another try
    # from a fork server
    "forked": {"worker": int, "pid": int},  # with the worker's lifeline, and its pidfd where there is such a thing
    "exited": {"worker": int, "status": int, "reason": str},
    # from a worker
    "ready": {},
    "retire": {"why": str},
    # from both
    "failed": {"reason": str, "detail": str},
    "listen": {  # with a socket for the answer
        "address": str,
        "resolved": (list, type(None)),  # family, and numbers for bind(2): the supervisor waits for no resolver
        "name": _MAYBE_STR,
        "backlog": int,
        "reuse_port": bool,
        "mode": _MAYBE_INT,
        "owner": (list, type(None)),
    },
    "restart": {},
    "stop": {},  # from a worker: the whole program; to a fork server: end when your workers have
    # to a fork server
    "fork": {"worker": int, "place": int},
    "become": {"place": int},  # be this worker yourself
    "serving": {},  # standard error need not pass through the supervisor any more
    # answers to "listen"
    "listening": {},  # with the listener
    "refused": {"errno": _MAYBE_INT, "reason": str},
}


class Lifeline:
    """One end of a lifeline. The supervisor's never blocks; a member's `send` waits until there is room.

    `has_ended` once the other end is gone and all it has said is read. Use one end in one thread at a time, except
    `send`: a message goes with one system call as long as there is room for it.
    """

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self.has_ended: bool = False  # nothing more will come
        self._is_deaf = False  # nobody there reads
        self._error: LifelineError | None = None
        self._unread, self._fds = b"", deque[int]()
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        end.setblocking(False)

    def fileno(self) -> int:
        """Readable when there is something to `receive`."""
        return self.socket.fileno()

    @property
    def is_at_rest(self) -> bool:
        """Nothing is halfway in or out."""
        return not (self._unread or self._fds or self._unsent)

    @property
    def is_sending(self) -> bool:
        """Whether `flush` is wanted when there is room."""
        return bool(self._unsent)

    def post(self, kind: str, *rights: int, **fields: Any) -> None:
        """Send a message, or keep it for `flush` if there is no room; `rights` are duplicated until then."""
        if self._unsent:
            self._unsent.append((_frame(kind, rights, fields), [os.dup(fd) for fd in rights]))
            return
        left = self._send_now(_frame(kind, rights, fields), list(rights))
        if left is not None:
            self._unsent.append((left[0], [os.dup(fd) for fd in left[1]]))

    def flush(self) -> None:
        """Send what had to wait, as far as there is room."""
        while self._unsent:
            frame, rights = self._unsent.popleft()
            left = self._send_now(frame, rights)
            if left is not None:
                self._unsent.appendleft(left)
                return
            for fd in rights:
                os.close(fd)

    def send(self, kind: str, *rights: int, **fields: Any) -> None:
        """Send a message, and wait for room if there is none. Raises LifelineError if nobody reads it."""
        import select

        left = self._send_now(_frame(kind, rights, fields), list(rights))
        while left is not None:
            poll = select.poll()
            poll.register(self.socket, select.POLLOUT)
            if not poll.poll(_WAIT * 1000):
                raise LifelineError(f"the supervisor has not taken a message for {_WAIT:g} s")
            left = self._send_now(*left)
        if self._is_deaf:
            raise LifelineError("the supervisor is gone")

    def receive(self) -> Received:
        """All complete messages that have come, with the descriptors of each, which are the caller's now.

        Never waits; call it until there are none. Raises LifelineError for anything that is no message, after those
        that came before it: nothing after that can be understood.
        """
        if self._error is not None:
            raise self._error
        received: list[int] = []
        try:
            while not self.has_ended and len(self._unread) <= _LIMIT:  # then first the frames in it
                data = fds.receive(self.socket, 65536, received)
                self.has_ended = not data
                self._unread += data
        except (BlockingIOError, InterruptedError):
            pass
        except ConnectionError:
            self.has_ended = True
        except DescriptorError as error:
            self._error = LifelineError(str(error))
        finally:
            self._fds.extend(received)
        found: Received = []
        try:
            while (message := self._next_message()) is not None:
                found.append(message)
        except LifelineError as error:
            self._error = error
        if self._error is not None and not found:
            raise self._error
        return found

    def keep_to_the_end(self) -> None:
        """Use it no more: the other end learns it by the end of this process, and by nothing before."""
        self.socket.detach()

    def close(self) -> None:
        """Let go; the other end learns it."""
        self.socket.close()
        for _, rights in self._unsent:
            self._fds.extend(rights)
        while self._fds:
            os.close(self._fds.pop())
        self._unsent.clear()

    def _next_message(self) -> tuple[Message, list[int]] | None:
        if not self._unread and self._fds:
            raise LifelineError("descriptors have come that belong to no message")
        if len(self._unread) < _HEADER:
            return None
        size, count = int.from_bytes(self._unread[:4], "big"), self._unread[4]
        if size > _LIMIT or count > _MOST_FDS:
            raise LifelineError(f"a message of {size} bytes and {count} descriptors is over the limit")
        if len(self._unread) < _HEADER + size:
            return None
        if count > len(self._fds):
            raise LifelineError("descriptors were lost on the way")
        message = _checked(self._unread[_HEADER : _HEADER + size])
        self._unread = self._unread[_HEADER + size :]
        return message, [self._fds.popleft() for _ in range(count)]

    def _send_now(self, frame: bytes, rights: list[int]) -> tuple[bytes, list[int]] | None:
        """Send as much as there is room for; what is left, or None. To someone who has gone nothing is left to say."""
        import array

        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights))] if rights else []
        try:
            sent = self.socket.sendmsg([frame], ancillary)
        except (BlockingIOError, InterruptedError):
            return frame, rights
        except OSError:
            self._is_deaf = True
            return None
        return (frame[sent:], []) if sent < len(frame) else None


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a new lifeline, close-on-exec and above the standard streams."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if min(end.fileno() for end in ends) > 2:
        return ends
    first, second = (socket.socket(fileno=fds.above_stdio(end.detach())) for end in ends)
    return first, second


def _frame(kind: str, rights: tuple[int, ...], fields: Message) -> bytes:
    text = cjson.dumps({"type": kind, **fields}).encode()
    return len(text).to_bytes(4, "big") + bytes([len(rights)]) + text


def _checked(text: bytes) -> Message:
    try:
        message = cjson.loads(text.decode())
        shape = MESSAGES[message["type"]]
        for field, kind in shape.items():
            value = message[field]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"{field} is {value!r}")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise LifelineError(f"what came over a lifeline is no message: {error!r}") from None
    return dict(message)
