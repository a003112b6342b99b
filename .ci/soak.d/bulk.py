"""Throughput of one bulk producer: what it was before an event, and how long it takes to be so again."""

import multiprocessing
import time
from collections import Counter

import settings

TOPIC = "bulk"
RECORD = 50_000
WARM_UP = 0.5
# Of the reference; that much counts as back.
ENOUGH = 0.7


def worker(bootstrap, pipe):
    """Sends as fast as it can, or at a rate in bytes/s, while it is told to. Tells when how many bytes were acknowledged."""
    from confluent_kafka import Producer

    acks, errors = [], Counter()

    def answered(error, _):
        if error is not None:
            errors[error.name()] += 1
        else:
            acks.append((time.monotonic(), RECORD))

    producer = Producer(settings.producer(bootstrap, linger_ms=5, batch_size=1_000_000, message_timeout_ms=30_000, queue_buffering_max_kbytes=32_768))
    payload, n, begin, sent, rate = bytes(RECORD), 0, 0.0, 0, None
    while True:
        if pipe.poll(0 if rate is not None else 0.05):
            command, value = pipe.recv()
            if command == "start":
                rate, begin, sent = value, time.monotonic(), 0
            elif command == "stop":
                rate = None
                producer.purge(in_queue=True, in_flight=False)
                producer.flush(5)
                errors.pop("_PURGE_QUEUE", None)
            elif command == "end":
                return
            pipe.send((acks[:], Counter(errors)))
            acks.clear()
            errors.clear()
        if rate is None:
            producer.poll(0)
        elif rate and sent > (time.monotonic() - begin) * rate:
            producer.poll(0.01)
        else:
            try:
                producer.produce(TOPIC, payload, partition=n % 3, on_delivery=answered)
                n, sent = n + 1, sent + RECORD
                producer.poll(0)
            except BufferError:
                producer.poll(0.02)


class Bulk:
    def __init__(self, bootstrap, report):
        self.report = report
        self.pipe, theirs = multiprocessing.Pipe()
        multiprocessing.Process(target=worker, args=(bootstrap, theirs), daemon=True).start()

    def _ask(self, command, value=None):
        self.pipe.send((command, value))
        acks, errors = self.pipe.recv()
        for name, count in errors.items():
            self.report.error(f"bulk {name}", count)
        return acks

    def start(self, rate=0):
        """In bytes/s; 0 is as fast as it goes."""
        self._ask("start", rate)

    def stop(self):
        self._ask("stop")

    def reference(self, seconds=3):
        """Bytes a second over so many seconds."""
        self.start()
        time.sleep(WARM_UP)
        self._ask("look")
        time.sleep(seconds)
        done = sum(size for _, size in self._ask("look"))
        self.stop()
        return done / seconds

    def until_back(self, since, reference, patience):
        """From since (an event's end) to the end of the first second with enough of the reference, or None; and bytes/s by second."""
        self.start()
        acks = []
        while (now := time.monotonic()) < since + patience:
            time.sleep(0.1)
            acks += self._ask("look")
            if (seconds := first_full_second(acks, since, now, ENOUGH * reference)) is not None:
                break
        else:
            seconds = None
        self.stop()
        by_second = Counter(int(at - since) for at, _ in acks)
        return seconds, [by_second[s] * RECORD for s in range(int(now - since) + 1)]


def first_full_second(acks, since, now, enough):
    begin = since
    while begin + 1 <= now:
        if sum(size for at, size in acks if begin <= at < begin + 1) >= enough:
            return begin + 1 - since
        begin += 0.1
    return None
