//! Runs the scripts in `testdata`; [`testkit::script`] says how they look.
//!
//! `delete-topic t` and `make-topic t` change the metadata. Offsets in the log name the topics made this way by
//! number (`of #1`).
//!
//! Member ids are random, so the trace calls them by prefix and order of appearance: `a-#1`. Appends wait for
//! `committed` or `failed`, unless `auto` is set.

use std::{collections::HashMap, fmt::Write, path::Path};

use bytes::Bytes;
use net::{
    StrBytes,
    errors::{ErrorCode, check},
    messages::{
        DeleteGroupsRequest, DescribeGroupsRequest, GroupId, HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest,
        ListGroupsRequest, OffsetCommitRequest, OffsetFetchRequest, OffsetFetchResponse, SyncGroupRequest, TopicName,
        join_group_request::JoinGroupRequestProtocol,
        leave_group_request::MemberIdentity,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics},
        sync_group_request::SyncGroupRequestAssignment,
    },
    records::record::Records,
};

use testkit::script;

use super::world::{World, text};
use crate::coordinator::{Config, Context, GroupRecord, GroupRequest, GroupResponse};

#[test]
fn scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/coordinator/testdata");
    script::check(&folder, 10, Walker::default);
}

impl script::Walker for Walker {
    fn command(&mut self, line: &str) {
        self.run(line);
    }

    fn take_trace(&mut self) -> String {
        std::mem::take(&mut self.trace)
    }
}

struct Walker {
    world: World,
    auto: bool,
    next_token: u64,
    /// The script's name for each request.
    names: HashMap<u64, String>,
    /// Generated ids in order of appearance.
    uuids: Vec<String>,
    trace: String,
}

impl Default for Walker {
    fn default() -> Walker {
        Walker {
            world: World::new(Config::default()),
            auto: false,
            next_token: 0,
            names: HashMap::new(),
            uuids: Vec::new(),
            trace: String::new(),
        }
    }
}

/// The `key=value` words of a command.
struct Words<'a>(HashMap<&'a str, &'a str>);

impl<'a> Words<'a> {
    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.get(key).copied()
    }

    fn number<N: std::str::FromStr>(&self, key: &str, default: N) -> N {
        self.get(key).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{key}={value}")))
    }

    fn list(&self, key: &str) -> Vec<&'a str> {
        self.get(key).unwrap_or_default().split(',').filter(|item| !item.is_empty()).collect()
    }
}

fn code(code: i16) -> String {
    check(code).map_or_else(|error| format!("{error:?}"), |()| "ok".to_owned())
}

fn bytes(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).unwrap_or("(binary)")
}

impl Walker {
    /// Resolves an alias such as `a-#1` to the member id.
    fn id(&self, alias: &str) -> StrBytes {
        match alias.split_once('#') {
            Some((prefix, number)) => {
                let uuid = self.uuids.get(number.parse::<usize>().unwrap() - 1);
                text(&format!("{prefix}{}", uuid.unwrap_or_else(|| panic!("{alias} has not been seen yet"))))
            }
            None => text(alias),
        }
    }

    /// Replaces a member id by its alias.
    fn alias(&mut self, id: &str) -> String {
        const UUID_CHARS: usize = 36;
        let Some(at) = id.len().checked_sub(UUID_CHARS).filter(|&at| id[at..].matches('-').count() == 4) else {
            return id.to_owned();
        };
        let uuid = &id[at..];
        let number = self.uuids.iter().position(|known| known == uuid).unwrap_or_else(|| {
            self.uuids.push(uuid.to_owned());
            self.uuids.len() - 1
        });
        format!("{}#{}", &id[..at], number + 1)
    }

    fn run(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap();
        let words: Vec<&str> = words.collect();
        let plain = words.first().filter(|word| !word.contains('=')).copied().unwrap_or_default();
        let words = Words(words.iter().filter_map(|word| word.split_once('=')).collect());
        let replies = match verb {
            "config" => return self.config(&words),
            "auto" => {
                self.auto = true;
                return;
            }
            "pass" => {
                for (at, replies) in self.world.pass(plain.parse().expect("ms")) {
                    writeln!(self.trace, "at {at} ms").unwrap();
                    self.replies(replies);
                }
                vec![]
            }
            "committed" | "failed" if self.world.appending.is_empty() => {
                writeln!(self.trace, "nothing is being appended").unwrap();
                return;
            }
            "committed" => {
                let replies = self.world.commit();
                self.replies(replies);
                return self.appends();
            }
            "failed" => {
                let error = ErrorCode::try_from_code(words.number("code", 56)).unwrap();
                let replies = self.world.fail(words.number("at", 0), error);
                self.replies(replies);
                return self.appends();
            }
            "restart" => {
                for unusable in self.world.restart() {
                    writeln!(self.trace, "unusable: {unusable}").unwrap();
                }
                vec![]
            }
            "resign" => self.world.resign(),
            "delete-topic" => {
                self.world.delete_topic(plain);
                vec![]
            }
            "make-topic" => {
                self.world.make_topic(plain);
                vec![]
            }
            "log" => return self.print_log(),
            _ => {
                let (version, request) = self.request(verb, &words);
                self.next_token += 1;
                let client = words.get("client").unwrap_or("a");
                let name = if plain.is_empty() { verb } else { plain };
                self.names.insert(self.next_token, name.to_owned());
                let context = Context { version, client_id: text(client), client_host: text("/10.0.0.1") };
                self.world.step(self.next_token, &context, request)
            }
        };
        self.replies(replies);
        self.appends();
    }

    fn config(&mut self, words: &Words<'_>) {
        let mut config = Config::default();
        config.group_initial_rebalance_delay_ms = words.number("delay", config.group_initial_rebalance_delay_ms);
        config.group_max_size = words.number("max-size", config.group_max_size);
        config.groups_max = words.number("groups-max", config.groups_max);
        self.world.bytes_max = words.number("bytes-max", self.world.bytes_max);
        self.world.bytes_kept = words.number("bytes-kept", self.world.bytes_kept);
        config.offset_metadata_max_bytes = words.number("metadata-max", config.offset_metadata_max_bytes);
        config.offsets_retention_ms = words.number("retention", config.offsets_retention_ms);
        config.offsets_retention_check_interval_ms = words.number("check", config.offsets_retention_check_interval_ms);
        self.world.config = config;
        self.world.restart();
    }

    fn request(&self, verb: &str, words: &Words<'_>) -> (i16, GroupRequest) {
        let group = GroupId(text(words.get("group").unwrap_or("g")));
        let member = self.id(words.get("member").unwrap_or_default());
        let instance = words.get("instance").map(text);
        let generation = words.number("gen", -1);
        let groups = || words.list("groups").into_iter().map(|id| GroupId(text(id))).collect();
        match verb {
            "join" => {
                let protocols = words.get("protocols").unwrap_or("range:sub").split(',').map(|protocol| {
                    let (name, metadata) = protocol.split_once(':').unwrap_or((protocol, ""));
                    let metadata = match metadata.strip_prefix('@') {
                        Some(topic) => subscription(topic),
                        None => Bytes::copy_from_slice(metadata.as_bytes()),
                    };
                    JoinGroupRequestProtocol::default().with_name(text(name)).with_metadata(metadata)
                });
                let request = JoinGroupRequest::default()
                    .with_group_id(group)
                    .with_member_id(member)
                    .with_group_instance_id(instance)
                    .with_session_timeout_ms(words.number("session", 10_000))
                    .with_rebalance_timeout_ms(words.number("rebalance", 60_000))
                    .with_protocol_type(text(words.get("type").unwrap_or("consumer")))
                    .with_protocols(protocols.filter(|protocol| !protocol.name.is_empty()).collect());
                (words.number("v", 9), request.into())
            }
            "sync" => {
                let version = words.number("v", 5);
                let assignments = words.list("assign").into_iter().map(|assignment| {
                    let (member, bytes) = assignment.split_once(':').expect("member:assignment");
                    SyncGroupRequestAssignment::default()
                        .with_member_id(self.id(member))
                        .with_assignment(Bytes::copy_from_slice(bytes.as_bytes()))
                });
                let named = |key, default| (version >= 5).then(|| text(words.get(key).unwrap_or(default)));
                let request = SyncGroupRequest::default()
                    .with_group_id(group)
                    .with_member_id(member)
                    .with_group_instance_id(instance)
                    .with_generation_id(generation)
                    .with_protocol_type(named("type", "consumer"))
                    .with_protocol_name(named("protocol", "range"))
                    .with_assignments(assignments.collect());
                (version, request.into())
            }
            "heartbeat" => {
                let request = HeartbeatRequest::default()
                    .with_group_id(group)
                    .with_member_id(member)
                    .with_group_instance_id(instance)
                    .with_generation_id(generation);
                (words.number("v", 4), request.into())
            }
            "leave" => {
                let members = words.list("members").into_iter().map(|member| {
                    let (member, instance) = member.split_once('/').map_or((member, None), |(m, i)| (m, Some(text(i))));
                    MemberIdentity::default().with_member_id(self.id(member)).with_group_instance_id(instance)
                });
                let request = LeaveGroupRequest::default().with_group_id(group).with_member_id(member);
                (words.number("v", 5), request.with_members(members.collect()).into())
            }
            "commit" => {
                let request = commit(words)
                    .with_group_id(group)
                    .with_member_id(member)
                    .with_group_instance_id(instance)
                    .with_generation_id_or_member_epoch(generation);
                (words.number("v", 9), request.into())
            }
            "fetch" => (words.number("v", 9), self.fetch(words, group).into()),
            "describe" => (words.number("v", 6), DescribeGroupsRequest::default().with_groups(groups()).into()),
            "list" => {
                let filter = |key| words.list(key).into_iter().map(text).collect();
                let request = ListGroupsRequest::default().with_states_filter(filter("states"));
                (words.number("v", 5), request.with_types_filter(filter("types")).into())
            }
            "delete" => (words.number("v", 2), DeleteGroupsRequest::default().with_groups_names(groups()).into()),
            verb => panic!("unknown command {verb}"),
        }
    }

    fn fetch(&self, words: &Words<'_>, group: GroupId) -> OffsetFetchRequest {
        let wanted: Option<Vec<(TopicName, i32)>> = words.get("offsets").map(|_| {
            let place = |at: &str| {
                let (topic, partition) = at.split_once('/').expect("topic/partition");
                (TopicName(text(topic)), partition.parse().unwrap())
            };
            words.list("offsets").into_iter().map(place).collect()
        });
        if words.number("v", 9) < 8 {
            let topic = |(name, partition)| {
                OffsetFetchRequestTopic::default().with_name(name).with_partition_indexes(vec![partition])
            };
            let topics = wanted.map(|wanted| wanted.into_iter().map(topic).collect());
            return OffsetFetchRequest::default().with_group_id(group).with_topics(topics);
        }
        let topic = |(name, partition)| {
            OffsetFetchRequestTopics::default().with_name(name).with_partition_indexes(vec![partition])
        };
        let topics = wanted.map(|wanted| wanted.into_iter().map(topic).collect::<Vec<_>>());
        let groups =
            words.get("groups").map_or(vec![group], |ids| ids.split(',').map(|id| GroupId(text(id))).collect());
        let groups = groups
            .into_iter()
            .map(|id| OffsetFetchRequestGroup::default().with_group_id(id).with_topics(topics.clone()));
        OffsetFetchRequest::default().with_groups(groups.collect())
    }

    fn replies(&mut self, replies: Vec<(u64, GroupResponse)>) {
        for (group, bytes) in std::mem::take(&mut self.world.refused) {
            writeln!(self.trace, "no room: {group} asks for {bytes} bytes").unwrap();
        }
        for (token, response) in replies {
            let name = self.names[&token].clone();
            let response = self.show(response);
            writeln!(self.trace, "{name}: {response}").unwrap();
        }
    }

    /// Prints the pending appends, or commits them at once if `auto` is set.
    fn appends(&mut self) {
        if self.auto {
            let replies = self.world.commit_all();
            self.replies(replies);
        } else if !self.world.appending.is_empty() {
            writeln!(self.trace, "appending: {}", self.world.appending.len()).unwrap();
        }
    }

    fn show(&mut self, response: GroupResponse) -> String {
        match response {
            GroupResponse::JoinGroup(r) if r.error_code != 0 => {
                format!("{} member={}", code(r.error_code), self.alias(&r.member_id))
            }
            GroupResponse::JoinGroup(r) => {
                let members: Vec<String> = r
                    .members
                    .iter()
                    .map(|m| {
                        let instance = m.group_instance_id.as_ref().map(|i| format!("/{i}")).unwrap_or_default();
                        format!("{}{instance}:{}", self.alias(&m.member_id), bytes(&m.metadata))
                    })
                    .collect();
                let kind = r.protocol_type.as_deref().map(|kind| format!("{kind}/")).unwrap_or_default();
                let protocol = r.protocol_name.as_deref().unwrap_or("null");
                let (member, leader) = (self.alias(&r.member_id), self.alias(&r.leader));
                let skip = if r.skip_assignment { " skip" } else { "" };
                let members = members.join(" ");
                format!("ok gen={} {kind}{protocol} member={member} leader={leader}{skip} [{members}]", r.generation_id)
            }
            GroupResponse::SyncGroup(r) => {
                let protocol = r.protocol_name.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
                format!("{}{protocol} assignment={}", code(r.error_code), bytes(&r.assignment))
            }
            GroupResponse::Heartbeat(r) => code(r.error_code),
            GroupResponse::LeaveGroup(r) => {
                let members: Vec<String> =
                    r.members.iter().map(|m| format!(" {}={}", self.alias(&m.member_id), code(m.error_code))).collect();
                format!("{}{}", code(r.error_code), members.concat())
            }
            GroupResponse::OffsetCommit(r) => {
                let all = r.topics.iter().flat_map(|t| {
                    t.partitions
                        .iter()
                        .map(move |p| format!("{}/{}={}", t.name.as_str(), p.partition_index, code(p.error_code)))
                });
                all.collect::<Vec<_>>().join(" ")
            }
            GroupResponse::OffsetFetch(r) => fetched(&r),
            GroupResponse::DescribeGroups(r) => {
                let mut all = Vec::new();
                for g in &r.groups {
                    let head = format!("{}: {} {}", g.group_id.as_str(), code(g.error_code), g.group_state);
                    let mut one = format!("{head} {}/{}", g.protocol_type, g.protocol_data);
                    for m in &g.members {
                        let instance = m.group_instance_id.as_ref().map(|i| format!("/{i}")).unwrap_or_default();
                        let (metadata, assignment) = (bytes(&m.member_metadata), bytes(&m.member_assignment));
                        let id = self.alias(&m.member_id);
                        write!(one, " {id}{instance}:{}{}:{metadata}:{assignment}", m.client_id, m.client_host)
                            .unwrap();
                    }
                    all.push(one);
                }
                all.join("; ")
            }
            GroupResponse::ListGroups(r) => {
                let groups = r.groups.iter().map(|g| {
                    format!(" {}:{}:{}:{}", g.group_id.as_str(), g.protocol_type, g.group_state, g.group_type)
                });
                format!("{}{}", code(r.error_code), groups.collect::<String>())
            }
            GroupResponse::DeleteGroups(r) => {
                let groups = r.results.iter().map(|g| format!("{}={}", g.group_id.as_str(), code(g.error_code)));
                groups.collect::<Vec<_>>().join(" ")
            }
        }
    }

    /// Prints the committed records, decoded.
    fn print_log(&mut self) {
        for batch in self.world.log.clone() {
            let records = Records::open(&batch, 1 << 20).unwrap();
            for record in records.iter() {
                let record = record.unwrap();
                let line = match GroupRecord::decode(record.key, record.value) {
                    Ok(GroupRecord::Offset { group, topic, partition, value: Some(value) }) => {
                        let made = value.topic_id.as_u128();
                        let of = if made != 0 && made >> 127 == 0 { format!(" of #{made}") } else { String::new() };
                        format!("{group} {topic}/{partition}@{} epoch {}{of}", value.offset, value.leader_epoch)
                    }
                    Ok(GroupRecord::Offset { group, topic, partition, value: None }) => {
                        format!("{group} {topic}/{partition} forgotten")
                    }
                    Ok(GroupRecord::Group { group, value: Some(value) }) => {
                        let members: Vec<String> = value
                            .members
                            .iter()
                            .map(|m| format!(" {}={}", self.alias(&m.member_id), bytes(&m.assignment)))
                            .collect();
                        let leader = value.leader.as_deref().map(|leader| self.alias(leader)).unwrap_or_default();
                        format!("{group} gen={} leader={leader}{}", value.generation, members.concat())
                    }
                    Ok(GroupRecord::Group { group, value: None }) => format!("{group} forgotten"),
                    Err(error) => format!("{error}"),
                };
                writeln!(self.trace, "{}: {line}", record.offset).unwrap();
            }
        }
    }
}

/// A consumer's subscription to one topic.
fn subscription(topic: &str) -> Bytes {
    let mut bytes = vec![0, 0, 0, 0, 0, 1, 0, topic.len() as u8];
    bytes.extend_from_slice(topic.as_bytes());
    bytes.extend_from_slice(&[0xff; 4]);
    bytes.into()
}

/// A commit of the offsets that the words name: `offsets=topic/partition@offset,…`.
fn commit(words: &Words<'_>) -> OffsetCommitRequest {
    let metadata = words.get("metadata").unwrap_or("");
    let topics = words.list("offsets").into_iter().map(|at| {
        let (place, offset) = at.split_once('@').expect("topic/partition@offset");
        let (topic, partition) = place.split_once('/').expect("topic/partition@offset");
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(partition.parse().unwrap())
            .with_committed_offset(offset.parse().unwrap())
            .with_committed_leader_epoch(words.number("epoch", -1))
            .with_committed_metadata(Some(text(metadata)));
        OffsetCommitRequestTopic::default().with_name(TopicName(text(topic))).with_partitions(vec![partition])
    });
    OffsetCommitRequest::default().with_retention_time_ms(words.number("retention", -1)).with_topics(topics.collect())
}

fn fetched(response: &OffsetFetchResponse) -> String {
    let show = |topic: &str, partition, offset, epoch, metadata: &Option<StrBytes>, error| {
        let metadata = metadata.as_deref().filter(|m| !m.is_empty()).map(|m| format!("({m})")).unwrap_or_default();
        let error = if error == 0 { String::new() } else { format!(" {}", code(error)) };
        let epoch = if epoch == -1 { String::new() } else { format!(" epoch {epoch}") };
        format!("{topic}/{partition}@{offset}{epoch}{metadata}{error}")
    };
    let mut all = Vec::new();
    if response.error_code != 0 {
        all.push(code(response.error_code));
    }
    for topic in &response.topics {
        all.extend(topic.partitions.iter().map(|p| {
            let (offset, epoch) = (p.committed_offset, p.committed_leader_epoch);
            show(&topic.name, p.partition_index, offset, epoch, &p.metadata, p.error_code)
        }));
    }
    for group in &response.groups {
        all.push(format!("{}: {}", group.group_id.as_str(), code(group.error_code)));
        for topic in &group.topics {
            all.extend(topic.partitions.iter().map(|p| {
                let (offset, epoch) = (p.committed_offset, p.committed_leader_epoch);
                show(&topic.name, p.partition_index, offset, epoch, &p.metadata, p.error_code)
            }));
        }
    }
    all.join(" ")
}
