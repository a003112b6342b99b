"""kafka-python against a broker: `write` fills it, `verify` reads everything back after a restart."""

from checks import BASE_MS, CODECS, Checks, arguments, lines, record, same
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec
from kafka.structs import OffsetAndMetadata

BOOTSTRAP, PHASE, STATE = arguments()
LINES = lines(STATE)
WAIT_S = 30
checks = Checks("kafka-python")
admin = KafkaAdminClient(bootstrap_servers=BOOTSTRAP)


def create(topic, partitions=1, **configs):
    admin.create_topics({topic: {"num_partitions": partitions, "replication_factor": 1, "configs": configs}})


def produce(topic, codec, count=len(LINES), start=0):
    p = KafkaProducer(bootstrap_servers=BOOTSTRAP, compression_type=None if codec == "none" else codec, linger_ms=5)
    sent = []
    for i in range(start, start + count):
        key, value, headers = record(i, LINES[i % len(LINES)])
        sent.append(p.send(topic, value, key, headers, 0, BASE_MS + i * 1000))
    same([f.get(WAIT_S).offset for f in sent], list(range(start, start + count)), "offset")
    p.close()


def read(topic, count, offset=0):
    c = KafkaConsumer(bootstrap_servers=BOOTSTRAP, group_id=None, consumer_timeout_ms=WAIT_S * 1000)
    part = TopicPartition(topic, 0)
    c.assign([part])
    c.seek(part, offset)
    same(c.end_offsets([part])[part], offset + count, "end offset")
    out = []
    while len(out) < count:
        out.append(next(c))
    c.close()
    same([m.offset for m in out], list(range(offset, offset + count)), "offset")
    return out


def whole(topic, count=len(LINES)):
    got = [(m.key, m.value, list(m.headers), m.timestamp) for m in read(topic, count)]
    same(got, [(*record(i, LINES[i % len(LINES)]), BASE_MS + i * 1000) for i in range(count)], "record")


def round_trip(codec):
    create(f"kafkapython-{codec}")
    produce(f"kafkapython-{codec}", codec)
    whole(f"kafkapython-{codec}")


def offsets_by_time():
    part = TopicPartition("kafkapython-none", 0)
    same(admin.list_partition_offsets({part: OffsetSpec.LATEST})[part].offset, len(LINES))
    same(admin.list_partition_offsets({part: OffsetSpec.EARLIEST})[part].offset, 0)
    c = KafkaConsumer(bootstrap_servers=BOOTSTRAP, group_id=None)
    found = c.offsets_for_times({part: BASE_MS + 100_000})[part]
    same((found.offset, found.timestamp), (100, BASE_MS + 100_000))
    same(c.offsets_for_times({part: BASE_MS + 10_000_000})[part], None)
    c.close()


def setting(topic, name):
    wanted = ConfigResource(ConfigResourceType.TOPIC, topic)
    found = admin.describe_configs([wanted], config_filter="all")
    return find(found, name)


def find(answer, name):
    """The value of a setting, however this version of the client nests its answer."""
    if isinstance(answer, dict):
        if name in answer:
            found = answer[name]
            return found["value"] if isinstance(found, dict) else found
        answer = list(answer.values())
    for inner in answer if isinstance(answer, (list, tuple)) else []:
        found = find(inner, name)
        if found is not None:
            return found
    return None


def alter():
    create("kafkapython-config", **{"retention.ms": "3600000"})
    same(setting("kafkapython-config", "retention.ms"), "3600000")
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, "kafkapython-config", {"retention.ms": "7200000"})])
    configured()


def configured():
    same(setting("kafkapython-config", "retention.ms"), "7200000")


def partitions(topic):
    return [len(t["partitions"]) for t in admin.describe_topics([topic])]


def grow():
    create("kafkapython-grow", 2)
    admin.create_partitions({"kafkapython-grow": 5})
    same(partitions("kafkapython-grow"), [5])


def delete():
    create("kafkapython-deleted")
    admin.delete_topics(["kafkapython-deleted"])
    gone()


def gone():
    assert "kafkapython-deleted" not in admin.list_topics(), "the deleted topic is still listed"


def cluster():
    found = admin.describe_cluster()
    assert found["cluster_id"] and len(found["brokers"]) == 1, f"{found!r}"


def group_takes(count, want_from):
    """One member takes `count` records, commits behind the last of them, and leaves."""
    c = KafkaConsumer("kafkapython-none", bootstrap_servers=BOOTSTRAP, group_id="kafkapython-group", enable_auto_commit=False,
                      auto_offset_reset="earliest", consumer_timeout_ms=WAIT_S * 1000)
    part = TopicPartition("kafkapython-none", 0)
    got = [next(c).offset for _ in range(count)]
    same(got, list(range(want_from, want_from + count)), "offset")
    c.commit({part: OffsetAndMetadata(want_from + count, "", -1)})
    same(c.committed(part), want_from + count)
    c.close()


def foreign(codec):
    """What kcat wrote, read by this client: the values are the lines of the data set."""
    if f"kcat-{codec}" in admin.list_topics():
        same([m.value for m in read(f"kcat-{codec}", len(LINES))], LINES)


if PHASE == "write":
    checks.run("describe cluster", cluster)
    for codec in CODECS:
        checks.run(f"create, produce, consume: {codec}", round_trip, codec)
    checks.run("list offsets: earliest, latest, by time", offsets_by_time)
    checks.run("describe and alter topic settings", alter)
    checks.run("create partitions", grow)
    checks.run("delete a topic", delete)
    checks.run("group of one member: consume and commit", group_takes, 100, 0)
else:
    for codec in CODECS:
        checks.run(f"the same bytes after a restart: {codec}", whole, f"kafkapython-{codec}")
    checks.run("list offsets after a restart", offsets_by_time)
    checks.run("settings after a restart", configured)
    checks.run("partitions after a restart", lambda: same(partitions("kafkapython-grow"), [5]))
    checks.run("a deleted topic stays deleted", gone)
    checks.run("group continues at its committed offset", group_takes, 50, 100)
    for codec in CODECS:
        checks.run(f"kcat's records: {codec}", foreign, codec)
checks.finish()
