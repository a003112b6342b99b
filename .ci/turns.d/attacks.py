"""Requests that were once more than a core could bear, each with a broker as its argument.

Each returns a note for the table."""

import random
import socket
import time

import kafka
from kafka import array, ask, data, frame, i8, i16, i32, i64, text

# The most elements that a request may have, and some less, since each topic counts beside its partitions.
ELEMENTS = 262_144 - 8
TOPICS, EACH = 5_000, 4
OLD, OLD_PARTITIONS, OLD_MIB = "old", 12, 20
LARGE, LARGE_PARTITIONS = "large", 10_000
GROUP = "g"
BOMB, BOMB_BYTES = "bomb", 60 << 20


def names(count=TOPICS):
    return [f"t{number:04}" for number in range(count)]


def fill(broker):
    """Topics and records that the attacks need."""
    at = int(time.time() * 1000)
    for first in range(0, TOPICS, 500):
        must(ask(broker, kafka.create_topics(names()[first : first + 500], EACH)))
    must(ask(broker, kafka.create_topics([OLD], OLD_PARTITIONS)))
    must(ask(broker, kafka.create_topics([BOMB], 30)))
    records = kafka.batch([b"x" * 900_000], at)
    for _ in range(OLD_MIB):
        must(ask(broker, kafka.produce([(OLD, [(p, records) for p in range(OLD_PARTITIONS)])])))
    bomb = kafka.batch([b"a", bytes(BOMB_BYTES), b"z"], at, compress=True)
    must(ask(broker, kafka.produce([(BOMB, [(p, bomb)]) for p in range(30)])))
    must(ask(broker, kafka.find_coordinator(GROUP)))
    return at


def must(answer):
    if answer is None:
        raise SystemExit("turns: the broker closed a connection while the topics were made; see its log")


def outcome(answer):
    return "refused" if answer is None else f"{len(answer) / 1e6:.1f} MB in the answer"


def nothing(broker):
    time.sleep(5)
    return "5 s"


def bomb(broker):
    """The last record of each batch: behind all that unfolds."""
    last = kafka.list_offsets([(BOMB, [(p, broker.filled_ms + 2) for p in range(30)])])
    return outcome(ask(broker, last, 3))


def bomb_again(broker):
    records = kafka.batch([b"a", bytes(BOMB_BYTES), b"z"], broker.filled_ms, compress=True)
    return outcome(ask(broker, kafka.produce([(BOMB, [(p, records) for p in range(30)])])))


def all_metadata(broker):
    return outcome(ask(broker, kafka.metadata(None), 20))


def all_configs(broker):
    return outcome(ask(broker, kafka.configs_of_topics(names()), 3))


def all_partitions(broker):
    return outcome(ask(broker, kafka.fetch([(name, range(EACH)) for name in names()]), 20))


def hot_fetch(broker):
    """The largest answer with records."""
    return outcome(ask(broker, kafka.fetch([(OLD, range(OLD_PARTITIONS))], max_bytes=2**31 - 1, each=2**31 - 1), 5))


def elements(api, version, body):
    """A request with as many elements as are accepted. The body gets the names of half of them."""
    return lambda broker: outcome(ask(broker, frame(api, version, body())))


def many(count=ELEMENTS):
    return (text(f"{number:x}") for number in range(count))


def in_one_topic(row):
    return lambda: array([text(OLD) + array(row(p) for p in range(ELEMENTS))])


LISTED = in_one_topic(lambda p: i32(p) + i64(-1))
FETCHED = in_one_topic(lambda p: i32(p) + i64(0) + i32(1))
COMMITS = in_one_topic(lambda p: i32(p) + i64(1) + text(""))
NUMBERS = in_one_topic(i32)
EPOCHS = in_one_topic(lambda p: i32(p) + i32(-1) + i32(0))
RECORDS = in_one_topic(lambda p: i32(p) + data(None))

MANY = {
    "Metadata": elements(kafka.METADATA, 4, lambda: array(many()) + i8(0)),
    "ListOffsets": elements(kafka.LIST_OFFSETS, 2, lambda: i32(-1) + i8(0) + LISTED()),
    "Fetch": elements(kafka.FETCH, 4, lambda: i32(-1) + i32(0) + i32(0) + i32(1 << 20) + i8(0) + FETCHED()),
    "Produce": elements(kafka.PRODUCE, 7, lambda: text(None) + i16(-1) + i32(5_000) + RECORDS()),
    "OffsetCommit": elements(kafka.OFFSET_COMMIT, 2, lambda: text("h") + i32(-1) + text("") + i64(-1) + COMMITS()),
    "OffsetFetch": elements(kafka.OFFSET_FETCH, 5, lambda: text(GROUP) + NUMBERS()),
    "OffsetForLeaderEpoch": elements(kafka.OFFSET_FOR_EPOCH, 2, EPOCHS),
    "ElectLeaders": elements(kafka.ELECT_LEADERS, 1, lambda: i8(0) + NUMBERS() + i32(5_000)),
    "JoinGroup": elements(kafka.JOIN_GROUP, 0, lambda: text("p") + i32(30_000) + text("") + text("consumer") + array(name + data(b"") for name in many())),
    "SyncGroup": elements(kafka.SYNC_GROUP, 0, lambda: text("p") + i32(1) + text("") + array(name + data(b"") for name in many())),
    "LeaveGroup": elements(kafka.LEAVE_GROUP, 3, lambda: text("p") + array(name + text(None) for name in many())),
    "DescribeGroups": elements(kafka.DESCRIBE_GROUPS, 0, lambda: array(many())),
    "DeleteGroups": elements(kafka.DELETE_GROUPS, 0, lambda: array(many())),
    "DescribeConfigs": elements(kafka.DESCRIBE_CONFIGS, 1, lambda: array(i8(2) + name + array(None) for name in many()) + i8(0)),
    "IncrementalAlterConfigs": elements(kafka.ALTER_CONFIGS, 0, lambda: array(i8(2) + name + array([]) for name in many()) + i8(0)),
    "CreateTopics": elements(kafka.CREATE_TOPICS, 2, lambda: array([text("made") + i32(-1) + i16(-1) + array(i32(p) + array([i32(1)]) for p in range(ELEMENTS // 2)) + array([])]) + i32(5_000) + i8(1)),
    "CreatePartitions": elements(kafka.CREATE_PARTITIONS, 0, lambda: array(name + i32(2) + array(None) for name in many()) + i32(5_000) + i8(0)),
    "DeleteTopics": elements(kafka.DELETE_TOPICS, 1, lambda: array(many()) + i32(5_000)),
}


def long_names(broker):
    """As many bytes as a frame may have, in names that must be checked."""
    return outcome(ask(broker, frame(kafka.METADATA, 4, array(text("é" * 16_000) for _ in range(3_100)) + i8(0))))


def mutated(broker):
    """Valid frames with a few bytes changed."""
    draw = random.Random(7)
    valid = [kafka.metadata(names(20)), kafka.fetch([(OLD, [0])]), kafka.list_offsets([(OLD, [(0, -1)])]), kafka.configs_of_topics(names(3))]
    valid += [kafka.commit("m", OLD, range(5)), kafka.produce([(OLD, [(0, kafka.batch([b"v"], broker.filled_ms))])])]
    sent, until = 0, time.monotonic() + 10
    while time.monotonic() < until:
        with broker.connect() as connection:
            connection.settimeout(0.2)
            for _ in range(20):
                changed = bytearray(draw.choice(valid))
                for _ in range(draw.randrange(1, 5)):
                    changed[draw.randrange(4, len(changed))] = draw.randrange(256)
                try:
                    connection.sendall(changed)
                    sent += 1
                    if kafka.read(connection) is None:
                        break
                except OSError:
                    break
    return f"{sent} frames"


def deaf(broker):
    """300 clients that ask for old records and read nothing."""
    request = kafka.fetch([(OLD, range(OLD_PARTITIONS))], each=16 << 20) * 100
    crowd = []
    for _ in range(300):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(5)
        client.connect(broker.kafka)
        try:
            client.sendall(request)
        except OSError:
            pass
        crowd.append(client)
    time.sleep(5)
    for client in crowd:
        client.close()
    time.sleep(3)
    return "300 clients"


def unfinished(broker):
    """40 clients, each with a frame that lacks its last bytes."""
    crowd, piece = [broker.connect() for _ in range(40)], bytes(1 << 20)
    for client in crowd:
        client.setblocking(False)
        client.send(i32(95 << 20) + frame(kafka.METADATA, 4, b"")[4:])
    sent, until = 0, time.monotonic() + 8
    while time.monotonic() < until:
        for client in crowd:
            try:
                sent += client.send(piece)
            except OSError:
                pass
        time.sleep(0.001)
    for client in crowd:
        client.close()
    time.sleep(1)
    return f"{sent >> 20} MiB taken"


def committed(broker):
    """Makes the group that the next ones are about. Only partitions that exist can have offsets."""
    each = [text(name) + array(i32(p) + i64(p) + text("") for p in range(EACH)) for name in names()]
    large = text(LARGE) + array(i32(p) + i64(p) + text("") for p in range(LARGE_PARTITIONS))
    must(ask(broker, frame(kafka.OFFSET_COMMIT, 2, text(GROUP) + i32(-1) + text("") + i64(-1) + array([*each, large]))))
    return f"{TOPICS * EACH + LARGE_PARTITIONS:,} offsets"


def fetched_offsets(broker):
    return outcome(ask(broker, frame(kafka.OFFSET_FETCH, 5, text(GROUP) + array(None)), 5))


def described_group(broker):
    return outcome(ask(broker, frame(kafka.DESCRIBE_GROUPS, 0, array([text(GROUP)])), 5))


def deleted_group(broker):
    return outcome(ask(broker, frame(kafka.DELETE_GROUPS, 0, array([text(GROUP)]))))


def created(broker):
    return outcome(ask(broker, kafka.create_topics([LARGE], LARGE_PARTITIONS)))


def written(broker):
    """So that a stop has something to flush for each partition."""
    records = kafka.batch([b"x" * 4_000], int(time.time() * 1000))
    for first in range(0, TOPICS, 100):
        rows = [(name, [(p, records) for p in range(EACH)]) for name in names()[first : first + 100]]
        must(ask(broker, kafka.produce(rows)))
    return f"{TOPICS * EACH:,} partitions"


def deleted(broker):
    answer = ask(broker, kafka.delete_topics([LARGE]))
    time.sleep(3)
    return outcome(answer)


ATTACKS = {
    "at rest": nothing,
    f"{LARGE_PARTITIONS:,} partitions created at once": created,
    "zip bomb, ListOffsets of 30 last records": bomb,
    "zip bomb, produced to 30 partitions": bomb_again,
    f"Metadata of all {TOPICS * EACH:,} partitions": all_metadata,
    f"DescribeConfigs of {TOPICS:,} topics": all_configs,
    f"Fetch of {TOPICS * EACH:,} partitions": all_partitions,
    "Fetch of as much as an answer may have": hot_fetch,
    **{f"262,136 elements in {api}": attack for api, attack in MANY.items()},
    "Metadata with 95 MB of names": long_names,
    "mutated frames": mutated,
    "slow clients with unread fetches": deaf,
    "40 unfinished frames of 95 MB": unfinished,
    "a group commits many offsets": committed,
    "OffsetFetch of all of them": fetched_offsets,
    "DescribeGroups of the group": described_group,
    "DeleteGroups of the group": deleted_group,
    f"{LARGE_PARTITIONS:,} partitions deleted at once": deleted,
    "a record of 4 KB in each partition": written,
}
