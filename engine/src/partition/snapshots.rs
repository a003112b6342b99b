//! Snapshots, for a replica that lacks entries which the log no longer holds because retention has moved its start.
//! A snapshot says where the log begins. Everything from there on follows as entries.
//!
//! A snapshot holds no records, so it is one message. It carries the position before the first entry still held,
//! and the members as of that position. It also carries the offset at which the log begins, and the idempotent
//! producers, which only the dropped entries name.

use super::{Partition, State};
use crate::{
    log_limit::Admitted,
    partition::{
        host::Host,
        producers::{Producers, RestoreError},
        ready,
    },
};
use bytes::Bytes;
use consensus::{
    group::{Message, SnapshotMark, descriptor::OFFSET_MAX},
    wire::PeerMessage,
};
use net::peer::Lane;
use runtime::clock;
use std::rc::Rc;
use types::{Position, RaftIndex};
use wal::store::{AppState, AppendError, LogMark, LogPos};

/// Most bytes of idempotent producers in a snapshot. They are stored as one record of the ring.
const PRODUCERS_BYTES_MAX: usize = 64 << 10;

/// The contents of a snapshot's message besides its position and members.
struct Begin {
    /// The offset at which its log begins.
    offset: u64,
    producers: Producers,
    /// The producers, encoded.
    blob: Bytes,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum BeginError {
    #[error("it does not say where its log begins")]
    Short,
    #[error("its log begins at offset {0}, beyond the last offset {OFFSET_MAX}")]
    Offset(u64),
    #[error("its log begins at offset {offset}, but records up to {committed} are committed here")]
    BelowCommitted { offset: u64, committed: u64 },
    #[error(transparent)]
    Producers(#[from] RestoreError),
}

impl Begin {
    fn decode(context: &[u8]) -> Result<Self, BeginError> {
        let (offset, producers) = context.split_first_chunk().ok_or(BeginError::Short)?;
        let offset = u64::from_le_bytes(*offset);
        if offset > OFFSET_MAX {
            return Err(BeginError::Offset(offset));
        }
        Ok(Self { offset, producers: Producers::restore(producers)?, blob: Bytes::copy_from_slice(producers) })
    }
}

/// A snapshot that is being stepped.
pub(super) struct Coming {
    index: RaftIndex,
    /// The offset at which its log begins.
    offset: u64,
    producers: Producers,
    /// The producers, encoded.
    blob: Bytes,
}

impl Partition {
    /// Gives the group the snapshot that a peer needs, if one needs any.
    pub(super) fn cut_snapshot_if_wanted(&self, core: &Rc<impl Host>) {
        if self.replica.with(|raft| raft.snapshot_wanted()) {
            self.cut_snapshot(core);
        }
    }

    fn cut_snapshot(&self, core: &Rc<impl Host>) {
        let Some(log) = core.store().log(self.group()) else { return };
        self.replica.with(|raft| {
            let index = log.first_index.prev();
            raft.forget(index);
            if let Some(term) = raft.term_at(index) {
                raft.set_snapshot(SnapshotMark { at: Position { index, term }, conf_state: raft.conf_state_at(index) });
            }
        });
    }

    pub(super) fn send_snapshot(&self, core: &Rc<impl Host>, mut message: Message) {
        let index = RaftIndex::new(message.get_snapshot().get_metadata().index);
        let to = message.to;
        let log = core.store().log(self.group());
        let Some(log) = log.filter(|log| log.first_index == index.next()) else {
            // The log's start has moved since.
            self.cut_snapshot(core);
            return self.replica.with(|raft| raft.report_snapshot(to, false));
        };
        let mut context = log.first_offset.to_le_bytes().to_vec();
        context.extend_from_slice(&self.state.borrow().producers.snapshot_at(index, PRODUCERS_BYTES_MAX));
        message.context = context.into();
        if let Some(Admitted { left_out }) =
            core.partition_log().admit(clock::now(), self.group(), "sending a snapshot")
        {
            tracing::info!(
                partition = %self.name, to, %index, offset = log.first_offset, left_out,
                "sending a snapshot: a replica lacks entries before the log's start"
            );
        }
        core.metrics().replication_snapshots_total.add(1);
        core.send_on(Lane::Data, to, PeerMessage::Raft { group: self.group(), message });
        self.replica.with(|raft| raft.report_snapshot(to, true));
    }

    pub(super) fn take_snapshot(self: &Rc<Self>, core: &Rc<impl Host>, message: Message) {
        let index = RaftIndex::new(message.get_snapshot().get_metadata().index);
        let Begin { offset, producers, blob } = match Begin::decode(&message.context) {
            Ok(begin) => begin,
            Err(why) => return self.snapshot_dropped(core, &why.to_string()),
        };
        if !self.replica.is_fit(core, &message) {
            return;
        }
        if index > self.replica.with(|raft| raft.commit()) && offset < self.high_watermark() {
            let why = BeginError::BelowCommitted { offset, committed: self.high_watermark() };
            return self.snapshot_dropped(core, &why.to_string());
        }
        self.coming.replace(Some(Coming { index, offset, producers, blob }));
        self.replica.with(|raft| raft.step_snapshot(message));
        ready::stage(core, &**self);
        self.coming.take();
    }

    fn snapshot_dropped(&self, core: &Rc<impl Host>, why: &str) {
        if let Some(Admitted { left_out }) = core.partition_log().admit(clock::now(), self.group(), why) {
            tracing::warn!(partition = %self.name, why, left_out, "a snapshot was dropped");
        }
    }

    /// Restarts the log after the snapshot that was just stepped.
    pub(super) fn begin_anew(&self, core: &Rc<impl Host>, mark: &SnapshotMark) -> Result<LogPos, AppendError> {
        let coming = self.coming.take().expect("a snapshot is stepped and taken in one step");
        let Coming { index, offset, mut producers, blob } = coming;
        assert_eq!(index, mark.at.index, "the stepped snapshot is the received one");
        tracing::info!(partition = %self.name, %index, offset, "restarting the log where the leader's log begins");
        producers.commit_to(index);
        let app = AppState { index, blob, conf_state: mark.conf_state.clone() };
        let state = self.replica.with(|raft| raft.hard_state_with(index));
        let at = LogMark { index, term: mark.at.term, offset };
        let position = core.store().restart_log(self.group(), state, at, app)?;
        self.state.replace(State { producers, end: offset, high_watermark: offset, ..State::default() });
        self.count_producers(core);
        self.wake_fetches();
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_whose_log_begins_beyond_the_last_offset_is_dropped() {
        let context = |offset: u64| {
            [&offset.to_le_bytes()[..], &Producers::default().snapshot_at(RaftIndex::ZERO, 1 << 10)].concat()
        };
        let decode = |context: &[u8]| Begin::decode(context).map(|begin| begin.offset);
        for offset in [0, 7, OFFSET_MAX] {
            assert_eq!(decode(&context(offset)), Ok(offset));
        }
        for offset in [OFFSET_MAX + 1, u64::MAX] {
            assert_eq!(decode(&context(offset)), Err(BeginError::Offset(offset)));
        }
        assert_eq!(decode(&[0; 7]), Err(BeginError::Short));
        assert!(matches!(decode(&[0; 9]), Err(BeginError::Producers(_))));
    }
}
