//! Runs the scripts in `testdata`; [`testkit::script`] says how they look. They drive the replicas of one partition on
//! brokers without cores, and deliver their messages.
//!
//! | command | effect |
//! |---|---|
//! | `brokers 1 2 3 [setting=value …]` | the brokers with a replica, the preferred leader first; what the topic sets |
//! | `append 1 [acks=1] [sequence=0] [bytes=10]` | a batch of one record for broker 1, the next of `#1`, `#2`, … |
//! | `deliver [1>2 …]` | delivers what is on its way, on these links or on all, and names it |
//! | `lose 1>2 …` | drops what is on its way there |
//! | `run [without 2]` | delivers until nothing is on its way; what broker 2 sends or should get is lost |
//! | `tick [1 …]` | 100 ms pass, and the timers of these brokers or of all run |
//! | `away 1 2` | broker 1 no longer hears broker 2 |
//! | `back 1 2` | it does again |
//! | `trim 1 5` | broker 1 moves the log's start to offset 5 |
//! | `leave 1` | broker 1 hands its leadership over |
//! | `state` | each replica's state |

use super::{
    batch,
    desk::{Machine, answer_of},
};
use crate::{
    on_core::OnCore,
    partition::{Acks, Committed},
};
use consensus::{plane::node_of, wire::PeerMessage};
use runtime::{
    backend::{self, Backend, LocalTask, QueueEnd},
    timer::Timers,
};
use std::{
    cell::{Cell, RefCell},
    fmt::Write,
    path::Path,
    rc::Rc,
    task::{Context, Waker},
    time::Duration,
};
use testkit::script;

#[test]
fn scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/partition/testdata");
    script::check(&folder, 6, Replicas::begin);
}

/// Time that passes only where a script says so.
struct Stillness {
    now: Cell<Duration>,
    tasks: RefCell<Vec<LocalTask>>,
}

impl Backend for Stillness {
    fn now(&self) -> Duration {
        self.now.get()
    }

    fn spawn(&self, task: LocalTask) {
        self.tasks.borrow_mut().push(task);
    }

    fn queue(&self, _: usize) -> (Box<dyn QueueEnd>, Box<dyn QueueEnd>) {
        panic!("there is one core")
    }
}

impl Stillness {
    fn poll_tasks(&self) {
        let mut tasks = self.tasks.take();
        tasks.retain_mut(|task| task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        self.tasks.borrow_mut().extend(tasks);
    }
}

/// A message, the broker that has sent it and the one that it is for.
type Sent = (i32, i32, PeerMessage);

/// The replicas of one partition, and what is on its way between them.
struct Replicas {
    time: Rc<Stillness>,
    machines: Vec<Machine>,
    under_way: Vec<Sent>,
    /// Appends without an answer, by number.
    waiting: Vec<(usize, Committed)>,
    appended: usize,
    /// How many announcements of each broker's replica the trace has.
    announced: Vec<usize>,
    trace: String,
}

impl Replicas {
    fn begin() -> Self {
        let time = Rc::new(Stillness { now: Cell::new(Duration::from_secs(1_000)), tasks: RefCell::default() });
        backend::install(Some(time.clone()));
        Timers::driven_by_hand().install();
        Self {
            time,
            machines: Vec::new(),
            under_way: Vec::new(),
            waiting: Vec::new(),
            appended: 0,
            announced: Vec::new(),
            trace: String::new(),
        }
    }

    fn tell(&mut self, what: impl std::fmt::Display) {
        writeln!(self.trace, "{what}").expect("a string takes everything");
    }

    fn machine(&self, node: &str) -> &Machine {
        let node: i32 = node.parse().expect("a broker's number");
        self.machines.iter().find(|machine| machine.desk.node() == node).expect("the broker has a replica")
    }

    /// Lets every replica do what it can without another message.
    fn settle(&mut self) {
        for _ in 0..3 {
            self.machines.iter_mut().for_each(Machine::settle);
            self.time.poll_tasks();
        }
        for machine in &self.machines {
            let from = machine.desk.node();
            self.under_way.extend(machine.take_sent().into_iter().map(|(to, message)| (from, node_of(to), message)));
        }
        let mut lines = Vec::new();
        for (machine, announced) in self.machines.iter().zip(&mut self.announced) {
            let led = machine.desk.led.borrow();
            for led in &led[*announced..] {
                let node = machine.desk.node();
                lines.push(match led.node {
                    Some(leader) if leader == node => {
                        format!("{node}: leads, epoch {}, in sync {:?}", led.epoch, led.in_sync)
                    }
                    Some(leader) => format!("{node}: led by {leader}, epoch {}", led.epoch),
                    None => format!("{node}: no leader"),
                });
            }
            *announced = led.len();
        }
        self.waiting.retain_mut(|(number, committed)| match answer_of(committed) {
            None => true,
            Some(answer) => {
                lines.push(match answer {
                    Ok(offset) => format!("#{number}: offset {offset}"),
                    Err(why) => format!("#{number}: {why:?}"),
                });
                false
            }
        });
        lines.into_iter().for_each(|line| self.tell(line));
    }

    fn append(&mut self, node: &str, settings: &[(&str, &str)]) {
        let get = |name| settings.iter().find(|(of, _)| *of == name).map(|(_, value)| *value);
        let acks = if get("acks") == Some("1") { Acks::Leader } else { Acks::All };
        let sequence = get("sequence").map(|number| number.parse().expect("a sequence number"));
        let (records, header) = batch(get("bytes").map_or(10, |bytes| bytes.parse().expect("a size")), sequence);
        self.appended += 1;
        let (number, machine) = (self.appended, self.machine(node));
        match machine.partition().append(&machine.desk, records, &header, 2_000, acks) {
            Ok(committed) => self.waiting.push((number, committed)),
            Err(why) => self.tell(format!("#{number}: {why:?}")),
        }
    }

    /// Delivers or drops what is on its way, on these links or on all.
    fn pass(&mut self, links: &[&str], is_lost: bool) {
        let is_of = |sent: &Sent| links.is_empty() || links.contains(&format!("{}>{}", sent.0, sent.1).as_str());
        let (passing, staying) = std::mem::take(&mut self.under_way).into_iter().partition(is_of);
        self.under_way = staying;
        let passing: Vec<Sent> = passing;
        for (from, to, message) in passing {
            let lost = if is_lost { " lost" } else { "" };
            self.tell(format!("{from}>{to} {}{lost}", described(&message)));
            if !is_lost {
                self.machine(&to.to_string()).receive(message);
            }
        }
    }

    fn run(&mut self, without: Option<&str>) {
        let without: Option<i32> = without.map(|node| node.parse().expect("a broker's number"));
        for _ in 0..1_000 {
            self.settle();
            if self.under_way.is_empty() {
                return;
            }
            for (from, to, message) in std::mem::take(&mut self.under_way) {
                if Some(from) != without && Some(to) != without {
                    self.machine(&to.to_string()).receive(message);
                }
            }
        }
        panic!("they never stop talking");
    }

    fn tick(&mut self, nodes: &[&str]) {
        self.time.now.set(self.time.now.get() + Duration::from_millis(100));
        let ticks = |machine: &&Machine| nodes.is_empty() || nodes.contains(&machine.desk.node().to_string().as_str());
        for machine in self.machines.iter().filter(ticks) {
            machine.partition().tick(&machine.desk, self.time.now.get());
        }
    }

    fn states(&mut self) {
        let mut lines = Vec::new();
        for machine in &self.machines {
            let (desk, partition) = (&machine.desk, machine.partition());
            let leads = if partition.leads() { "leads" } else { "follows" };
            let (start, end) = (partition.log_start(desk), partition.end());
            let watermark = partition.high_watermark();
            lines.push(format!("{}: {leads}, start {start}, high watermark {watermark}, end {end}", desk.node()));
        }
        lines.into_iter().for_each(|line| self.tell(line));
    }
}

/// A message's kind and its most telling fields.
fn described(message: &PeerMessage) -> String {
    let (message, batches) = match message {
        PeerMessage::Raft { message, .. } => (message, 0),
        PeerMessage::Append { message, payloads, .. } => (message, payloads.len()),
        PeerMessage::Rest(rest) => return format!("Rest at={}", rest.at.index),
        _ => panic!("a partition sends no such message"),
    };
    let mut text = format!("{:?} term={}", message.get_msg_type(), message.term);
    for (name, value) in [
        ("index", message.index),
        ("entries", message.entries.len() as u64),
        ("batches", batches as u64),
        ("commit", message.commit),
    ] {
        if value > 0 {
            write!(text, " {name}={value}").expect("a string takes everything");
        }
    }
    if message.reject {
        text.push_str(" rejected");
    }
    text
}

impl script::Walker for Replicas {
    fn command(&mut self, line: &str) {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let verb = words.remove(0);
        let settings: Vec<(&str, &str)> = words.iter().filter_map(|word| word.split_once('=')).collect();
        words.retain(|word| !word.contains('='));
        match verb {
            "brokers" => {
                let nodes: Vec<i32> = words.iter().map(|node| node.parse().expect("a broker's number")).collect();
                self.machines = nodes.iter().map(|node| Machine::new(*node, &nodes, &settings)).collect();
                self.announced = vec![0; nodes.len()];
            }
            "append" => self.append(words[0], &settings),
            "deliver" => self.pass(&words, false),
            "lose" => return self.pass(&words, true),
            "run" => self.run(words.get(1).copied()),
            "tick" => self.tick(&words),
            "away" => {
                let (machine, lost) = (self.machine(words[0]), words[1].parse().expect("a broker's number"));
                machine.desk.there.borrow_mut().remove(&lost);
                machine.partition().on_core_lost(&machine.desk, lost);
            }
            "back" => {
                let (machine, back) = (self.machine(words[0]), words[1].parse().expect("a broker's number"));
                machine.desk.there.borrow_mut().insert(back);
                machine.partition().on_core_reachable(&machine.desk);
            }
            "trim" => {
                let (machine, offset) = (self.machine(words[0]), words[1].parse().expect("an offset"));
                if let Err(why) = machine.partition().trim(&machine.desk, offset) {
                    self.tell(format!("{why:?}"));
                }
            }
            "leave" => {
                let machine = self.machine(words[0]);
                if !machine.partition().hand_over(&machine.desk, None) {
                    self.tell("nobody can take it");
                }
            }
            "state" => self.states(),
            other => panic!("{other}: no such command"),
        }
        self.settle();
    }

    fn take_trace(&mut self) -> String {
        std::mem::take(&mut self.trace)
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        self.machines.clear();
        self.time.tasks.take();
        backend::install(None);
        Rc::<Timers>::default().install();
    }
}
