"""Three brokers on loopback, started by deploy/cluster/start.sh."""

import os
import random
import socket
import subprocess
import urllib.error
import urllib.request

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
BROKERS = (1, 2, 3)
BUDGET_MIB = 512
SETTINGS = {
    "memory.budget.bytes": f"{BUDGET_MIB}MiB",
    "wal.ring.bytes": "64MiB",
    "log.cache.bytes": "64MiB",
    "log.retention.check.interval.ms": "1000",
    "replica.lag.time.max.ms": "5000",
    "group.initial.rebalance.delay.ms": "0",
    "auto.create.topics.enable": "false",
}


class Cluster:
    def __init__(self, binary, data_dir):
        self.binary, self.data_dir, self.base = binary, data_dir, free_ports()
        self.bootstrap = ",".join(f"127.0.0.1:{self.base + n}" for n in range(3))
        self.read = {}  # how far each log was looked through
        self.dead = set()

    def start(self):
        settings = [word for pair in SETTINGS.items() for word in ("--set", "=".join(pair))]
        ports = ["--kafka-port", self.base, "--peer-port", self.base + 10, "--admin-port", self.base + 20]
        command = [f"{ROOT}/deploy/cluster/start.sh", "--brokers", 3, "--data-dir", self.data_dir, "--wait", 60, *ports, "--", *settings]
        done = subprocess.run(list(map(str, command)), env=os.environ | {"MILLRACE": self.binary}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"soak: the brokers did not start:\n{done.stdout}{done.stderr}")
        return done.stdout

    def stop(self):
        command = [f"{ROOT}/deploy/cluster/stop.sh", "--data-dir", self.data_dir, "--wait", "60"]
        return subprocess.run(command, capture_output=True, text=True).returncode == 0

    def log(self, n):
        return f"{self.data_dir}/broker-{n}.log"

    def pid(self, n):
        """None if broker n has ended."""
        with open(f"{self.data_dir}/broker-{n}.pid") as file:
            pid = int(file.read())
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                return pid if f"{self.data_dir}/broker-{n}" in file.read() else None
        except OSError:
            return None

    def resident_mib(self, n):
        with open(f"/proc/{self.pid(n)}/status") as file:
            return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmRSS"))

    def page(self, n, path):
        """Status and body of the admin port; status 0 if there is no answer within 2 s."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.base + 19 + n}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()
        except OSError:
            return 0, ""

    def metric(self, n, name):
        """The sum over broker n's cores, or None if it does not answer."""
        status, body = self.page(n, "/metrics")
        if status != 200:
            return None
        lines = (line for line in body.splitlines() if line.startswith(f"millrace_{name}{{"))
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def news(self, n):
        """Lines of broker n's log, since the last call, that tell of a panic or an error."""
        with open(self.log(n), errors="replace") as file:
            file.seek(self.read.get(n, 0))
            lines = file.readlines()
            self.read[n] = file.tell()
        return [line.strip() for line in lines if "panicked" in line or " ERROR " in line]


def free_ports():
    """The first of 23 ports below the system's own, those that brokers get among them free at the moment."""
    for _ in range(100):
        base = random.SystemRandom().randrange(20000, 30000)
        if all(is_free(base + part + n) for part in (0, 10, 20) for n in range(3)):
            return base
    raise SystemExit("soak: no free ports between 20000 and 30022")


def is_free(port):
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False
