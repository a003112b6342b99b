"""Clients that have nothing to do with the events, and must not notice them.

Each bystander is a process with an idempotent producer, which sends numbered records at a steady rate to a replicated topic of its own, and
a consumer, which must get every number once and in order. One more process is a consumer group of two members over all these topics,
which commits every second.
"""

import threading
import time

import settings
from canary import priority

RATE = 20
PARTITIONS = 3
# Records that are not answered yet, of each partition. librdkafka's threads spin while a record waits for a request in flight, of which it
# has five to a broker, and would take the CPU from the brokers when these are slow.
UNANSWERED_MAX = 2
PATIENCE = 60
# Gaps between acknowledgements below this are not told.
TELL = 0.1
COMMIT_SILENCE_MAX = 10


def topic_of(number):
    return f"bystander-{number}"


def bystander(number, bootstrap, stop, out):
    priority(-10)
    one = Bystander(number, bootstrap, out)
    reader = Reader(one.who, one.topic, bootstrap, out)
    thread = threading.Thread(target=reader.run)
    thread.start()
    one.run(stop)
    reader.end(one.next)
    thread.join()
    out.put(("done", one.who, f"{one.acked} records acknowledged, {one.failed} failed; {reader.got} read back, the slowest {reader.slowest:.2f} s after it was sent"))


class Bystander:
    """The producer: numbers 0, 3, 6… to partition 0, and so on."""

    def __init__(self, number, bootstrap, out):
        from confluent_kafka import Producer

        self.who, self.topic, self.out = f"bystander {number}", topic_of(number), out
        self.next = list(range(PARTITIONS))
        self.unanswered = [0] * PARTITIONS
        self.acked = self.failed = 0
        self.last, self.lasts = None, [None] * PARTITIONS
        on_error = lambda e: out.put(("error", e.name(), time.monotonic()))
        self.producer = Producer(settings.producer(bootstrap, on_error, enable_idempotence=True, linger_ms=0))

    def run(self, stop):
        turn, begin = 0, time.monotonic()
        while not stop.is_set():
            if turn < (time.monotonic() - begin) * RATE:
                # A partition that is slow loses its turn; it is not made up for later.
                self.send(turn % PARTITIONS)
                turn += 1
            self.producer.poll(0.01)
        left = self.producer.flush(PATIENCE)
        now = time.monotonic()
        if self.last is not None and now - self.last > TELL:
            self.out.put(("gap", self.who, self.last, now))
        if left:
            self.out.put(("failure", self.who, f"{left} records were not answered within {PATIENCE} s of the end", self.last or begin, now))

    def send(self, partition):
        if self.unanswered[partition] < UNANSWERED_MAX:
            self.producer.produce(self.topic, str(self.next[partition]), partition=partition, on_delivery=self.answered)
            self.unanswered[partition] += 1
            self.next[partition] += PARTITIONS

    def answered(self, error, message):
        now, partition = time.monotonic(), message.partition()
        self.unanswered[partition] -= 1
        if error is not None:
            self.failed += 1
            self.out.put(("failure", self.who, f"a record failed: {error.name()}", now, now))
            return
        self.acked += 1
        if self.last is None:
            self.out.put(("up", self.who))
        elif now - self.last > TELL:
            self.out.put(("gap", self.who, self.last, now))
        if self.lasts[partition] is not None and now - self.lasts[partition] > 1:
            self.out.put(("partition", f"{self.topic}-{partition}", self.lasts[partition], now))
        self.last = self.lasts[partition] = now


class Reader:
    """Reads a bystander's topic from its beginning. No number may be missing, doubled or out of order."""

    def __init__(self, who, topic, bootstrap, out):
        from confluent_kafka import Consumer, TopicPartition

        self.who, self.topic, self.out = who, topic, out
        self.next = list(range(PARTITIONS))
        self.sent, self.got, self.slowest = None, 0, 0.0
        self.consumer = Consumer(settings.client(
            bootstrap, group_id=f"{topic}-reader", enable_auto_commit=False, auto_offset_reset="error", fetch_wait_max_ms=200,
        ))
        self.consumer.assign([TopicPartition(topic, p, 0) for p in range(PARTITIONS)])

    def end(self, sent):
        self.give_up, self.sent = time.monotonic() + PATIENCE, sent

    def run(self):
        while self.sent is None or self.lacks():
            if self.sent is not None and time.monotonic() > self.give_up:
                self.fail(f"records {self.lacks()} did not arrive within {PATIENCE} s of the end")
                break
            message = self.consumer.poll(0.2)
            if message is None:
                continue
            if message.error():
                self.out.put(("error", message.error().name(), time.monotonic()))
                continue
            self.check(int(message.value()), message)
        self.consumer.close()

    def lacks(self):
        """The next number of each partition whose last one has not come."""
        return [n for n, sent in zip(self.next, self.sent) if n < sent]

    def check(self, number, message):
        self.got += 1
        self.slowest = max(self.slowest, time.time() - message.timestamp()[1] / 1e3)
        partition = message.partition()
        expected = self.next[partition]
        if number != expected:
            what = "is missing" if number > expected else "was duplicated or out of order"
            self.fail(f"{self.topic}-{partition} at offset {message.offset()}: record {min(number, expected)} {what} (got {number}, expected {expected})")
        self.next[partition] = number + PARTITIONS

    def fail(self, text):
        now = time.monotonic()
        self.out.put(("failure", self.who, text, now, now))


def group(bystanders, bootstrap, stop, out):
    """Two members; the second leaves and joins again twice a minute."""
    priority(-10)
    group = Group([topic_of(n) for n in range(1, bystanders + 1)], bootstrap, out)
    first = threading.Thread(target=group.member, args=(stop.is_set,))
    first.start()
    out.put(("up", "group"))
    while not stop.is_set():
        until = time.monotonic() + 30
        group.member(lambda: stop.is_set() or time.monotonic() > until)
        stop.wait(2)
    first.join()
    out.put(("done", "group", f"{group.got} records, {group.again} of them duplicates; {group.commits} commits, longest silence between two {group.silence:.1f} s"))


class Group:
    def __init__(self, topics, bootstrap, out):
        self.topics, self.bootstrap, self.out = topics, bootstrap, out
        self.lock = threading.Lock()
        self.seen, self.committed = {}, {}
        self.got = self.again = self.commits = 0
        self.silence, self.last = 0.0, time.monotonic()

    def member(self, ended):
        from confluent_kafka import Consumer, KafkaException

        consumer = Consumer(settings.client(
            self.bootstrap, group_id="bystanders", enable_auto_commit=False, auto_offset_reset="earliest", session_timeout_ms=10_000,
            fetch_wait_max_ms=200,
        ))
        consumer.subscribe(self.topics, on_assign=self.assigned)
        due = time.monotonic() + 1
        while not ended():
            message = consumer.poll(0.2)
            if message is not None and message.error():
                self.out.put(("error", message.error().name(), time.monotonic()))
            elif message is not None:
                self.take(message)
            if time.monotonic() >= due:
                due = time.monotonic() + 1
                try:
                    self.committed_now(consumer.commit(asynchronous=False))
                except KafkaException as e:
                    # A new member has nothing to commit at first.
                    if e.args[0].name() != "_NO_OFFSET":
                        self.out.put(("error", f"commit {e.args[0].name()}", time.monotonic()))
        consumer.close()

    def take(self, message):
        """Offsets of these topics have no holes, so a group that skips one has lost its place."""
        key = message.topic(), message.partition()
        with self.lock:
            self.got += 1
            seen = self.seen.get(key, -1)
            if message.offset() > seen + 1:
                self.fail(f"{key[0]}-{key[1]}: the group skipped offsets {seen + 1} to {message.offset() - 1}")
            self.again += message.offset() <= seen
            self.seen[key] = max(seen, message.offset())

    def assigned(self, consumer, partitions):
        """The group's committed offsets are at least what was acknowledged to it."""
        with self.lock:
            known = dict(self.committed)
        for one in consumer.committed(partitions, timeout=30):
            least = known.get((one.topic, one.partition), 0)
            if one.error is None and least and one.offset < least:
                self.fail(f"{one.topic}-{one.partition}: the committed offset went back from {least} to {one.offset}")

    def committed_now(self, partitions):
        now = time.monotonic()
        with self.lock:
            self.commits += 1
            for one in partitions or []:
                if one.error is None:
                    key = one.topic, one.partition
                    self.committed[key] = max(self.committed.get(key, 0), one.offset)
            if now - self.last > COMMIT_SILENCE_MAX:
                self.out.put(("failure", "group", f"no commit succeeded for {now - self.last:.1f} s", self.last, now))
            self.silence, self.last = max(self.silence, now - self.last), now

    def fail(self, text):
        now = time.monotonic()
        self.out.put(("failure", "group", text, now, now))
