//! The table of served APIs: a row has all that is to be known about an API's messages.
//!
//! ```text
//! /// Anything unusual about the API.
//! Name(NameRequest => NameResponse) {
//!     key: 0, versions: 0..=3, flexible: 2, only_reads: true,
//!     request: { "a number": Int32, "some texts": [String].from(1) },
//!     response: { "structs": [{ "bytes": Bytes.nullable() }] },
//! }
//! ```
//!
//! - `versions`: those of Kafka 4.x unless the row gives a reason. Some that Kafka once defined are absent (Fetch 0–3,
//!   ListOffsets 0, OffsetCommit 0–1 …). KIP-896 removed them; clients have not needed them since Kafka 0.11.
//! - `flexible`: the first version with compact lengths and tagged fields (KIP-482).
//! - `only_reads`: the request changes nothing, so that it may be dropped when its client is gone.
//! - `request`, `response`: the fields in their order, from which messages are checked before the codec decodes them
//!   ([`crate::codec::bounds`]). An array is in brackets, a struct in braces, and `(optional { … })` may be absent
//!   (KIP-893). The modifiers are those of [`crate::codec::schema::Field`]. Unknown tagged fields may stand at the end
//!   of every struct of a flexible version.
//!
//! Source: Kafka 4.x, `clients/src/main/resources/common/message/*.json`. Tests compare each version with the
//! `kafka-protocol` crate's decoder and encoder.

/// Calls a macro with all rows, in ascending order of key. A macro that needs only the names matches
/// `$($(#[$doc:meta])* $name:ident($request:ident => $response:ident) $row:tt)*`.
macro_rules! each_api {
    ($callback:ident) => {
        $callback! {
            /// Versions 0–2 carry message formats 0 and 1, which the broker does not store. It answers them with an
            /// error in their own layout, which is not in this row. It advertises them because librdkafka assumes that
            /// a broker without Produce 0 supports no compression (KAFKA-18659).
            Produce(ProduceRequest => ProduceResponse) {
                key: 0, versions: 0..=13, flexible: 9, only_reads: false,
                request: {
                    "transactional id": String.from(3).nullable(), "acks": Int16, "timeout": Int32,
                    "topics": [{
                        "topic": String.to(12), "topic id": Uuid.from(13),
                        "partitions": [{ "partition": Int32, "records": Bytes.nullable() }],
                    }],
                },
                response: {
                    "responses": [{
                        "name": String.to(12), "topic id": Uuid.from(13),
                        "partition responses": [{
                            "index": Int32, "error code": Int16, "base offset": Int64, "log append time ms": Int64,
                            "log start offset": Int64.from(5),
                            "record errors": [{
                                "batch index": Int32, "batch index error message": String.nullable(),
                            }].from(8),
                            "error message": String.from(8).nullable(),
                            "current leader": { "leader id": Int32, "leader epoch": Int32 }.from(10).tag(0),
                        }],
                    }],
                    "throttle time ms": Int32,
                    "node endpoints": [{
                        "node id": Int32, "host": String, "port": Int32, "rack": String.nullable(),
                    }].from(10).tag(0),
                },
            }
            // The tagged fields of the request are few and small, and left out.
            Fetch(FetchRequest => FetchResponse) {
                key: 1, versions: 4..=18, flexible: 12, only_reads: true,
                request: {
                    "replica id": Int32.to(14), "max wait": Int32, "min bytes": Int32, "max bytes": Int32,
                    // An INT8 that is 0 or 1.
                    "isolation level": Bool, "session id": Int32.from(7), "session epoch": Int32.from(7),
                    "topics": [{
                        "topic": String.to(12), "topic id": Uuid.from(13),
                        "partitions": [{
                            "partition": Int32, "current leader epoch": Int32.from(9), "fetch offset": Int64,
                            "last fetched epoch": Int32.from(12), "log start offset": Int64.from(5),
                            "partition max bytes": Int32,
                        }],
                    }],
                    "forgotten topics": [{
                        "topic": String.to(12), "topic id": Uuid.from(13), "partitions": [Int32],
                    }].from(7),
                    "rack": String.from(11),
                },
                response: {
                    "throttle time ms": Int32, "error code": Int16.from(7), "session id": Int32.from(7),
                    "responses": [{
                        "topic": String.to(12), "topic id": Uuid.from(13),
                        "partitions": [{
                            "partition index": Int32, "error code": Int16, "high watermark": Int64,
                            "last stable offset": Int64, "log start offset": Int64.from(5),
                            "diverging epoch": { "epoch": Int32, "end offset": Int64 }.from(12).tag(0),
                            "current leader": { "leader id": Int32, "leader epoch": Int32 }.from(12).tag(1),
                            "snapshot id": { "end offset": Int64, "epoch": Int32 }.from(12).tag(2),
                            "aborted transactions": [{ "producer id": Int64, "first offset": Int64 }].nullable(),
                            "preferred read replica": Int32.from(11), "records": Bytes.nullable(),
                        }],
                    }],
                    "node endpoints": [{
                        "node id": Int32, "host": String, "port": Int32, "rack": String.nullable(),
                    }].from(16).tag(0),
                },
            }
            // The broker answers the query for the largest timestamp (-3, version 7, KIP-734) with UNSUPPORTED_VERSION:
            // it keeps no index for it.
            ListOffsets(ListOffsetsRequest => ListOffsetsResponse) {
                key: 2, versions: 1..=10, flexible: 6, only_reads: true,
                request: {
                    "replica id": Int32, "isolation level": Int8.from(2),
                    "topics": [{
                        "topic": String,
                        "partitions": [{
                            "partition": Int32, "current leader epoch": Int32.from(4), "timestamp": Int64,
                        }],
                    }],
                    "timeout": Int32.from(10),
                },
                response: {
                    "throttle time ms": Int32.from(2),
                    "topics": [{
                        "name": String,
                        "partitions": [{
                            "partition index": Int32, "error code": Int16, "timestamp": Int64, "offset": Int64,
                            "leader epoch": Int32.from(4),
                        }],
                    }],
                },
            }
            Metadata(MetadataRequest => MetadataResponse) {
                key: 3, versions: 0..=13, flexible: 9, only_reads: true,
                request: {
                    "topics": [{ "topic id": Uuid.from(10), "topic": String.nullable() }].nullable(),
                    "allow auto topic creation": Bool.from(4),
                    "include cluster authorized operations": Bool.from(8).to(10),
                    "include topic authorized operations": Bool.from(8),
                },
                response: {
                    "throttle time ms": Int32.from(3),
                    "brokers": [{
                        "node id": Int32, "host": String, "port": Int32, "rack": String.from(1).nullable(),
                    }],
                    "cluster id": String.from(2).nullable(), "controller id": Int32.from(1),
                    "topics": [{
                        "error code": Int16, "name": String.nullable(), "topic id": Uuid.from(10),
                        "is internal": Bool.from(1),
                        "partitions": [{
                            "error code": Int16, "partition index": Int32, "leader id": Int32,
                            "leader epoch": Int32.from(7), "replica nodes": [Int32], "isr nodes": [Int32],
                            "offline replicas": [Int32].from(5),
                        }],
                        "topic authorized operations": Int32.from(8),
                    }],
                    "cluster authorized operations": Int32.from(8).to(10), "error code": Int16.from(13),
                },
            }
            /// The codec can't encode version 10 (topic ids).
            OffsetCommit(OffsetCommitRequest => OffsetCommitResponse) {
                key: 8, versions: 2..=9, flexible: 8, only_reads: false,
                request: {
                    "group id": String, "generation": Int32, "member id": String,
                    "group instance id": String.from(7).nullable(), "retention time": Int64.to(4),
                    "topics": [{
                        "topic": String,
                        "partitions": [{
                            "partition": Int32, "committed offset": Int64, "committed leader epoch": Int32.from(6),
                            "committed metadata": String.nullable(),
                        }],
                    }],
                },
                response: {
                    "throttle time ms": Int32.from(3),
                    "topics": [{ "name": String, "partitions": [{ "partition index": Int32, "error code": Int16 }] }],
                },
            }
            /// The codec can't encode version 10 (topic ids).
            OffsetFetch(OffsetFetchRequest => OffsetFetchResponse) {
                key: 9, versions: 1..=9, flexible: 6, only_reads: true,
                request: {
                    "group id": String.to(7),
                    "topics": [{ "topic": String, "partitions": [Int32] }].to(7).nullable(),
                    "groups": [{
                        "group id": String, "member id": String.from(9).nullable(), "member epoch": Int32.from(9),
                        "topics": [{ "topic": String, "partitions": [Int32] }].nullable(),
                    }].from(8),
                    "require stable": Bool.from(7),
                },
                response: {
                    "throttle time ms": Int32.from(3),
                    "topics": [{
                        "name": String,
                        "partitions": [{
                            "partition index": Int32, "committed offset": Int64,
                            "committed leader epoch": Int32.from(5), "metadata": String.nullable(),
                            "error code": Int16,
                        }],
                    }].to(7),
                    "error code": Int16.from(2).to(7),
                    "groups": [{
                        "group id": String,
                        "topics": [{
                            "name": String,
                            "partitions": [{
                                "partition index": Int32, "committed offset": Int64, "committed leader epoch": Int32,
                                "metadata": String.nullable(), "error code": Int16,
                            }],
                        }],
                        "error code": Int16,
                    }].from(8),
                },
            }
            FindCoordinator(FindCoordinatorRequest => FindCoordinatorResponse) {
                key: 10, versions: 0..=6, flexible: 3, only_reads: true,
                request: { "key": String.to(3), "key type": Int8.from(1), "coordinator keys": [String].from(4) },
                response: {
                    "throttle time ms": Int32.from(1), "error code": Int16.to(3),
                    "error message": String.from(1).to(3).nullable(), "node id": Int32.to(3), "host": String.to(3),
                    "port": Int32.to(3),
                    "coordinators": [{
                        "key": String, "node id": Int32, "host": String, "port": Int32, "error code": Int16,
                        "error message": String.nullable(),
                    }].from(4),
                },
            }
            JoinGroup(JoinGroupRequest => JoinGroupResponse) {
                key: 11, versions: 0..=9, flexible: 6, only_reads: false,
                request: {
                    "group id": String, "session timeout": Int32, "rebalance timeout": Int32.from(1),
                    "member id": String, "group instance id": String.from(5).nullable(), "protocol type": String,
                    "protocols": [{ "protocol": String, "protocol metadata": Bytes }],
                    "reason": String.from(8).nullable(),
                },
                response: {
                    "throttle time ms": Int32.from(2), "error code": Int16, "generation id": Int32,
                    "protocol type": String.from(7).nullable(), "protocol name": String.nullable(), "leader": String,
                    "skip assignment": Bool.from(9), "member id": String,
                    "members": [{
                        "member id": String, "group instance id": String.from(5).nullable(), "metadata": Bytes,
                    }],
                },
            }
            Heartbeat(HeartbeatRequest => HeartbeatResponse) {
                key: 12, versions: 0..=4, flexible: 4, only_reads: false,
                request: {
                    "group id": String, "generation": Int32, "member id": String,
                    "group instance id": String.from(3).nullable(),
                },
                response: { "throttle time ms": Int32.from(1), "error code": Int16 },
            }
            LeaveGroup(LeaveGroupRequest => LeaveGroupResponse) {
                key: 13, versions: 0..=5, flexible: 4, only_reads: false,
                request: {
                    "group id": String, "member id": String.to(2),
                    "members": [{
                        "member id": String, "group instance id": String.nullable(),
                        "reason": String.from(5).nullable(),
                    }].from(3),
                },
                response: {
                    "throttle time ms": Int32.from(1), "error code": Int16,
                    "members": [{
                        "member id": String, "group instance id": String.nullable(), "error code": Int16,
                    }].from(3),
                },
            }
            SyncGroup(SyncGroupRequest => SyncGroupResponse) {
                key: 14, versions: 0..=5, flexible: 4, only_reads: false,
                request: {
                    "group id": String, "generation": Int32, "member id": String,
                    "group instance id": String.from(3).nullable(), "protocol type": String.from(5).nullable(),
                    "protocol name": String.from(5).nullable(),
                    "assignments": [{ "member id": String, "assignment": Bytes }],
                },
                response: {
                    "throttle time ms": Int32.from(1), "error code": Int16,
                    "protocol type": String.from(5).nullable(), "protocol name": String.from(5).nullable(),
                    "assignment": Bytes,
                },
            }
            DescribeGroups(DescribeGroupsRequest => DescribeGroupsResponse) {
                key: 15, versions: 0..=6, flexible: 5, only_reads: true,
                request: { "groups": [String], "include authorized operations": Bool.from(3) },
                response: {
                    "throttle time ms": Int32.from(1),
                    "groups": [{
                        "error code": Int16, "error message": String.from(6).nullable(), "group id": String,
                        "group state": String, "protocol type": String, "protocol data": String,
                        "members": [{
                            "member id": String, "group instance id": String.from(4).nullable(), "client id": String,
                            "client host": String, "member metadata": Bytes, "member assignment": Bytes,
                        }],
                        "authorized operations": Int32.from(3),
                    }],
                },
            }
            ListGroups(ListGroupsRequest => ListGroupsResponse) {
                key: 16, versions: 0..=5, flexible: 3, only_reads: true,
                request: { "states filter": [String].from(4), "types filter": [String].from(5) },
                response: {
                    "throttle time ms": Int32.from(1), "error code": Int16,
                    "groups": [{
                        "group id": String, "protocol type": String, "group state": String.from(4),
                        "group type": String.from(5),
                    }],
                },
            }
            /// Millrace has no SASL. It lists this API and rejects it, as Kafka does on a listener without SASL. The
            /// client then reports that, and not a closed connection.
            SaslHandshake(SaslHandshakeRequest => SaslHandshakeResponse) {
                key: 17, versions: 0..=1, flexible: 32767, only_reads: false,
                request: { "mechanism": String },
                response: { "error code": Int16, "mechanisms": [String] },
            }
            ApiVersions(ApiVersionsRequest => ApiVersionsResponse) {
                key: 18, versions: 0..=4, flexible: 3, only_reads: true,
                request: { "client software name": String.from(3), "client software version": String.from(3) },
                response: {
                    "error code": Int16,
                    "api keys": [{ "api key": Int16, "min version": Int16, "max version": Int16 }],
                    "throttle time ms": Int32.from(1),
                    "supported features": [{
                        "name": String, "min version": Int16, "max version": Int16,
                    }].from(3).tag(0),
                    "finalized features epoch": Int64.from(3).tag(1),
                    "finalized features": [{
                        "name": String, "max version level": Int16, "min version level": Int16,
                    }].from(3).tag(2),
                    "zk migration ready": Bool.from(3).tag(3),
                },
            }
            CreateTopics(CreateTopicsRequest => CreateTopicsResponse) {
                key: 19, versions: 2..=7, flexible: 5, only_reads: false,
                request: {
                    "topics": [{
                        "topic": String, "partition count": Int32, "replication factor": Int16,
                        "assignments": [{ "partition": Int32, "brokers": [Int32] }],
                        "configs": [{ "config": String, "config value": String.nullable() }],
                    }],
                    "timeout": Int32, "validate only": Bool,
                },
                response: {
                    "throttle time ms": Int32,
                    "topics": [{
                        "name": String, "topic id": Uuid.from(7), "error code": Int16,
                        "error message": String.nullable(), "topic config error code": Int16.from(5).tag(0),
                        "num partitions": Int32.from(5), "replication factor": Int16.from(5),
                        "configs": [{
                            "name": String, "value": String.nullable(), "read only": Bool, "config source": Int8,
                            "is sensitive": Bool,
                        }].from(5).nullable(),
                    }],
                },
            }
            DeleteTopics(DeleteTopicsRequest => DeleteTopicsResponse) {
                key: 20, versions: 1..=6, flexible: 4, only_reads: false,
                request: {
                    "topics": [{ "topic": String.nullable(), "topic id": Uuid }].from(6),
                    "topic names": [String].to(5), "timeout": Int32,
                },
                response: {
                    "throttle time ms": Int32,
                    "responses": [{
                        "name": String.nullable(), "topic id": Uuid.from(6), "error code": Int16,
                        "error message": String.from(5).nullable(),
                    }],
                },
            }
            /// Version 6 (two-phase commit, KIP-939) is unstable in Kafka.
            InitProducerId(InitProducerIdRequest => InitProducerIdResponse) {
                key: 22, versions: 0..=5, flexible: 2, only_reads: false,
                request: {
                    "transactional id": String.nullable(), "transaction timeout": Int32, "producer id": Int64.from(3),
                    "producer epoch": Int16.from(3),
                },
                response: {
                    "throttle time ms": Int32, "error code": Int16, "producer id": Int64, "producer epoch": Int16,
                },
            }
            OffsetForLeaderEpoch(OffsetForLeaderEpochRequest => OffsetForLeaderEpochResponse) {
                key: 23, versions: 2..=4, flexible: 4, only_reads: true,
                request: {
                    "replica id": Int32.from(3),
                    "topics": [{
                        "topic": String,
                        "partitions": [{ "partition": Int32, "current leader epoch": Int32, "leader epoch": Int32 }],
                    }],
                },
                response: {
                    "throttle time ms": Int32,
                    "topics": [{
                        "topic": String,
                        "partitions": [{
                            "error code": Int16, "partition": Int32, "leader epoch": Int32, "end offset": Int64,
                        }],
                    }],
                },
            }
            DescribeConfigs(DescribeConfigsRequest => DescribeConfigsResponse) {
                key: 32, versions: 1..=4, flexible: 4, only_reads: true,
                request: {
                    "resources": [{
                        "resource type": Int8, "resource name": String, "configuration keys": [String].nullable(),
                    }],
                    "include synonyms": Bool, "include documentation": Bool.from(3),
                },
                response: {
                    "throttle time ms": Int32,
                    "results": [{
                        "error code": Int16, "error message": String.nullable(), "resource type": Int8,
                        "resource name": String,
                        "configs": [{
                            "name": String, "value": String.nullable(), "read only": Bool, "config source": Int8,
                            "is sensitive": Bool,
                            "synonyms": [{ "name": String, "value": String.nullable(), "source": Int8 }],
                            "config type": Int8.from(3), "documentation": String.from(3).nullable(),
                        }],
                    }],
                },
            }
            /// Listed and rejected, like SaslHandshake.
            SaslAuthenticate(SaslAuthenticateRequest => SaslAuthenticateResponse) {
                key: 36, versions: 0..=2, flexible: 2, only_reads: false,
                request: { "auth bytes": Bytes },
                response: {
                    "error code": Int16, "error message": String.nullable(), "auth bytes": Bytes,
                    "session lifetime ms": Int64.from(1),
                },
            }
            CreatePartitions(CreatePartitionsRequest => CreatePartitionsResponse) {
                key: 37, versions: 0..=3, flexible: 2, only_reads: false,
                request: {
                    "topics": [{
                        "topic": String, "partition count": Int32,
                        "assignments": [{ "brokers": [Int32] }].nullable(),
                    }],
                    "timeout": Int32, "validate only": Bool,
                },
                response: {
                    "throttle time ms": Int32,
                    "results": [{ "name": String, "error code": Int16, "error message": String.nullable() }],
                },
            }
            DeleteGroups(DeleteGroupsRequest => DeleteGroupsResponse) {
                key: 42, versions: 0..=2, flexible: 2, only_reads: false,
                request: { "groups": [String] },
                response: { "throttle time ms": Int32, "results": [{ "group id": String, "error code": Int16 }] },
            }
            ElectLeaders(ElectLeadersRequest => ElectLeadersResponse) {
                key: 43, versions: 0..=2, flexible: 2, only_reads: false,
                request: {
                    "election type": Int8.from(1),
                    "topics": [{ "topic": String, "partitions": [Int32] }].nullable(),
                    "timeout": Int32,
                },
                response: {
                    "throttle time ms": Int32, "error code": Int16.from(1),
                    "results": [{
                        "topic": String,
                        "partitions": [{
                            "partition": Int32, "error code": Int16, "error message": String.nullable(),
                        }],
                    }],
                },
            }
            IncrementalAlterConfigs(IncrementalAlterConfigsRequest => IncrementalAlterConfigsResponse) {
                key: 44, versions: 0..=1, flexible: 1, only_reads: false,
                request: {
                    "resources": [{
                        "resource type": Int8, "resource name": String,
                        "configs": [{ "config": String, "config operation": Int8, "config value": String.nullable() }],
                    }],
                    "validate only": Bool,
                },
                response: {
                    "throttle time ms": Int32,
                    "responses": [{
                        "error code": Int16, "error message": String.nullable(), "resource type": Int8,
                        "resource name": String,
                    }],
                },
            }
            DescribeQuorum(DescribeQuorumRequest => DescribeQuorumResponse) {
                key: 55, versions: 0..=2, flexible: 0, only_reads: true,
                request: { "topics": [{ "topic": String, "partitions": [{ "partition": Int32 }] }] },
                response: {
                    "error code": Int16, "error message": String.from(2).nullable(),
                    "topics": [{
                        "topic name": String,
                        "partitions": [{
                            "partition index": Int32, "error code": Int16, "error message": String.from(2).nullable(),
                            "leader id": Int32, "leader epoch": Int32, "high watermark": Int64,
                            "current voters": [{
                                "replica id": Int32, "replica directory id": Uuid.from(2), "log end offset": Int64,
                                "last fetch timestamp": Int64.from(1), "last caught up timestamp": Int64.from(1),
                            }],
                            "observers": [{
                                "replica id": Int32, "replica directory id": Uuid.from(2), "log end offset": Int64,
                                "last fetch timestamp": Int64.from(1), "last caught up timestamp": Int64.from(1),
                            }],
                        }],
                    }],
                    "nodes": [{
                        "node id": Int32,
                        // The port is unsigned.
                        "listeners": [{ "name": String, "host": String, "port": Int16 }],
                    }].from(2),
                },
            }
            DescribeCluster(DescribeClusterRequest => DescribeClusterResponse) {
                key: 60, versions: 0..=2, flexible: 0, only_reads: true,
                request: {
                    "include authorized operations": Bool, "endpoint type": Int8.from(1),
                    "include fenced brokers": Bool.from(2),
                },
                response: {
                    "throttle time ms": Int32, "error code": Int16, "error message": String.nullable(),
                    "endpoint type": Int8.from(1), "cluster id": String, "controller id": Int32,
                    "brokers": [{
                        "broker id": Int32, "host": String, "port": Int32, "rack": String.nullable(),
                        "is fenced": Bool.from(2),
                    }],
                    "cluster authorized operations": Int32,
                },
            }
            UnregisterBroker(UnregisterBrokerRequest => UnregisterBrokerResponse) {
                key: 64, versions: 0..=0, flexible: 0, only_reads: false,
                request: { "broker id": Int32 },
                response: { "throttle time ms": Int32, "error code": Int16, "error message": String.nullable() },
            }
            DescribeTopicPartitions(DescribeTopicPartitionsRequest => DescribeTopicPartitionsResponse) {
                key: 75, versions: 0..=0, flexible: 0, only_reads: true,
                request: {
                    "topics": [{ "topic": String }],
                    "response partition limit": Int32,
                    "cursor": (optional { "topic": String, "partition": Int32 }),
                },
                response: {
                    "throttle time ms": Int32,
                    "topics": [{
                        "error code": Int16, "name": String.nullable(), "topic id": Uuid, "is internal": Bool,
                        "partitions": [{
                            "error code": Int16, "partition index": Int32, "leader id": Int32, "leader epoch": Int32,
                            "replica nodes": [Int32], "isr nodes": [Int32],
                            "eligible leader replicas": [Int32].nullable(), "last known elr": [Int32].nullable(),
                            "offline replicas": [Int32],
                        }],
                        "topic authorized operations": Int32,
                    }],
                    "next cursor": (optional { "topic name": String, "partition index": Int32 }).nullable(),
                },
            }
        }
    };
}
pub(crate) use each_api;
