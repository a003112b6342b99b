//! The WAL fast path (`metadata.acks=leader`) from outside. A leader that is cut off acknowledges writes alone only
//! while its lease lasts. If other brokers have led since, such writes that nobody else had are gone everywhere. If
//! nobody else has led, they stay.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use consensus::metadata::{Query, QueryAnswer};
use consensus::plane::Acks;
use consensus::wire::Consistency;
use net::errors;
use net::messages::IncrementalAlterConfigsRequest;
use net::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};

use support::cluster::{Cluster, wait_until};
use support::metadata_clients::{converged, set_acks};
use support::proxy::Mode;
use support::tool::{Tool, create_topic};
use support::wire::{self, text};

const BROKERS: usize = 3;
/// The leader's lease, counted from the moment at which the leader asked its followers.
const LEASE: Duration = Duration::from_millis(600);
/// Time that a tool waits for the acknowledgement of one write.
const PATIENCE: Duration = Duration::from_millis(500);
/// Minimum number of writes that a leader without a lease does not acknowledge.
const IN_VAIN: usize = 3;

fn metric(cluster: &Cluster, i: usize, name: &str) -> u64 {
    cluster.broker(i).metric(&format!("millrace_{name}")) as u64
}

fn tool(cluster: &Cluster, i: usize) -> Tool {
    Tool::connect(cluster.broker(i), PATIENCE).expect("the broker takes tools")
}

/// The topics that all brokers show, once all show the same.
fn shown_by_all(cluster: &Cluster) -> BTreeSet<String> {
    let mut shown = converged(cluster);
    assert!(shown.windows(2).all(|two| two[0] == two[1]), "brokers differ: {shown:#?}");
    shown.remove(0).into_keys().collect()
}

/// Writes with the strength `leader` to a leader that no other broker hears.
#[derive(Default)]
struct Alone {
    acked: Vec<(String, Instant)>,
    /// Writes with an unknown outcome.
    unanswered: Vec<(String, Instant)>,
}

impl Alone {
    fn write(&mut self, cluster: &Cluster, leader: usize, tool: &mut Tool) {
        let (name, begun) = (format!("alone-{}", self.acked.len() + self.unanswered.len()), Instant::now());
        match tool.write(Acks::Leader, create_topic(&name, leader as i32 + 1)) {
            Ok(()) => self.acked.push((name, begun)),
            Err(_) => {
                self.unanswered.push((name, begun));
                *tool = self::tool(cluster, leader);
            }
        }
    }
}

#[test]
fn a_leader_that_is_cut_off_acknowledges_nothing_alone_once_its_lease_is_out_and_what_it_did_is_gone_everywhere() {
    let cluster = Cluster::start(BROKERS, &[]);
    let mut alone = Alone::default();
    // Repeats the round if the leader has acknowledged nothing alone.
    for round in 0.. {
        let leader = cluster.leader();
        let mut tool = tool(&cluster, leader);
        let before = format!("before-{round}");
        tool.write(Acks::Leader, create_topic(&before, 1)).expect("all hear it");
        cluster.set_all_ways(leader, Mode::Silent);
        let (cut, since) = (Instant::now(), alone.acked.len());
        while cut.elapsed() < LEASE {
            alone.write(&cluster, leader, &mut tool);
            // Reads do not show writes that may still be dropped, unless the reader asks for them.
            if let Some((name, _)) = alone.acked.get(since)
                && let Ok(found) = tool.read(Consistency::Leased, Query::GetTopic { name: name.clone() })
            {
                assert_eq!(found, QueryAnswer::NotFound, "{name}");
            }
        }

        let acked = metric(&cluster, leader, "metadata_wal_writes_total");
        let in_vain = alone.unanswered.len();
        while alone.unanswered.len() < in_vain + IN_VAIN {
            alone.write(&cluster, leader, &mut tool);
        }
        wait_until("other leader", || cluster.leader() != leader);
        let elsewhere = format!("elsewhere-{round}");
        let mut other = Tool::connect(cluster.broker(cluster.leader()), support::PATIENCE).expect("it takes tools");
        other.write(Acks::Quorum, create_topic(&elsewhere, 1)).expect("two of three go on");
        alone.write(&cluster, leader, &mut tool);
        assert_eq!(metric(&cluster, leader, "metadata_wal_writes_total"), acked, "without a lease");
        if let Some((name, begun)) = alone.acked.iter().find(|(_, begun)| *begun > cut + LEASE) {
            panic!("{name} was written {:?} after the cut, and acknowledged", *begun - cut);
        }

        cluster.set_all_ways(leader, Mode::Open);
        let shown = shown_by_all(&cluster);
        assert!(shown.contains(&before) && shown.contains(&elsewhere), "{shown:?}");
        let kept: Vec<&String> =
            alone.acked.iter().map(|(name, _)| name).filter(|name| shown.contains(*name)).collect();
        assert!(kept.is_empty(), "{kept:?} came from a leader that was deposed, of {:?}", alone.acked);
        if !alone.acked.is_empty() {
            return;
        }
    }
}

#[test]
fn writes_acknowledged_by_the_leader_alone_stay_if_nobody_else_has_led() {
    let cluster = Cluster::start(BROKERS, &[]);
    // Repeats the round if the write came too late, or if others have led.
    for round in 0.. {
        let leader = cluster.leader();
        let mut tool = tool(&cluster, leader);
        let term = metric(&cluster, leader, "metadata_term");
        cluster.set_all_ways(leader, Mode::Silent);
        let name = format!("alone-{round}");
        let acked = tool.write(Acks::Leader, create_topic(&name, 1)).is_ok();
        cluster.set_all_ways(leader, Mode::Open);
        // This write also commits everything before it that lasts.
        wait_until("write behind it", || {
            let tool = Tool::connect(cluster.broker(cluster.leader()), support::PATIENCE);
            let written =
                tool.and_then(|mut tool| tool.write(Acks::Quorum, create_topic(&format!("behind-{round}"), 1)));
            written.is_ok_and(|()| shown_by_all(&cluster).contains(&format!("behind-{round}")))
        });
        let shown = shown_by_all(&cluster);
        let same_term = metric(&cluster, leader, "metadata_term") == term;
        if acked && same_term {
            assert!(shown.contains(&name), "{name} was acknowledged, and its leader still leads: {shown:?}");
            return;
        }
    }
}

#[test]
fn each_write_counts_once_through_the_leader_and_through_another() {
    const WRITES: u64 = 100;
    let cluster = Cluster::start(BROKERS, &[]);
    let leader = cluster.leader();
    set_acks(&mut wire::connect(cluster.broker(leader)), "leader");
    let counts =
        || ["metadata_wal_writes_total", "metadata_raft_fallback_total"].map(|name| metric(&cluster, leader, name));
    for through in [leader, (leader + 1) % BROKERS] {
        let mut client = wire::connect(cluster.broker(through));
        let name = format!("settings-{through}");
        assert_eq!(wire::create_topic(&mut client, &name, 1, 1, &[]).error_code, errors::NONE);
        let [wal, fallback] = counts();
        for value in 0..WRITES {
            let value = text(&(1_000_000 + value).to_string());
            let config = AlterableConfig::default().with_name(text("retention.ms")).with_value(Some(value));
            let resource = AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text(&name))
                .with_configs(vec![config]);
            let answer = client.call(IncrementalAlterConfigsRequest::default().with_resources(vec![resource]));
            assert_eq!(answer.expect("an answer").responses[0].error_code, errors::NONE);
        }
        let [wal_after, fallback_after] = counts();
        assert_eq!((wal_after - wal, fallback_after - fallback), (WRITES, 0), "through broker {through}");
    }
}
