//! `millrace cluster describe`: brokers, the metadata quorum, and how well partitions are replicated.
//! Lives on: the main thread. Uses the Kafka protocol (DescribeCluster, DescribeQuorum, Metadata), and works with any
//! cluster that serves these APIs.

use std::{collections::BTreeMap, fmt::Write as _};

use clap::{Arg, ArgAction, ArgMatches, Command};
use net::{
    StrBytes,
    client::blocking::Client,
    codec::api::ApiKey,
    errors::{self, ErrorCode},
    messages::{
        DescribeClusterRequest, DescribeClusterResponse, DescribeQuorumRequest, DescribeQuorumResponse,
        MetadataRequest, MetadataResponse, TopicName,
        describe_quorum_request::{self, TopicData},
        describe_quorum_response::{PartitionData, ReplicaState},
    },
};
use serde_json::{Value, json};

use crate::cli::client::{self, CommandError, Refused, connect};

/// Kafka's name for the metadata log.
const METADATA_TOPIC: &str = "__cluster_metadata";
/// From this version on, DescribeCluster can return fenced brokers, if the client asks for them.
const FENCED_FROM: i16 = 2;

const COLUMNS: &str = "\
Columns:
  role              in the metadata quorum: leader, voter, or observer (gets the log but has no vote)
  lag               entries of the metadata log that the leader has and the broker may lack
  heard             time since the leader last heard from the broker
  leads             partitions that the broker leads
  under-replicated  partitions that it leads and that have a replica out of sync
  replicas          partitions of which the broker has a replica
  not in sync       partitions whose replica on the broker is out of sync";

pub fn command() -> Command {
    let describe = Command::new("describe")
        .about("Show the brokers, the metadata quorum with each member's lag, and the partitions per broker")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print one JSON object"))
        .after_help(format!(
            "{COLUMNS}\n\nExamples:\n  millrace cluster describe\n  \
             millrace cluster describe --bootstrap kafka.example:9092 --json"
        ));
    Command::new("cluster")
        .about("Inspect a running cluster")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .arg(client::bootstrap())
        .after_help("Example:\n  millrace cluster describe --bootstrap kafka.example:9092")
        .subcommand(describe)
}

/// Runs the command and returns the text to print.
pub fn run(matches: &ArgMatches) -> Result<String, CommandError> {
    let (_, matches) = matches.subcommand().expect("clap asks for a subcommand");
    let bootstrap = matches.get_one::<String>("bootstrap").expect("it has a default");
    let cluster = ask(&mut connect(bootstrap)?)?;
    Ok(match matches.get_flag("json") {
        true => format!("{:#}\n", cluster.json()),
        false => cluster.text(),
    })
}

fn ask(client: &mut Client) -> Result<Cluster, CommandError> {
    let fenced = client.version(ApiKey::DescribeCluster)? >= FENCED_FROM;
    let request = DescribeClusterRequest::default().with_include_fenced_brokers(fenced);
    let described = client.call(request)?;
    Refused::check("the broker can't describe the cluster", described.error_code, described.error_message.as_ref())?;

    let partition = describe_quorum_request::PartitionData::default();
    let topic = TopicData::default()
        .with_topic_name(TopicName(StrBytes::from_static_str(METADATA_TOPIC)))
        .with_partitions(vec![partition]);
    let quorum = client.call(DescribeQuorumRequest::default().with_topics(vec![topic]))?;

    let request = MetadataRequest::default().with_topics(None).with_allow_auto_topic_creation(false);
    let metadata = client.call(request)?;
    if let Some(topic) = metadata.topics.iter().find(|topic| topic.error_code != errors::NONE) {
        let name = topic.name.as_ref().map_or("", |name| name.0.as_str());
        Refused::check(format!("the broker can't describe topic '{name}'"), topic.error_code, None)?;
    }
    Ok(Cluster::from(&described, &quorum, &metadata))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Leader,
    Voter,
    Observer,
    /// Not a member of the quorum according to its leader, or unknown.
    None,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Voter => "voter",
            Role::Observer => "observer",
            Role::None => "-",
        }
    }
}

/// A broker, or a member of the quorum that is not a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    /// Host and port.
    address: Option<(String, i32)>,
    fenced: bool,
    role: Role,
    lag: Option<i64>,
    heard_ms_ago: Option<i64>,
    leads: usize,
    under_replicated: usize,
    replicas: usize,
    not_in_sync: usize,
}

const UNKNOWN: Node = Node {
    address: None,
    fenced: false,
    role: Role::None,
    lag: None,
    heard_ms_ago: None,
    leads: 0,
    under_replicated: 0,
    replicas: 0,
    not_in_sync: 0,
};

/// The metadata quorum as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quorum {
    leader: i32,
    epoch: i32,
    high_watermark: i64,
}

/// Why the metadata quorum is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum QuorumError {
    /// The broker's own words.
    #[error("{0}")]
    Told(String),
    #[error("{0}")]
    Code(ErrorCode),
    #[error("the broker's answer has no quorum")]
    Missing,
}

impl QuorumError {
    fn check(code: i16, message: Option<&StrBytes>) -> Result<(), Self> {
        errors::check(code).map_err(|code| match message.filter(|message| !message.is_empty()) {
            Some(message) => Self::Told(message.to_string()),
            None => Self::Code(code),
        })
    }
}

#[derive(Debug)]
struct Cluster {
    id: String,
    quorum: Result<Quorum, QuorumError>,
    nodes: BTreeMap<i32, Node>,
    partitions: usize,
    under_replicated: usize,
    leaderless: usize,
}

impl Cluster {
    fn from(described: &DescribeClusterResponse, quorum: &DescribeQuorumResponse, metadata: &MetadataResponse) -> Self {
        let mut nodes = BTreeMap::new();
        for broker in &described.brokers {
            let address = Some((broker.host.to_string(), broker.port));
            nodes.insert(broker.broker_id.0, Node { address, fenced: broker.is_fenced, ..UNKNOWN });
        }
        let id = described.cluster_id.to_string();
        let quorum = quorum_of(quorum).map(|partition| add_members(&mut nodes, partition));
        let mut cluster = Cluster { id, quorum, nodes, partitions: 0, under_replicated: 0, leaderless: 0 };
        cluster.count(metadata);
        cluster
    }

    fn count(&mut self, metadata: &MetadataResponse) {
        for partition in metadata.topics.iter().flat_map(|topic| &topic.partitions) {
            let lacks = partition.isr_nodes.len() < partition.replica_nodes.len();
            self.partitions += 1;
            self.under_replicated += usize::from(lacks);
            self.leaderless += usize::from(partition.leader_id.0 < 0);
            if let Some(node) = self.nodes.get_mut(&partition.leader_id.0) {
                node.leads += 1;
                node.under_replicated += usize::from(lacks);
            }
            for replica in &partition.replica_nodes {
                let node = self.nodes.entry(replica.0).or_insert(UNKNOWN);
                node.replicas += 1;
                node.not_in_sync += usize::from(!partition.isr_nodes.contains(replica));
            }
        }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = writeln!(out, "cluster     {}", self.id);
        let _ = match &self.quorum {
            Ok(Quorum { leader, epoch, high_watermark }) => {
                writeln!(out, "metadata    led by broker {leader}  epoch {epoch}  committed {high_watermark}")
            }
            Err(why) => writeln!(out, "metadata    no leader is known: {why}"),
        };
        let _ = writeln!(
            out,
            "partitions  {}  under-replicated {}  without a leader {}\n",
            self.partitions, self.under_replicated, self.leaderless
        );
        let header = ["broker", "address", "state", "role", "lag", "heard", "leads", "under-replicated", "replicas"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows[0].push("not in sync".to_owned());
        for (id, node) in &self.nodes {
            let dash = || "-".to_owned();
            rows.push(vec![
                id.to_string(),
                node.address.as_ref().map_or_else(dash, |(host, port)| format!("{host}:{port}")),
                state(node).to_owned(),
                node.role.name().to_owned(),
                node.lag.map_or_else(dash, |lag| lag.to_string()),
                node.heard_ms_ago.map_or_else(dash, ago),
                node.leads.to_string(),
                node.under_replicated.to_string(),
                node.replicas.to_string(),
                node.not_in_sync.to_string(),
            ]);
        }
        let widths: Vec<usize> = (0..rows[0].len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        for row in rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            let _ = writeln!(out, "{}", cells.join("  ").trim_end());
        }
        out
    }

    fn json(&self) -> Value {
        let brokers = self.nodes.iter().map(|(id, node)| {
            let (host, port) = node.address.clone().unzip();
            json!({
                "id": id,
                "host": host,
                "port": port,
                "state": state(node),
                "role": if node.role == Role::None { None } else { Some(node.role.name()) },
                "lag": node.lag,
                "heard_ms_ago": node.heard_ms_ago,
                "leads": node.leads,
                "under_replicated": node.under_replicated,
                "replicas": node.replicas,
                "not_in_sync": node.not_in_sync,
            })
        });
        let metadata = match &self.quorum {
            Ok(Quorum { leader, epoch, high_watermark }) => {
                json!({ "leader": leader, "epoch": epoch, "committed": high_watermark })
            }
            Err(why) => json!({ "leader": null, "error": why.to_string() }),
        };
        json!({
            "cluster_id": self.id,
            "metadata": metadata,
            "brokers": brokers.collect::<Vec<_>>(),
            "partitions": self.partitions,
            "under_replicated": self.under_replicated,
            "leaderless": self.leaderless,
        })
    }
}

/// The only partition in the answer, or why there is none.
fn quorum_of(response: &DescribeQuorumResponse) -> Result<&PartitionData, QuorumError> {
    QuorumError::check(response.error_code, response.error_message.as_ref())?;
    let partition = response.topics.first().and_then(|topic| topic.partitions.first());
    let partition = partition.ok_or(QuorumError::Missing)?;
    QuorumError::check(partition.error_code, partition.error_message.as_ref())?;
    Ok(partition)
}

/// Adds the members of the metadata quorum to the brokers.
fn add_members(nodes: &mut BTreeMap<i32, Node>, partition: &PartitionData) -> Quorum {
    let leader = partition.leader_id.0;
    let members = || partition.current_voters.iter().chain(&partition.observers);
    let of_leader = members().find(|member| member.replica_id.0 == leader);
    let voters = partition.current_voters.iter().map(|member| (member, Role::Voter));
    for (member, role) in voters.chain(partition.observers.iter().map(|member| (member, Role::Observer))) {
        let node = nodes.entry(member.replica_id.0).or_insert(UNKNOWN);
        node.role = if member.replica_id.0 == leader { Role::Leader } else { role };
        // Compared by the leader's own clock, whatever time it shows.
        node.heard_ms_ago = of_leader.and_then(|leader| known(leader).zip(known(member))).map(|(now, at)| now - at);
        node.lag = of_leader.map(|leader| (leader.log_end_offset - member.log_end_offset).max(0));
    }
    Quorum { leader, epoch: partition.leader_epoch, high_watermark: partition.high_watermark }
}

/// The time at which the leader last heard from a member, in ms since the epoch by the leader's clock. `None` if the
/// answer is below 0: unknown.
fn known(member: &ReplicaState) -> Option<i64> {
    Some(member.last_fetch_timestamp).filter(|at| *at >= 0)
}

/// A broker that the leader has not heard from for its session timeout is fenced. A node that is not registered may
/// only vote.
fn state(node: &Node) -> &'static str {
    match node {
        Node { address: None, .. } => "no broker",
        Node { fenced: true, .. } => "fenced",
        _ => "alive",
    }
}

fn ago(ms: i64) -> String {
    match ms.max(0) {
        0 => "now".to_owned(),
        ms @ ..10_000 => format!("{ms} ms ago"),
        ms => format!("{} s ago", ms / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::messages::{
        BrokerId,
        describe_cluster_response::DescribeClusterBroker,
        describe_quorum_response,
        metadata_response::{MetadataResponsePartition, MetadataResponseTopic},
    };

    fn broker(id: i32, fenced: bool) -> DescribeClusterBroker {
        DescribeClusterBroker::default()
            .with_broker_id(BrokerId(id))
            .with_host(StrBytes::from_static_str("host"))
            .with_port(9091 + id)
            .with_is_fenced(fenced)
    }

    fn member(id: i32, end: i64, heard: i64) -> ReplicaState {
        ReplicaState::default().with_replica_id(BrokerId(id)).with_log_end_offset(end).with_last_fetch_timestamp(heard)
    }

    fn cluster(quorum: DescribeQuorumResponse) -> Cluster {
        let described = DescribeClusterResponse::default()
            .with_cluster_id(StrBytes::from_static_str("abc"))
            .with_brokers(vec![broker(1, false), broker(2, true), broker(3, false)]);
        let nodes = |nodes: &[i32]| nodes.iter().copied().map(BrokerId).collect::<Vec<_>>();
        let partition = |leader, replicas: &[i32], isr: &[i32]| {
            MetadataResponsePartition::default()
                .with_leader_id(BrokerId(leader))
                .with_replica_nodes(nodes(replicas))
                .with_isr_nodes(nodes(isr))
        };
        let partitions = vec![partition(1, &[1, 2], &[1]), partition(3, &[3, 1], &[3, 1]), partition(-1, &[2], &[2])];
        let metadata =
            MetadataResponse::default().with_topics(vec![MetadataResponseTopic::default().with_partitions(partitions)]);
        Cluster::from(&described, &quorum, &metadata)
    }

    fn quorum() -> DescribeQuorumResponse {
        let partition = PartitionData::default()
            .with_leader_id(BrokerId(1))
            .with_leader_epoch(4)
            .with_high_watermark(119)
            .with_current_voters(vec![member(1, 120, 50_000), member(2, 90, 20_000), member(9, 0, -1)])
            .with_observers(vec![member(3, 119, 49_950)]);
        let topic = describe_quorum_response::TopicData::default().with_partitions(vec![partition]);
        DescribeQuorumResponse::default().with_topics(vec![topic])
    }

    #[test]
    fn a_cluster_is_described_by_broker() {
        assert_eq!(
            cluster(quorum()).text(),
            "cluster     abc\n\
             metadata    led by broker 1  epoch 4  committed 119\n\
             partitions  3  under-replicated 1  without a leader 1\n\
             \n\
             broker  address    state      role      lag  heard      leads  under-replicated  replicas  not in sync\n\
             1       host:9092  alive      leader    0    now        1      1                 2         0\n\
             2       host:9093  fenced     voter     30   30 s ago   0      0                 2         1\n\
             3       host:9094  alive      observer  1    50 ms ago  1      0                 1         0\n\
             9       -          no broker  voter     120  -          0      0                 0         0\n"
        );
    }

    #[test]
    fn programs_are_told_the_same() {
        let told = cluster(quorum()).json();
        assert_eq!(told["metadata"], json!({ "leader": 1, "epoch": 4, "committed": 119 }));
        assert_eq!(
            told["brokers"][1],
            json!({
                "id": 2, "host": "host", "port": 9093, "state": "fenced", "role": "voter", "lag": 30,
                "heard_ms_ago": 30_000, "leads": 0, "under_replicated": 0, "replicas": 2, "not_in_sync": 1,
            })
        );
        assert_eq!(
            (&told["partitions"], &told["under_replicated"], &told["leaderless"]),
            (&3.into(), &1.into(), &1.into())
        );
        assert_eq!(told["brokers"].as_array().map(Vec::len), Some(4));
    }

    #[test]
    fn a_quorum_that_is_not_known_leaves_the_rest() {
        let refused = DescribeQuorumResponse::default()
            .with_error_code(ErrorCode::NotLeaderOrFollower.code())
            .with_error_message(Some(StrBytes::from_static_str("there is none")));
        let told = cluster(refused);
        assert!(told.text().contains("metadata    no leader is known: there is none\n"), "{}", told.text());
        assert!(told.text().contains("1       host:9092  alive   -     -    -"), "{}", told.text());
        assert_eq!(told.json()["metadata"], json!({ "leader": null, "error": "there is none" }));
        assert_eq!(cluster(DescribeQuorumResponse::default()).quorum, Err(QuorumError::Missing));
    }
}
