"""A UDP server: a datagram that nobody has read yet waits in the socket, which every generation has."""

import sys

import hotrestart

VERSION = 0


@hotrestart.restartable(workers=2)
def main():
    socket = hotrestart.listen(f"udp:{sys.argv[1]}")
    with hotrestart.worker_loop() as loop:
        while loop.running:
            for ready in loop.wait(socket, timeout=60):
                try:
                    data, client = ready.recvfrom(65535)
                except BlockingIOError:
                    continue  # another worker has read it
                ready.sendto(b"%s %d" % (data, VERSION), client)


if __name__ == "__main__":
    main()
