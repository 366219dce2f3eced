"""A loop around `accept`, one connection after the other."""

import sys

import hotrestart
from hotrestart import serving

VERSION = 0


def answer(connection):
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65536)
    body = b"%d" % VERSION
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


@hotrestart.restartable(workers=2)
def main():
    listener = hotrestart.listen(sys.argv[1])
    with hotrestart.worker_loop() as loop:
        for connection, _ in serving.accept(listener, loop):
            with connection:
                answer(connection)


if __name__ == "__main__":
    main()
