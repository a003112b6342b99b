"""One broker on one CPU, and the turns of its core."""

import os
import re
import signal
import socket
import subprocess
import time
import urllib.request

PATIENCE = 60
SETTINGS = {
    "memory.budget.bytes": "3GiB",
    "wal.ring.bytes": "256MiB",
    # Cold reads come early.
    "log.cache.bytes": "32MiB",
    "group.initial.rebalance.delay.ms": "0",
    "auto.create.topics.enable": "false",
    "log.retention.ms": "-1",
}


class Broker:
    def __init__(self, binary, data_dir, cpus):
        self.cpus = cpus
        self.log, self.data_dir, self.process = f"{data_dir}/broker.log", data_dir, None
        settings = [word for pair in SETTINGS.items() for word in ("--set", "=".join(pair))]
        addresses = [word for name in ("kafka", "peer", "admin") for word in (f"--{name}-addr", "127.0.0.1:0")]
        self.command = [binary, "serve", "--data-dir", f"{data_dir}/data", "--cores", str(cpus[0]), *addresses, *settings]

    def start(self):
        """Returns how many seconds it took until the broker was ready."""
        begin = time.monotonic()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=self.come_first)
        while True:
            with open(self.log, errors="replace") as log:
                found = dict(re.findall(r"(kafka|admin)\D*?127\.0\.0\.1:(\d+)", log.read()))
            if len(found) == 2:
                self.kafka, self.admin = ("127.0.0.1", int(found["kafka"])), int(found["admin"])
                if self.is_ready():
                    return time.monotonic() - begin
            if self.process.poll() is not None or time.monotonic() > begin + PATIENCE:
                raise SystemExit(f"turns: the broker did not start; see {self.log}")
            time.sleep(0.05)

    def come_first(self):
        """In the broker's process: other work on the machine must not lengthen its turns."""
        os.sched_setaffinity(0, self.cpus)
        try:
            os.nice(-20)
        except PermissionError:
            pass

    def is_ready(self):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/health/ready", timeout=5).status == 200
        except OSError:
            return False

    def stop(self):
        """SIGTERM. Returns how many seconds the broker took, and its exit status: None if it had to be killed."""
        begin, status = time.monotonic(), None
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
        return time.monotonic() - begin, status

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def connect(self):
        return socket.create_connection(self.kafka, timeout=PATIENCE)

    def turns(self):
        """The histogram of turns (seconds to counts, not cumulated), and the longest turn so far in seconds."""
        page = urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=PATIENCE).read().decode()
        counts, before = {}, 0
        for bound, count in re.findall(r'^millrace_core_turn_seconds_bucket\{[^}]*le="([^"]+)"\} (\d+)', page, re.M):
            counts[float(bound)], before = int(count) - before, int(count)
        longest = re.search(r"^millrace_core_turn_longest_microseconds\{[^}]*\} (\d+)", page, re.M)
        return counts, int(longest[1]) / 1e6

    def waited(self):
        """Seconds for which the broker's threads were ready and the kernel ran something else."""
        total = 0
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            try:
                with open(f"/proc/{self.process.pid}/task/{task}/schedstat") as file:
                    total += int(file.read().split()[1])
            except OSError:
                pass
        return total / 1e9


class Longest:
    """The longest turn of a broker since this was made."""

    def __init__(self, broker):
        self.broker, self.waited = broker, broker.waited()
        self.counts, self.longest = broker.turns()

    def milliseconds(self):
        """The histogram's bound, which is at most a quarter above the turn, or the turn itself if none was longer."""
        counts, longest = self.broker.turns()
        if longest > self.longest:
            return longest * 1e3
        return max((bound for bound, count in counts.items() if count > self.counts.get(bound, 0)), default=0) * 1e3

    def waited_milliseconds(self):
        return (self.broker.waited() - self.waited) * 1e3
