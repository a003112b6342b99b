//! The served APIs: their keys, versions and fields, from the rows of [`crate::codec::table`].
//!
//! ApiVersions is answered from them, requests are checked against them, and header versions derive from them
//! (KIP-482).

use kafka_protocol::messages::ApiVersionsResponse;
use kafka_protocol::messages::api_versions_response::ApiVersion;

use crate::codec::schema::{Field, fields};
use crate::codec::table::each_api;
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
    pub(crate) request: &'static [Field],
    /// For the versions served. For Produce only from version 3 on.
    pub(crate) response: &'static [Field],
}

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident($request:ident => $response:ident) {
        key: $key:literal, versions: $lowest:literal..=$highest:literal, flexible: $flexible:literal,
        only_reads: $only_reads:literal,
        request: { $($asked:tt)* },
        response: { $($answered:tt)* },
    })*) => {
        /// The key of a served API, as sent in a request's header.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(i16)]
        pub enum ApiKey { $($(#[$doc])* $name = $key,)* }

        /// Every served API, in ascending order of key.
        pub const TABLE: &[Api] = &[$(*ApiKey::$name.api(),)*];

        impl ApiKey {
            /// The served API with this key.
            pub fn from_i16(key: i16) -> Option<ApiKey> {
                match key { $($key => Some(ApiKey::$name),)* _ => None }
            }

            /// This API's row of the table.
            pub const fn api(self) -> &'static Api {
                match self { $(ApiKey::$name => {
                    const ROW: Api = Api {
                        key: ApiKey::$name,
                        name: stringify!($name),
                        lowest: $lowest,
                        highest: $highest,
                        flexible: $flexible,
                        request: fields!($($asked)*),
                        response: fields!($($answered)*),
                    };
                    &ROW
                })* }
            }

            /// Whether a request changes nothing, so that it may be dropped when its client is gone.
            #[inline]
            pub const fn only_reads(self) -> bool {
                match self { $(ApiKey::$name => $only_reads,)* }
            }
        }
    };
}

each_api!(keys);

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

    /// The messages that a row names, and the versions of the request that the codec decodes. (Its
    /// `ApiKey::valid_versions` includes versions that Kafka still calls unstable.)
    fn messages_of(api: ApiKey) -> (&'static str, &'static str, VersionRange) {
        macro_rules! of {
            ($($(#[$doc:meta])* $name:ident($request:ident => $response:ident) $row:tt)*) => {
                match api {
                    $(ApiKey::$name => (stringify!($request), stringify!($response), messages::$request::VERSIONS),)*
                }
            };
        }
        each_api!(of)
    }

    /// The codec's tables are generated from Kafka's: names, ranges and header versions must agree with them.
    #[test]
    fn the_table_agrees_with_the_codec() {
        for api in TABLE {
            let theirs = TheirKey::try_from(api.key as i16).unwrap();
            assert_eq!(format!("{theirs:?}"), api.name);
            let (request, response, range) = messages_of(api.key);
            assert_eq!((request, response), (&*format!("{theirs:?}Request"), &*format!("{theirs:?}Response")));
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
