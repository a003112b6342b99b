"""Topics of the soak, and who leads them."""

import time

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

MIB = 1 << 20


class Topics:
    def __init__(self, bootstrap):
        self.admin = AdminClient({"bootstrap.servers": bootstrap, "reconnect.backoff.max.ms": 200, "error_cb": lambda e: None})

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
        parts = ((name, p) for name, topic in topics.items() for p in topic.partitions.values())
        return [f"{name}-{p.id}" for name, p in parts if len(p.isrs) < len(p.replicas)]

    def until_in_sync(self, patience):
        """Seconds until all replicas are in sync, or None, and those that are not."""
        begin = time.monotonic()
        while lagging := self.lagging():
            if time.monotonic() - begin > patience:
                return None, lagging
            time.sleep(0.25)
        return time.monotonic() - begin, []
