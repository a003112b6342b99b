//! Consumers' reads of a partition: whole batches below its high watermark.

use super::{Partition, errors::PartitionError, host::Host};
use crate::log_limit::Admitted;
use bytes::Bytes;
use runtime::clock;
use std::{pin::Pin, rc::Rc};
use types::LeaderEpoch;
use wal::store::read::{self as log_read, Read, ReadError};

/// The rest of a read that needs the disk.
pub type ColdFetch = Pin<Box<dyn Future<Output = Result<Vec<Bytes>, PartitionError>>>>;

/// A fetch's result from one partition.
pub enum FetchRead {
    /// From memory, without copying.
    Hot(Vec<Bytes>),
    /// From segments.
    Cold(ColdFetch),
    Refused(PartitionError),
}

impl Partition {
    /// KIP-320: a client with an older leader epoch is fenced. One with a newer epoch retries.
    pub fn check_epoch(&self, core: &Rc<impl Host>, client: LeaderEpoch) -> Result<(), PartitionError> {
        if !self.leads() {
            return Err(self.why_not_led_here(core));
        }
        match client.cmp(&self.leader_epoch()) {
            _ if client.is_none() => Ok(()),
            std::cmp::Ordering::Less => Err(PartitionError::EpochFenced),
            std::cmp::Ordering::Greater => Err(PartitionError::EpochUnknown),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }

    /// Whole batches from the one that holds `offset`, up to offset `below`.
    pub fn read(
        &self,
        core: &Rc<impl Host>,
        offset: u64,
        below: u64,
        bytes_max: usize,
        at_least_one: bool,
    ) -> FetchRead {
        let bytes = |batches: Vec<log_read::Batch>| batches.into_iter().map(|batch| batch.bytes).collect();
        match core.store().read(self.group(), offset, below, bytes_max, at_least_one) {
            Read::Memory(batches) => FetchRead::Hot(bytes(batches)),
            Read::Cold(read) => {
                let (name, group, log) = (self.name.clone(), self.group(), core.partition_log().clone());
                FetchRead::Cold(Box::pin(async move {
                    read.await.map(bytes).map_err(|error| {
                        if matches!(error, ReadError::Changed) {
                            return PartitionError::LogChanged;
                        }
                        if let Some(Admitted { left_out }) = log.admit(clock::now(), group, &error.to_string()) {
                            tracing::error!(partition = %name, offset, %error, left_out, "cannot read a segment");
                        }
                        PartitionError::Storage
                    })
                }))
            }
            Read::OffsetOutOfRange { .. } => FetchRead::Refused(PartitionError::OffsetOutOfRange),
            Read::UnknownGroup => FetchRead::Refused(PartitionError::NotLeader),
        }
    }
}
