"""What others take of the machine: processes outside the soak's mount namespace, other machines on the same host, and what they move on the
disk below the brokers' disks."""

import os
import threading
import time

TICK = os.sysconf("SC_CLK_TCK")
SECTOR = 512


class Others:
    """Each second: when, CPUs taken by processes and by the host, and MB moved on disks beyond what loop devices moved."""

    def __init__(self, keep=600):
        self.samples, self.keep = [], keep
        self.own = os.readlink("/proc/self/ns/mnt")
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        before, cpu, disk, stolen = time.monotonic(), self.cpu(), disk_bytes(), steal()
        while True:
            time.sleep(1)
            now, cpu_now, disk_now, stolen_now = time.monotonic(), self.cpu(), disk_bytes(), steal()
            took = now - before
            busy = sum(max(ticks - cpu.get(pid, 0), 0) for pid, ticks in cpu_now.items()) / TICK / took
            taken = (stolen_now - stolen) / TICK / took
            self.samples.append((now, busy, max(disk_now - disk, 0) / took / 1e6, taken))
            del self.samples[: -self.keep]
            before, cpu, disk, stolen = now, cpu_now, disk_now, stolen_now

    def cpu(self):
        """Ticks of CPU that each process of others has had; kernel threads work for everybody and are left out."""
        ticks = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{pid}/ns/mnt") == self.own:
                    continue
                with open(f"/proc/{pid}/stat") as file:
                    fields = file.read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if fields[1] not in ("0", "2"):
                ticks[pid] = int(fields[11]) + int(fields[12])
        return ticks

    def between(self, begin, end):
        """The most in that time, a second more on both sides, as words."""
        seen = [sample for sample in self.samples if begin - 1 < sample[0] < end + 2]
        if not seen:
            return "others: not measured"
        return f"others: {max(s[1] for s in seen):.1f} CPUs, host {max(s[3] for s in seen):.1f}, disk {max(s[2] for s in seen):.0f} MB/s"


def steal():
    """Ticks in which the host ran something else on this machine's CPUs."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8])


def disk_bytes():
    """Read and written: what whole disks moved less what loop devices did, which is the brokers'."""
    total = 0
    with open("/proc/diskstats") as file:
        for line in file:
            fields = line.split()
            name, moved = fields[2], (int(fields[5]) + int(fields[9])) * SECTOR
            if name.startswith("loop"):
                total -= moved
            elif os.path.exists(f"/sys/block/{name}/device"):
                total += moved
    return total
