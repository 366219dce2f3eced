"""Flask on waitress: asked to end it accepts nothing more, says `Connection: close`, and ends when all are gone.

By itself waitress closes kept connections on whoever asks just then, or goes on serving them for two minutes.
"""

import os
import sys
import time

import waitress
from flask import Flask
from waitress.channel import HTTPChannel
from waitress.task import WSGITask

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


class Task(WSGITask):
    def build_response_header(self):
        if hotrestart.state.should_stop:
            self.request.headers["CONNECTION"] = "close"  # as if the client had asked for it
        return super().build_response_header()


class Channel(HTTPChannel):
    task_class = Task

    def close_if_idle(self, now):
        in_hand = self.requests or self.request or self.total_outbufs_len
        if not in_hand and now - self.last_activity > 1.0:  # a client that asks within a second loses nothing
            self.will_close = True


@hotrestart.restartable(workers=2)
def main():
    listener = hotrestart.listen(sys.argv[1])
    channels = {}
    server = waitress.create_server(app, channels, sockets=[listener.dup()])
    server.channel_class = Channel
    with hotrestart.worker_loop() as loop:
        hotrestart.on_stop(server.pull_trigger)
        while loop.running:  # in the place of server.run()
            server.asyncore.poll2(1.0, channels)
        server.accepting = False
        while server.active_channels:
            now = time.time()
            server.asyncore.poll2(0.1, channels)  # what has come by now is read
            for channel in list(server.active_channels.values()):
                channel.close_if_idle(now)


if __name__ == "__main__":
    main()
