"""Clients on raw sockets: those that vanish in the middle of a request, and those that ask and never read."""

import time
from collections import Counter

import wire

TOPIC = "strangers"
OLD = "old"
VANISHING = 100
SLOW = 50
SLOW_SECONDS = 20
# As many as a broker takes of one connection at a time; each is answered with about a megabyte.
PIPELINED = 64


def vanish(topics, random):
    """100 sockets over 10 s. Each sends a half or a whole produce or fetch request and closes; half of them by RST."""
    leaders = topics.leaders(TOPIC)
    errors = Counter()
    for n in range(VANISHING):
        partition = random.choice(sorted(leaders))
        if random.random() < 0.5:
            request = wire.produce(TOPIC, partition, wire.batch(random.randbytes(random.choice([100, 10_000, 900_000]))))
        else:
            # Some wait for records that never come.
            request = wire.fetch(OLD, partition, random.choice([0, 1]), 50_000_000, 30_000, random.choice([1, 2_000_000_000]))
        if random.random() < 0.5:
            request = request[: random.randrange(1, len(request))]
        try:
            connection = wire.connect(leaders[partition])
            connection.settimeout(5)
            connection.sendall(request)
            if random.random() < 0.5:
                time.sleep(0.05)
            wire.close(connection, reset=n % 2)
        except OSError as e:
            errors[type(e).__name__] += 1
        time.sleep(0.1)
    return errors


def slow(topics, random):
    """50 sockets that ask for old records 64 times each, and read nothing for 20 s."""
    leaders = topics.leaders(OLD)
    connections, errors = [], Counter()
    for _ in range(SLOW):
        partition = random.choice(sorted(leaders))
        try:
            connection = wire.connect(leaders[partition])
            connections.append(connection)
            connection.sendall(b"".join(wire.fetch(OLD, partition, random.randrange(500), 50_000_000) for _ in range(PIPELINED)))
        except OSError as e:
            errors[type(e).__name__] += 1
    time.sleep(SLOW_SECONDS)
    for n, connection in enumerate(connections):
        wire.close(connection, reset=n % 2)
    return errors
