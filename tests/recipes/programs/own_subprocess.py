"""A child process that serves this one through pipes: it is let go, and waited for."""

import subprocess

from ledger import report, take

import hotrestart

VERSION = 0


@hotrestart.restartable(workers=2)
def main():
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
        hotrestart.worker_loop() as loop,
    ):
        while loop.running:
            child.stdin.write(b"%d\n" % take())
            child.stdin.flush()
            report(done=int(child.stdout.readline()), version=VERSION, child=child.pid)
            loop.sleep(0.01)


if __name__ == "__main__":
    main()
