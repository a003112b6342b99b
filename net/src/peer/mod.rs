//! Frames on the port for brokers. Their contents are opaque here.
//!
//! ```text
//! 0        4     6         7      8      9     12
//! ┌────────┬─────┬─────────┬──────┬──────┬─────┐
//! │ length │ MR  │ version │ kind │ lane │ 0   │ bytes, length - 8 of them
//! └────────┴─────┴─────────┴──────┴──────┴─────┘
//! ```
//! The length is big-endian, as in Kafka's frames, so that the same readers and writers can be used. Both sides begin
//! with the [handshake](auth).

pub mod auth;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use socket2::{SockRef, TcpKeepalive};

use crate::codec::frame::FrameError;
use crate::codec::parts::Parts;
use crate::peer::auth::{HANDSHAKE_BYTES_MAX, Handshake, Step};
use crate::transport::conn::{self, ConnError, FrameReader, FrameWriter};
use crate::transport::listen::Accepted;

const MAGIC: [u8; 2] = *b"MR";
/// The version of the frame format. The contents have versions of their own.
const VERSION: u8 = 1;
const HEADER: usize = 8;

/// The maximum bytes of one frame between brokers. A receiver closes the connection if a frame is larger.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// The maximum bytes that one frame carries.
pub const CARRIED_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER;

/// If nothing sent on a connection is acknowledged for this long, the connection is dead. Otherwise, data sent after
/// a network partition has healed would wait for TCP's own retries, whose intervals keep growing. If a process is
/// only paused, its kernel still acknowledges until its buffers are full.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// The contents of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The sender's description of itself. The first frame in each direction if there is no secret.
    Hello,
    /// Messages between brokers.
    Messages,
    /// Messages between brokers, followed by batches.
    Batches,
    /// A tool's request.
    Request,
    /// The response to a tool's request.
    Response,
    /// A nonce for the other side's proof; see [`crate::peer::auth`].
    Challenge,
    /// Proves that the sender of the hello knows the cluster's secret.
    Proof,
}

/// Each lane is a separate connection, so that bulk data does not delay the messages that hold a Raft group together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Control,
    Bulk,
    /// Records that producers have just written.
    Data,
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
    Io(#[from] io::Error),
    #[error("an HTTP request ({method}) on the port for brokers; the admin pages are served at admin.addr")]
    Http { method: &'static str },
    #[error("a TLS handshake on the port for brokers, which speaks plain text")]
    Tls,
    #[error("a Kafka client's request on the port for brokers; clients are served at kafka.addr")]
    Kafka,
    #[error(
        "a frame of {length} bytes is too large; the limit is {FRAME_BYTES_MAX} bytes, and less until the other side \
         has authenticated"
    )]
    TooLarge { length: usize },
    #[error("the connection ended within a frame")]
    Cut,
    #[error("the other side does not speak the protocol between brokers; check its address and port")]
    NoBroker,
    #[error("the other side sends frames of version {0}; this program supports only version {VERSION}")]
    Version(u8),
    #[error("the connection was closed")]
    Closed,
    #[error(
        "the other side has no proof of the cluster's secret; give it the same file (cluster.secret.file, or a tool's \
         --secret-file)"
    )]
    NoProof,
    #[error(
        "the other broker wants a proof of the cluster's secret; name the secret's file (cluster.secret.file, or a \
         tool's --secret-file FILE or --data-dir DIR)"
    )]
    SecretWanted,
    #[error(
        "the secrets differ; give all brokers and tools of the cluster the same file (cluster.secret.file, or a \
         tool's --secret-file)"
    )]
    OtherSecret,
    #[error("the other side has a secret, but this broker has none; give it the same file (cluster.secret.file)")]
    NoSecretHere,
    #[error("the other broker has no secret, but this side has one; give it the same file (cluster.secret.file)")]
    OtherHasNoSecret,
}

impl From<ConnError> for PeerError {
    fn from(error: ConnError) -> PeerError {
        match error {
            ConnError::Io(error) => PeerError::Io(error),
            ConnError::Frame(FrameError::Http { method }) => PeerError::Http { method },
            ConnError::Frame(FrameError::Tls) => PeerError::Tls,
            ConnError::Frame(FrameError::TooLarge { length, .. }) => PeerError::TooLarge { length },
            ConnError::Frame(FrameError::Negative { .. }) => PeerError::NoBroker,
            ConnError::Frame(FrameError::Cut { .. }) => PeerError::Cut,
        }
    }
}

impl PeerFrame {
    /// `bytes`: at most [`CARRIED_BYTES_MAX`]. Panics if there are more.
    pub fn new(kind: Kind, lane: Lane, bytes: Bytes) -> PeerFrame {
        assert!(bytes.len() <= CARRIED_BYTES_MAX, "{} bytes do not fit into one frame", bytes.len());
        PeerFrame { kind, lane, bytes }
    }

    /// The bytes before [`PeerFrame::bytes`] on a connection, with the length prefix.
    pub fn head(&self) -> Bytes {
        head(self.kind, self.lane, self.bytes.len())
    }

    /// Decodes a frame without its length prefix.
    pub fn decode(mut frame: Bytes) -> Result<PeerFrame, PeerError> {
        let head = frame.first_chunk::<HEADER>().ok_or(PeerError::NoBroker)?;
        let (kind, lane) = read_head(head)?;
        frame.advance(HEADER);
        Ok(PeerFrame { kind, lane, bytes: frame })
    }
}

fn head(kind: Kind, lane: Lane, bytes: usize) -> Bytes {
    let mut head = BytesMut::with_capacity(4 + HEADER);
    head.put_u32((HEADER + bytes) as u32);
    head.put_slice(&MAGIC);
    head.put_u8(VERSION);
    head.put_u8(match kind {
        Kind::Hello => 1,
        Kind::Messages => 2,
        Kind::Request => 3,
        Kind::Response => 4,
        Kind::Batches => 5,
        Kind::Challenge => 6,
        Kind::Proof => 7,
    });
    head.put_u8(match lane {
        Lane::Control => 0,
        Lane::Bulk => 1,
        Lane::Data => 2,
    });
    head.put_bytes(0, 3);
    head.freeze()
}

fn read_head(head: &[u8; HEADER]) -> Result<(Kind, Lane), PeerError> {
    // A Kafka request begins with its API key and version, two bytes each. Both are small numbers.
    if let [0, 0..=99, 0, 0..=29, ..] = head {
        return Err(PeerError::Kafka);
    }
    if head[..2] != MAGIC {
        return Err(PeerError::NoBroker);
    }
    if head[2] != VERSION {
        return Err(PeerError::Version(head[2]));
    }
    let kind = match head[3] {
        1 => Kind::Hello,
        2 => Kind::Messages,
        3 => Kind::Request,
        4 => Kind::Response,
        5 => Kind::Batches,
        6 => Kind::Challenge,
        7 => Kind::Proof,
        _ => return Err(PeerError::NoBroker),
    };
    let lane = match head[4] {
        0 => Lane::Control,
        1 => Lane::Bulk,
        2 => Lane::Data,
        _ => return Err(PeerError::NoBroker),
    };
    Ok((kind, lane))
}

/// Splits a connection between brokers into its two halves, like [`conn::open`]. Sets timeouts so that a dead
/// connection is noticed soon.
///
/// The limit for frames is that of the handshake until [`trust`] is called, once the other side has proved who it is.
pub fn open(accepted: Accepted) -> io::Result<(FrameReader, FrameWriter)> {
    let socket = SockRef::from(&accepted.stream);
    let every = SILENCE_MAX / 2;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(every).with_interval(every).with_retries(2))?;
    socket.set_tcp_user_timeout(Some(SILENCE_MAX))?;
    conn::open(accepted, HANDSHAKE_BYTES_MAX)
}

/// Raises the limit for frames, in bytes, after the other side has proved who it is.
pub fn trust(reader: &mut FrameReader, bytes_max: usize) {
    reader.set_frame_bytes_max(bytes_max);
}

/// Runs a handshake and returns the other side's hello. It has no timeout; the caller must set one.
pub async fn shake_hands(
    mut handshake: Handshake,
    is_caller: bool,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
) -> Result<Bytes, PeerError> {
    if is_caller {
        push(writer, handshake.begin());
    }
    loop {
        writer.flush().await?;
        let Some(frame) = read(reader).await? else { return Err(handshake.closed()) };
        match handshake.take(frame) {
            Ok(Step::Go(frames)) => frames.into_iter().for_each(|frame| push(writer, frame)),
            Ok(Step::Met { send, theirs }) => {
                send.into_iter().for_each(|frame| push(writer, frame));
                writer.flush().await?;
                return Ok(theirs);
            }
            Err(error) => {
                if let Some(frame) = handshake.parting(&error) {
                    push(writer, frame);
                    writer.flush().await?;
                }
                return Err(error);
            }
        }
    }
}

/// The next frame. `None` when the other side has closed the connection between two frames.
pub async fn read(reader: &mut FrameReader) -> Result<Option<PeerFrame>, PeerError> {
    reader.read_frame().await?.map(PeerFrame::decode).transpose()
}

/// Queues a frame after those before it. Its bytes are shared, not copied.
pub fn push(writer: &mut FrameWriter, frame: PeerFrame) {
    writer.push(Parts::from(frame.head()));
    writer.push(Parts::from(frame.bytes));
}

/// Like [`push`], for a frame whose bytes lie in several buffers.
pub fn push_parts(writer: &mut FrameWriter, kind: Kind, lane: Lane, parts: Vec<Bytes>) {
    let bytes = parts.iter().map(Bytes::len).sum();
    assert!(bytes <= CARRIED_BYTES_MAX, "{bytes} bytes do not fit into one frame");
    writer.push(Parts::from(head(kind, lane, bytes)));
    parts.into_iter().for_each(|part| writer.push(Parts::from(part)));
}

/// A connection for code that may block: tools, and the broker before its cores run.
#[derive(Debug)]
pub struct BlockingPeer {
    stream: TcpStream,
    patience: Duration,
    deadline: Option<Instant>,
}

impl BlockingPeer {
    pub fn connect(addr: SocketAddr, patience: Duration) -> io::Result<BlockingPeer> {
        BlockingPeer::new(TcpStream::connect_timeout(&addr, patience)?, patience)
    }

    /// Takes over a connection. Each read and write may take `patience`.
    pub fn new(stream: TcpStream, patience: Duration) -> io::Result<BlockingPeer> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(BlockingPeer { stream, patience, deadline: None })
    }

    /// Sets the time by which all later reads must end.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now()).min(self.patience);
            if left.is_zero() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.stream.set_read_timeout(Some(left))?;
        }
        loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => return received,
            }
        }
    }

    pub fn write(&mut self, frame: &PeerFrame) -> Result<(), PeerError> {
        self.stream.write_all(&frame.head()).and_then(|()| self.stream.write_all(&frame.bytes)).map_err(late)
    }

    pub fn read(&mut self) -> Result<PeerFrame, PeerError> {
        self.read_up_to(FRAME_BYTES_MAX)
    }

    fn read_up_to(&mut self, bytes_max: usize) -> Result<PeerFrame, PeerError> {
        let mut prefix = [0; 4];
        self.fill(&mut prefix, PeerError::Closed)?;
        let length = u32::from_be_bytes(prefix) as usize;
        if prefix == *b"HTTP" || length < HEADER {
            return Err(PeerError::NoBroker);
        }
        if length > bytes_max {
            return Err(PeerError::TooLarge { length });
        }
        let mut head = [0; HEADER];
        self.fill(&mut head, PeerError::Cut)?;
        let (kind, lane) = read_head(&head)?;
        let mut bytes = Vec::new();
        // Grows only as bytes arrive, whatever length the peer claimed.
        let mut piece = [0; 16 << 10];
        while bytes.len() < length - HEADER {
            let wanted = piece.len().min(length - HEADER - bytes.len());
            match self.receive(&mut piece[..wanted]).map_err(late)? {
                0 => return Err(PeerError::Cut),
                received => bytes.extend_from_slice(&piece[..received]),
            }
        }
        Ok(PeerFrame { kind, lane, bytes: bytes.into() })
    }

    /// Like the function [`shake_hands`], but blocking.
    pub fn shake_hands(&mut self, mut handshake: Handshake, is_caller: bool) -> Result<Bytes, PeerError> {
        if is_caller {
            self.write(&handshake.begin())?;
        }
        loop {
            let frame = match self.read_up_to(HANDSHAKE_BYTES_MAX) {
                Err(PeerError::Closed) => return Err(handshake.closed()),
                frame => frame?,
            };
            match handshake.take(frame) {
                Ok(Step::Go(frames)) => frames.iter().try_for_each(|frame| self.write(frame))?,
                Ok(Step::Met { send, theirs }) => {
                    send.iter().try_for_each(|frame| self.write(frame))?;
                    return Ok(theirs);
                }
                Err(error) => {
                    handshake.parting(&error).iter().try_for_each(|frame| self.write(frame))?;
                    return Err(error);
                }
            }
        }
    }

    fn fill(&mut self, buffer: &mut [u8], at_end: PeerError) -> Result<(), PeerError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.receive(&mut buffer[filled..]).map_err(late)? {
                0 => return Err(at_end),
                received => filled += received,
            }
        }
        Ok(())
    }
}

/// The error of a socket timeout reads "temporarily unavailable"; this makes it a timeout.
fn late(error: io::Error) -> PeerError {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no answer in time").into(),
        _ => error.into(),
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
            (&b"XR\x01\x01\0\0\0\0"[..], "does not speak"),
            (&[0, 18, 0, 3, 0, 0, 0, 1][..], "a Kafka client's request"),
            (&b"MR\x02\x01\0\0\0\0"[..], "frames of version 2"),
            (&b"MR\x01\x09\0\0\0\0"[..], "does not speak"),
            (&b"MR\x01\x01\x07\0\0\0"[..], "does not speak"),
        ] {
            let error = PeerFrame::decode(Bytes::copy_from_slice(bytes)).unwrap_err().to_string();
            assert!(error.contains(why), "{bytes:?}: {error}");
        }
    }

    /// Serves one connection on this thread's executor. Returns the result of reading its first frame.
    fn first_frame(listener: &std::net::TcpListener) -> Result<Option<PeerFrame>, PeerError> {
        let (stream, from) = listener.accept().unwrap();
        runtime::block_on(async move {
            let (mut reader, _writer) = open(Accepted::new(stream, from).unwrap()).unwrap();
            read(&mut reader).await
        })
    }

    #[test]
    fn other_protocols_are_refused_by_name_as_they_come_off_the_socket() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let too_large = (FRAME_BYTES_MAX as u32 + 1).to_be_bytes();
        for (bytes, why) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "an HTTP request (GET) on the port for brokers"),
            (&[22, 3, 1, 0, 200, 1], "a TLS handshake on the port for brokers"),
            (&[0, 0, 0, 10, 0, 3, 0, 12, 0, 0, 0, 1, 255, 255], "a Kafka client's request on the port for brokers"),
            (&too_large, "a frame of 67108865 bytes"),
            (&[255; 4], "does not speak"),
            (&[0, 0, 0, 9, b'M', b'R', 1], "ended within a frame"),
        ] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(bytes).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let error = first_frame(&listener).unwrap_err().to_string();
            assert!(error.contains(why), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn a_blocking_client_refuses_others_and_keeps_its_timeout() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for (bytes, why) in [
            (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "does not speak"),
            (&[0, 0, 0, 3, 1, 2, 3], "does not speak"),
            (&[0, 0, 0, 9, b'M', b'R', 2, 1, 0, 0, 0, 0], "frames of version 2"),
            (&[255; 12], "a frame of 4294967295 bytes"),
            (&[0, 0, 0, 9, b'M', b'R', 1, 1, 0, 0, 0, 0], "ended within a frame"),
            (&[0, 0, 0, 9, b'M', b'R'], "ended within a frame"),
            (&[], "was closed"),
        ] {
            let mut asker = BlockingPeer::connect(listener.local_addr().unwrap(), Duration::from_secs(10)).unwrap();
            let (mut other, _) = listener.accept().unwrap();
            other.write_all(bytes).unwrap();
            other.shutdown(std::net::Shutdown::Write).unwrap();
            let error = asker.read().unwrap_err().to_string();
            assert!(error.contains(why), "{bytes:?}: {error}");
        }
        let mut asker = BlockingPeer::connect(listener.local_addr().unwrap(), Duration::from_millis(1)).unwrap();
        let _silent = listener.accept().unwrap();
        assert!(asker.read().unwrap_err().to_string().contains("no answer in time"));
    }

    #[test]
    fn a_dead_connection_is_noticed_soon() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let copy = stream.try_clone().unwrap();
        runtime::block_on(async move {
            let _halves = open(Accepted::new(stream, listener.local_addr().unwrap()).unwrap()).unwrap();
            let socket = SockRef::from(&copy);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(SILENCE_MAX));
            assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
            assert!(socket.tcp_keepalive_time().unwrap() <= SILENCE_MAX);
        });
    }

    #[test]
    fn a_blocking_client_talks_to_an_asynchronous_server() {
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
        runtime::block_on(async move {
            let (mut reader, mut writer) = open(Accepted::new(stream, from).unwrap()).unwrap();
            let asked = read(&mut reader).await.unwrap().unwrap();
            assert_eq!((asked.kind, &asked.bytes[..]), (Kind::Hello, &b"who"[..]));
            push(&mut writer, PeerFrame::new(Kind::Hello, Lane::Control, Bytes::from_static(b"me")));
            writer.flush().await.unwrap();
            writer.shutdown();
        });
        assert_eq!(client.join().unwrap().bytes, Bytes::from_static(b"me"));
    }
}
