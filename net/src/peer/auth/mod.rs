//! The handshake on the port for brokers. Both sides prove that they know the cluster's secret before either of them
//! says or accepts anything else. Sans-IO: frames go in, and frames to send come out. The contents of a hello are
//! opaque here.
//!
//! ```text
//!  caller                                   answerer
//!    │ Challenge: nonce                        │
//!    │────────────────────────────────────────►│
//!    │                        Challenge: nonce │
//!    │◄────────────────────────────────────────│
//!    │ Hello; Proof 1: nonces, hello           │   the answerer reveals nothing of itself before it has checked this
//!    │────────────────────────────────────────►│
//!    │         Hello; Proof 2: nonces, hellos  │
//!    │◄────────────────────────────────────────│
//!    │ Proof 3: nonces, hellos                 │   only this proof binds the caller to the answerer's hello
//!    │────────────────────────────────────────►│
//! ```
//! A proof is an HMAC-SHA256 (RFC 2104) keyed with the secret, which is never sent. It covers:
//! - which of the three proofs it is, and so which side sends it;
//! - both nonces;
//! - the hellos as they were sent. They hold each side's role (broker or tool), node, peer and cluster.
//!
//! So a proof can't be reused on another connection, by the other side, or for another broker. The proofs do not
//! protect the data sent after them. Only encryption of the connection could do that.
//!
//! Without a secret (`peer.allow.insecure=true`) the handshake is only a hello in each direction.

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

/// The name of the file in a data directory that holds the secret.
pub const SECRET_FILE: &str = "cluster.secret";
/// The minimum bytes of a secret. A shorter one could be guessed from a single proof.
pub const SECRET_BYTES_MIN: usize = 32;
const SECRET_BYTES_MAX: usize = 4096;
const NONCE_BYTES: usize = 32;
const PROOF_BYTES: usize = 32;
/// The maximum bytes of one frame during the handshake. A hello takes a few hundred.
pub const HANDSHAKE_BYTES_MAX: usize = 4096;

/// The secret that only the brokers of a cluster and its tools know.
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
    #[error("cannot write the secret to {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "the cluster's secret in {} has {bytes} bytes; it must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}, such as 64 random hex digits",
        path.display()
    )]
    Length { path: PathBuf, bytes: usize },
}

impl Secret {
    /// `bytes`: at least [`SECRET_BYTES_MIN`], at most 4096. Otherwise `None`.
    pub fn new(bytes: &[u8]) -> Option<Secret> {
        (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()).then(|| Secret(bytes.into()))
    }

    /// Reads a file. White space around the secret is ignored.
    pub fn read(path: &Path) -> Result<Secret, SecretError> {
        let failed = |source| SecretError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = fs::File::open(path).map_err(failed)?;
        file.take(2 * SECRET_BYTES_MAX as u64).read_to_end(&mut bytes).map_err(failed)?;
        let secret = bytes.trim_ascii();
        Secret::new(secret).ok_or_else(|| SecretError::Length { path: path.to_owned(), bytes: secret.len() })
    }

    /// Reads a file. If it does not exist, creates it with a new secret that only its owner may read.
    pub fn read_or_make(path: &Path) -> Result<Secret, SecretError> {
        if !path.exists() {
            make(path).map_err(|source| SecretError::Write { path: path.to_owned(), source })?;
        }
        Secret::read(path)
    }

    fn proof(&self, which: &'static str, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC accepts a key of any length");
        for part in [b"millrace peer", which.as_bytes()].iter().chain(parts) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

/// Whether users other than the file's owner and group may read it.
pub fn is_readable_by_all(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

/// Creates the file. It gets its name only once it is complete and durable.
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

/// A number that was never used before: 244 random bits from the operating system.
pub fn nonce() -> Nonce {
    nonce_of([uuid::Uuid::new_v4(), uuid::Uuid::new_v4()])
}

/// Like [`nonce`], for callers that draw the random numbers themselves.
pub fn nonce_of([one, other]: [uuid::Uuid; 2]) -> Nonce {
    let mut nonce = [0; NONCE_BYTES];
    nonce[..16].copy_from_slice(one.as_bytes());
    nonce[16..].copy_from_slice(other.as_bytes());
    nonce
}

pub type Nonce = [u8; NONCE_BYTES];

#[derive(Debug)]
enum State {
    /// The caller has not sent its first frame, or the answerer has received nothing.
    New,
    /// Waits for the other side's nonce, or for its hello if there is no secret.
    Challenged,
    /// Waits for its hello.
    Greeted {
        nonce: Bytes,
    },
    /// Waits for the proof of that hello.
    Heard {
        nonce: Bytes,
        theirs: Bytes,
    },
    /// Waits for the caller's last proof.
    Answered {
        nonce: Bytes,
        theirs: Bytes,
    },
    Over,
}

/// One side of the handshake.
#[derive(Debug)]
pub struct Handshake {
    secret: Option<Secret>,
    is_caller: bool,
    lane: Lane,
    own: Bytes,
    nonce: Nonce,
    state: State,
}

/// The action that follows a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these frames, then wait for the next one.
    Go(Vec<PeerFrame>),
    /// The handshake is complete once these frames have been sent. `theirs` is the other side's hello. It is proved
    /// if there is a secret.
    Met { send: Vec<PeerFrame>, theirs: Bytes },
}

const CALLER: &str = "caller";
const ANSWERER: &str = "answerer";
const CONFIRMED: &str = "caller confirms";

impl Handshake {
    /// The side that connects. `hello` is what it says about itself.
    pub fn caller(secret: Option<Secret>, lane: Lane, hello: Bytes, nonce: Nonce) -> Handshake {
        Handshake { secret, is_caller: true, lane, own: hello, nonce, state: State::New }
    }

    pub fn answerer(secret: Option<Secret>, hello: Bytes, nonce: Nonce) -> Handshake {
        Handshake { secret, is_caller: false, lane: Lane::Control, own: hello, nonce, state: State::New }
    }

    /// The caller's first frame.
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

    /// Handles the other side's next frame.
    pub fn take(&mut self, frame: PeerFrame) -> Result<Step, PeerError> {
        let PeerFrame { kind, lane, bytes } = frame;
        let state = std::mem::replace(&mut self.state, State::Over);
        if !self.is_caller {
            self.lane = lane;
        }
        let Some(secret) = self.secret.clone() else { return self.take_plain(kind, bytes, &state) };
        match (state, kind, self.is_caller) {
            (State::New, Kind::Hello, false) => {
                // The caller has no secret. [`Handshake::parting`] tells it that one is needed.
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
            // The caller has a secret. [`Handshake::parting`] tells it that this side has none.
            (State::New, Kind::Challenge, false) => Err(PeerError::NoSecretHere),
            _ => Err(PeerError::NoBroker),
        }
    }

    /// The last frame for the other side after [`Handshake::take`] has returned this error. It lets the other side
    /// tell its operator what to configure.
    pub fn parting(&self, error: &PeerError) -> Option<PeerFrame> {
        match error {
            PeerError::NoProof => Some(self.challenge()),
            // An empty hello reveals nothing else.
            PeerError::NoSecretHere => Some(self.frame(Kind::Hello, Bytes::new())),
            _ => None,
        }
    }

    /// The most likely reason why the other side has closed the connection now.
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

/// Takes the same time wherever the bytes differ.
fn verify(mac: Hmac<Sha256>, proof: &[u8]) -> Result<(), PeerError> {
    if proof.len() != PROOF_BYTES {
        return Err(PeerError::NoBroker);
    }
    mac.verify_slice(proof).map_err(|_| PeerError::OtherSecret)
}

#[cfg(test)]
mod tests;
