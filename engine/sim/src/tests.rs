//! Some seeds, and each planted bug. The program runs more of them: `cargo run --release -p sim -- --help`.

use crate::{
    cluster::run,
    options::Options,
    seeds::{PLANTED_FROM, Ran, run_all, run_caught},
    summary::Summary,
};
use clap::Parser as _;
use types::planted::Bug;

/// Number of seeds of a quick run.
const SEEDS: u64 = 200;

/// A planted bug must show within this number of seeds.
const PLANTED_SEEDS: u64 = 1_000;

#[test]
fn partitions_keep_their_promises_under_every_fault() {
    let options = Options::parse_from(["sim", "--seeds", &SEEDS.to_string()]);
    let Ran { done: runs, total, violations, .. } = run_all(&options);
    println!("{total:?}");
    assert_eq!((runs, violations), (SEEDS, Vec::new()), "the seeds' violations and how to replay them are above");
    // The faults must happen, and must leave the clients room to work.
    let Summary { acked, seen, pipelined, retried, epochs, trimmed, snapshots, .. } = total;
    assert!(acked > 300 * runs && seen > 100 * runs && pipelined > 100 * runs);
    assert!(retried > 10 * runs && epochs > 3 * runs);
    assert!(total.jostled > 5 * runs && total.memory_waits > runs);
    let Summary { ring_full, turns, lanes, frames_waited, .. } = total;
    assert!(ring_full > runs / 16 && turns > runs && lanes > runs / 2 && frames_waited > runs / 4);
    assert!(trimmed > runs / 8 && snapshots > runs / 8);
    let Summary { killed, power_lost, stopped, paused, cut, disks_ailed, disks_lost, jumped, rested, .. } = total;
    assert!(killed > runs / 2 && power_lost > runs / 2 && stopped > runs / 8 && paused > runs / 2 && cut > runs / 2);
    let Summary { groups, generations, fenced, commits, commits_refused, offsets_fetched, .. } = total;
    assert!(groups > runs / 4 && generations > runs && commits > 10 * runs && offsets_fetched > 10 * runs);
    assert!(commits_refused > runs / 8 && fenced > runs / 8);
    assert!(total.topics_deleted > runs && total.offsets_of_remade > runs);
    assert!(disks_ailed > runs / 8 && disks_lost > runs / 20 && jumped > runs / 16 && rested > runs / 2);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [0, 1, 2] {
        assert_eq!(run(seed, None, None), run(seed, None, None), "seed {seed}");
    }
}

fn found(bug: Bug) {
    found_on(None, bug);
}

/// `cores`: of each broker, if not drawn.
fn found_on(cores: Option<u8>, bug: Bug) {
    let seeds = PLANTED_FROM..PLANTED_FROM + PLANTED_SEEDS;
    let violation = seeds.clone().find_map(|seed| Some((seed, run_caught(seed, cores, Some(bug)).err()?)));
    let (seed, violation) = violation.unwrap_or_else(|| panic!("{bug:?} is not seen by seeds {seeds:?}"));
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
fn a_core_that_is_asked_after_it_has_drained_is_seen() {
    // Brokers of one core cannot show it.
    found_on(Some(2), Bug::MeshDeliveredAfterDrain);
}

#[test]
fn a_view_that_is_shown_out_of_order_is_seen() {
    found(Bug::MeshViewOutOfOrder);
}

#[test]
fn a_reply_to_a_caller_that_is_gone_is_seen() {
    found(Bug::MeshReplyToGoneCaller);
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
