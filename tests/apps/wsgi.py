"""A WSGI application in the server of wsgiref, one connection at a time."""

import sys
import wsgiref.simple_server

import hotrestart
from hotrestart import serving

VERSION = 0


class Handler(serving.KeepAlive, wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *args):
        pass


def application(environ, start_response):
    body = b"%d" % VERSION
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


@hotrestart.restartable(workers=2)
def main():
    server = wsgiref.simple_server.WSGIServer(("", 0), Handler, bind_and_activate=False)
    server.set_app(application)
    listener = hotrestart.listen(sys.argv[1])
    with hotrestart.worker_loop() as loop:
        serving.serve(server, listener, loop)


if __name__ == "__main__":
    main()
