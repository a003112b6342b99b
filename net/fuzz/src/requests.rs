//! Frames and requests of Kafka clients.

use bytes::Bytes;
use net::codec::frame::{FrameDecoder, FrameError};
use net::codec::request::{decode, encode};
use testkit::allocations;

const FRAME_BYTES_MAX: usize = 1 << 20;

/// A request without its length prefix. Decoding takes memory in proportion to its bytes. A request that was decoded
/// is the same after it was encoded and decoded again.
pub fn request(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    let (decoded, allocated) = allocations::during(|| decode(&frame));
    assert!(allocated <= 2048 + 256 * data.len(), "{allocated} bytes for a request of {}", data.len());
    let Ok((header, request)) = decoded else { return };
    let encoded = encode(&header, &request).expect("what was decoded can be encoded").into_bytes();
    let length = (encoded.len() - 4) as i32;
    assert_eq!(encoded[..4], length.to_be_bytes());
    let again = decode(&encoded.slice(4..)).expect("what was encoded can be decoded");
    assert_eq!(again, (header, request));
}

/// A stream of frames, cut into pieces of one more byte than the first byte says. The frames are the same however the
/// stream is cut, and together no longer than it. The buffer is bounded by what has arrived.
pub fn frames(data: &[u8]) {
    let Some((&piece, stream)) = data.split_first() else { return };
    let whole = cut(stream, stream.len().max(1));
    assert_eq!(cut(stream, usize::from(piece) + 1), whole);
    let used: usize = whole.0.iter().map(|frame| 4 + frame.len()).sum();
    assert!(used <= stream.len(), "{used} bytes of frames in {}", stream.len());
}

fn cut(stream: &[u8], piece: usize) -> (Vec<Bytes>, Option<FrameError>) {
    let mut decoder = FrameDecoder::new(FRAME_BYTES_MAX);
    let mut frames = Vec::new();
    for piece in stream.chunks(piece) {
        decoder.extend(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    decoder.spare();
    assert!(decoder.buffer_bytes() <= 4 * stream.len() + (64 << 10), "{} bytes", decoder.buffer_bytes());
    (frames, decoder.end().err())
}
