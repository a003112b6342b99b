//! The promises of each consistency level, with a handwritten history for each.

use crate::sim::{oracle::Seen, promises::*};
use crate::{
    group::Entry,
    metadata::{AskedTooLate, Outcome, Rejection},
};
use types::{GroupId, RaftIndex, Term};
use uuid::Uuid;

const ALONE: Told = Told::Alone { index: RaftIndex::new(1), term: Term(1) };
const NAME: &str = "t";

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A log whose first entry is of this term.
fn log(term: Term) -> History {
    let mut log = History::default();
    let entry = Entry { index: RaftIndex::new(1), term, entry_type: 0, data: bytes::Bytes::new() };
    log.see(Seen::Applied { node: 1, group: GroupId(0), term, entry, result: String::new() }).expect("it is the first");
    log
}

#[derive(Default)]
struct Run(Promises);

impl Run {
    fn write(mut self, broker: usize, from: u64, to: u64, command: Command, result: RequestResult, told: Told) -> Self {
        let answer = Written { term: Term(1), index: RaftIndex::new(1), results: vec![result] };
        self.0.written(broker, at(from), at(to), &[command], &answer, told);
        self
    }

    /// Deletes the topic successfully.
    fn delete(self, broker: usize, from: u64, to: u64, told: Told) -> Self {
        self.write(broker, from, to, delete(), Ok(Ok(Outcome::TopicDeleted)), told)
    }

    fn read(mut self, broker: usize, from: u64, to: u64, shows: &Topic) -> Self {
        self.0.read(broker, at(from), at(to), &NAME.into(), shows.clone().apply(&TopicOp::Read));
        self
    }

    fn leased(mut self, broker: usize, now: u64, shows: &Topic) -> Self {
        self.0.read_leased(broker, at(now), &NAME.into(), shows.clone().apply(&TopicOp::Read));
        self
    }

    fn holds(mut self, log: &History) -> bool {
        self.0.check(at(100_000), log).is_ok()
    }
}

fn create() -> Command {
    let (name, id) = (NAME.into(), Uuid::from_u128(7));
    let replicas = vec![vec![1]];
    Command::CreateTopic {
        name,
        id,
        first_group: 1,
        replicas,
        configs: BTreeMap::new(),
        created_ms: 0,
        peers: Vec::new(),
    }
}

fn delete() -> Command {
    Command::DeleteTopic { name: NAME.into(), id: Uuid::from_u128(7) }
}

/// The creation of the topic has no answer, so the topic may exist or not.
fn asked_for() -> Run {
    let mut run = Run::default();
    run.0.unanswered(at(0), &[create()]);
    run
}

fn there() -> Topic {
    let mut topic = Topic::default();
    topic.apply(&TopicOp::Create { id: 7, partitions: 1 });
    topic
}

fn gone() -> Topic {
    Topic::default()
}

#[test]
fn a_committed_write_is_shown_to_all_later_reads() {
    let deleted = || asked_for().delete(1, 10, 20, Told::Committed);
    assert!(deleted().read(2, 15, 30, &there()).read(2, 31, 40, &gone()).holds(&log(Term(1))));
    assert!(!deleted().read(2, 21, 30, &there()).holds(&log(Term(1))));
    // A write whose answer is forgotten may take effect at any time, or never.
    let late = || asked_for().write(1, 10, 20, delete(), Err(AskedTooLate), Told::Committed);
    assert!(late().read(2, 21, 30, &there()).read(2, 31, 40, &gone()).holds(&log(Term(1))));
    assert!(late().read(2, 21, 30, &there()).holds(&log(Term(1))));
}

#[test]
fn a_write_acknowledged_by_the_leader_alone_blocks_other_writes_at_once_and_reads_in_the_end() {
    let deleted = || asked_for().delete(1, 10, 20, ALONE);
    let again =
        |run: Run| run.write(2, 30, 40, delete(), Ok(Err(Rejection::UnknownTopic(NAME.into()))), Told::Committed);
    assert!(again(deleted().read(2, 21, 25, &there())).holds(&log(Term(1))), "a read before the commit");
    assert!(again(deleted()).read(2, 100_001, 100_001, &gone()).holds(&log(Term(1))));
    assert!(!deleted().read(2, 100_001, 100_001, &there()).holds(&log(Term(1))), "it is in the log");
    let twice = || deleted().delete(2, 30, 40, Told::Committed);
    assert!(!twice().holds(&log(Term(1))), "the later one must have seen it");
    // The entry of another leader is in its place. So the write is lost, or it took effect when it was retried.
    assert!(twice().holds(&log(Term(2))));
    assert!(deleted().read(2, 100_001, 100_001, &there()).holds(&log(Term(2))));
    assert!(deleted().read(2, 100_001, 100_001, &gone()).holds(&log(Term(2))));
}

#[test]
fn a_leased_read_is_no_staler_than_the_lease_and_one_broker_never_goes_back() {
    // The topic existed long before.
    let was_there = || asked_for().read(3, 1, 2, &there());
    let deleted = || was_there().delete(1, 10_010, 10_020, Told::Committed);
    let stale_max = STALE_MAX.as_millis() as u64;
    assert!(deleted().leased(2, 10_020 + stale_max, &there()).holds(&log(Term(1))));
    assert!(!deleted().leased(2, 10_021 + stale_max, &there()).holds(&log(Term(1))));
    assert!(!deleted().leased(1, 10_021, &there()).holds(&log(Term(1))), "this broker has told it");
    let seen = || deleted().leased(2, 10_021, &gone());
    assert!(seen().leased(3, 10_022, &there()).holds(&log(Term(1))), "two brokers");
    assert!(!seen().leased(2, 10_022, &there()).holds(&log(Term(1))), "one that goes back");
    let read = deleted().read(2, 10_012, 10_021, &gone());
    assert!(!read.leased(2, 10_022, &there()).holds(&log(Term(1))), "after a read of another kind");
    let alone = was_there().delete(1, 10_010, 10_020, ALONE).leased(1, 10_021, &there());
    assert!(alone.holds(&log(Term(1))), "what is acknowledged alone is not shown until it is committed");
}

#[test]
fn producer_ids_are_given_to_one_only() {
    let allocate = |run: Run, from, first| {
        let result = Ok(Ok(Outcome::ProducerIds { first, count: 10 }));
        run.write(1, from, from + 5, Command::AllocateProducerIds { count: 10 }, result, Told::Committed)
    };
    let two = |first, second| allocate(allocate(Run::default(), 0, first), 10, second);
    assert!(two(0, 10).holds(&log(Term(1))));
    assert!(!two(0, 0).holds(&log(Term(1))));
    assert!(!two(10, 0).holds(&log(Term(1))), "nobody took the first");
    assert!(!two(0, 20).holds(&log(Term(1))), "a gap that nobody asked for");
    let mut with_a_gap = two(0, 20);
    with_a_gap.0.unanswered(at(2), &[Command::AllocateProducerIds { count: 10 }]);
    assert!(with_a_gap.holds(&log(Term(1))));
}
