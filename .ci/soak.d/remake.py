"""A topic that is deleted and made again under its name, while a producer and a group use it.

In the end the group must have seen every record of the last topic that was acknowledged: were an offset of a former topic taken for one of
it, the group would skip some. A group without members commits before each deletion; afterwards it must have no offset.
"""

import threading
import time
from collections import Counter

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

import settings

NAME = "remade"
PARTITIONS = 3
ROUNDS = 4
PATIENCE = 30
# How long a consumer may have no partitions. A rebalance takes 3 s, and there is no topic for about a second.
WITHOUT = 6


class Remake:
    def __init__(self, bootstrap, topics, random):
        self.bootstrap, self.topics, self.random = bootstrap, topics, random
        self.generation, self.ended = 0, threading.Event()
        self.producing = threading.Event()
        self.acked, self.seen = set(), set()  # (generation, number)
        self.errors, self.failures = Counter(), []
        self.idle = Consumer(settings.client(bootstrap, group_id=f"{NAME}-idle"))

    def run(self):
        self.topics.create(NAME, PARTITIONS)
        threads = [threading.Thread(target=self.produce), threading.Thread(target=self.consume)]
        self.producing.set()
        for thread in threads:
            thread.start()
        for _ in range(ROUNDS):
            time.sleep(self.random.uniform(2, 5))
            self.again()
        time.sleep(2)
        self.producing.clear()
        self.wait_for_last()
        self.ended.set()
        for thread in threads:
            thread.join()
        self.topics.delete(NAME)
        self.idle.close()
        return self.errors, self.failures

    def again(self):
        try:
            self.idle.commit(offsets=[TopicPartition(NAME, p, 1) for p in range(PARTITIONS)], asynchronous=False)
            self.topics.delete(NAME)
            if self.random.random() < 0.5:
                time.sleep(self.random.uniform(0, 1))
            self.topics.create(NAME, PARTITIONS)
            self.generation += 1
            for one in self.idle.committed([TopicPartition(NAME, p) for p in range(PARTITIONS)], timeout=30):
                if one.error:
                    self.failures.append(f"{NAME}-{one.partition}: the committed offset could not be read: {one.error.name()}")
                elif one.offset >= 0:
                    self.failures.append(f"{NAME}-{one.partition}: the new topic has offset {one.offset}, which was committed for the former one")
        except KafkaException as e:
            self.failures.append(f"the topic could not be recreated: {e.args[0].name()} {e.args[0].str()}")

    def produce(self):
        """A hundred a second; what is refused while there is no topic is no fault."""
        producer = Producer(settings.producer(
            self.bootstrap, linger_ms=5, message_timeout_ms=3000, topic_metadata_refresh_interval_ms=500,
            topic_metadata_propagation_max_ms=0,
        ))
        n = 0

        def answered(key):
            def call(error, _):
                if error is None:
                    self.acked.add(key)
                else:
                    self.errors[f"produce {error.name()}"] += 1
            return call

        while not self.ended.is_set():
            if self.producing.is_set():
                key = self.generation, n
                try:
                    producer.produce(NAME, f"{key[0]} {key[1]}", partition=n % PARTITIONS, on_delivery=answered(key))
                    n += 1
                except KafkaException as e:
                    # The client knows that there is no such topic.
                    self.errors[f"produce {e.args[0].name()}"] += 1
                    producer.poll(0.1)
            producer.poll(0.01)
        producer.purge()
        producer.flush(5)

    def consume(self):
        consumer = Consumer(settings.client(
            self.bootstrap, group_id=NAME, enable_auto_commit=False, auto_offset_reset="earliest", session_timeout_ms=6000,
            topic_metadata_refresh_interval_ms=500, fetch_wait_max_ms=200,
        ))
        consumer.subscribe([NAME])
        due = time.monotonic() + 0.5
        had = time.monotonic()
        while not self.ended.is_set():
            message = consumer.poll(0.1)
            # librdkafka compares topics by name and number of partitions. If a broker that has not heard of the deletion answers while the
            # client joins, and the next answer assigns nothing, the new topic looks like the one that it joined with, and it never joins again.
            if consumer.assignment():
                had = time.monotonic()
            elif time.monotonic() > had + WITHOUT:
                self.errors["consume: subscribed again, as nothing was assigned"] += 1
                consumer.unsubscribe()
                consumer.subscribe([NAME])
                had = time.monotonic()
            if message is not None and message.error():
                self.errors[f"consume {message.error().name()}"] += 1
            elif message is not None:
                self.seen.add(tuple(map(int, message.value().split())))
            if time.monotonic() >= due:
                due = time.monotonic() + 0.5
                try:
                    consumer.commit(asynchronous=False)
                except KafkaException as e:
                    if e.args[0].name() != "_NO_OFFSET":
                        self.errors[f"commit {e.args[0].name()}"] += 1
        consumer.close()

    def wait_for_last(self):
        """Records that the last topic holds were seen by the group, and its offsets lie within that topic."""
        give_up = time.monotonic() + PATIENCE
        held = self.held()
        if not held:
            self.failures.append("the last topic accepted no record")
        while (lacks := held - self.seen) and time.monotonic() < give_up:
            time.sleep(0.2)
        if lacks:
            self.failures.append(f"the group skipped {len(lacks)} of {len(held)} records of the last topic, first {min(lacks)}")
        lost = {key for key in self.acked if key[0] == self.generation} - held
        if lost:
            self.failures.append(f"{len(lost)} acknowledged records are not in the last topic, first {min(lost)}")

    def held(self):
        """What the topic holds, read by a client of its own."""
        time.sleep(1)
        consumer = Consumer(settings.client(self.bootstrap, group_id=f"{NAME}-check", enable_partition_eof=True))
        consumer.assign([TopicPartition(NAME, p, 0) for p in range(PARTITIONS)])
        got, ended, give_up = set(), set(), time.monotonic() + PATIENCE
        while len(ended) < PARTITIONS and time.monotonic() < give_up:
            message = consumer.poll(1)
            if message is not None and message.error():
                ended.add(message.partition())
            elif message is not None:
                got.add(tuple(map(int, message.value().split())))
        consumer.close()
        return got
