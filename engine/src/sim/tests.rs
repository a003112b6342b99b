//! The seeds. A failure prints the command that replays the seed. `SIM_LOG=debug` shows the brokers' logs with virtual
//! time.

use super::{Bug, cluster::run, exec, ledger::Violation, summary::Summary};
use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
};
use tracing_subscriber::{
    Layer as _,
    filter::Targets,
    fmt::{self, format::Writer, time::FormatTime},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// Number of seeds of a quick run. `SIM_SEEDS` sets another number, `SIM_SEED` replays one seed. Both together run that
/// number of seeds from that one on.
const SEEDS: u64 = 200;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

/// Prefixes log lines with the broker, and with the virtual time since the beginning.
struct Virtual;

impl FormatTime for Virtual {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        match exec::present() {
            Some((process, time)) => write!(out, "{:>10.6} broker {process}", time.as_secs_f64()),
            None => out.write_str("nobody"),
        }
    }
}

fn log_if_wanted() {
    if let Ok(filter) = std::env::var("SIM_LOG") {
        let filter: Targets = filter.parse().expect("SIM_LOG is a filter as log.filter takes it");
        let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_timer(Virtual).with_filter(filter);
        // Another test may have set it up already.
        let _ = tracing_subscriber::registry().with(lines).try_init();
    }
}

/// Runs a seed, and turns a panic into a violation.
fn run_caught(seed: u64, bug: Option<Bug>) -> Result<Summary, Violation> {
    catch_unwind(AssertUnwindSafe(|| run(seed, bug))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Violation(format!("panic: {}", text.unwrap_or_default())))
    })
}

/// Runs every `of`-th of these seeds from position `from` on, and adds up what they did.
fn run_all(seeds: Range<u64>, from: usize, of: usize) -> Summary {
    let mut total = Summary::default();
    for seed in seeds.skip(from).step_by(of) {
        let summary = run_caught(seed, None).unwrap_or_else(|violation| {
            panic!(
                "seed {seed}: {violation}\nreplay: SIM_SEED={seed} cargo test -p engine --lib \
                 partitions_keep_their_promises_under_every_fault"
            )
        });
        total.add(&summary);
    }
    total
}

#[test]
fn partitions_keep_their_promises_under_every_fault() {
    log_if_wanted();
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
    if runs >= SEEDS {
        // The faults must happen, and must leave the clients room to work.
        let Summary { acked, seen, pipelined, retried, epochs, trimmed, snapshots, .. } = total;
        assert!(acked > 300 * runs && seen > 100 * runs && pipelined > 100 * runs);
        assert!(retried > 10 * runs && epochs > 3 * runs);
        assert!(total.jostled > 5 * runs && total.memory_waits > runs);
        let Summary { ring_full, turns, lanes, frames_waited, .. } = total;
        assert!(ring_full > runs / 16 && turns > runs && lanes > runs / 2 && frames_waited > runs / 4);
        assert!(trimmed > runs / 8 && snapshots > runs / 8);
        let Summary { killed, power_lost, stopped, paused, cut, disks_ailed, disks_lost, jumped, rested, .. } = total;
        assert!(
            killed > runs / 2 && power_lost > runs / 2 && stopped > runs / 8 && paused > runs / 2 && cut > runs / 2
        );
        let Summary { groups, generations, fenced, commits, commits_refused, offsets_fetched, .. } = total;
        assert!(groups > runs / 4 && generations > runs && commits > 10 * runs && offsets_fetched > 10 * runs);
        assert!(commits_refused > runs / 8 && fenced > runs / 8);
        assert!(total.topics_deleted > runs && total.offsets_of_remade > runs);
        assert!(disks_ailed > runs / 8 && disks_lost > runs / 20 && jumped > runs / 16 && rested > runs / 2);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [0, 1, 2] {
        assert_eq!(run(seed, None), run(seed, None), "seed {seed}");
    }
}

fn found(bug: Bug) {
    let violation = (1_000_000..1_001_000).find_map(|seed| Some((seed, run_caught(seed, Some(bug)).err()?)));
    let (seed, violation) = violation.unwrap_or_else(|| panic!("{bug:?} is not seen in 1,000 seeds"));
    println!("{bug:?} is seen by seed {seed}: {violation}");
}

#[test]
fn an_append_without_its_payload_is_seen() {
    found(Bug::AppendWithoutPayload);
}

#[test]
fn a_truncation_below_what_is_committed_is_seen() {
    found(Bug::TruncatedTooFar);
}

#[test]
fn a_group_at_rest_that_misses_its_leaders_death_is_seen() {
    found(Bug::QuietGroupSleepsOn);
}

#[test]
fn producers_that_are_not_rebuilt_on_truncation_are_seen() {
    found(Bug::ProducersKeptOnTruncation);
}

#[test]
fn a_commit_that_is_acknowledged_too_early_is_seen() {
    found(Bug::CommitAcknowledgedTooEarly);
}

#[test]
fn a_turn_that_is_given_up_and_stays_in_the_line_is_seen() {
    found(Bug::AbandonedTurnStays);
}

#[test]
fn a_request_that_stays_when_its_connection_breaks_is_seen() {
    found(Bug::AbandonedRequestStays);
}

#[test]
fn a_message_between_cores_that_is_lost_is_seen() {
    found(Bug::MeshMessageLost);
}

#[test]
fn messages_between_cores_that_change_places_are_seen() {
    found(Bug::MeshMessagesSwapped);
}

#[test]
fn a_ring_that_is_recycled_too_early_is_seen() {
    found(Bug::RingRecycledTooEarly);
}

#[test]
fn an_earlier_lap_that_is_taken_for_this_one_is_seen() {
    found(Bug::StaleLapAccepted);
}

#[test]
fn a_gap_that_is_called_one_at_once_is_seen() {
    found(Bug::GapsGivenNoTime);
}

#[test]
fn a_producer_that_begins_behind_what_was_refused_is_seen() {
    found(Bug::BegunBehindRefused);
}

#[test]
fn a_fenced_member_that_commits_is_seen() {
    found(Bug::FencedMemberCommits);
}
