"""Produce and Fetch requests as bytes, for clients that do not behave."""

import socket
import struct
import time

import crc32c


def frame(key, version, body):
    head = struct.pack(">hhih", key, version, 1, 4) + b"soak"
    return struct.pack(">i", len(head) + len(body)) + head + body


def string(text):
    return struct.pack(">h", len(text)) + text.encode()


def varint(n):
    n, out = n << 1, b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def batch(value):
    """One record in a batch of format 2."""
    record = b"\0\0\0\x01" + varint(len(value)) + value + b"\0"
    record = varint(len(record)) + record
    now = int(time.time() * 1000)
    rest = struct.pack(">hiqqqhii", 0, 0, now, now, -1, -1, -1, 1) + record
    return struct.pack(">qiib", 0, 4 + 1 + 4 + len(rest), 0, 2) + struct.pack(">I", crc32c.crc32c(rest)) + rest


def produce(topic, partition, records, timeout_ms=10_000):
    """Version 7, acks=all."""
    body = struct.pack(">hhi", -1, -1, timeout_ms) + struct.pack(">i", 1) + string(topic)
    return frame(0, 7, body + struct.pack(">iii", 1, partition, len(records)) + records)


def fetch(topic, partition, offset, max_bytes, wait_ms=500, min_bytes=1):
    """Version 4."""
    body = struct.pack(">iiiib", -1, wait_ms, min_bytes, max_bytes, 0) + struct.pack(">i", 1) + string(topic)
    return frame(1, 4, body + struct.pack(">iiqi", 1, partition, offset, max_bytes))


def connect(address):
    return socket.create_connection(address, timeout=5)


def close(connection, reset):
    """With reset the other side gets RST instead of FIN."""
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
