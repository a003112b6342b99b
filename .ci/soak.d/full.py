"""One broker's disk is filled to the last block, kept so for 15 s while there is something to flush, and emptied again."""

import time
from collections import Counter

SECONDS = 15
# Enough that the ring of the full broker, 64 MiB, gets full too.
RATE = 8_000_000
RECOVERY = 30


def full(disks, cluster, bulk, number):
    """Returns what went wrong, and figures for the summary."""
    errors, figures = Counter(), {}
    begin, told, used = time.monotonic(), None, 0
    bulk.start(RATE)
    while time.monotonic() - begin < SECONDS:
        disks.fill(number)
        if told is None and cluster.metric(number, "disk_full"):
            told = time.monotonic() - begin
            figures["told full after s"] = round(told, 1)
        used = max(used, cluster.metric(number, "wal_ring_used_bytes") or 0)
        time.sleep(0.05)
    bulk.stop()
    figures["ring used MiB"] = round(used / (1 << 20))
    if told is None:
        errors["disk_full stayed 0"] += 1
    else:
        status, page = cluster.page(number, "/health/ready")
        if status != 200 or "disk: full" not in page:
            errors[f"/health/ready answers {status} and {page.strip()!r}, not 200 and disk: full"] += 1
    disks.release(number)
    return errors, figures


def until_well(cluster, number):
    """Seconds until the broker has found the room, or None."""
    begin = time.monotonic()
    while cluster.metric(number, "disk_full") != 0:
        if time.monotonic() - begin > RECOVERY:
            return None
        time.sleep(0.1)
    return time.monotonic() - begin
