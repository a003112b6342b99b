//! The cluster's brokers, as clients see them.
//!
//! Every broker gives the same answer, with one exception. A broker always lists itself, under its configured
//! address, since the client has just reached it.

use super::Core;
use crate::{cluster::placement::Candidates, liveness};
use consensus::metadata::{Broker, BrokerStatus};
use net::{StrBytes, codec::produce::NodeEndpoint, messages::BrokerId};
use std::collections::BTreeMap;

/// The address at which clients reach a broker, and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: i32,
    pub host: StrBytes,
    pub port: u16,
    pub rack: Option<StrBytes>,
    /// Silent for too long, so clients are no longer sent there.
    pub fenced: bool,
}

/// All registered brokers by id, including the fenced ones.
pub fn all(core: &Core) -> Vec<Node> {
    let registered = core.view(|view| view.brokers().map(|broker| registered(broker)).collect());
    with_own(registered, own(core))
}

/// The brokers that clients may use, by id.
pub fn alive(core: &Core) -> Vec<Node> {
    all(core).into_iter().filter(|node| !node.fenced).collect()
}

pub fn alive_ids(core: &Core) -> Vec<i32> {
    alive(core).into_iter().map(|node| node.id).collect()
}

/// The brokers that new partitions with `factor` replicas may go to, without those in `full`. If enough live
/// brokers are reachable and report that they are healthy, only those are returned. Otherwise all live brokers are
/// returned, and the fenced ones beside them.
pub fn placeable(core: &Core, factor: usize, full: &[i32]) -> Candidates {
    let Candidates { mut live, mut away } = candidates(core);
    live.retain(|node| !full.contains(node));
    away.retain(|node| !full.contains(node));
    let well: Vec<i32> = live.iter().copied().filter(|node| is_well(core, *node)).collect();
    if well.len() >= factor {
        return Candidates { live: well, away: Vec::new() };
    }
    Candidates { live, away }
}

/// All registered brokers, with the fenced ones apart.
pub fn candidates(core: &Core) -> Candidates {
    let (away, live): (Vec<Node>, Vec<Node>) = all(core).into_iter().partition(|node| node.fenced);
    let ids = |nodes: Vec<Node>| nodes.into_iter().map(|node| node.id).collect();
    Candidates { live: ids(live), away: ids(away) }
}

/// Whether a broker can be reached from here and reports that it is healthy.
pub fn is_well(core: &Core, node: i32) -> bool {
    match node == core.node() {
        true => liveness::is_well(core),
        false => !(core.away().contains(&node) || core.groups.is_ill(node)),
    }
}

/// The addresses of these leaders, each once (KIP-951).
pub fn endpoints(core: &Core, leaders: impl IntoIterator<Item = i32>) -> Vec<NodeEndpoint> {
    let mut leaders = leaders.into_iter().peekable();
    if leaders.peek().is_none() {
        return Vec::new();
    }
    let nodes: BTreeMap<i32, Node> = alive(core).into_iter().map(|node| (node.id, node)).collect();
    select(nodes, leaders)
}

fn select(mut nodes: BTreeMap<i32, Node>, leaders: impl Iterator<Item = i32>) -> Vec<NodeEndpoint> {
    leaders
        .filter_map(|leader| nodes.remove(&leader))
        .map(|node| NodeEndpoint { node_id: node.id, host: node.host, port: i32::from(node.port), rack: node.rack })
        .collect()
}

/// The broker to which clients send changes of metadata: the leader of the metadata group. If this broker knows no
/// leader, or can't reach it, it names itself and holds the changes until there is one. The reason is librdkafka:
/// after an answer that names a lost controller, it may not ask again for minutes.
pub fn controller(core: &Core) -> BrokerId {
    BrokerId(core.controller().unwrap_or(core.node()))
}

fn registered(broker: &Broker) -> Node {
    Node {
        id: broker.node,
        host: StrBytes::from_string(broker.kafka.host.clone()),
        port: broker.kafka.port,
        rack: broker.rack.clone().map(StrBytes::from_string),
        fenced: broker.status == BrokerStatus::Fenced,
    }
}

fn own(core: &Core) -> Node {
    let (host, port) = core.advertised();
    Node { id: core.node(), host: StrBytes::from_string(host.to_owned()), port, rack: None, fenced: false }
}

fn with_own(registered: Vec<Node>, own: Node) -> Vec<Node> {
    let mut nodes: BTreeMap<i32, Node> = registered.into_iter().map(|node| (node.id, node)).collect();
    let rack = nodes.remove(&own.id).and_then(|node| node.rack);
    nodes.insert(own.id, Node { rack, ..own });
    nodes.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: i32, host: &'static str, fenced: bool) -> Node {
        Node { id, host: StrBytes::from_static_str(host), port: 9092, rack: None, fenced }
    }

    #[test]
    fn the_own_broker_is_told_of_as_it_is_configured() {
        let own = node(2, "here", false);
        assert_eq!(with_own(Vec::new(), own.clone()).len(), 1, "before it is registered");
        let registered = vec![node(1, "one", false), node(2, "old", true), node(3, "three", true)];
        assert_eq!(with_own(registered, own.clone()), [node(1, "one", false), own, node(3, "three", true)]);
    }

    #[test]
    fn each_leader_hinted_at_has_one_endpoint() {
        let nodes = || [node(1, "one", false), node(3, "three", false)].map(|node| (node.id, node)).into();
        let told = select(nodes(), [3, 1, 3, 9].into_iter());
        assert_eq!(
            told.iter().map(|told| (told.node_id, told.host.as_str())).collect::<Vec<_>>(),
            [(3, "three"), (1, "one")]
        );
        assert_eq!(select(nodes(), [].into_iter()), []);
    }
}
