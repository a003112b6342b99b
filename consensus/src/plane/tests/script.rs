//! Runs the scripts in `testdata`; [`testkit::script`] says how they look. They drive the planes of three brokers in
//! lockstep. Broker 1 leads at first.
//!
//! | command | effect |
//! |---|---|
//! | `write 2 NAME [acks=leader]` | broker 2 is asked to create a topic, the next of `#1`, `#2`, … |
//! | `read 2` | broker 2 is asked to read what every write before has done |
//! | `pass 3` | 3 times 100 ms pass |
//! | `cut 1>2 …` | nothing arrives on these links |
//! | `heal` | everything arrives again |
//! | `slow 1` | nothing becomes durable on broker 1; `fast` ends that |
//! | `hand-over 1` | broker 1 hands its leadership over |
//! | `state` | each broker's topics, leader and leases |

use super::*;
use std::{fmt::Write as _, path::Path};
use testkit::script;

#[test]
fn scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/plane/testdata");
    script::check(&folder, 5, Walker::begin);
}

/// A message between planes, as the trace names it. Messages that renew a lease have no line.
pub(super) fn described(message: &PlaneMessage) -> Option<String> {
    Some(match message {
        PlaneMessage::Forward { requests, acks, .. } => format!("Forward {} acks={acks:?}", requests.len()),
        PlaneMessage::Forwarded { answer: Ok(Accepted { term, index, .. }), .. } => {
            format!("Forwarded index={index} term={term}")
        }
        PlaneMessage::Forwarded { answer: Err(why), .. } => format!("Forwarded {}", refusal(*why)),
        PlaneMessage::ReadIndex { .. } => "ReadIndex".to_owned(),
        PlaneMessage::ReadIndexed { answer: Ok(index), .. } => format!("ReadIndexed index={index}"),
        PlaneMessage::ReadIndexed { answer: Err(why), .. } => format!("ReadIndexed {}", refusal(*why)),
        PlaneMessage::Probe { .. } | PlaneMessage::Heartbeat { .. } => return None,
        PlaneMessage::Describe { .. } => "Describe".to_owned(),
        PlaneMessage::Described { .. } => "Described".to_owned(),
    })
}

fn refusal(why: Refused) -> String {
    match why {
        Refused::NotLeader { leader } => format!("NotLeader leader={:?}", leader.map(node_of)),
        Refused::Busy => "Busy".to_owned(),
    }
}

struct Walker {
    world: World,
    /// By number: the broker and its token, for a write and for a read.
    writes: BTreeMap<usize, (i32, Token)>,
    reads: BTreeMap<usize, (i32, Token)>,
    asked: usize,
    /// The leader that the trace named last; 0 for none.
    led: i32,
    trace: String,
}

impl Walker {
    fn begin() -> Self {
        let mut world = World::new();
        world.heard.clear();
        let (writes, reads) = (BTreeMap::new(), BTreeMap::new());
        Self { world, writes, reads, asked: 0, led: 1, trace: String::new() }
    }

    fn tell(&mut self, what: impl std::fmt::Display) {
        writeln!(self.trace, "{what}").expect("a string takes everything");
    }

    /// Tells what has arrived and been answered.
    fn tell_news(&mut self) {
        for heard in std::mem::take(&mut self.world.heard) {
            self.tell(heard);
        }
        for (number, (node, token)) in self.writes.clone() {
            let Some(answer) = self.world.node(node).written.remove(&token) else { continue };
            self.writes.remove(&number);
            match answer {
                Ok(Written { term, index, results }) => {
                    let [result] = &results[..] else { panic!("{results:?}") };
                    let result = match result {
                        Ok(Ok(_)) => "done".to_owned(),
                        Ok(Err(rejected)) => format!("{rejected:?}"),
                        Err(late) => format!("{late:?}"),
                    };
                    self.tell(format!("#{number}: {result}, index {index}, term {term}"));
                }
                Err(why) => self.tell(format!("#{number}: {why:?}")),
            }
        }
        for (number, (node, token)) in self.reads.clone() {
            let Some(answer) = self.world.node(node).read.remove(&token) else { continue };
            self.reads.remove(&number);
            let seen = topics(self.world.node(node)).join(" ");
            match answer {
                Ok(()) => self.tell(format!("#{number}: reads [{seen}]")),
                Err(why) => self.tell(format!("#{number}: {why:?}")),
            }
        }
        let leading = self.world.nodes.iter().filter(|node| node.plane.is_established());
        let leader = leading.max_by_key(|node| node.group.term()).map_or(0, |node| node_of(node.peer));
        if std::mem::replace(&mut self.led, leader) != leader {
            self.tell(if leader == 0 { "nobody leads".to_owned() } else { format!("{leader} leads") });
        }
    }

    fn states(&mut self) {
        let now = self.world.now;
        let mut lines = Vec::new();
        for node in &self.world.nodes {
            let (names, leader) = (topics(node).join(" "), node.plane.leader());
            let leads = if node.plane.holds_lease(&node.group, now) { ", holds the leader's lease" } else { "" };
            let reads = if node.plane.read_lease().is_some_and(|until| until > now) { ", may read" } else { "" };
            lines.push(format!("{}: [{names}], leader {leader:?}{leads}{reads}", node_of(node.peer)));
        }
        lines.into_iter().for_each(|line| self.tell(line));
    }
}

fn number(word: &str) -> i32 {
    word.parse().expect("a number")
}

impl script::Walker for Walker {
    fn command(&mut self, line: &str) {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let verb = words.remove(0);
        let world = &mut self.world;
        match verb {
            "write" => {
                let (acks, until) = match words.get(2) {
                    Some(&"acks=leader") => (Acks::Leader, Until::Acked),
                    _ => (Acks::Quorum, Until::Shown),
                };
                let node = number(words[0]);
                self.asked += 1;
                self.writes.insert(self.asked, (node, submit(world, node, words[1], acks, until)));
            }
            "read" => {
                let (node, now) = (number(words[0]), world.now);
                let Node { plane, group, .. } = world.node(node);
                let token = plane.read(group, now, now + Duration::from_secs(5));
                self.asked += 1;
                self.reads.insert(self.asked, (node, token));
            }
            "pass" => world.run(number(words[0]) as usize),
            "cut" => {
                let link = |word: &&str| word.split_once('>').map(|(from, to)| (number(from), number(to)));
                world.cut.extend(words.iter().map(|word| link(word).expect("a link")));
            }
            "heal" => world.cut.clear(),
            "slow" => world.slow_disk = Some(number(words[0])),
            "fast" => world.slow_disk = None,
            "hand-over" => {
                let Node { plane, group, .. } = world.node(number(words[0]));
                if !plane.hand_over(group, |_| true) {
                    self.tell("nobody can take it");
                }
            }
            "state" => self.states(),
            other => panic!("{other}: no such command"),
        }
        self.world.settle();
        self.tell_news();
    }

    fn take_trace(&mut self) -> String {
        std::mem::take(&mut self.trace)
    }
}
