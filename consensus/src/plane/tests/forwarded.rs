//! Writes that wait at the leader for room in the log.

use crate::plane::asked::ASKED_BYTES_MAX;
use crate::plane::tests::*;

#[test]
fn a_forwarded_write_that_finds_no_room_is_dropped_once_its_asker_has_given_up() {
    let mut world = World::new();
    world.room = 100_000;
    let large = submit_command(&mut world, 2, create_with("large", 10_000));
    world.run(60);
    assert!(world.node(2).written.remove(&large).expect("an answer").is_err(), "its deadline is over");
    let delete = Command::DeleteTopic { name: "none".into(), id: Uuid::nil() };
    let small = submit_command(&mut world, 3, delete);
    world.run(30);
    assert!(!world.node(3).written.contains_key(&small), "writes do not pass each other");
    world.run(15);
    assert_eq!(result(&mut world, 3, small), Err(Rejection::UnknownTopic("none".into())));
    assert_eq!(asked_bytes(&world), 0);
}

#[test]
fn forwarded_writes_wait_at_their_brokers_while_the_leader_has_enough() {
    const WRITE: usize = 1 << 20;
    let mut world = World::new();
    world.room = 0;
    let tokens: Vec<Token> = (0..3 * ASKED_BYTES_MAX / WRITE / 2)
        .map(|n| {
            let changes = vec![(format!("setting-{n}"), Some("x".repeat(WRITE)))];
            submit_command(&mut world, 2, Command::UpdateClusterConfig { node: None, changes })
        })
        .collect();
    world.run(3);
    let held = asked_bytes(&world);
    assert!((ASKED_BYTES_MAX..ASKED_BYTES_MAX + WRITE + 1024).contains(&held), "{held} bytes");
    world.room = usize::MAX;
    world.run(30);
    for token in tokens {
        assert_eq!(result(&mut world, 2, token), Ok(Outcome::ClusterConfigUpdated));
    }
    assert_eq!(asked_bytes(&world), 0);
}

#[test]
fn a_broker_that_returns_before_it_is_unregistered_stays() {
    let mut world = World::new();
    for node in 1..=3 {
        submit_command(&mut world, 1, register(node, peer_id(node, 7), 0));
    }
    world.run(30);
    let unregister = |world: &mut World, by| submit_command(world, by, Command::UnregisterBroker { node: 3 });
    let is_fenced = |world: &World| {
        let mut brokers = world.nodes[0].plane.cluster.brokers();
        brokers.find(|broker| broker.node == 3).map(|broker| broker.status == BrokerStatus::Fenced)
    };
    let alive = Err(Rejection::StaleBroker { node: 3, incarnation: 1 });
    assert_eq!(is_fenced(&world), Some(false));
    for by in [1, 2] {
        let token = unregister(&mut world, by);
        world.run(1);
        assert_eq!(result(&mut world, by, token), alive);
    }
    let cut = vec![(1, 3), (3, 1), (2, 3), (3, 2)];
    world.cut.clone_from(&cut);
    world.run(45);
    assert_eq!(is_fenced(&world), Some(true));
    // The log has no room until broker 3 is heard again. The same entry makes it alive.
    world.room = 0;
    let token = unregister(&mut world, 2);
    world.run(1);
    world.cut.clear();
    world.run(20);
    assert_eq!((world.leader(), is_fenced(&world)), (1, Some(true)));
    world.room = usize::MAX;
    world.run(5);
    assert_eq!(result(&mut world, 2, token), alive);
    assert_eq!(is_fenced(&world), Some(false));

    world.cut = cut;
    world.run(45);
    let token = unregister(&mut world, 2);
    world.run(3);
    assert_eq!(result(&mut world, 2, token), Ok(Outcome::BrokerUnregistered));
    assert_eq!(is_fenced(&world), None);
}

/// Bytes of forwarded writes that wait at the leader.
fn asked_bytes(world: &World) -> usize {
    world.nodes[0].plane.lead.as_ref().expect("broker 1 leads").asked.bytes()
}
