"""Topics of the soak, and who leads them."""

import os
import time

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

import settings

MIB = 1 << 20


class Topics:
    def __init__(self, bootstrap):
        self.admin = AdminClient(settings.client(bootstrap))

    def create(self, name, partitions, keep_mib=None):
        """With three replicas. keep_mib is what retention leaves of each partition."""
        config = {"retention.bytes": str(keep_mib * MIB), "segment.bytes": str(16 * MIB)} if keep_mib else {}
        self.admin.create_topics([NewTopic(name, partitions, 3, config=config)], operation_timeout=20)[name].result(30)

    def delete(self, name):
        self.admin.delete_topics([name], operation_timeout=20)[name].result(30)

    def leaders(self, topic):
        """Partition to (host, port) of its leader."""
        metadata = self.admin.list_topics(topic, timeout=10)
        brokers = {b.id: (b.host, b.port) for b in metadata.brokers.values()}
        return {p.id: brokers[p.leader] for p in metadata.topics[topic].partitions.values() if p.leader in brokers}

    def lagging(self):
        """Partitions that have not all of their replicas in sync."""
        try:
            topics = self.admin.list_topics(timeout=10).topics
        except KafkaException as e:
            return [e.args[0].name()]
        # An error comes without partitions, so nothing would seem to lag.
        unknown = [f"{name}: {topic.error or 'no partitions'}" for name, topic in topics.items() if topic.error or not topic.partitions]
        parts = ((name, p) for name, topic in topics.items() for p in topic.partitions.values())
        return unknown + [f"{name}-{p.id}" for name, p in parts if p.error or len(p.isrs) < len(p.replicas)]

    def until_in_sync(self, patience):
        """Seconds until all replicas are in sync, or None, and those that are not."""
        begin = time.monotonic()
        while lagging := self.lagging():
            if time.monotonic() - begin > patience:
                return None, lagging
            time.sleep(0.25)
        return time.monotonic() - begin, []


def fill(bootstrap, topic, partitions, mib):
    """So many MiB of records for each partition."""
    producer = Producer(settings.producer(bootstrap, batch_size=1_000_000, linger_ms=5, queue_buffering_max_kbytes=32_768))
    payload = os.urandom(100_000)
    for n in range(mib * partitions * 10):
        while True:
            try:
                producer.produce(topic, payload, partition=n % partitions)
                break
            except BufferError:
                producer.poll(0.1)
    if left := producer.flush(60):
        raise SystemExit(f"soak: {left} records of the topic {topic} were not acknowledged within 60 s")
