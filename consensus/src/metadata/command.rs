//! Metadata commands and their encoding in the log.

use super::{
    Broker, BrokerStatus, NoRoom, SliceId,
    encoding::{Out, broker_in, broker_out, configs_in, configs_out, status_in, uuid_in, uuid_out},
    room::{no_room_in, no_room_out},
    slice_of_cluster, slice_of_topic,
};
use crate::generated::metadata::millrace::metadata as fb;
use bytes::Bytes;
use flatbuffers::{
    FlatBufferBuilder, Follow, ForwardsUOffset, InvalidFlatbuffer, UnionWIPOffset, Vector, Verifiable, VerifierOptions,
    WIPOffset,
};
use std::{collections::BTreeMap, sync::Arc};
use types::Term;
use uuid::Uuid;

/// A change of the metadata. It contains every choice (ids, placement, time), so applying it is deterministic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    CreateTopic {
        name: Arc<str>,
        id: Uuid,
        /// Partition n gets the group `first_group + n`.
        first_group: u64,
        /// One list of nodes per partition. The preferred leader comes first.
        replicas: Vec<Vec<i32>>,
        configs: BTreeMap<String, String>,
        created_ms: i64,
        /// The peer ids of the brokers. The peers of a partition's replicas become the first voters of its group.
        peers: Vec<u64>,
    },
    DeleteTopic {
        name: Arc<str>,
        id: Uuid,
    },
    CreatePartitions {
        name: Arc<str>,
        id: Uuid,
        /// The number of partitions that the proposer saw. The command is rejected if it has changed since.
        present: u32,
        first_group: u64,
        replicas: Vec<Vec<i32>>,
        peers: Vec<u64>,
    },
    UpdateTopicConfig {
        name: Arc<str>,
        id: Uuid,
        /// `None`: removes the value, so that the default applies.
        changes: Vec<(String, Option<String>)>,
    },
    AllocateProducerIds {
        count: u32,
    },
    /// Assigns other replicas to a partition.
    AssignPartition {
        name: Arc<str>,
        id: Uuid,
        partition: u32,
        /// The replicas that the proposer saw. The command is rejected if they have changed since.
        present: Vec<i32>,
        replicas: Vec<i32>,
    },
    /// Reports of the leaders of partitions of one topic.
    SetPartitionLeader {
        name: Arc<str>,
        id: Uuid,
        leaders: Vec<LeaderReport>,
    },
    /// Reports of the offsets of partitions of one topic.
    UpdateHighWatermark {
        name: Arc<str>,
        id: Uuid,
        node: i32,
        watermarks: Vec<WatermarkReport>,
    },
    RegisterBroker {
        broker: Broker,
    },
    UpdateBrokerStatus {
        node: i32,
        /// The command is rejected if another process of the node has registered since.
        incarnation: u64,
        status: BrokerStatus,
    },
    UnregisterBroker {
        node: i32,
    },
    SetFeatureLevel {
        name: String,
        level: u16,
    },
    UpdateClusterConfig {
        /// `None`: for all nodes without a value of their own.
        node: Option<i32>,
        /// `None`: removes the value, so that the node's own configuration applies.
        changes: Vec<(String, Option<String>)>,
    },
}

/// The leader of a partition, as it reports itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderReport {
    pub partition: u32,
    pub term: Term,
    pub leader: i32,
    pub voters: Vec<i32>,
}

/// The offsets of a partition, as its leader reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatermarkReport {
    pub partition: u32,
    pub high_watermark: u64,
    pub log_start: u64,
    pub end_offset: u64,
}

/// Identifies the sender of a command and the number of the request. A request with an origin that was seen before
/// is not applied again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub node: i32,
    /// The number of the node's process. A later process has a larger number and knows nothing of earlier requests.
    pub incarnation: u64,
    /// Numbered from 1; never 0.
    pub sequence: u64,
    /// The node has the answers to all its requests below this sequence.
    pub lowest_open: u64,
}

/// A command, and its origin if it may be retried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub origin: Option<Origin>,
    pub command: Command,
    /// If set, every slice rejects the command with this reason. The leader sets it, because only the leader can
    /// count what precedes the command in the log.
    pub no_room: Option<NoRoom>,
}

impl From<Command> for Request {
    fn from(command: Command) -> Self {
        Self { origin: None, command, no_room: None }
    }
}

/// Small commands that create, change and delete a topic and allocate producer ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("not a list of commands: {0}")]
    Invalid(#[from] InvalidFlatbuffer),
    #[error("this version does not know command kind {0}; run the newer version")]
    UnknownKind(u8),
    #[error("{0} queries in one request; the limit is {max}", max = super::QUERIES_MAX)]
    TooManyQueries(usize),
}

impl Command {
    /// The slice that the command belongs to.
    pub fn slice(&self) -> SliceId {
        match self {
            Command::CreateTopic { name, .. }
            | Command::DeleteTopic { name, .. }
            | Command::CreatePartitions { name, .. }
            | Command::UpdateTopicConfig { name, .. }
            | Command::AssignPartition { name, .. }
            | Command::SetPartitionLeader { name, .. }
            | Command::UpdateHighWatermark { name, .. } => slice_of_topic(name),
            Command::AllocateProducerIds { .. }
            | Command::RegisterBroker { .. }
            | Command::UpdateBrokerStatus { .. }
            | Command::UnregisterBroker { .. }
            | Command::SetFeatureLevel { .. }
            | Command::UpdateClusterConfig { .. } => slice_of_cluster(),
        }
    }

    /// Whether the command may be acknowledged only after a majority has it, because its effects reach beyond its
    /// slice.
    pub fn is_quorum_only(&self) -> bool {
        matches!(
            self,
            Command::AllocateProducerIds { .. }
                | Command::RegisterBroker { .. }
                | Command::UpdateBrokerStatus { .. }
                | Command::UnregisterBroker { .. }
                | Command::SetFeatureLevel { .. }
        )
    }

    /// The field for the brokers' peer ids, if the command creates groups.
    pub fn founding_peers(&mut self) -> Option<&mut Vec<u64>> {
        match self {
            Command::CreateTopic { peers, .. } | Command::CreatePartitions { peers, .. } => Some(peers),
            _ => None,
        }
    }

    /// The topic's name and the replicas of the partitions that the command creates.
    pub fn new_replicas(&mut self) -> Option<(&str, &mut Vec<Vec<i32>>)> {
        match self {
            Command::CreateTopic { name, replicas, .. } | Command::CreatePartitions { name, replicas, .. } => {
                Some((name, replicas))
            }
            _ => None,
        }
    }

    /// The number of groups that the command creates, and the field for the id of the first. The proposer fills it
    /// in, in log order.
    pub fn new_groups(&mut self) -> Option<(usize, &mut u64)> {
        match self {
            Command::CreateTopic { first_group, replicas, .. }
            | Command::CreatePartitions { first_group, replicas, .. } => Some((replicas.len(), first_group)),
            _ => None,
        }
    }
}

/// Encodes commands for one log entry, without origins. Nobody retries them.
pub fn encode(commands: &[Command]) -> Bytes {
    encode_all(commands.iter().map(|command| (None, None, command)))
}

/// Encodes requests for one log entry.
pub fn encode_requests(requests: &[Request]) -> Bytes {
    encode_all(requests.iter().map(|request| (request.origin, request.no_room, &request.command)))
}

fn encode_all<'a>(commands: impl ExactSizeIterator<Item = (Option<Origin>, Option<NoRoom>, &'a Command)>) -> Bytes {
    let mut out = FlatBufferBuilder::with_capacity(256 * commands.len());
    let commands: Vec<_> = commands
        .map(|(origin, no_room, command)| {
            let no_room = no_room.map(|no_room| no_room_out(&mut out, no_room));
            write(&mut out, origin, no_room, command)
        })
        .collect();
    let commands = Some(out.create_vector(&commands));
    let root = fb::Commands::create(&mut out, &fb::CommandsArgs { commands });
    out.finish(root, None);
    let (buffer, start) = out.collapse();
    Bytes::from(buffer).slice(start..)
}

/// The most FlatBuffers tables in one list. A list with more is a mistake or an attack.
const TABLES_MAX: usize = 1 << 20;
/// How many times larger than its bytes a list may appear when shared parts count once per reference. A builder
/// shares little more than the layout of tables, whereas forged bytes could reference their largest part a million
/// times.
pub(super) const SHARED_MAX: usize = 8;

/// Verifies bytes that may come from untrusted senders and returns their root.
pub(super) fn verified<'b, T: Follow<'b> + Verifiable + 'b>(bytes: &'b [u8]) -> Result<T::Inner, InvalidFlatbuffer> {
    let max_apparent_size = bytes.len().saturating_mul(SHARED_MAX);
    let options = VerifierOptions { max_tables: TABLES_MAX, max_apparent_size, ..VerifierOptions::default() };
    flatbuffers::root_with_opts::<T>(&options, bytes)
}

/// Decodes the commands of an entry. The bytes are verified first.
pub fn decode(data: &[u8]) -> Result<Vec<Command>, DecodeError> {
    verified::<fb::Commands<'_>>(data)?.commands().iter().map(read).collect()
}

/// Decodes the commands of an entry with their origins. The bytes are verified first.
pub fn decode_requests(data: &[u8]) -> Result<Vec<Request>, DecodeError> {
    let commands = verified::<fb::Commands<'_>>(data)?.commands();
    let request = |command: fb::Command<'_>| {
        let no_room = command.no_room().map(no_room_in);
        Ok(Request { origin: origin_of(command), command: read(command)?, no_room })
    };
    commands.iter().map(request).collect()
}

fn origin_of(command: fb::Command<'_>) -> Option<Origin> {
    (command.sequence() != 0).then(|| Origin {
        node: command.origin(),
        incarnation: command.incarnation(),
        sequence: command.sequence(),
        lowest_open: command.lowest_open(),
    })
}

fn write<'b>(
    out: &mut Out<'b>,
    origin: Option<Origin>,
    no_room: Option<WIPOffset<fb::NoRoom<'b>>>,
    command: &Command,
) -> WIPOffset<fb::Command<'b>> {
    let (body_type, body) = body_out(out, command);
    let mut args = fb::CommandArgs { body_type, body: Some(body), no_room, ..fb::CommandArgs::default() };
    if let Some(origin) = origin {
        assert_ne!(origin.sequence, 0, "requests are numbered from 1");
        args.origin = origin.node;
        args.incarnation = origin.incarnation;
        args.sequence = origin.sequence;
        args.lowest_open = origin.lowest_open;
    }
    fb::Command::create(out, &args)
}

fn body_out(out: &mut Out<'_>, command: &Command) -> (fb::Body, WIPOffset<UnionWIPOffset>) {
    match command {
        Command::CreateTopic { name, id, first_group, replicas, configs, created_ms, peers } => {
            let args = fb::CreateTopicArgs {
                name: Some(out.create_string(name)),
                id: Some(&uuid_out(*id)),
                first_group: *first_group,
                replicas: Some(replicas_out(out, replicas)),
                configs: Some(configs_out(out, configs.iter().map(|(name, value)| (name, Some(value))))),
                created_ms: *created_ms,
                peers: (!peers.is_empty()).then(|| out.create_vector(peers)),
            };
            (fb::Body::CreateTopic, fb::CreateTopic::create(out, &args).as_union_value())
        }
        Command::DeleteTopic { name, id } => {
            let args = fb::DeleteTopicArgs { name: Some(out.create_string(name)), id: Some(&uuid_out(*id)) };
            (fb::Body::DeleteTopic, fb::DeleteTopic::create(out, &args).as_union_value())
        }
        Command::CreatePartitions { name, id, present, first_group, replicas, peers } => {
            let args = fb::CreatePartitionsArgs {
                name: Some(out.create_string(name)),
                id: Some(&uuid_out(*id)),
                present: *present,
                first_group: *first_group,
                replicas: Some(replicas_out(out, replicas)),
                peers: (!peers.is_empty()).then(|| out.create_vector(peers)),
            };
            (fb::Body::CreatePartitions, fb::CreatePartitions::create(out, &args).as_union_value())
        }
        Command::UpdateTopicConfig { name, id, changes } => {
            let args = fb::UpdateTopicConfigArgs {
                name: Some(out.create_string(name)),
                id: Some(&uuid_out(*id)),
                changes: Some(configs_out(out, changes.iter().map(|(name, value)| (name, value.as_ref())))),
            };
            (fb::Body::UpdateTopicConfig, fb::UpdateTopicConfig::create(out, &args).as_union_value())
        }
        Command::AllocateProducerIds { count } => {
            let args = fb::AllocateProducerIdsArgs { count: *count };
            (fb::Body::AllocateProducerIds, fb::AllocateProducerIds::create(out, &args).as_union_value())
        }
        Command::AssignPartition { name, id, partition, present, replicas } => {
            let args = fb::AssignPartitionArgs {
                name: Some(out.create_string(name)),
                id: Some(&uuid_out(*id)),
                partition: *partition,
                present: Some(out.create_vector(present)),
                replicas: Some(out.create_vector(replicas)),
            };
            (fb::Body::AssignPartition, fb::AssignPartition::create(out, &args).as_union_value())
        }
        Command::SetPartitionLeader { name, id, leaders } => {
            let leaders: Vec<_> = leaders
                .iter()
                .map(|report| {
                    let LeaderReport { partition, term, leader, ref voters } = *report;
                    let voters = Some(out.create_vector(voters));
                    fb::LeaderReport::create(out, &fb::LeaderReportArgs { partition, term: term.0, leader, voters })
                })
                .collect();
            let args = fb::SetPartitionLeaderArgs {
                name: Some(out.create_string(name)),
                id: Some(&uuid_out(*id)),
                leaders: Some(out.create_vector(&leaders)),
            };
            (fb::Body::SetPartitionLeader, fb::SetPartitionLeader::create(out, &args).as_union_value())
        }
        Command::UpdateHighWatermark { name, id, node, watermarks } => {
            let watermarks: Vec<_> = watermarks
                .iter()
                .map(|report| {
                    let WatermarkReport { partition, high_watermark, log_start, end_offset } = *report;
                    let args = fb::WatermarkReportArgs { partition, high_watermark, log_start, end_offset };
                    fb::WatermarkReport::create(out, &args)
                })
                .collect();
            let args = fb::UpdateHighWatermarkArgs {
                name: Some(out.create_string(name)),
                id: Some(&uuid_out(*id)),
                node: *node,
                watermarks: Some(out.create_vector(&watermarks)),
            };
            (fb::Body::UpdateHighWatermark, fb::UpdateHighWatermark::create(out, &args).as_union_value())
        }
        Command::RegisterBroker { broker } => {
            let broker = Some(broker_out(out, broker));
            let body = fb::RegisterBroker::create(out, &fb::RegisterBrokerArgs { broker });
            (fb::Body::RegisterBroker, body.as_union_value())
        }
        Command::UpdateBrokerStatus { node, incarnation, status } => {
            let fenced = *status == BrokerStatus::Fenced;
            let args = fb::UpdateBrokerStatusArgs { node: *node, incarnation: *incarnation, fenced };
            (fb::Body::UpdateBrokerStatus, fb::UpdateBrokerStatus::create(out, &args).as_union_value())
        }
        Command::UnregisterBroker { node } => {
            let body = fb::UnregisterBroker::create(out, &fb::UnregisterBrokerArgs { node: *node });
            (fb::Body::UnregisterBroker, body.as_union_value())
        }
        Command::SetFeatureLevel { name, level } => {
            let args = fb::SetFeatureLevelArgs { name: Some(out.create_string(name)), level: *level };
            (fb::Body::SetFeatureLevel, fb::SetFeatureLevel::create(out, &args).as_union_value())
        }
        Command::UpdateClusterConfig { node, changes } => {
            let changes = configs_out(out, changes.iter().map(|(name, value)| (name, value.as_ref())));
            let args = fb::UpdateClusterConfigArgs {
                for_node: node.is_some(),
                node: node.unwrap_or_default(),
                changes: Some(changes),
            };
            (fb::Body::UpdateClusterConfig, fb::UpdateClusterConfig::create(out, &args).as_union_value())
        }
    }
}

fn read(command: fb::Command<'_>) -> Result<Command, DecodeError> {
    const VERIFIED: &str = "the verifier checked the union's type";
    Ok(match command.body_type() {
        fb::Body::CreateTopic => {
            let body = command.body_as_create_topic().expect(VERIFIED);
            Command::CreateTopic {
                name: body.name().into(),
                id: uuid_in(body.id()),
                first_group: body.first_group(),
                replicas: replicas_in(body.replicas()),
                configs: configs_in(body.configs())
                    .into_iter()
                    .map(|(name, value)| (name, value.unwrap_or_default()))
                    .collect(),
                created_ms: body.created_ms(),
                peers: body.peers().into_iter().flatten().collect(),
            }
        }
        fb::Body::DeleteTopic => {
            let body = command.body_as_delete_topic().expect(VERIFIED);
            Command::DeleteTopic { name: body.name().into(), id: uuid_in(body.id()) }
        }
        fb::Body::CreatePartitions => {
            let body = command.body_as_create_partitions().expect(VERIFIED);
            Command::CreatePartitions {
                name: body.name().into(),
                id: uuid_in(body.id()),
                present: body.present(),
                first_group: body.first_group(),
                replicas: replicas_in(body.replicas()),
                peers: body.peers().into_iter().flatten().collect(),
            }
        }
        fb::Body::UpdateTopicConfig => {
            let body = command.body_as_update_topic_config().expect(VERIFIED);
            let changes = configs_in(body.changes());
            Command::UpdateTopicConfig { name: body.name().into(), id: uuid_in(body.id()), changes }
        }
        fb::Body::AllocateProducerIds => {
            let body = command.body_as_allocate_producer_ids().expect(VERIFIED);
            Command::AllocateProducerIds { count: body.count() }
        }
        fb::Body::AssignPartition => {
            let body = command.body_as_assign_partition().expect(VERIFIED);
            Command::AssignPartition {
                name: body.name().into(),
                id: uuid_in(body.id()),
                partition: body.partition(),
                present: body.present().iter().collect(),
                replicas: body.replicas().iter().collect(),
            }
        }
        fb::Body::SetPartitionLeader => {
            let body = command.body_as_set_partition_leader().expect(VERIFIED);
            let leaders = body.leaders().iter().map(|report| LeaderReport {
                partition: report.partition(),
                term: Term(report.term()),
                leader: report.leader(),
                voters: report.voters().iter().collect(),
            });
            Command::SetPartitionLeader { name: body.name().into(), id: uuid_in(body.id()), leaders: leaders.collect() }
        }
        fb::Body::UpdateHighWatermark => {
            let body = command.body_as_update_high_watermark().expect(VERIFIED);
            let watermarks = body.watermarks().iter().map(|report| WatermarkReport {
                partition: report.partition(),
                high_watermark: report.high_watermark(),
                log_start: report.log_start(),
                end_offset: report.end_offset(),
            });
            Command::UpdateHighWatermark {
                name: body.name().into(),
                id: uuid_in(body.id()),
                node: body.node(),
                watermarks: watermarks.collect(),
            }
        }
        fb::Body::RegisterBroker => {
            let body = command.body_as_register_broker().expect(VERIFIED);
            Command::RegisterBroker { broker: broker_in(body.broker()) }
        }
        fb::Body::UpdateBrokerStatus => {
            let body = command.body_as_update_broker_status().expect(VERIFIED);
            let status = status_in(body.fenced());
            Command::UpdateBrokerStatus { node: body.node(), incarnation: body.incarnation(), status }
        }
        fb::Body::UnregisterBroker => {
            let body = command.body_as_unregister_broker().expect(VERIFIED);
            Command::UnregisterBroker { node: body.node() }
        }
        fb::Body::SetFeatureLevel => {
            let body = command.body_as_set_feature_level().expect(VERIFIED);
            Command::SetFeatureLevel { name: body.name().to_owned(), level: body.level() }
        }
        fb::Body::UpdateClusterConfig => {
            let body = command.body_as_update_cluster_config().expect(VERIFIED);
            let node = body.for_node().then(|| body.node());
            Command::UpdateClusterConfig { node, changes: configs_in(body.changes()) }
        }
        other => return Err(DecodeError::UnknownKind(other.0)),
    })
}

fn replicas_out<'b>(
    out: &mut Out<'b>,
    replicas: &[Vec<i32>],
) -> WIPOffset<Vector<'b, ForwardsUOffset<fb::Replicas<'b>>>> {
    let replicas: Vec<_> = replicas
        .iter()
        .map(|nodes| {
            let nodes = Some(out.create_vector(nodes));
            fb::Replicas::create(out, &fb::ReplicasArgs { nodes })
        })
        .collect();
    out.create_vector(&replicas)
}

fn replicas_in(replicas: Vector<'_, ForwardsUOffset<fb::Replicas<'_>>>) -> Vec<Vec<i32>> {
    replicas.iter().map(|replicas| replicas.nodes().iter().collect()).collect()
}
