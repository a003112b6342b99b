"""Kafka's requests as bytes, with the standard library only."""

import struct
import zlib

(PRODUCE, FETCH, LIST_OFFSETS, METADATA, OFFSET_COMMIT, OFFSET_FETCH, FIND_COORDINATOR, JOIN_GROUP) = (0, 1, 2, 3, 8, 9, 10, 11)
(LEAVE_GROUP, SYNC_GROUP, DESCRIBE_GROUPS, LIST_GROUPS, API_VERSIONS, CREATE_TOPICS, DELETE_TOPICS) = (13, 14, 15, 16, 18, 19, 20)
(OFFSET_FOR_EPOCH, DESCRIBE_CONFIGS, CREATE_PARTITIONS, DELETE_GROUPS, ELECT_LEADERS, ALTER_CONFIGS) = (23, 32, 37, 42, 43, 44)


def i8(n):
    return struct.pack(">b", n)


def i16(n):
    return struct.pack(">h", n)


def i32(n):
    return struct.pack(">i", n)


def i64(n):
    return struct.pack(">q", n)


def text(value):
    return i16(-1) if value is None else i16(len(value)) + value.encode()


def data(value):
    return i32(-1) if value is None else i32(len(value)) + value


def array(items):
    """Of items that are encoded already."""
    if items is None:
        return i32(-1)
    items = list(items)
    return i32(len(items)) + b"".join(items)


def frame(api, version, body):
    """With a header of version 1: for versions below the API's flexible ones."""
    head = struct.pack(">hhi", api, version, 1) + text("turns")
    return i32(len(head) + len(body)) + head + body


def read(connection):
    """The body of the next answer, or None if the broker has closed the connection."""
    try:
        length = receive(connection, 4)
        return receive(connection, struct.unpack(">i", length)[0]) if length else None
    except ConnectionError:
        return None


def receive(connection, count):
    taken = bytearray()
    while len(taken) < count:
        more = connection.recv(min(count - len(taken), 1 << 20))
        if not more:
            return None
        taken += more
    return bytes(taken)


def ask(broker, request, times=1):
    """Sends a request, again and again on one connection, and reads the answers. Returns the last one."""
    answer = None
    with broker.connect() as connection:
        for _ in range(times):
            connection.sendall(request)
            answer = read(connection)
    return answer


def varint(n):
    n, out = n << 1 if n >= 0 else (-n << 1) - 1, b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def crc_row(n):
    for _ in range(8):
        n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
    return n


CRC = [crc_row(n) for n in range(256)]


def batch(values, first_ms, compress=False):
    """A batch of format 2, one record per value, each a millisecond later than the one before."""
    records = b""
    for at, value in enumerate(values):
        record = b"\0" + varint(at) + varint(at) + varint(-1) + varint(len(value)) + value + b"\0"
        records += varint(len(record)) + record
    if compress:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        records = packer.compress(records) + packer.flush()
    last = len(values) - 1
    rest = struct.pack(">hiqqqhii", int(compress), last, first_ms, first_ms + last, -1, -1, -1, len(values)) + records
    return struct.pack(">qiib", 0, 9 + len(rest), 0, 2) + struct.pack(">I", crc32c(rest)) + rest


def produce(topics, acks=-1):
    """Topics: names, each with pairs of partition and records."""
    rows = (text(name) + array(i32(p) + data(records) for p, records in partitions) for name, partitions in topics)
    return frame(PRODUCE, 7, text(None) + i16(acks) + i32(30_000) + array(rows))


def fetch(topics, max_bytes=50 << 20, wait_ms=0, each=1 << 20):
    """Topics: names, each with numbers of partitions."""
    rows = (text(name) + array(i32(p) + i64(0) + i32(each) for p in partitions) for name, partitions in topics)
    return frame(FETCH, 4, i32(-1) + i32(wait_ms) + i32(1) + i32(max_bytes) + i8(0) + array(rows))


def list_offsets(topics):
    """Topics: names, each with pairs of partition and timestamp."""
    rows = (text(name) + array(i32(p) + i64(at) for p, at in partitions) for name, partitions in topics)
    return frame(LIST_OFFSETS, 2, i32(-1) + i8(0) + array(rows))


def metadata(names):
    return frame(METADATA, 4, array(None if names is None else map(text, names)) + i8(0))


def create_topics(names, partitions, timeout_ms=60_000):
    topic = i32(partitions) + i16(1) + array([]) + array([])
    return frame(CREATE_TOPICS, 2, array(text(name) + topic for name in names) + i32(timeout_ms) + i8(0))


def delete_topics(names, timeout_ms=60_000):
    return frame(DELETE_TOPICS, 1, array(map(text, names)) + i32(timeout_ms))


def find_coordinator(group):
    return frame(FIND_COORDINATOR, 0, text(group))


def commit(group, topic, partitions):
    rows = array(i32(p) + i64(p) + text("") for p in partitions)
    return frame(OFFSET_COMMIT, 2, text(group) + i32(-1) + text("") + i64(-1) + array([text(topic) + rows]))


def configs_of_topics(names):
    rows = (i8(2) + text(name) + array(None) for name in names)
    return frame(DESCRIBE_CONFIGS, 3, array(rows) + i8(1) + i8(1))
