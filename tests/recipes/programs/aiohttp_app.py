"""An application on aiohttp's own server."""

import asyncio
import sys

from aiohttp import web

import hotrestart
from hotrestart import serving

VERSION = 0
in_hand = []


async def hello(request):
    await request.read()
    return web.Response(text=str(VERSION))


async def say_close(request, response):
    if hotrestart.state.should_stop and response.status != 101:  # a WebSocket
        response.headers["Connection"] = "close"
        response.force_close()


@web.middleware
async def remember(request, handler):
    in_hand.append(request)
    try:
        return await handler(request)
    finally:
        in_hand.remove(request)


@hotrestart.restartable(workers=2)
async def main():
    app = web.Application(middlewares=[remember])
    app.router.add_route("*", "/", hello)
    app.on_response_prepare.append(say_close)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=30)  # seconds for requests in hand
    await runner.setup()
    async with serving.DrainingListener(hotrestart.listen(sys.argv[1])) as listener:
        await web.SockSite(runner, listener).start()
        async with hotrestart.worker_loop() as loop:
            await loop.stopping()
            await listener.drain()
            while any(request.can_read_body for request in in_hand):  # cleanup() would let go of an upload
                await asyncio.sleep(0.1)
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
