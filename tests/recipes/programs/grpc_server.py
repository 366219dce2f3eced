"""A gRPC server: grpcio takes no listener, so every generation binds the port for itself, beside the one before.

`grpc.so_reuseport` (on by default on Linux) is what lets it; the kernel spreads connections over those who listen. A
connection that a closing listener has not taken yet is reset: gRPC clients make another by themselves, and what they
have sent is sent again only with `wait_for_ready` or a retry policy.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

import hotrestart

VERSION = 0


def answer(request, context):
    return b"%s %d" % (request, VERSION)


@hotrestart.restartable(workers=2)
def main():
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 1)])
    handlers = {"Ask": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Echo", handlers)])
    server.add_insecure_port(sys.argv[1])
    server.start()
    with hotrestart.worker_loop() as loop:
        while loop.running:
            loop.sleep(60)
    server.stop(grace=10).wait()  # GOAWAY: calls in hand are finished, clients connect anew


if __name__ == "__main__":
    main()
