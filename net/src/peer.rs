//! Frames on the port between brokers: what they hold is opaque here.
//!
//! ```text
//! 0        4     6         7      8      9     12
//! ┌────────┬─────┬─────────┬──────┬──────┬─────┐
//! │ length │ MR  │ version │ kind │ lane │ 0   │ bytes, length - 8 of them
//! └────────┴─────┴─────────┴──────┴──────┴─────┘
//! ```
//! The length is big-endian, as in Kafka's frames, so that the same readers and writers do. Both sides begin with a hello.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::conn::{ConnError, FrameReader, FrameWriter};
use crate::parts::Parts;

const MAGIC: [u8; 2] = *b"MR";
/// Of the frames; what is in them has versions of its own.
const VERSION: u8 = 1;
const HEADER: usize = 8;

/// Bytes of one frame between brokers at most.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// What a frame's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The first frame in each direction: who is there.
    Hello,
    /// Messages between brokers.
    Messages,
    /// A tool's request.
    Request,
    /// The answer to it.
    Response,
}

/// Connections of their own, so that bulk does not delay what keeps a group together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Control,
    Bulk,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFrame {
    pub kind: Kind,
    pub lane: Lane,
    pub bytes: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error(transparent)]
    Conn(#[from] ConnError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("whoever is there does not speak as brokers do among each other; is that another port?")]
    NoBroker,
    #[error("frames of version {0}; this program knows {VERSION} only")]
    Version(u8),
    #[error("the connection was closed")]
    Closed,
}

impl PeerFrame {
    pub fn new(kind: Kind, lane: Lane, bytes: Bytes) -> PeerFrame {
        PeerFrame { kind, lane, bytes }
    }

    fn head(&self) -> Bytes {
        let mut head = BytesMut::with_capacity(4 + HEADER);
        head.put_u32((HEADER + self.bytes.len()) as u32);
        head.put_slice(&MAGIC);
        head.put_u8(VERSION);
        head.put_u8(match self.kind {
            Kind::Hello => 1,
            Kind::Messages => 2,
            Kind::Request => 3,
            Kind::Response => 4,
        });
        head.put_u8(match self.lane {
            Lane::Control => 0,
            Lane::Bulk => 1,
        });
        head.put_bytes(0, 3);
        head.freeze()
    }

    /// Reads a frame that has come without its length.
    fn decode(mut frame: Bytes) -> Result<PeerFrame, PeerError> {
        if frame.len() < HEADER || frame[..2] != MAGIC {
            return Err(PeerError::NoBroker);
        }
        if frame[2] != VERSION {
            return Err(PeerError::Version(frame[2]));
        }
        let kind = match frame[3] {
            1 => Kind::Hello,
            2 => Kind::Messages,
            3 => Kind::Request,
            4 => Kind::Response,
            _ => return Err(PeerError::NoBroker),
        };
        let lane = match frame[4] {
            0 => Lane::Control,
            1 => Lane::Bulk,
            _ => return Err(PeerError::NoBroker),
        };
        frame.advance(HEADER);
        Ok(PeerFrame { kind, lane, bytes: frame })
    }
}

/// The next frame; `None` when the other side has closed between two frames.
pub async fn read(reader: &mut FrameReader) -> Result<Option<PeerFrame>, PeerError> {
    reader.read_frame().await?.map(PeerFrame::decode).transpose()
}

/// Queues a frame behind those before it; its bytes are shared, not copied.
pub fn push(writer: &mut FrameWriter, frame: PeerFrame) {
    writer.push(Parts::from(frame.head()));
    writer.push(Parts::from(frame.bytes));
}

/// A connection for those who may block: before the cores run, and tools.
#[derive(Debug)]
pub struct BlockingPeer(TcpStream);

impl BlockingPeer {
    pub fn connect(addr: SocketAddr, patience: Duration) -> io::Result<BlockingPeer> {
        BlockingPeer::new(TcpStream::connect_timeout(&addr, patience)?, patience)
    }

    /// Takes over a connection; each read and write may take so long.
    pub fn new(stream: TcpStream, patience: Duration) -> io::Result<BlockingPeer> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(BlockingPeer(stream))
    }

    pub fn write(&mut self, frame: &PeerFrame) -> Result<(), PeerError> {
        self.0.write_all(&frame.head())?;
        Ok(self.0.write_all(&frame.bytes)?)
    }

    pub fn read(&mut self) -> Result<PeerFrame, PeerError> {
        let mut length = [0; 4];
        match self.0.read_exact(&mut length) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(PeerError::Closed),
            other => other?,
        }
        let length = u32::from_be_bytes(length) as usize;
        if !(HEADER..=FRAME_BYTES_MAX).contains(&length) {
            return Err(PeerError::NoBroker);
        }
        let mut frame = vec![0; length];
        self.0.read_exact(&mut frame)?;
        PeerFrame::decode(frame.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_drawn_one() {
        let frame = PeerFrame::new(Kind::Messages, Lane::Bulk, Bytes::from_static(b"abc"));
        let head = frame.head();
        assert_eq!(head[..], [0, 0, 0, 11, b'M', b'R', 1, 2, 1, 0, 0, 0]);
        let mut whole = head[4..].to_vec();
        whole.extend_from_slice(b"abc");
        assert_eq!(PeerFrame::decode(whole.into()).unwrap(), frame);
    }

    #[test]
    fn others_are_refused_by_name() {
        for (bytes, why) in [
            (&b"MR"[..], "does not speak"),
            (&[0, 18, 0, 3, 0, 0, 0, 1][..], "does not speak"),
            (&b"MR\x02\x01\0\0\0\0"[..], "frames of version 2"),
            (&b"MR\x01\x09\0\0\0\0"[..], "does not speak"),
            (&b"MR\x01\x01\x07\0\0\0"[..], "does not speak"),
        ] {
            let error = PeerFrame::decode(Bytes::copy_from_slice(bytes)).unwrap_err().to_string();
            assert!(error.contains(why), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn who_may_block_talks_to_who_may_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let patience = Duration::from_secs(10);
        let client = std::thread::spawn(move || {
            let mut peer = BlockingPeer::connect(addr, patience).unwrap();
            peer.write(&PeerFrame::new(Kind::Hello, Lane::Control, Bytes::from_static(b"who"))).unwrap();
            let answer = peer.read().unwrap();
            assert!(matches!(peer.read(), Err(PeerError::Closed)));
            answer
        });
        let (stream, from) = listener.accept().unwrap();
        crate::rt::run(async move {
            let accepted = crate::listen::Accepted::new(stream, from).unwrap();
            let (mut reader, mut writer) = crate::conn::open(accepted, FRAME_BYTES_MAX).unwrap();
            let asked = read(&mut reader).await.unwrap().unwrap();
            assert_eq!((asked.kind, &asked.bytes[..]), (Kind::Hello, &b"who"[..]));
            push(&mut writer, PeerFrame::new(Kind::Hello, Lane::Control, Bytes::from_static(b"me")));
            writer.flush().await.unwrap();
            writer.shutdown();
        });
        assert_eq!(client.join().unwrap().bytes, Bytes::from_static(b"me"));
    }
}
