"""A restart in place as people write it: a flag, a listener that is inheritable, and an exec."""

import os
import signal
import socket
import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from app import app

should_restart = False


def on_hangup(*_):
    global should_restart
    should_restart = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *about):
        pass


def main():
    signal.signal(signal.SIGHUP, on_hangup)
    if "LISTENER" in os.environ:
        listener = socket.socket(fileno=int(os.environ["LISTENER"]))
    else:
        listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
        listener.set_inheritable(True)
        os.environ["LISTENER"] = str(listener.fileno())
    server = WSGIServer(listener.getsockname(), Quiet, bind_and_activate=False)
    server.socket.close()
    server.socket, server.timeout = listener, 0.05
    server.server_name, server.server_port = listener.getsockname()
    server.setup_environ()
    server.set_app(app)
    while not should_restart:
        server.handle_request()
    os.execv(sys.executable, sys.orig_argv)


main()
