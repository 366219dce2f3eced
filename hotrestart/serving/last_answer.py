"""`LastAnswer`: kept connections of an ASGI server while the program drains.

A kept connection can be closed without loss only where the client knows: the answer before has said so. ASGI servers
close those that wait for a request as soon as they are told to end, so it has to be said before.
"""

from __future__ import annotations

from .. import state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from typing import Any

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

__all__ = ["LastAnswer"]


class LastAnswer:
    """ASGI middleware: once the program is asked to end, each answer of `app` says `Connection: close`.

    Servers close the connection after such an answer. HTTP/2 and later say it in their own way, and are left alone, as
    are WebSockets. Together with `DrainingListener`.

    >>> from hotrestart import serving
    >>> async def app(scope, receive, send): ...
    >>> app = serving.LastAnswer(app)
    """

    def __init__(self, app: Callable[[Any, Any, Any], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] != "http" or not scope["http_version"].startswith("1"):
            await self.app(scope, receive, send)
            return

        async def send_last(message: Message) -> None:
            if state.should_stop and message["type"] == "http.response.start":
                headers = [each for each in message.get("headers", ()) if bytes(each[0]).lower() != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        await self.app(scope, receive, send_last)
