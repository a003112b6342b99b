//! Encodings that commands, snapshots and answers to queries share.

use super::{Broker, BrokerStatus, HostPort};
use crate::generated::metadata::millrace::metadata as fb;
use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, WIPOffset};
use uuid::Uuid;

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
