"""A child process that lives on when its parent restarts in place: the next generation is told its pid."""

import os
import subprocess

from ledger import report

import hotrestart

VERSION = 0


@hotrestart.restartable
def main():
    pid = hotrestart.inherited("child")
    if pid is None:
        pid = subprocess.Popen(["sleep", "1000"]).pid
    hotrestart.bequeath("child", pid)
    with hotrestart.worker_loop() as loop:
        report(version=VERSION, child=pid)
        while loop.running:
            if os.waitpid(pid, os.WNOHANG)[0]:
                break  # it has ended
            loop.sleep(0.05)
    if hotrestart.state.reason != "restart":
        os.kill(pid, 15)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
