//! The single table of served APIs: key, lowest and highest version, first flexible version.
//!
//! ApiVersions is answered from it, requests are checked against it, and header versions derive from it (KIP-482).
//! Version ranges are those of Kafka 4.x unless a row gives a reason. Some versions that Kafka once defined are
//! absent (Fetch 0–3, ListOffsets 0, OffsetCommit 0–1 …). KIP-896 removed them; clients have not needed them since
//! Kafka 0.11.

use kafka_protocol::messages::ApiVersionsResponse;
use kafka_protocol::messages::api_versions_response::ApiVersion;

use crate::errors::{ErrorCode, NONE};

/// One served API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Api {
    pub key: ApiKey,
    pub name: &'static str,
    pub lowest: i16,
    pub highest: i16,
    /// The first version with compact lengths and tagged fields (KIP-482).
    pub flexible: i16,
}

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident = $key:literal: $lowest:literal ..= $highest:literal, flexible $flexible:literal;)*) => {
        /// The key of a served API, as sent in a request's header.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(i16)]
        pub enum ApiKey { $($(#[$doc])* $name = $key,)* }

        /// Every served API, in ascending order of key.
        pub const TABLE: &[Api] = &[$(Api {
            key: ApiKey::$name,
            name: stringify!($name),
            lowest: $lowest,
            highest: $highest,
            flexible: $flexible,
        },)*];

        impl ApiKey {
            /// The served API with this key.
            pub fn from_i16(key: i16) -> Option<ApiKey> {
                match key { $($key => Some(ApiKey::$name),)* _ => None }
            }

            /// This API's row of the table.
            pub const fn api(self) -> &'static Api {
                match self { $(ApiKey::$name => &const { Api {
                    key: ApiKey::$name,
                    name: stringify!($name),
                    lowest: $lowest,
                    highest: $highest,
                    flexible: $flexible,
                } },)* }
            }
        }
    };
}

table! {
    /// Versions 0–2 carry message formats 0 and 1, which the broker does not store. It answers them with an error in
    /// their own layout. It advertises them because librdkafka assumes that a broker without Produce 0 supports no
    /// compression (KAFKA-18659).
    Produce = 0: 0..=13, flexible 9;
    Fetch = 1: 4..=18, flexible 12;
    // The broker answers the query for the largest timestamp (-3, version 7, KIP-734) with UNSUPPORTED_VERSION: it
    // keeps no index for it.
    ListOffsets = 2: 1..=10, flexible 6;
    Metadata = 3: 0..=13, flexible 9;
    /// The codec can't encode version 10 (topic ids).
    OffsetCommit = 8: 2..=9, flexible 8;
    /// The codec can't encode version 10 (topic ids).
    OffsetFetch = 9: 1..=9, flexible 6;
    FindCoordinator = 10: 0..=6, flexible 3;
    JoinGroup = 11: 0..=9, flexible 6;
    Heartbeat = 12: 0..=4, flexible 4;
    LeaveGroup = 13: 0..=5, flexible 4;
    SyncGroup = 14: 0..=5, flexible 4;
    DescribeGroups = 15: 0..=6, flexible 5;
    ListGroups = 16: 0..=5, flexible 3;
    /// Millrace has no SASL. It lists this API and rejects it, as Kafka does on a listener without SASL. The client
    /// then reports that, and not a closed connection.
    SaslHandshake = 17: 0..=1, flexible 32767;
    ApiVersions = 18: 0..=4, flexible 3;
    CreateTopics = 19: 2..=7, flexible 5;
    DeleteTopics = 20: 1..=6, flexible 4;
    /// Version 6 (two-phase commit, KIP-939) is unstable in Kafka.
    InitProducerId = 22: 0..=5, flexible 2;
    OffsetForLeaderEpoch = 23: 2..=4, flexible 4;
    DescribeConfigs = 32: 1..=4, flexible 4;
    /// Listed and rejected, like SaslHandshake.
    SaslAuthenticate = 36: 0..=2, flexible 2;
    CreatePartitions = 37: 0..=3, flexible 2;
    DeleteGroups = 42: 0..=2, flexible 2;
    ElectLeaders = 43: 0..=2, flexible 2;
    IncrementalAlterConfigs = 44: 0..=1, flexible 1;
    DescribeQuorum = 55: 0..=2, flexible 0;
    DescribeCluster = 60: 0..=2, flexible 0;
    UnregisterBroker = 64: 0..=0, flexible 0;
    DescribeTopicPartitions = 75: 0..=0, flexible 0;
}

/// Why a request's key and version are not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    #[error("unknown API key {key}")]
    Key { key: i16 },
    #[error(
        "{} version {version} is not supported, only {} to {}",
        api.api().name,
        api.api().lowest,
        api.api().highest
    )]
    Version { api: ApiKey, version: i16 },
}

/// The API with this key, if this version of it is served.
pub fn supported(key: i16, version: i16) -> Result<ApiKey, Unsupported> {
    let api = ApiKey::from_i16(key).ok_or(Unsupported::Key { key })?;
    let row = api.api();
    if version < row.lowest || version > row.highest {
        return Err(Unsupported::Version { api, version });
    }
    Ok(api)
}

impl ApiKey {
    /// Whether this version has compact lengths and tagged fields.
    pub const fn is_flexible(self, version: i16) -> bool {
        version >= self.api().flexible
    }

    /// 1, or 2 with tagged fields. Only ControlledShutdown used version 0, and it is not served.
    pub const fn request_header_version(self, version: i16) -> i16 {
        if self.is_flexible(version) { 2 } else { 1 }
    }

    /// 0, or 1 with tagged fields. ApiVersions always answers with 0. A client that meets an older broker must be
    /// able to read the answer in any version (KIP-511).
    pub const fn response_header_version(self, version: i16) -> i16 {
        match self {
            ApiKey::ApiVersions => 0,
            _ if self.is_flexible(version) => 1,
            _ => 0,
        }
    }
}

/// The table as an ApiVersions response.
pub fn api_versions_response() -> ApiVersionsResponse {
    let rows = TABLE.iter().map(|api| {
        ApiVersion::default().with_api_key(api.key as i16).with_min_version(api.lowest).with_max_version(api.highest)
    });
    ApiVersionsResponse::default().with_error_code(NONE).with_api_keys(rows.collect())
}

/// The response to an ApiVersions request of an unknown version: error 35 and the table, to be encoded as version 0.
/// The client picks from it a version that both sides support (KIP-511).
pub fn api_versions_fallback() -> ApiVersionsResponse {
    api_versions_response().with_error_code(ErrorCode::UnsupportedVersion.code())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::{self, ApiKey as TheirKey, ApiVersionsResponse};
    use kafka_protocol::protocol::{Encodable, Message, VersionRange};

    #[test]
    fn keys_rise_and_are_found_again() {
        assert!(TABLE.windows(2).all(|pair| (pair[0].key as i16) < (pair[1].key as i16)));
        for api in TABLE {
            assert_eq!(ApiKey::from_i16(api.key as i16), Some(api.key));
            assert_eq!(api.key.api(), api);
            assert!(api.lowest <= api.highest);
            assert_eq!(supported(api.key as i16, api.lowest), Ok(api.key));
            assert_eq!(supported(api.key as i16, api.highest), Ok(api.key));
            for version in [api.lowest - 1, api.highest + 1, i16::MIN, i16::MAX] {
                assert_eq!(supported(api.key as i16, version), Err(Unsupported::Version { api: api.key, version }));
            }
        }
        for key in [-1, 7, 21, 71, 72, i16::MAX] {
            assert_eq!(supported(key, 0), Err(Unsupported::Key { key }));
        }
    }

    /// The versions that the codec decodes. (Its `ApiKey::valid_versions` includes versions that Kafka still calls
    /// unstable.)
    fn request_versions(api: ApiKey) -> VersionRange {
        macro_rules! of {
            ($($name:ident $request:ident),*) => {
                match api { $(ApiKey::$name => messages::$request::VERSIONS,)* }
            };
        }
        of!(
            Produce ProduceRequest, Fetch FetchRequest, ListOffsets ListOffsetsRequest, Metadata MetadataRequest,
            OffsetCommit OffsetCommitRequest, OffsetFetch OffsetFetchRequest, FindCoordinator FindCoordinatorRequest,
            JoinGroup JoinGroupRequest, Heartbeat HeartbeatRequest, LeaveGroup LeaveGroupRequest,
            SyncGroup SyncGroupRequest, DescribeGroups DescribeGroupsRequest, ListGroups ListGroupsRequest,
            SaslHandshake SaslHandshakeRequest, ApiVersions ApiVersionsRequest, CreateTopics CreateTopicsRequest, DeleteTopics DeleteTopicsRequest,
            InitProducerId InitProducerIdRequest, OffsetForLeaderEpoch OffsetForLeaderEpochRequest,
            DescribeConfigs DescribeConfigsRequest, SaslAuthenticate SaslAuthenticateRequest, CreatePartitions CreatePartitionsRequest,
            DeleteGroups DeleteGroupsRequest, ElectLeaders ElectLeadersRequest, IncrementalAlterConfigs IncrementalAlterConfigsRequest,
            DescribeQuorum DescribeQuorumRequest, DescribeCluster DescribeClusterRequest,
            UnregisterBroker UnregisterBrokerRequest, DescribeTopicPartitions DescribeTopicPartitionsRequest
        )
    }

    /// The codec's tables are generated from Kafka's: names, ranges and header versions must agree with them.
    #[test]
    fn the_table_agrees_with_the_codec() {
        for api in TABLE {
            let theirs = TheirKey::try_from(api.key as i16).unwrap();
            assert_eq!(format!("{theirs:?}"), api.name);
            let range = request_versions(api.key);
            let lowest = if api.key == ApiKey::Produce { 0 } else { range.min };
            assert_eq!((api.lowest, api.highest), (lowest, range.max), "{}", api.name);
            for version in api.lowest..=api.highest {
                assert_eq!(api.key.request_header_version(version), theirs.request_header_version(version));
                assert_eq!(api.key.response_header_version(version), theirs.response_header_version(version));
            }
        }
    }

    #[test]
    fn the_table_is_told_in_every_version() {
        let range = ApiVersionsResponse::VERSIONS;
        assert_eq!((range.min, range.max), (ApiKey::ApiVersions.api().lowest, ApiKey::ApiVersions.api().highest));
        for version in range.min..=range.max {
            let mut bytes = bytes::BytesMut::new();
            api_versions_response().encode(&mut bytes, version).unwrap();
        }
        assert_eq!(api_versions_fallback().error_code, 35);
        assert_eq!(api_versions_fallback().api_keys.len(), TABLE.len());
    }
}
