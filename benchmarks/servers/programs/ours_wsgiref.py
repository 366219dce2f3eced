"""A WSGI application on the server of the standard library."""

import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import hotrestart
from hotrestart import serving

VERSION = 0


class Quiet(WSGIRequestHandler):
    def log_message(self, *about):
        pass


@hotrestart.restartable(workers=2)
def main():
    listener = hotrestart.listen(sys.argv[1])
    server = WSGIServer(listener.getsockname(), Quiet, bind_and_activate=False)
    server.server_name, server.server_port = listener.getsockname()
    server.setup_environ()
    server.set_app(app)  # noqa: F821 - as in the recipes, the application of the measurement takes its place above
    with hotrestart.worker_loop() as loop:
        serving.serve(server, listener, loop)


if __name__ == "__main__":
    main()
