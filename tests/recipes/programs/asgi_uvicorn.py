"""An ASGI application on uvicorn."""

import asyncio
import contextlib
import sys

import uvicorn

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


class Server(uvicorn.Server):
    capture_signals = contextlib.nullcontext  # hotrestart handles them

    async def main_loop(self):  # the application has started up
        ticks = asyncio.create_task(super().main_loop())
        async with hotrestart.worker_loop() as loop:
            await loop.stopping()
            await self.listener.drain()
        self.should_exit = True
        await ticks


@hotrestart.restartable(workers=2)
async def main():
    server = Server(uvicorn.Config(serving.LastAnswer(app), access_log=False, log_level="warning"))
    async with serving.DrainingListener(hotrestart.listen(sys.argv[1])) as server.listener:
        await server.serve(sockets=[server.listener])


if __name__ == "__main__":
    asyncio.run(main())
