//! A tool on the peer port: raw metadata commands and reads, each with an explicit strength.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use consensus::metadata::{Command, Query, QueryAnswer};
use consensus::plane::{Accepted, Acks, Quorum};
use consensus::wire::{self, Consistency, Hello, MeshTimes, ToolAnswer, ToolAsk, ToolRequest};
use net::peer::auth::{Handshake, Secret, nonce};
use net::peer::{BlockingPeer, Kind, Lane, PeerFrame};

use super::broker::Broker;

/// One connection, which waits for each answer.
pub struct Tool {
    peer: BlockingPeer,
    next_id: u64,
}

/// Why there is no answer, in words.
pub type Failure = String;

impl Tool {
    /// Connects. Each answer may take `patience`.
    pub fn connect(broker: &Broker, patience: Duration) -> Result<Tool, Failure> {
        Tool::connect_to(broker.peer(), Some(broker.secret()), patience)
    }

    pub fn connect_to(addr: SocketAddr, secret: Option<Secret>, patience: Duration) -> Result<Tool, Failure> {
        let hello = Hello::of_tool(env!("CARGO_PKG_VERSION"));
        let mut peer = BlockingPeer::connect(addr, patience).map_err(|error| error.to_string())?;
        let handshake = Handshake::caller(secret, Lane::Control, wire::encode_hello(&hello), nonce());
        let answer = peer.shake_hands(handshake, true).map_err(|error| error.to_string())?;
        wire::decode_hello(&answer).map_err(|error| error.to_string())?;
        Ok(Tool { peer, next_id: 1 })
    }

    fn ask(&mut self, ask: ToolAsk) -> Result<ToolAnswer, Failure> {
        let request = wire::encode_request(&ToolRequest { id: self.next_id, ask });
        self.next_id += 1;
        let frame = PeerFrame::new(Kind::Request, Lane::Control, request);
        self.peer.write(&frame).map_err(|error| error.to_string())?;
        let answer = self.peer.read().map_err(|error| error.to_string())?;
        match wire::decode_response(&answer.bytes).map_err(|error| error.to_string())?.answer {
            ToolAnswer::Failed { code, message } => Err(format!("{message} (error {code})")),
            answer => Ok(answer),
        }
    }

    /// Sends one command. `Ok`: the broker acknowledged it with that strength and did not reject it.
    pub fn write(&mut self, acks: Acks, command: Command) -> Result<(), Failure> {
        match self.ask(ToolAsk::Write { acks: Some(acks), commands: vec![command] })? {
            ToolAnswer::Written(written) => written.results.into_iter().try_for_each(|result| match result {
                Ok(Ok(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            }),
            other => panic!("a write was answered {other:?}"),
        }
    }

    /// Sends several commands in one request. Returns the answer with all results.
    pub fn write_many(&mut self, acks: Acks, commands: Vec<Command>) -> Result<Accepted, Failure> {
        match self.ask(ToolAsk::Write { acks: Some(acks), commands })? {
            ToolAnswer::Written(written) => Ok(written),
            other => panic!("a write was answered {other:?}"),
        }
    }

    pub fn read(&mut self, consistency: Consistency, query: Query) -> Result<QueryAnswer, Failure> {
        match self.ask(ToolAsk::Read { consistency, queries: vec![query] })? {
            ToolAnswer::Answers(mut answers) => Ok(answers.remove(0)),
            other => panic!("a read was answered {other:?}"),
        }
    }

    pub fn describe(&mut self) -> Result<Quorum, Failure> {
        match self.ask(ToolAsk::Describe)? {
            ToolAnswer::Quorum(quorum) => Ok(quorum),
            other => panic!("a question was answered {other:?}"),
        }
    }

    /// Probes round trips between cores. Returns the core from which they went, and their durations.
    pub fn probe_mesh(
        &mut self,
        to: Option<u16>,
        rounds: u32,
        in_flight: u16,
    ) -> Result<(u16, Vec<MeshTimes>), Failure> {
        match self.ask(ToolAsk::ProbeMesh { to, rounds, in_flight })? {
            ToolAnswer::MeshProbed { from, times } => Ok((from, times)),
            other => panic!("a probe was answered {other:?}"),
        }
    }
}

/// A command that creates a topic with one partition on one broker.
pub fn create_topic(name: &str, node: i32) -> Command {
    Command::CreateTopic {
        name: name.into(),
        id: net::Uuid::new_v4(),
        first_group: 0,
        replicas: vec![vec![node]],
        configs: BTreeMap::new(),
        created_ms: 1_700_000_000_000,
        peers: Vec::new(),
    }
}
