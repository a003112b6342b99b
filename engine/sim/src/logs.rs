//! The logs at the end: all replicas have the same log, and it is the one that clients know.

use super::{
    cluster::{Cluster, Target},
    exec,
    ledger::{Value, Violation, expect},
};
use bytes::Bytes;
use engine::partition::{FetchRead, Partition, PartitionError};
use std::{cell::RefCell, rc::Rc, time::Duration};

/// Time that reading one log may take.
const READING: Duration = Duration::from_secs(20);

/// Records with their offsets.
type Records = Vec<(u64, Value)>;

impl Cluster {
    /// Checks that all replicas have the same log, and that it is the one that clients know.
    pub(super) fn check_logs(self: &Rc<Self>) -> Result<(), Violation> {
        let world = exec::world();
        let targets = self.kept_targets();
        for target in targets.iter().filter(|target| target.is_for_clients) {
            let mut logs: Vec<(i32, u64, Records)> = Vec::new();
            for (node, partition) in self.holders(target).collect::<Vec<_>>() {
                let read = Rc::new(RefCell::new(None));
                let (cluster, into, of) = (self.clone(), read.clone(), target.clone());
                let core = node.owner(target.group).expect("it is up");
                world.spawn(node.process, async move {
                    let log = cluster.read_log(&core, &partition, &of).await;
                    let start = log.first().map_or(partition.high_watermark(), |(offset, _)| *offset);
                    *into.borrow_mut() = Some((start, log));
                });
                self.go_on(&world, READING, || read.borrow().is_some())?;
                let (start, log) = read.take().ok_or_else(|| Violation(format!("{target:?} can't be read")))?;
                logs.push((node.id, start, log));
            }
            let Some((first, start, log)) = logs.first() else { continue };
            let next = |log: &[(u64, Value)], start| log.last().map_or(start, |(offset, _)| offset + 1);
            for (node, other_start, other) in &logs[1..] {
                // Replicas may have different log starts. And the last clients' records may still arrive.
                let common = *start.max(other_start)..next(log, *start).min(next(other, *other_start));
                let of = |log: &[(u64, Value)]| {
                    log.iter().filter(|(offset, _)| common.contains(offset)).copied().collect::<Vec<_>>()
                };
                expect(of(log) == of(other), || format!("{target:?}: brokers {first} and {node} have different logs"))?;
            }
            let whole = logs.iter().max_by_key(|(_, start, log)| next(log, *start)).expect("there is one");
            let named = |Violation(why)| Violation(format!("{}-{}: {why}", target.topic, target.partition));
            self.ledger.borrow_mut().of(target.group).is_all(whole.1, &whole.2).map_err(named)?;
            self.summary.borrow_mut().trimmed += u64::from(whole.1 > 0);
        }
        Ok(())
    }

    async fn read_log(&self, core: &Rc<engine::core::Core>, partition: &Rc<Partition>, target: &Target) -> Records {
        let mut log = Vec::new();
        let mut at = partition.log_start(core);
        while at < partition.high_watermark() {
            let found = match partition.read(core, at, partition.high_watermark(), 64 << 10, true) {
                FetchRead::Hot(found) => Ok(found),
                FetchRead::Cold(read) => read.await,
                FetchRead::Refused(error) => Err(error),
            };
            let found: Vec<Bytes> = match found {
                Ok(found) => found,
                // Retention goes on meanwhile.
                Err(PartitionError::OffsetOutOfRange) if at < partition.log_start(core) => {
                    log.clear();
                    at = partition.log_start(core);
                    continue;
                }
                Err(error) => {
                    self.violated(format!("{target:?}: offset {at} can't be read: {error}"));
                    return log;
                }
            };
            let values: Vec<_> = found.iter().flat_map(|bytes| self.values(target, bytes)).collect();
            let values = values.into_iter().filter(|(offset, _)| *offset >= at).collect::<Vec<_>>();
            let Some((last, _)) = values.last() else {
                self.violated(format!("{target:?}: nothing at offset {at}"));
                return log;
            };
            at = last + 1;
            log.extend(values);
        }
        log
    }
}
