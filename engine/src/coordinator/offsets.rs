//! Committed offsets: OffsetCommit and expiry (`OffsetMetadataManager`; KIP-211).

use std::collections::BTreeSet;

use net::{
    StrBytes, Uuid,
    errors::{ErrorCode, NONE},
    messages::{
        OffsetCommitRequest, OffsetCommitResponse, TopicName,
        offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
    },
};
use types::planted;

use super::{
    config::{Config, STRING_BYTES_MAX},
    env::{Env, OffsetChange, Then},
    forget::{SearchTurn, tombstone_bytes},
    group::{
        Group, State,
        size::{change_bytes, offset_bytes, topic_bytes},
    },
    incarnation::{Topics, committed_to},
    protocols::own,
    records::{CommittedOffset, GroupRecord},
};

/// The protocol type whose subscriptions this broker can read.
const CONSUMER_PROTOCOL: &str = "consumer";

impl<T> Group<T> {
    /// Whether the commit is allowed (`ClassicGroup.validateOffsetCommit`).
    pub(crate) fn validate_commit(&self, request: &OffsetCommitRequest) -> Result<(), ErrorCode> {
        let generation = request.generation_id_or_member_epoch;
        match self.state {
            State::Dead => return Err(ErrorCode::CoordinatorNotAvailable),
            // A client that assigns its partitions itself uses the group only to store offsets.
            State::Empty if generation < 0 => return Ok(()),
            _ => {}
        }
        if generation >= 0 || !request.member_id.is_empty() || request.group_instance_id.is_some() {
            let is_member = self.validate_member(&request.member_id, request.group_instance_id.as_ref());
            match is_member {
                Err(ErrorCode::FencedInstanceId) if planted!(FencedMemberCommits) => {}
                is_member => is_member?,
            }
            if generation != self.generation {
                return Err(ErrorCode::IllegalGeneration);
            }
        } else if self.state != State::Empty {
            return Err(ErrorCode::UnknownMemberId);
        }
        if self.state == State::CompletingRebalance {
            return Err(ErrorCode::RebalanceInProgress);
        }
        Ok(())
    }

    /// The member of a valid commit has shown that it lives.
    pub(crate) fn keep_committer_alive(&mut self, request: &OffsetCommitRequest, env: &mut Env<'_, T>) {
        if matches!(self.state, State::Stable | State::PreparingRebalance) {
            self.keep_alive(&request.member_id, env);
        }
    }

    /// Handles a commit that [`Group::validate_commit`] allowed.
    pub(crate) fn commit(
        &mut self,
        env: &mut Env<'_, T>,
        topics: &dyn Topics,
        request: &OffsetCommitRequest,
        token: T,
    ) {
        let known = self.members.get(&request.member_id).map(|member| member.known);
        self.keep_committer_alive(request, env);
        let now_ms = env.now.wall_ms;
        // Up to version 4 a client may set the retention of its offsets.
        let expire_timestamp =
            (request.retention_time_ms >= 0).then(|| now_ms.saturating_add(request.retention_time_ms));
        let mut changes = Vec::new();
        let mut response = OffsetCommitResponse::default();
        let mut growth = Growth { room: env.room_bytes, ..Growth::default() };
        let mut has_read_another = false;
        for topic in &request.topics {
            let name = own(&topic.name);
            let to = committed_to(topics, &name, known);
            has_read_another |= to == Err(ErrorCode::RebalanceInProgress);
            growth.topic = if to.is_ok() && !self.counts_topic(&name) { topic_bytes(&name) } else { 0 };
            let mut answered = OffsetCommitResponseTopic::default().with_name(TopicName(name.clone()));
            for partition in &topic.partitions {
                let value = CommittedOffset {
                    topic_id: to.map_or(Uuid::nil(), |topic| topic.id),
                    offset: partition.committed_offset,
                    leader_epoch: partition.committed_leader_epoch,
                    metadata: own(partition.committed_metadata.as_deref().unwrap_or_default()),
                    commit_timestamp: now_ms,
                    expire_timestamp,
                };
                let checked = self.check_offset(env.config, &name, partition.partition_index, &value, &mut growth);
                let outcome = checked.and(to.map(drop));
                if outcome.is_ok() {
                    growth.reserved += change_bytes(&value);
                    *self.uncommitted.entry((name.clone(), partition.partition_index)).or_default() += 1;
                    changes.push(OffsetChange { topic: name.clone(), partition: partition.partition_index, value });
                }
                answered.partitions.push(
                    OffsetCommitResponsePartition::default()
                        .with_partition_index(partition.partition_index)
                        .with_error_code(net::errors::code(&outcome)),
                );
            }
            response.topics.push(answered);
        }
        if has_read_another && self.state == State::Stable {
            env.log(&self.id, &format!("a topic of member {} was recreated", request.member_id));
            self.prepare_rebalance(env);
        }
        self.store_offsets(env, growth, changes, token, response);
    }

    /// Whether the group has offsets of the topic, or some are in flight.
    fn counts_topic(&self, topic: &StrBytes) -> bool {
        let in_flight = || self.uncommitted.range((topic.clone(), i32::MIN)..).next();
        self.offsets.contains_key(topic) || in_flight().is_some_and(|((first, _), _)| first == topic)
    }

    fn store_offsets(
        &mut self,
        env: &mut Env<'_, T>,
        Growth { reserved, lacks, .. }: Growth,
        changes: Vec<OffsetChange>,
        token: T,
        response: OffsetCommitResponse,
    ) {
        if lacks > 0 {
            env.no_room(&self.id, lacks);
        }
        if changes.is_empty() {
            return env.reply(token, response);
        }
        self.reserve(reserved);
        let records: Vec<GroupRecord> = changes.iter().map(|change| self.offset_record(change)).collect();
        env.append(&records, Then::Offsets { group: self.id.clone(), changes, reserved, token, response });
    }

    fn check_offset(
        &self,
        config: &Config,
        topic: &StrBytes,
        partition: i32,
        value: &CommittedOffset,
        growth: &mut Growth,
    ) -> Result<(), ErrorCode> {
        // Kafka counts Java chars.
        if value.metadata.encode_utf16().count() > config.offset_metadata_max_bytes {
            return Err(ErrorCode::OffsetMetadataTooLarge);
        }
        if topic.len() > STRING_BYTES_MAX {
            return Err(ErrorCode::InvalidTopicException);
        }
        let has = self.offsets.get(topic).and_then(|partitions| partitions.get(&partition));
        growth.take(offset_bytes(value).saturating_sub(has.map_or(0, offset_bytes)))
    }

    fn offset_record(&self, change: &OffsetChange) -> GroupRecord {
        GroupRecord::Offset {
            group: self.id.clone(),
            topic: change.topic.clone(),
            partition: change.partition,
            value: Some(change.value.clone()),
        }
    }

    /// A commit has been stored in the log, or has failed.
    pub(crate) fn commit_stored(&mut self, changes: Vec<OffsetChange>, stored: bool) {
        for OffsetChange { topic, partition, value } in changes {
            let key = (topic, partition);
            let count = self.uncommitted.get_mut(&key).expect("the commit was counted");
            *count -= 1;
            if *count == 0 {
                self.uncommitted.remove(&key);
            }
            if stored {
                self.logged = true;
                self.set_offset(key.0, key.1, Some(value));
            }
        }
    }

    /// Applies an offset record.
    pub(crate) fn set_offset(&mut self, topic: StrBytes, partition: i32, value: Option<CommittedOffset>) {
        match value {
            Some(value) => {
                self.bytes += offset_bytes(&value);
                let partitions = self.offsets.entry(topic.clone()).or_default();
                if partitions.is_empty() {
                    self.bytes += topic_bytes(&topic);
                }
                let before = partitions.insert(partition, value);
                self.bytes -= before.as_ref().map_or(0, offset_bytes);
            }
            None => {
                if let Some(partitions) = self.offsets.get_mut(&topic) {
                    let before = partitions.remove(&partition);
                    self.bytes -= before.as_ref().map_or(0, offset_bytes);
                    if partitions.is_empty() {
                        self.bytes -= topic_bytes(&topic);
                        self.offsets.remove(&topic);
                    }
                }
            }
        }
    }

    /// The topics that the group's members subscribe to. `None` if a subscription cannot be read.
    fn subscribed_topics(&self) -> Option<BTreeSet<String>> {
        let protocol = self.protocol.as_ref()?;
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            topics.extend(subscription_topics(&member.settings.metadata(protocol))?);
        }
        Some(topics)
    }

    /// Looks for expired offsets (`ClassicGroup.offsetExpirationCondition`), from the given one on, until the turn is
    /// over. An offset with a newer commit in flight has not expired.
    pub(crate) fn expired_offsets(
        &self,
        config: &Config,
        now_ms: i64,
        from: Option<&(StrBytes, i32)>,
        turn: &mut SearchTurn,
    ) -> Expired {
        let has_type = self.protocol_type.is_some();
        let consumers = self.protocol_type.as_deref() == Some(CONSUMER_PROTOCOL);
        // Retention counts from when the group became empty, or else from the offset's commit.
        let since = match self.state {
            State::Empty => self.state_timestamp.filter(|_| has_type),
            State::Stable if consumers => None,
            _ => return Expired::default(),
        };
        let mut expired = Expired { all: self.uncommitted.is_empty(), ..Expired::default() };
        for (topic, partition, offset) in self.offsets_from(from) {
            if turn.is_over() {
                (expired.next, expired.all) = (Some((topic.clone(), partition)), false);
                break;
            }
            turn.look(1);
            let is_over = match offset.expire_timestamp {
                Some(at) => now_ms >= at,
                None => now_ms.saturating_sub(since.unwrap_or(offset.commit_timestamp)) >= config.offsets_retention_ms,
            };
            let key = (topic.clone(), partition);
            if is_over && !self.uncommitted.contains_key(&key) {
                turn.write(tombstone_bytes(&self.id, topic));
                expired.offsets.push(key);
            } else {
                expired.all = false;
            }
        }
        if self.state == State::Stable && !expired.offsets.is_empty() {
            expired.all = false;
            match self.subscribed_topics() {
                Some(subscribed) => expired.offsets.retain(|(topic, _)| !subscribed.contains(&**topic)),
                None => expired.offsets.clear(),
            }
        }
        expired
    }
}

/// The memory that one commit takes.
#[derive(Default)]
struct Growth {
    room: usize,
    /// For the present topic, if the group has no offset of it yet. Taken with its first partition.
    topic: usize,
    reserved: usize,
    /// Bytes of what was refused.
    lacks: usize,
}

impl Growth {
    fn take(&mut self, bytes: usize) -> Result<(), ErrorCode> {
        let Some(left) = self.room.checked_sub(self.topic + bytes) else {
            self.lacks += self.topic + bytes;
            return Err(ErrorCode::InvalidCommitOffsetSize);
        };
        self.room = left;
        self.reserved += std::mem::take(&mut self.topic);
        Ok(())
    }
}

/// Expired offsets of one group.
#[derive(Debug, Default)]
pub(crate) struct Expired {
    pub(crate) offsets: Vec<(StrBytes, i32)>,
    /// The group was looked at to its end, and these were all that it has.
    pub(crate) all: bool,
    /// Where the turn ended within the group.
    pub(crate) next: Option<(StrBytes, i32)>,
}

/// The topics in a consumer's subscription. Every version of it begins with an INT16 version and an ARRAY of STRING,
/// the topics (`ConsumerProtocolSubscription.json`).
fn subscription_topics(mut subscription: &[u8]) -> Option<Vec<String>> {
    let mut take = |bytes: usize| {
        let (taken, rest) = subscription.split_at_checked(bytes)?;
        subscription = rest;
        Some(taken)
    };
    let version = i16::from_be_bytes(take(2)?.try_into().ok()?);
    let count = i32::from_be_bytes(take(4)?.try_into().ok()?);
    if version < 0 || count < 0 {
        return None;
    }
    let mut topics = Vec::new();
    for _ in 0..count {
        let length = i16::from_be_bytes(take(2)?.try_into().ok()?);
        topics.push(String::from_utf8(take(usize::try_from(length).ok()?)?.to_vec()).ok()?);
    }
    Some(topics)
}

/// Sets the error on all partitions that have none yet.
pub(crate) fn fail_commit(response: &mut OffsetCommitResponse, error: ErrorCode) {
    for partition in response.topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
        if partition.error_code == NONE {
            partition.error_code = error.code();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::subscription_topics;

    #[test]
    fn subscriptions_are_read_whatever_follows() {
        let whole = b"\x00\x03\x00\x00\x00\x02\x00\x01a\x00\x02bcxyz";
        assert_eq!(subscription_topics(whole), Some(vec!["a".to_owned(), "bc".to_owned()]));
        for cut in 0..13 {
            assert_eq!(subscription_topics(&whole[..cut]), None, "{cut} bytes");
        }
        assert_eq!(subscription_topics(b"\x00\x00\x7f\xff\xff\xff"), None, "a count that nothing backs");
        assert_eq!(subscription_topics(b"\x00\x00\xff\xff\xff\xff"), None);
        assert_eq!(subscription_topics(b"\x00\x00\x00\x00\x00\x00"), Some(vec![]));
    }
}
