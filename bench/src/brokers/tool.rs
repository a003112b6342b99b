//! A blocking connection of a tool to a broker's peer port.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use consensus::wire::{self, Hello, ToolAnswer, ToolAsk, ToolRequest};
use net::peer::auth::{Handshake, SECRET_FILE, Secret, nonce};
use net::peer::{BlockingPeer, Kind, Lane, PeerFrame};

use crate::error::AnyError;
use crate::options::workloads::SecretOptions;

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn handshake(secret: Option<Secret>) -> Handshake {
    let hello = wire::encode_hello(&Hello::of_tool(env!("CARGO_PKG_VERSION")));
    Handshake::caller(secret, Lane::Control, hello, nonce())
}

/// The cluster's secret that tools authenticate with. `None` if no option names one and the usual file is missing:
/// brokers may run without a secret.
pub fn secret(options: &SecretOptions) -> Result<Option<Secret>, AnyError> {
    if let Some(file) = &options.secret_file {
        return Ok(Some(Secret::read(file)?));
    }
    let file = options.data_dir.clone().unwrap_or_else(|| "./millrace-data".into()).join(SECRET_FILE);
    if options.data_dir.is_none() && !file.exists() {
        return Ok(None);
    }
    Ok(Some(Secret::read(&file)?))
}

pub fn request(id: u64, ask: ToolAsk) -> PeerFrame {
    let bytes = wire::encode_request(&ToolRequest { id, ask });
    PeerFrame::new(Kind::Request, Lane::Control, bytes)
}

/// The first address that a HOST:PORT resolves to.
pub fn resolve(address: &str) -> Result<SocketAddr, AnyError> {
    let found = address.to_socket_addrs().map_err(|e| format!("{address}: {e}"))?.next();
    found.ok_or_else(|| format!("{address}: the name has no address").into())
}

pub struct Tool {
    peer: BlockingPeer,
    next_id: u64,
}

impl Tool {
    pub fn connect(addr: SocketAddr, secret: Option<Secret>) -> Result<Tool, AnyError> {
        let mut peer = BlockingPeer::connect(addr, PATIENCE).map_err(|e| format!("cannot connect to {addr}: {e}"))?;
        let greet = || -> Result<(), AnyError> {
            wire::decode_hello(&peer.shake_hands(handshake(secret), true)?)?;
            Ok(())
        };
        let other = "is it a broker's address for other brokers and tools (--peer-addr)?";
        greet().map_err(|e| format!("{addr} does not answer a tool: {e}; {other}"))?;
        Ok(Tool { peer, next_id: 1 })
    }

    /// Sends one request and waits for its answer. A rejection by the broker is an `Err` too.
    pub fn ask(&mut self, ask: ToolAsk) -> Result<ToolAnswer, AnyError> {
        self.peer.write(&request(self.next_id, ask))?;
        self.next_id += 1;
        match wire::decode_response(&self.peer.read()?.bytes)?.answer {
            ToolAnswer::Failed { code, message } => Err(format!("{message} (error {code})").into()),
            answer => Ok(answer),
        }
    }
}
