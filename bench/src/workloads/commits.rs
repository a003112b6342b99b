//! Workload `commits`: offset commits of consumer groups, each sent to the group's coordinator.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use net::StrBytes;
use net::client::Answer;
use net::client::blocking::Client;
use net::codec::api::ApiKey;
use net::errors::{self, ErrorCode};
use net::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use net::messages::{FindCoordinatorRequest, GroupId, OffsetCommitRequest, TopicName};

use crate::error::AnyError;
use crate::figures::stats::Live;
use crate::load::error::LoadError;
use crate::load::ops::{self, Pace};
use crate::load::setup::{self, Lane};
use crate::load::window::Window;
use crate::machine::ceiling::Ceiling;
use crate::options::workloads::CommitsOptions;
use crate::options::{TargetOptions, ThreadOptions};
use crate::report::shares::Share;
use crate::report::{Report, Unit};
use crate::run;

/// The last version of OffsetCommit that identifies topics by name.
const COMMIT_TOPIC_NAME_TO: i16 = 9;
/// From this version on, one request may ask for several coordinators (KIP-699).
const SEVERAL_KEYS_FROM: i16 = 4;
const PATIENCE: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_millis(100);

pub fn run(options: &CommitsOptions) -> Result<Report, AnyError> {
    // The harness connects only to the coordinators, so --connections does not apply to the topic's leaders.
    let any_connections = ThreadOptions { connections: None, ..options.target.threads.clone() };
    let target =
        setup::prepare(&TargetOptions { threads: any_connections, ..options.target.clone() }, ApiKey::Metadata)?;
    let mut client = setup::connect(&options.target.bootstrap)?;
    let version = client.version(ApiKey::OffsetCommit)?.min(COMMIT_TOPIC_NAME_TO);
    let coordinators = coordinators(&mut client, options.groups)?;
    let lanes = setup::lanes(&coordinators, options.target.threads.connections)?;
    let ceiling = Ceiling::measure(&options.run);
    let window = Window::new(options.run.warm_up, options.run.duration);
    let pace = Pace { rate: options.rate, connections: lanes.len(), in_flight: options.in_flight, window };
    let topic = TopicName(StrBytes::from_string(options.target.topic.clone()));
    let partitions = target.partitions;
    let work = move |index: usize, lane: Lane, live: Arc<Live>| {
        let topic = topic.clone();
        let make = move |number: u64| {
            let group = lane.partitions[(number % lane.partitions.len() as u64) as usize];
            let partition = |index| {
                OffsetCommitRequestPartition::default()
                    .with_partition_index(index)
                    .with_committed_offset(number as i64)
                    .with_committed_metadata(Some(StrBytes::from_static_str("")))
            };
            let topic = OffsetCommitRequestTopic::default()
                .with_name(topic.clone())
                .with_partitions((0..partitions).map(partition).collect());
            let request = OffsetCommitRequest::default()
                .with_group_id(GroupId(StrBytes::from_string(name(group))))
                .with_generation_id_or_member_epoch(-1)
                .with_topics(vec![topic]);
            (version, request.into())
        };
        ops::lane_work(pace, index, lane.addr, live, make, check)
    };
    let outcome = run::drive(&options.target.threads, lanes, window, work)?;
    let report = Report::new("commits", Unit::Operations, outcome, ceiling);
    Ok(report.against(&[Share::WriteSync, Share::LoopbackRoundTrip]).with_extra("partitions_per_commit", partitions))
}

fn name(group: i32) -> String {
    format!("bench-group-{group}")
}

/// The groups, by the broker that coordinates them.
fn coordinators(client: &mut Client, groups: usize) -> Result<Vec<Lane>, AnyError> {
    let mut by_addr: BTreeMap<SocketAddr, Vec<i32>> = BTreeMap::new();
    let several = client.version(ApiKey::FindCoordinator)? >= SEVERAL_KEYS_FROM;
    let give_up = Instant::now() + PATIENCE;
    for group in 0..groups as i32 {
        let key = StrBytes::from_string(name(group));
        loop {
            let request = FindCoordinatorRequest::default().with_key_type(0);
            let request =
                if several { request.with_coordinator_keys(vec![key.clone()]) } else { request.with_key(key.clone()) };
            let response = client.call(request)?;
            let (code, host, port) = match response.coordinators.first() {
                Some(found) => (found.error_code, found.host.to_string(), found.port),
                None => (response.error_code, response.host.to_string(), response.port),
            };
            match errors::check(code) {
                Ok(()) => {
                    let found = (host.as_str(), u16::try_from(port)?).to_socket_addrs()?.next();
                    let addr = found.ok_or_else(|| format!("coordinator {host}: the name has no address"))?;
                    by_addr.entry(addr).or_default().push(group);
                    break;
                }
                // The broker creates the offsets topic when it is first needed.
                Err(ErrorCode::CoordinatorNotAvailable | ErrorCode::CoordinatorLoadInProgress)
                    if Instant::now() < give_up =>
                {
                    thread::sleep(ASK_AGAIN);
                }
                Err(error) => return Err(format!("the coordinator of {}: {error}", name(group)).into()),
            }
        }
    }
    Ok(by_addr.into_iter().map(|(addr, partitions)| Lane { addr, partitions }).collect())
}

fn check(answer: Answer) -> Result<(), LoadError> {
    let response = answer.decode::<OffsetCommitRequest>()?;
    let mut partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
    let refused = partitions.find_map(|partition| errors::check(partition.error_code).err().map(|e| (partition, e)));
    match refused {
        Some((partition, error)) => Err(LoadError::Partition { index: partition.partition_index, error }),
        None if response.topics.is_empty() => Err(LoadError::NoTopic),
        None => Ok(()),
    }
}
