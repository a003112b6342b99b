//! Listening sockets, one per core on one address, and accepted connections on their way to a core.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::rt::Watched;

/// Connections that the kernel completes before they are accepted; more are dropped by it, and the client tries again.
const BACKLOG: i32 = 1024;

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("address {addr} is in use by another program; choose another address or stop that program")]
    InUse { addr: SocketAddr },
    #[error("cannot listen on {addr}: {source}")]
    Other { addr: SocketAddr, source: io::Error },
}

/// A bound and listening socket that has not gone to its core yet.
#[derive(Debug)]
pub struct Bound {
    socket: TcpListener,
    addr: SocketAddr,
}

impl Bound {
    /// The address with the port that was given if none was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Binds `count` sockets to one address, between which the kernel spreads connections (SO_REUSEPORT).
///
/// The first attempt is made without SO_REUSEPORT: with it, a second broker of the same user would silently share the
/// port. Port 0 picks a free port, the same for all.
pub fn bind(addr: SocketAddr, count: usize) -> Result<Vec<Bound>, BindError> {
    let failed = |addr| {
        move |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { addr },
            _ => BindError::Other { addr, source },
        }
    };
    let probe = socket(addr, false).map_err(failed(addr))?;
    let addr = probe.local_addr().ok().and_then(|a| a.as_socket()).unwrap_or(addr);
    drop(probe);
    (0..count)
        .map(|_| {
            let socket = socket(addr, true).and_then(|s| s.listen(BACKLOG).map(|()| s)).map_err(failed(addr))?;
            Ok(Bound { socket: socket.into(), addr })
        })
        .collect()
}

fn socket(addr: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Connections of an earlier run may linger in TIME_WAIT; they don't stand in the way.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// A listening socket on its core.
#[derive(Debug)]
pub struct Listener {
    socket: Watched<TcpListener>,
    addr: SocketAddr,
}

impl Listener {
    /// Must be called on the executor that will accept.
    pub fn new(bound: Bound) -> io::Result<Listener> {
        Ok(Listener { socket: Watched::new(bound.socket)?, addr: bound.addr })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next connection. Errors that concern only the connection (it was reset before it was accepted) are passed over.
    /// Others, such as no more descriptors, are the caller's to wait out: the connection stays queued in the kernel.
    pub async fn accept(&self) -> io::Result<Accepted> {
        loop {
            match self.socket.get().accept() {
                Ok((stream, peer)) => match Accepted::new(stream, peer) {
                    Ok(accepted) => return Ok(accepted),
                    // The peer is gone already.
                    Err(_) => continue,
                },
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock => self.socket.readable().await?,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset => {}
                    _ => return Err(e),
                },
            }
        }
    }
}

/// A connected, non-blocking socket that belongs to no core yet: it can be sent to any.
#[derive(Debug)]
pub struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
}

impl Accepted {
    /// Sets what every connection has: no Nagle delay, keepalive, non-blocking.
    pub fn new(stream: TcpStream, peer: SocketAddr) -> io::Result<Accepted> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        // A client that vanished without a word is noticed after about two minutes, as in Kafka's deployments with tuned
        // kernels; the kernel's default would be two hours.
        let keepalive = TcpKeepalive::new()
            .with_time(std::time::Duration::from_secs(60))
            .with_interval(std::time::Duration::from_secs(10))
            .with_retries(6);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Accepted { stream, peer })
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }
}
