//! The port for brokers, up to the end of the handshake.

use bytes::Bytes;
use net::codec::frame::FrameDecoder;
use net::peer::auth::{HANDSHAKE_BYTES_MAX, Handshake, Secret, Step};
use net::peer::{Lane, PeerFrame};

/// The secret of the recorded handshakes, too.
pub const SECRET: &[u8; 32] = b"a secret that the stranger lacks";

/// Takes the bytes that a stranger sends to either side of the handshake. Nobody who does not know the secret is let in, not even with
/// a recorded handshake. Frames that were decoded are encoded to the same bytes.
pub fn peer(data: &[u8]) {
    let frames = frames(data);
    for secret in [Secret::new(SECRET), None] {
        let mut answerer = Handshake::answerer(secret.clone(), Bytes::from_static(b"answerer"), [1; 32]);
        converse(&mut answerer, &frames, secret.is_some());
        let mut caller = Handshake::caller(secret.clone(), Lane::Control, Bytes::from_static(b"caller"), [2; 32]);
        caller.begin();
        converse(&mut caller, &frames, secret.is_some());
    }
}

/// The frames up to the first that is none.
fn frames(data: &[u8]) -> Vec<PeerFrame> {
    let mut decoder = FrameDecoder::new(HANDSHAKE_BYTES_MAX);
    decoder.extend(data);
    let mut frames = Vec::new();
    while let Ok(Some(bytes)) = decoder.next_frame() {
        let Ok(frame) = PeerFrame::decode(bytes.clone()) else { break };
        let head = frame.head();
        assert_eq!(head[..4], (bytes.len() as u32).to_be_bytes());
        // The last three bytes of the head are reserved, and ignored.
        assert_eq!(head[4..9], bytes[..5]);
        assert_eq!(frame.bytes, bytes[8..]);
        frames.push(frame);
    }
    frames
}

fn converse(handshake: &mut Handshake, frames: &[PeerFrame], has_secret: bool) {
    for frame in frames {
        match handshake.take(frame.clone()) {
            Ok(Step::Go(sent)) => assert!(sent.len() <= 2),
            Ok(Step::Met { .. }) => {
                assert!(!has_secret, "a stranger was let in");
                return;
            }
            Err(error) => return drop(handshake.parting(&error)),
        }
    }
    handshake.closed();
}
