//! `millrace wal dump`: prints a ring segment in readable form, with the verdict of recovery at its tail.
//! Lives on: the main thread. Only reads, and may run beside a running broker. Then the tail may move during the read.
//!
//! The verdict is a row of `wal`'s recovery table. The knowledge that later segments have of this one comes from the
//! first header of each other ring file in the same directory.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use clap::{Arg, ArgMatches, Command, builder::PathBufValueParser};
use wal::{
    buf::BLOCK,
    ring::{
        format::{HEADER_BYTES, RingBody, RingRecord, SeenHeader, WriteHeader, body_crc, decode_body},
        recovery::{Beyond, BodyCase, HeaderCase, Row, Verdict, judge},
    },
    store::LogPos,
};

use crate::{
    metrics::line,
    stdout::{StdoutError, print},
};

/// Why rings cannot be dumped, or not to their ends.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot read {}: {why}", path.display())]
    NoSegment { path: PathBuf, why: NoSegment },
    #[error("{} holds no ring segments (ring-NNNN.seg)", .0.display())]
    Empty(PathBuf),
    /// A write that was synced is lost in one of these files, or more.
    #[error("not readable to its end: {}", names(.0))]
    Damaged(Vec<PathBuf>),
    /// A newer version wrote these files.
    #[error("not readable to its end: {}", names(.0))]
    Newer(Vec<PathBuf>),
    #[error(transparent)]
    Stdout(#[from] StdoutError),
}

fn names(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Why a file is no segment of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSegment {
    #[error("{0} bytes are not a ring segment, which has one or more blocks of {BLOCK} bytes")]
    Bytes(u64),
    #[error("the first block has no ring header: not a ring segment, or its first write is torn or damaged")]
    Header,
    #[error("the first write claims position {0}, which is not the start of its segment")]
    Position(u64),
}

pub fn command() -> Command {
    let path = Arg::new("path").value_name("PATH").required(true).value_parser(PathBufValueParser::new());
    let dump = Command::new("dump")
        .about("Print a ring segment: every write and record, and a verdict on its tail")
        .arg(path.help("A file ring-NNNN.seg, or a core's directory to print all its segments in order"))
        .after_help(
            "Examples:\n  millrace wal dump millrace-data/epoch-0/core-0/ring-0000.seg\n  \
             millrace wal dump millrace-data/epoch-0/core-0 | tail",
        );
    Command::new("wal")
        .about("Inspect the write-ahead rings")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .after_help("Example:\n  millrace wal dump millrace-data/epoch-0/core-0/ring-0000.seg")
        .subcommand(dump)
}

/// Dumps the segments and returns the text that remains to be printed. Damage, and data of a newer version, is a
/// failure.
pub fn run(matches: &ArgMatches) -> Result<String, DumpError> {
    let (_, matches) = matches.subcommand().expect("clap asks for a subcommand");
    let path = matches.get_one::<PathBuf>("path").expect("it is required");
    let unreadable = |source| DumpError::Read { path: path.clone(), source };
    let files = match fs::metadata(path).map_err(unreadable)?.is_dir() {
        true => segments_in(path).map_err(unreadable)?,
        false => vec![path.clone()],
    };
    if files.is_empty() {
        return Err(DumpError::Empty(path.clone()));
    }
    let (mut bad, mut is_damaged) = (Vec::new(), false);
    for file in files {
        let (text, verdict) = dump(&file)?;
        print(&text)?;
        is_damaged |= verdict == Verdict::Damaged;
        if matches!(verdict, Verdict::Damaged | Verdict::Newer) {
            bad.push(file);
        }
    }
    match bad.is_empty() {
        true => Ok(String::new()),
        false if is_damaged => Err(DumpError::Damaged(bad)),
        false => Err(DumpError::Newer(bad)),
    }
}

/// The ring files of a directory, ordered by the numbers of their segments. Unused files come last.
fn segments_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in ring_files(dir)? {
        let number = first_header(&path)?.map_or(u64::MAX, |header| header.segment);
        files.push((number, path));
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn ring_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let is_ring = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("ring-") && name.ends_with(".seg")
    };
    let paths: io::Result<Vec<PathBuf>> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect();
    Ok(paths?.into_iter().filter(is_ring).collect())
}

fn first_header(path: &Path) -> io::Result<Option<WriteHeader>> {
    let file = File::open(path)?;
    if file.metadata()?.len() < BLOCK as u64 {
        return Ok(None);
    }
    Ok(match WriteHeader::look(&read(&file, 0, BLOCK)?) {
        SeenHeader::Header(header) => Some(header),
        _ => None,
    })
}

fn read(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes.into())
}

/// A segment that is being read.
struct Segment {
    file: File,
    bytes: u64,
    /// The header at the front of the file. It identifies the ring and the segment.
    first: WriteHeader,
    /// The first headers of the ring's other segments.
    others: Vec<WriteHeader>,
}

/// The contents of the file at one position.
struct Seen {
    case: HeaderCase,
    header: Option<WriteHeader>,
    /// The records, if the body is intact.
    records: Option<Vec<RingRecord>>,
}

impl Segment {
    fn position(&self, offset: u64) -> LogPos {
        LogPos(self.first.segment * self.bytes + offset)
    }

    fn look(&self, offset: u64) -> io::Result<Seen> {
        let nothing = |case| Seen { case, header: None, records: None };
        if offset == self.bytes {
            return Ok(nothing(HeaderCase::NoRoom));
        }
        let header = match WriteHeader::look(&read(&self.file, offset, BLOCK)?) {
            SeenHeader::Zero => return Ok(nothing(HeaderCase::Zero)),
            SeenHeader::Garbage => return Ok(nothing(HeaderCase::Garbage)),
            SeenHeader::Newer(_) => return Ok(nothing(HeaderCase::Newer)),
            SeenHeader::Header(header) => header,
        };
        let fits = offset + header.write_bytes() <= self.bytes;
        if !self.is_of_this_ring(&header)
            || header.segment != self.first.segment
            || header.pos != self.position(offset)
            || !fits
        {
            return Ok(nothing(HeaderCase::Other));
        }
        let body = read(&self.file, offset + HEADER_BYTES as u64, header.length as usize)?;
        let whole = body_crc(header.segment, &body) == header.body_crc;
        let records_begin = LogPos(header.pos.0 + HEADER_BYTES as u64);
        let records = if whole { decode_body(&body, records_begin, header.count) } else { None };
        Ok(Seen { case: HeaderCase::Ours, header: Some(header), records })
    }

    fn is_of_this_ring(&self, header: &WriteHeader) -> bool {
        (header.ring_id, header.epoch) == (self.first.ring_id, self.first.epoch)
    }

    /// Evidence in later writes about the position at `offset`.
    fn beyond(&self, offset: u64, body: BodyCase) -> io::Result<Beyond> {
        let at = self.position(offset);
        if let Some(next) = self.others.iter().find(|other| other.segment == self.first.segment + 1) {
            return Ok(if next.previous_end == at { Beyond::NextBegins } else { Beyond::Durable });
        }
        if body == BodyCase::Whole {
            return Ok(Beyond::Nothing);
        }
        if self.others.iter().any(|other| other.segment > self.first.segment && other.durable > at) {
            return Ok(Beyond::Durable);
        }
        let mut place = offset;
        while place < self.bytes {
            let SeenHeader::Header(header) = WriteHeader::look(&read(&self.file, place, BLOCK)?) else {
                place += BLOCK as u64;
                continue;
            };
            if self.is_of_this_ring(&header) && header.pos == self.position(place) && header.durable > at {
                return Ok(Beyond::Durable);
            }
            place += BLOCK as u64;
        }
        Ok(Beyond::Nothing)
    }
}

/// The text of one segment file, and the verdict of recovery at its tail.
fn dump(path: &Path) -> Result<(String, Verdict), DumpError> {
    let unreadable = |source| DumpError::Read { path: path.to_owned(), source };
    let no_segment = |why| DumpError::NoSegment { path: path.to_owned(), why };
    let (file, name) = (File::open(path).map_err(unreadable)?, path.display());
    let bytes = file.metadata().map_err(unreadable)?.len();
    let mut out = String::new();
    if bytes == 0 || !bytes.is_multiple_of(BLOCK as u64) {
        return Err(no_segment(NoSegment::Bytes(bytes)));
    }
    let first = match WriteHeader::look(&read(&file, 0, BLOCK).map_err(unreadable)?) {
        SeenHeader::Header(header) => header,
        SeenHeader::Zero => {
            line(&mut out, format_args!("{name}: {bytes} bytes, never written"));
            return Ok((out, Verdict::End));
        }
        SeenHeader::Newer(version) => {
            line(&mut out, format_args!("{name}: written in format {version} by a newer version; use that version"));
            return Ok((out, Verdict::Newer));
        }
        SeenHeader::Garbage => return Err(no_segment(NoSegment::Header)),
    };
    let segment = Segment { others: others(path, &first).map_err(unreadable)?, file, bytes, first };
    let WriteHeader { ring_id, epoch, segment: number, .. } = first;
    line(&mut out, format_args!("{name}: segment {number} of ring {ring_id:016x}, epoch {epoch}, {bytes} bytes"));
    if first.pos != segment.position(0) {
        return Err(no_segment(NoSegment::Position(first.pos.0)));
    }
    let freed = segment.others.iter().map(|other| other.freed).max().unwrap_or_default().max(first.freed);
    if freed >= segment.position(bytes) {
        line(&mut out, format_args!("freed: everything here is in partition segments and checkpoints"));
    }
    let verdict = dump_writes(&segment, &mut out).map_err(unreadable)?;
    Ok((out, verdict))
}

/// Adds all writes of a segment, and the verdict at its tail.
fn dump_writes(segment: &Segment, out: &mut String) -> io::Result<Verdict> {
    let (mut offset, mut writes, mut record_count) = (0, 0u64, 0);
    let row = loop {
        let seen = segment.look(offset)?;
        let body = match (&seen.header, &seen.records) {
            (None, _) => BodyCase::Unknown,
            (Some(_), Some(_)) => BodyCase::Whole,
            (Some(_), None) => BodyCase::Broken,
        };
        let row = judge(seen.case, body, segment.beyond(offset, body)?);
        let (Verdict::Take, Some(header), Some(records)) = (row.verdict, seen.header, seen.records) else { break row };
        write(out, &header, &records);
        writes += 1;
        record_count += records.len();
        offset += header.write_bytes();
    };
    let at = segment.position(offset).0;
    line(out, format_args!("{writes} writes, {record_count} records, {offset} of {} bytes", segment.bytes));
    line(out, format_args!("verdict at {at}: {}; {}", row.name, meaning(row)));
    Ok(row.verdict)
}

fn others(path: &Path, first: &WriteHeader) -> io::Result<Vec<WriteHeader>> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut headers = Vec::new();
    for other in ring_files(dir)? {
        let header = first_header(&other)?;
        headers.extend(header.filter(|header| {
            (header.ring_id, header.epoch) == (first.ring_id, first.epoch) && header.segment != first.segment
        }));
    }
    Ok(headers)
}

fn meaning(row: &Row) -> &'static str {
    match row.verdict {
        Verdict::Take => "whole",
        Verdict::NextSegment => "the ring continues in the next segment",
        Verdict::End => "the ring ends here, nothing is lost",
        Verdict::Torn => "an unfinished write that was not acknowledged; the next start truncates it",
        Verdict::Damaged => "DAMAGED: a write that was synced here is lost; the broker refuses to start with this ring",
        Verdict::Newer => "written by a newer version; use that version",
    }
}

fn write(out: &mut String, header: &WriteHeader, records: &[RingRecord]) {
    let clean = if header.clean { ", clean shutdown" } else { "" };
    line(
        out,
        format_args!(
            "{} write: {} records in {} bytes, durable below {}, freed below {}{clean}",
            header.pos.0, header.count, header.length, header.durable.0, header.freed.0
        ),
    );
    for record in records {
        let state = &record.hard_state;
        let front = format!(
            "  {} group {} term {} vote {} commit {}",
            record.start.0, record.group.0, state.term, state.vote, state.commit
        );
        match &record.body {
            RingBody::HardState => line(out, format_args!("{front}: hard state")),
            RingBody::Removed => line(out, format_args!("{front}: group removed")),
            RingBody::Truncate { from_index, from_offset } => {
                line(out, format_args!("{front}: truncate from index {from_index}, offset {from_offset}"));
            }
            RingBody::RestartAt { index, term, offset, .. } => {
                line(
                    out,
                    format_args!("{front}: the log restarts after index {index}, term {term}, at offset {offset}"),
                );
            }
            RingBody::Restart { index, term } => {
                line(out, format_args!("{front}: the log restarts after the snapshot of index {index}, term {term}"));
            }
            RingBody::Entry(entry) => {
                let head = format!("{front}: entry {} of term {}, type {}", entry.index, entry.term, entry.entry_type);
                match &entry.payload {
                    None => line(out, format_args!("{head}, {} bytes of data", entry.data.len())),
                    Some((span, payload)) => line(
                        out,
                        format_args!(
                            "{head}, offsets {}..{}, {} bytes, newest timestamp {}",
                            span.base_offset,
                            span.base_offset + u64::from(span.count),
                            payload.len(),
                            span.max_timestamp
                        ),
                    ),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::RaftIndex;
    use types::{GroupId, HardState, Term};
    use wal::{
        record::{Entry, Span},
        ring::format::Record,
    };

    const SEGMENT_BYTES: u64 = 16 * BLOCK as u64;
    const STATE: HardState = HardState { term: Term(2), vote: 1, commit: RaftIndex::new(4) };

    fn entry(index: u64) -> Entry {
        let span = Span { base_offset: 10, count: 3, max_timestamp: 77 };
        Entry {
            index: RaftIndex::new(index),
            term: Term(2),
            entry_type: 0,
            data: Bytes::from_static(b"dd"),
            payload: Some((span, Bytes::from(vec![7; 5000]))),
        }
    }

    fn write_of(segment: u64, offset: u64, durable: u64, previous_end: u64, records: &[Record<'_>]) -> Vec<u8> {
        let mut body = Vec::new();
        for record in records {
            let from = body.len();
            body.resize(from + record.bytes(), 0);
            record.encode(&mut body[from..], GroupId(5), STATE);
        }
        let header = WriteHeader {
            ring_id: 0xabc,
            epoch: 1,
            segment,
            pos: LogPos(segment * SEGMENT_BYTES + offset),
            previous_end: LogPos(previous_end),
            durable: LogPos(durable),
            freed: LogPos(0),
            length: body.len() as u32,
            count: records.len() as u32,
            body_crc: body_crc(segment, &body),
            clean: false,
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend(body);
        bytes.resize(header.write_bytes() as usize, 0);
        bytes
    }

    struct Ring(tempfile::TempDir);

    impl Ring {
        fn new() -> Ring {
            Ring(tempfile::tempdir().unwrap())
        }

        fn path(&self, slot: u32) -> PathBuf {
            self.0.path().join(format!("ring-{slot:04}.seg"))
        }

        fn put(&self, slot: u32, writes: &[(u64, &[u8])]) {
            let file = File::create(self.path(slot)).unwrap();
            file.set_len(SEGMENT_BYTES).unwrap();
            for (offset, bytes) in writes {
                file.write_all_at(bytes, *offset).unwrap();
            }
        }

        fn dump(&self, slot: u32) -> (String, Verdict) {
            let (text, verdict) = dump(&self.path(slot)).unwrap();
            (text.replace(self.0.path().to_str().unwrap(), "D"), verdict)
        }
    }

    /// Segment 3: an entry of two blocks, then small records in one block.
    fn two_writes() -> (Vec<u8>, Vec<u8>) {
        let base = 3 * SEGMENT_BYTES;
        let entry = entry(9);
        let first = write_of(3, 0, base, base, &[Record::Entry { entry: &entry }]);
        let truncate = Record::Truncate { from_index: RaftIndex::new(8), from_offset: 12 };
        let records = [Record::HardState, truncate, Record::Removed];
        (first, write_of(3, 2 * BLOCK as u64, base + 2 * BLOCK as u64, 0, &records))
    }

    #[test]
    fn writes_and_records_are_printed_with_a_verdict() {
        let (ring, (first, second)) = (Ring::new(), two_writes());
        ring.put(0, &[(0, &first), (2 * BLOCK as u64, &second)]);
        let expected = "\
D/ring-0000.seg: segment 3 of ring 0000000000000abc, epoch 1, 65536 bytes
196608 write: 1 records in 5096 bytes, durable below 196608, freed below 0
  196704 group 5 term 2 vote 1 commit 4: entry 9 of term 2, type 0, offsets 10..13, 5000 bytes, newest timestamp 77
204800 write: 3 records in 136 bytes, durable below 204800, freed below 0
  204896 group 5 term 2 vote 1 commit 4: hard state
  204936 group 5 term 2 vote 1 commit 4: truncate from index 8, offset 12
  204992 group 5 term 2 vote 1 commit 4: group removed
2 writes, 4 records, 12288 of 65536 bytes
verdict at 208896: end before unused space; the ring ends here, nothing is lost
";
        assert_eq!(ring.dump(0), (expected.to_owned(), Verdict::End));
    }

    #[test]
    fn a_tear_is_told_from_damage() {
        let (first, second) = two_writes();
        let (at_second, mut broken) = (2 * BLOCK as u64, first.clone());
        broken[200] ^= 1;
        let mut torn = second.clone();
        torn[100] ^= 1;
        type Writes<'a> = Vec<(u64, &'a [u8])>;
        let rows: [(&str, Writes<'_>, Verdict); 4] = [
            ("torn body", vec![(0, &first), (at_second, &torn)], Verdict::Torn),
            ("torn header", vec![(0, &first), (at_second, &[9; 50])], Verdict::Torn),
            // The second write's header says that the first write is durable.
            ("damaged body", vec![(0, &broken), (at_second, &second)], Verdict::Damaged),
            ("torn body", vec![(0, &broken)], Verdict::Torn),
        ];
        for (name, writes, verdict) in rows {
            let ring = Ring::new();
            ring.put(0, &writes);
            let (text, got) = ring.dump(0);
            assert!(got == verdict && text.contains(&format!(": {name}; ")), "{text}");
        }
    }

    #[test]
    fn the_next_segment_says_where_this_one_ended() {
        let (first, second) = two_writes();
        let end = 3 * SEGMENT_BYTES + 3 * BLOCK as u64;
        let next = write_of(4, 0, end, end, &[Record::HardState]);
        let ring = Ring::new();
        ring.put(0, &[(0, &first), (2 * BLOCK as u64, &second)]);
        ring.put(1, &[(0, &next)]);
        assert_eq!(ring.dump(0).1, Verdict::NextSegment);
        assert_eq!(ring.dump(1).1, Verdict::End);
        // A write that the next segment relies on is missing.
        ring.put(0, &[(0, &first)]);
        let (text, verdict) = ring.dump(0);
        assert!(verdict == Verdict::Damaged && text.contains("zeros over a durable write; DAMAGED"), "{text}");
        // Segments come in the order of their numbers, unused files last.
        ring.put(2, &[]);
        ring.put(3, &[(0, &first)]);
        ring.put(0, &[(0, &next)]);
        fs::remove_file(ring.path(1)).unwrap();
        let order = segments_in(ring.0.path()).unwrap();
        assert_eq!(order, [ring.path(3), ring.path(0), ring.path(2)]);
    }

    #[test]
    fn a_file_that_is_no_segment_is_named_as_such() {
        let ring = Ring::new();
        ring.put(0, &[]);
        assert_eq!(ring.dump(0), ("D/ring-0000.seg: 65536 bytes, never written\n".to_owned(), Verdict::End));
        for (bytes, part) in
            [(vec![1; BLOCK], "no ring header"), (vec![0; 100], "100 bytes are not a ring"), (vec![], "0 bytes")]
        {
            fs::write(ring.path(1), bytes).unwrap();
            let refusal = dump(&ring.path(1)).unwrap_err().to_string();
            assert!(refusal.contains(part), "{refusal}");
        }
        let (first, _) = two_writes();
        fs::write(ring.path(2), [&first[..], &first[..]].concat()).unwrap();
        assert!(dump(&ring.path(2)).unwrap_err().to_string().contains("claims position 196608"));
    }
}
