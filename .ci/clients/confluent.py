"""confluent-kafka (librdkafka) against a broker: `write` fills it, `verify` reads everything back after a restart."""

import json

from checks import BASE_MS, CODECS, Checks, arguments, lines, record, same
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

BOOTSTRAP, PHASE, STATE = arguments()
LINES = lines(STATE)
WAIT_S = 30
checks = Checks("confluent-kafka")
admin = AdminClient({"bootstrap.servers": BOOTSTRAP})


def done(futures):
    return {k: f.result(WAIT_S) for k, f in futures.items()}


def create(topic, partitions=1, **config):
    done(admin.create_topics([NewTopic(topic, partitions, 1, config=config)], operation_timeout=WAIT_S))


def consumer(**extra):
    return Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": "confluent-none", "enable.auto.commit": False,
                     "auto.offset.reset": "earliest", **extra})


def read(topic, count, offset=0, partition=0):
    """Exactly the records from `offset` to the end of the partition, which must be `count`."""
    c = consumer(**{"enable.partition.eof": True})
    c.assign([TopicPartition(topic, partition, offset)])
    out = []
    while True:
        m = c.poll(WAIT_S)
        assert m is not None, f"{topic}: nothing for {WAIT_S} s after {len(out)} of {count} records"
        if m.error() and m.error().code() == KafkaError._PARTITION_EOF:
            break
        assert not m.error(), m.error()
        out.append(m)
    c.close()
    same([m.offset() for m in out], list(range(offset, offset + count)), "offset")
    return out


def produce(topic, codec, count=len(LINES), start=0):
    """Sends records `start`.. of the data set and waits for every answer; they must lie one behind the other."""
    offsets = []

    def answered(error, message):
        offsets.append(error.str() if error else message.offset())

    p = Producer({"bootstrap.servers": BOOTSTRAP, "enable.idempotence": True, "compression.type": codec, "linger.ms": 5})
    for i in range(start, start + count):
        key, value, headers = record(i, LINES[i % len(LINES)])
        p.produce(topic, value, key, 0, on_delivery=answered, timestamp=BASE_MS + i * 1000, headers=headers)
    assert p.flush(WAIT_S) == 0, "not everything was answered"
    same(offsets, list(range(start, start + count)), "offset")


def whole(topic, count=len(LINES)):
    got = [(m.key(), m.value(), m.headers() or [], m.timestamp()[1]) for m in read(topic, count)]
    same(got, [(*record(i, LINES[i % len(LINES)]), BASE_MS + i * 1000) for i in range(count)], "record")


def partitions(topic):
    topics = admin.list_topics(timeout=WAIT_S).topics
    if topic not in topics:
        return None
    assert not topics[topic].error, topics[topic].error
    return len(topics[topic].partitions)


def round_trip(codec):
    create(f"confluent-{codec}")
    produce(f"confluent-{codec}", codec)
    whole(f"confluent-{codec}")


def tombstone():
    create("confluent-null")
    p = Producer({"bootstrap.servers": BOOTSTRAP})
    p.produce("confluent-null", None, b"gone", 0)
    p.produce("confluent-null", b"", b"", 0)
    assert p.flush(WAIT_S) == 0
    same([(m.key(), m.value()) for m in read("confluent-null", 2)], [(b"gone", None), (b"", b"")])


def exists_already():
    try:
        create("confluent-none")
    except KafkaException as e:
        same(e.args[0].code(), KafkaError.TOPIC_ALREADY_EXISTS)
    else:
        raise AssertionError("a topic was created twice")


def keyed():
    """By the client's partitioner over three partitions: every record once, order kept in each."""
    create("confluent-keyed", 3)
    p = Producer({"bootstrap.servers": BOOTSTRAP, "enable.idempotence": True, "linger.ms": 1})
    placed = {0: [], 1: [], 2: []}

    def answered(error, message):
        assert not error, error
        placed[message.partition()].append((message.offset(), message.value()))

    for i in range(900):
        p.produce("confluent-keyed", b"%d" % i, b"%d" % (i % 31), on_delivery=answered)
    assert p.flush(WAIT_S) == 0
    same(sum(map(len, placed.values())), 900)
    for partition, want in placed.items():
        same([(m.offset(), m.value()) for m in read("confluent-keyed", len(want), 0, partition)], want)


def large():
    """One record of 3 MiB, beyond the default of max.message.bytes and of one fetch: refused here, taken there."""
    body = bytes(i * 7 % 251 for i in range(3 << 20))
    create("confluent-large", **{"max.message.bytes": str(4 << 20)})
    codes = []
    p = Producer({"bootstrap.servers": BOOTSTRAP, "message.max.bytes": 8 << 20})
    p.produce("confluent-large", body, partition=0, on_delivery=lambda e, m: codes.append(e and e.code()))
    p.produce("confluent-none", body, partition=0, on_delivery=lambda e, m: codes.append(e and e.code()))
    assert p.flush(WAIT_S) == 0
    same(sorted(codes, key=str), sorted([None, KafkaError.MSG_SIZE_TOO_LARGE], key=str))
    assert read("confluent-large", 1)[0].value() == body


def offsets_by_time():
    def at(spec):
        part = TopicPartition("confluent-none", 0)
        return admin.list_offsets({part: spec})[part].result(WAIT_S).offset

    same(at(OffsetSpec.earliest()), 0)
    same(at(OffsetSpec.latest()), len(LINES))
    same(at(OffsetSpec.for_timestamp(BASE_MS + 100_000)), 100)
    same(at(OffsetSpec.for_timestamp(BASE_MS + 100_001)), 101)
    same(at(OffsetSpec.for_timestamp(BASE_MS - 1)), 0)
    same(at(OffsetSpec.for_timestamp(BASE_MS + 10_000_000)), -1)


def watermarks():
    c = consumer()
    same(c.get_watermark_offsets(TopicPartition("confluent-none", 0), WAIT_S), (0, len(LINES)))
    c.close()


def config(topic, name):
    resource = ConfigResource(ResourceType.TOPIC, topic)
    return admin.describe_configs([resource])[resource].result(WAIT_S)[name]


def alter():
    create("confluent-config", **{"retention.ms": "3600000"})
    same(config("confluent-config", "retention.ms").value, "3600000")
    entry = ConfigEntry("retention.ms", "7200000", incremental_operation=AlterConfigOpType.SET)
    done(admin.incremental_alter_configs([ConfigResource(ResourceType.TOPIC, "confluent-config", incremental_configs=[entry])]))
    configured()
    entry = ConfigEntry("no.such.setting", "1", incremental_operation=AlterConfigOpType.SET)
    try:
        done(admin.incremental_alter_configs([ConfigResource(ResourceType.TOPIC, "confluent-config", incremental_configs=[entry])]))
    except KafkaException as e:
        same(e.args[0].code(), KafkaError.INVALID_CONFIG)
    else:
        raise AssertionError("a setting that does not exist was accepted")


def configured():
    same(config("confluent-config", "retention.ms").value, "7200000")
    same(config("confluent-config", "retention.ms").is_default, False)
    same(config("confluent-config", "segment.bytes").is_default, True)


def broker_config():
    broker = next(iter(admin.list_topics(timeout=WAIT_S).brokers))
    resource = ConfigResource(ResourceType.BROKER, str(broker))
    assert admin.describe_configs([resource])[resource].result(WAIT_S), "a broker without a single setting"


def grow():
    create("confluent-grow", 2)
    done(admin.create_partitions([NewPartitions("confluent-grow", 5)], operation_timeout=WAIT_S))
    same(partitions("confluent-grow"), 5)
    p = Producer({"bootstrap.servers": BOOTSTRAP})
    errors = []
    p.produce("confluent-grow", b"in the new one", partition=4, on_delivery=lambda e, m: errors.append(e))
    assert p.flush(WAIT_S) == 0
    same(errors, [None])
    try:
        done(admin.create_partitions([NewPartitions("confluent-grow", 3)], operation_timeout=WAIT_S))
    except KafkaException as e:
        same(e.args[0].code(), KafkaError.INVALID_PARTITIONS)
    else:
        raise AssertionError("the number of partitions was lowered")


def delete():
    create("confluent-deleted", 2)
    produce("confluent-deleted", "none", 10)
    done(admin.delete_topics(["confluent-deleted"], operation_timeout=WAIT_S))
    same(partitions("confluent-deleted"), None)


def born_again():
    """A topic of an earlier name starts empty."""
    create("confluent-reborn")
    produce("confluent-reborn", "none", 10)
    done(admin.delete_topics(["confluent-reborn"], operation_timeout=WAIT_S))
    create("confluent-reborn")
    produce("confluent-reborn", "zstd", 5)
    whole("confluent-reborn", 5)


def cluster():
    found = admin.describe_cluster().result(WAIT_S)
    assert found.cluster_id and len(found.nodes) == 1, f"cluster {found.cluster_id!r}, nodes {found.nodes!r}"
    assert found.controller is not None and found.controller.id == found.nodes[0].id, f"controller {found.controller!r}"


def group_takes(count, want_from):
    """One member takes `count` records, commits behind the last of them, and leaves."""
    c = consumer(**{"group.id": "confluent-group"})
    c.subscribe(["confluent-none"])
    got = []
    while len(got) < count:
        m = c.poll(WAIT_S)
        assert m is not None, f"nothing for {WAIT_S} s after {len(got)} records"
        assert not m.error(), m.error()
        got.append(m)
    same([m.offset() for m in got], list(range(want_from, want_from + count)), "offset")
    c.commit(message=got[-1], asynchronous=False)
    committed(c, want_from + count)
    c.close()


def committed(c, offset):
    same(c.committed([TopicPartition("confluent-none", 0)], WAIT_S)[0].offset, offset)


def still_committed():
    c = consumer(**{"group.id": "confluent-group"})
    committed(c, 100)
    c.close()


def auto_created():
    p = Producer({"bootstrap.servers": BOOTSTRAP})
    errors = []
    p.produce("confluent-auto", b"made by its first record", on_delivery=lambda e, m: errors.append(e))
    assert p.flush(WAIT_S) == 0
    same(errors, [None])


def others():
    """What any client wrote, read by this one: the values are the lines of the data set."""
    for topic in sorted(t for t in admin.list_topics(timeout=WAIT_S).topics if t.endswith(tuple("-" + c for c in CODECS))):
        count = len(LINES) + (5 if topic.startswith("confluent-") else 0)
        same([m.value() for m in read(topic, count)], [LINES[i % len(LINES)] for i in range(count)], topic)


if PHASE == "write":
    checks.run("describe cluster", cluster)
    for codec in CODECS:
        checks.run(f"create, produce, consume: {codec}", round_trip, codec)
    checks.run("null and empty values", tombstone)
    checks.run("create a topic that exists", exists_already)
    checks.run("keys over three partitions", keyed)
    checks.run("a record of 3 MiB, and max.message.bytes", large)
    checks.run("list offsets: earliest, latest, by time", offsets_by_time)
    checks.run("watermarks", watermarks)
    checks.run("describe and alter topic settings", alter)
    checks.run("describe broker settings", broker_config)
    checks.run("create partitions", grow)
    checks.run("delete a topic", delete)
    checks.run("delete a topic and create it again", born_again)
    checks.run("auto-creation by the first record", auto_created)
    checks.run("group of one member: consume and commit", group_takes, 100, 0)
else:
    for codec in CODECS:
        checks.run(f"the same bytes after a restart: {codec}", whole, f"confluent-{codec}")
    checks.run("list offsets after a restart", offsets_by_time)
    checks.run("settings after a restart", configured)
    checks.run("partitions after a restart", lambda: same(partitions("confluent-grow"), 5))
    checks.run("a deleted topic stays deleted", lambda: same(partitions("confluent-deleted"), None))
    checks.run("a recreated topic after a restart", whole, "confluent-reborn", 5)
    checks.run("committed offset after a restart", still_committed)
    checks.run("group continues at its committed offset", group_takes, 50, 100)
    for codec in CODECS:
        checks.run(f"produce after the old end: {codec}", produce, f"confluent-{codec}", codec, 5, len(LINES))
    checks.run("every client's topics, byte for byte", others)
checks.finish()
