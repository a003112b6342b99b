//! Entries of the metadata's log as JSON, for people and programs that follow the log. Peer ids and topic ids are
//! strings, because they exceed the integers that JSON readers handle exactly.

use consensus::{
    group::{self, ENTRY_NORMAL, Member},
    metadata::{self, Broker, BrokerStatus, Command, LeaderReport, Origin, Request, WatermarkReport},
};
use serde_json::{Value, json};
use wal::record::Entry;

/// Renders one entry. `kind`: `commands`; `members`, a change of the group's members; or `term`, the first entry of a
/// new leader's term.
pub(super) fn render(entry: &Entry) -> Value {
    let (kind, what) = match entry.entry_type {
        ENTRY_NORMAL if entry.data.is_empty() => ("term", Value::Null),
        ENTRY_NORMAL => match metadata::decode_requests(&entry.data) {
            Ok(requests) => ("commands", requests.iter().map(request).collect()),
            Err(error) => ("unknown", error.to_string().into()),
        },
        _ => ("members", group::member_changes(&entry.data).iter().map(member).collect()),
    };
    let mut record = json!({ "index": entry.index.get(), "term": entry.term.0, "kind": kind });
    if !what.is_null() {
        record[if kind == "unknown" { "why" } else { kind }] = what;
    }
    record
}

fn member(member: &Member) -> Value {
    match *member {
        Member::Voter(id) => json!({ "voter": peer(id) }),
        Member::Learner(id) => json!({ "observer": peer(id) }),
        Member::Removed(id) => json!({ "removed": peer(id) }),
    }
}

fn peer(id: u64) -> Value {
    format!("{id:#x}").into()
}

fn request(request: &Request) -> Value {
    let mut rendered = command(&request.command);
    if let Some(Origin { node, incarnation, sequence, .. }) = request.origin {
        // Requests of one process are numbered. The incarnation, roughly its start time, identifies the process.
        rendered["origin"] = json!({ "node": node, "incarnation": peer(incarnation), "sequence": sequence });
    }
    if let Some(no_room) = request.no_room {
        rendered["refused"] = no_room.to_string().into();
    }
    rendered
}

fn command(command: &Command) -> Value {
    match command {
        Command::CreateTopic { name, id, first_group, replicas, configs, created_ms, peers: _ } => json!({
            "command": "CreateTopic", "topic": **name, "id": id.to_string(), "first_group": first_group,
            "replicas": replicas, "configs": configs, "created_ms": created_ms,
        }),
        Command::DeleteTopic { name, id } => {
            json!({ "command": "DeleteTopic", "topic": **name, "id": id.to_string() })
        }
        Command::CreatePartitions { name, id, present, first_group, replicas, peers: _ } => json!({
            "command": "CreatePartitions", "topic": **name, "id": id.to_string(), "present": present,
            "first_group": first_group, "replicas": replicas,
        }),
        Command::UpdateTopicConfig { name, id, changes } => json!({
            "command": "UpdateTopicConfig", "topic": **name, "id": id.to_string(), "changes": settings(changes),
        }),
        Command::AllocateProducerIds { count } => json!({ "command": "AllocateProducerIds", "count": count }),
        Command::AssignPartition { name, id, partition, present, replicas } => json!({
            "command": "AssignPartition", "topic": **name, "id": id.to_string(), "partition": partition,
            "present": present, "replicas": replicas,
        }),
        Command::SetPartitionLeader { name, id, leaders } => json!({
            "command": "SetPartitionLeader", "topic": **name, "id": id.to_string(),
            "leaders": leaders.iter().map(leader).collect::<Value>(),
        }),
        Command::UpdateHighWatermark { name, id, node, watermarks } => json!({
            "command": "UpdateHighWatermark", "topic": **name, "id": id.to_string(), "node": node,
            "watermarks": watermarks.iter().map(watermark).collect::<Value>(),
        }),
        Command::RegisterBroker { broker } => registration(broker),
        Command::UpdateBrokerStatus { node, incarnation, status } => json!({
            "command": "UpdateBrokerStatus", "node": node, "incarnation": peer(*incarnation),
            "status": status_name(*status),
        }),
        Command::UnregisterBroker { node } => json!({ "command": "UnregisterBroker", "node": node }),
        Command::SetFeatureLevel { name, level } => {
            json!({ "command": "SetFeatureLevel", "feature": name, "level": level })
        }
        Command::UpdateClusterConfig { node, changes } => {
            json!({ "command": "UpdateClusterConfig", "node": node, "changes": settings(changes) })
        }
    }
}

/// Settings that are unset become null.
fn settings(changes: &[(String, Option<String>)]) -> Value {
    changes.iter().map(|(name, value)| (name.clone(), json!(value))).collect()
}

fn leader(LeaderReport { partition, term, leader, voters }: &LeaderReport) -> Value {
    json!({ "partition": partition, "term": term.0, "leader": leader, "in_sync": voters })
}

fn watermark(WatermarkReport { partition, high_watermark, log_start, end_offset }: &WatermarkReport) -> Value {
    json!({
        "partition": partition, "high_watermark": high_watermark, "log_start": log_start, "end_offset": end_offset,
    })
}

fn registration(broker: &Broker) -> Value {
    json!({
        "command": "RegisterBroker", "node": broker.node, "peer": peer(broker.peer),
        "incarnation": peer(broker.incarnation), "kafka": format!("{}:{}", broker.kafka.host, broker.kafka.port),
        "peer_addr": format!("{}:{}", broker.peer_addr.host, broker.peer_addr.port), "cores": broker.cores,
        "rack": broker.rack, "version": broker.version, "status": status_name(broker.status),
        "largest_entry": broker.largest_entry, "replicas_max": broker.replicas_max, "partitions_max": broker.partitions_max,
    })
}

fn status_name(status: BrokerStatus) -> &'static str {
    match status {
        BrokerStatus::Alive => "alive",
        BrokerStatus::Fenced => "fenced",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use consensus::metadata::{NoRoom, encode_requests};
    use std::collections::BTreeMap;
    use types::RaftIndex;
    use types::Term;
    use uuid::Uuid;

    fn entry(entry_type: u8, data: Bytes) -> Entry {
        Entry { index: RaftIndex::new(7), term: Term(2), entry_type, data, payload: None }
    }

    #[test]
    fn an_entry_is_told_with_its_commands_and_who_asked_for_them() {
        let create = Command::CreateTopic {
            name: "orders".into(),
            id: Uuid::from_u128(5),
            first_group: 3,
            replicas: vec![vec![1, 2], vec![2, 1]],
            configs: BTreeMap::from([("retention.ms".to_owned(), "1".to_owned())]),
            created_ms: 1_700_000_000_000,
            peers: vec![u64::MAX],
        };
        let set = Command::UpdateTopicConfig {
            name: "orders".into(),
            id: Uuid::from_u128(5),
            changes: vec![("retention.ms".to_owned(), None)],
        };
        let no_room = NoRoom { node: 2, of_cluster: false, has: 7, wanted: 2, takes: 8 };
        let origin = Origin { node: 2, incarnation: 1 << 60, sequence: 9, lowest_open: 1 };
        let requests = [create.into(), Request { origin: Some(origin), command: set, no_room: Some(no_room) }];
        assert_eq!(
            render(&entry(ENTRY_NORMAL, encode_requests(&requests))),
            json!({
                "index": 7, "term": 2, "kind": "commands", "commands": [
                    {
                        "command": "CreateTopic", "topic": "orders", "id": "00000000-0000-0000-0000-000000000005",
                        "first_group": 3, "replicas": [[1, 2], [2, 1]], "configs": { "retention.ms": "1" },
                        "created_ms": 1_700_000_000_000_u64,
                    },
                    {
                        "command": "UpdateTopicConfig", "topic": "orders",
                        "id": "00000000-0000-0000-0000-000000000005", "changes": { "retention.ms": null },
                        "origin": { "node": 2, "incarnation": "0x1000000000000000", "sequence": 9 },
                        "refused": no_room.to_string(),
                    },
                ],
            })
        );
    }

    #[test]
    fn entries_without_commands_are_told_too() {
        assert_eq!(render(&entry(ENTRY_NORMAL, Bytes::new())), json!({ "index": 7, "term": 2, "kind": "term" }));
        let unknown = render(&entry(ENTRY_NORMAL, Bytes::from_static(b"?")));
        assert_eq!(unknown["kind"], "unknown");
        assert!(unknown["why"].as_str().is_some_and(|why| why.contains("not a list of commands")), "{unknown}");
    }
}
