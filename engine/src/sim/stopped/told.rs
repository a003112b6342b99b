//! A broker tells producers and operators when something fails.

use super::{META, answers, restart};
use crate::sim::{counts::Calm, node::Ailment};
use net::errors::ErrorCode;
use std::{
    io::{self, Write},
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
fn logged(work: impl FnOnce()) -> String {
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
