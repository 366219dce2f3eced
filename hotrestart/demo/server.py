"""The program that is restarted beside itself: an HTTP server with two workers, which keeps connections.

The decorator on `main()`, `worker_loop()`, `listen()` and `serving` are all that it does about restarts.
"""

import http.server
import os
import select
import sys
import threading

import hotrestart
from hotrestart import serving

VERSION = 1


@hotrestart.restartable(workers=2, soak=0.3, timeout=1.0, grace=3.0, control=False)
def main() -> None:
    """Serve until asked to end."""
    listener = hotrestart.listen("127.0.0.1:0")
    server = Server(listener.getsockname(), Handler, bind_and_activate=False)
    print(f"serving on port {listener.getsockname()[1]}", flush=True)
    with hotrestart.worker_loop() as loop:
        serving.serve(server, listener, loop)


class Handler(serving.KeepAlive, http.server.BaseHTTPRequestHandler):
    """Answers what it was asked, and says who it is."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body go together, so that no body waits for the client to acknowledge the head

    def do_GET(self) -> None:
        """Answer, or spin for ever."""
        body = self.path.encode()
        self.send_response(200)
        self.send_header("X-Version", str(VERSION))
        self.send_header("X-Worker", str(os.getpid()))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/spin":
            spin(self)
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing: the client keeps a record."""


class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection; the main loop accepts, and keeps house between two turns."""

    timeout: float | None = 0.5
    _keeping_house = threading.Lock()

    def service_actions(self) -> None:
        """Stop when the demonstration is gone, for nobody else would end this program."""
        with self._keeping_house:
            if select.select([sys.stdin], [], [], 0)[0]:
                hotrestart.request_stop()


def spin(handler: Handler) -> None:
    """What a bug may do: the head of the answer goes out, the rest never comes, and the main loop is locked out."""
    handler.wfile.flush()
    with Server._keeping_house:
        while True:
            pass


if __name__ == "__main__":
    main()
