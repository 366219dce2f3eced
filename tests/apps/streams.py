"""An HTTP/1.1 server on asyncio streams, which keeps connections; `state.should_stop` is looked at between requests."""

import asyncio
import os
import sys

import hotrestart
from hotrestart import serving

VERSION = 0
LINGER = 1.0  # seconds a kept connection may be idle once the program is to end


async def next_head(reader):
    """The head of the next request, or None if none comes."""
    while True:
        try:
            return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LINGER)
        except asyncio.TimeoutError:
            if hotrestart.state.should_stop:
                return None
        except asyncio.IncompleteReadError:
            return None


async def handle(reader, writer):
    while head := await next_head(reader):
        path, _, query = head.split()[1].partition(b"?")
        if path == b"/slow":
            await asyncio.sleep(float(query))
        while path == b"/until" and not os.path.exists(query):
            await asyncio.sleep(0.01)
        is_last = hotrestart.state.should_stop or b"connection: close" in head.lower()
        kept, body = b"close" if is_last else b"keep-alive", b"%d" % VERSION
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: %s\r\nContent-Length: %d\r\n\r\n%s" % (kept, len(body), body))
        await writer.drain()
        if is_last:
            return


@hotrestart.restartable(workers=2)
async def main():
    listener = hotrestart.listen(sys.argv[1])
    with hotrestart.worker_loop() as loop:
        await serving.serve_streams(handle, listener, loop)


if __name__ == "__main__":
    asyncio.run(main())
