//! Encodings that commands, snapshots and answers to queries share.

use super::{Broker, BrokerStatus, HostPort, Partition, SLICES, Topic};
use crate::generated::metadata::millrace::metadata as fb;
use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, InvalidFlatbuffer, Vector, WIPOffset};
use types::GroupId;
use uuid::Uuid;

/// The reason why bytes are not a snapshot of all slices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("not a snapshot: {0}")]
    Invalid(#[from] InvalidFlatbuffer),
    #[error("the snapshot does not hold the slices 0 to {} in order", SLICES - 1)]
    Slices,
    #[error("the answer to request {sequence} of node {node} can't be read; it was written by a newer version")]
    Answer { node: i32, sequence: u64 },
}

pub(super) type Out<'b> = FlatBufferBuilder<'b>;

pub(super) fn status_in(fenced: bool) -> BrokerStatus {
    if fenced { BrokerStatus::Fenced } else { BrokerStatus::Alive }
}

pub(super) fn broker_out<'b>(out: &mut Out<'b>, broker: &Broker) -> WIPOffset<fb::Broker<'b>> {
    let mut address = |address: &HostPort| {
        let host = Some(out.create_string(&address.host));
        fb::HostPort::create(out, &fb::HostPortArgs { host, port: address.port })
    };
    let (kafka, peer_addr) = (address(&broker.kafka), address(&broker.peer_addr));
    let args = fb::BrokerArgs {
        node: broker.node,
        peer: broker.peer,
        incarnation: broker.incarnation,
        kafka: Some(kafka),
        peer_addr: Some(peer_addr),
        cores: broker.cores,
        rack: broker.rack.as_ref().map(|rack| out.create_string(rack)),
        version: Some(out.create_string(&broker.version)),
        fenced: broker.status == BrokerStatus::Fenced,
        largest_entry: broker.largest_entry,
        replicas_max: broker.replicas_max,
        partitions_max: broker.partitions_max,
    };
    fb::Broker::create(out, &args)
}

pub(super) fn broker_in(broker: fb::Broker<'_>) -> Broker {
    let address = |address: fb::HostPort<'_>| HostPort { host: address.host().to_owned(), port: address.port() };
    Broker {
        node: broker.node(),
        peer: broker.peer(),
        incarnation: broker.incarnation(),
        kafka: address(broker.kafka()),
        peer_addr: address(broker.peer_addr()),
        cores: broker.cores(),
        rack: broker.rack().map(str::to_owned),
        version: broker.version().to_owned(),
        status: status_in(broker.fenced()),
        largest_entry: broker.largest_entry(),
        replicas_max: broker.replicas_max(),
        partitions_max: broker.partitions_max(),
    }
}

pub(super) fn uuid_out(id: Uuid) -> fb::Uuid {
    let (high, low) = id.as_u64_pair();
    fb::Uuid::new(high, low)
}

pub(super) fn uuid_in(id: &fb::Uuid) -> Uuid {
    Uuid::from_u64_pair(id.high(), id.low())
}

type Configs<'b> = WIPOffset<Vector<'b, ForwardsUOffset<fb::Config<'b>>>>;

pub(super) fn configs_out<'b, 's>(
    out: &mut Out<'b>,
    configs: impl Iterator<Item = (&'s String, Option<&'s String>)>,
) -> Configs<'b> {
    let configs: Vec<_> = configs
        .map(|(name, value)| {
            let args = fb::ConfigArgs {
                name: Some(out.create_string(name)),
                value: value.map(|value| out.create_string(value)),
            };
            fb::Config::create(out, &args)
        })
        .collect();
    out.create_vector(&configs)
}

pub(super) fn configs_in(configs: Vector<'_, ForwardsUOffset<fb::Config<'_>>>) -> Vec<(String, Option<String>)> {
    configs.iter().map(|config| (config.name().to_owned(), config.value().map(str::to_owned))).collect()
}

pub(super) fn topic_out<'b>(out: &mut FlatBufferBuilder<'b>, topic: &Topic) -> WIPOffset<fb::Topic<'b>> {
    let partitions: Vec<_> = topic
        .partitions
        .iter()
        .map(|partition| {
            let replicas = Some(out.create_vector(&partition.replicas));
            let founders = (!partition.founders.is_empty()).then(|| out.create_vector(&partition.founders));
            fb::Partition::create(out, &fb::PartitionArgs { group: partition.group.0, replicas, founders })
        })
        .collect();
    let configs = topic.configs.iter().map(|(name, value)| (name, Some(value)));
    let args = fb::TopicArgs {
        name: Some(out.create_string(&topic.name)),
        id: Some(&uuid_out(topic.id)),
        partitions: Some(out.create_vector(&partitions)),
        configs: Some(configs_out(out, configs)),
        created_ms: topic.created_ms,
    };
    fb::Topic::create(out, &args)
}

pub(super) fn topic_in(topic: fb::Topic<'_>) -> Topic {
    let partitions = topic.partitions().iter();
    let configs = configs_in(topic.configs()).into_iter();
    Topic {
        name: topic.name().into(),
        id: uuid_in(topic.id()),
        partitions: partitions
            .map(|partition| Partition {
                group: GroupId(partition.group()),
                replicas: partition.replicas().iter().collect(),
                founders: partition.founders().into_iter().flatten().collect(),
            })
            .collect(),
        configs: configs.map(|(name, value)| (name, value.unwrap_or_default())).collect(),
        created_ms: topic.created_ms(),
    }
}
