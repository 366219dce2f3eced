"""An application on aiohttp's own server."""

import asyncio
import sys

from aiohttp import web

import hotrestart
from hotrestart import serving

VERSION = 0


async def hello(request):
    return web.Response(text=str(VERSION))


async def say_close(request, response):
    if hotrestart.state.should_stop and response.status != 101:  # a WebSocket
        response.headers["Connection"] = "close"
        response.force_close()


@hotrestart.restartable(workers=2)
async def main():
    app = web.Application()
    app.router.add_get("/", hello)
    app.on_response_prepare.append(say_close)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=30)  # seconds for requests in hand
    await runner.setup()
    async with serving.DrainingListener(hotrestart.listen(sys.argv[1])) as listener:
        await web.SockSite(runner, listener).start()
        async with hotrestart.worker_loop() as loop:
            await loop.stopping()
            await listener.drain()
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
