//! Limits how much work a request may do before it yields to other requests on its core.
//! Pure: the worker takes from a share and yields when the share is spent.

/// Bytes that a request reads, checks or decompresses in one turn. Every codec needs less than a millisecond for
/// them.
pub const BYTES_A_TURN: usize = 256 << 10;
/// Entries of a request or a response that are processed in one turn.
pub const ENTRIES_A_TURN: usize = 1024;
/// Records of batches that are processed in one turn.
pub const RECORDS_A_TURN: usize = 16 << 10;
/// Computing a CRC is cheap: this many bytes summed for a CRC count as one byte of a share.
pub const SUMMED_BYTES_PER_BYTE: usize = 8;

/// The rest of a turn's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub bytes: usize,
    pub entries: usize,
    pub records: usize,
}

impl Share {
    /// The share of one whole turn.
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
