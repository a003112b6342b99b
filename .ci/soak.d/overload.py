"""Twenty producers at full speed for ten seconds, a third of them with request timeouts of 1 ms."""

import multiprocessing
import os
import time
from collections import Counter

import settings

TOPIC = "overload"
PARTITIONS = 6
PROCESSES = 4
EACH = 5
SECONDS = 10
RECORD = 100_000


def worker(bootstrap, seed, ready, go, stop, out):
    """Five producers. Ends with requests in flight, as a process that is killed does."""
    from confluent_kafka import Producer

    # On a machine that is small, the brokers and the bystanders go first: strangers usually have a machine of their own.
    os.nice(10)
    errors, acked = Counter(), 0

    def answered(error, _):
        nonlocal acked
        if error is None:
            acked += RECORD
        else:
            errors[error.name()] += 1

    def producer(n):
        impatient = (seed + n) % 3 == 0
        return Producer(settings.producer(
            bootstrap, linger_ms=5, batch_size=1_000_000, queue_buffering_max_kbytes=16_384, request_timeout_ms=1 if impatient else 5_000,
            message_timeout_ms=5_000,
        ))

    producers = [producer(n) for n in range(EACH)]
    payload, n = os.urandom(RECORD), 0
    ready.release()
    go.wait(60)
    while not stop.is_set():
        full = 0
        for one in producers:
            try:
                for _ in range(4):
                    one.produce(TOPIC, payload, partition=n % PARTITIONS, on_delivery=answered)
                    n += 1
            except BufferError:
                full += 1
            one.poll(0)
        if full == len(producers):
            time.sleep(0.005)
    out.put((acked, errors))
    out.close()
    out.join_thread()
    os._exit(0)


def overload(bootstrap, random):
    """Returns bytes/s that were acknowledged, errors by name, and when the last was sent."""
    ready, go, stop, out = multiprocessing.Semaphore(0), multiprocessing.Event(), multiprocessing.Event(), multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=worker, args=(bootstrap, random.randrange(3), ready, go, stop, out), daemon=True) for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire(timeout=60)
    go.set()
    time.sleep(SECONDS)
    stop.set()
    end = time.monotonic()
    acked, errors = 0, Counter()
    for _ in processes:
        bytes_acked, found = out.get(timeout=30)
        acked += bytes_acked
        errors += found
    for process in processes:
        process.join(10)
    return acked / SECONDS, errors, end
