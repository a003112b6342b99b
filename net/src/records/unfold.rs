//! Streaming decompression: the caller takes a batch's records piece by piece, and memory does not grow with their
//! decompressed size.

use std::cell::RefCell;
use std::io::{self, Read};

use bytes::buf::Reader;
use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use zstd::stream::raw;
use zstd::zstd_safe::DParameter;

use crate::records::compression::{Codec, XERIAL_HEADER};

/// A decompressor and the compressed records that it has not read yet.
pub(crate) enum Unfold {
    Gzip(Box<MultiGzDecoder<Reader<Bytes>>>),
    Lz4(Lz4),
    Zstd(Zstd),
    Snappy(Snappy),
}

impl Unfold {
    /// `None` if the records are not compressed.
    pub(crate) fn new(codec: Codec, input: Bytes) -> io::Result<Option<Unfold>> {
        Ok(Some(match codec {
            Codec::None => return Ok(None),
            Codec::Gzip => Unfold::Gzip(Box::new(MultiGzDecoder::new(input.reader()))),
            Codec::Lz4 => Unfold::Lz4(Lz4(Some(lz4::Decoder::new(input.reader())?))),
            Codec::Zstd => Unfold::Zstd(Zstd::new(input)?),
            Codec::Snappy => Unfold::Snappy(Snappy::new(input)?),
        }))
    }

    /// Writes the next decompressed bytes into `to` and returns their number. Returns 0 at the end, after the checks
    /// that the codec allows.
    pub(crate) fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Unfold::Gzip(decoder) => decoder.read(to),
            Unfold::Lz4(decoder) => decoder.read(to),
            Unfold::Zstd(decoder) => decoder.read(to),
            Unfold::Snappy(decoder) => decoder.read(to),
        }
    }
}

pub(crate) struct Lz4(Option<lz4::Decoder<Reader<Bytes>>>);

impl Lz4 {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let Some(decoder) = &mut self.0 else { return Ok(0) };
        let read = decoder.read(to)?;
        if read == 0 && !to.is_empty() {
            // The decoder does not tell a truncated frame from a complete one.
            let (_, whole) = self.0.take().expect("the decoder was just read from").finish();
            whole?;
        }
        Ok(read)
    }
}

/// The largest window of a decoder with usual settings: zstd up to level 9 asks for up to 2 MiB where the content's
/// size is unknown, librdkafka and Java ask lz4 for blocks of 64 KiB.
pub const WINDOW_USUAL_MAX: usize = 2 << 20;

/// Approximate bytes of output that a decoder of these records keeps, since the rest of the input refers to them.
/// 0: the records are not compressed.
pub(crate) fn window_bytes(codec: Codec, input: &[u8]) -> usize {
    match codec {
        Codec::None => 0,
        Codec::Gzip => GZIP_WINDOW,
        Codec::Snappy => 2 * SNAPPY_WINDOW,
        Codec::Lz4 => 2 * lz4_block_bytes(input),
        Codec::Zstd => zstd_window_bytes(input).max(ZSTD_WINDOW_MIN),
    }
}

const GZIP_WINDOW: usize = 32 << 10;
const ZSTD_WINDOW_MIN: usize = 1 << 10;

/// The block size in an lz4 frame's header: the bits 4 to 6 of its byte BD, behind the magic number and the byte FLG.
/// Source: <https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md>.
fn lz4_block_bytes(input: &[u8]) -> usize {
    match input.get(5).map(|descriptor| descriptor >> 4 & 0b111) {
        Some(4) => 64 << 10,
        Some(5) => 256 << 10,
        Some(6) => 1 << 20,
        Some(7) => 4 << 20,
        _ => 0,
    }
}

/// The window in the header of the first zstd frame; 0 if there is none. Source: RFC 8878, section 3.1.1.1.
fn zstd_window_bytes(input: &[u8]) -> usize {
    const MAGIC: &[u8] = &0xFD2F_B528_u32.to_le_bytes();
    const DICTIONARY_ID_BYTES: [usize; 4] = [0, 1, 2, 4];
    let Some(header) = input.strip_prefix(MAGIC) else { return 0 };
    let Some((descriptor, rest)) = header.split_first() else { return 0 };
    let is_single_segment = descriptor & 0x20 != 0;
    if !is_single_segment {
        let window = rest.first().copied().unwrap_or_default();
        let base = 1_u64 << (10 + (window >> 3));
        return usize::try_from(base + base / 8 * u64::from(window & 0b111)).unwrap_or(usize::MAX);
    }
    // A frame without a window is one segment, whose window is its whole content.
    let size_bytes = 1 << (descriptor >> 6);
    let at = DICTIONARY_ID_BYTES[usize::from(descriptor & 0b11)];
    let size = rest.get(at..at + size_bytes).unwrap_or_default();
    let size = size.iter().rev().fold(0_u64, |size, byte| size << 8 | u64::from(*byte));
    // A size in two bytes is written minus 256.
    usize::try_from(size + if size_bytes == 2 { 256 } else { 0 }).unwrap_or(usize::MAX)
}

/// The largest window that a zstd decoder accepts by default, as the power of two.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// The maximum number of idle zstd decoders that each thread keeps for reuse. A decoder takes about 100 KB, and its
/// window.
const SPARE_DECODERS_MAX: usize = 4;
/// Decoders with larger windows are not kept.
const SPARE_WINDOW_MAX: usize = 1 << 20;

thread_local! {
    static SPARE: RefCell<Vec<raw::Decoder<'static>>> = const { RefCell::new(Vec::new()) };
}

pub(crate) struct Zstd {
    input: Bytes,
    /// `None` only while `self` is being dropped.
    decoder: Option<raw::Decoder<'static>>,
    window: usize,
    frame_ended: bool,
}

impl Zstd {
    /// Frames behind the first one may not have larger windows, or at most usual ones.
    fn new(input: Bytes) -> io::Result<Zstd> {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        let mut decoder = match spare {
            Some(spare) => spare,
            None => raw::Decoder::new()?,
        };
        let window = zstd_window_bytes(&input);
        let most = window.clamp(WINDOW_USUAL_MAX, 1 << ZSTD_WINDOW_LOG_MAX);
        decoder.set_parameter(DParameter::WindowLogMax(most.next_power_of_two().trailing_zeros()))?;
        Ok(Zstd { input, decoder: Some(decoder), window, frame_ended: false })
    }

    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        use raw::Operation;
        let decoder = self.decoder.as_mut().expect("only dropping this takes the decoder");
        loop {
            if self.input.is_empty() && self.frame_ended {
                return Ok(0);
            }
            let done = decoder.run_on_buffers(&self.input, to)?;
            self.input.advance(done.bytes_read);
            self.frame_ended = done.remaining == 0;
            if done.bytes_written > 0 || to.is_empty() {
                return Ok(done.bytes_written);
            }
            if done.bytes_read == 0 && !(self.frame_ended && self.input.is_empty()) {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the frame is cut off"));
            }
        }
    }
}

impl Drop for Zstd {
    fn drop(&mut self) {
        use raw::Operation;
        let Some(mut decoder) = self.decoder.take() else { return };
        // A later frame may have had a usual window too.
        if self.window <= SPARE_WINDOW_MAX && decoder.reinit().is_ok() {
            // A thread that is exiting keeps no decoders.
            let _ = SPARE.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.len() < SPARE_DECODERS_MAX {
                    spare.push(decoder);
                }
            });
        }
    }
}

/// The least output that is kept for copies to refer to, in bytes. Encoders cut their input into pieces of 64 KiB and
/// refer no further back.
const SNAPPY_WINDOW: usize = 1 << 20;
/// The bytes to decompress at once.
const SNAPPY_PIECE: usize = 32 << 10;

/// A block that decompresses to at most this many bytes goes to the usual decoder, which is faster but can't pause.
/// Java's blocks have 32 KiB.
const SNAPPY_AT_ONCE: usize = 128 << 10;

/// Snappy, for which no library has a decoder that can pause. Handles one raw block (librdkafka, sarama) or xerial's
/// sequence of blocks (Java).
pub(crate) struct Snappy {
    /// xerial's blocks that have not been read yet. `None` for a single raw block.
    blocks: Option<Bytes>,
    block: Block,
}

/// One block. Source: <https://github.com/google/snappy/blob/main/format_description.txt>.
#[derive(Default)]
struct Block {
    input: Bytes,
    /// The newest output: what copies may refer to. The bytes from `given` on have not been returned yet.
    output: Vec<u8>,
    given: usize,
    /// Bytes still to be decompressed, according to the block's length field.
    left: usize,
    /// Bytes of a literal that have not been copied yet.
    literal: usize,
}

fn damaged(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Snappy {
    fn new(mut input: Bytes) -> io::Result<Snappy> {
        if input.starts_with(XERIAL_HEADER) {
            input.advance(XERIAL_HEADER.len());
            return Ok(Snappy { blocks: Some(input), block: Block::default() });
        }
        Ok(Snappy { blocks: None, block: Block::begin(input, Vec::new())? })
    }

    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.block.read(to)?;
            if read > 0 || to.is_empty() {
                return Ok(read);
            }
            let Some(blocks) = self.blocks.as_mut().filter(|blocks| !blocks.is_empty()) else { return Ok(0) };
            if blocks.len() < 4 {
                return Err(damaged("a block is cut off"));
            }
            let length = blocks.get_u32() as usize;
            if length > blocks.len() {
                return Err(damaged("a block is cut off"));
            }
            let input = blocks.split_to(length);
            self.block = Block::begin(input, std::mem::take(&mut self.block.output))?;
        }
    }
}

/// Reads the length at the start of a block: a little-endian base-128 number below 2^32.
fn read_length(input: &mut Bytes) -> Option<usize> {
    let mut length = 0u64;
    for (n, byte) in input.iter().take(5).enumerate() {
        length |= u64::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            input.advance(n + 1);
            return u32::try_from(length).ok().map(|length| length as usize);
        }
    }
    None
}

impl Block {
    /// `output`: memory to reuse.
    fn begin(block: Bytes, mut output: Vec<u8>) -> io::Result<Block> {
        let mut input = block.clone();
        let left = read_length(&mut input).ok_or_else(|| damaged("a block has no length"))?;
        output.clear();
        if left > SNAPPY_AT_ONCE {
            return Ok(Block { input, output, left, ..Block::default() });
        }
        output.resize(left, 0);
        snap::raw::Decoder::new().decompress(&block, &mut output)?;
        Ok(Block { output, ..Block::default() })
    }

    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.given == self.output.len() {
            self.unfold_piece()?;
        }
        let read = to.len().min(self.output.len() - self.given);
        to[..read].copy_from_slice(&self.output[self.given..self.given + read]);
        self.given += read;
        Ok(read)
    }

    fn unfold_piece(&mut self) -> io::Result<()> {
        if self.output.len() > 2 * SNAPPY_WINDOW {
            self.output.drain(..self.output.len() - SNAPPY_WINDOW);
            self.given = self.output.len();
        }
        let end = self.output.len() + SNAPPY_PIECE.min(self.left);
        while self.output.len() < end {
            if self.literal == 0 {
                self.element()?;
            }
            let now = self.literal.min(end.saturating_sub(self.output.len()));
            self.output.extend_from_slice(&self.input[..now]);
            self.input.advance(now);
            self.literal -= now;
        }
        self.left =
            (self.left + self.given).checked_sub(self.output.len()).ok_or_else(|| damaged("a block is too large"))?;
        if self.left == 0 && !self.input.is_empty() {
            return Err(damaged("a block has more input than it needs"));
        }
        Ok(())
    }

    /// Begins a literal, or executes a copy of at most 64 bytes.
    fn element(&mut self) -> io::Result<()> {
        let cut = || damaged("an element is cut off");
        let tag = *self.input.first().ok_or_else(cut)?;
        let (kind, high) = (tag & 0b11, usize::from(tag >> 2));
        // The number of little-endian bytes that follow the tag.
        let extra = match kind {
            0 if high < 60 => 0,
            0 => high - 59,
            1 => 1,
            2 => 2,
            _ => 4,
        };
        let number = self.input.get(1..1 + extra).ok_or_else(cut)?;
        let number = number.iter().rev().fold(0usize, |number, byte| number << 8 | usize::from(*byte));
        self.input.advance(1 + extra);
        let (length, offset) = match kind {
            0 => {
                self.literal = if high < 60 { high + 1 } else { number + 1 };
                return if self.literal <= self.input.len() { Ok(()) } else { Err(cut()) };
            }
            1 => ((high & 0b111) + 4, (high >> 3) << 8 | number),
            _ => (high + 1, number),
        };
        let from = self.output.len().checked_sub(offset).filter(|_| offset > 0);
        let from = from.ok_or_else(|| damaged("a copy reaches back before the output's start"))?;
        if offset >= length {
            self.output.extend_from_within(from..from + length);
        } else {
            for at in from..from + length {
                let byte = self.output[at];
                self.output.push(byte);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    fn compressed(codec: Codec, input: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        codec.compress(input, &mut out);
        out.freeze()
    }

    fn unfolded(codec: Codec, packed: Bytes, piece: usize) -> io::Result<Vec<u8>> {
        let mut unfold = Unfold::new(codec, packed)?.expect("it is compressed");
        let (mut output, mut buffer) = (Vec::new(), vec![0; piece]);
        loop {
            match unfold.read(&mut buffer)? {
                0 => return Ok(output),
                read => output.extend_from_slice(&buffer[..read]),
            }
        }
    }

    fn samples() -> Vec<Vec<u8>> {
        let mut rng = fastrand::Rng::with_seed(3);
        let noise: Vec<u8> = (0..300_000).map(|_| rng.u8(..)).collect();
        let words: Vec<u8> = (0..60_000u32).flat_map(|n| format!("{} ", n * n % 1_000).into_bytes()).collect();
        vec![
            vec![],
            vec![7],
            vec![0; 5_000_000],
            noise,
            words,
            (0..200_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect(),
        ]
    }

    const CODECS: [Codec; 4] = [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    #[test]
    fn pieces_of_any_size_make_the_whole() {
        for (at, sample) in samples().iter().enumerate() {
            for codec in CODECS {
                for piece in [1 << 20, 4_096, 97] {
                    let output = unfolded(codec, compressed(codec, sample), piece).expect("sound");
                    assert!(output == *sample, "{codec:?}, sample {at}, {piece} bytes at a time");
                }
            }
            let raw: Bytes = snap::raw::Encoder::new().compress_vec(sample).unwrap().into();
            assert!(unfolded(Codec::Snappy, raw, 1_000).expect("sound") == *sample, "raw snappy, sample {at}");
        }
    }

    #[test]
    fn a_cut_batch_is_an_error_and_damage_never_a_panic() {
        let mut rng = fastrand::Rng::with_seed(6);
        let sample = &samples()[4][..];
        let raw: Bytes = snap::raw::Encoder::new().compress_vec(sample).unwrap().into();
        assert!(sample.len() > SNAPPY_AT_ONCE, "or the decoder that pauses has nothing to do");
        let packed = CODECS.map(|codec| (codec, compressed(codec, sample)));
        for (codec, packed) in packed.into_iter().chain([(Codec::Snappy, raw)]) {
            for _ in 0..200 {
                // If whole xerial blocks are missing, the decoder can't notice it.
                let cut = packed.slice(..rng.usize(20..packed.len()));
                if let Ok(output) = unfolded(codec, cut, 777) {
                    assert!(codec == Codec::Snappy && output.len() < sample.len());
                }
                let mut damaged = packed.to_vec();
                damaged[rng.usize(..packed.len())] ^= 1 << rng.u8(..8);
                if let Ok(output) = unfolded(codec, damaged.into(), 777) {
                    assert!(output.len() <= 16 * sample.len(), "{codec:?}");
                }
            }
        }
    }

    #[test]
    fn the_window_is_what_the_frames_header_says() {
        let packed = |level: i32, content: usize, is_told: bool| {
            let mut encoder = zstd::stream::raw::Encoder::new(level).unwrap();
            if is_told {
                encoder.set_pledged_src_size(Some(content as u64)).unwrap();
            }
            let mut writer = zstd::stream::zio::Writer::new(Vec::new(), encoder);
            io::Write::write_all(&mut writer, &vec![7; content]).unwrap();
            writer.finish().unwrap();
            writer.into_inner().0
        };
        for (level, content, is_told, window) in [
            (3, 10_000_000, false, 2 << 20),
            (19, 10_000_000, false, 8 << 20),
            (19, 1_000_000, true, 1_000_000),
            (1, 300, true, 300),
            (1, 10, true, 10),
        ] {
            assert_eq!(zstd_window_bytes(&packed(level, content, is_told)), window, "level {level}, {content} bytes");
        }
        assert_eq!(zstd_window_bytes(b"no frame"), 0);
        assert_eq!(zstd_window_bytes(&[0x28, 0xB5, 0x2F, 0xFD, 0x00]), 1 << 10, "cut off");
        for (size, bytes) in [(lz4::BlockSize::Max64KB, 64 << 10), (lz4::BlockSize::Max4MB, 4 << 20)] {
            let mut encoder = lz4::EncoderBuilder::new().block_size(size).build(Vec::new()).unwrap();
            io::Write::write_all(&mut encoder, &[7; 1_000]).unwrap();
            assert_eq!(lz4_block_bytes(&encoder.finish().0), bytes);
        }
    }

    #[test]
    fn a_later_frame_may_not_have_a_larger_window_than_the_first() {
        let frame = |level: i32, content: &[u8]| {
            let mut writer = zstd::stream::write::Encoder::new(Vec::new(), level).unwrap();
            io::Write::write_all(&mut writer, content).unwrap();
            writer.finish().unwrap()
        };
        let noise: Vec<u8> = (0..9_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let usual = [frame(1, &noise), frame(3, &noise)].concat();
        assert!(unfolded(Codec::Zstd, usual.into(), 1 << 16).is_ok());
        let wide = frame(19, &noise);
        assert_eq!(zstd_window_bytes(&wide), 8 << 20);
        assert!(unfolded(Codec::Zstd, wide.clone().into(), 1 << 16).is_ok());
        let behind = [frame(1, &noise), wide].concat();
        assert!(unfolded(Codec::Zstd, behind.into(), 1 << 16).is_err());
    }

    #[test]
    fn a_bomb_unfolds_in_a_window() {
        let zeros = vec![0u8; 32 << 20];
        let raw: Bytes = snap::raw::Encoder::new().compress_vec(&zeros).unwrap().into();
        let mut unfold = Unfold::new(Codec::Snappy, raw).unwrap().expect("it is compressed");
        let mut buffer = vec![0; 4_096];
        let mut total = 0;
        loop {
            match unfold.read(&mut buffer).expect("sound") {
                0 => break,
                read => total += read,
            }
            let Unfold::Snappy(snappy) = &unfold else { unreachable!() };
            assert!(snappy.block.output.capacity() <= 4 * SNAPPY_WINDOW + 4 * SNAPPY_PIECE);
        }
        assert_eq!(total, zeros.len());
    }
}
