//! ApiVersions: the APIs and versions that this broker supports.

use net::{
    codec::api,
    errors::ErrorCode,
    messages::{ApiVersionsRequest, ApiVersionsResponse},
};

pub fn handle(request: &ApiVersionsRequest, version: i16) -> ApiVersionsResponse {
    // KIP-511: the name of a client must be plain characters, since it ends up in logs and metrics.
    if version >= 3 && !(is_plain(&request.client_software_name) && is_plain(&request.client_software_version)) {
        return ApiVersionsResponse::default().with_error_code(ErrorCode::InvalidRequest.code());
    }
    api::api_versions_response()
}

/// Kafka's pattern for software names and versions: `[a-zA-Z0-9](?:[a-zA-Z0-9\\-.]*[a-zA-Z0-9])?`.
fn is_plain(name: &str) -> bool {
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    alphanumeric(name.chars().next())
        && alphanumeric(name.chars().next_back())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::StrBytes;

    #[test]
    fn names_with_other_characters_are_refused() {
        let request = |name: &'static str| {
            ApiVersionsRequest::default()
                .with_client_software_name(StrBytes::from_static_str(name))
                .with_client_software_version(StrBytes::from_static_str("1.0"))
        };
        assert_eq!(handle(&request("librdkafka"), 3).error_code, 0);
        for bad in ["", "-a", "a b", "a\n"] {
            assert_eq!(handle(&request(bad), 3).error_code, ErrorCode::InvalidRequest.code(), "{bad:?}");
            assert_eq!(handle(&request(bad), 2).error_code, 0, "older versions carry no name");
        }
    }
}
