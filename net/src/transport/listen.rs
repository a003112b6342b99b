//! Listening sockets (one per core, all on one address), and accepted connections that have not reached their core
//! yet.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

use runtime::Watched;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// The maximum number of established connections that wait to be accepted. The kernel drops further ones, and their
/// clients retry.
const BACKLOG: i32 = 1024;

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("address {addr} is in use by another program; choose another address or stop that program")]
    InUse { addr: SocketAddr },
    #[error("cannot listen on {addr}: {source}")]
    Other { addr: SocketAddr, source: io::Error },
}

/// A listening socket that is not on its core yet.
#[derive(Debug)]
pub struct Bound {
    socket: TcpListener,
    addr: SocketAddr,
}

impl Bound {
    /// The address. If port 0 was requested, it has the port that the kernel picked.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Binds `count` sockets to one address. The kernel distributes connections between them (SO_REUSEPORT).
///
/// The first attempt is made without SO_REUSEPORT: with it, a second broker of the same user would silently share the
/// port. Port 0 picks a free port, the same for all sockets.
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
    // Connections of an earlier run may still be in TIME_WAIT. They must not block the address.
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

    /// The next connection. Errors of a single connection (for example, it was reset before it was accepted) are
    /// skipped. After other errors, such as too many open descriptors, the caller must wait and retry: the connection
    /// stays queued in the kernel.
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

/// A connected, non-blocking socket that belongs to no core yet: it can be sent to any core.
#[derive(Debug)]
pub struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
}

impl Accepted {
    /// Sets the options of every connection: no Nagle delay, keepalive, non-blocking.
    pub fn new(stream: TcpStream, peer: SocketAddr) -> io::Result<Accepted> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        // A client that vanishes silently is noticed after about two minutes, as in Kafka deployments with tuned
        // kernels. The kernel's default is two hours.
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
