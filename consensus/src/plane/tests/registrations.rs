//! Brokers that register with the node id of another.

use crate::plane::tests::*;

/// A registration of broker 3 with this disk and incarnation.
fn of_three(disk: u32, incarnation: u64) -> Command {
    let Command::RegisterBroker { broker } = register(3, peer_id(3, disk), 0) else { unreachable!() };
    Command::RegisterBroker { broker: Broker { incarnation, ..broker } }
}

fn peer_of_three(world: &World) -> Option<u64> {
    world.nodes[0].plane.cluster.brokers().find(|broker| broker.node == 3).map(|broker| broker.peer)
}

const CUT: [(i32, i32); 4] = [(1, 3), (3, 1), (2, 3), (3, 2)];

#[test]
fn a_new_disk_gets_the_node_id_of_a_broker_only_once_that_broker_is_fenced() {
    let mut world = World::new();
    for node in 1..=3 {
        submit_command(&mut world, 1, register(node, peer_id(node, 7), 0));
    }
    world.run(30);
    let taken = Err(Rejection::NodeIdTaken { node: 3, incarnation: 1, address: "h:1".into() });
    let end = world.node(1).group.last_index();
    for by in [1, 3] {
        let token = submit_command(&mut world, by, of_three(8, 2));
        world.run(1);
        assert_eq!(result(&mut world, by, token), taken);
    }
    assert_eq!(world.node(1).group.last_index(), end, "the log has none of them");
    // The same disk may, as any number of processes.
    let token = submit_command(&mut world, 3, of_three(7, 1));
    world.run(1);
    assert_eq!(result(&mut world, 3, token), Ok(Outcome::BrokerRegistered));

    world.cut.extend(CUT);
    world.run(45);
    // The log has no room until broker 3 is heard again. It is not alive yet, but about to be.
    world.room = 0;
    let token = submit_command(&mut world, 1, of_three(8, 2));
    world.run(1);
    world.cut.clear();
    world.run(20);
    assert_eq!(result(&mut world, 1, token), taken);
    world.room = usize::MAX;
    world.run(5);

    world.cut.extend(CUT);
    world.run(45);
    let token = submit_command(&mut world, 1, of_three(8, 2));
    world.run(1);
    assert_eq!(result(&mut world, 1, token), Ok(Outcome::BrokerRegistered));
    assert_eq!(peer_of_three(&world), Some(peer_id(3, 8)));
    // The slices refuse the former disk, for good.
    let token = submit_command(&mut world, 1, of_three(7, 3));
    world.run(1);
    assert_eq!(result(&mut world, 1, token), Err(Rejection::PeerGone { node: 3, peer: peer_id(3, 7) }));
}

#[test]
fn the_second_of_two_new_disks_with_one_node_id_waits() {
    let mut world = World::new();
    let first = submit_command(&mut world, 1, of_three(8, 5));
    let second = submit_command(&mut world, 1, of_three(9, 6));
    world.run(1);
    assert_eq!(result(&mut world, 1, first), Ok(Outcome::BrokerRegistered));
    assert_eq!(result(&mut world, 1, second), Err(Rejection::StaleBroker { node: 3, incarnation: 5 }));
    assert_eq!(peer_of_three(&world), Some(peer_id(3, 8)));
}

fn status_of_three(world: &World) -> Option<BrokerStatus> {
    world.nodes[0].plane.cluster.brokers().find(|broker| broker.node == 3).map(|broker| broker.status)
}

/// Three registered brokers, of which the third is cut off and fenced.
fn with_three_fenced() -> World {
    let mut world = World::new();
    for node in 1..=3 {
        submit_command(&mut world, 1, register(node, peer_id(node, 7), 0));
    }
    world.run(5);
    world.cut.extend(CUT);
    world.run(45);
    assert_eq!(status_of_three(&world), Some(BrokerStatus::Fenced));
    world
}

#[test]
fn a_fenced_broker_stays_fenced_under_a_new_leader_until_that_one_hears_it() {
    let mut world = with_three_fenced();
    let node = world.node(1);
    assert!(node.plane.hand_over(&mut node.group, |peer| node_of(peer) == 2));
    world.settle();
    for _ in 0..60 {
        world.run(1);
        assert_eq!(status_of_three(&world), Some(BrokerStatus::Fenced));
    }
    assert_eq!(world.leader(), 2);
    world.cut.clear();
    world.run(20);
    assert_eq!(status_of_three(&world), Some(BrokerStatus::Alive));
}

#[test]
fn a_broker_that_registers_again_has_one_session_for_its_first_beat() {
    let mut world = with_three_fenced();
    let token = submit_command(&mut world, 1, of_three(7, 2));
    world.settle();
    assert_eq!(result(&mut world, 1, token), Ok(Outcome::BrokerRegistered));
    for _ in 0..29 {
        assert_eq!(status_of_three(&world), Some(BrokerStatus::Alive));
        world.run(1);
    }
    world.run(5);
    assert_eq!(status_of_three(&world), Some(BrokerStatus::Fenced), "nobody has heard it");
}
