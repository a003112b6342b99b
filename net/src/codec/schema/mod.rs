//! The fields of requests, by version. Produce and Fetch are decoded without the codec, but weighed by their fields.
//!
//! Source: Kafka 4.x, `clients/src/main/resources/common/message/*Request.json`. The tagged fields of Fetch, which are
//! few and small, are left out. No other of these requests defines any. Unknown ones may stand at the end of every
//! struct of a flexible version. A test compares each version with the `kafka-protocol` crate's decoder and encoder.

pub(crate) mod response;

use crate::codec::api::ApiKey;

/// A field's type, as far as it determines the length.
#[derive(Debug, Clone, Copy)]
pub enum Type {
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    Uuid,
    String,
    Bytes,
    Array(&'static Type),
    Struct(&'static [Field]),
    OptionalStruct(&'static [Field]),
}

#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub name: &'static str,
    pub of: Type,
    /// The first and last version that has this field.
    pub from: i16,
    pub to: i16,
    /// Whether null is allowed in some version. (In a version that does not allow it, the codec rejects it.)
    pub nullable: bool,
    /// Set for a tagged field, which stands at the end of its struct (KIP-482).
    pub tag: Option<u32>,
}

pub(crate) const fn f(name: &'static str, of: Type) -> Field {
    Field { name, of, from: 0, to: i16::MAX, nullable: false, tag: None }
}

impl Field {
    pub(crate) const fn from(self, from: i16) -> Field {
        Field { from, ..self }
    }

    pub(crate) const fn to(self, to: i16) -> Field {
        Field { to, ..self }
    }

    pub(crate) const fn nullable(self) -> Field {
        Field { nullable: true, ..self }
    }

    pub(crate) const fn tag(self, tag: u32) -> Field {
        Field { tag: Some(tag), ..self }
    }

    pub fn exists_in(&self, version: i16) -> bool {
        (self.from..=self.to).contains(&version)
    }
}

impl Type {
    /// The minimum encoded size of a value, in bytes.
    pub fn bytes_min(self, version: i16, flexible: bool) -> usize {
        match self {
            Type::Bool | Type::Int8 | Type::OptionalStruct(_) => 1,
            Type::Int16 => 2,
            Type::Int32 => 4,
            Type::Int64 => 8,
            Type::Uuid => 16,
            _ if flexible && !matches!(self, Type::Struct(_)) => 1,
            Type::String => 2,
            Type::Bytes | Type::Array(_) => 4,
            Type::Struct(fields) => {
                let present = fields.iter().filter(|field| field.exists_in(version) && field.tag.is_none());
                present.map(|field| field.of.bytes_min(version, flexible)).sum::<usize>() + usize::from(flexible)
            }
        }
    }
}

use Type::{Array, Bool, Bytes, Int8, Int16, Int32, Int64, OptionalStruct, String, Struct, Uuid};

/// The fields of a request.
pub fn request(api: ApiKey) -> &'static [Field] {
    match api {
        ApiKey::Produce => PRODUCE,
        ApiKey::Fetch => FETCH,
        ApiKey::ListOffsets => LIST_OFFSETS,
        ApiKey::Metadata => METADATA,
        ApiKey::OffsetCommit => OFFSET_COMMIT,
        ApiKey::OffsetFetch => OFFSET_FETCH,
        ApiKey::FindCoordinator => FIND_COORDINATOR,
        ApiKey::JoinGroup => JOIN_GROUP,
        ApiKey::Heartbeat => HEARTBEAT,
        ApiKey::LeaveGroup => LEAVE_GROUP,
        ApiKey::SyncGroup => SYNC_GROUP,
        ApiKey::DescribeGroups => DESCRIBE_GROUPS,
        ApiKey::ListGroups => LIST_GROUPS,
        ApiKey::SaslHandshake => SASL_HANDSHAKE,
        ApiKey::ApiVersions => API_VERSIONS,
        ApiKey::CreateTopics => CREATE_TOPICS,
        ApiKey::DeleteTopics => DELETE_TOPICS,
        ApiKey::InitProducerId => INIT_PRODUCER_ID,
        ApiKey::OffsetForLeaderEpoch => OFFSET_FOR_LEADER_EPOCH,
        ApiKey::DescribeConfigs => DESCRIBE_CONFIGS,
        ApiKey::SaslAuthenticate => SASL_AUTHENTICATE,
        ApiKey::CreatePartitions => CREATE_PARTITIONS,
        ApiKey::DeleteGroups => DELETE_GROUPS,
        ApiKey::ElectLeaders => ELECT_LEADERS,
        ApiKey::IncrementalAlterConfigs => INCREMENTAL_ALTER_CONFIGS,
        ApiKey::DescribeQuorum => DESCRIBE_QUORUM,
        ApiKey::DescribeCluster => DESCRIBE_CLUSTER,
        ApiKey::UnregisterBroker => UNREGISTER_BROKER,
        ApiKey::DescribeTopicPartitions => DESCRIBE_TOPIC_PARTITIONS,
    }
}

const PRODUCE: &[Field] = &[
    f("transactional id", String).from(3).nullable(),
    f("acks", Int16),
    f("timeout", Int32),
    f(
        "topics",
        Array(&Struct(&[
            f("topic", String).to(12),
            f("topic id", Uuid).from(13),
            f("partitions", Array(&Struct(&[f("partition", Int32), f("records", Bytes).nullable()]))),
        ])),
    ),
];

const FETCH: &[Field] = &[
    f("replica id", Int32).to(14),
    f("max wait", Int32),
    f("min bytes", Int32),
    f("max bytes", Int32),
    // An INT8 that is 0 or 1.
    f("isolation level", Bool),
    f("session id", Int32).from(7),
    f("session epoch", Int32).from(7),
    f(
        "topics",
        Array(&Struct(&[
            f("topic", String).to(12),
            f("topic id", Uuid).from(13),
            f(
                "partitions",
                Array(&Struct(&[
                    f("partition", Int32),
                    f("current leader epoch", Int32).from(9),
                    f("fetch offset", Int64),
                    f("last fetched epoch", Int32).from(12),
                    f("log start offset", Int64).from(5),
                    f("partition max bytes", Int32),
                ])),
            ),
        ])),
    ),
    f(
        "forgotten topics",
        Array(&Struct(&[f("topic", String).to(12), f("topic id", Uuid).from(13), f("partitions", Array(&Int32))])),
    )
    .from(7),
    f("rack", String).from(11),
];

const LIST_OFFSETS: &[Field] = &[
    f("replica id", Int32),
    f("isolation level", Int8).from(2),
    f(
        "topics",
        Array(&Struct(&[
            f("topic", String),
            f(
                "partitions",
                Array(&Struct(&[
                    f("partition", Int32),
                    f("current leader epoch", Int32).from(4),
                    f("timestamp", Int64),
                ])),
            ),
        ])),
    ),
    f("timeout", Int32).from(10),
];

const METADATA: &[Field] = &[
    f("topics", Array(&Struct(&[f("topic id", Uuid).from(10), f("topic", String).nullable()]))).nullable(),
    f("allow auto topic creation", Bool).from(4),
    f("include cluster authorized operations", Bool).from(8).to(10),
    f("include topic authorized operations", Bool).from(8),
];

const OFFSET_COMMIT: &[Field] = &[
    f("group id", String),
    f("generation", Int32),
    f("member id", String),
    f("group instance id", String).from(7).nullable(),
    f("retention time", Int64).to(4),
    f(
        "topics",
        Array(&Struct(&[
            f("topic", String),
            f(
                "partitions",
                Array(&Struct(&[
                    f("partition", Int32),
                    f("committed offset", Int64),
                    f("committed leader epoch", Int32).from(6),
                    f("committed metadata", String).nullable(),
                ])),
            ),
        ])),
    ),
];

const TOPIC_PARTITION_LIST: Type = Struct(&[f("topic", String), f("partitions", Array(&Int32))]);

const OFFSET_FETCH: &[Field] = &[
    f("group id", String).to(7),
    f("topics", Array(&TOPIC_PARTITION_LIST)).to(7).nullable(),
    f(
        "groups",
        Array(&Struct(&[
            f("group id", String),
            f("member id", String).from(9).nullable(),
            f("member epoch", Int32).from(9),
            f("topics", Array(&TOPIC_PARTITION_LIST)).nullable(),
        ])),
    )
    .from(8),
    f("require stable", Bool).from(7),
];

const FIND_COORDINATOR: &[Field] =
    &[f("key", String).to(3), f("key type", Int8).from(1), f("coordinator keys", Array(&String)).from(4)];

const JOIN_GROUP: &[Field] = &[
    f("group id", String),
    f("session timeout", Int32),
    f("rebalance timeout", Int32).from(1),
    f("member id", String),
    f("group instance id", String).from(5).nullable(),
    f("protocol type", String),
    f("protocols", Array(&Struct(&[f("protocol", String), f("protocol metadata", Bytes)]))),
    f("reason", String).from(8).nullable(),
];

const HEARTBEAT: &[Field] = &[
    f("group id", String),
    f("generation", Int32),
    f("member id", String),
    f("group instance id", String).from(3).nullable(),
];

const LEAVE_GROUP: &[Field] = &[
    f("group id", String),
    f("member id", String).to(2),
    f(
        "members",
        Array(&Struct(&[
            f("member id", String),
            f("group instance id", String).nullable(),
            f("reason", String).from(5).nullable(),
        ])),
    )
    .from(3),
];

const SYNC_GROUP: &[Field] = &[
    f("group id", String),
    f("generation", Int32),
    f("member id", String),
    f("group instance id", String).from(3).nullable(),
    f("protocol type", String).from(5).nullable(),
    f("protocol name", String).from(5).nullable(),
    f("assignments", Array(&Struct(&[f("member id", String), f("assignment", Bytes)]))),
];

const DESCRIBE_GROUPS: &[Field] = &[f("groups", Array(&String)), f("include authorized operations", Bool).from(3)];

const LIST_GROUPS: &[Field] = &[f("states filter", Array(&String)).from(4), f("types filter", Array(&String)).from(5)];

const SASL_HANDSHAKE: &[Field] = &[f("mechanism", String)];

const API_VERSIONS: &[Field] =
    &[f("client software name", String).from(3), f("client software version", String).from(3)];

const CREATE_TOPICS: &[Field] = &[
    f(
        "topics",
        Array(&Struct(&[
            f("topic", String),
            f("partition count", Int32),
            f("replication factor", Int16),
            f("assignments", Array(&Struct(&[f("partition", Int32), f("brokers", Array(&Int32))]))),
            f("configs", Array(&Struct(&[f("config", String), f("config value", String).nullable()]))),
        ])),
    ),
    f("timeout", Int32),
    f("validate only", Bool),
];

const DELETE_TOPICS: &[Field] = &[
    f("topics", Array(&Struct(&[f("topic", String).nullable(), f("topic id", Uuid)]))).from(6),
    f("topic names", Array(&String)).to(5),
    f("timeout", Int32),
];

const INIT_PRODUCER_ID: &[Field] = &[
    f("transactional id", String).nullable(),
    f("transaction timeout", Int32),
    f("producer id", Int64).from(3),
    f("producer epoch", Int16).from(3),
];

const OFFSET_FOR_LEADER_EPOCH: &[Field] = &[
    f("replica id", Int32).from(3),
    f(
        "topics",
        Array(&Struct(&[
            f("topic", String),
            f(
                "partitions",
                Array(&Struct(&[f("partition", Int32), f("current leader epoch", Int32), f("leader epoch", Int32)])),
            ),
        ])),
    ),
];

const DESCRIBE_CONFIGS: &[Field] = &[
    f(
        "resources",
        Array(&Struct(&[
            f("resource type", Int8),
            f("resource name", String),
            f("configuration keys", Array(&String)).nullable(),
        ])),
    ),
    f("include synonyms", Bool),
    f("include documentation", Bool).from(3),
];

const SASL_AUTHENTICATE: &[Field] = &[f("auth bytes", Bytes)];

const CREATE_PARTITIONS: &[Field] = &[
    f(
        "topics",
        Array(&Struct(&[
            f("topic", String),
            f("partition count", Int32),
            f("assignments", Array(&Struct(&[f("brokers", Array(&Int32))]))).nullable(),
        ])),
    ),
    f("timeout", Int32),
    f("validate only", Bool),
];

const DELETE_GROUPS: &[Field] = &[f("groups", Array(&String))];

const ELECT_LEADERS: &[Field] = &[
    f("election type", Int8).from(1),
    f("topics", Array(&Struct(&[f("topic", String), f("partitions", Array(&Int32))]))).nullable(),
    f("timeout", Int32),
];

const INCREMENTAL_ALTER_CONFIGS: &[Field] = &[
    f(
        "resources",
        Array(&Struct(&[
            f("resource type", Int8),
            f("resource name", String),
            f(
                "configs",
                Array(&Struct(&[
                    f("config", String),
                    f("config operation", Int8),
                    f("config value", String).nullable(),
                ])),
            ),
        ])),
    ),
    f("validate only", Bool),
];

const DESCRIBE_QUORUM: &[Field] =
    &[f("topics", Array(&Struct(&[f("topic", String), f("partitions", Array(&Struct(&[f("partition", Int32)])))])))];

const DESCRIBE_CLUSTER: &[Field] = &[
    f("include authorized operations", Bool),
    f("endpoint type", Int8).from(1),
    f("include fenced brokers", Bool).from(2),
];

const UNREGISTER_BROKER: &[Field] = &[f("broker id", Int32)];

const DESCRIBE_TOPIC_PARTITIONS: &[Field] = &[
    f("topics", Array(&Struct(&[f("topic", String)]))),
    f("response partition limit", Int32),
    f("cursor", OptionalStruct(&[f("topic", String), f("partition", Int32)])),
];
