"""An ASGI application on hypercorn."""

import asyncio
import sys

import hypercorn.asyncio
import hypercorn.config

import hotrestart
from hotrestart import serving

VERSION = 0


async def app(scope, receive, send):
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        body = b"%d" % VERSION
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@hotrestart.restartable(workers=2)
async def main():
    async with serving.DrainingListener(hotrestart.listen(sys.argv[1])) as listener:
        config = hypercorn.config.Config()
        config.create_sockets = lambda: hypercorn.config.Sockets([], [listener], [])  # the first: with TLS
        config.graceful_timeout = 30  # seconds for requests in hand

        async def until_drained():  # the application has started up
            async with hotrestart.worker_loop() as loop:
                await loop.stopping()
                await listener.drain()

        await hypercorn.asyncio.serve(serving.LastAnswer(app), config, shutdown_trigger=until_drained)


if __name__ == "__main__":
    asyncio.run(main())
