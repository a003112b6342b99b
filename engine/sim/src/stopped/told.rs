//! A broker tells producers and operators when something fails.

use super::{META, answers, restart};
use crate::{
    counts::Calm,
    net::net,
    node::{Ailment, Node},
};
use consensus::plane::node_of;
use engine::cluster::meta;
use net::errors::ErrorCode;
use std::{
    cell::Cell,
    io::{self, Write},
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

/// Longer than a stop takes.
const STOP: Duration = Duration::from_secs(30);
/// So slow that nothing becomes durable any more.
const STUCK: Duration = Duration::from_secs(100_000);

/// The lines that were logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the lines that this thread logs during `work`.
pub(super) fn logged(work: impl FnOnce()) -> String {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, work);
    let lines = lines.0.lock().unwrap();
    String::from_utf8_lossy(&lines).into_owned()
}

#[test]
fn a_failed_ring_is_told() {
    let calm = Calm::new(3, 1);
    let node = calm.nodes[0].clone();
    let metrics = node.core().expect("it runs").metrics.clone();
    assert_eq!((answers(&calm, &node), metrics.storage_failed.get()), (vec![0, 0], 0));
    node.ail(Ailment { broken: true, ..Ailment::default() });
    let told = ErrorCode::KafkaStorageError.code();
    // The records of the first request were being written.
    for request in 0..2 {
        assert_eq!(answers(&calm, &node), [told, told], "request {request}");
    }
    assert_eq!(metrics.storage_failed.get(), 1);
    let notices = metrics.stopped.all();
    let [(META, notice)] = &notices[..] else { panic!("{notices:?}") };
    assert!(notice.starts_with("the metadata: the storage of core 0 failed: "), "{notice}");
    restart(&calm, &node);
    assert_eq!(answers(&calm, &node), [0, 0], "the ring is written from where it was");
}

#[test]
fn a_hand_over_that_does_not_end_in_time_is_told() {
    let calm = Calm::new(4, 3);
    let leader = calm.leader().clone();
    let next = {
        let core = leader.core().expect("it runs");
        let group = core.view(|view| view.topic("counts").expect("it was created").partitions[0].group);
        let replicas = core.partition(group).expect("it leads it").replicas();
        replicas.into_iter().find(|node| *node != leader.id).expect("there are others")
    };
    let next = calm.nodes.iter().find(|node| node.id == next).expect("it has a replica");
    // It can be reached, and cannot vote for itself.
    next.ail(Ailment { slow: STUCK, ..Ailment::default() });
    let lines = logged(|| {
        leader.stop(&calm.world);
        calm.pass(STOP);
    });
    assert!(lines.contains("WARN") && lines.contains("gave up handing over partition leaderships"), "{lines}");
    assert!(leader.down.get(), "it has stopped all the same");
}

#[test]
fn partition_leaderships_that_are_lost_while_they_are_handed_over_are_told() {
    let calm = Calm::new(7, 3);
    let leader = calm.leader().clone();
    // They can be reached, and answer no leader once they have something to write.
    for other in calm.nodes.iter().filter(|node| node.id != leader.id) {
        other.ail(Ailment { slow: STUCK, ..Ailment::default() });
    }
    let lines = logged(|| {
        leader.stop(&calm.world);
        calm.pass(STOP);
    });
    assert!(lines.contains("WARN") && lines.contains("lost partition leaderships while handing them over"), "{lines}");
    assert!(!lines.contains("handed over the partition leaderships"), "{lines}");
    assert!(leader.down.get(), "it has stopped all the same");
}

fn metadata_leader(calm: &Calm) -> Rc<Node> {
    let leads = |node: &&Rc<Node>| {
        let core = node.core().expect("it runs");
        core.meta().with(|plane, _| plane.is_established())
    };
    calm.nodes.iter().find(leads).expect("somebody leads it").clone()
}

/// The broker that the metadata's leader hands over to if all have the same log.
fn metadata_heir(calm: &Calm, leader: &Node) -> Rc<Node> {
    let heir = leader.core().expect("it runs").meta().with(|_, raft| {
        let others = raft.progress().into_iter().filter(|peer| peer.peer != raft.peer());
        others.max_by_key(|peer| peer.matched).expect("there are others").peer
    });
    calm.nodes.iter().find(|node| node.id == node_of(heir)).expect("it is one of them").clone()
}

/// Hands the metadata over, as a stop does. Returns what is logged meanwhile.
fn hand_metadata_over(calm: &Calm, leader: &Node) -> String {
    logged(|| {
        let (core, is_over) = (leader.core().expect("it runs"), Rc::new(Cell::new(false)));
        let told = is_over.clone();
        calm.world.spawn(leader.process, async move {
            meta::hand_over(&core).await;
            told.set(true);
        });
        calm.until(|| is_over.get());
    })
}

#[test]
fn a_hand_over_of_the_metadata_is_told_with_its_heir() {
    let calm = Calm::new(8, 3);
    let leader = metadata_leader(&calm);
    let heir = metadata_heir(&calm, &leader).id;
    let lines = hand_metadata_over(&calm, &leader);
    assert!(
        lines.contains("handed over leadership of the metadata group") && lines.contains(&format!("to={heir}")),
        "{lines}"
    );
}

#[test]
fn a_hand_over_of_the_metadata_that_does_not_end_in_time_is_told() {
    let calm = Calm::new(9, 3);
    let leader = metadata_leader(&calm);
    // It can be reached, and cannot vote for itself. The third broker still answers the leader.
    metadata_heir(&calm, &leader).ail(Ailment { slow: STUCK, ..Ailment::default() });
    let lines = hand_metadata_over(&calm, &leader);
    assert!(
        lines.contains("WARN") && lines.contains("gave up handing over leadership of the metadata group"),
        "{lines}"
    );
    assert_eq!(metadata_leader(&calm).id, leader.id);
}

#[test]
fn a_leader_of_the_metadata_that_steps_down_while_it_hands_over_says_so() {
    // Every 800 ms the leader counts who has answered since. At one of these moments the heir has answered, and the
    // others no more.
    for wait in (100..1000).step_by(100) {
        let calm = Calm::new(10, 5);
        let leader = metadata_leader(&calm);
        let heir = metadata_heir(&calm, &leader);
        for other in calm.nodes.iter().filter(|node| node.id != leader.id && node.id != heir.id) {
            net().cut(leader.id, other.id);
            net().cut(other.id, leader.id);
        }
        calm.pass(Duration::from_millis(wait));
        heir.ail(Ailment { slow: STUCK, ..Ailment::default() });
        let lines = hand_metadata_over(&calm, &leader);
        assert!(!lines.contains("handed over leadership of the metadata group"), "{wait} ms: {lines}");
        if lines.contains("lost leadership of the metadata group while handing it over") {
            return;
        }
    }
    panic!("it never steps down");
}
