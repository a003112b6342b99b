"""What the soak found: failures as they come, and the summary at the end."""

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Kind:
    """All events of one kind, each with the pause after it."""

    count: int = 0
    failed: int = 0
    skipped: str = ""
    gap: float = 0.0
    back: float = 0.0
    errors: Counter = field(default_factory=Counter)
    notes: dict = field(default_factory=dict)


class Report:
    def __init__(self, canary, logs):
        self.kinds, self.canary, self.logs = {}, canary, logs
        self.timeline = []  # (since, kind), each until the next
        self.failures, self.bad = 0, set()  # bad: events, by when they began
        self.stalls = 0  # limits that were exceeded only because the disk stalled
        self.lock = threading.Lock()

    def kind(self, name):
        return self.kinds.setdefault(name, Kind())

    def begin(self, name):
        with self.lock:
            self.timeline.append((time.monotonic(), name))
            self.kind(name)

    def during(self, moment):
        """When the event began that went on at a moment of the monotonic clock, and its kind."""
        return next((event for event in reversed(self.timeline) if event[0] <= moment), self.timeline[0])

    def at(self, moment):
        return self.during(moment)[1]

    def say(self, text):
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def fail(self, text, begin=None, end=None):
        """Begin and end are when it happened, on the monotonic clock."""
        now = time.monotonic()
        begin, end = begin or now - 1, end or now
        with self.lock:
            self.failures += 1
            event = self.during(begin)
            kind = event[1]
            self.bad.add(event)
            self.kind(kind).failed += 1
        self.say(f"FAIL {kind}: {text} [{self.canary.between(begin, end)}; load {os.getloadavg()[0]:.1f}; logs: {self.logs}]")

    def gap(self, who, begin, end, limit):
        """No acknowledgement from begin to end. Above the limit it is a failure."""
        kind = self.kind(self.at(begin))
        kind.gap = max(kind.gap, end - begin)
        at = time.strftime("%H:%M:%S", time.localtime(time.time() - time.monotonic() + begin))
        self.limit(f"{who} had no acknowledgement for {end - begin:.2f} s from {at}", end - begin, limit, begin, end)

    def limit(self, text, seconds, limit, begin, end):
        """A failure if the seconds are above the limit, which a stall of the disk from begin to end makes longer."""
        if seconds <= limit:
            return
        allowed = limit + self.canary.allowance(begin, end)
        if seconds > allowed:
            self.fail(f"{text}, limit {allowed:.1f} s", begin, end)
            return
        self.stalls += 1
        self.say(f"     {text}, limit {allowed:.1f} s instead of {limit:.1f} s, because the disk stalled [{self.canary.between(begin, end)}]")

    def partition_gap(self, partition, begin, end):
        """One partition of a bystander's had no acknowledgement. As long as the others have some, it is a figure only."""
        self.note_max(self.at(begin), "partition gap s", round(end - begin, 1))
        if end - begin > 3:
            self.say(f"     {partition}: no acknowledgement for {end - begin:.1f} s")

    def error(self, name, count=1, moment=None):
        with self.lock:
            self.kind(self.at(moment or time.monotonic())).errors[name] += count

    def back(self, name, seconds):
        kind = self.kind(name)
        kind.back = max(kind.back, seconds)

    def note_max(self, name, what, value):
        """A figure of which the summary shows the highest."""
        notes = self.kind(name).notes
        notes[what] = max(notes.get(what, value), value)

    def skip(self, name, why):
        self.kind(name).skipped = why

    def summary(self):
        print(f"\n{'event':<10} {'count':>5} {'faults':>6} {'worst gap s':>11} {'worst back s':>12}  errors; highest figures")
        for name, kind in self.kinds.items():
            if kind.skipped:
                print(f"{name:<10} skipped: {kind.skipped}")
                continue
            errors = ", ".join(f"{n} {c}" for n, c in kind.errors.most_common()) or "none"
            notes = ", ".join(f"{n} {v:g}" for n, v in kind.notes.items())
            print(f"{name:<10} {kind.count:>5} {kind.failed:>6} {kind.gap:>11.2f} {kind.back:>12.1f}  {errors}{'; ' if notes else ''}{notes}")

    def total(self):
        """The last line in the form of the other scripts of .ci."""
        events = sum(kind.count for kind in self.kinds.values())
        bad = sum(1 for _, name in self.bad if self.kinds[name].count)
        skipped = sum(1 for kind in self.kinds.values() if kind.skipped)
        print(f"{self.stalls} limits were longer, because the disk stalled")
        print(f"{events - bad} passed, {self.failures} failed, {skipped} skipped", flush=True)
