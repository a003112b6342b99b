//! Several replicas whose messages arrive at once, unless the test keeps a message for itself.

use crate::group::*;
use std::collections::BTreeMap;
use types::{HardState, RaftIndex, Term};

struct Peers(BTreeMap<u64, Group>);

impl Peers {
    fn new(voters: u64) -> Self {
        let new = |peer| {
            let config = GroupConfig {
                voters: (1..=voters).collect(),
                election_jitter: peer as usize,
                kept_entries_max: 5,
                ..GroupConfig::single(GroupId(9), peer)
            };
            (peer, Group::new(config, Restored::default()).unwrap())
        };
        let mut peers = Self((1..=voters).map(new).collect());
        peers.get(1).campaign();
        peers.settle(|_| true);
        assert!(peers.get(1).epoch().is_some());
        peers
    }

    fn get(&mut self, peer: u64) -> &mut Group {
        self.0.get_mut(&peer).unwrap()
    }

    /// Persists, applies, and delivers messages that pass, until nothing is left to do. Returns the messages that
    /// did not pass.
    fn settle(&mut self, passes: impl Fn(&Message) -> bool) -> Vec<Message> {
        let mut kept = Vec::new();
        loop {
            let mut messages = Vec::new();
            for group in self.0.values_mut() {
                while let Some(ready) = group.ready() {
                    messages.extend(ready.messages);
                    group.on_persisted(ready.number);
                    messages.extend(ready.persisted_messages);
                    if let Some(last) = ready.committed.last() {
                        group.applied_to(last.index);
                    }
                    group.check();
                }
            }
            if messages.is_empty() {
                return kept;
            }
            for message in messages {
                match passes(&message) {
                    false => kept.push(message),
                    true if message.get_msg_type() == MessageType::MsgSnapshot => {
                        self.get(message.to).step_snapshot(message);
                    }
                    true => self.get(message.to).step(message),
                }
            }
        }
    }

    fn tick(&mut self, ticks: usize, passes: impl Fn(&Message) -> bool) {
        for _ in 0..ticks {
            self.0.values_mut().for_each(Group::tick);
            self.settle(&passes);
        }
    }
}

#[test]
fn a_peer_behind_the_log_gets_the_snapshot() {
    let mut peers = Peers::new(3);
    let apart = |message: &Message| message.to != 3 && message.from != 3;
    for _ in 0..20 {
        peers.get(1).propose(Bytes::from_static(b"x")).unwrap();
        peers.settle(apart);
    }
    let leader = peers.get(1);
    let at = Position { index: leader.applied(), term: leader.term() };
    leader.set_snapshot(SnapshotMark { at, conf_state: leader.conf_state() });
    assert_eq!(leader.compact(at.index), at.index.back(5), "no more is kept for a peer that lags");
    peers.tick(3, |_| true);
    peers.get(1).report_snapshot(3, true);
    peers.tick(3, |_| true);
    let index = peers.get(1).last_index();
    let laggard = peers.get(3);
    assert_eq!((laggard.applied(), laggard.voters()), (index, vec![1, 2, 3]));
    assert_eq!(laggard.term_at(at.index), Some(at.term));
    peers.get(1).propose(Bytes::from_static(b"y")).unwrap();
    peers.settle(|_| true);
    assert_eq!(peers.get(3).last_index(), index.next());
}

#[test]
fn a_replica_that_hears_its_leader_votes_for_nobody_else() {
    let mut peers = Peers::new(3);
    peers.tick(1, |_| true);
    let term = peers.get(1).term();
    // A late answer of another term makes raft-rs forget its leader. It would then vote for any candidate.
    let mut late = Message { from: 3, to: 2, term: (term + 1).0, reject: true, ..Message::default() };
    late.set_msg_type(MessageType::MsgRequestPreVoteResponse);
    peers.get(2).step(late);
    assert_eq!((peers.get(2).term(), peers.get(2).leader()), (term + 1, None));
    let ask = |kind, term| {
        let mut message = Message { from: 3, to: 2, term, index: 100, log_term: term, ..Message::default() };
        message.set_msg_type(kind);
        message
    };
    let (pre_vote, vote) = (MessageType::MsgRequestPreVote, MessageType::MsgRequestVote);
    let asked = |group: &mut Group, message: Message| {
        group.step(message);
        let mut answers = Vec::new();
        while let Some(ready) = group.ready() {
            group.on_persisted(ready.number);
            answers.extend(ready.persisted_messages);
        }
        answers.iter().any(|answer| !answer.reject)
    };
    assert!(!asked(peers.get(2), ask(pre_vote, (term + 2).0)));
    assert!(!asked(peers.get(2), ask(vote, (term + 2).0)));
    for _ in 0..8 {
        peers.get(2).tick();
    }
    assert!(asked(peers.get(2), ask(vote, (term + 3).0)), "the promise ends with the least election timeout");
}

#[test]
fn nobody_is_elected_right_after_a_start() {
    let restored =
        Restored { hard_state: HardState { term: Term(3), vote: 1, commit: RaftIndex::ZERO }, ..Restored::default() };
    let config = GroupConfig { voters: vec![1, 2, 3], ..GroupConfig::single(GroupId(9), 2) };
    let mut group = Group::new(config, restored).unwrap();
    let mut vote = Message { from: 3, to: 2, term: 4, ..Message::default() };
    vote.set_msg_type(MessageType::MsgRequestVote);
    group.step(vote.clone());
    assert_eq!(group.term(), Term(3));
    for _ in 0..8 {
        group.tick();
    }
    group.step(vote);
    assert_eq!(group.term(), Term(4));
}

#[test]
fn a_leader_hands_over_and_its_candidate_is_heard() {
    let mut peers = Peers::new(3);
    peers.tick(1, |_| true);
    peers.get(1).hand_over(2);
    assert!(peers.get(1).is_handing_over());
    assert_eq!(peers.get(1).propose(Bytes::from_static(b"x")), Err(ProposeError::Full));
    peers.settle(|_| true);
    assert!(peers.get(2).is_leader() && !peers.get(1).is_leader());
}

#[test]
fn a_leader_that_is_heard_knows_up_to_where_it_has_committed() {
    let mut peers = Peers::new(3);
    peers.get(1).read_index(77);
    let mut reads = Vec::new();
    // The question and the answers travel as heartbeats.
    for _ in 0..4 {
        while let Some(ready) = peers.get(1).ready() {
            peers.get(1).on_persisted(ready.number);
            reads.extend(ready.reads);
            for message in ready.messages.into_iter().chain(ready.persisted_messages) {
                let to = message.to;
                peers.get(to).step(message);
            }
        }
        let answers: Vec<Message> =
            [2, 3].into_iter().filter_map(|peer| peers.get(peer).ready()).fold(Vec::new(), |mut all, ready| {
                all.extend(ready.persisted_messages);
                all.extend(ready.messages);
                all
            });
        for message in answers.into_iter().filter(|message| message.to == 1) {
            peers.get(1).step(message);
        }
    }
    let index = peers.get(1).commit();
    assert_eq!(reads, [ReadIndex { token: 77, index }]);
}

#[test]
fn a_leader_that_hands_over_knows_what_becomes_of_it() {
    let mut peers = Peers::new(3);
    let term = peers.get(1).term();
    assert_eq!(peers.get(1).succession(term), Succession::Leads);
    peers.get(1).hand_over(2);
    let of_new_leader = |message: &Message| message.to == 1 && message.get_msg_type() == MessageType::MsgAppend;
    let kept = peers.settle(|message| !of_new_leader(message));
    assert_eq!(peers.get(1).succession(term), Succession::Open, "it has voted, and knows no more");
    kept.into_iter().for_each(|message| peers.get(1).step(message));
    peers.settle(|_| true);
    assert_eq!(peers.get(1).succession(term), Succession::Passed(2));

    let mut peers = Peers::new(3);
    let term = peers.get(1).term();
    peers.get(1).hand_over(2);
    peers.tick(20, |_| false);
    assert_eq!(peers.get(1).succession(term), Succession::SteppedDown);
}
