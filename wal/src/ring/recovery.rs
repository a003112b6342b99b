//! Reads a ring back: every case of header, body and later writes is a row of [`TABLE`].
//! Lives on: the owning core, before it serves. Only reads.
//!
//! Recovery follows segments in the order of their numbers, and writes in the order of their positions. Where it
//! finds no whole write, later writes decide. If a later write names this position as durable, that is damage and is
//! never cut silently; otherwise it is the unfinished end.
//!
//! One case looks the same as that end: damage to the very last write before an unclean stop. Nothing on the disk
//! records that this write was durable.

use crate::{
    buf::BLOCK,
    disk::File,
    record::LogPos,
    ring::{
        RingStart,
        format::{HEADER_BYTES, RING_VERSION, RingRecord, SeenHeader, WriteHeader, body_crc, decode_body},
    },
};
use bytes::Bytes;
use std::{collections::BTreeMap, io};
use types::planted;

/// The header found where the next write should begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderCase {
    /// A header of this ring for this position.
    Ours,
    Zero,
    /// A header for another position, from an earlier lap.
    Other,
    Garbage,
    /// A header of a newer format.
    Newer,
    /// The segment ends here.
    NoRoom,
}

/// The records found behind the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyCase {
    Whole,
    Broken,
    /// There is no header that describes the records.
    Unknown,
}

/// The evidence of later writes about this position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// There are no later writes, or they prove nothing.
    Nothing,
    /// The next segment continues from here, so anything at this position was cut before.
    NextBegins,
    /// A position above this one was durable.
    Durable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The records count.
    Take,
    /// Continue at the beginning of the next segment.
    NextSegment,
    /// The end; nothing is lost.
    End,
    /// The end; an unfinished write is cut.
    Torn,
    /// Synced bytes are not what was written.
    Damaged,
    /// Written by a newer version.
    Newer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub name: &'static str,
    pub header: HeaderCase,
    pub body: BodyCase,
    pub beyond: Beyond,
    pub verdict: Verdict,
}

const fn row(name: &'static str, header: HeaderCase, body: BodyCase, beyond: Beyond, verdict: Verdict) -> Row {
    Row { name, header, body, beyond, verdict }
}

/// Every case, once.
#[rustfmt::skip]
pub const TABLE: [Row; 21] = {
    use {BodyCase::*, Beyond::*, HeaderCase::*};
    [
        row("last write",                      Ours,    Whole,   Nothing,    Verdict::Take),
        row("write with later ones",           Ours,    Whole,   Durable,    Verdict::Take),
        row("cut, but landed late",            Ours,    Whole,   NextBegins, Verdict::NextSegment),
        row("torn body",                       Ours,    Broken,  Nothing,    Verdict::Torn),
        row("damaged body",                    Ours,    Broken,  Durable,    Verdict::Damaged),
        row("torn body, cut before",           Ours,    Broken,  NextBegins, Verdict::NextSegment),
        row("end before unused space",         Zero,    Unknown, Nothing,    Verdict::End),
        row("zeros over a durable write",      Zero,    Unknown, Durable,    Verdict::Damaged),
        row("segment left before unused space", Zero,   Unknown, NextBegins, Verdict::NextSegment),
        row("end before an earlier lap",       Other,   Unknown, Nothing,    Verdict::End),
        row("earlier lap over a durable write", Other,  Unknown, Durable,    Verdict::Damaged),
        row("segment left before an earlier lap", Other, Unknown, NextBegins, Verdict::NextSegment),
        row("torn header",                     Garbage, Unknown, Nothing,    Verdict::Torn),
        row("damaged header",                  Garbage, Unknown, Durable,    Verdict::Damaged),
        row("torn header, cut before",         Garbage, Unknown, NextBegins, Verdict::NextSegment),
        row("newer format at the end",         Newer,   Unknown, Nothing,    Verdict::Newer),
        row("newer format in the middle",      Newer,   Unknown, Durable,    Verdict::Newer),
        row("newer format, cut before",        Newer,   Unknown, NextBegins, Verdict::Newer),
        row("end in a full segment",           NoRoom,  Unknown, Nothing,    Verdict::End),
        row("missing segment",                 NoRoom,  Unknown, Durable,    Verdict::Damaged),
        row("full segment",                    NoRoom,  Unknown, NextBegins, Verdict::NextSegment),
    ]
};

/// The row for a case.
pub fn judge(header: HeaderCase, body: BodyCase, beyond: Beyond) -> &'static Row {
    TABLE
        .iter()
        .find(|row| (row.header, row.body, row.beyond) == (header, body, beyond))
        .unwrap_or_else(|| panic!("no row for {header:?}, {body:?}, {beyond:?}"))
}

/// One position of a ring.
struct Seen {
    row: &'static Row,
    /// `None`: no write of this ring begins here.
    header: Option<WriteHeader>,
    /// The write's records, if they are what was written.
    body: Option<Vec<RingRecord>>,
}

/// The result of reading a ring.
#[derive(Debug)]
pub struct Recovered {
    pub start: RingStart,
    pub records: Vec<RingRecord>,
    /// The beginning of the oldest segment that counts.
    pub first: LogPos,
    /// The last write was that of a clean shutdown.
    pub clean: bool,
    /// Bytes of an unfinished write, as far as its header says; at least one block if there is one.
    pub torn_bytes: u64,
    /// The row at which recovery ended.
    pub last: &'static Row,
}

#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error("segment file {slot}: {source}")]
    Io { slot: u32, source: io::Error },
    #[error("segment file {slot}, position {}: {what}", pos.0)]
    Damaged { slot: u32, pos: LogPos, what: String },
    #[error("segment file {slot} has the newer format version {found}")]
    Newer { slot: u32, found: u16 },
}

/// Bytes per read while following writes.
const READ_BYTES: usize = 4 << 20;
/// How far into a segment that seems unused recovery searches for a later write. Its first write is no longer than
/// that unless a single entry is.
const SEARCH_BYTES: u64 = (1 << 20) + BLOCK as u64;

/// The first write of each segment that has one, by the segment's number.
type Firsts = BTreeMap<u64, (u32, WriteHeader)>;

struct Scan<'a, F> {
    files: &'a [F],
    segment_bytes: u64,
    epoch: u64,
    ring_id: Option<u64>,
    firsts: Firsts,
    /// Slots whose first block is neither zero nor a valid header.
    garbage: Vec<u32>,
}

/// Reads the ring in `files`, each `segment_bytes` long and indexed by slot. Records below `needed_from` may be
/// missing.
pub async fn recover<F: File>(
    files: &[F],
    segment_bytes: u64,
    epoch: u64,
    needed_from: LogPos,
) -> Result<Recovered, RecoveryError> {
    recover_with(files, segment_bytes, epoch, needed_from, |_, _| {}).await
}

/// Like [`recover`], and calls `seen` with each position and its row.
pub async fn recover_with<F: File>(
    files: &[F],
    segment_bytes: u64,
    epoch: u64,
    needed_from: LogPos,
    seen: impl FnMut(LogPos, &'static Row),
) -> Result<Recovered, RecoveryError> {
    let mut scan = Scan { files, segment_bytes, epoch, ring_id: None, firsts: Firsts::new(), garbage: Vec::new() };
    scan.look_at_firsts().await?;
    scan.follow(needed_from, seen).await
}

impl<F: File> Scan<'_, F> {
    async fn read(&self, slot: u32, offset: u64, len: usize) -> Result<Bytes, RecoveryError> {
        let len = len.min(usize::try_from(self.segment_bytes - offset).unwrap_or(usize::MAX));
        let read = self.files[slot as usize].read(offset, len).await;
        match read {
            Ok(bytes) if bytes.len() == len => Ok(bytes),
            Ok(_) => Err(RecoveryError::Io { slot, source: io::ErrorKind::UnexpectedEof.into() }),
            Err(source) => Err(RecoveryError::Io { slot, source }),
        }
    }

    fn damaged(&self, slot: u32, pos: LogPos, what: impl Into<String>) -> RecoveryError {
        RecoveryError::Damaged { slot, pos, what: what.into() }
    }

    async fn look_at_firsts(&mut self) -> Result<(), RecoveryError> {
        for slot in 0..self.files.len() as u32 {
            match WriteHeader::look(&self.read(slot, 0, BLOCK).await?) {
                SeenHeader::Zero => {}
                SeenHeader::Garbage => self.garbage.push(slot),
                SeenHeader::Newer(found) => return Err(RecoveryError::Newer { slot, found }),
                SeenHeader::Header(header) => {
                    if header.pos.0 != header.segment.wrapping_mul(self.segment_bytes) {
                        self.garbage.push(slot);
                        continue;
                    }
                    if *self.ring_id.get_or_insert(header.ring_id) != header.ring_id || header.epoch != self.epoch {
                        return Err(self.damaged(slot, header.pos, "the file belongs to another ring"));
                    }
                    if let Some((other, _)) = self.firsts.insert(header.segment, (slot, header)) {
                        let what = format!("segment file {other} has the same segment number {}", header.segment);
                        return Err(self.damaged(slot, header.pos, what));
                    }
                }
            }
        }
        Ok(())
    }

    async fn follow(
        &self,
        needed_from: LogPos,
        mut tell: impl FnMut(LogPos, &'static Row),
    ) -> Result<Recovered, RecoveryError> {
        let freed = self.firsts.values().map(|(_, header)| header.freed).max().unwrap_or_default();
        // The segment being written is never released, even if nothing in it is needed.
        let newest = self.firsts.keys().next_back().copied().unwrap_or_default();
        let mut number = (freed.max(needed_from).0 / self.segment_bytes).min(newest);
        let first = LogPos(number * self.segment_bytes);
        let (mut at, mut end) = (first, first);
        let (mut records, mut live) = (Vec::new(), Vec::new());
        let (mut clean, mut torn_bytes) = (false, 0);
        let mut window = Window::default();
        if let Some((slot, _)) = self.firsts.get(&number) {
            live.push((number, *slot));
        } else if let Some((slot, pos)) = self.search(None, LogPos(0)).await? {
            return Err(self.damaged(slot, pos, format!("the beginning of segment {number} is missing")));
        }
        let last = loop {
            let Some(&(_, slot)) = live.last() else {
                break judge(HeaderCase::Zero, BodyCase::Unknown, Beyond::Nothing);
            };
            let Seen { row, header, body } = self.look(&mut window, slot, number, at).await?;
            tell(at, row);
            match row.verdict {
                Verdict::Take => {
                    let (header, new) = (header.expect("ours"), body.expect("whole"));
                    records.extend(new);
                    clean = header.clean;
                    (at, end) = (header.end(), header.end());
                }
                Verdict::NextSegment => {
                    number += 1;
                    live.push((number, self.firsts[&number].0));
                    at = LogPos(number * self.segment_bytes);
                }
                Verdict::End => break row,
                Verdict::Torn => {
                    clean &= header.is_none();
                    // Without a header, bytes behind a clean shutdown's mark are left from a write that an earlier
                    // recovery cut.
                    if !clean {
                        torn_bytes = header.map_or(BLOCK as u64, |header| header.write_bytes());
                    }
                    break row;
                }
                Verdict::Damaged => return Err(self.damaged(slot, at, row.name)),
                Verdict::Newer => {
                    let found = self.newer_at(slot, at.0 - number * self.segment_bytes).await?;
                    return Err(RecoveryError::Newer { slot, found });
                }
            }
        };
        let start = RingStart { ring_id: self.ring_id.unwrap_or_default(), live, end, next: at };
        Ok(Recovered { start, records, first, clean, torn_bytes, last })
    }

    /// Reads and judges one position.
    async fn look(&self, window: &mut Window, slot: u32, number: u64, at: LogPos) -> Result<Seen, RecoveryError> {
        let (case, header) = self.header_at(window, slot, number, at).await?;
        let body = match (case, &header) {
            (HeaderCase::Ours, Some(header)) => {
                Some(self.body(window, slot, at.0 - number * self.segment_bytes, header).await?)
            }
            _ => None,
        };
        let body_case = match &body {
            Some(Some(_)) => BodyCase::Whole,
            Some(None) => BodyCase::Broken,
            None => BodyCase::Unknown,
        };
        let row = judge(case, body_case, self.beyond(slot, number, at, body_case).await?);
        Ok(Seen { row, header, body: body.flatten() })
    }

    async fn header_at(
        &self,
        window: &mut Window,
        slot: u32,
        number: u64,
        at: LogPos,
    ) -> Result<(HeaderCase, Option<WriteHeader>), RecoveryError> {
        let offset = at.0 - number * self.segment_bytes;
        if offset == self.segment_bytes {
            return Ok((HeaderCase::NoRoom, None));
        }
        let block = window.get(self, slot, offset, BLOCK).await?;
        Ok(match WriteHeader::look(&block) {
            SeenHeader::Zero => (HeaderCase::Zero, None),
            SeenHeader::Garbage => (HeaderCase::Garbage, None),
            SeenHeader::Newer(_) => (HeaderCase::Newer, None),
            SeenHeader::Header(header) => {
                let fits = offset + header.write_bytes() <= self.segment_bytes;
                let ours = Some(header.ring_id) == self.ring_id
                    && header.epoch == self.epoch
                    && (header.segment, header.pos) == (number, at)
                    && fits;
                if ours || (fits && planted!(StaleLapAccepted)) {
                    (HeaderCase::Ours, Some(WriteHeader { segment: number, pos: at, ..header }))
                } else {
                    (HeaderCase::Other, None)
                }
            }
        })
    }

    async fn newer_at(&self, slot: u32, offset: u64) -> Result<u16, RecoveryError> {
        match WriteHeader::look(&self.read(slot, offset, BLOCK).await?) {
            SeenHeader::Newer(found) => Ok(found),
            _ => Ok(RING_VERSION + 1),
        }
    }

    /// The write's records, or `None` if they are not what was written.
    async fn body(
        &self,
        window: &mut Window,
        slot: u32,
        offset: u64,
        header: &WriteHeader,
    ) -> Result<Option<Vec<RingRecord>>, RecoveryError> {
        let write = window.get(self, slot, offset, header.write_bytes() as usize).await?;
        let body = write.slice(HEADER_BYTES..HEADER_BYTES + header.length as usize);
        if body_crc(header.segment, &body) != header.body_crc && !planted!(StaleLapAccepted) {
            return Ok(None);
        }
        Ok(decode_body(&body, LogPos(header.pos.0 + HEADER_BYTES as u64), header.count))
    }

    async fn beyond(&self, slot: u32, number: u64, at: LogPos, body: BodyCase) -> Result<Beyond, RecoveryError> {
        if let Some((_, next)) = self.firsts.get(&(number + 1)) {
            if next.previous_end == at {
                return Ok(Beyond::NextBegins);
            }
            if next.previous_end > at {
                return Ok(Beyond::Durable);
            }
            if next.previous_end < at {
                let what = format!("segment {} claims that the last one ends at {}", number + 1, next.previous_end.0);
                return Err(self.damaged(slot, at, what));
            }
        }
        if body == BodyCase::Whole {
            return Ok(Beyond::Nothing);
        }
        Ok(if self.search(Some((slot, number)), at).await?.is_some() { Beyond::Durable } else { Beyond::Nothing })
    }

    /// Searches for a write of this ring whose header says that more than `at` was durable. Looks behind `at` in the
    /// given segment, and in all others. Without a segment, any write of this ring counts.
    async fn search(&self, segment: Option<(u32, u64)>, at: LogPos) -> Result<Option<(u32, LogPos)>, RecoveryError> {
        for slot in 0..self.files.len() as u32 {
            let own = segment.filter(|(own, _)| *own == slot);
            let known = self.firsts.values().find(|(known, _)| *known == slot);
            let (from, to) = match (own, known) {
                (Some((_, number)), _) => (at.0 - number * self.segment_bytes, self.segment_bytes),
                _ if self.garbage.contains(&slot) => (0, self.segment_bytes),
                // A segment that was read already, or that will not be read because it was released.
                (None, Some((_, first))) if segment.is_some_and(|(_, number)| first.segment < number) => {
                    (0, BLOCK as u64)
                }
                _ => (0, self.segment_bytes.min(SEARCH_BYTES)),
            };
            let mut offset = from;
            while offset < to {
                let read = self.read(slot, offset, READ_BYTES.min((to - offset) as usize)).await?;
                for (nth, block) in read.chunks_exact(BLOCK).enumerate() {
                    let SeenHeader::Header(header) = WriteHeader::look(block) else { continue };
                    let place = offset + (nth * BLOCK) as u64;
                    let ours = self.ring_id.is_none_or(|id| id == header.ring_id)
                        && header.segment.wrapping_mul(self.segment_bytes).wrapping_add(place) == header.pos.0;
                    let knows = match segment {
                        Some((_, number)) => header.segment >= number && header.durable > at,
                        None => true,
                    };
                    if ours && knows {
                        return Ok(Some((slot, header.pos)));
                    }
                }
                offset += read.len() as u64;
            }
        }
        Ok(None)
    }
}

/// The bytes of the last read, so that one read covers many small writes.
#[derive(Default)]
struct Window {
    slot: u32,
    offset: u64,
    bytes: Bytes,
}

impl Window {
    async fn get<F: File>(
        &mut self,
        scan: &Scan<'_, F>,
        slot: u32,
        offset: u64,
        len: usize,
    ) -> Result<Bytes, RecoveryError> {
        let known = self.offset..self.offset + self.bytes.len() as u64;
        if self.slot != slot || !known.contains(&offset) || offset + len as u64 > known.end {
            *self = Self { slot, offset, bytes: scan.read(slot, offset, len.max(READ_BYTES)).await? };
        }
        let from = (offset - self.offset) as usize;
        Ok(self.bytes.slice(from..from + len))
    }
}
