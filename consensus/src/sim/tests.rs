//! Whole clusters from seeds. For a failing seed, the test names the command that replays it.

use crate::plane::{node_of, peer_id};
use crate::sim::*;
use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
    time::Duration,
};
use types::{GroupId, RaftIndex, Term};

/// The number of seeds in a quick run. `SIM_SEEDS` sets another number, `SIM_SEED` replays one seed. Together they
/// run that many seeds, beginning with that one.
const SEEDS: u64 = 2000;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

/// Runs a seed. A panic becomes a violation.
fn run_caught(seed: u64, bug: Option<Bug>) -> Result<Summary, Violation> {
    catch_unwind(AssertUnwindSafe(|| run(seed, bug))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Violation(format!("panic: {}", text.unwrap_or_default())))
    })
}

/// Runs every `of`-th of these seeds, beginning with the one at place `from`, and adds up the summaries.
fn run_all(seeds: Range<u64>, from: usize, of: usize) -> Summary {
    let mut total = Summary::default();
    for seed in seeds.skip(from).step_by(of) {
        let summary = run_caught(seed, None).unwrap_or_else(|violation| {
            panic!(
                "seed {seed}: {violation}\nreplay: SIM_SEED={seed} cargo test -p consensus \
                 groups_keep_their_promises_under_every_fault"
            )
        });
        total.add(&summary);
    }
    total
}

#[test]
fn groups_keep_their_promises_under_every_fault() {
    let (from, count) = (number("SIM_SEED"), number("SIM_SEEDS"));
    let count = count.unwrap_or(if from.is_some() { 1 } else { SEEDS });
    let seeds = from.unwrap_or(0)..from.unwrap_or(0) + count;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let running: Vec<_> = (0..threads)
        .map(|from| {
            let seeds = seeds.clone();
            thread::spawn(move || run_all(seeds, from, threads))
        })
        .collect();
    let mut total = Summary::default();
    for running in running {
        match running.join() {
            Ok(summary) => total.add(&summary),
            Err(panic) => resume_unwind(panic),
        }
    }
    println!("{total:?}");
    let runs = seeds.end - seeds.start;
    if runs >= 200 {
        // The faults must leave room for the work that they disturb.
        let Summary { acked, crashes, elections, members_changed, retried, .. } = total;
        assert!(acked > 50 * runs && crashes > 2 * runs && elections > 5 * runs && members_changed > runs / 8);
        let Summary { written, fast, reads, leased_reads, restored, emptied, .. } = total;
        assert!(written > 10 * runs && fast > runs / 2 && reads > 5 * runs && leased_reads > runs);
        let Summary { clock_steps, long_clock_steps, pauses, long_pauses, handovers, .. } = total;
        assert!(clock_steps > runs && long_clock_steps > runs / 8 && pauses > runs && long_pauses > runs / 8);
        assert!(handovers > runs / 2);
        // A search that gave up proves nothing.
        let Summary { calls, keys, given_up, lost, .. } = total;
        assert!(calls > 200 * runs && keys > 10 * runs && lost > runs / 100 && given_up * 3000 <= keys);
        assert!(restored > runs / 8 && emptied > runs / 8 && retried > runs / 8);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [0, 1, 2, 3, 4] {
        assert_eq!(run(seed, None), run(seed, None), "seed {seed}");
    }
}

fn found(bug: Bug) -> Violation {
    let violation = (1_000_000..1_001_000).find_map(|seed| Some((seed, run_caught(seed, Some(bug)).err()?)));
    let (seed, violation) = violation.unwrap_or_else(|| panic!("{bug:?} is not seen in 1,000 seeds"));
    println!("{bug:?} is seen by seed {seed}: {violation}");
    violation
}

#[test]
fn acknowledging_before_the_sync_is_seen() {
    found(Bug::AcknowledgedBeforeSync);
}

#[test]
fn answering_before_the_sync_is_seen() {
    found(Bug::AnsweredBeforeSync);
}

#[test]
fn a_vote_that_is_not_recorded_is_seen() {
    found(Bug::VoteNotRecorded);
}

#[test]
fn a_commit_that_is_not_recorded_is_seen() {
    found(Bug::CommitNotRecorded);
}

#[test]
fn a_retry_that_is_applied_twice_is_seen() {
    found(Bug::RetryAppliedTwice);
}

#[test]
fn an_emptied_disk_that_keeps_its_identity_is_seen() {
    found(Bug::EmptiedDiskReturns);
}

#[test]
fn completions_out_of_order_are_seen() {
    found(Bug::CompletedOutOfOrder);
}

#[test]
fn a_lease_that_counts_from_the_answer_is_seen() {
    found(Bug::LeaseFromReceipt);
}

#[test]
fn a_lease_that_outlives_the_lead_is_seen() {
    found(Bug::LeaseKeptAtHandover);
}

/// Finds a bug by what clients saw alone, without help from the log or a node's state.
fn found_by_clients(bug: Bug) {
    let violation = found(bug);
    assert!(violation.0.starts_with("clients can't all be right"), "{bug:?} was seen by somebody else: {violation}");
}

#[test]
fn a_read_that_asks_nobody_is_seen_by_clients() {
    found_by_clients(Bug::ReadUnasked);
}

#[test]
fn a_read_that_is_answered_before_its_index_is_shown_is_seen_by_clients() {
    found_by_clients(Bug::ReadBeforeShown);
}

#[test]
fn a_write_that_is_answered_before_it_is_shown_is_seen_by_clients() {
    found_by_clients(Bug::WrittenBeforeShown);
}

#[test]
fn a_read_lease_on_what_is_not_shown_is_seen_by_clients() {
    found_by_clients(Bug::LeaseBeforeShown);
}

#[test]
fn an_overlay_that_is_shown_is_seen_by_clients() {
    found_by_clients(Bug::OverlayShown);
}

#[test]
fn a_network_without_faults_delivers_once_and_a_cut_has_a_direction() {
    let mut net = SimNet::new(1, NetFaults::NONE);
    net.cut(1, 2);
    for (from, to) in [(1, 2), (2, 1), (1, 3)] {
        net.send(Duration::ZERO, Envelope { from: peer_id(from, 1), to: peer_id(to, 1), message: () });
    }
    let mut arrived = Vec::new();
    while net.next_at().is_some() {
        arrived.extend(net.arrive().map(|envelope| (node_of(envelope.from), node_of(envelope.to))));
    }
    arrived.sort_unstable();
    assert_eq!(arrived, [(1, 3), (2, 1)]);
}

#[test]
fn a_bad_network_drops_doubles_and_reorders() {
    let faults = NetFaults { dropped: 0.2, doubled: 0.2, delay_max: Duration::from_millis(50), ..NetFaults::NONE };
    let mut net = SimNet::new(7, faults);
    for message in 0..1000u32 {
        net.send(Duration::from_millis(u64::from(message)), Envelope { from: 1, to: 2, message });
    }
    let arrived: Vec<u32> = std::iter::from_fn(|| net.arrive()).map(|envelope| envelope.message).collect();
    let copies = |message| arrived.iter().filter(|found| **found == message).count();
    assert!((0..1000).any(|message| copies(message) == 0) && (0..1000).any(|message| copies(message) == 2));
    assert!(!arrived.is_sorted());
}

#[test]
fn a_clock_drifts_jumps_and_knows_when() {
    let time = SimClock::default();
    let fast = time.drifting(10_000);
    time.advance_to(Duration::from_secs(100));
    assert_eq!(fast.now(), Duration::from_secs(101));
    fast.jump(Duration::from_secs(5));
    assert_eq!(fast.now(), Duration::from_secs(106));
    let at = fast.when(Duration::from_secs(207));
    assert_eq!(at, Duration::from_secs(200));
    time.advance_to(at);
    assert_eq!(fast.now(), Duration::from_secs(207));
}

#[test]
fn a_crash_loses_only_what_was_not_synced() {
    use crate::group::Entry;
    use types::HardState;
    let record = |index| Record {
        group: GroupId(1),
        hard_state: HardState::default(),
        entry: Some(Entry { index: RaftIndex::new(index), term: Term(1), entry_type: 0, data: bytes::Bytes::new() }),
        restart: None,
    };
    let mut left = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let mut disk = SimDisk::new(SimClock::default(), seed, Duration::from_millis(1));
        disk.append(record(1));
        disk.sync();
        assert_eq!((disk.append(record(2)), disk.append(record(3))), (2, 3));
        disk.synced();
        assert_eq!((disk.durable(), disk.end()), (1, 3));
        disk.crash();
        left.insert(disk.image(GroupId(1)).entries.len());
    }
    assert_eq!(left.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
}
