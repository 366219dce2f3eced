"""A server that knows nothing of hotrestart: plain sockets from LISTEN_FDS, one job a connection, graceful on TERM.

    python takes_fds.py VERSION_FILE

It answers "VERSION PID", the version being what the file says when it starts.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys


def main() -> None:
    with open(sys.argv[1]) as file:
        version = file.read().strip()
    if os.environ["LISTEN_PID"] != str(os.getpid()):
        sys.exit("LISTEN_FDS is meant for somebody else")
    listener = socket.socket(fileno=3)
    listener.setblocking(False)  # others accept from it as well: who comes late must not block
    stop, stopping = os.pipe()
    signal.signal(signal.SIGTERM, lambda _number, _frame: os.write(stopping, b"!"))
    while True:
        readable, _, _ = select.select([listener, stop], [], [])
        if stop in readable:
            return  # nothing is accepted that has not been answered
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        with connection:
            connection.setblocking(True)
            connection.makefile().readline()
            connection.sendall(f"here {version} {os.getpid()}".encode())


if __name__ == "__main__":
    main()
