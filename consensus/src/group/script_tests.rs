//! Runs the scripts in `testdata`; [`testkit::script`] says how they look. They drive the replicas of one group,
//! deliver their messages, and say when their writes are durable.
//!
//! | command | effect |
//! |---|---|
//! | `peers 1 2 3` | the voters; each has an empty disk |
//! | `campaign 1` | peer 1 stands for election |
//! | `propose 1 x` | peer 1 appends `x` |
//! | `hold 1` | from now on, writes of peer 1 stay in flight |
//! | `persist 1` | they become durable, and so do its later ones at once |
//! | `deliver [1>2 …]` | delivers what is on its way, on these links or on all, and names it |
//! | `lose [1>2 …]` | drops it |
//! | `run [without 2]` | delivers until nothing is on its way; what peer 2 sends or should get is lost |
//! | `tick [1 …]` | one tick of the timers of these peers or of all |
//! | `crash 1` | peer 1 starts again, with what is durable |
//! | `hand-over 1 2` | peer 1 hands its leadership to peer 2 |
//! | `read 1` | peer 1 asks whether it still leads |
//! | `join 4` | a peer with an empty disk comes, which is no member yet |
//! | `member 1 learner=4`, `voter=4`, `removed=2` | peer 1 proposes this change of the members |
//! | `state` | each peer's state |

use super::tests::Disk;
use crate::group::*;
use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write,
    path::Path,
};
use testkit::script;
use types::HardState;

#[test]
fn scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/group/testdata");
    script::check(&folder, 6, Walker::default);
}

/// A write of a replica that is not durable.
struct Writing {
    number: u64,
    hard_state: HardState,
    entries: Vec<Entry>,
    promises: Vec<Message>,
}

struct Peer {
    group: Group,
    disk: Disk,
    writing: VecDeque<Writing>,
    is_held: bool,
    /// The state that the trace named last: whether this peer leads, and its leader.
    told: (bool, Option<u64>),
}

#[derive(Default)]
struct Walker {
    voters: Vec<u64>,
    peers: BTreeMap<u64, Peer>,
    under_way: Vec<Message>,
    reads: u64,
    trace: String,
}

impl Peer {
    fn new(id: u64, voters: &[u64], disk: Disk) -> Self {
        let config = GroupConfig {
            voters: voters.to_vec(),
            election_jitter: 3 * id as usize,
            heartbeat_ticks: 2,
            ..GroupConfig::single(GroupId(9), id)
        };
        let group = Group::new(config, disk.restore(0)).expect("it was persisted by a group");
        Self { group, disk, writing: VecDeque::new(), is_held: false, told: (false, None) }
    }

    /// Does everything that needs no other peer. Returns the messages that may leave now.
    fn settle(&mut self, id: u64, trace: &mut String) -> Vec<Message> {
        let mut sent = Vec::new();
        let mut tell = |what: String| writeln!(trace, "{id}: {what}").expect("a string takes everything");
        loop {
            if !self.is_held {
                while let Some(write) = self.writing.pop_front() {
                    self.disk.persist(write.hard_state, &write.entries);
                    self.group.on_persisted(write.number);
                    sent.extend(write.promises);
                }
            }
            let Some(ready) = self.group.ready() else { break };
            if let [first, .., last] | [first @ last] = &ready.entries[..] {
                tell(format!("writes {} to {} in term {}", first.index, last.index, last.term));
            }
            sent.extend(ready.messages);
            for entry in &ready.committed {
                let data = match entry.entry_type {
                    ENTRY_NORMAL => std::str::from_utf8(&entry.data).expect("a script proposes text"),
                    _ => "a change of the members",
                };
                tell(format!("commits {} {data}", entry.index).trim_end().to_owned());
            }
            for read in ready.reads {
                tell(format!("still leads, read {} at {}", read.token, read.index));
            }
            if let Some(last) = ready.committed.last() {
                self.group.applied_to(last.index);
            }
            let (number, hard_state) = (ready.number, self.group.hard_state());
            let (entries, promises) = (ready.entries, ready.persisted_messages);
            self.writing.push_back(Writing { number, hard_state, entries, promises });
            self.group.check();
        }
        let now = (self.group.is_leader(), self.group.leader());
        if std::mem::replace(&mut self.told, now) != now {
            let term = self.group.term();
            match now {
                (true, _) => tell(format!("leads in term {term}")),
                (false, Some(leader)) => tell(format!("follows {leader} in term {term}")),
                (false, None) => tell(format!("has no leader in term {term}")),
            }
        }
        sent
    }
}

/// A message's kind and its most telling fields.
fn described(message: &Message) -> String {
    let mut text = format!("{:?} term={}", message.get_msg_type(), message.term);
    let fields = [("index", message.index), ("entries", message.entries.len() as u64), ("commit", message.commit)];
    for (name, value) in fields.into_iter().filter(|(_, value)| *value > 0) {
        write!(text, " {name}={value}").expect("a string takes everything");
    }
    if message.reject {
        text.push_str(" rejected");
    }
    text
}

fn number(word: &str) -> u64 {
    word.parse().expect("a peer's number")
}

impl Walker {
    fn tell(&mut self, what: impl std::fmt::Display) {
        writeln!(self.trace, "{what}").expect("a string takes everything");
    }

    fn peer(&mut self, word: &str) -> &mut Peer {
        self.peers.get_mut(&number(word)).expect("there is this peer")
    }

    fn settle(&mut self) {
        for (id, peer) in &mut self.peers {
            self.under_way.extend(peer.settle(*id, &mut self.trace));
        }
    }

    /// Delivers or drops what is on its way, on these links or on all.
    fn pass(&mut self, links: &[&str], is_lost: bool) {
        let link = |message: &Message| format!("{}>{}", message.from, message.to);
        let is_of = |message: &Message| links.is_empty() || links.contains(&link(message).as_str());
        let (passing, staying) = std::mem::take(&mut self.under_way).into_iter().partition(is_of);
        self.under_way = staying;
        let passing: Vec<Message> = passing;
        for message in passing {
            let lost = if is_lost { " lost" } else { "" };
            self.tell(format!("{} {}{lost}", link(&message), described(&message)));
            if !is_lost && let Some(peer) = self.peers.get_mut(&message.to) {
                peer.group.step(message);
            }
        }
    }

    fn run_all(&mut self, without: Option<u64>) {
        for _ in 0..1_000 {
            self.settle();
            if self.under_way.is_empty() {
                return;
            }
            for message in std::mem::take(&mut self.under_way) {
                let is_cut = Some(message.from) == without || Some(message.to) == without;
                if !is_cut && let Some(peer) = self.peers.get_mut(&message.to) {
                    peer.group.step(message);
                }
            }
        }
        panic!("they never stop talking");
    }

    fn change_members(&mut self, words: &[&str]) {
        let changes = words[1..].iter().map(|word| match word.split_once('=').expect("a change") {
            ("learner", peer) => Member::Learner(number(peer)),
            ("voter", peer) => Member::Voter(number(peer)),
            ("removed", peer) => Member::Removed(number(peer)),
            (other, _) => panic!("{other}: no such change"),
        });
        let changes: Vec<Member> = changes.collect();
        if let Err(why) = self.peer(words[0]).group.propose_members(&changes) {
            self.tell(format!("{why:?}"));
        }
    }

    fn states(&mut self) {
        let mut lines = Vec::new();
        for (id, peer) in &self.peers {
            let group = &peer.group;
            let (term, last, commit) = (group.term(), group.last_index(), group.commit());
            let (voters, learners) = (group.voters(), group.learners());
            lines.push(format!(
                "{id}: term {term}, last {last}, commit {commit}, voters {voters:?}, learners {learners:?}"
            ));
        }
        lines.into_iter().for_each(|line| self.tell(line));
    }
}

impl script::Walker for Walker {
    fn command(&mut self, line: &str) {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        match words.remove(0) {
            "peers" => {
                self.voters = words.iter().copied().map(number).collect();
                let new = |id: &u64| (*id, Peer::new(*id, &self.voters, Disk::default()));
                self.peers = self.voters.iter().map(new).collect();
            }
            "join" => {
                let peer = Peer::new(number(words[0]), &self.voters, Disk::default());
                self.peers.insert(number(words[0]), peer);
            }
            "campaign" => self.peer(words[0]).group.campaign(),
            "propose" => {
                let data = Bytes::copy_from_slice(words[1].as_bytes());
                if let Err(why) = self.peer(words[0]).group.propose(data) {
                    self.tell(format!("{why:?}"));
                }
            }
            "hold" => self.peer(words[0]).is_held = true,
            "persist" => self.peer(words[0]).is_held = false,
            "deliver" => self.pass(&words, false),
            "lose" => self.pass(&words, true),
            "run" => self.run_all(words.get(1).copied().map(number)),
            "tick" => {
                let ticks = |id: &u64| words.is_empty() || words.contains(&id.to_string().as_str());
                self.peers.iter_mut().filter(|(id, _)| ticks(id)).for_each(|(_, peer)| peer.group.tick());
            }
            "crash" => {
                let id = number(words[0]);
                let before = self.peers.remove(&id).expect("there is this peer");
                self.peers.insert(id, Peer::new(id, &self.voters, before.disk));
            }
            "hand-over" => self.peer(words[0]).group.hand_over(number(words[1])),
            "read" => {
                self.reads += 1;
                let token = self.reads;
                self.peer(words[0]).group.read_index(token);
            }
            "member" => self.change_members(&words),
            "state" => self.states(),
            other => panic!("{other}: no such command"),
        }
        self.settle();
    }

    fn take_trace(&mut self) -> String {
        std::mem::take(&mut self.trace)
    }
}
