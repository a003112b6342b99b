//! Set-up before the load starts: finds or creates the topic and learns which broker leads which partition. Blocking.

use std::collections::{BTreeMap, HashSet};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use net::StrBytes;
use net::client::blocking::{Client, ClientError};
use net::codec::api::ApiKey;
use net::codec::produce::TOPIC_NAME_TO;
use net::errors::{self, ErrorCode};
use net::messages::create_topics_request::CreatableTopic;
use net::messages::delete_topics_request::DeleteTopicState;
use net::messages::metadata_request::MetadataRequestTopic;
use net::messages::{CreateTopicsRequest, DeleteTopicsRequest, MetadataRequest, MetadataResponse, TopicName};

use crate::options::TargetOptions;

const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two metadata requests while leaders are not elected yet.
const ASK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("topic {topic}: {error}")]
    Refused { topic: String, error: ErrorCode },
    #[error("topic {topic} has {has} partitions, not {wanted}; choose another --topic or --partitions")]
    Partitions { topic: String, has: i32, wanted: i32 },
    #[error("topic {topic} has partitions without a leader after {} s", PATIENCE.as_secs())]
    NoLeader { topic: String },
    #[error("broker {host}:{port}: {source}")]
    Address { host: String, port: i32, source: std::io::Error },
    #[error("{connections} connections for {leaders} leaders; give at least one each with --connections")]
    TooFewConnections { connections: usize, leaders: usize },
}

/// One connection's broker and partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    pub addr: SocketAddr,
    /// Partitions, or other numbered things that a broker is responsible for, such as consumer groups.
    pub partitions: Vec<i32>,
}

#[derive(Debug)]
pub struct Target {
    pub lanes: Vec<Lane>,
    pub partitions: i32,
    /// The API version that the workload uses; it identifies topics by name.
    pub version: i16,
}

impl Target {
    /// The connections, but with each partition on only one of them: reading a partition twice tells nothing new.
    pub fn readers(&self) -> Vec<Lane> {
        let mut seen = HashSet::new();
        let reader = |lane: &Lane| {
            let partitions: Vec<i32> = lane.partitions.iter().copied().filter(|p| seen.insert(*p)).collect();
            (!partitions.is_empty()).then_some(Lane { addr: lane.addr, partitions })
        };
        self.lanes.iter().filter_map(reader).collect()
    }
}

/// A connection for set-up.
pub fn connect(bootstrap: &str) -> Result<Client, ClientError> {
    Client::connect(bootstrap, "millrace-bench", PATIENCE)
}

/// Makes sure that the topic exists and that every partition has a leader. Distributes the partitions over
/// connections.
pub fn prepare(options: &TargetOptions, api: ApiKey) -> Result<Target, SetupError> {
    let mut client = connect(&options.bootstrap)?;
    let version = client.version(api)?.min(TOPIC_NAME_TO);
    let give_up = Instant::now() + PATIENCE;
    let mut created = false;
    loop {
        let metadata = client.call(metadata_request(&options.topic))?;
        let topic = metadata.topics.first();
        match topic.map_or(Some(ErrorCode::UnknownTopicOrPartition), |t| errors::check(t.error_code).err()) {
            None => {}
            Some(ErrorCode::UnknownTopicOrPartition) if !created => {
                create(&mut client, options)?;
                created = true;
                continue;
            }
            // Another broker may not know a topic that was created a moment ago.
            Some(ErrorCode::UnknownTopicOrPartition | ErrorCode::LeaderNotAvailable) if Instant::now() < give_up => {
                std::thread::sleep(ASK_AGAIN);
                continue;
            }
            Some(error) => return Err(SetupError::Refused { topic: options.topic.clone(), error }),
        }
        let has = topic.map_or(0, |t| t.partitions.len() as i32);
        if let Some(wanted) = options.partitions.filter(|wanted| *wanted != has) {
            return Err(SetupError::Partitions { topic: options.topic.clone(), has, wanted });
        }
        match leaders(&metadata) {
            Some(leaders) => {
                let lanes = lanes(&resolve(&metadata, leaders)?, options.threads.connections)?;
                return Ok(Target { lanes, partitions: has, version });
            }
            None if Instant::now() < give_up => std::thread::sleep(ASK_AGAIN),
            None => return Err(SetupError::NoLeader { topic: options.topic.clone() }),
        }
    }
}

fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

fn metadata_request(topic: &str) -> MetadataRequest {
    let topic = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(false)
}

fn create(client: &mut Client, options: &TargetOptions) -> Result<(), SetupError> {
    let topic = CreatableTopic::default()
        .with_name(topic_name(&options.topic))
        .with_num_partitions(options.partitions.unwrap_or(1))
        .with_replication_factor(options.replication_factor);
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(PATIENCE.as_millis() as i32);
    let response = client.call(request)?;
    match errors::check(response.topics.first().map_or(errors::NONE, |t| t.error_code)) {
        Ok(()) | Err(ErrorCode::TopicAlreadyExists) => Ok(()),
        Err(error) => Err(SetupError::Refused { topic: options.topic.clone(), error }),
    }
}

/// Deletes a topic and all its records.
pub fn delete(bootstrap: &str, topic: &str) -> Result<(), SetupError> {
    /// From this version on, a request may name a topic by its id instead.
    const STATES_FROM: i16 = 6;
    let mut client = connect(bootstrap)?;
    let request = DeleteTopicsRequest::default().with_timeout_ms(PATIENCE.as_millis() as i32);
    let name = topic_name(topic);
    let request = match client.version(ApiKey::DeleteTopics)? {
        STATES_FROM.. => request.with_topics(vec![DeleteTopicState::default().with_name(Some(name))]),
        _ => request.with_topic_names(vec![name]),
    };
    let response = client.call(request)?;
    let code = response.responses.first().map_or(errors::NONE, |deleted| deleted.error_code);
    errors::check(code).map_err(|error| SetupError::Refused { topic: topic.to_owned(), error })
}

/// Partitions grouped by the node that leads them; `None` if a partition has no leader.
fn leaders(metadata: &MetadataResponse) -> Option<BTreeMap<i32, Vec<i32>>> {
    let mut by_node: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for partition in &metadata.topics.first()?.partitions {
        if partition.leader_id.0 < 0 || partition.error_code != errors::NONE {
            return None;
        }
        by_node.entry(partition.leader_id.0).or_default().push(partition.partition_index);
    }
    by_node.values_mut().for_each(|partitions| partitions.sort_unstable());
    Some(by_node)
}

fn resolve(metadata: &MetadataResponse, leaders: BTreeMap<i32, Vec<i32>>) -> Result<Vec<Lane>, SetupError> {
    let mut lanes = Vec::new();
    for broker in &metadata.brokers {
        let Some(partitions) = leaders.get(&broker.node_id.0) else { continue };
        let failed = |source| SetupError::Address { host: broker.host.to_string(), port: broker.port, source };
        let port = u16::try_from(broker.port).map_err(|e| failed(std::io::Error::other(e)))?;
        let mut addrs = (broker.host.as_str(), port).to_socket_addrs().map_err(failed)?;
        let addr = addrs.next().ok_or_else(|| failed(std::io::Error::other("the name has no address")))?;
        lanes.push(Lane { addr, partitions: partitions.clone() });
    }
    Ok(lanes)
}

/// Distributes partitions over `connections` connections; `None` makes one connection for each leader. Connections go
/// to the leaders in turn, and each leader's partitions go to its connections in turn. If a leader has more
/// connections than partitions, several connections share a partition.
pub fn lanes(leaders: &[Lane], connections: Option<usize>) -> Result<Vec<Lane>, SetupError> {
    let connections = connections.unwrap_or(leaders.len());
    if connections < leaders.len() {
        return Err(SetupError::TooFewConnections { connections, leaders: leaders.len() });
    }
    let lane = |connection: usize| {
        let leader = &leaders[connection % leaders.len()];
        let siblings = (connections - connection % leaders.len()).div_ceil(leaders.len());
        let place = connection / leaders.len();
        let count = leader.partitions.len();
        let partitions = if count >= siblings {
            leader.partitions.iter().copied().skip(place).step_by(siblings).collect()
        } else {
            vec![leader.partitions[place % count]]
        };
        Lane { addr: leader.addr, partitions }
    };
    Ok((0..connections).map(lane).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader(port: u16, partitions: std::ops::Range<i32>) -> Lane {
        Lane { addr: SocketAddr::from(([127, 0, 0, 1], port)), partitions: partitions.collect() }
    }

    #[test]
    fn every_partition_has_exactly_one_connection_if_there_are_enough() {
        for connections in 2..=9 {
            let leaders = [leader(1, 0..5), leader(2, 5..9)];
            let mut seen: Vec<(u16, i32)> = Vec::new();
            for lane in lanes(&leaders, Some(connections)).unwrap() {
                assert!(!lane.partitions.is_empty(), "{connections} connections");
                seen.extend(lane.partitions.iter().map(|p| (lane.addr.port(), *p)));
            }
            seen.sort_unstable();
            seen.dedup();
            let want: Vec<(u16, i32)> = (0..5).map(|p| (1, p)).chain((5..9).map(|p| (2, p))).collect();
            assert_eq!(seen, want, "{connections} connections");
        }
    }

    #[test]
    fn more_connections_than_partitions_share_them_evenly() {
        let lanes = lanes(&[leader(1, 0..2)], Some(6)).unwrap();
        let on = |partition| lanes.iter().filter(|lane| lane.partitions == [partition]).count();
        assert_eq!((on(0), on(1)), (3, 3));
        assert_eq!(super::lanes(&[leader(1, 0..2), leader(2, 2..4)], None).unwrap().len(), 2);
    }

    #[test]
    fn readers_share_nothing() {
        let lanes = lanes(&[leader(1, 0..2), leader(2, 2..3)], Some(6)).unwrap();
        let target = Target { lanes, partitions: 3, version: 12 };
        let mut partitions: Vec<i32> = target.readers().into_iter().flat_map(|lane| lane.partitions).collect();
        partitions.sort_unstable();
        assert_eq!(partitions, [0, 1, 2]);
    }

    #[test]
    fn a_leader_without_a_connection_is_refused() {
        let refused = lanes(&[leader(1, 0..1), leader(2, 1..2)], Some(1)).unwrap_err();
        assert_eq!(refused.to_string(), "1 connections for 2 leaders; give at least one each with --connections");
    }
}
