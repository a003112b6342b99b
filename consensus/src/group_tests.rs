//! A lone voter's life: what is handed out when, and what a restart makes of what was persisted.

use super::*;

/// What a disk holds of one group: only what was persisted before the crash.
#[derive(Default)]
struct Disk {
    hard_state: HardState,
    entries: Vec<Entry>,
}

impl Disk {
    fn persist(&mut self, hard_state: HardState, entries: &[Entry]) {
        if let Some(first) = entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend_from_slice(entries);
        }
        self.hard_state = hard_state;
    }

    fn restore(&self, applied: u64) -> Restored {
        let mut terms: Vec<TermRun> = Vec::new();
        for entry in &self.entries {
            if terms.last().is_none_or(|run| run.term != entry.term) {
                terms.push(TermRun { first_index: entry.index, term: entry.term });
            }
        }
        Restored { hard_state: self.hard_state, terms, entries: self.entries.clone(), applied, ..Restored::default() }
    }
}

fn leader() -> Group {
    let mut group = Group::new(GroupConfig::single(7, 1), Restored::default()).unwrap();
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
    let mut group = Group::new(GroupConfig::single(7, 1), Restored::default()).unwrap();
    assert_eq!(group.propose(Bytes::from_static(b"a")), Err(ProposeError::NotLeader));
}

#[test]
fn more_than_the_uncommitted_bound_is_refused_and_nothing_is_appended() {
    let mut config = GroupConfig::single(7, 1);
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
        let mut group = Group::new(GroupConfig::single(7, 1), disk.restore(applied)).unwrap();
        group.campaign();
        assert!(disk.hard_state.term == 0 || group.term() > disk.hard_state.term);
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
    let mut group = Group::new(GroupConfig::single(7, 1), disk.restore(group.applied())).unwrap();
    group.campaign();
    settle(&mut group, &mut disk);
    let end = group.last_index();
    group.compact(end);
    group.check();
    assert_eq!((group.term_at(1), group.term_at(end), group.term_at(end + 1)), (Some(1), Some(2), None));
    assert_eq!(group.terms(), [TermRun { first_index: 1, term: 1 }, TermRun { first_index: end, term: 2 }]);
    group.propose(Bytes::from_static(b"b")).unwrap();
    assert_eq!(settle(&mut group, &mut disk).len(), 1);
}

#[test]
fn a_group_restored_above_its_log_is_refused() {
    let restored = Restored { applied: 3, ..Restored::default() };
    let refused = Group::new(GroupConfig::single(7, 1), restored).err().unwrap();
    assert!(refused.to_string().contains("the log ends at 0"), "{refused}");
}

#[test]
fn the_configuration_survives_a_checkpoint() {
    let group = leader();
    let conf_state = decode_conf_state(&group.conf_state()).unwrap();
    assert_eq!((conf_state.voters, conf_state.learners), (vec![1], vec![]));
    assert!(decode_conf_state(b"short").is_err());
    assert!(decode_conf_state(&[255; 8]).is_err());
}
