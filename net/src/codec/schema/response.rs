//! The fields of the responses, by version, for clients.
//!
//! Source: Kafka 4.x, `clients/src/main/resources/common/message/*Response.json`. A test compares each version with
//! the `kafka-protocol` crate's decoder and encoder.

use crate::codec::api::ApiKey;
use crate::codec::schema::Type::{Array, Bool, Bytes, Int8, Int16, Int32, Int64, OptionalStruct, String, Struct, Uuid};
use crate::codec::schema::{Field, Type, f};

/// The fields of a response, for the versions in the API table. For Produce only from version 3 on.
pub fn response(api: ApiKey) -> &'static [Field] {
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

/// Leader hints (KIP-951).
const LEADER: Type = Struct(&[f("leader id", Int32), f("leader epoch", Int32)]);
const NODE_ENDPOINTS: Type =
    Array(&Struct(&[f("node id", Int32), f("host", String), f("port", Int32), f("rack", String).nullable()]));

const PRODUCE: &[Field] = &[
    f(
        "responses",
        Array(&Struct(&[
            f("name", String).to(12),
            f("topic id", Uuid).from(13),
            f(
                "partition responses",
                Array(&Struct(&[
                    f("index", Int32),
                    f("error code", Int16),
                    f("base offset", Int64),
                    f("log append time ms", Int64),
                    f("log start offset", Int64).from(5),
                    f(
                        "record errors",
                        Array(&Struct(&[f("batch index", Int32), f("batch index error message", String).nullable()])),
                    )
                    .from(8),
                    f("error message", String).from(8).nullable(),
                    f("current leader", LEADER).from(10).tag(0),
                ])),
            ),
        ])),
    ),
    f("throttle time ms", Int32),
    f("node endpoints", NODE_ENDPOINTS).from(10).tag(0),
];

const FETCH: &[Field] = &[
    f("throttle time ms", Int32),
    f("error code", Int16).from(7),
    f("session id", Int32).from(7),
    f(
        "responses",
        Array(&Struct(&[
            f("topic", String).to(12),
            f("topic id", Uuid).from(13),
            f(
                "partitions",
                Array(&Struct(&[
                    f("partition index", Int32),
                    f("error code", Int16),
                    f("high watermark", Int64),
                    f("last stable offset", Int64),
                    f("log start offset", Int64).from(5),
                    f("diverging epoch", Struct(&[f("epoch", Int32), f("end offset", Int64)])).from(12).tag(0),
                    f("current leader", LEADER).from(12).tag(1),
                    f("snapshot id", Struct(&[f("end offset", Int64), f("epoch", Int32)])).from(12).tag(2),
                    f("aborted transactions", Array(&Struct(&[f("producer id", Int64), f("first offset", Int64)])))
                        .nullable(),
                    f("preferred read replica", Int32).from(11),
                    f("records", Bytes).nullable(),
                ])),
            ),
        ])),
    ),
    f("node endpoints", NODE_ENDPOINTS).from(16).tag(0),
];

const LIST_OFFSETS: &[Field] = &[
    f("throttle time ms", Int32).from(2),
    f(
        "topics",
        Array(&Struct(&[
            f("name", String),
            f(
                "partitions",
                Array(&Struct(&[
                    f("partition index", Int32),
                    f("error code", Int16),
                    f("timestamp", Int64),
                    f("offset", Int64),
                    f("leader epoch", Int32).from(4),
                ])),
            ),
        ])),
    ),
];

const METADATA: &[Field] = &[
    f("throttle time ms", Int32).from(3),
    f(
        "brokers",
        Array(&Struct(&[
            f("node id", Int32),
            f("host", String),
            f("port", Int32),
            f("rack", String).from(1).nullable(),
        ])),
    ),
    f("cluster id", String).from(2).nullable(),
    f("controller id", Int32).from(1),
    f(
        "topics",
        Array(&Struct(&[
            f("error code", Int16),
            f("name", String).nullable(),
            f("topic id", Uuid).from(10),
            f("is internal", Bool).from(1),
            f(
                "partitions",
                Array(&Struct(&[
                    f("error code", Int16),
                    f("partition index", Int32),
                    f("leader id", Int32),
                    f("leader epoch", Int32).from(7),
                    f("replica nodes", Array(&Int32)),
                    f("isr nodes", Array(&Int32)),
                    f("offline replicas", Array(&Int32)).from(5),
                ])),
            ),
            f("topic authorized operations", Int32).from(8),
        ])),
    ),
    f("cluster authorized operations", Int32).from(8).to(10),
    f("error code", Int16).from(13),
];

const OFFSET_COMMIT: &[Field] = &[
    f("throttle time ms", Int32).from(3),
    f(
        "topics",
        Array(&Struct(&[
            f("name", String),
            f("partitions", Array(&Struct(&[f("partition index", Int32), f("error code", Int16)]))),
        ])),
    ),
];

const OFFSET_FETCH: &[Field] = &[
    f("throttle time ms", Int32).from(3),
    f(
        "topics",
        Array(&Struct(&[
            f("name", String),
            f(
                "partitions",
                Array(&Struct(&[
                    f("partition index", Int32),
                    f("committed offset", Int64),
                    f("committed leader epoch", Int32).from(5),
                    f("metadata", String).nullable(),
                    f("error code", Int16),
                ])),
            ),
        ])),
    )
    .to(7),
    f("error code", Int16).from(2).to(7),
    f(
        "groups",
        Array(&Struct(&[
            f("group id", String),
            f(
                "topics",
                Array(&Struct(&[
                    f("name", String),
                    f(
                        "partitions",
                        Array(&Struct(&[
                            f("partition index", Int32),
                            f("committed offset", Int64),
                            f("committed leader epoch", Int32),
                            f("metadata", String).nullable(),
                            f("error code", Int16),
                        ])),
                    ),
                ])),
            ),
            f("error code", Int16),
        ])),
    )
    .from(8),
];

const FIND_COORDINATOR: &[Field] = &[
    f("throttle time ms", Int32).from(1),
    f("error code", Int16).to(3),
    f("error message", String).from(1).to(3).nullable(),
    f("node id", Int32).to(3),
    f("host", String).to(3),
    f("port", Int32).to(3),
    f(
        "coordinators",
        Array(&Struct(&[
            f("key", String),
            f("node id", Int32),
            f("host", String),
            f("port", Int32),
            f("error code", Int16),
            f("error message", String).nullable(),
        ])),
    )
    .from(4),
];

const JOIN_GROUP: &[Field] = &[
    f("throttle time ms", Int32).from(2),
    f("error code", Int16),
    f("generation id", Int32),
    f("protocol type", String).from(7).nullable(),
    f("protocol name", String).nullable(),
    f("leader", String),
    f("skip assignment", Bool).from(9),
    f("member id", String),
    f(
        "members",
        Array(&Struct(&[
            f("member id", String),
            f("group instance id", String).from(5).nullable(),
            f("metadata", Bytes),
        ])),
    ),
];

const HEARTBEAT: &[Field] = &[f("throttle time ms", Int32).from(1), f("error code", Int16)];

const LEAVE_GROUP: &[Field] = &[
    f("throttle time ms", Int32).from(1),
    f("error code", Int16),
    f(
        "members",
        Array(&Struct(&[f("member id", String), f("group instance id", String).nullable(), f("error code", Int16)])),
    )
    .from(3),
];

const SYNC_GROUP: &[Field] = &[
    f("throttle time ms", Int32).from(1),
    f("error code", Int16),
    f("protocol type", String).from(5).nullable(),
    f("protocol name", String).from(5).nullable(),
    f("assignment", Bytes),
];

const DESCRIBE_GROUPS: &[Field] = &[
    f("throttle time ms", Int32).from(1),
    f(
        "groups",
        Array(&Struct(&[
            f("error code", Int16),
            f("error message", String).from(6).nullable(),
            f("group id", String),
            f("group state", String),
            f("protocol type", String),
            f("protocol data", String),
            f(
                "members",
                Array(&Struct(&[
                    f("member id", String),
                    f("group instance id", String).from(4).nullable(),
                    f("client id", String),
                    f("client host", String),
                    f("member metadata", Bytes),
                    f("member assignment", Bytes),
                ])),
            ),
            f("authorized operations", Int32).from(3),
        ])),
    ),
];

const LIST_GROUPS: &[Field] = &[
    f("throttle time ms", Int32).from(1),
    f("error code", Int16),
    f(
        "groups",
        Array(&Struct(&[
            f("group id", String),
            f("protocol type", String),
            f("group state", String).from(4),
            f("group type", String).from(5),
        ])),
    ),
];

const SASL_HANDSHAKE: &[Field] = &[f("error code", Int16), f("mechanisms", Array(&String))];

const API_VERSIONS: &[Field] = &[
    f("error code", Int16),
    f("api keys", Array(&Struct(&[f("api key", Int16), f("min version", Int16), f("max version", Int16)]))),
    f("throttle time ms", Int32).from(1),
    f("supported features", Array(&Struct(&[f("name", String), f("min version", Int16), f("max version", Int16)])))
        .from(3)
        .tag(0),
    f("finalized features epoch", Int64).from(3).tag(1),
    f(
        "finalized features",
        Array(&Struct(&[f("name", String), f("max version level", Int16), f("min version level", Int16)])),
    )
    .from(3)
    .tag(2),
    f("zk migration ready", Bool).from(3).tag(3),
];

const CREATE_TOPICS: &[Field] = &[
    f("throttle time ms", Int32),
    f(
        "topics",
        Array(&Struct(&[
            f("name", String),
            f("topic id", Uuid).from(7),
            f("error code", Int16),
            f("error message", String).nullable(),
            f("topic config error code", Int16).from(5).tag(0),
            f("num partitions", Int32).from(5),
            f("replication factor", Int16).from(5),
            f(
                "configs",
                Array(&Struct(&[
                    f("name", String),
                    f("value", String).nullable(),
                    f("read only", Bool),
                    f("config source", Int8),
                    f("is sensitive", Bool),
                ])),
            )
            .from(5)
            .nullable(),
        ])),
    ),
];

const DELETE_TOPICS: &[Field] = &[
    f("throttle time ms", Int32),
    f(
        "responses",
        Array(&Struct(&[
            f("name", String).nullable(),
            f("topic id", Uuid).from(6),
            f("error code", Int16),
            f("error message", String).from(5).nullable(),
        ])),
    ),
];

const INIT_PRODUCER_ID: &[Field] =
    &[f("throttle time ms", Int32), f("error code", Int16), f("producer id", Int64), f("producer epoch", Int16)];

const OFFSET_FOR_LEADER_EPOCH: &[Field] = &[
    f("throttle time ms", Int32),
    f(
        "topics",
        Array(&Struct(&[
            f("topic", String),
            f(
                "partitions",
                Array(&Struct(&[
                    f("error code", Int16),
                    f("partition", Int32),
                    f("leader epoch", Int32),
                    f("end offset", Int64),
                ])),
            ),
        ])),
    ),
];

const DESCRIBE_CONFIGS: &[Field] = &[
    f("throttle time ms", Int32),
    f(
        "results",
        Array(&Struct(&[
            f("error code", Int16),
            f("error message", String).nullable(),
            f("resource type", Int8),
            f("resource name", String),
            f(
                "configs",
                Array(&Struct(&[
                    f("name", String),
                    f("value", String).nullable(),
                    f("read only", Bool),
                    f("config source", Int8),
                    f("is sensitive", Bool),
                    f(
                        "synonyms",
                        Array(&Struct(&[f("name", String), f("value", String).nullable(), f("source", Int8)])),
                    ),
                    f("config type", Int8).from(3),
                    f("documentation", String).from(3).nullable(),
                ])),
            ),
        ])),
    ),
];

const SASL_AUTHENTICATE: &[Field] = &[
    f("error code", Int16),
    f("error message", String).nullable(),
    f("auth bytes", Bytes),
    f("session lifetime ms", Int64).from(1),
];

const CREATE_PARTITIONS: &[Field] = &[
    f("throttle time ms", Int32),
    f("results", Array(&Struct(&[f("name", String), f("error code", Int16), f("error message", String).nullable()]))),
];

const DELETE_GROUPS: &[Field] =
    &[f("throttle time ms", Int32), f("results", Array(&Struct(&[f("group id", String), f("error code", Int16)])))];

const ELECT_LEADERS: &[Field] = &[
    f("throttle time ms", Int32),
    f("error code", Int16).from(1),
    f(
        "results",
        Array(&Struct(&[
            f("topic", String),
            f(
                "partitions",
                Array(&Struct(&[f("partition", Int32), f("error code", Int16), f("error message", String).nullable()])),
            ),
        ])),
    ),
];

const INCREMENTAL_ALTER_CONFIGS: &[Field] = &[
    f("throttle time ms", Int32),
    f(
        "responses",
        Array(&Struct(&[
            f("error code", Int16),
            f("error message", String).nullable(),
            f("resource type", Int8),
            f("resource name", String),
        ])),
    ),
];

const REPLICA_STATE: Type = Struct(&[
    f("replica id", Int32),
    f("replica directory id", Uuid).from(2),
    f("log end offset", Int64),
    f("last fetch timestamp", Int64).from(1),
    f("last caught up timestamp", Int64).from(1),
]);

const DESCRIBE_QUORUM: &[Field] = &[
    f("error code", Int16),
    f("error message", String).from(2).nullable(),
    f(
        "topics",
        Array(&Struct(&[
            f("topic name", String),
            f(
                "partitions",
                Array(&Struct(&[
                    f("partition index", Int32),
                    f("error code", Int16),
                    f("error message", String).from(2).nullable(),
                    f("leader id", Int32),
                    f("leader epoch", Int32),
                    f("high watermark", Int64),
                    f("current voters", Array(&REPLICA_STATE)),
                    f("observers", Array(&REPLICA_STATE)),
                ])),
            ),
        ])),
    ),
    f(
        "nodes",
        Array(&Struct(&[
            f("node id", Int32),
            // The port is unsigned.
            f("listeners", Array(&Struct(&[f("name", String), f("host", String), f("port", Int16)]))),
        ])),
    )
    .from(2),
];

const DESCRIBE_CLUSTER: &[Field] = &[
    f("throttle time ms", Int32),
    f("error code", Int16),
    f("error message", String).nullable(),
    f("endpoint type", Int8).from(1),
    f("cluster id", String),
    f("controller id", Int32),
    f(
        "brokers",
        Array(&Struct(&[
            f("broker id", Int32),
            f("host", String),
            f("port", Int32),
            f("rack", String).nullable(),
            f("is fenced", Bool).from(2),
        ])),
    ),
    f("cluster authorized operations", Int32),
];

const UNREGISTER_BROKER: &[Field] =
    &[f("throttle time ms", Int32), f("error code", Int16), f("error message", String).nullable()];

const DESCRIBE_TOPIC_PARTITIONS: &[Field] = &[
    f("throttle time ms", Int32),
    f(
        "topics",
        Array(&Struct(&[
            f("error code", Int16),
            f("name", String).nullable(),
            f("topic id", Uuid),
            f("is internal", Bool),
            f(
                "partitions",
                Array(&Struct(&[
                    f("error code", Int16),
                    f("partition index", Int32),
                    f("leader id", Int32),
                    f("leader epoch", Int32),
                    f("replica nodes", Array(&Int32)),
                    f("isr nodes", Array(&Int32)),
                    f("eligible leader replicas", Array(&Int32)).nullable(),
                    f("last known elr", Array(&Int32)).nullable(),
                    f("offline replicas", Array(&Int32)),
                ])),
            ),
            f("topic authorized operations", Int32),
        ])),
    ),
    f("next cursor", OptionalStruct(&[f("topic name", String), f("partition index", Int32)])).nullable(),
];
