//! A coordinator with its log and clients, driven by tests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use kafka_protocol::protocol::Encodable;
use net::{StrBytes, Uuid, errors::ErrorCode, records::batch::Assigned, turn::ENTRIES_A_TURN};

use crate::coordinator::{
    AppendId, Config, Context, Coordinator, Cursor, GroupRequest, GroupResponse, Incarnation, Now, Output, Room,
    Topics, Unusable,
};

/// The existing topics: every name exists until it is deleted or made again.
#[derive(Default)]
pub(super) struct AnyTopics {
    changed: BTreeMap<String, Option<Incarnation>>,
    made: u64,
}

impl AnyTopics {
    /// The id of a topic that existed from the start. Topics made later have their number as id.
    pub(super) fn first_id(name: &str) -> Uuid {
        let name = name.bytes().fold(0u128, |id, byte| id.wrapping_mul(31).wrapping_add(byte.into()));
        Uuid::from_u128(name | 1 << 127)
    }
}

impl Topics for AnyTopics {
    fn find(&self, name: &str) -> Option<Incarnation> {
        let first = || Some(Incarnation { id: AnyTopics::first_id(name), made: 0, made_ms: 0 });
        self.changed.get(name).copied().unwrap_or_else(first)
    }

    fn newest(&self) -> u64 {
        self.made
    }
}

pub(super) struct World {
    pub(super) topics: AnyTopics,
    pub(super) config: Config,
    pub(super) coordinator: Coordinator<u64>,
    pub(super) now: Now,
    /// The committed batches, with the offsets assigned to them.
    pub(super) log: Vec<Bytes>,
    end: i64,
    /// The appends in flight.
    pub(super) appending: VecDeque<(AppendId, Bytes)>,
    /// Requests without an answer yet, and their versions.
    pub(super) waiting: Vec<(u64, i16)>,
    tokens: BTreeSet<u64>,
    seed: u64,
    /// Most bytes of groups, and the part of them that new groups may not take.
    pub(super) bytes_max: usize,
    pub(super) bytes_kept: usize,
    /// The refusals for lack of room since the test took them: the groups, and the bytes that they asked for.
    pub(super) refused: Vec<(StrBytes, usize)>,
}

pub(super) fn text(string: &str) -> StrBytes {
    StrBytes::from_string(string.to_owned())
}

/// Asserts that the response's version can express it.
fn encode(response: &GroupResponse, version: i16) {
    let mut out = BytesMut::new();
    let encoded = match response {
        GroupResponse::JoinGroup(response) => response.encode(&mut out, version),
        GroupResponse::SyncGroup(response) => response.encode(&mut out, version),
        GroupResponse::Heartbeat(response) => response.encode(&mut out, version),
        GroupResponse::LeaveGroup(response) => response.encode(&mut out, version),
        GroupResponse::OffsetCommit(response) => response.encode(&mut out, version),
        GroupResponse::OffsetFetch(response) => response.encode(&mut out, version),
        GroupResponse::DescribeGroups(response) => response.encode(&mut out, version),
        GroupResponse::ListGroups(response) => response.encode(&mut out, version),
        GroupResponse::DeleteGroups(response) => response.encode(&mut out, version),
    };
    encoded.unwrap_or_else(|error| panic!("version {version} of {response:?}: {error}"));
}

/// The whole answer to a request that only reads and names nothing twice.
pub(super) fn read<T>(
    coordinator: &Coordinator<T>,
    topics: &dyn Topics,
    context: &Context,
    request: &GroupRequest,
) -> GroupResponse {
    let mut whole = request.empty_response();
    let mut weight: usize = request.wanted(context.version).map(|wanted| coordinator.weigh(&wanted).0).sum();
    if matches!(request, GroupRequest::ListGroups(_)) {
        weight = coordinator.weigh_list();
    }
    let mut next = Some(Cursor::default());
    while let Some(from) = next {
        let part = coordinator.read(topics, context.version, request, &from);
        assert!(part.entries <= ENTRIES_A_TURN, "{} entries in one part", part.entries);
        weight = weight.checked_sub(part.bytes).expect("an answer is no larger than it was weighed");
        match from == Cursor::default() {
            true => whole = part.response,
            false => whole.add_part(part.goes_on, part.response),
        }
        next = part.next;
    }
    whole
}

impl World {
    pub(super) fn new(config: Config) -> World {
        let mut world = World {
            topics: AnyTopics::default(),
            coordinator: Coordinator::new(config.clone(), 0),
            config,
            now: Now { mono_ms: 0, wall_ms: 1_700_000_000_000 },
            log: Vec::new(),
            end: 0,
            appending: VecDeque::new(),
            waiting: Vec::new(),
            tokens: BTreeSet::new(),
            seed: 0,
            bytes_max: usize::MAX,
            bytes_kept: 0,
            refused: Vec::new(),
        };
        assert!(world.restart().is_empty());
        world
    }

    /// Keeps appends and returns replies. Asserts that each token is answered once and each reply can be encoded.
    fn take(&mut self, outputs: Vec<Output<u64>>) -> Vec<(u64, GroupResponse)> {
        self.coordinator.check();
        let mut replies = Vec::new();
        for output in outputs {
            match output {
                Output::Reply { token, response } => {
                    let at =
                        self.waiting.iter().position(|waiting| waiting.0 == token).expect("one answer to a request");
                    encode(&response, self.waiting.remove(at).1);
                    replies.push((token, response));
                }
                Output::Append { id, batch } => {
                    net::records::batch::validate(&batch, 9).expect("a sound batch");
                    self.appending.push_back((id, batch));
                }
                Output::NoRoom { group, bytes } => self.refused.push((group, bytes)),
            }
        }
        replies
    }

    pub(super) fn step(
        &mut self,
        token: u64,
        context: &Context,
        request: impl Into<GroupRequest>,
    ) -> Vec<(u64, GroupResponse)> {
        assert!(self.tokens.insert(token), "tokens are new");
        self.waiting.push((token, context.version));
        let request = request.into();
        let outputs = if request.only_reads() {
            vec![Output::Reply { token, response: read(&self.coordinator, &self.topics, context, &request) }]
        } else {
            let bytes = self.bytes_max.saturating_sub(self.coordinator.bytes());
            let room = Room { bytes, new_groups: bytes.saturating_sub(self.bytes_kept) };
            self.coordinator.step(self.now, &self.topics, room, context, request, token)
        };
        self.take(outputs)
    }

    /// Deletes the topic. The coordinator may then have sweep turns due.
    pub(super) fn delete_topic(&mut self, name: &str) {
        self.topics.changed.insert(name.to_owned(), None);
        let outputs = self.coordinator.topic_deleted(self.now);
        assert!(self.take(outputs).is_empty(), "a deletion answers nobody");
    }

    /// Makes a topic of this name, which is another one than before.
    pub(super) fn make_topic(&mut self, name: &str) {
        self.topics.made += 1;
        let (made, id) = (self.topics.made, Uuid::from_u128(self.topics.made.into()));
        self.topics.changed.insert(name.to_owned(), Some(Incarnation { id, made, made_ms: self.now.wall_ms }));
    }

    /// Lets time pass, from timer to timer.
    pub(super) fn pass(&mut self, ms: u64) -> Vec<(u64, Vec<(u64, GroupResponse)>)> {
        let end = self.now.mono_ms + ms;
        let mut seen = Vec::new();
        loop {
            let next = self.coordinator.next_deadline().map_or(end, |at| at.clamp(self.now.mono_ms, end));
            self.now.wall_ms += (next - self.now.mono_ms) as i64;
            self.now.mono_ms = next;
            let outputs = self.coordinator.tick(self.now, &self.topics);
            let replies = self.take(outputs);
            if !replies.is_empty() {
                seen.push((self.now.mono_ms, replies));
            }
            assert!(self.coordinator.next_deadline().is_none_or(|at| at > self.now.mono_ms), "a tick ends what is due");
            if next == end {
                return seen;
            }
        }
    }

    /// Commits the oldest append.
    pub(super) fn commit(&mut self) -> Vec<(u64, GroupResponse)> {
        let (id, batch) = self.appending.pop_front().expect("something is being appended");
        self.store(&batch);
        let outputs = self.coordinator.appended(self.now, id, Ok(()));
        self.take(outputs)
    }

    pub(super) fn commit_all(&mut self) -> Vec<(u64, GroupResponse)> {
        let mut replies = Vec::new();
        while !self.appending.is_empty() {
            replies.extend(self.commit());
        }
        replies
    }

    pub(super) fn fail(&mut self, at: usize, error: ErrorCode) -> Vec<(u64, GroupResponse)> {
        let (id, _) = self.appending.remove(at).expect("something is being appended");
        let outputs = self.coordinator.appended(self.now, id, Err(error));
        self.take(outputs)
    }

    /// Stores a batch in the log as the partition would.
    pub(super) fn store(&mut self, batch: &Bytes) {
        let header = net::records::batch::BatchHeader::read(batch).expect("a sound batch");
        let assigned = Assigned { base_offset: self.end, partition_leader_epoch: 1, log_append_time_ms: None };
        let mut stored = BytesMut::from(&batch[..]);
        net::records::batch::assign(&mut stored, assigned);
        self.end += i64::from(header.record_count);
        self.log.push(stored.freeze());
    }

    /// Restarts the process: uncommitted appends and waiting requests are lost, and a new coordinator replays the
    /// log.
    pub(super) fn restart(&mut self) -> Vec<Unusable> {
        self.waiting.clear();
        self.appending.clear();
        self.seed += 1;
        self.coordinator = Coordinator::new(self.config.clone(), self.seed);
        let log = self.log.clone();
        let unusable = log.iter().flat_map(|batch| self.coordinator.replay(&self.topics, batch)).collect();
        let outputs = self.coordinator.loaded(self.now);
        assert!(self.take(outputs).is_empty(), "nobody waits yet");
        unusable
    }

    /// The answer of a coordinator that replays the log now.
    pub(super) fn replayed(&self, context: &Context, request: impl Into<GroupRequest>) -> GroupResponse {
        let mut coordinator: Coordinator<u64> = Coordinator::new(self.config.clone(), 0);
        assert!(self.log.iter().all(|batch| coordinator.replay(&self.topics, batch).is_empty()));
        assert_eq!(coordinator.loaded(self.now), []);
        read(&coordinator, &self.topics, context, &request.into())
    }

    pub(super) fn resign(&mut self) -> Vec<(u64, GroupResponse)> {
        self.resign_in_turns().into_iter().flatten().collect()
    }

    /// The replies of each turn.
    pub(super) fn resign_in_turns(&mut self) -> Vec<Vec<(u64, GroupResponse)>> {
        let old = std::mem::replace(&mut self.coordinator, Coordinator::new(self.config.clone(), 0));
        self.appending.clear();
        let (mut resigned, mut turns) = (old.resign(), Vec::new());
        while !resigned.is_empty() {
            turns.push(self.take(resigned.turn()));
        }
        assert!(self.waiting.is_empty(), "everybody is answered");
        turns
    }
}
