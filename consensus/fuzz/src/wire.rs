//! Frames between brokers, and between brokers and tools. What was decoded can be encoded, and is the same from then
//! on. Memory is bounded by the frame.

use bytes::Bytes;
use consensus::wire::{
    Frame, PeerMessage, decode, decode_hello, decode_request, decode_response, decode_with_payloads, encode,
    encode_hello, encode_request, encode_response,
};
use testkit::allocations;

/// The bytes that decoding may allocate for each byte of a frame. A forged frame can name one of its parts more than
/// once; `SHARED_MAX` in `consensus::wire` limits how often.
const BYTES_PER_BYTE: usize = 1024;

/// Runs a decoder, and checks that it allocates in proportion to its input.
pub fn bounded<T>(data: &[u8], decode: impl FnOnce() -> T) -> T {
    let (decoded, allocated) = allocations::during(decode);
    assert!(allocated <= 4096 + BYTES_PER_BYTE * data.len(), "{allocated} bytes for a frame of {}", data.len());
    decoded
}

/// Messages, with and without batches behind them.
pub fn messages(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    if let Ok(messages) = bounded(data, || decode_with_payloads(&frame)) {
        let beside = |message: &PeerMessage| match message {
            PeerMessage::Append { payloads, .. } => payloads.iter().map(|(_, bytes)| bytes.len()).sum(),
            _ => 0,
        };
        let beside: usize = messages.iter().map(beside).sum();
        assert!(4 + beside <= data.len(), "{beside} bytes of batches in a frame of {}", data.len());
        comes_back(&messages);
    }
    if let Ok(messages) = bounded(data, || decode(data)) {
        comes_back(&messages);
    }
}

fn comes_back(messages: &[PeerMessage]) {
    let frame = Frame::new(messages);
    let bare = frame.payloads.is_empty();
    let written = Bytes::from(frame.into_parts().concat());
    let again = if bare { decode(&written) } else { decode_with_payloads(&written) };
    let again = again.expect("what was encoded can be decoded");
    assert_eq!(encode(&again), encode(messages));
}

/// A hello.
pub fn hello(data: &[u8]) {
    if let Ok(hello) = bounded(data, || decode_hello(data)) {
        assert_eq!(decode_hello(&encode_hello(&hello)), Ok(hello));
    }
}

/// A tool's request, or a broker's response to it.
pub fn tools(data: &[u8]) {
    if let Ok(request) = bounded(data, || decode_request(data)) {
        assert_eq!(decode_request(&encode_request(&request)), Ok(request));
    }
    if let Ok(response) = bounded(data, || decode_response(data)) {
        assert_eq!(decode_response(&encode_response(&response)), Ok(response));
    }
}
