"""Flask on cheroot: asked to end it accepts nothing more, says `Connection: close`, and ends when all are gone.

By itself cheroot closes kept connections on whoever asks just then, cuts the listen queue, which all workers share, to
five, and waits a second for a connection that another worker has taken.
"""

import os
import sys
import threading
import time

from cheroot import server, wsgi
from flask import Flask

import hotrestart

VERSION = 0

app = Flask(__name__)


@app.get("/")
def version():
    return str(VERSION)


@app.route("/until/<name>", methods=["GET", "POST"])
def until(name):  # which does not read what was posted
    while not os.path.exists(name):
        time.sleep(0.01)
    return str(VERSION)


class Request(server.HTTPRequest):
    def send_headers(self):
        if hotrestart.state.should_stop:
            self.rfile.read()  # a close with unread input would reset the connection, and take the answer along
            self.close_connection = True
        super().send_headers()


class Connection(server.HTTPConnection):
    RequestHandlerClass = Request

    def __init__(self, server, *arguments):
        super().__init__(server, *arguments)
        server.open.add(self)

    def close(self):
        super().close()
        self.server.open.discard(self)


class Server(wsgi.Server):
    ConnectionClass = Connection

    def __init__(self, listener, app):
        super().__init__(listener.getsockname(), app, request_queue_size=1024)
        self.listener, self.open = listener, set()

    def bind(self, *_):
        self.socket = self.listener.dup()

    def prepare(self):
        super().prepare()
        self.socket.setblocking(False)

    def finish(self):
        self._connections._selector.unregister(self.socket)  # accept nothing more
        self.timeout = 1.0  # a client that asks within a second loses nothing
        while self.open:
            time.sleep(0.01)
        self.stop()


@hotrestart.restartable(workers=2)
def main():
    server = Server(hotrestart.listen(sys.argv[1]), app)
    server.prepare()
    threading.Thread(target=server.serve).start()
    with hotrestart.worker_loop() as loop:
        loop.sleep()
    server.finish()


if __name__ == "__main__":
    main()
