"""A forking `socketserver` that speaks just enough HTTP: a head comes, an answer goes, the connection is closed."""

import socketserver
import sys

import hotrestart
from hotrestart import serving

VERSION = 0


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while self.rfile.readline().strip():
            pass
        body = b"%d" % VERSION
        self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


@hotrestart.restartable(workers=2)
def main():
    server = socketserver.ForkingTCPServer(("", 0), Handler, bind_and_activate=False)
    listener = hotrestart.listen(sys.argv[1])
    with hotrestart.worker_loop() as loop:
        serving.serve(server, listener, loop)


if __name__ == "__main__":
    main()
