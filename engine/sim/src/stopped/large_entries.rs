//! Metadata commands near and above what a segment of the ring takes. None of them may stop a broker.

use super::{answers, notices};
use crate::{counts::Calm, node::Node};
use consensus::metadata::{self, Command, Outcome, Rejection};
use engine::{
    cluster::meta::{self, CommandResult, SubmitError},
    partition::host::Parts as _,
};
use std::{cell::RefCell, rc::Rc, time::Duration};
use types::META_GROUP;

const MIB: usize = 1 << 20;
/// Segments of the rings are eighths of them: 4 MiB, and 2 MiB on the last broker.
const RINGS: [u64; 3] = [32 << 20, 32 << 20, 16 << 20];
const A_WHILE: Duration = Duration::from_secs(15);

/// A command of about this many bytes.
fn set(name: &str, bytes: usize) -> Command {
    Command::UpdateClusterConfig { node: None, changes: vec![(name.to_owned(), Some("x".repeat(bytes)))] }
}

fn submit(calm: &Calm, node: &Node, commands: Vec<Command>) -> Result<Vec<CommandResult>, SubmitError> {
    let answer = Rc::new(RefCell::new(None));
    let (core, given) = (node.core().expect("it runs"), answer.clone());
    calm.world.spawn(node.process, async move {
        let results = meta::submit(&core, commands).await;
        given.replace(Some(results));
    });
    calm.pass(A_WHILE);
    answer.take().expect("an answer within its time")
}

/// Every broker serves, has this setting, and stores records.
fn all_go_on(calm: &Calm, nodes: &[Rc<Node>], name: &str, bytes: usize) {
    for node in nodes {
        let core = node.core().expect("it runs");
        let found = core.view(|view| view.cluster_config().get(None, name).map(str::len));
        assert_eq!(found, Some(bytes), "broker {}", node.id);
    }
    none_stopped(calm);
}

fn none_stopped(calm: &Calm) {
    for node in &calm.nodes {
        assert!(node.serves() && notices(node).is_empty(), "broker {}: {:?}", node.id, notices(node));
        assert_eq!(node.core().expect("it runs").store.poisoned(), None, "broker {}", node.id);
    }
    assert_eq!(answers(calm, calm.leader())[0], 0);
}

#[test]
fn a_command_that_a_ring_does_not_take_is_rejected_by_name_and_stops_no_broker() {
    let calm = Calm::with_rings(1, &RINGS);
    for (node, name) in calm.nodes.iter().zip(["a", "b", "c"]) {
        let results = submit(&calm, node, vec![set(name, 3 * MIB), set(name, 9)]).expect("an answer");
        let [Err(Rejection::LargestEntry { node: 3, takes, largest }), Ok(Outcome::ClusterConfigUpdated)] = results[..]
        else {
            panic!("{results:?}")
        };
        assert!(takes < 2 * MIB as u64 && largest > 3 * MIB as u64, "{takes} {largest}");
        all_go_on(&calm, &calm.nodes, name, 9);
    }
}

#[test]
fn commands_that_every_ring_takes_are_stored_however_many_come_together() {
    let calm = Calm::with_rings(2, &RINGS);
    let node = &calm.nodes[1];
    let bytes = 3 * MIB / 2;
    submit(&calm, node, vec![set("large", bytes)]).expect("an answer")[0].as_ref().expect("every ring takes it");
    all_go_on(&calm, &calm.nodes, "large", bytes);
    for node in &calm.nodes {
        // A broker with a smaller ring cannot join any more.
        let largest = node.core().expect("it runs").view(|view| view.cluster_config().largest_entry());
        assert!(largest > Some(bytes as u64), "{largest:?}");
    }
    // They are more than a segment, and more than the ring of the last broker.
    let many: Vec<Command> = (0..2_000).map(|n| set(&format!("s{}", n % 10), 10_000)).collect();
    let results = submit(&calm, node, many).expect("an answer");
    assert!(results.iter().all(|result| *result == Ok(Outcome::ClusterConfigUpdated)));
    all_go_on(&calm, &calm.nodes, "s9", 10_000);
}

#[test]
fn a_broker_whose_ring_never_takes_an_entry_lags_behind_and_goes_on() {
    let calm = Calm::with_rings(3, &RINGS);
    let leader =
        calm.nodes.iter().find(|node| node.core().expect("it runs").meta().with(|plane, _| plane.is_established()));
    let leader = leader.expect("one leads");
    assert_ne!(leader.id, 3, "its ring is too small for this test");
    // As from a version that did not compare.
    calm.world.within(leader.process, || {
        let core = leader.core().expect("it runs");
        let replicated = core.group(META_GROUP).expect("it is here");
        let entry = metadata::encode(&[set("large", 3 * MIB)]);
        replicated.replica().propose(entry, None).expect("it leads");
        core.ready_loop.wake(replicated);
    });
    calm.pass(A_WHILE);
    all_go_on(&calm, &calm.nodes[..2], "large", 3 * MIB);
    let last = calm.nodes[2].core().expect("it runs");
    assert_eq!(last.view(|view| view.cluster_config().get(None, "large").map(str::len)), None);
}
