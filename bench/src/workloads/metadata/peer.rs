//! The raw half of workload `metadata`: commands and queries over the peer port.
//!
//! With a rate, the latency counts from a request's intended time. Without a rate, it counts from when the request is
//! handed to the connection.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use consensus::metadata::{Command, Query, QueryAnswer};
use consensus::plane::Acks;
use consensus::wire::{self, Consistency, ToolAnswer, ToolAsk, ToolResponse};
use net::peer::auth::Secret;
use net::peer::{self, FRAME_BYTES_MAX};
use net::transport::conn::{self, FrameReader, FrameWriter};
use uuid::Uuid;

use crate::brokers::tool::{self, PATIENCE, Tool, request};
use crate::clock;
use crate::error::AnyError;
use crate::figures::stats::{Live, Tally, histogram};
use crate::load::error::LoadError;
use crate::load::ops::Pace;
use crate::load::window::Window;
use crate::options::workloads::{Freshness, MetadataAcks, MetadataOptions, Operation};
use crate::rt::{self, Signal};

const PUBLISH_NS: u64 = 250_000_000;
/// Commands per request during set-up.
const SETUP_COMMANDS: usize = 256;

/// A topic's name and id.
pub type Named = (Arc<str>, Uuid);

/// Makes sure that the topics exist, and learns their ids.
pub fn prepare(options: &MetadataOptions, addr: SocketAddr) -> Result<Vec<Named>, AnyError> {
    let mut tool = Tool::connect(addr, tool::secret(&options.secret)?)?;
    let ToolAnswer::Answers(brokers) =
        tool.ask(ToolAsk::Read { consistency: Consistency::Linearizable, queries: vec![Query::ListBrokers] })?
    else {
        return Err("a read got another kind of answer".into());
    };
    let Some(QueryAnswer::Brokers(brokers)) = brokers.first() else { return Err("a read got no brokers".into()) };
    let nodes: Vec<i32> = brokers.iter().map(|broker| broker.node).collect();
    let names: Vec<Arc<str>> = (0..options.topics).map(|n| format!("bench-metadata-{n}").into()).collect();
    for (at, names) in names.chunks(SETUP_COMMANDS).enumerate() {
        let create = |(n, name): (usize, &Arc<str>)| Command::CreateTopic {
            name: name.clone(),
            id: Uuid::new_v4(),
            first_group: 0,
            replicas: vec![vec![nodes[(at + n) % nodes.len()]]],
            configs: BTreeMap::new(),
            created_ms: clock::unix_ms(),
            peers: Vec::new(),
        };
        // The command for a topic that already exists is rejected on its own and changes nothing.
        let commands = names.iter().enumerate().map(create).collect();
        tool.ask(ToolAsk::Write { acks: Some(Acks::Quorum), commands })?;
    }
    let queries = names.iter().map(|name| Query::GetTopic { name: name.to_string() }).collect();
    let ToolAnswer::Answers(found) = tool.ask(ToolAsk::Read { consistency: Consistency::Linearizable, queries })?
    else {
        return Err("a read got another kind of answer".into());
    };
    let topics = found.into_iter().filter_map(|answer| match answer {
        QueryAnswer::Topic(topic) => Some((topic.name.clone(), topic.id)),
        _ => None,
    });
    let topics: Vec<_> = topics.collect();
    if topics.len() < options.topics {
        return Err(format!("only {} of {} topics exist after their creation", topics.len(), options.topics).into());
    }
    Ok(topics)
}

pub type Asks = Arc<dyn Fn(u64) -> ToolAsk + Send + Sync>;

#[derive(Clone)]
pub struct Plan {
    /// Returns the request with a given number.
    pub asks: Asks,
    pub pace: Pace,
    pub secret: Option<Secret>,
}

pub fn asks(options: &MetadataOptions, topics: Arc<[Named]>) -> Asks {
    let acks = match options.acks {
        MetadataAcks::Configured => None,
        MetadataAcks::Quorum => Some(Acks::Quorum),
        MetadataAcks::Leader => Some(Acks::Leader),
    };
    let consistency = match options.consistency {
        Freshness::Leased => Consistency::Leased,
        Freshness::Linearizable => Consistency::Linearizable,
    };
    let operation = options.operation;
    Arc::new(move |n| {
        let (name, id) = &topics[(n % topics.len() as u64) as usize];
        match operation {
            Operation::Read => ToolAsk::Read { consistency, queries: vec![Query::GetTopic { name: name.to_string() }] },
            _ => {
                // Retention between one and two weeks: the value changes with every write, but has no effect during
                // the run.
                let retention_ms = 604_800_000 + n % 604_800_000;
                let changes = vec![("retention.ms".to_owned(), Some(retention_ms.to_string()))];
                let command = Command::UpdateTopicConfig { name: name.clone(), id: *id, changes };
                ToolAsk::Write { acks, commands: vec![command] }
            }
        }
    })
}

/// State that the two halves of a connection share.
#[derive(Default)]
struct State {
    /// Intended time of each unanswered request, by its number.
    open: RefCell<HashMap<u64, u64>>,
    room: Signal,
    broken: RefCell<Option<LoadError>>,
    ended: Cell<bool>,
}

pub async fn lane_work(plan: Plan, at: usize, addr: SocketAddr, live: Arc<Live>) -> Tally {
    let (reader, mut writer) = match connect(addr, plan.secret.clone()).await {
        Ok(halves) => halves,
        Err(why) => {
            live.errors.fetch_add(1, Ordering::Relaxed);
            let mut tally = Tally::default();
            tally.fail(1, || why.to_string());
            return tally;
        }
    };
    let state = Rc::new(State::default());
    let receiving = rt::spawn(receive(reader, state.clone(), plan.pace.window, live));
    let mut tally = send(&mut writer, &state, &plan, at).await;
    state.ended.set(true);
    // Outstanding requests still wait for their answers, or for the end of the connection.
    if state.open.borrow().is_empty() {
        writer.shutdown();
    }
    tally.add(rt::timeout(PATIENCE, receiving.join()).await.unwrap_or_default());
    let left = state.open.borrow().len() as u64;
    tally.fail(left, || state.broken.borrow().as_ref().map_or_else(|| "no answer".to_owned(), LoadError::to_string));
    tally
}

/// Sends requests by the schedule until it is over or the connection ends. Counts how late they left, and those that
/// were not sent.
async fn send(writer: &mut FrameWriter, state: &State, plan: &Plan, at: usize) -> Tally {
    let mut tally = Tally::default();
    let Pace { rate, in_flight, window, .. } = plan.pace;
    let mut schedule = plan.pace.schedule(at);
    // Each connection begins at a different topic.
    let mut n = at as u64 * 1_000_003;
    let mut held_until_ns = window.start_ns;
    while state.broken.borrow().is_none() {
        let now_ns = clock::now_ns();
        while state.open.borrow().len() < in_flight
            && let Some(intended_ns) = schedule.take(now_ns)
        {
            if rate > 0 && intended_ns >= window.measured_from_ns {
                let late_ns = now_ns.saturating_sub(intended_ns.max(held_until_ns)).max(1);
                tally.client_late_ns.saturating_record(late_ns);
            }
            state.open.borrow_mut().insert(n, intended_ns);
            peer::push(writer, request(n, (plan.asks)(n)));
            n += 1;
        }
        if let Err(e) = writer.flush().await {
            state.broken.borrow_mut().get_or_insert(e.into());
            break;
        }
        let Some(next_ns) = schedule.next_ns(clock::now_ns()) else { break };
        let full = state.open.borrow().len() >= in_flight;
        let until_ns = if full { window.end_ns } else { next_ns };
        let wait_ns = until_ns.saturating_sub(clock::now_ns());
        if full || wait_ns > 0 {
            state.room.wait(Some(Duration::from_nanos(wait_ns))).await;
        } else {
            rt::yield_now().await;
        }
        if full {
            held_until_ns = clock::now_ns();
        }
    }
    if state.broken.borrow().is_some() {
        let unsent = schedule.total().map_or(0, |total| total - schedule.taken());
        tally.fail(unsent, || "not sent".to_owned());
    }
    tally
}

async fn connect(addr: SocketAddr, secret: Option<Secret>) -> Result<(FrameReader, FrameWriter), LoadError> {
    let patience = PATIENCE;
    let connected = rt::timeout(patience, conn::connect(addr)).await;
    let stream = connected.ok_or(LoadError::ConnectTimeout { addr, patience })?;
    let (mut reader, mut writer) = peer::open(stream.map_err(|source| LoadError::Connect { addr, source })?)?;
    let shaking = peer::shake_hands(tool::handshake(secret), true, &mut reader, &mut writer);
    let there = rt::timeout(patience, shaking).await.ok_or(LoadError::HandshakeTimeout { addr, patience })?;
    wire::decode_hello(&there.map_err(|source| LoadError::Handshake { addr, source })?)?;
    peer::trust(&mut reader, FRAME_BYTES_MAX);
    Ok((reader, writer))
}

async fn receive(mut reader: FrameReader, state: Rc<State>, window: Window, live: Arc<Live>) -> Tally {
    let mut tally = Tally::default();
    let mut recent = histogram();
    let mut publish_at = clock::now_ns() + PUBLISH_NS;
    loop {
        if state.ended.get() && state.open.borrow().is_empty() {
            break;
        }
        let ToolResponse { id, answer } = match response(&mut reader).await {
            Ok(response) => response,
            Err(why) => {
                state.broken.borrow_mut().get_or_insert(why);
                break;
            }
        };
        let now_ns = clock::now_ns();
        let intended_ns = state.open.borrow_mut().remove(&id).unwrap_or(now_ns);
        state.room.give();
        let failure = failure(&answer);
        let latency_ns = now_ns.saturating_sub(intended_ns).max(1);
        match failure {
            None => {
                live.count(1, 0);
                recent.saturating_record(latency_ns);
                if intended_ns >= window.measured_from_ns {
                    tally.requests += 1;
                    tally.records += 1;
                    tally.latency_ns.saturating_record(latency_ns);
                    tally.span_ns = tally.span_ns.max(now_ns - window.measured_from_ns);
                }
            }
            Some(why) => {
                live.errors.fetch_add(1, Ordering::Relaxed);
                tally.fail(1, || why);
            }
        }
        if now_ns >= publish_at {
            live.publish(&mut recent);
            publish_at = now_ns + PUBLISH_NS;
        }
    }
    state.room.give();
    tally
}

/// The next response.
async fn response(reader: &mut FrameReader) -> Result<ToolResponse, LoadError> {
    let frame = peer::read(reader).await?.ok_or(LoadError::Closed)?;
    Ok(wire::decode_response(&frame.bytes)?)
}

/// Why an answer is a failure; `None` if it is a success.
fn failure(answer: &ToolAnswer) -> Option<String> {
    match answer {
        ToolAnswer::Written(written) => written.results.iter().find_map(|result| match result {
            Ok(Ok(_)) => None,
            Ok(Err(rejection)) => Some(rejection.to_string()),
            Err(late) => Some(late.to_string()),
        }),
        ToolAnswer::Answers(answers) => {
            answers.contains(&QueryAnswer::NotFound).then(|| "the topic was not found".to_owned())
        }
        ToolAnswer::Quorum(_) | ToolAnswer::MeshProbed { .. } => None,
        ToolAnswer::Failed { code, message } => Some(format!("{message} (error {code})")),
    }
}
