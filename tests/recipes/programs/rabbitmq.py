"""A queue in RabbitMQ, with pika: a message is acknowledged when its job is done."""

import sys

import pika
from ledger import report

import hotrestart

VERSION = 0


def handle(job):
    report(done=int(job), version=VERSION)


def on_message(channel, method, properties, body):
    handle(body)
    channel.basic_ack(method.delivery_tag)


@hotrestart.restartable(workers=2)
def main():
    connection = pika.BlockingConnection(pika.URLParameters(sys.argv[1]))
    channel = connection.channel()
    channel.queue_declare("jobs", durable=True)
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume("jobs", on_message)

    # pika has its own loop, with heartbeats, and this is how to end it: after the job in hand, and what the broker has
    # sent meanwhile goes back to the queue. An exception out of a signal handler would come in the midst of a frame.
    @hotrestart.on_stop
    def stop():
        connection.add_callback_threadsafe(channel.stop_consuming)

    hotrestart.ready()
    channel.start_consuming()
    connection.close()


if __name__ == "__main__":
    main()
