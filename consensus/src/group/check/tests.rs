//! Messages with fields that no replica would send. None of them aborts the process or changes the replica.

use crate::group::check::*;
use crate::group::{ConfigurationError, EntryError, Group, GroupConfig, Member, ProposeError, Restored, Unreadable};
use bytes::Bytes;
use types::{GroupId, Term};
use types::{Position, RaftIndex};

fn message(kind: MessageType, from: u64, term: Term) -> Message {
    let mut message = Message { to: 1, from, term: term.0, ..Message::default() };
    message.set_msg_type(kind);
    message
}

fn entry(index: u64, term: Term, data: &'static [u8]) -> eraftpb::Entry {
    eraftpb::Entry { index, term: term.0, data: Bytes::from_static(data), ..eraftpb::Entry::default() }
}

fn append(term: Term, (index, log_term): (u64, u64), commit: u64, entries: Vec<eraftpb::Entry>) -> Message {
    let mut append = Message { index, log_term, commit, ..message(MessageType::MsgAppend, 2, term) };
    append.set_entries(entries.into());
    append
}

/// Rejects data that begins with an x, for some reason.
fn holds(data: &[u8]) -> Result<(), EntryError> {
    if data.first() == Some(&b'x') { Err(EntryError::Count(0)) } else { Ok(()) }
}

fn settle(group: &mut Group) {
    while let Some(ready) = group.ready() {
        group.on_persisted(ready.number);
        if let Some(last) = ready.committed.last() {
            group.applied_to(last.index);
        }
        group.check();
    }
}

/// Replica 1 of three, which follows replica 2 in term 5. Its entries 1 to 4 have terms 3, 3, 5 and 5; the first
/// three are committed.
fn follower() -> Group {
    let config = GroupConfig { voters: vec![1, 2, 3], holds, has_leases: false, ..GroupConfig::single(GroupId(7), 1) };
    let mut group = Group::new(config, Restored::default()).unwrap();
    let entries =
        vec![entry(1, Term(3), b""), entry(2, Term(3), b"a"), entry(3, Term(5), b""), entry(4, Term(5), b"b")];
    group.step(append(Term(5), (0, 0), 3, entries));
    settle(&mut group);
    assert_eq!(
        (group.take_unfit(), group.last_index(), group.commit(), group.applied()),
        (None, RaftIndex::new(4), RaftIndex::new(3), RaftIndex::new(3))
    );
    group
}

/// Replica 1 of three, which leads in term 1. Its only entry is committed.
fn leader() -> Group {
    let config = GroupConfig { voters: vec![1, 2, 3], holds, has_leases: false, ..GroupConfig::single(GroupId(7), 1) };
    let mut group = Group::new(config, Restored::default()).unwrap();
    group.campaign();
    settle(&mut group);
    group.step(message(MessageType::MsgRequestVoteResponse, 2, Term(1)));
    settle(&mut group);
    group.step(Message { index: 1, ..message(MessageType::MsgAppendResponse, 2, Term(1)) });
    settle(&mut group);
    assert_eq!((group.take_unfit(), group.epoch(), group.commit()), (None, Some(Term(1)), RaftIndex::new(1)));
    group
}

fn state(group: &Group) -> (u64, u64, u64, bool, Option<u64>) {
    (group.term().0, group.last_index().get(), group.commit().get(), group.is_leader(), group.leader())
}

/// Asserts that the group drops a message and stays unchanged, and returns the reason.
fn is_refused(group: &mut Group, message: Message) -> Unfit {
    let (before, told) = (state(group), format!("{message:?}"));
    if message.get_msg_type() == MessageType::MsgSnapshot {
        group.step_snapshot(message)
    } else {
        group.step(message)
    }
    settle(group);
    assert_eq!(state(group), before, "{told}");
    group.take_unfit().unwrap_or_else(|| panic!("it was not refused: {told}"))
}

#[test]
fn a_commit_beyond_the_log_is_dropped_and_named_as_possible_loss() {
    let mut group = follower();
    let heartbeat = Message { commit: 5, ..message(MessageType::MsgHeartbeat, 2, Term(5)) };
    let unfit = is_refused(&mut group, heartbeat.clone());
    assert_eq!(unfit, Unfit::Lost { claimed: RaftIndex::new(5), last: RaftIndex::new(4) });
    assert!(unfit.is_possible_loss() && unfit.to_string().contains("may have lost a part of its log"));
    is_refused(&mut group, Message { commit: 5, ..message(MessageType::MsgHeartbeat, 3, Term(6)) });
    // The group still accepts a leader's valid messages.
    group.step(Message { commit: 4, ..heartbeat });
    assert_eq!((group.take_unfit(), group.commit()), (None, RaftIndex::new(4)));
    // With entries, the leader sends its whole commit index, however much of it this replica has.
    group.step(append(Term(5), (4, 5), 1000, vec![entry(5, Term(5), b"c")]));
    assert_eq!((group.take_unfit(), group.commit(), group.last_index()), (None, RaftIndex::new(5), RaftIndex::new(5)));

    let mut group = leader();
    for kind in [MessageType::MsgAppendResponse, MessageType::MsgHeartbeatResponse] {
        let unfit = is_refused(&mut group, Message { commit: 2, ..message(kind, 2, Term(1)) });
        assert_eq!(unfit, Unfit::Lost { claimed: RaftIndex::new(2), last: RaftIndex::new(1) });
    }
    is_refused(&mut group, Message { index: 2, ..message(MessageType::MsgAppendResponse, 3, Term(1)) });
}

#[test]
fn terms_and_indices_that_no_election_or_log_leads_to_are_refused() {
    const KINDS: [MessageType; 8] = [
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgTimeoutNow,
        MessageType::MsgRequestPreVoteResponse,
    ];
    for mut group in [follower(), leader()] {
        for kind in KINDS {
            for term in [0, TERM_MAX + 1, u64::MAX - 1, u64::MAX, group.term().0 + TERM_LEAP_MAX + 1] {
                let refused = Message { reject: true, ..message(kind, 2, Term(term)) };
                assert!(matches!(is_refused(&mut group, refused), Unfit::Term { .. }), "{kind:?} {term}");
            }
            for from in [0, 1] {
                assert_eq!(is_refused(&mut group, message(kind, from, Term(9))), Unfit::Sender(from));
            }
            for index in [INDEX_MAX + 1, u64::MAX] {
                let good = message(kind, 2, Term(9));
                for bad in [
                    Message { index, log_term: 1, ..good.clone() },
                    Message { commit: index, ..good.clone() },
                    Message { index: 9, log_term: 1, reject_hint: index, ..good.clone() },
                ] {
                    assert!(matches!(is_refused(&mut group, bad), Unfit::Field { .. }), "{kind:?} {index}");
                }
            }
            for bad in [
                Message { log_term: 10, index: 1, ..message(kind, 2, Term(9)) },
                Message { commit_term: 10, ..message(kind, 2, Term(9)) },
                Message { priority: -1, ..message(kind, 2, Term(9)) },
                Message { request_snapshot: 1, ..message(kind, 2, Term(9)) },
            ] {
                is_refused(&mut group, bad);
            }
        }
    }
    // A replica without a term joins a group of any term.
    let config = GroupConfig { voters: vec![2], has_leases: false, ..GroupConfig::single(GroupId(7), 1) };
    let mut group = Group::new(config, Restored::default()).unwrap();
    group.step(message(MessageType::MsgHeartbeat, 2, Term(TERM_MAX)));
    assert_eq!((group.take_unfit(), group.term()), (None, Term(TERM_MAX)));
}

#[test]
fn entries_that_do_not_follow_or_that_the_group_does_not_hold_are_refused() {
    let mut group = follower();
    let mut old_form = entry(5, Term(5), b"");
    old_form.set_entry_type(eraftpb::EntryType::EntryConfChange);
    let mut members = entry(5, Term(5), b"\x12\x02\x08\x07");
    members.set_entry_type(eraftpb::EntryType::EntryConfChangeV2);
    for entries in [
        vec![entry(5, Term(5), b"x")],
        vec![entry(5, Term(5), b"a"), entry(6, Term(5), b"x")],
        vec![entry(6, Term(5), b"a")],
        vec![entry(5, Term(5), b"a"), entry(7, Term(5), b"a")],
        vec![entry(5, Term(4), b"a")],
        vec![entry(5, Term(0), b"a")],
        vec![entry(5, Term(6), b"a")],
        vec![old_form],
        vec![members],
    ] {
        is_refused(&mut group, append(Term(5), (4, 5), 4, entries));
    }
    let mut vote = message(MessageType::MsgRequestVote, 3, Term(6));
    vote.set_entries(vec![entry(1, Term(1), b"")].into());
    is_refused(&mut group, vote);
    is_refused(&mut group, append(Term(5), (4, 0), 4, Vec::new()));
    is_refused(&mut group, append(Term(5), (0, 5), 4, Vec::new()));
}

#[test]
fn a_message_that_contradicts_committed_entries_is_refused() {
    let mut group = follower();
    // Appends after an entry whose term contradicts the last committed entry: at its index, or above with a lower
    // term.
    for at in [(3, 3), (3, 4), (9, 3), (4, 4)] {
        let unfit = is_refused(&mut group, append(Term(6), at, 9, Vec::new()));
        assert_eq!(unfit, Unfit::Conflict { committed: RaftIndex::new(3), term: Term(5) }, "{at:?}");
    }
    // An uncommitted entry is truncated.
    group.step(append(Term(6), (3, 5), 3, vec![entry(4, Term(6), b"c")]));
    settle(&mut group);
    assert_eq!((group.take_unfit(), group.term_at(RaftIndex::new(4))), (None, Some(Term(6))));
}

#[test]
fn a_term_has_one_leader() {
    let mut group = follower();
    for kind in [MessageType::MsgHeartbeat, MessageType::MsgAppend, MessageType::MsgTimeoutNow] {
        assert_eq!(is_refused(&mut group, message(kind, 3, Term(5))), Unfit::SecondLeader { term: Term(5), from: 3 });
    }
    is_refused(&mut group, message(MessageType::MsgTimeoutNow, 2, Term(6)));
    let mut group = leader();
    assert_eq!(
        is_refused(&mut group, message(MessageType::MsgHeartbeat, 2, Term(1))),
        Unfit::SecondLeader { term: Term(1), from: 2 }
    );
}

fn snapshot(index: u64, term: Term, members: ConfState) -> Message {
    let mut message = message(MessageType::MsgSnapshot, 2, Term(6));
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (index, term.0);
    metadata.set_conf_state(members);
    message
}

#[test]
fn a_snapshot_of_no_possible_group_is_refused() {
    let mut group = follower();
    let good = || ConfState::from((vec![1, 2, 3], vec![4]));
    let with = |change: fn(&mut ConfState)| {
        let mut members = good();
        change(&mut members);
        members
    };
    for members in [
        ConfState::from((vec![], vec![1])),
        ConfState::from((vec![1, 1], vec![])),
        ConfState::from((vec![0, 1], vec![])),
        ConfState::from((vec![1, 2], vec![2])),
        ConfState::from(((1..=300).collect::<Vec<_>>(), vec![])),
        with(|members| members.set_learners_next(vec![9])),
        with(|members| members.set_auto_leave(true)),
        with(|members| members.set_voters_outgoing(vec![4])),
    ] {
        let unfit = is_refused(&mut group, snapshot(9, Term(5), members.clone()));
        assert!(matches!(unfit, Unfit::Members(_)), "{members:?}");
    }
    for (index, term) in [(0, 1), (INDEX_MAX + 1, 5), (9, 0), (9, 7), (9, 4), (3, 4)] {
        is_refused(&mut group, snapshot(index, Term(term), good()));
    }
    let mut joint = good();
    joint.set_voters_outgoing(vec![1, 5]);
    joint.set_learners_next(vec![5]);
    joint.set_auto_leave(true);
    group.step_snapshot(snapshot(9, Term(6), joint));
    settle(&mut group);
    assert_eq!((group.take_unfit(), group.applied(), group.voters()), (None, RaftIndex::new(9), vec![1, 2, 3]));
}

#[test]
fn an_answer_that_nobody_asked_for_is_dropped() {
    let mut group = follower();
    let mut answer = message(MessageType::MsgReadIndexResp, 2, Term(5));
    answer.set_entries(vec![entry(0, Term(0), b"abc")].into());
    group.step(answer);
    assert!(!group.has_work());
}

#[test]
fn a_leader_finds_a_laggards_place_by_terms() {
    let mut group = leader();
    for _ in 0..50 {
        group.propose(Bytes::from_static(b"a")).unwrap();
        settle(&mut group);
    }
    // Peer 3 has no entry of any term in the leader's log.
    group.step(Message {
        index: 1,
        reject: true,
        reject_hint: 0,
        log_term: 0,
        ..message(MessageType::MsgAppendResponse, 3, Term(1))
    });
    assert_eq!(group.take_unfit(), None);
    settle(&mut group);
    assert_eq!(group.last_index(), RaftIndex::new(51));
}

#[test]
fn a_committed_entry_that_cannot_be_read_stops_the_group_and_nothing_else() {
    // A leader of an older version may have accepted such an entry. Here the entry is in the log already.
    let config = GroupConfig { voters: vec![1, 2, 3], has_leases: false, ..GroupConfig::single(GroupId(7), 1) };
    let mut group = Group::new(config, Restored::default()).unwrap();
    let mut bad = entry(2, Term(1), b"\xff\xff");
    bad.set_entry_type(eraftpb::EntryType::EntryConfChangeV2);
    group.step(append(Term(1), (0, 0), 0, vec![entry(1, Term(1), b"")]));
    settle(&mut group);
    // Bypass the check.
    let mut message = append(Term(1), (1, 1), 3, vec![bad, entry(3, Term(1), b"a")]);
    message.to = 1;
    group.raw.step(message).unwrap();
    let mut handed_out = Vec::new();
    while let Some(ready) = group.ready() {
        handed_out.extend(ready.committed.iter().map(|entry| entry.index));
        group.on_persisted(ready.number);
        if let Some(last) = handed_out.last() {
            group.applied_to(*last);
        }
    }
    assert_eq!(handed_out, [RaftIndex::FIRST]);
    let Some(Unreadable { group: GroupId(7), index, why }) = group.unreadable() else {
        panic!("{:?}", group.unreadable())
    };
    assert_eq!(*index, RaftIndex::new(2));
    let is_expected =
        |why: &ConfigurationError| matches!(why, ConfigurationError::NumberBits | ConfigurationError::NumberEnds);
    assert!(matches!(why, EntryError::Members(why) if is_expected(why)), "{why}");
    assert_eq!((group.has_work(), group.applied()), (false, RaftIndex::new(1)));
    group.step(append(Term(1), (3, 1), 4, vec![entry(4, Term(1), b"b")]));
    (0..100).for_each(|_| group.tick());
    group.campaign();
    assert_eq!((group.last_index(), group.is_leader(), group.ready().is_none()), (RaftIndex::new(3), false, true));
    assert_eq!(group.propose(Bytes::new()), Err(ProposeError::NotLeader));
}

#[test]
fn an_impossible_change_of_the_members_stops_the_group_before_it() {
    let mut group = Group::new(GroupConfig::single(GroupId(7), 1), Restored::default()).unwrap();
    group.campaign();
    settle(&mut group);
    let Position { index, .. } = group.propose_members(&[Member::Removed(1)]).unwrap();
    settle(&mut group);
    let stopped = group.unreadable().unwrap();
    assert_eq!((stopped.index, group.applied(), group.is_leader()), (index, index.prev(), false));
    assert!(stopped.to_string().contains("removed all voters"), "{stopped}");
}
