"""Clients that have nothing to do with the events, and must not notice them.

Each bystander is a process with an idempotent producer, which sends numbered records at a steady rate to a replicated topic of its own, and
a consumer, which must get every number once and in order. One more process is a consumer group of two members over all these topics,
which commits every second.
"""

import threading
import time

from canary import priority

RATE = 20
PARTITIONS = 3
PATIENCE = 60
# Gaps between acknowledgements below this are not told.
TELL = 0.1
COMMIT_SILENCE_MAX = 10


def topic_of(number):
    return f"bystander-{number}"


def bystander(number, bootstrap, stop, out):
    from confluent_kafka import Producer

    priority(-10)
    who, topic = f"bystander {number}", topic_of(number)
    acked, failed, last = 0, 0, None

    def answered(error, _):
        nonlocal acked, failed, last
        now = time.monotonic()
        if error is not None:
            failed += 1
            out.put(("failure", who, f"a record was refused: {error.name()}", now, now))
            return
        acked += 1
        if last is None:
            out.put(("up", who))
        elif now - last > TELL:
            out.put(("gap", who, last, now))
        last = now

    producer = Producer({
        "bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 0,
        "reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 200, "retry.backoff.ms": 20, "retry.backoff.max.ms": 100,
        "error_cb": lambda e: out.put(("error", e.name(), time.monotonic())),
    })
    reader = Reader(who, topic, bootstrap, out)
    thread = threading.Thread(target=reader.run)
    thread.start()
    sent, begin = 0, time.monotonic()
    while not stop.is_set():
        while sent < (time.monotonic() - begin) * RATE:
            producer.produce(topic, str(sent), partition=sent % PARTITIONS, on_delivery=answered)
            sent += 1
        producer.poll(0.01)
    left = producer.flush(PATIENCE)
    if last is not None and time.monotonic() - last > 1:
        out.put(("gap", who, last, time.monotonic()))
    if left:
        out.put(("failure", who, f"{left} records were not answered within {PATIENCE} s of the end", last, time.monotonic()))
    reader.end(sent)
    thread.join()
    out.put(("done", who, f"{acked} of {sent} acknowledged, {failed} refused; {reader.got} read back, the slowest {reader.slowest:.2f} s after it was sent"))


class Reader:
    """Reads a bystander's topic from its beginning. No number may be missing, doubled or out of order."""

    def __init__(self, who, topic, bootstrap, out):
        from confluent_kafka import Consumer, TopicPartition

        self.who, self.topic, self.out = who, topic, out
        self.next = list(range(PARTITIONS))
        self.sent, self.got, self.slowest = None, 0, 0.0
        self.consumer = Consumer({
            "bootstrap.servers": bootstrap, "group.id": f"{topic}-reader", "enable.auto.commit": False, "auto.offset.reset": "error",
            "fetch.wait.max.ms": 200, "reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 200,
        })
        self.consumer.assign([TopicPartition(topic, p, 0) for p in range(PARTITIONS)])

    def end(self, sent):
        self.give_up, self.sent = time.monotonic() + PATIENCE, sent

    def run(self):
        while self.sent is None or self.lacks():
            if self.sent is not None and time.monotonic() > self.give_up:
                self.fail(f"records {self.lacks()} of {self.sent} did not arrive within {PATIENCE} s of the end")
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
        """The next number of each partition that has not got all of its numbers."""
        return [n for n in self.next if n < self.sent]

    def check(self, number, message):
        self.got += 1
        self.slowest = max(self.slowest, time.time() - message.timestamp()[1] / 1e3)
        partition = message.partition()
        expected = self.next[partition]
        if number != expected:
            what = "is missing" if number > expected else "came again or out of order"
            self.fail(f"{self.topic}-{partition} at offset {message.offset()}: record {min(number, expected)} {what} ({number} came, {expected} was next)")
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
    out.put(("done", "group", f"{group.got} records, {group.again} of them again; {group.commits} commits, longest silence between two {group.silence:.1f} s"))


class Group:
    def __init__(self, topics, bootstrap, out):
        self.topics, self.bootstrap, self.out = topics, bootstrap, out
        self.lock = threading.Lock()
        self.seen, self.committed = {}, {}
        self.got = self.again = self.commits = 0
        self.silence, self.last = 0.0, time.monotonic()

    def member(self, ended):
        from confluent_kafka import Consumer, KafkaException

        consumer = Consumer({
            "bootstrap.servers": self.bootstrap, "group.id": "bystanders", "enable.auto.commit": False, "auto.offset.reset": "earliest",
            "session.timeout.ms": 10000, "reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 200, "fetch.wait.max.ms": 200,
        })
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
