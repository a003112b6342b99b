//! SaslHandshake and SaslAuthenticate. There is no SASL here: both answer ILLEGAL_SASL_STATE, as a Kafka broker
//! does on a listener without it. The client can then report the cause, which a closed connection would hide.

use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{SaslAuthenticateResponse, SaslHandshakeResponse},
};

pub fn refuse_handshake() -> SaslHandshakeResponse {
    SaslHandshakeResponse::default().with_error_code(ErrorCode::IllegalSaslState.code())
}

pub fn refuse_authentication() -> SaslAuthenticateResponse {
    let message = "this listener has no SASL; set the client's security.protocol to PLAINTEXT";
    SaslAuthenticateResponse::default()
        .with_error_code(ErrorCode::IllegalSaslState.code())
        .with_error_message(Some(StrBytes::from_static_str(message)))
}
