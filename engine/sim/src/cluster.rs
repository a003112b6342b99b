//! Brokers, clients and faults, from one seed. Invariants are checked after every step.
//!
//! Topics have one, two or three replicas. A disk is lost once at most, while all replicas have everything. Partitions
//! that have no quorum without that disk are lost with it. Their clients go on, but the simulation does not check them
//! any more.

use super::{
    exec::{self, OUTSIDE, ProcessId, World},
    ledger::{Ledger, Violation, expect},
    net::net,
    node::{Ailment, Founding, Node},
    running::Running,
    summary::Summary,
};
use engine::{connection::client::Client, partition::Partition};
use runtime::{self as rt};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};
use types::{GroupId, LeaderEpoch, planted::Bug};

/// How long faults go on. How long it may take at the end until all replicas have everything.
const FAULTS: Duration = Duration::from_secs(25);
const HEALING: Duration = Duration::from_secs(60);
/// Time that producers then have to get their last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(20);
/// If the set of healthy nodes does not change for this time, every partition with enough replicas must have a leader.
const CALM: Duration = Duration::from_secs(7);
/// Elections and hand-overs take less than this.
const ELECTION: Duration = Duration::from_secs(3);
/// Interval between two looks for leaders.
const LOOK_EVERY: Duration = Duration::from_millis(250);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One partition, as clients name it.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) group: GroupId,
    /// Its records come from the producers of `clients`.
    pub(super) is_for_clients: bool,
}

pub(super) struct Cluster {
    pub(super) nodes: Vec<Rc<Node>>,
    pub(super) ledger: RefCell<Ledger>,
    pub(super) targets: RefCell<Vec<Target>>,
    pub(super) summary: RefCell<Summary>,
    /// True when clients have to end.
    pub(super) over: Cell<bool>,
    producers: Cell<u32>,
    /// Number of producers that have not ended.
    pub(super) producing: Cell<usize>,
    /// Faults are rare and last long, and clients write rarely, so that partitions come to rest.
    pub(super) quiet: bool,
    violation: RefCell<Option<Violation>>,
    /// The high watermark by process and partition.
    watermarks: RefCell<BTreeMap<(ProcessId, GroupId), u64>>,
    disk_lost: Cell<bool>,
    /// Number of topics whose partitions are not known yet.
    pub(super) creating: Cell<u64>,
    /// Partitions that have lost their quorum with a disk. Either that was the only replica, or the other of two cannot
    /// know whether it has everything.
    lost: RefCell<BTreeSet<GroupId>>,
    /// The crowd's clients that have sent produce requests, while these may wait for each other.
    pub(super) lanes: RefCell<Vec<Rc<Client>>>,
    /// The healthy nodes, and since when they have been the same.
    calm: RefCell<(Vec<i32>, Duration)>,
}

/// Runs one seed.
/// `cores`: the most that a broker has; `None` leaves it to the seed.
pub(super) fn run(seed: u64, cores: Option<u8>, bug: Option<Bug>) -> Result<Summary, Violation> {
    let running = Running::begin(seed, bug);
    let world = exec::world();
    let result = Cluster::new(&world, cores).run(&world);
    drop(running);
    result
}

impl Cluster {
    fn new(world: &Rc<World>, cores: Option<u8>) -> Rc<Self> {
        let count = [3, 3, 3, 3, 3, 3, 4, 4, 4, 5][world.place(10)];
        let nodes: Vec<i32> = (1..=count).collect();
        let founding = Founding::of(nodes.clone());
        net().latency_max.set(world.draw(ms(1)..ms(15)));
        // Small enough for faults to fill the rings.
        let ring_bytes = [512 << 10, 1 << 20][world.place(2)];
        let drawn = [1, 1, 2, 4][world.place(4)];
        let is_given = cores.is_some();
        let cores = cores.map_or(drawn, usize::from);
        let nodes = nodes.into_iter().map(|id| Node::new(world, id, founding.clone(), ring_bytes, cores)).collect();
        let nodes: Vec<Rc<Node>> = nodes;
        if is_given {
            nodes.iter().for_each(|node| node.begin_with_all_cores());
        }
        Rc::new(Self {
            nodes,
            ledger: RefCell::default(),
            targets: RefCell::default(),
            summary: RefCell::default(),
            over: Cell::new(false),
            producers: Cell::new(0),
            producing: Cell::new(0),
            quiet: world.chance(0.3),
            violation: RefCell::default(),
            watermarks: RefCell::default(),
            disk_lost: Cell::new(false),
            creating: Cell::new(0),
            lost: RefCell::default(),
            lanes: RefCell::default(),
            calm: RefCell::default(),
        })
    }

    pub(super) fn violated(&self, why: String) {
        self.violation.borrow_mut().get_or_insert(Violation(why));
    }

    pub(super) fn next_producer(&self) -> u32 {
        self.producers.set(self.producers.get() + 1);
        self.producers.get()
    }

    fn run(self: &Rc<Self>, world: &Rc<World>) -> Result<Summary, Violation> {
        self.nodes.iter().for_each(|node| node.start_if_down(world));
        self.go_on(world, ms(60_000), || self.nodes.iter().all(|node| node.serves()))?;
        expect(self.nodes.iter().all(|node| node.serves()), || "the cluster does not come about".to_owned())?;
        let trims = world.chance(0.6);
        for number in 0..world.number(1..=2) {
            let retention = trims.then(|| ("retention.bytes", (48 << 10).to_string()));
            let partitions = world.number(1..=2) as i32;
            let mut settings: Vec<(&'static str, String)> = retention.into_iter().collect();
            let replicas = [1, 2, 3, 3, 3][world.place(5)];
            if replicas > 1 && world.chance(0.5) {
                settings.push(("min.insync.replicas", "2".to_owned()));
            }
            let create = self.clone().create_topic(format!("topic-{number}"), partitions, replicas, settings);
            world.spawn(OUTSIDE, create);
            self.creating.set(self.creating.get() + 1);
        }
        let groups: Vec<String> = (0..world.number(..=1)).map(|number| format!("group-{number}")).collect();
        for group in &groups {
            self.begin_group(world, group, world.number(1..=3));
            world.spawn(OUTSIDE, self.clone().remake());
        }
        self.go_on(world, ms(8_000), || !self.targets.borrow().is_empty() && self.ledger.borrow().acked() > 0)?;
        if world.chance(0.2) {
            world.spawn(OUTSIDE, self.clone().crowd());
        }
        world.spawn(OUTSIDE, self.clone().trouble());
        world.spawn(OUTSIDE, self.clone().watch());
        self.go_on(world, FAULTS, || false)?;
        self.heal(world)?;
        // Reading a log misses records that are acknowledged later. So the producers have to end first.
        self.go_on(world, LAST_ANSWERS, || self.producing.get() == 0)?;
        expect(self.producing.get() == 0, || format!("{} producers don't end", self.producing.get()))?;
        // Every wait must end: nothing may be left of clients that are gone.
        self.go_on(world, LAST_ANSWERS, || self.left_waiting().is_empty())?;
        let left = self.left_waiting();
        expect(left.is_empty(), || format!("after {LAST_ANSWERS:?} there still wait {left:?}"))?;
        let late: u64 = self.nodes.iter().map(|node| node.late_asks()).sum();
        expect(late == 0, || format!("{late} asks between cores came after all cores had drained"))?;
        self.check_counts()?;
        self.check_logs()?;
        for group in &groups {
            self.check_offsets(group)?;
        }
        self.count_up(&groups);
        // Coordinators that load everything from the log must know the same.
        if !groups.is_empty() {
            for node in &self.nodes {
                node.kill(world);
            }
            self.heal(world)?;
            for group in &groups {
                self.check_offsets(group)?;
            }
        }
        Ok(self.summary.borrow().clone())
    }

    /// Runs the world until a condition holds, for at most this time.
    pub(super) fn go_on(&self, world: &World, most: Duration, until: impl Fn() -> bool) -> Result<(), Violation> {
        let end = world.time() + most;
        let mut steps = 0u64;
        while let Some(process) = world.step(end) {
            steps += 1;
            self.check_step(process)?;
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
            if steps.is_multiple_of(256) && until() {
                break;
            }
            expect(steps < 20_000_000, || "nothing but steps".to_owned())?;
        }
        self.summary.borrow_mut().steps += steps;
        Ok(())
    }

    /// Checks the invariants of the process that has just run.
    fn check_step(&self, process: ProcessId) -> Result<(), Violation> {
        let Some(node) = self.nodes.iter().find(|node| node.process == process) else { return Ok(()) };
        if let Some(why) = &*node.refused.borrow() {
            return Err(Violation(format!("broker {} can't start: {why}", node.id)));
        }
        let mut watermarks = self.watermarks.borrow_mut();
        for target in self.targets.borrow().iter().filter(|target| !self.is_lost(target)) {
            let Some(core) = node.owner(target.group) else { continue };
            let Some(partition) = core.partition(target.group) else { continue };
            let (start, watermark, end) = (partition.log_start(&core), partition.high_watermark(), partition.end());
            expect(watermark <= end && start <= end, || {
                format!("broker {}, {target:?}: start {start}, high watermark {watermark}, end {end}", node.id)
            })?;
            let before = watermarks.insert((process, target.group), watermark).unwrap_or(0);
            expect(before <= watermark, || {
                format!("broker {}, {target:?}: the high watermark goes from {before} back to {watermark}", node.id)
            })?;
            if partition.leads() {
                let epoch = partition.leader_epoch();
                let named = |Violation(why)| Violation(format!("{}-{}: {why}", target.topic, target.partition));
                let mut ledger = self.ledger.borrow_mut();
                let history = ledger.of(target.group);
                history.leads(node.id, epoch, watermark).map_err(named)?;
                if let Some((ended, end)) =
                    partition.end_of_epoch(LeaderEpoch::new(epoch.get() - 1)).filter(|(ended, _)| !ended.is_none())
                {
                    history.ended(ended, end).map_err(named)?;
                }
            }
        }
        Ok(())
    }

    fn forget_watermarks(&self, node: &Node) {
        self.watermarks.borrow_mut().retain(|(process, _), _| *process != node.process);
    }

    /// Starts faults one after the other. Some overlap.
    async fn trouble(self: Rc<Self>) {
        let world = exec::world();
        let quiet = self.quiet;
        while !self.over.get() {
            let wait = if quiet { 12_000..16_000 } else { 100..3_000 };
            rt::sleep(world.draw(ms(wait.start)..ms(wait.end))).await;
            if !self.over.get() {
                self.strike(&world);
            }
        }
    }

    fn strike(self: &Rc<Self>, world: &Rc<World>) {
        // The death of its leader disturbs a partition at rest most.
        let leader = if self.quiet && world.chance(0.5) { self.some_leader(world) } else { None };
        let deadly = leader.is_some();
        let at = leader.unwrap_or_else(|| world.place(self.nodes.len()));
        let node = self.nodes[at].clone();
        let away = if self.quiet || world.chance(0.2) { ms(11_000)..ms(14_000) } else { ms(10)..ms(5_000) };
        let away = world.draw(away);
        let fault = world.number(..if deadly { 40 } else { 100 });
        match fault {
            0..18 => {
                if self.take_down(world, &node, away, |node, world| node.kill(world)) {
                    self.summary.borrow_mut().killed += 1;
                }
            }
            18..34 => self.cut_power(world, &node, away),
            34..38 => {
                for node in self.nodes.clone() {
                    self.cut_power(world, &node, world.draw(ms(10)..ms(2_000)));
                }
            }
            38..50 => {
                if node.serves() && !node.stopping.get() && !world.is_stopped(node.process) {
                    self.summary.borrow_mut().stopped += 1;
                    self.stop_and_start(world, node);
                }
            }
            50..64 => self.pause(world, &node, away),
            64..84 => self.cut_network(world, at, away),
            84..90 => self.make_disk_ail(world, node, away),
            _ => self.lose_a_disk(world, &node, away),
        }
        // A core whose ring has failed serves again after a restart.
        for node in self.nodes.iter().filter(|node| node.has_failed()) {
            let wait = world.draw(ms(10)..ms(3_000));
            self.take_down(world, node, wait, |node, world| node.kill(world));
        }
    }

    fn cut_power(self: &Rc<Self>, world: &Rc<World>, node: &Rc<Node>, away: Duration) {
        if self.take_down(world, node, away, |node, world| node.lose_power(world)) {
            self.summary.borrow_mut().power_lost += 1;
        }
    }

    /// The process stands still, and sometimes its clock jumps meanwhile.
    fn pause(&self, world: &Rc<World>, node: &Node, away: Duration) {
        let process = node.process;
        if node.down.get() || world.is_stopped(process) {
            return;
        }
        self.summary.borrow_mut().paused += 1;
        world.stop(process, true);
        if world.chance(0.2) {
            world.jump(process, away);
            self.summary.borrow_mut().jumped += 1;
        }
        world.after(away, move || exec::world().stop(process, false));
    }

    /// Cuts the node off from one other or from all, in one direction or in both.
    fn cut_network(&self, world: &Rc<World>, at: usize, away: Duration) {
        self.summary.borrow_mut().cut += 1;
        let (id, other) = (self.nodes[at].id, self.nodes[(at + 1) % self.nodes.len()].id);
        let one_way = world.chance(0.3);
        let all = world.chance(0.5);
        for there in self.nodes.iter().map(|node| node.id).filter(|there| *there != id && (all || *there == other)) {
            net().cut(id, there);
            if !one_way {
                net().cut(there, id);
            }
        }
        world.after(away, || net().heal());
    }

    /// The disk is slow or full for a while, or broken until the next start.
    fn make_disk_ail(&self, world: &Rc<World>, node: Rc<Node>, away: Duration) {
        self.summary.borrow_mut().disks_ailed += 1;
        let ailment = match world.place(3) {
            0 => Ailment { slow: ms(30), ..Ailment::default() },
            1 => Ailment { full: true, ..Ailment::default() },
            _ => Ailment { broken: node.serves(), ..Ailment::default() },
        };
        node.ail(ailment);
        world.after(away, move || node.ail(Ailment { slow: Duration::ZERO, full: false, ..node.ailment() }));
    }

    /// At most one disk of a run is lost, while the others have everything.
    fn lose_a_disk(self: &Rc<Self>, world: &Rc<World>, node: &Rc<Node>, away: Duration) {
        let others_well = self.nodes.iter().all(|other| other.id == node.id || other.serves());
        let has_begun = self.creating.get() == 0;
        if has_begun && others_well && !self.disk_lost.get() && self.all_have_everything() {
            self.disk_lost.set(true);
            if self.take_down(world, node, away, |node, world| node.lose_disk(world)) {
                self.lose_partitions(node);
                self.summary.borrow_mut().disks_lost += 1;
            }
        }
    }

    /// The index of a node that leads a partition.
    fn some_leader(&self, world: &World) -> Option<usize> {
        let targets = self.targets.borrow();
        let (leader, _) = self.leader(targets.get(world.place(targets.len().max(1)))?)?;
        self.nodes.iter().position(|node| node.id == leader.id)
    }

    fn take_down(
        self: &Rc<Self>,
        world: &Rc<World>,
        node: &Rc<Node>,
        away: Duration,
        how: impl FnOnce(&Node, &World),
    ) -> bool {
        if node.down.get() {
            return false;
        }
        how(node, world);
        self.forget_watermarks(node);
        let node = node.clone();
        world.after(away, move || node.start_if_down(&exec::world()));
        true
    }

    /// Marks the partitions that are lost with this node's disk.
    fn lose_partitions(&self, node: &Node) {
        for target in self.kept_targets() {
            let replicas = self.replicas_of(&target).expect("its topic is known to those that are well");
            if replicas.contains(&node.id) && (replicas.len() - 1) * 2 <= replicas.len() {
                self.lost.borrow_mut().insert(target.group);
                self.summary.borrow_mut().partitions_lost += 1;
            }
        }
    }

    pub(super) fn is_lost(&self, target: &Target) -> bool {
        self.lost.borrow().contains(&target.group)
    }

    /// The partitions that are not lost.
    pub(super) fn kept_targets(&self) -> Vec<Target> {
        self.targets.borrow().iter().filter(|target| !self.is_lost(target)).cloned().collect()
    }

    fn stop_and_start(self: &Rc<Self>, world: &Rc<World>, node: Rc<Node>) {
        node.stop(world);
        let cluster = self.clone();
        world.spawn(OUTSIDE, async move {
            while !node.down.get() {
                rt::sleep(ms(20)).await;
            }
            // Another fault may have taken the node down and started it already.
            let world = exec::world();
            if !cluster.over.get() && node.core().is_none() {
                cluster.forget_watermarks(&node);
                world.after(ms(50), move || node.start_if_down(&exec::world()));
            }
        });
    }

    /// Nodes that run without any fault and that no cut separates from another node.
    fn well(&self, world: &World) -> Vec<i32> {
        let is_up = |node: &&Rc<Node>| node.serves() && !world.is_stopped(node.process) && !node.has_failed();
        let up: Vec<i32> = self.nodes.iter().filter(is_up).map(|node| node.id).collect();
        let others = |id: i32| self.nodes.iter().map(|node| node.id).filter(move |other| *other != id);
        let is_reached = |id: &i32| others(*id).all(|other| !net().is_cut(*id, other) && !net().is_cut(other, *id));
        let healthy = |id: &i32| {
            let node = self.nodes.iter().find(|node| node.id == *id).expect("it is one of them");
            let Ailment { slow, stalls_until, full, broken } = node.ailment();
            slow.is_zero() && stalls_until <= world.time() && !full && !broken
        };
        up.into_iter().filter(is_reached).filter(healthy).collect()
    }

    /// While nothing changes, checks that every partition with a quorum has a leader.
    async fn watch(self: Rc<Self>) {
        let world = exec::world();
        let mut led: BTreeMap<GroupId, Duration> = BTreeMap::new();
        while !self.over.get() {
            rt::sleep(LOOK_EVERY).await;
            let (well, now) = (self.well(&world), world.time());
            // An ailing broker may lead too, and die at any moment.
            for target in self.targets.borrow().iter().filter(|target| self.leader(target).is_some()) {
                led.insert(target.group, now);
            }
            let mut calm = self.calm.borrow_mut();
            if calm.0 != well {
                *calm = (well, now);
                continue;
            }
            if now - calm.1 < CALM {
                continue;
            }
            for target in self.targets.borrow().iter().filter(|target| !self.is_lost(target)) {
                let Some(replicas) = self.replicas_of(target) else { continue };
                let there = replicas.iter().filter(|node| calm.0.contains(node)).count();
                let last = led.entry(target.group).or_insert(calm.1);
                if there * 2 <= replicas.len() || self.leader(target).is_some() {
                    *last = now;
                } else if now - (*last).max(calm.1 + CALM - ELECTION) > ELECTION {
                    let (name, since) = (format!("{}-{}", target.topic, target.partition), now - calm.1);
                    self.violated(format!("{name} has no leader, though {:?} have been well for {since:?}", calm.0));
                }
            }
        }
    }

    pub(super) fn replicas_of(&self, target: &Target) -> Option<Vec<i32>> {
        self.nodes.iter().filter_map(|node| node.core()).find_map(|core| {
            core.view(|view| {
                let topic = view.topic(&target.topic)?;
                Some(topic.partitions[target.partition as usize].replicas.clone())
            })
        })
    }

    pub(super) fn holders<'a>(&'a self, target: &'a Target) -> impl Iterator<Item = (&'a Rc<Node>, Rc<Partition>)> {
        self.nodes.iter().filter_map(|node| Some((node, node.owner(target.group)?.partition(target.group)?)))
    }

    fn leader(&self, target: &Target) -> Option<(Rc<Node>, Rc<Partition>)> {
        let mut leaders = self.holders(target).filter(|(node, partition)| !node.down.get() && partition.leads());
        leaders.next().map(|(node, partition)| (node.clone(), partition))
    }

    /// Whether every replica of every partition has all of its leader's records.
    fn all_have_everything(&self) -> bool {
        self.kept_targets().iter().all(|target| {
            let Some((_, leader)) = self.leader(target) else { return false };
            let (end, replicas) = (leader.end(), leader.replicas());
            let has_all = |(_, partition): &(&Rc<Node>, Rc<Partition>)| {
                partition.end() == end && partition.high_watermark() == end
            };
            let in_sync = leader.in_sync().unwrap_or_default();
            self.holders(target).filter(has_all).count() == replicas.len() && in_sync.len() == replicas.len()
        })
    }

    /// Ends all faults, and waits until all replicas have everything.
    fn heal(self: &Rc<Self>, world: &Rc<World>) -> Result<(), Violation> {
        self.over.set(true);
        net().heal();
        for node in &self.nodes {
            world.stop(node.process, false);
            node.ail(Ailment::default());
        }
        let until = world.time() + HEALING;
        loop {
            for node in &self.nodes {
                if node.has_failed() || node.stopping.get() {
                    node.kill(world);
                }
                if node.down.get() {
                    self.forget_watermarks(node);
                }
                node.start_if_down(world);
            }
            let is_up = |node: &Rc<Node>| node.serves() && !node.stopping.get();
            let is_whole = || self.nodes.iter().all(is_up) && self.all_have_everything();
            self.go_on(world, ms(2_000), is_whole)?;
            net().heal();
            if is_whole() {
                return Ok(());
            }
            expect(world.time() < until, || {
                let of = |target: &Target| {
                    let holders = self.holders(target).map(|(node, partition)| {
                        let (watermark, end) = (partition.high_watermark(), partition.end());
                        format!("broker {}: {watermark} of {end}, leads {}", node.id, partition.leads())
                    });
                    format!("{}-{}: {}", target.topic, target.partition, holders.collect::<Vec<_>>().join("; "))
                };
                let all: Vec<String> = self.kept_targets().iter().map(of).collect();
                let up: Vec<_> = self.nodes.iter().map(|node| (node.id, node.serves())).collect();
                format!("not whole after {HEALING:?}: {up:?} {all:?}")
            })?;
        }
    }

    fn count_up(&self, groups: &[String]) {
        let mut summary = self.summary.borrow_mut();
        let mut ledger = self.ledger.borrow_mut();
        summary.acked = ledger.acked() as u64;
        summary.seen = ledger.seen() as u64;
        for group in ledger.groups() {
            summary.epochs += ledger.of(group).epochs();
        }
        summary.groups = groups.len() as u64;
        for group in groups {
            let history = ledger.of_members(group);
            summary.generations += history.generations();
            summary.commits += history.counted();
            summary.commits_refused += history.refused();
            summary.offsets_fetched += history.fetched();
        }
        summary.ring_full = self.nodes.iter().map(|node| node.ring_full()).sum();
        for core in self.nodes.iter().flat_map(|node| node.cores()) {
            summary.snapshots += core.metrics.replication_snapshots_total.get();
            summary.memory_waits += core.metrics.memory_answer_waits_total.get();
            summary.turns += core.metrics.request_pauses_total.get();
            summary.rested += u64::from(core.groups.awake() < core.partitions().len());
        }
    }
}
