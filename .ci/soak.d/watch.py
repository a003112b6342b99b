"""Looks at the brokers every second: whether they live, what they say of themselves, how much memory they have."""

import threading
from collections import Counter

from cluster import BROKERS, BUDGET_MIB

# Beyond memory.budget.bytes: the program, stacks, the ring's memory, what the allocator keeps.
BEYOND_MIB = 256


class Watch:
    def __init__(self, cluster, report):
        self.cluster, self.report = cluster, report
        self.resident = {n: 0 for n in BROKERS}
        self.ready = {n: Counter() for n in BROKERS}
        self.turns = {n: 0 for n in BROKERS}
        self.told = set()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while not self.ended.wait(1):
            for n in BROKERS:
                self.look(n)

    def look(self, n):
        try:
            resident = self.cluster.resident_mib(n)
        except (OSError, StopIteration):
            return
        self.resident[n] = max(self.resident[n], resident)
        self.report.note_max(self.report.timeline[-1][1], "RSS MiB", resident)
        # Once for each event.
        if resident > BUDGET_MIB + BEYOND_MIB and n not in self.told:
            self.told.add(n)
            self.report.fail(f"broker {n} has {resident} MiB in memory, its budget is {BUDGET_MIB} MiB, and {BEYOND_MIB} MiB are allowed beyond it")
        status, _ = self.cluster.page(n, "/health/ready")
        self.ready[n][status] += 1
        if status != 200:
            self.report.error(f"ready {status}")

    def after(self, kind):
        """After each event: broken brokers, their logs, the longest turn. Returns whether a broker has ended."""
        dead = False
        self.told.clear()
        for n in BROKERS:
            if self.cluster.pid(n) is None and n not in self.cluster.dead:
                self.cluster.dead.add(n)
                self.report.fail(f"broker {n} has ended")
            dead |= n in self.cluster.dead
            for line in self.cluster.news(n):
                if "panicked" in line:
                    self.report.fail(f"broker {n}: {line[:300]}")
                else:
                    self.report.error("log ERROR")
                    self.report.say(f"     broker {n}: {line[:200]}")
            micros = self.cluster.metric(n, "core_turn_longest_microseconds") or 0
            if micros > self.turns[n]:
                self.turns[n] = micros
                self.report.note_max(kind, "turn ms", round(micros / 1e3))
        return dead

    def end(self):
        self.ended.set()
        self.thread.join()

    def summary(self):
        for n in BROKERS:
            answers = ", ".join(f"{status or 'no answer'} {count}" for status, count in self.ready[n].items())
            print(f"broker {n}: highest RSS {self.resident[n]} MiB, longest turn {self.turns[n] / 1e3:.0f} ms, /health/ready {answers}")
