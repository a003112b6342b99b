//! Produce: one message to each partition's owner and one back. It is answered when every batch is committed.
//!
//! acks=all waits for the commit, and acks=1 for the leader's disk. acks=0 gets no answer, so an error closes the
//! connection, as in Kafka. The producer then refreshes its metadata, instead of losing one record after the other.

use super::{timeout_of, weight};
use crate::{
    cluster::meta,
    connection::reply::{Pending, Reply},
    core::{
        Core, brokers,
        decoders::Decoder,
        messages::Append,
        owner::appending::{Item, Outcome},
    },
    long_work::Work,
    partition::{Acks, Appended},
};
use net::{
    StrBytes,
    codec::produce::{
        ProducePartition, ProducePartitionResponse, ProduceRequest, ProduceResponse, ProduceTopic,
        ProduceTopicResponse, TopicRef,
    },
    errors::{self, ErrorCode},
    records::batch::{BatchError, Check, Checked, Compressed},
    turn::Share,
};
use runtime::{
    clock,
    sync::{self, Either, line::Line, promise, race},
};
use std::{
    pin::Pin,
    rc::Rc,
    time::{Duration, Instant},
};
use types::{CoreId, GroupId};

/// Approximate bytes of a partition, or of a topic, in an answer, besides its message or name.
const PARTITION_BYTES: usize = 200;

/// Most characters of a topic's name in a log line. No valid name is longer.
const TOPIC_CHARS_TOLD: usize = 249;

/// Checks the request, hands every batch to its partition, and returns the pending answer. If one turn is enough
/// and no earlier request of the connection is in the lane, the batches are handed over when this returns.
pub fn start(core: &Rc<Core>, lane: &Line, request: ProduceRequest, version: i16) -> Pending {
    let mut checking = Checking::new(core, request, version);
    if lane.is_empty() && checking.step(core, &mut { Share::TURN }) {
        return checking.hand_over(core, version);
    }
    checking.rest(core, !lane.is_empty());
    let place = lane.join();
    let (promise, answer) = promise();
    let core = core.clone();
    // This needs its own task: the answer is not polled before those to earlier requests have left.
    runtime::spawn(async move {
        let answered = async {
            place.first().await;
            let mut work = Work::on(&core);
            loop {
                checking.decoder(&core).await;
                work.give_way().await;
                if checking.step(&core, &mut work.share) {
                    break;
                }
                if checking.gathered >= BATCHES_A_TURN {
                    checking.hand_over_part(&core);
                }
            }
            let pending = checking.hand_over(&core, version);
            drop(place);
            pending.await
        };
        if let Either::First(reply) = race(answered, promise.abandoned()).await {
            promise.keep(reply);
        }
    });
    Box::pin(async move { answer.await.unwrap_or(Reply::Nothing) })
}

/// A request whose batches are checked one after the other.
struct Checking {
    version: i16,
    acks: i16,
    timeout: Duration,
    is_transactional: bool,
    topics: std::vec::IntoIter<ProduceTopic>,
    /// The partitions left in the answer's last topic.
    partitions: std::vec::IntoIter<ProducePartition>,
    /// The batch being checked.
    batch: Option<(GroupId, Check, Decoder)>,
    by_owner: Vec<Vec<Item>>,
    /// The number of batches in `by_owner`.
    gathered: usize,
    /// Batches that were handed over earlier, if the request has very many.
    parts: Vec<Part>,
    answer: Answer,
    started: Instant,
}

/// Batches to hand over in one turn. Appending one takes about 10 µs.
const BATCHES_A_TURN: usize = 256;

type Part = Pin<Box<dyn Future<Output = Vec<(usize, Outcome)>>>>;

impl Checking {
    fn new(core: &Core, request: ProduceRequest, version: i16) -> Self {
        Self {
            version,
            acks: request.acks,
            timeout: timeout_of(request.timeout_ms),
            is_transactional: request.transactional_id.is_some(),
            answer: Answer { topics: Vec::with_capacity(request.topics.len()), outcomes: Vec::new() },
            topics: request.topics.into_iter(),
            partitions: Vec::new().into_iter(),
            batch: None,
            by_owner: (0..core.cores()).map(|_| Vec::new()).collect(),
            gathered: 0,
            parts: Vec::new(),
            started: Instant::now(),
        }
    }

    /// Before a wait: a batch that is not done keeps its decoder only if it gets a place for it at once. While the
    /// request `waits` for earlier ones of its connection, it holds no place.
    fn rest(&mut self, core: &Core, waits: bool) {
        if let Some((_, check, decoder)) = &mut self.batch
            && (waits || !decoder.try_keep(&core.decoders))
        {
            check.rewind();
        }
    }

    /// Waits for a place for the decoder of the batch that is being checked.
    async fn decoder(&mut self, core: &Core) {
        if let Some((_, check, decoder)) = &mut self.batch {
            decoder.keep(&core.decoders, || check.rewind()).await;
        }
    }

    /// Continues until the share is spent. Returns whether all batches are checked.
    fn step(&mut self, core: &Rc<Core>, share: &mut Share) -> bool {
        loop {
            if let Some((group, check, decoder)) = &mut self.batch {
                if !decoder.may_unfold() {
                    return false;
                }
                let (group, checked) = match check.step(share) {
                    Ok(None) => return false,
                    Ok(Some(checked)) => (*group, Ok(checked)),
                    Err(error) => (*group, Err(Refusal::from(error))),
                };
                self.batch = None;
                self.place(core, group, checked);
            }
            let Some(partition) = self.partitions.next() else {
                let Some(ProduceTopic { topic, partitions }) = self.topics.next() else { return true };
                self.answer.topics.push((topic, Vec::with_capacity(partitions.len())));
                self.partitions = partitions.into_iter();
                continue;
            };
            let (topic, indexes) = self.answer.topics.last_mut().expect("the partition is of a topic");
            indexes.push(partition.index);
            match begin(core, topic, partition, self.version, self.acks, self.is_transactional) {
                Ok((group, check)) => {
                    let decoder = Decoder::new(check.window());
                    self.batch = Some((group, check, decoder));
                }
                Err(refusal) => self.answer.outcomes.push(Err(refusal)),
            }
            share.take_entry();
            if share.is_spent() || self.gathered >= BATCHES_A_TURN {
                return false;
            }
        }
    }

    /// Adds a checked batch to those for its partition's owner.
    fn place(&mut self, core: &Core, group: GroupId, checked: Result<Checked, Refusal>) {
        let place = self.answer.outcomes.len();
        let (topic, _) = self.answer.topics.last().expect("the batch is of a topic");
        let outcome = checked.and_then(|checked| match timestamp_refusal(core, topic, &checked) {
            None => Ok(checked),
            Some(refusal) => Err(refusal),
        });
        match outcome {
            Ok(Checked { batch, header: info, .. }) => {
                let acks = if self.acks == -1 { Acks::All } else { Acks::Leader };
                self.by_owner[core.owner(group).0].push(Item { place, group, batch, info, acks });
                self.gathered += 1;
                self.answer.outcomes.push(Err(Refusal::from(ErrorCode::RequestTimedOut)));
            }
            Err(refusal) => self.answer.outcomes.push(Err(refusal)),
        }
    }

    /// Hands over the batches checked so far.
    fn hand_over_part(&mut self, core: &Rc<Core>) {
        let timeout = self.timeout;
        self.gathered = 0;
        for (owner, items) in self.by_owner.iter_mut().enumerate().filter(|(_, items)| !items.is_empty()) {
            let items = std::mem::take(items);
            self.parts.push(Box::pin(core.ask(CoreId(owner), Append { items, timeout })));
        }
    }

    fn hand_over(self, core: &Rc<Core>, version: i16) -> Pending {
        let Checking { acks, timeout, by_owner, parts, mut answer, started, .. } = self;
        let calls: Vec<_> = by_owner
            .into_iter()
            .enumerate()
            .filter(|(_, items)| !items.is_empty())
            .map(|(owner, items)| core.ask(CoreId(owner), Append { items, timeout }))
            .collect();
        let core = core.clone();
        Box::pin(async move {
            let told = match parts.is_empty() {
                true => sync::all(calls).await,
                false => sync::all(calls.into_iter().map(|call| Box::pin(call) as Part).chain(parts).collect()).await,
            };
            for (place, outcome) in told.into_iter().flatten() {
                answer.outcomes[place] = outcome.map_err(Refusal::from);
            }
            core.metrics.produce_latency_seconds.record(started.elapsed());
            let answer_bytes = answer.bytes();
            match (acks, answer.first_refusal()) {
                (0, None) => Reply::Nothing,
                (0, Some(why)) => {
                    core.metrics.produce_unacked_closed_total.add(1);
                    Reply::HangUp { why }
                }
                _ => {
                    let build = || answer.response(&core, version).into();
                    let sent = weight::send(&core, answer_bytes, weight::PATIENCE, build).await;
                    sent.unwrap_or_else(|why| Reply::HangUp { why: why.to_string() })
                }
            }
        })
    }
}

/// The error of a batch that was not appended, with a message if the code alone would puzzle.
struct Refusal {
    code: ErrorCode,
    message: Option<String>,
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        Self { code, message: None }
    }
}

impl From<BatchError> for Refusal {
    fn from(error: BatchError) -> Self {
        Self { code: errors::of_batch(&error), message: Some(error.to_string()) }
    }
}

/// Checks that need no owner: the request's form, the topic, and the batch itself. So the costs of the CRC and of
/// decompression do not fall on the partition's owner.
fn begin(
    core: &Rc<Core>,
    topic: &TopicRef,
    partition: ProducePartition,
    version: i16,
    acks: i16,
    is_transactional: bool,
) -> Result<(GroupId, Check), Refusal> {
    if version < ProduceRequest::VERSION_STORABLE_MIN {
        return Err(ErrorCode::UnsupportedForMessageFormat.into());
    }
    if !(-1..=1).contains(&acks) {
        return Err(ErrorCode::InvalidRequiredAcks.into());
    }
    let group = core.find_group(topic, partition.index)?;
    if let Some(internal) = core.internal(topic) {
        let message = format!("only the broker writes to {internal}");
        return Err(Refusal { code: ErrorCode::InvalidTopicException, message: Some(message) });
    }
    let batch = partition.records.ok_or(ErrorCode::InvalidRecord)?;
    let compressed = if core.config.log_validate_compressed { Compressed::Check } else { Compressed::Trust };
    let check = Check::begin(batch, version, compressed)?;
    if check.header().is_transactional() {
        let (code, why) = match is_transactional {
            false => (ErrorCode::TransactionalIdAuthorizationFailed, "the request names no transactional id"),
            true => (ErrorCode::InvalidTxnState, "this broker serves no transactions"),
        };
        return Err(Refusal { code, message: Some(format!("a transactional batch, but {why}")) });
    }
    Ok((group, check))
}

fn timestamp_refusal(core: &Core, topic: &TopicRef, checked: &Checked) -> Option<Refusal> {
    let message = core.timestamp_bounds(topic)?.refusal(checked.times?, clock::wall_ms())?;
    Some(Refusal { code: ErrorCode::InvalidTimestamp, message: Some(message) })
}

/// The answer being built. Outcomes are in the order of the request's partitions.
struct Answer {
    topics: Vec<(TopicRef, Vec<i32>)>,
    outcomes: Vec<Result<Appended, Refusal>>,
}

impl Answer {
    /// Approximate bytes of the answer, decoded and encoded.
    fn bytes(&self) -> usize {
        let topics = self.topics.iter().map(|(topic, _)| match topic {
            TopicRef::Name(name) => PARTITION_BYTES + 2 * name.len(),
            TopicRef::Id(_) => PARTITION_BYTES,
        });
        let message = |refusal: &Refusal| refusal.message.as_ref().map_or(0, |message| 2 * message.len());
        let outcomes = self.outcomes.iter().map(|outcome| outcome.as_ref().err().map_or(0, message) + PARTITION_BYTES);
        topics.sum::<usize>() + outcomes.sum::<usize>()
    }

    /// The first error in words, for the log, since a producer with acks=0 gets no answer.
    fn first_refusal(&self) -> Option<String> {
        let partitions = self.topics.iter().flat_map(|(topic, partitions)| partitions.iter().map(move |p| (topic, p)));
        let mut refused =
            partitions.zip(&self.outcomes).filter_map(|(at, outcome)| Some((at, outcome.as_ref().err()?)));
        let ((topic, partition), Refusal { code, .. }) = refused.next()?;
        let topic = match topic {
            // Quoted, since an unchecked name may contain anything.
            TopicRef::Name(name) => format!("{:?}", name.chars().take(TOPIC_CHARS_TOLD).collect::<String>()),
            TopicRef::Id(id) => id.to_string(),
        };
        let more = match refused.count() {
            0 => String::new(),
            more => format!(", and {more} more partitions"),
        };
        Some(format!("a produce request with acks=0 failed with {code} at {topic}, partition {partition}{more}"))
    }

    fn response(self, core: &Rc<Core>, version: i16) -> ProduceResponse {
        let mut outcomes = self.outcomes.into_iter();
        let topics: Vec<_> = self
            .topics
            .into_iter()
            .map(|(topic, partitions)| {
                let partitions = partitions
                    .into_iter()
                    .zip(&mut outcomes)
                    .map(|(index, outcome)| partition_response(core, &topic, index, outcome, version))
                    .collect();
                ProduceTopicResponse { topic, partitions }
            })
            .collect();
        let partitions = topics.iter().flat_map(|topic: &ProduceTopicResponse| &topic.partitions);
        let leaders = partitions.filter_map(|partition| partition.current_leader).map(|leader| leader.leader_id);
        let node_endpoints = brokers::endpoints(core, leaders);
        ProduceResponse { topics, throttle_time_ms: 0, node_endpoints }
    }
}

/// The limit that a batch exceeds, and the setting that would raise it.
fn too_large(core: &Rc<Core>, topic: &TopicRef) -> String {
    let largest = core.largest_entry();
    let own = core.find_topic(topic).map(|topic| core.topic_config(&topic).max_message_bytes);
    match own {
        Some(own) if own <= largest => {
            format!("the topic takes batches of at most {own} bytes; raise its max.message.bytes")
        }
        _ => meta::why_largest(largest),
    }
}

fn partition_response(
    core: &Rc<Core>,
    topic: &TopicRef,
    index: i32,
    outcome: Result<Appended, Refusal>,
    version: i16,
) -> ProducePartitionResponse {
    match outcome {
        Ok(appended) => ProducePartitionResponse::stored(
            index,
            appended.base_offset as i64,
            appended.log_append_time.unwrap_or(-1),
            appended.log_start as i64,
        ),
        Err(Refusal { code, message }) => {
            let message = message.or_else(|| (code == ErrorCode::MessageTooLarge).then(|| too_large(core, topic)));
            let mut response = ProducePartitionResponse::refused(index, code, message.map(StrBytes::from_string));
            if version >= 10 && code == ErrorCode::NotLeaderOrFollower {
                response.current_leader = core.leader_hint(topic, index);
            }
            response
        }
    }
}
