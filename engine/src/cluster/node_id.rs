//! Whether the node id of a new broker is free in the cluster that it is to join.
//! Lives on: the main thread, before the cores run; then core 0, until this broker has registered.
//!
//! A broker whose disk was replaced gets its node id back once the session of its former process has ended. A broker
//! that was given the node id of another by mistake must not disturb that one. So a broker without a cluster asks the
//! members before it joins, and waits. The metadata leader checks again when the broker registers. If the holder has
//! returned in between, the leader's answer goes to the holder, since brokers reach each other by node id. So a broker
//! that hears nothing of its registration asks the members again.

use super::calling::{CallError, call};
use crate::config::{Config, value::Seeds};
use consensus::{
    metadata::{Broker, BrokerStatus, Query, QueryAnswer, Rejection},
    wire::{self, Consistency, Hello, ToolAnswer, ToolAsk, ToolRequest},
};
use net::peer::{Kind, Lane, PeerError, PeerFrame, auth::Secret};
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// The registered broker with the node id, if there is one. `Err`: the member cannot tell.
pub(super) type Holder = Result<Option<Arc<Broker>>, HolderError>;

/// Why a member of the cluster cannot tell which broker has a node id.
#[derive(Debug, thiserror::Error)]
#[error("{address} ({why})")]
pub(super) struct HolderError {
    address: String,
    why: AskError,
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Wire(#[from] wire::WireError),
    /// The member's own words.
    #[error("{0}")]
    Failed(String),
    #[error("an unexpected answer: {0:?}")]
    Unexpected(Box<ToolAnswer>),
}

#[derive(Debug)]
pub(super) enum Claim {
    Free,
    /// Not yet, for this reason.
    Wait(Wait),
    /// Another broker keeps the node id.
    Taken(Rejection),
}

/// Why a new broker does not have its node id yet.
#[derive(Debug)]
pub(super) enum Wait {
    /// No member can tell whether the node id is free.
    Unknown { node: i32, members: Vec<HolderError> },
    /// The broker at this address has it.
    Held { node: i32, address: String, patience: Duration },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { node, members } => {
                let why: Vec<String> = members.iter().map(ToString::to_string).collect();
                let why = why.join(", ");
                write!(f, "waiting for a member of the cluster that can tell whether node id {node} is free: {why}")
            }
            Self::Held { node, address, patience } => write!(
                f,
                "waiting for the session of broker {node} at {address} to end: it has the node id of this broker; if \
                 it stays alive, this broker gives up after {} s",
                patience.as_secs()
            ),
        }
    }
}

/// After this many sessions in which another broker has this one's node id, this one gives up. One ends while a
/// broker whose disk was replaced returns, and another if the metadata's leader changes meanwhile.
const CLAIM_SESSIONS: u32 = 2;

/// The brokers to ask once the cores run: the seeds, except this broker.
#[derive(Clone, Default)]
pub struct Members {
    node: i32,
    secret: Option<Secret>,
    addresses: Vec<String>,
}

impl Members {
    pub fn of(config: &Config, secret: Option<Secret>) -> Self {
        let node = config.node_id;
        let others = config.seeds.iter().flat_map(Seeds::iter).filter(|(other, _)| *other != node);
        Self { node, secret, addresses: others.map(|(_, address)| address.to_string()).collect() }
    }

    /// Asks beside the core until one can tell.
    pub(super) async fn holders(&self) -> Vec<Holder> {
        if self.addresses.is_empty() {
            return Vec::new();
        }
        let members = self.clone();
        runtime::blocking(move || {
            let mut holders = Vec::new();
            for address in &members.addresses {
                holders.push(ask_holder(members.node, members.secret.clone(), address));
                if holders.last().is_some_and(Result::is_ok) {
                    break;
                }
            }
            holders
        })
        .await
    }
}

/// A new broker's claim to its node id.
pub(super) struct NodeId {
    node: i32,
    peer: u64,
    /// How long the holder may stay alive.
    patience: Duration,
    /// When the holder was first found alive.
    taken_since: Option<Instant>,
}

impl NodeId {
    /// `session`: how long a silent broker counts as alive.
    pub(super) fn new(node: i32, peer: u64, session: Duration) -> Self {
        Self { node, peer, patience: CLAIM_SESSIONS * session, taken_since: None }
    }

    /// Whether another broker was alive with the node id when a member was last able to tell.
    pub(super) fn is_taken(&self) -> bool {
        self.taken_since.is_some()
    }

    /// Decides by the first member that can tell. The others are not asked.
    pub(super) fn claim(&mut self, now: Instant, holders: impl Iterator<Item = Holder>) -> Claim {
        let mut members = Vec::new();
        for holder in holders {
            match holder {
                Ok(Some(holder)) if holder.peer != self.peer && holder.status == BrokerStatus::Alive => {
                    return self.wait_for(now, &holder);
                }
                Ok(_) => {
                    self.taken_since = None;
                    return Claim::Free;
                }
                Err(error) => members.push(error),
            }
        }
        Claim::Wait(Wait::Unknown { node: self.node, members })
    }

    fn wait_for(&mut self, now: Instant, holder: &Broker) -> Claim {
        let (node, patience) = (self.node, self.patience);
        let address = format!("{}:{}", holder.kafka.host, holder.kafka.port);
        if now < *self.taken_since.get_or_insert(now) + patience {
            return Claim::Wait(Wait::Held { node, address, patience });
        }
        Claim::Taken(Rejection::NodeIdTaken { node, incarnation: holder.incarnation, address: address.into() })
    }
}

/// Asks a member of the cluster which broker is registered with this node id.
pub(super) fn ask_holder(node: i32, secret: Option<Secret>, address: &str) -> Holder {
    ask(node, secret, address).map_err(|why| HolderError { address: address.to_owned(), why })
}

fn ask(node: i32, secret: Option<Secret>, address: &str) -> Result<Option<Arc<Broker>>, AskError> {
    let (mut peer, _) = call(&Hello::of_tool(env!("CARGO_PKG_VERSION")), secret, address)?;
    // An older answer could name a broker that is long gone, or miss one that has just come.
    let ask = ToolAsk::Read { consistency: Consistency::Linearizable, queries: vec![Query::GetBroker { node }] };
    let request = wire::encode_request(&ToolRequest { id: 1, ask });
    peer.write(&PeerFrame::new(Kind::Request, Lane::Control, request))?;
    match wire::decode_response(&peer.read()?.bytes)?.answer {
        ToolAnswer::Answers(answers) => match &answers[..] {
            [QueryAnswer::NotFound] => Ok(None),
            [QueryAnswer::Brokers(found)] => Ok(found.first().cloned()),
            _ => Err(AskError::Unexpected(Box::new(ToolAnswer::Answers(answers)))),
        },
        ToolAnswer::Failed { message, .. } => Err(AskError::Failed(message)),
        other => Err(AskError::Unexpected(Box::new(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consensus::{metadata::HostPort, plane::peer_id};

    const PATIENCE: Duration = Duration::from_secs(6);

    fn registered(peer: u64, status: BrokerStatus) -> Holder {
        let address = HostPort { host: "host".to_owned(), port: 9092 };
        Ok(Some(Arc::new(Broker {
            node: 2,
            peer,
            incarnation: 1,
            kafka: address.clone(),
            peer_addr: address,
            cores: 1,
            rack: None,
            version: String::new(),
            status,
            largest_entry: 0,
            replicas_max: 0,
            partitions_max: 0,
        })))
    }

    #[test]
    fn a_node_id_is_free_unless_another_disk_is_alive_with_it() {
        use BrokerStatus::{Alive, Fenced};
        let (ours, theirs) = (peer_id(2, 8), peer_id(2, 7));
        let mut claim = NodeId { node: 2, peer: ours, patience: PATIENCE, taken_since: None };
        let now = Instant::now();
        let unknown = || Err(HolderError { address: "a:1".to_owned(), why: AskError::Failed("why".to_owned()) });
        for free in [Ok(None), registered(theirs, Fenced), registered(ours, Alive)] {
            assert!(matches!(claim.claim(now, [unknown(), free].into_iter()), Claim::Free));
        }
        let Claim::Wait(why) = claim.claim(now, [unknown()].into_iter()) else { panic!("nobody can tell") };
        let why = why.to_string();
        assert!(why.ends_with("whether node id 2 is free: a:1 (why)"), "{why}");
        let mut taken = |after| claim.claim(now + after, [registered(theirs, Alive), Ok(None)].into_iter());
        for after in [Duration::ZERO, PATIENCE - Duration::from_millis(1)] {
            let Claim::Wait(why) = taken(after) else { panic!("it waits for the session's end") };
            let why = why.to_string();
            assert!(why.contains("broker 2 at host:9092"), "{why}");
        }
        let Claim::Taken(why) = taken(PATIENCE) else { panic!("the holder stays alive") };
        assert!(claim.is_taken());
        let why = why.to_string();
        for part in ["node id 2 belongs to the broker at host:9092", "choose another, or stop it first"] {
            assert!(why.contains(part), "{why}");
        }
    }
}
