"""How the machine itself does, so that a stall of the machine is not taken for one of the brokers.

A canary process sleeps 10 ms at a time and notes how late it wakes. Another one writes and syncs 4 KiB twice a second on the file
system that holds the brokers' disks, and notes how long that takes. Each failure is printed with the worst of both around it, and with what
other programs took. A limit on time is longer by what a stalled disk took of it.
"""

import multiprocessing
import os
import threading
import time

from others import Others

KEEP = 600
# Seconds of one sync from which on the disk counts as stalled, so that limits grow.
STALL = 0.25


def sleeper(out):
    os.setpriority(os.PRIO_PROCESS, 0, priority(-10))
    while os.getppid() != 1:
        due = time.monotonic() + 0.01
        time.sleep(0.01)
        late = time.monotonic() - due
        if late > 0.1:
            out.put(("wake", due, late))


def syncer(path, out):
    file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    while os.getppid() != 1:
        begin = time.monotonic()
        os.pwrite(file, bytes(4096), 0)
        os.fdatasync(file)
        took = time.monotonic() - begin
        if took > 0.1:
            out.put(("sync", begin, took))
        time.sleep(0.5)


def priority(wanted):
    """The nice value if this process may have it, else 0."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, wanted)
        return wanted
    except PermissionError:
        return 0


class Canary:
    def __init__(self, directory):
        self.late, self.others = [], Others(KEEP)
        out = multiprocessing.Queue()
        for target, args in ((sleeper, (out,)), (syncer, (os.path.join(directory, "canary"), out))):
            multiprocessing.Process(target=target, args=args, daemon=True).start()
        threading.Thread(target=self._collect, args=(out,), daemon=True).start()

    def _collect(self, out):
        while True:
            self.late.append(out.get())
            while self.late and self.late[0][1] < time.monotonic() - KEEP:
                self.late.pop(0)

    def _worst(self, begin, end):
        time.sleep(0.05)
        worst = {"wake": 0.0, "sync": 0.0}
        for what, at, took in list(self.late):
            if at + took > begin - 1 and at < end + 1:
                worst[what] = max(worst[what], took)
        return worst

    def allowance(self, begin, end):
        """Seconds that a stalled disk took in that time: a record that comes during one sync waits for it and for its own."""
        sync = self._worst(begin, end)["sync"]
        return 2 * sync if sync >= STALL else 0.0

    def between(self, begin, end):
        """The machine's worst in that time, a second more on both sides, as words."""
        worst = self._worst(begin, end)
        words = {what: f"{took:.2f} s" if took else "< 0.1 s" for what, took in worst.items()}
        return f"machine: woke {words['wake']} late, synced in {words['sync']}; {self.others.between(begin, end)}"
