"""An HTTP/1.1 server with a thread for each connection; `Connection: keep-alive` is the rule."""

import http.server
import os
import sys
import time
import urllib.parse

import hotrestart
from hotrestart import serving

VERSION = 0


class Handler(serving.KeepAlive, http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        """/ at once; /slow?3 after 3 s; /until?go when there is a file `go`; /stream?10 a chunk each 50 ms for 10 s."""
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/stream":
            return self.stream(float(url.query))
        if url.path == "/slow":
            time.sleep(float(url.query))
        while url.path == "/until" and not os.path.exists(url.query):
            time.sleep(0.01)
        return self.answer()

    def do_POST(self):
        """Does not read the body."""
        self.answer()

    def answer(self):
        body = b"%d" % VERSION
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, seconds):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(round(seconds / 0.05)):
            self.wfile.write(b"%x\r\n%d\r\n" % (len(b"%d" % VERSION), VERSION))
            time.sleep(0.05)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args):
        pass


@hotrestart.restartable(workers=2)
def main():
    server = http.server.ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
    listener = hotrestart.listen(sys.argv[1])
    with hotrestart.worker_loop() as loop:
        serving.serve(server, listener, loop)


if __name__ == "__main__":
    main()
