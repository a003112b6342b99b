//! One connection on its core: frames in, vectored writes out.
//!
//! Lives on: the core that drives it. Reader and writer share the socket, and two tasks may drive them. A future may
//! be dropped at any await: data that was read or is not yet written stays in the reader or writer.

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::rc::Rc;

use bytes::{Buf, Bytes};
use runtime::Watched;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::codec::frame::{FrameDecoder, FrameError};
use crate::codec::parts::Parts;
use crate::transport::listen::Accepted;
use crate::turn::BYTES_A_TURN;

/// The maximum bytes that one half moves before it lets other tasks run. The kernel copies them, and may have to clear
/// as much memory first. There may be hundreds of connections with as much to send.
const MOVED_BYTES_MAX: usize = BYTES_A_TURN;

/// The maximum buffers per system call. The kernel accepts at most 1024 (IOV_MAX).
const IOV_MAX: usize = 1024;

/// Why a connection ended, other than by the peer closing it between two frames.
#[derive(Debug, thiserror::Error)]
pub enum ConnError {
    /// The peer does not speak the protocol, or closed the connection within a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Splits a connection into its two halves. Must be called on the executor that will drive them.
pub fn open(accepted: Accepted, frame_bytes_max: usize) -> io::Result<(FrameReader, FrameWriter)> {
    let peer = accepted.peer;
    let socket = Rc::new(Watched::new(accepted.stream)?);
    let shared = Shared { socket, peer, moved: Rc::default() };
    let decoder = FrameDecoder::new(frame_bytes_max);
    let reader = FrameReader { shared: shared.clone(), decoder, turn: Turn::default() };
    Ok((reader, FrameWriter { shared, queue: VecDeque::new(), queued_bytes: 0, turn: Turn::default() }))
}

/// Connects without blocking the core. There is no timeout here: the caller races it against a timer and drops it.
pub async fn connect(addr: SocketAddr) -> io::Result<Accepted> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    let started = socket.connect(&addr.into());
    let stream = TcpStream::from(socket);
    match started {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {
            // Only the duplicate is registered with this reactor, so that the socket itself may go to another core.
            let watched = Watched::new(stream.try_clone()?)?;
            watched.writable().await?;
            if let Some(e) = stream.take_error()? {
                return Err(e);
            }
        }
        Err(e) => return Err(e),
    }
    Accepted::new(stream, addr)
}

#[derive(Debug, Clone)]
struct Shared {
    socket: Rc<Watched<TcpStream>>,
    peer: SocketAddr,
    moved: Rc<Moved>,
}

/// The bytes that one half may still move before it lets other tasks run. Calls that move few bytes add up: a peer that
/// sends as fast as it is read never lets a read find the socket empty.
#[derive(Debug)]
struct Turn {
    left: usize,
}

impl Default for Turn {
    fn default() -> Turn {
        Turn { left: MOVED_BYTES_MAX }
    }
}

impl Turn {
    /// Counts the bytes of one call. Lets other tasks run at the end of the turn.
    async fn moved(&mut self, byte_count: usize) {
        self.left = self.left.saturating_sub(byte_count);
        if self.left == 0 {
            // First, because the caller may be dropped while it waits.
            *self = Turn::default();
            runtime::yield_now().await;
        }
    }
}

/// Counts the bytes of a connection: received, sent, and queued.
#[derive(Debug, Default)]
struct Moved {
    received: Cell<u64>,
    sent: Cell<u64>,
    /// Bytes that the writer has queued.
    unsent: Cell<usize>,
}

impl Shared {
    fn shutdown(&self) {
        // Fails only if the peer has already closed the connection.
        let _ = self.socket.get().shutdown(Shutdown::Both);
    }
}

/// The state of the peer's end of a connection, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEnd {
    Open,
    /// The peer has closed its sending side. It may still read. What it sent before may not be received yet.
    HalfClosed,
    /// The connection was reset. Nothing can be sent.
    Gone,
}

/// Lets another task watch a connection while its halves are in use.
#[derive(Debug, Clone)]
pub struct ConnHandle(Shared);

impl ConnHandle {
    /// Bytes received and sent so far, including unfinished frames.
    pub fn moved_bytes(&self) -> u64 {
        self.received_bytes().wrapping_add(self.sent_bytes())
    }

    /// Bytes received so far, including unfinished frames.
    pub fn received_bytes(&self) -> u64 {
        self.0.moved.received.get()
    }

    /// Bytes sent so far: the kernel has accepted them.
    pub fn sent_bytes(&self) -> u64 {
        self.0.moved.sent.get()
    }

    /// Bytes sent so far that the peer's kernel has acknowledged. A peer that does not read stops acknowledging once
    /// its receive buffer is full.
    pub fn acknowledged_bytes(&self) -> u64 {
        let mut in_flight: libc::c_int = 0;
        let socket = self.0.socket.get().as_raw_fd();
        // SAFETY: the socket is open while `self` lives, and TIOCOUTQ writes one int.
        let done = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut in_flight) };
        match u64::try_from(in_flight) {
            Ok(in_flight) if done == 0 => self.sent_bytes().saturating_sub(in_flight),
            _ => self.sent_bytes(),
        }
    }

    /// Asks the kernel about the peer's end. Unlike the reader, this also tells while received bytes are not read.
    pub fn peer_end(&self) -> PeerEnd {
        let fd = self.0.socket.get().as_raw_fd();
        let mut asked = libc::pollfd { fd, events: libc::POLLRDHUP, revents: 0 };
        // SAFETY: the socket is open while `self` lives. The call returns at once, and writes one live struct.
        unsafe { libc::poll(&raw mut asked, 1, 0) };
        if asked.revents & (libc::POLLHUP | libc::POLLERR) != 0 {
            PeerEnd::Gone
        } else if asked.revents & libc::POLLRDHUP != 0 {
            PeerEnd::HalfClosed
        } else {
            PeerEnd::Open
        }
    }

    /// Bytes that are queued and not yet sent.
    pub fn unsent_bytes(&self) -> usize {
        self.0.moved.unsent.get()
    }

    /// Closes the connection in both directions. A waiting reader or writer wakes up.
    pub fn shutdown(&self) {
        self.0.shutdown();
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct FrameReader {
    shared: Shared,
    decoder: FrameDecoder,
    turn: Turn,
}

impl FrameReader {
    pub fn peer(&self) -> SocketAddr {
        self.shared.peer
    }

    pub fn handle(&self) -> ConnHandle {
        ConnHandle(self.shared.clone())
    }

    /// The next frame without its length prefix. `None` when the peer has closed the connection between two frames.
    pub async fn read_frame(&mut self) -> Result<Option<Bytes>, ConnError> {
        loop {
            if let Some(frame) = self.buffered_frame().await? {
                return Ok(Some(frame));
            }
            if !self.receive(usize::MAX).await? {
                return Ok(None);
            }
        }
    }

    /// The next frame without its length prefix, if all of it has arrived.
    pub async fn buffered_frame(&mut self) -> Result<Option<Bytes>, ConnError> {
        let frame = self.decoder.next_frame()?;
        if frame.is_some() {
            // A peer that sends without pause must not keep other tasks off the core.
            runtime::yield_if_needed().await;
        }
        Ok(frame)
    }

    /// Waits for more bytes of the next frame and reads once, up to `goal` bytes in the buffer, and at most 256 KiB.
    /// Returns `false` when the peer has closed the connection between two frames. Call only after
    /// [`FrameReader::buffered_frame`] returned `None`.
    pub async fn receive(&mut self, goal: usize) -> Result<bool, ConnError> {
        let most = goal.saturating_sub(self.decoder.received()).max(1);
        loop {
            let spare = self.decoder.spare();
            let most = spare.len().min(most).min(self.turn.left);
            match SockRef::from(self.shared.socket.get()).recv(&mut spare[..most]) {
                Ok(0) => {
                    self.decoder.end()?;
                    return Ok(false);
                }
                Ok(byte_count) => {
                    let moved = &self.shared.moved.received;
                    moved.set(moved.get().wrapping_add(byte_count as u64));
                    // SAFETY: recv wrote that many bytes to the start of the spare room.
                    unsafe { self.decoder.advance(byte_count) }
                    self.turn.moved(byte_count).await;
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.decoder.rest();
                    self.shared.socket.readable().await?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The size of the frame being received, prefix included. 0 while its prefix is incomplete or invalid.
    pub fn expected_bytes(&self) -> usize {
        self.decoder.expected()
    }

    /// The first two bytes of that frame, which are a Kafka request's key. `None` until they have arrived.
    pub fn key(&self) -> Option<i16> {
        self.decoder.key()
    }

    /// How many bytes of that frame the buffer should hold next.
    pub fn next_goal(&self) -> usize {
        self.decoder.next_goal()
    }

    /// Closes the connection in both directions. A waiting reader or writer wakes up.
    pub fn shutdown(&self) {
        self.shared.shutdown();
    }

    /// Sets the maximum bytes of the frames from now on.
    pub fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.decoder.set_limit(frame_bytes_max);
    }

    /// Duplicates the socket. The duplicate belongs to no core yet.
    pub fn duplicate(&self) -> io::Result<Accepted> {
        Ok(Accepted { stream: self.shared.socket.get().try_clone()?, peer: self.shared.peer })
    }

    /// Takes the bytes received after the frames already returned, for another reader of the same connection.
    pub fn take_received(&mut self) -> Bytes {
        self.decoder.take_received()
    }

    /// Puts in the bytes that another reader of the same connection has received.
    pub fn put_received(&mut self, received: &[u8]) {
        self.decoder.extend(received);
    }

    /// Bytes of memory held, without the frames already returned.
    pub fn buffer_bytes(&self) -> usize {
        self.decoder.buffer_bytes()
    }
}

/// The sending half: a queue of shared buffers.
#[derive(Debug)]
pub struct FrameWriter {
    shared: Shared,
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    turn: Turn,
}

impl FrameWriter {
    pub fn peer(&self) -> SocketAddr {
        self.shared.peer
    }

    /// Queues a message after those before it. The queue has no limit of its own: the caller must watch
    /// [`FrameWriter::queued_bytes`].
    pub fn push(&mut self, parts: Parts) {
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            self.queued_bytes += part.len();
            self.queue.push_back(part);
        }
        self.shared.moved.unsent.set(self.queued_bytes);
    }

    /// Drops the queue, for a peer that is gone.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.queued_bytes = 0;
        self.shared.moved.unsent.set(0);
    }

    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Sends everything that is queued.
    pub async fn flush(&mut self) -> io::Result<()> {
        while !self.queue.is_empty() {
            match self.send() {
                Ok(byte_count) => {
                    self.consume(byte_count);
                    self.turn.moved(byte_count).await;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.shared.socket.writable().await?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Queues a message and sends everything that is queued.
    pub async fn write(&mut self, parts: Parts) -> io::Result<()> {
        self.push(parts);
        self.flush().await
    }

    /// Makes one vectored write. If the peer is gone, it returns an error and raises no signal (MSG_NOSIGNAL).
    fn send(&self) -> io::Result<usize> {
        let mut left = self.turn.left;
        let slice = |part: &'_ Bytes| {
            let taken = part.len().min(left);
            left -= taken;
            taken
        };
        let lengths = self.queue.iter().take(IOV_MAX).map(slice).take_while(|taken| *taken > 0);
        let slices: Vec<IoSlice<'_>> =
            lengths.zip(&self.queue).map(|(taken, part)| IoSlice::new(&part[..taken])).collect();
        SockRef::from(self.shared.socket.get()).send_vectored_with_flags(&slices, libc::MSG_NOSIGNAL)
    }

    fn consume(&mut self, mut byte_count: usize) {
        let moved = &self.shared.moved;
        moved.sent.set(moved.sent.get().wrapping_add(byte_count as u64));
        self.queued_bytes -= byte_count;
        moved.unsent.set(self.queued_bytes);
        while byte_count > 0 {
            let front = self.queue.front_mut().expect("the kernel sends no more than was queued");
            if front.len() > byte_count {
                front.advance(byte_count);
                return;
            }
            byte_count -= front.len();
            self.queue.pop_front();
        }
    }

    /// Closes the connection in both directions. A waiting reader or writer wakes up.
    pub fn shutdown(&self) {
        self.shared.shutdown();
    }
}
