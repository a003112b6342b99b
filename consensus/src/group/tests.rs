//! A lone voter: what it hands out when, and how it restarts from the persisted state.

use crate::group::*;
use types::{HardState, RaftIndex, Term, TermRun};

/// One group's disk: it holds only what was persisted before the crash.
#[derive(Default)]
pub(super) struct Disk {
    hard_state: HardState,
    entries: Vec<Entry>,
}

impl Disk {
    pub(super) fn persist(&mut self, hard_state: HardState, entries: &[Entry]) {
        if let Some(first) = entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend_from_slice(entries);
        }
        self.hard_state = hard_state;
    }

    pub(super) fn restore(&self, applied: u64) -> Restored {
        let mut terms: Vec<TermRun> = Vec::new();
        for entry in &self.entries {
            if terms.last().is_none_or(|run| run.term != entry.term) {
                terms.push(TermRun { first_index: entry.index, term: entry.term, base_offset: 0 });
            }
        }
        Restored {
            hard_state: self.hard_state,
            terms,
            entries: self.entries.clone(),
            applied: RaftIndex::new(applied),
            ..Restored::default()
        }
    }
}

fn leader() -> Group {
    let mut group = Group::new(GroupConfig::single(GroupId(7), 1), Restored::default()).unwrap();
    group.campaign();
    group
}

/// Persists and applies until nothing is left to do; returns the data of the commands applied.
fn settle(group: &mut Group, disk: &mut Disk) -> Vec<Bytes> {
    let mut applied = Vec::new();
    while let Some(ready) = group.ready() {
        disk.persist(group.hard_state(), &ready.entries);
        group.on_persisted(ready.number);
        if let Some(last) = ready.committed.last() {
            group.applied_to(last.index);
        }
        applied.extend(ready.committed.into_iter().filter(Entry::is_command).map(|entry| entry.data));
        group.check();
    }
    applied
}

#[test]
fn nothing_is_committed_before_it_is_persisted() {
    let mut group = leader();
    let mut disk = Disk::default();
    settle(&mut group, &mut disk);
    let position = group.propose(Bytes::from_static(b"a")).unwrap();
    let ready = group.ready().unwrap();
    assert_eq!(ready.entries.len(), 1);
    assert!(ready.committed.is_empty());
    assert!(group.ready().is_none(), "nothing is to be done until the entry is durable");
    assert!(group.commit() < position.index);
    group.on_persisted(ready.number);
    let ready = group.ready().unwrap();
    assert_eq!(ready.committed.last().map(|entry| entry.index), Some(position.index));
}

#[test]
fn proposals_go_on_while_earlier_ones_are_persisted() {
    let mut group = leader();
    settle(&mut group, &mut Disk::default());
    let mut numbers = Vec::new();
    for data in [b"a", b"b", b"c"] {
        group.propose(Bytes::from_static(data)).unwrap();
        let ready = group.ready().unwrap();
        assert!(ready.committed.is_empty());
        numbers.push(ready.number);
    }
    // One completion covers all before it.
    group.on_persisted(numbers[1]);
    assert_eq!(group.ready().unwrap().committed.len(), 2);
    group.on_persisted(numbers[2]);
    assert_eq!(group.ready().unwrap().committed.len(), 1);
}

#[test]
#[should_panic(expected = "was reported after")]
fn completions_out_of_order_are_a_bug() {
    let mut group = leader();
    let first = group.ready().unwrap().number;
    group.propose(Bytes::from_static(b"a")).unwrap();
    let second = group.ready().unwrap().number;
    group.on_persisted(second);
    group.on_persisted(first);
}

#[test]
fn a_replica_that_does_not_lead_refuses() {
    let mut group = Group::new(GroupConfig::single(GroupId(7), 1), Restored::default()).unwrap();
    assert_eq!(group.propose(Bytes::from_static(b"a")), Err(ProposeError::NotLeader));
}

#[test]
fn more_than_the_uncommitted_bound_is_refused_and_nothing_is_appended() {
    let mut config = GroupConfig::single(GroupId(7), 1);
    config.uncommitted_bytes_max = 10;
    let mut group = Group::new(config, Restored::default()).unwrap();
    group.campaign();
    let mut disk = Disk::default();
    settle(&mut group, &mut disk);
    group.propose(Bytes::from_static(b"0123456789")).unwrap();
    let end = group.last_index();
    assert_eq!(group.propose(Bytes::from_static(b"x")), Err(ProposeError::Full));
    assert_eq!(group.last_index(), end);
    settle(&mut group, &mut disk);
    assert!(group.propose(Bytes::from_static(b"x")).is_ok());
}

#[test]
fn a_restart_at_any_point_keeps_what_was_committed_and_moves_the_term() {
    for crash_after in 0..40 {
        let mut disk = Disk::default();
        let mut group = leader();
        let mut acked = Vec::new();
        for step in 0..crash_after {
            if step % 3 == 0 {
                group.propose(Bytes::copy_from_slice(&[step])).unwrap();
            } else if let Some(ready) = group.ready() {
                disk.persist(group.hard_state(), &ready.entries);
                group.on_persisted(ready.number);
                acked.extend(ready.committed.into_iter().filter(Entry::is_command).map(|entry| entry.data));
            }
        }
        let (term, applied) = (group.term(), 0);
        drop(group);
        let mut group = Group::new(GroupConfig::single(GroupId(7), 1), disk.restore(applied)).unwrap();
        group.campaign();
        assert!(disk.hard_state.term == Term(0) || group.term() > disk.hard_state.term);
        let kept = settle(&mut group, &mut disk);
        assert!(kept.starts_with(&acked), "crash after {crash_after} steps in term {term}");
    }
}

#[test]
fn compaction_keeps_the_terms() {
    let mut disk = Disk::default();
    let mut group = leader();
    settle(&mut group, &mut disk);
    for _ in 0..5 {
        group.propose(Bytes::from_static(b"a")).unwrap();
    }
    settle(&mut group, &mut disk);
    let mut group = Group::new(GroupConfig::single(GroupId(7), 1), disk.restore(group.applied().get())).unwrap();
    group.campaign();
    settle(&mut group, &mut disk);
    let end = group.last_index();
    group.compact(end);
    group.check();
    assert_eq!(
        (group.term_at(RaftIndex::new(1)), group.term_at(end), group.term_at(end.next())),
        (Some(Term(1)), Some(Term(2)), None)
    );
    assert_eq!(
        group.terms(),
        [
            TermRun { first_index: RaftIndex::new(1), term: Term(1), base_offset: 0 },
            TermRun { first_index: end, term: Term(2), base_offset: 0 }
        ]
    );
    group.propose(Bytes::from_static(b"b")).unwrap();
    assert_eq!(settle(&mut group, &mut disk).len(), 1);
}

#[test]
fn a_group_restored_above_its_log_is_refused() {
    let restored = Restored { applied: RaftIndex::new(3), ..Restored::default() };
    let refused = Group::new(GroupConfig::single(GroupId(7), 1), restored).err().unwrap();
    assert!(refused.to_string().contains("the log ends at 0"), "{refused}");
}

#[test]
fn the_configuration_survives_a_checkpoint() {
    let group = leader();
    let conf_state = members::decode(&group.conf_state()).unwrap();
    assert_eq!((conf_state.voters, conf_state.learners), (vec![1], vec![]));
}

#[test]
fn a_leaders_epoch_begins_with_its_first_commit() {
    let mut group = leader();
    assert_eq!((group.is_leader(), group.epoch()), (true, None));
    settle(&mut group, &mut Disk::default());
    assert_eq!(group.epoch(), Some(Term(1)));
}

#[test]
fn a_log_whose_terms_begin_above_the_cut_is_restored() {
    // The whole log is deleted: only the position before its start is known.
    let hard_state = HardState { term: Term(4), vote: 1, commit: RaftIndex::new(9) };
    let before = Some(Position { index: RaftIndex::new(9), term: Term(3) });
    let restored = Restored { hard_state, before, applied: RaftIndex::new(9), ..Restored::default() };
    let mut group = Group::new(GroupConfig::single(GroupId(7), 1), restored).unwrap();
    group.check();
    assert_eq!((group.term_at(RaftIndex::new(8)), group.term_at(RaftIndex::new(9))), (None, Some(Term(3))));
    group.campaign();
    assert_eq!(
        (group.term(), group.last_index(), group.term_at(RaftIndex::new(10))),
        (Term(5), RaftIndex::new(10), None),
        "not handed out yet"
    );
    settle(&mut group, &mut Disk::default());
    assert_eq!(
        group.terms(),
        [
            TermRun { first_index: RaftIndex::new(9), term: Term(3), base_offset: 0 },
            TermRun { first_index: RaftIndex::new(10), term: Term(5), base_offset: 0 }
        ]
    );
}

#[test]
fn a_log_of_a_term_that_the_hard_state_does_not_know_is_refused() {
    let mut disk = Disk::default();
    settle(&mut leader(), &mut disk);
    disk.hard_state.term = Term(0);
    let refused = Group::new(GroupConfig::single(GroupId(7), 1), disk.restore(0)).err().unwrap();
    assert!(refused.to_string().contains("the log ends in term 1"), "{refused}");
}

/// A message to peer 1.
fn message(kind: MessageType, from: u64, term: Term) -> Message {
    let mut message = Message { to: 1, from, term: term.0, ..Message::default() };
    message.set_msg_type(kind);
    message
}

/// A leader's append of entries of its own term after `index`.
fn append(term: Term, index: u64, log_term: Term, count: u64, commit: u64) -> Message {
    let entries = (1..=count).map(|n| eraftpb::Entry { index: index + n, term: term.0, ..Default::default() });
    let mut message = message(MessageType::MsgAppend, 2, term);
    (message.index, message.log_term, message.commit) = (index, log_term.0, commit);
    message.set_entries(entries.collect::<Vec<_>>().into());
    message
}

#[test]
fn a_lone_voter_does_not_win_while_its_log_is_on_its_way_to_the_disk() {
    let mut group = leader();
    settle(&mut group, &mut Disk::default());
    group.propose(Bytes::from_static(b"a")).unwrap();
    let in_flight = group.ready().unwrap().number;
    // A former member knows of a higher term.
    group.step(message(MessageType::MsgHeartbeat, 2, Term(5)));
    assert!(!group.is_leader());
    group.campaign();
    (0..100).for_each(|_| group.tick());
    assert!(!group.is_leader());
    group.on_persisted(in_flight);
    group.campaign();
    assert_eq!((group.is_leader(), group.term()), (true, Term(6)));
}

#[test]
fn a_recorded_commit_is_never_above_the_record_it_comes_with() {
    let config = GroupConfig { voters: vec![1, 2, 3], ..GroupConfig::single(GroupId(7), 1) };
    let mut group = Group::new(config, Restored::default()).unwrap();
    group.step(append(Term(3), 0, Term(0), 4, 4));
    let ready = group.ready().unwrap();
    assert_eq!((ready.entries.len(), ready.committed.len(), group.commit()), (4, 0, RaftIndex::new(4)));
    assert!(ready.messages.is_empty() && !ready.persisted_messages.is_empty(), "an acknowledgement waits for the disk");
    for entry in &ready.entries {
        let expected = HardState { term: Term(3), vote: 0, commit: entry.index };
        assert_eq!(group.hard_state_with(entry.index), expected);
    }
    assert_eq!((group.hard_state().commit, group.stable()), (RaftIndex::new(4), RaftIndex::ZERO));
    group.on_persisted(ready.number);
    assert_eq!(group.ready().unwrap().committed.len(), 4);
}

#[test]
fn a_message_that_a_peer_may_not_send_changes_nothing() {
    let mut group = leader();
    settle(&mut group, &mut Disk::default());
    let end = group.last_index();
    let mut proposal = message(MessageType::MsgPropose, 2, Term(0));
    proposal.set_entries(vec![eraftpb::Entry::default()].into());
    group.step(proposal);
    group.step(message(MessageType::MsgSnapshot, 2, Term(9)));
    group.step(message(MessageType::MsgHup, 2, Term(0)));
    group.step(Message { to: 3, ..message(MessageType::MsgHeartbeat, 2, Term(9)) });
    assert_eq!((group.last_index(), group.term(), group.is_leader()), (end, Term(1), true));
    assert!(!group.has_work());
}

#[test]
fn members_are_added_to_a_lone_voter_one_change_at_a_time() {
    let mut group = leader();
    let mut disk = Disk::default();
    settle(&mut group, &mut disk);
    let change = [Member::Voter(2), Member::Voter(3), Member::Learner(4)];
    let position = group.propose_members(&change).unwrap();
    assert_eq!(group.propose_members(&change), Err(MembersError::Busy));
    settle(&mut group, &mut disk);
    assert_eq!(group.applied(), position.index, "from here on a majority is needed");
    let joint = members::decode(&group.conf_state()).unwrap();
    assert_eq!((joint.voters, joint.voters_outgoing, joint.learners), (vec![1, 2, 3], vec![1], vec![4]));
    assert_eq!(group.propose_members(&change), Err(MembersError::Busy));

    // A restart at this point keeps both halves of the joint configuration.
    let conf_state = group.conf_state();
    let restored = Restored { conf_state: conf_state.clone(), ..disk.restore(position.index.get()) };
    let mut restarted = Group::new(GroupConfig::single(GroupId(7), 1), restored).unwrap();
    assert_eq!(restarted.conf_state(), conf_state);
    restarted.campaign();
    assert!(!restarted.is_leader(), "it needs another vote now");

    for peer in [2, 3] {
        let mut ack = message(MessageType::MsgAppendResponse, peer, Term(1));
        ack.index = group.last_index().get();
        group.step(ack);
    }
    settle(&mut group, &mut disk);
    let left = members::decode(&group.conf_state()).unwrap();
    assert_eq!((left.voters, left.voters_outgoing), (vec![1, 2, 3], vec![]));
}

#[test]
fn a_lone_voters_learners_hear_of_its_term_only_when_that_is_durable() {
    let mut group = leader();
    let mut disk = Disk::default();
    settle(&mut group, &mut disk);
    let position = group.propose_members(&[Member::Learner(2)]).unwrap();
    settle(&mut group, &mut disk);
    let restored = Restored { conf_state: group.conf_state(), ..disk.restore(position.index.get()) };
    let mut group = Group::new(GroupConfig::single(GroupId(7), 1), restored).unwrap();
    group.campaign();
    assert!(group.is_leader() && !group.has_durable_term());
    group.propose(Bytes::from_static(b"a")).unwrap();
    let ready = group.ready().unwrap();
    assert!(ready.messages.is_empty() && !ready.persisted_messages.is_empty());
    group.on_persisted(ready.number);
    assert!(group.has_durable_term());
    // From now on the learners get entries at once.
    let mut ack = message(MessageType::MsgAppendResponse, 2, Term(2));
    ack.index = group.last_index().get();
    group.step(ack);
    group.propose(Bytes::from_static(b"b")).unwrap();
    let ready = group.ready().unwrap();
    assert!(!ready.messages.is_empty() && ready.persisted_messages.is_empty());
}
