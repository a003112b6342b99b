//! Gathers a connection's records into one open batch per partition and says which are to be sent. Pure.
//!
//! A batch is ready once it is full, or once its first record is `linger_ns` past its intended time. The oldest leaves
//! first. Records are known by their intended times alone; what they weigh is the same for all.

use std::collections::VecDeque;

/// One partition's records, on their way to or in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Index into the connection's partitions.
    pub partition: usize,
    /// When each record was meant to be sent, in order.
    pub intended_ns: Vec<u64>,
}

#[derive(Debug)]
pub struct Batcher {
    linger_ns: u64,
    records_max: usize,
    open: Vec<Vec<u64>>,
    /// Partitions whose open batch holds records, by the intended time of the first.
    order: VecDeque<usize>,
    /// Batches that are full.
    full: VecDeque<Batch>,
    /// The partition that the next record goes to.
    next: usize,
    records: usize,
}

impl Batcher {
    pub fn new(partitions: usize, linger_ns: u64, records_max: usize) -> Batcher {
        assert!(partitions > 0 && records_max > 0, "{partitions} partitions, {records_max} records per batch");
        Batcher {
            linger_ns,
            records_max,
            open: vec![Vec::new(); partitions],
            order: VecDeque::new(),
            full: VecDeque::new(),
            next: 0,
            records: 0,
        }
    }

    /// Adds a record to the next partition in turn. Intended times must not go back.
    pub fn push(&mut self, intended_ns: u64) {
        let partition = self.next;
        self.next = (partition + 1) % self.open.len();
        let open = &mut self.open[partition];
        if open.is_empty() {
            self.order.push_back(partition);
        }
        open.push(intended_ns);
        self.records += 1;
        if open.len() == self.records_max {
            let intended_ns = std::mem::take(open);
            self.order.retain(|p| *p != partition);
            self.full.push_back(Batch { partition, intended_ns });
        }
    }

    /// The next batch that is to be sent at this time, if `fits` takes its partition: a request names each once.
    pub fn take_ready(&mut self, now_ns: u64, fits: impl Fn(usize) -> bool) -> Option<Batch> {
        let batch = if let Some(full) = self.full.front() {
            fits(full.partition).then(|| self.full.pop_front()).flatten()?
        } else {
            self.deadline_ns().filter(|deadline| *deadline <= now_ns)?;
            let partition = self.order.front().copied().filter(|partition| fits(*partition))?;
            self.order.pop_front();
            Batch { partition, intended_ns: std::mem::take(&mut self.open[partition]) }
        };
        self.records -= batch.intended_ns.len();
        Some(batch)
    }

    /// When the oldest open batch becomes ready by time.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.order.front().map(|partition| self.open[*partition][0] + self.linger_ns)
    }

    /// Makes everything ready: no further record will come.
    pub fn close(&mut self) {
        self.linger_ns = 0;
    }

    /// Records held.
    pub fn len(&self) -> usize {
        self.records
    }

    pub fn is_empty(&self) -> bool {
        self.records == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(partition: usize, intended_ns: &[u64]) -> Option<Batch> {
        Some(Batch { partition, intended_ns: intended_ns.to_vec() })
    }

    #[test]
    fn a_batch_waits_for_its_linger() {
        let mut batcher = Batcher::new(2, 100, 10);
        for time in [5, 6, 7] {
            batcher.push(time);
        }
        assert_eq!(batcher.deadline_ns(), Some(105));
        assert_eq!(batcher.take_ready(104, |_| true), None);
        assert_eq!(batcher.take_ready(105, |_| true), batch(0, &[5, 7]));
        assert_eq!(batcher.take_ready(105, |_| true), None);
        assert_eq!(batcher.take_ready(106, |_| true), batch(1, &[6]));
        assert!(batcher.is_empty());
        assert_eq!(batcher.deadline_ns(), None);
    }

    #[test]
    fn a_full_batch_waits_for_nothing() {
        let mut batcher = Batcher::new(2, 1_000, 2);
        for time in [1, 2, 3, 4, 5] {
            batcher.push(time);
        }
        assert_eq!(batcher.len(), 5);
        assert_eq!(batcher.take_ready(5, |_| true), batch(0, &[1, 3]));
        assert_eq!(batcher.take_ready(5, |_| true), batch(1, &[2, 4]));
        assert_eq!(batcher.take_ready(5, |_| true), None);
        assert_eq!(batcher.deadline_ns(), Some(1_005));
        batcher.close();
        assert_eq!(batcher.take_ready(5, |_| true), batch(0, &[5]));
        assert!(batcher.is_empty());
    }

    #[test]
    fn without_linger_what_is_due_leaves_at_once_and_together() {
        let mut batcher = Batcher::new(1, 0, 100);
        batcher.push(10);
        batcher.push(20);
        assert_eq!(batcher.take_ready(20, |_| true), batch(0, &[10, 20]));
    }

    #[test]
    fn a_batch_that_does_not_fit_stays_and_holds_those_behind_it() {
        let mut batcher = Batcher::new(2, 0, 2);
        for time in [1, 2, 3, 4, 5, 6] {
            batcher.push(time);
        }
        assert_eq!(batcher.take_ready(6, |partition| partition != 0), None);
        assert_eq!(batcher.take_ready(6, |_| true), batch(0, &[1, 3]));
        assert_eq!(batcher.take_ready(6, |_| true), batch(1, &[2, 4]));
        assert_eq!(batcher.take_ready(6, |partition| partition != 0), None);
        assert_eq!(batcher.take_ready(6, |partition| partition == 0), batch(0, &[5]));
        assert_eq!(batcher.len(), 1);
    }

    #[test]
    fn a_partition_that_filled_up_takes_its_place_in_order_anew() {
        let mut batcher = Batcher::new(2, 10, 2);
        for time in [1, 2, 3] {
            batcher.push(time);
        }
        // Partition 0 is full; 1 is the oldest that is open.
        assert_eq!(batcher.deadline_ns(), Some(12));
        assert_eq!(batcher.take_ready(3, |_| true), batch(0, &[1, 3]));
        batcher.next = 0;
        batcher.push(4);
        assert_eq!(batcher.take_ready(14, |_| true), batch(1, &[2]));
        assert_eq!(batcher.take_ready(14, |_| true), batch(0, &[4]));
    }
}
