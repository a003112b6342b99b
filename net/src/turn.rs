//! How much work a request may do before others of its core have their turn.
//! Pure: whoever works takes from a share, and gives way when it is spent.

/// Bytes that a request reads, checks or decompresses in one turn: below a millisecond of any codec's work.
pub const BYTES_A_TURN: usize = 256 << 10;
/// Entries of a request or an answer that are looked at in one turn.
pub const ENTRIES_A_TURN: usize = 1024;
/// Records of batches that are looked at in one turn.
pub const RECORDS_A_TURN: usize = 16 << 10;
/// Bytes that are only summed for their CRC count for one in so many.
pub const SUMMED_BYTES_PER_BYTE: usize = 8;

/// What is left of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub bytes: usize,
    pub entries: usize,
    pub records: usize,
}

impl Share {
    /// A whole turn's.
    pub const TURN: Share = Share { bytes: BYTES_A_TURN, entries: ENTRIES_A_TURN, records: RECORDS_A_TURN };

    pub fn is_spent(&self) -> bool {
        self.bytes == 0 || self.entries == 0 || self.records == 0
    }

    pub fn take_bytes(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    pub fn take_entry(&mut self) {
        self.entries = self.entries.saturating_sub(1);
    }

    pub fn take_entries(&mut self, entries: usize) {
        self.entries = self.entries.saturating_sub(entries);
    }

    pub fn take_record(&mut self) {
        self.records = self.records.saturating_sub(1);
    }
}
