//! How both sides of a connection on the port for brokers prove that they know the cluster's secret, before either says
//! or takes anything else. Sans-IO: frames go in, frames to be sent come out. What a hello holds is opaque here.
//!
//! ```text
//!  caller                                   answerer
//!    │ Challenge: nonce                        │
//!    │────────────────────────────────────────►│
//!    │                        Challenge: nonce │
//!    │◄────────────────────────────────────────│
//!    │ Hello; Proof 1: nonces, hello           │   the answerer says nothing of itself before it has checked this
//!    │────────────────────────────────────────►│
//!    │         Hello; Proof 2: nonces, hellos  │
//!    │◄────────────────────────────────────────│
//!    │ Proof 3: nonces, hellos                 │   only with it, the caller has named the answerer too
//!    │────────────────────────────────────────►│
//! ```
//! A proof is an HMAC-SHA256 (RFC 2104) under the secret, which never travels. It covers which of the three it is, and
//! so who says it, both nonces, and the hellos as they were sent: they hold the role (broker or tool), node, peer and
//! cluster of each side. So no proof can be used on another connection, by the other side, or for another broker. What
//! is sent behind the proofs is not protected by them: only encryption of the connection could do that.
//!
//! Without a secret (`peer.allow.insecure=true`), a hello is answered by a hello, and that is all.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::peer::{Kind, Lane, PeerError, PeerFrame};

/// What a data directory's own secret is named.
pub const SECRET_FILE: &str = "cluster.secret";
/// Bytes of a secret at least: what is shorter could be guessed from one proof.
pub const SECRET_BYTES_MIN: usize = 32;
const SECRET_BYTES_MAX: usize = 4096;
const NONCE_BYTES: usize = 32;
const PROOF_BYTES: usize = 32;
/// Bytes of one frame before the proofs: a hello has a few hundred.
pub const HANDSHAKE_BYTES_MAX: usize = 4096;

/// What the brokers of a cluster, and its tools, know and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read the cluster's secret in {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write a secret into {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "the cluster's secret in {} has {bytes} bytes; it must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}, such as 64 random hex digits",
        path.display()
    )]
    Length { path: PathBuf, bytes: usize },
}

impl Secret {
    /// `bytes`: [`SECRET_BYTES_MIN`] or more.
    pub fn new(bytes: &[u8]) -> Option<Secret> {
        (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()).then(|| Secret(bytes.into()))
    }

    /// Reads a file. White space around the secret is no part of it.
    pub fn read(path: &Path) -> Result<Secret, SecretError> {
        let failed = |source| SecretError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = fs::File::open(path).map_err(failed)?;
        file.take(2 * SECRET_BYTES_MAX as u64).read_to_end(&mut bytes).map_err(failed)?;
        let secret = bytes.trim_ascii();
        Secret::new(secret).ok_or_else(|| SecretError::Length { path: path.to_owned(), bytes: secret.len() })
    }

    /// Reads a file, or makes one with a new secret that only its owner may read.
    pub fn read_or_make(path: &Path) -> Result<Secret, SecretError> {
        if !path.exists() {
            make(path).map_err(|source| SecretError::Write { path: path.to_owned(), source })?;
        }
        Secret::read(path)
    }

    fn proof(&self, which: &'static str, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("a key of any length is taken");
        for part in [b"millrace peer", which.as_bytes()].iter().chain(parts) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

/// Whether others than the owner and its group may read a file.
pub fn is_readable_by_all(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

/// The file has its name only once it is whole, and durable.
fn make(path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let new = path.with_extension("secret.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    let digits: String = random()?.iter().map(|byte| format!("{byte:02x}")).collect();
    file.write_all(format!("{digits}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    fs::File::open(dir)?.sync_all()
}

fn random() -> io::Result<[u8; NONCE_BYTES]> {
    let mut bytes = [0; NONCE_BYTES];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A number that was never used before: 244 bits of the system's generator.
pub fn nonce() -> Nonce {
    nonce_of([uuid::Uuid::new_v4(), uuid::Uuid::new_v4()])
}

/// As [`nonce`], for those who draw their random numbers themselves.
pub fn nonce_of([one, other]: [uuid::Uuid; 2]) -> Nonce {
    let mut nonce = [0; NONCE_BYTES];
    nonce[..16].copy_from_slice(one.as_bytes());
    nonce[16..].copy_from_slice(other.as_bytes());
    nonce
}

pub type Nonce = [u8; NONCE_BYTES];

#[derive(Debug)]
enum State {
    /// A caller's first frame has not left, or an answerer has heard nothing.
    New,
    /// The other's nonce is on its way here.
    Challenged,
    /// Its hello is.
    Greeted {
        nonce: Bytes,
    },
    /// The proof to a hello is.
    Heard {
        nonce: Bytes,
        theirs: Bytes,
    },
    /// The caller's last proof is.
    Answered {
        nonce: Bytes,
        theirs: Bytes,
    },
    Over,
}

/// One side of a connection that begins.
#[derive(Debug)]
pub struct Handshake {
    secret: Option<Secret>,
    is_caller: bool,
    lane: Lane,
    own: Bytes,
    nonce: Nonce,
    state: State,
}

/// What follows from a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// More must come, once these have left.
    Go(Vec<PeerFrame>),
    /// The other side is who it says that it is, once these have left.
    Met { send: Vec<PeerFrame>, theirs: Bytes },
}

const CALLER: &str = "caller";
const ANSWERER: &str = "answerer";
const CONFIRMED: &str = "caller confirms";

impl Handshake {
    /// The side that connects; `hello` is what it says of itself.
    pub fn caller(secret: Option<Secret>, lane: Lane, hello: Bytes, nonce: Nonce) -> Handshake {
        Handshake { secret, is_caller: true, lane, own: hello, nonce, state: State::New }
    }

    pub fn answerer(secret: Option<Secret>, hello: Bytes, nonce: Nonce) -> Handshake {
        Handshake { secret, is_caller: false, lane: Lane::Control, own: hello, nonce, state: State::New }
    }

    /// A caller's first frame.
    pub fn begin(&mut self) -> PeerFrame {
        assert!(self.is_caller, "the caller speaks first");
        self.state = State::Challenged;
        match self.secret {
            Some(_) => self.challenge(),
            None => self.frame(Kind::Hello, self.own.clone()),
        }
    }

    fn frame(&self, kind: Kind, bytes: Bytes) -> PeerFrame {
        PeerFrame::new(kind, self.lane, bytes)
    }

    fn challenge(&self) -> PeerFrame {
        self.frame(Kind::Challenge, Bytes::copy_from_slice(&self.nonce))
    }

    /// Takes the other side's next frame.
    pub fn take(&mut self, frame: PeerFrame) -> Result<Step, PeerError> {
        let PeerFrame { kind, lane, bytes } = frame;
        let state = std::mem::replace(&mut self.state, State::Over);
        if !self.is_caller {
            self.lane = lane;
        }
        let Some(secret) = self.secret.clone() else { return self.take_plain(kind, bytes, &state) };
        match (state, kind, self.is_caller) {
            (State::New, Kind::Hello, false) => {
                // It has no secret: it is told that there is one.
                Err(PeerError::NoProof)
            }
            (State::Challenged, Kind::Hello, true) => Err(PeerError::OtherHasNoSecret),
            (State::New | State::Challenged, Kind::Challenge, is_caller) if bytes.len() == NONCE_BYTES => {
                self.state = State::Greeted { nonce: bytes.clone() };
                if !is_caller {
                    return Ok(Step::Go(vec![self.challenge()]));
                }
                let proof = secret.proof(CALLER, &[&self.nonce, &bytes, &self.own]);
                Ok(Step::Go(vec![self.frame(Kind::Hello, self.own.clone()), self.frame(Kind::Proof, finished(proof))]))
            }
            (State::Greeted { nonce }, Kind::Hello, _) => {
                self.state = State::Heard { nonce, theirs: bytes };
                Ok(Step::Go(Vec::new()))
            }
            (State::Heard { nonce, theirs }, Kind::Proof, false) => {
                verify(secret.proof(CALLER, &[&nonce, &self.nonce, &theirs]), &bytes)?;
                let proof = secret.proof(ANSWERER, &[&nonce, &self.nonce, &theirs, &self.own]);
                self.state = State::Answered { nonce, theirs };
                Ok(Step::Go(vec![self.frame(Kind::Hello, self.own.clone()), self.frame(Kind::Proof, finished(proof))]))
            }
            (State::Heard { nonce, theirs }, Kind::Proof, true) => {
                verify(secret.proof(ANSWERER, &[&self.nonce, &nonce, &self.own, &theirs]), &bytes)?;
                let proof = secret.proof(CONFIRMED, &[&self.nonce, &nonce, &self.own, &theirs]);
                Ok(Step::Met { send: vec![self.frame(Kind::Proof, finished(proof))], theirs })
            }
            (State::Answered { nonce, theirs }, Kind::Proof, false) => {
                verify(secret.proof(CONFIRMED, &[&nonce, &self.nonce, &theirs, &self.own]), &bytes)?;
                Ok(Step::Met { send: Vec::new(), theirs })
            }
            _ => Err(PeerError::NoBroker),
        }
    }

    fn take_plain(&mut self, kind: Kind, bytes: Bytes, state: &State) -> Result<Step, PeerError> {
        match (state, kind, self.is_caller) {
            (State::New, Kind::Hello, false) => {
                Ok(Step::Met { send: vec![self.frame(Kind::Hello, self.own.clone())], theirs: bytes })
            }
            (State::Challenged, Kind::Hello, true) => Ok(Step::Met { send: Vec::new(), theirs: bytes }),
            (State::Challenged, Kind::Challenge, true) => Err(PeerError::SecretWanted),
            // It has a secret, and hears that there is none here.
            (State::New, Kind::Challenge, false) => Err(PeerError::NoSecretHere),
            _ => Err(PeerError::NoBroker),
        }
    }

    /// What the other side is sent last, if [`Handshake::take`] has refused it: so that it can say what to set.
    pub fn parting(&self, error: &PeerError) -> Option<PeerFrame> {
        match error {
            PeerError::NoProof => Some(self.challenge()),
            // An empty hello tells nothing else.
            PeerError::NoSecretHere => Some(self.frame(Kind::Hello, Bytes::new())),
            _ => None,
        }
    }

    /// What it means that the other side has closed the connection now.
    pub fn closed(&self) -> PeerError {
        match (&self.state, &self.secret, self.is_caller) {
            (State::Greeted { .. }, Some(_), true) => PeerError::OtherSecret,
            (_, None, true) => PeerError::SecretWanted,
            _ => PeerError::Closed,
        }
    }
}

fn finished(mac: Hmac<Sha256>) -> Bytes {
    Bytes::copy_from_slice(&mac.finalize().into_bytes())
}

/// In a time that does not depend on where the bytes differ.
fn verify(mac: Hmac<Sha256>, proof: &[u8]) -> Result<(), PeerError> {
    if proof.len() != PROOF_BYTES {
        return Err(PeerError::NoBroker);
    }
    mac.verify_slice(proof).map_err(|_| PeerError::OtherSecret)
}

#[cfg(test)]
mod tests;
