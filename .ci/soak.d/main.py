"""The soak's plan: options, the order of events, the end. .ci/soak starts it."""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.realpath(__file__))
KINDS = ("overload", "vanish", "remake", "slow", "full")
HELP = """Soaks three brokers on loopback: events in random order, while bystanders must notice nothing.

Events: overload (20 producers at full speed for 10 s, some with request timeouts of 1 ms), vanish (100 sockets that close in the middle of
requests, half of them by RST), remake (a topic deleted and recreated under producers and a group), slow (50 sockets that fetch and never
read), full (one broker's disk is full for 15 s)."""
RULES = """It fails if
  - a bystander (3 idempotent producers, 20 records/s each, acks=all) sees no acknowledgement for more than 1 s;
  - a record of a bystander is rejected, lost, duplicated or out of order, or a group loses its place;
  - a bulk producer does not have 70 % of its former throughput 5 s after an event;
  - replicas are not in sync, or connections of strangers are still open, 30 s after an event;
  - a broker ends or panics, or takes 256 MiB more memory than its budget of 512 MiB.
A limit on time is longer by two syncs while the machine's disk needs more than a quarter of a second for one: the soak measures that itself.
The limit of 1 s holds while a disk is full too: its broker hands over its leaderships long before its ring is full. No broker is killed.
Bystanders run at nice -10 and overload at 10, because strangers usually run on other machines. Each failure is printed with the machine's load at that
time; other work on the machine makes gaps too.

Examples:
  .ci/soak                              an hour
  .ci/soak --minutes 5 --seed 42        the same order of events as another run with that seed
  .ci/soak --minutes 3 --events full    one kind of event only
  sudo .ci/soak --disk loop             without root, or with --disk tmpfs, the disks are in memory"""
BYSTANDERS = 3
GAP_MAX = 1.0
BACK_MAX = 5.0
# Of the throughput before the first event; less than that before a later one means that it never came back.
LASTING = 0.4
BACK_PATIENCE = 20
CALM = 30


def options():
    parser = argparse.ArgumentParser(prog=".ci/soak", description=HELP, epilog=RULES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="how long to run; an event that has begun is finished [default: 60]")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31), help="seed of the events' order [default: random, printed]")
    parser.add_argument("--binary", default=f"{HERE}/../../target/release/millrace", help="the broker's program [default: target/release/millrace]")
    parser.add_argument("--data-dir", help="a new directory for disks and logs; 12 GiB [default: a temporary one]")
    parser.add_argument("--events", default=",".join(KINDS), help=f"kinds of events [default: {','.join(KINDS)}]")
    parser.add_argument("--disk", choices=["auto", "loop", "tmpfs", "plain"], default="auto", help="the brokers' disks [default: auto: loop-mounted ext4, else tmpfs, else plain directories, and full disks are skipped]")
    chosen = parser.parse_args()
    chosen.kinds = chosen.events.split(",")
    for kind in chosen.kinds:
        if kind not in KINDS:
            parser.error(f"--events: unknown event {kind}; the events are {', '.join(KINDS)}")
    chosen.binary = os.path.realpath(chosen.binary)
    if not os.access(chosen.binary, os.X_OK):
        parser.error(f"--binary {chosen.binary}: no such program; build it with 'cargo build --release'")
    if chosen.data_dir and os.path.exists(chosen.data_dir) and os.listdir(chosen.data_dir):
        parser.error(f"--data-dir {chosen.data_dir}: is not empty")
    return chosen


def order(kinds, seed):
    """Endless: all kinds in random order, overload twice, then again."""
    draw = random.Random(seed)
    while True:
        bag = list(kinds) + [k for k in kinds if k == "overload"]
        draw.shuffle(bag)
        yield from ((kind, random.Random(draw.randrange(1 << 62))) for kind in bag)


class Soak:
    def __init__(self, chosen):
        from canary import Canary
        from cluster import Cluster
        from disks import Disks
        from report import Report

        self.data_dir = os.path.realpath(chosen.data_dir or tempfile.mkdtemp(prefix="millrace-soak."))
        os.makedirs(self.data_dir, exist_ok=True)
        self.report = Report(Canary(self.data_dir), f"{self.data_dir}/broker-*.log")
        self.report.begin("start")
        self.disks = Disks(self.data_dir, chosen.disk)
        self.cluster = Cluster(chosen.binary, self.data_dir)
        self.stop, self.out = multiprocessing.Event(), multiprocessing.Queue()
        self.up, self.done = set(), {}
        self.watch, self.ledgers, self.next_full, self.first_reference = None, [], 0, None

    def start(self):
        import bystanders
        from bulk import Bulk, TOPIC
        from topics import Topics, fill
        from watch import Watch

        print(self.cluster.start(), end="", flush=True)
        self.topics = Topics(self.cluster.bootstrap)
        for n in range(1, BYSTANDERS + 1):
            self.topics.create(bystanders.topic_of(n), bystanders.PARTITIONS)
        self.topics.create(TOPIC, 3, keep_mib=128)
        for name, partitions in (("overload", 6), ("strangers", 3)):
            self.topics.create(name, partitions, keep_mib=48)
        self.topics.create("old", 3)
        self.bulk = Bulk(self.cluster.bootstrap, self.report)
        fill(self.cluster.bootstrap, "old", 3, mib=96)
        threading.Thread(target=self.listen, daemon=True).start()
        for n in range(1, BYSTANDERS + 1):
            self.process(bystanders.bystander, n)
        self.process(bystanders.group, BYSTANDERS)
        self.watch = Watch(self.cluster, self.report)
        self.wait_for(self.up, 60)

    def process(self, target, first):
        process = multiprocessing.Process(target=target, args=(first, self.cluster.bootstrap, self.stop, self.out), daemon=True)
        process.start()
        self.ledgers.append(process)

    def listen(self):
        """What bystanders tell."""
        while True:
            what, *rest = self.out.get()
            if what == "gap":
                self.report.gap(*rest, GAP_MAX)
            elif what == "failure":
                self.report.fail(f"{rest[0]}: {rest[1]}", rest[2], rest[3])
            elif what == "partition":
                self.report.partition_gap(*rest)
            elif what == "error":
                self.report.error(rest[0], moment=rest[1])
            elif what == "up":
                self.up.add(rest[0])
            elif what == "done":
                self.done[rest[0]] = rest[1]

    def wait_for(self, told, patience):
        give_up = time.monotonic() + patience
        while len(told) < BYSTANDERS + 1:
            if time.monotonic() > give_up or any(p.exitcode for p in self.ledgers):
                self.report.fail(f"only the bystanders {sorted(told)} began or ended within {patience} s")
                return
            time.sleep(0.1)

    def event(self, kind, draw):
        """An event with the reference before it and the return after it."""
        if kind == "full" and self.disks.kind == "plain":
            self.report.skip("full", f"no small disks: {self.disks.why}")
            return
        self.report.begin(kind)
        self.report.kind(kind).count += 1
        reference = self.bulk.reference()
        self.first_reference = self.first_reference or reference
        if reference < LASTING * self.first_reference:
            self.report.fail(f"throughput is {reference / 1e6:.0f} MB/s before the event, and was {self.first_reference / 1e6:.0f} MB/s before the first")
        begin = time.monotonic()
        errors, failures, note, end = self.perform(kind, draw)
        seconds, rates = self.bulk.until_back(end, reference, BACK_PATIENCE)
        for name, count in errors.items():
            self.report.error(name, count)
        for failure in failures:
            self.report.fail(failure, begin, end)
        self.report.back(kind, seconds or BACK_PATIENCE)
        if seconds is None or seconds > BACK_MAX:
            each = " ".join(f"{rate / 1e6:.0f}" for rate in rates)
            text = f"throughput was back after {f'{seconds:.1f}' if seconds else f'more than {BACK_PATIENCE}'} s; before {reference / 1e6:.0f} MB/s, then by second {each}"
            self.report.limit(text, seconds or BACK_PATIENCE + 1, BACK_MAX, end, time.monotonic())
        self.calm(kind)
        back = f"{seconds:.1f} s" if seconds else "never"
        self.report.say(f"{kind}: {end - begin:.0f} s; {note}before {reference / 1e6:.0f} MB/s, back after {back}; errors: {dict(errors) or 'none'}")

    def perform(self, kind, draw):
        """Errors by name, failures, a note, and when it ended."""
        import full
        import overload
        import remake
        import strangers

        if kind == "overload":
            rate, errors, end = overload.overload(self.cluster.bootstrap, draw)
            return errors, [], f"{rate / 1e6:.0f} MB/s acknowledged; ", end
        if kind == "remake":
            return *remake.Remake(self.cluster.bootstrap, self.topics, draw).run(), "", time.monotonic()
        if kind == "full":
            self.next_full = self.next_full % 3 + 1
            errors, figures = full.full(self.disks, self.cluster, self.bulk, self.next_full)
            for name, value in figures.items():
                self.report.note_max(kind, name, value)
            return errors, [f"broker {self.next_full}: {name}" for name in errors], f"broker {self.next_full}; ", time.monotonic()
        return {"vanish": strangers.vanish, "slow": strangers.slow}[kind](self.topics, draw), [], "", time.monotonic()

    def calm(self, kind):
        """After each event everything is as before: rooms on disks, replicas in sync, strangers forgotten."""
        import full
        import strangers

        if kind == "full":
            seconds = full.until_well(self.cluster, self.next_full)
            if seconds is None:
                self.report.fail(f"broker {self.next_full} has not noticed the free space on its disk after {full.RECOVERY} s")
        seconds, lagging = self.topics.until_in_sync(CALM)
        if lagging:
            self.report.fail(f"not in sync {CALM} s after the event: {', '.join(lagging[:10])}")
        else:
            self.report.note_max(kind, "in sync after s", round(seconds, 1))
        give_up = time.monotonic() + CALM
        while (opened := self.connections()) > self.calm_connections + strangers.SLOW // 2:
            if time.monotonic() > give_up:
                self.report.fail(f"{opened:.0f} connections are open {CALM} s after the event, {self.calm_connections:.0f} before the first")
                break
            time.sleep(0.5)
        if self.watch.after(kind):
            print(self.cluster.start(), end="", flush=True)
            self.cluster.dead.clear()

    def connections(self):
        return sum(self.cluster.metric(n, "connections_open") or 0 for n in (1, 2, 3))

    def run(self, chosen):
        begin = time.monotonic()
        self.calm_connections = self.connections()
        for kind, draw in order(chosen.kinds, chosen.seed):
            if time.monotonic() - begin > chosen.minutes * 60:
                return
            self.event(kind, draw)
            time.sleep(draw.uniform(1, 4))

    def end(self):
        """Everything that was acknowledged is read back before the brokers stop."""
        self.report.begin("end")
        self.stop.set()
        self.wait_for(self.done, 150)
        for who, text in sorted(self.done.items()):
            print(f"{who}: {text}")
        self.watch.after("end")

    def tear_down(self):
        if self.watch:
            self.watch.end()
        if not self.cluster.stop():
            self.report.fail("the brokers did not stop within 60 s")
        self.disks.end()
        for n in (1, 2, 3):
            shutil.rmtree(self.disks.path(n), ignore_errors=True)


def main():
    chosen = options()
    multiprocessing.set_start_method("spawn")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    soak = Soak(chosen)
    print(f"seed {chosen.seed}, {chosen.minutes:g} min, disks: {soak.disks.kind}, data and logs: {soak.data_dir}", flush=True)
    begun = time.monotonic()
    try:
        soak.start()
        soak.run(chosen)
        soak.end()
    finally:
        soak.tear_down()
    soak.report.summary()
    soak.watch.summary()
    print(f"seed {chosen.seed}, {(time.monotonic() - begun) / 60:.0f} min; 'worst back s' is the time from an event's end until throughput was back")
    well = soak.report.failures == 0
    if well and not chosen.data_dir:
        shutil.rmtree(soak.data_dir, ignore_errors=True)
    else:
        print(f"the brokers' logs: {soak.data_dir}/broker-*.log")
    soak.report.total()
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
