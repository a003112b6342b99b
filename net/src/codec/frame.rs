//! Frames: an INT32 length, followed by that many bytes.
//!
//! Sans-IO: bytes go in as they arrive from a socket; whole frames come out as shared slices of the receive buffer.
//!
//! Invariant: a buffer's capacity is limited by what its connection has really sent. The limit is twice the bytes
//! received of the current frame, or twice the largest recent frame, plus one read. A header that claims 90 MB
//! therefore costs nothing until the bytes arrive.

use std::mem::MaybeUninit;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The least room that a buffer must have for a read once it is allocated, in bytes.
const READ_BYTES_MIN: usize = 16 * 1024;
/// The least room for a read while the length of the next frame is unknown, in bytes. It is smaller so that the read
/// after a small frame, which usually finds nothing, needs no new memory.
const READ_BYTES_LEFT_MIN: usize = READ_BYTES_MIN / 2;
const PREFIX_BYTES: usize = 4;

/// Why the bytes of a connection are not frames. The connection must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("negative frame length {length}")]
    Negative { length: i32 },
    #[error("frame of {length} bytes is over the limit of {limit} (socket.request.max.bytes)")]
    TooLarge { length: usize, limit: usize },
    #[error("an HTTP request ({method}) on the Kafka port")]
    Http { method: &'static str },
    #[error("a TLS handshake on the Kafka port, which speaks plain text")]
    Tls,
    #[error("the connection ended {received} bytes into a frame of {length}")]
    Cut { received: usize, length: usize },
}

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    limit: usize,
    /// No frame has come yet. Only the first prefix is checked for another protocol.
    first: bool,
    /// The size of the largest frame that was recently received whole. This much may be reserved at once.
    proven: usize,
    /// The size of the largest frame since the last [`FrameDecoder::rest`].
    recent: usize,
}

impl FrameDecoder {
    /// `limit`: the maximum bytes of one frame without its prefix (`socket.request.max.bytes`). Larger frames are
    /// rejected.
    pub fn new(limit: usize) -> FrameDecoder {
        FrameDecoder { buffer: BytesMut::new(), limit, first: true, proven: 0, recent: 0 }
    }

    /// Changes the limit; see [`FrameDecoder::new`].
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Takes the bytes that arrived after the frames already returned.
    pub fn take_received(&mut self) -> Bytes {
        self.buffer.split().freeze()
    }

    /// Appends bytes that the caller already holds.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, without its prefix. `None` if more bytes are needed first.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.claimed()? else {
            return Ok(None);
        };
        if self.buffer.len() - PREFIX_BYTES < length {
            return Ok(None);
        }
        self.first = false;
        self.recent = self.recent.max(length);
        self.proven = self.proven.max(length);
        self.buffer.advance(PREFIX_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// The length that the buffered prefix claims. `None` if the prefix is incomplete.
    fn claimed(&self) -> Result<Option<usize>, FrameError> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        if self.first
            && let Some(error) = other_protocol(prefix)
        {
            return Err(error);
        }
        let length = i32::from_be_bytes(*prefix);
        let bytes = usize::try_from(length).map_err(|_| FrameError::Negative { length })?;
        if bytes > self.limit {
            return Err(FrameError::TooLarge { length: bytes, limit: self.limit });
        }
        Ok(Some(bytes))
    }

    /// The size of the frame being received, prefix included. 0 while its prefix is incomplete or invalid.
    pub fn expected(&self) -> usize {
        self.claimed().ok().flatten().map_or(0, |length| PREFIX_BYTES + length)
    }

    /// How many bytes of that frame the buffer should hold next. It grows with what the connection has proven to
    /// send.
    pub fn next_goal(&self) -> usize {
        let held = self.buffer.len();
        self.expected().min(held + READ_BYTES_MIN.max(held).max(self.proven))
    }

    /// The first two bytes of the frame being received: a Kafka request's key. `None` until they have arrived.
    pub fn key(&self) -> Option<i16> {
        key_of(self.buffer.get(PREFIX_BYTES..)?)
    }

    /// Bytes received after the frames already returned.
    pub fn received(&self) -> usize {
        self.buffer.len()
    }

    /// Room for the next read. The caller fills it and calls [`FrameDecoder::advance`]. Call only after `next_frame`
    /// returned `None`.
    pub fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        let held = self.buffer.len();
        let (missing, least) = match self.claimed() {
            Ok(Some(length)) => {
                let missing = (PREFIX_BYTES + length).saturating_sub(held);
                (missing, missing.min(READ_BYTES_MIN))
            }
            _ => (READ_BYTES_MIN, READ_BYTES_LEFT_MIN),
        };
        let room = self.buffer.capacity() - held;
        if room < least {
            let may_reserve = READ_BYTES_MIN.max(held).max(self.proven);
            self.buffer.reserve(missing.max(READ_BYTES_MIN).min(may_reserve));
        }
        self.buffer.spare_capacity_mut()
    }

    /// Accepts bytes that the caller wrote into [`FrameDecoder::spare`].
    ///
    /// # Safety
    /// The first `byte_count` bytes of the last `spare()` have been written.
    pub unsafe fn advance(&mut self, byte_count: usize) {
        // SAFETY: the caller has initialised them, and they lie within the capacity.
        unsafe { self.buffer.advance_mut(byte_count) }
    }

    /// Whether no byte of a next frame has arrived.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Frees the buffer if it is empty, so that an idle connection holds none. Also halves `proven` unless a frame of
    /// that size came since the last rest. One large frame is thus not reserved for ever.
    pub fn rest(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
            self.proven = std::mem::take(&mut self.recent).max(self.proven / 2);
        }
    }

    /// The peer has closed its side. Returns an error if that happened within a frame.
    pub fn end(&self) -> Result<(), FrameError> {
        let received = self.buffer.len();
        if received == 0 {
            return Ok(());
        }
        let length = self.claimed()?.unwrap_or(0);
        Err(FrameError::Cut { received: received.saturating_sub(PREFIX_BYTES), length })
    }

    /// Bytes of memory held for this connection, without the frames already returned.
    pub fn buffer_bytes(&self) -> usize {
        self.buffer.capacity()
    }
}

/// The first two bytes of a frame without its prefix: a Kafka request's key. `None`: the frame is shorter.
pub fn key_of(frame: &[u8]) -> Option<i16> {
    frame.first_chunk().map(|key| i16::from_be_bytes(*key))
}

/// Detects another protocol by a connection's first four bytes. Read as lengths they would be 369 MB or more for TLS
/// and above 1.1 GB for HTTP. No client begins with such a frame.
fn other_protocol(prefix: &[u8; PREFIX_BYTES]) -> Option<FrameError> {
    let method = match prefix {
        // TLS record: handshake (22), version 3.x, high byte of a length below 2^14 (RFC 8446, 5.1).
        [22, 3, 0..=4, 0..=0x40] => return Some(FrameError::Tls),
        b"GET " => "GET",
        b"HEAD" => "HEAD",
        b"POST" => "POST",
        b"PUT " => "PUT",
        b"DELE" => "DELETE",
        b"OPTI" => "OPTIONS",
        b"PATC" => "PATCH",
        b"CONN" => "CONNECT",
        b"TRAC" => "TRACE",
        b"PRI " => "HTTP/2",
        _ => return None,
    };
    Some(FrameError::Http { method })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(decoder: &mut FrameDecoder, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() {
            let spare = decoder.spare();
            let n = spare.len().min(left.len());
            spare[..n].iter_mut().zip(left).for_each(|(to, from)| {
                to.write(*from);
            });
            // SAFETY: the first n bytes were just written.
            unsafe { decoder.advance(n) };
            left = &left[n..];
        }
    }

    fn framed(body: &[u8]) -> Vec<u8> {
        [&(body.len() as i32).to_be_bytes()[..], body].concat()
    }

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let bodies: [&[u8]; 4] = [b"first", b"", b"\0\0\0\0\0\0\0\0", &[9; 300]];
        let stream: Vec<u8> = bodies.iter().flat_map(|body| framed(body)).collect();
        for step in 1..=stream.len() {
            let mut decoder = FrameDecoder::new(300);
            let mut frames = Vec::new();
            for chunk in stream.chunks(step) {
                feed(&mut decoder, chunk);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, bodies, "step {step}");
            assert_eq!(decoder.end(), Ok(()));
            decoder.rest();
            assert_eq!(decoder.buffer_bytes(), 0);
        }
    }

    #[test]
    fn bytes_that_are_no_frame_are_named() {
        let cases: [(&[u8], FrameError); 9] = [
            (b"GET / HTTP/1.1\r\n", FrameError::Http { method: "GET" }),
            (b"POST /topics HTTP/1.1\r\n", FrameError::Http { method: "POST" }),
            (b"PRI * HTTP/2.0\r\n", FrameError::Http { method: "HTTP/2" }),
            (&[22, 3, 1, 2, 0, 1, 0], FrameError::Tls),
            (&[22, 3, 3, 0, 0xf4, 1], FrameError::Tls),
            (&[0xff; 4], FrameError::Negative { length: -1 }),
            (&[0x80, 0, 0, 0], FrameError::Negative { length: i32::MIN }),
            (&[0, 0, 0, 101], FrameError::TooLarge { length: 101, limit: 100 }),
            (&[0x7f, 0xff, 0xff, 0xff], FrameError::TooLarge { length: 0x7fff_ffff, limit: 100 }),
        ];
        for (bytes, error) in cases {
            let mut decoder = FrameDecoder::new(100);
            feed(&mut decoder, bytes);
            assert_eq!(decoder.next_frame(), Err(error));
        }
        // Only the first frame is checked for another protocol. Later, such a length is just a length.
        let mut decoder = FrameDecoder::new(100);
        feed(&mut decoder, &framed(b"x"));
        feed(&mut decoder, b"GET ");
        assert_eq!(decoder.next_frame().unwrap().unwrap().as_ref(), b"x");
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLarge { length: 0x4745_5420, limit: 100 }));
    }

    #[test]
    fn an_end_within_a_frame_is_an_error() {
        let stream = framed(b"body");
        for cut in 1..stream.len() {
            let mut decoder = FrameDecoder::new(100);
            feed(&mut decoder, &stream[..cut]);
            assert_eq!(decoder.next_frame(), Ok(None));
            let length = if cut < 4 { 0 } else { 4 };
            assert_eq!(decoder.end(), Err(FrameError::Cut { received: cut.saturating_sub(4), length }));
        }
    }

    #[test]
    fn a_claimed_length_reserves_little_until_the_bytes_are_there() {
        let limit = 100 << 20;
        let mut decoder = FrameDecoder::new(limit);
        feed(&mut decoder, &(90i32 << 20).to_be_bytes());
        assert_eq!(decoder.next_frame(), Ok(None));
        decoder.spare();
        assert!(decoder.buffer_bytes() <= 4 * READ_BYTES_MIN, "{} bytes held", decoder.buffer_bytes());
        let mut sent = 4;
        for _ in 0..64 {
            feed(&mut decoder, &[0; 10_000]);
            sent += 10_000;
            assert_eq!(decoder.next_frame(), Ok(None));
            decoder.spare();
            assert!(decoder.buffer_bytes() <= 2 * sent + 2 * READ_BYTES_MIN);
        }
    }

    #[test]
    fn a_proven_size_is_reserved_at_once_and_forgotten_when_idle() {
        let body = vec![1u8; 1 << 20];
        let mut decoder = FrameDecoder::new(body.len());
        feed(&mut decoder, &framed(&body));
        assert_eq!(decoder.next_frame().unwrap().unwrap(), body);
        decoder.rest();
        feed(&mut decoder, &framed(&body)[..READ_BYTES_MIN]);
        assert_eq!(decoder.next_frame(), Ok(None));
        assert!(decoder.spare().len() >= body.len() + 4 - READ_BYTES_MIN);
        let mut idle = FrameDecoder::new(body.len());
        idle.proven = body.len();
        (0..30).for_each(|_| idle.rest());
        assert_eq!((idle.proven, idle.buffer_bytes()), (0, 0));
        // While frames of one size keep coming, the next one is always reserved whole.
        let mut steady = FrameDecoder::new(body.len());
        for _ in 0..5 {
            feed(&mut steady, &framed(&body));
            assert!(steady.next_frame().unwrap().is_some());
            steady.rest();
        }
        assert_eq!(steady.proven, body.len());
    }
}
