"""confluent-kafka against a cluster.

cluster.py HOST:PORT NAME BROKERS       creates, alters and describes a topic there
cluster.py --seen PORT NAME…            the topics are seen at the brokers on PORT, PORT + 1 and PORT + 2
cluster.py --fast HOST:PORT PORT        100 writes under metadata.acks=leader are 100 on the fast path
cluster.py --replicated HOST:PORT NAME… creates topics with three partitions of three replicas
cluster.py --in-sync BOOTSTRAP NAME…    waits until all their replicas are in sync
cluster.py --preferred BOOTSTRAP NAME…  waits until each partition's first replica leads
"""

import sys
import time
import urllib.request

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, ConfigEntry, ConfigResource, AlterConfigOpType, NewPartitions, NewTopic

PATIENCE = 30


def admin(address):
    return AdminClient({"bootstrap.servers": address})


def done(futures):
    for future in futures.values():
        future.result(PATIENCE)


def shown(client):
    """The topics that a broker tells now, by name: without those that come with an error, while it may not answer."""
    return {name: t for name, t in client.list_topics(timeout=PATIENCE).topics.items() if not t.error}


def listed(client):
    """All topics by name, of a broker that must be able to tell."""
    topics = client.list_topics(timeout=PATIENCE).topics
    wrong = [(t.topic, t.error) for t in topics.values() if t.error]
    assert not wrong, wrong
    return topics


def set_acks(client, value):
    # librdkafka knows no resource that stands for all brokers.
    for node in ("1", "2", "3"):
        entry = ConfigEntry("metadata.acks", value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.BROKER, node, incremental_configs=[entry])
        done(client.incremental_alter_configs([resource]))


def administer(address, name, brokers):
    client = admin(address)
    done(client.create_topics([NewTopic(name, 3, 1)]))
    topic = listed(client)[name]
    assert len(topic.partitions) == 3, topic.partitions
    assert all(p.leader >= 0 and not p.error for p in topic.partitions.values()), topic.partitions
    assert len(client.list_topics(timeout=PATIENCE).brokers) == brokers
    done(client.create_partitions([NewPartitions(name, 4)]))
    assert len(listed(client)[name].partitions) == 4
    entry = ConfigEntry("retention.ms", "1234567", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[entry])
    done(client.incremental_alter_configs([resource]))
    described = client.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, name)])
    assert list(described.values())[0].result(PATIENCE)["retention.ms"].value == "1234567"
    done(client.create_topics([NewTopic(name + "-gone", 1, 1)]))
    done(client.delete_topics([name + "-gone"]))
    assert name + "-gone" not in listed(client)
    replicated(client, address, name + "-3")
    try:
        done(client.create_topics([NewTopic(name + "-4", 1, brokers + 1)]))
    except Exception as e:
        assert "INVALID_REPLICATION_FACTOR" in str(e), e
    else:
        raise AssertionError(f"replication factor {brokers + 1} was not rejected")
    cluster = client.describe_cluster().result(PATIENCE)
    assert len(cluster.nodes) == brokers and cluster.controller is not None, cluster


def replicated(client, address, name):
    """A topic on every broker: its replicas are in sync, and what acks=all acknowledged is read back."""
    done(client.create_topics([NewTopic(name, 3, 3, config={"min.insync.replicas": "2"})]))
    partitions = listed(client)[name].partitions.values()
    assert all(sorted(p.replicas) == [1, 2, 3] for p in partitions), partitions
    assert len({p.leader for p in partitions}) == 3, "leaders are not spread over the brokers"
    producer = Producer({"bootstrap.servers": address, "acks": "all", "enable.idempotence": True})
    failed = []
    sent = {f"{name} {n}" for n in range(1000)}
    for n, value in enumerate(sorted(sent)):
        producer.produce(name, value, partition=n % 3, on_delivery=lambda error, _: error and failed.append(error))
    assert producer.flush(PATIENCE) == 0 and not failed, failed[:3]
    consumer = Consumer({"bootstrap.servers": address, "group.id": name, "auto.offset.reset": "earliest"})
    consumer.subscribe([name])
    got = []
    deadline = time.monotonic() + PATIENCE
    while len(got) < len(sent):
        assert time.monotonic() < deadline, f"{len(got)} of {len(sent)} records came back"
        got += [m.value().decode() for m in consumer.consume(1000, 0.1)]
    consumer.close()
    assert sorted(got) == sorted(sent)
    # Each broker lists the groups that it coordinates; one that answers with an error fails them all.
    groups = client.list_consumer_groups(request_timeout=PATIENCE).result(PATIENCE)
    assert not groups.errors, groups.errors
    assert name in [group.group_id for group in groups.valid], groups.valid


def seen(port, names):
    """A broker's leased view may be some seconds old; what it says at last must be the same everywhere."""
    deadline = time.monotonic() + PATIENCE
    for at in range(3):
        client = admin(f"127.0.0.1:{port + at}")
        while not set(names) <= set(shown(client)):
            assert time.monotonic() < deadline, f"broker {at + 1} does not see all of {names}"
            time.sleep(0.1)


def total(port, name):
    figures = 0
    for at in range(3):
        page = urllib.request.urlopen(f"http://127.0.0.1:{port + 20 + at}/metrics", timeout=PATIENCE).read().decode()
        figures += sum(float(l.split()[1]) for l in page.splitlines() if l.startswith(f"millrace_{name}{{"))
    return int(figures)


def fast(address, port):
    client = admin(address)
    set_acks(client, "leader")
    names = [f"fast-{n}" for n in range(100)]
    before = total(port, "metadata_wal_writes_total"), total(port, "metadata_raft_fallback_total")
    # The setting is one write; partitions' leaders are reported at quorum.
    done(client.create_topics([NewTopic(name, 1, 1) for name in names]))
    after = total(port, "metadata_wal_writes_total"), total(port, "metadata_raft_fallback_total")
    set_acks(client, "quorum")
    assert (after[0] - before[0], after[1] - before[1]) == (100, 0), (before, after)


def until(address, names, what, is_so):
    """Waits until it is so of every partition of the topics."""
    client = admin(address)
    deadline = time.monotonic() + PATIENCE
    while True:
        topics = shown(client)
        wrong = [name for name in names if name not in topics]
        wrong += [f"{name}-{p.id}" for name in names if name in topics for p in topics[name].partitions.values() if not is_so(p)]
        if not wrong:
            return
        assert time.monotonic() < deadline, f"not {what}: {wrong}"
        time.sleep(0.1)


if sys.argv[1] == "--replicated":
    client, config = admin(sys.argv[2]), {"min.insync.replicas": "2"}
    done(client.create_topics([NewTopic(name, 3, 3, config=config) for name in sys.argv[3:]]))
elif sys.argv[1] == "--in-sync":
    until(sys.argv[2], sys.argv[3:], "in sync", lambda p: len(p.isrs) == 3)
elif sys.argv[1] == "--preferred":
    until(sys.argv[2], sys.argv[3:], "led by the preferred replica", lambda p: p.leader == p.replicas[0])
elif sys.argv[1] == "--seen":
    seen(int(sys.argv[2]), sys.argv[3:])
elif sys.argv[1] == "--fast":
    fast(sys.argv[2], int(sys.argv[3]))
else:
    administer(sys.argv[1], sys.argv[2], int(sys.argv[3]))
