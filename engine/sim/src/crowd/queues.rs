//! What must be empty once all clients are gone.

use crate::{
    cluster::Cluster,
    ledger::{Violation, expect},
};
use engine::core::Core;
use types::META_CORE;

/// The queues in which something of a client's request may wait (ARCHITECTURE.md, "Queues"), and their lengths.
pub(super) fn queues(core: &Core) -> [(&'static str, usize); 18] {
    let acks = core.partitions().iter().map(|partition| partition.waiters()).sum();
    let (reads, writes) = core.long_work.waiting();
    let (requests, answers, cold_answers) = (&core.memory.requests, &core.memory.answers, &core.memory.cold_answers);
    [
        ("room in the ring", core.admission.waiting()),
        ("records", core.fetches.waiting()),
        ("the metadata", if core.id() == META_CORE { core.meta().open_questions() } else { 0 }),
        ("acknowledgements", acks),
        ("turns to read", reads),
        ("turns to write", writes),
        ("decoders", core.decoders.waiting()),
        ("lookups by timestamp", core.lookups.len()),
        ("reads from the disk", core.cold_reads.len()),
        ("turns for laggards", core.pace.waiting()),
        ("group coordinators", core.coordinators.unanswered()),
        ("receipts of group coordinators", core.receipts.waiting()),
        ("memory for frames", requests.waiting()),
        ("memory to be decoded", requests.waiting_to_be_decoded()),
        ("requests that hold memory, in bytes", requests.held()),
        ("memory for answers", answers.waiting()),
        ("memory for answers from the disk", cold_answers.waiting()),
        ("answers to be taken, in bytes", answers.held() + cold_answers.held()),
    ]
}

impl Cluster {
    /// Every wait that has not ended on some broker: the broker, the queue and its length.
    pub(crate) fn left_waiting(&self) -> Vec<(i32, &'static str, usize)> {
        let of_nodes = self.nodes.iter().flat_map(|node| node.cores().into_iter().map(|core| (node.id, core)));
        let queues = of_nodes.flat_map(|(id, core)| queues(&core).map(|(what, length)| (id, what, length)));
        let lanes: usize = self.lanes.borrow().iter().map(|client| client.in_lane()).sum();
        queues.chain([(0, "earlier requests of their connections", lanes)]).filter(|(.., length)| *length > 0).collect()
    }

    /// Checks that running counts equal a full recount: partitions, replicas, idempotent producers.
    pub(crate) fn check_counts(&self) -> Result<(), Violation> {
        let cores = self.nodes.iter().flat_map(|node| node.cores().into_iter().map(move |core| (node, core)));
        for (node, core) in cores {
            core.view(|view| view.check_counts());
            let partitions = core.partitions();
            let remembered = partitions.iter().map(|partition| partition.with_producers(|known| known.remembered()));
            let (recounted, counted) = (remembered.sum::<usize>(), core.producers_share.remembered());
            expect(recounted == counted, || {
                format!("broker {} counts {counted} idempotent producers, and remembers {recounted}", node.id)
            })?;
        }
        Ok(())
    }
}
