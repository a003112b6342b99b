//! The codecs of record batches. Decompression is bounded, because a small batch can expand to gigabytes.

use std::io::{self, Read};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::compression as theirs;
use kafka_protocol::compression::Compressor;

/// The first Produce version that may carry zstd (KIP-110).
pub(super) const ZSTD_FROM_VERSION: i16 = 7;

/// The codec in a batch's attributes, bits 0–2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    #[default]
    None = 0,
    Gzip = 1,
    Snappy = 2,
    Lz4 = 3,
    Zstd = 4,
}

/// Why the records of a batch can't be decompressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    #[error("the records decompress to more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("{codec:?}: {reason}")]
    Corrupt { codec: Codec, reason: String },
}

impl Codec {
    pub const ALL: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    pub fn from_attributes(attributes: i16) -> Option<Codec> {
        Codec::ALL.into_iter().find(|codec| *codec as i16 == attributes & 0b111)
    }

    /// Decompresses `input`. `limit`: the maximum bytes of the result. More is an error, and the rest is not
    /// decompressed.
    pub fn decompress(self, input: &Bytes, limit: usize) -> Result<Bytes, DecompressError> {
        let output = match self {
            Codec::None => return Ok(input.clone()),
            Codec::Gzip => read_bounded(flate2::read::MultiGzDecoder::new(&input[..]), limit),
            Codec::Lz4 => lz4::Decoder::new(&input[..]).and_then(|decoder| read_bounded(decoder, limit)),
            Codec::Zstd => {
                zstd::stream::read::Decoder::with_buffer(&input[..]).and_then(|decoder| read_bounded(decoder, limit))
            }
            Codec::Snappy => unsnap(input, limit),
        };
        match output {
            Ok(Some(bytes)) => Ok(bytes.into()),
            Ok(None) => Err(DecompressError::TooLarge { limit }),
            Err(e) => Err(DecompressError::Corrupt { codec: self, reason: e.to_string() }),
        }
    }

    /// Compresses `input` and appends the result.
    pub fn compress(self, input: &[u8], out: &mut BytesMut) {
        let put = |buffer: &mut BytesMut| {
            buffer.put_slice(input);
            Ok(())
        };
        match self {
            Codec::None => {
                out.put_slice(input);
                Ok(())
            }
            Codec::Gzip => theirs::Gzip::compress(out, put),
            Codec::Snappy => theirs::Snappy::compress(out, put),
            Codec::Lz4 => theirs::Lz4::compress(out, put),
            Codec::Zstd => theirs::Zstd::compress(out, put),
        }
        .expect("compressing into memory does not fail");
    }
}

/// Reads to the end. Returns `None` if there are more than `limit` bytes.
fn read_bounded(input: impl Read, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut output = Vec::new();
    input.take(limit as u64 + 1).read_to_end(&mut output)?;
    Ok((output.len() <= limit).then_some(output))
}

/// The header that the Java client (xerial's snappy) puts before its blocks: magic, version, lowest compatible
/// version.
pub(crate) const XERIAL_HEADER: &[u8; 16] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";

/// Decompresses snappy: xerial's sequence of length-prefixed blocks, or one raw block (librdkafka, sarama).
fn unsnap(input: &[u8], limit: usize) -> io::Result<Option<Vec<u8>>> {
    let Some(mut blocks) = input.strip_prefix(&XERIAL_HEADER[..]) else {
        let mut output = Vec::new();
        return Ok(unsnap_block(input, limit, &mut output)?.then_some(output));
    };
    let mut output = Vec::new();
    while !blocks.is_empty() {
        let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, "block is cut off");
        let (length, rest) = blocks.split_first_chunk::<4>().ok_or_else(cut)?;
        let (block, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or_else(cut)?;
        if !unsnap_block(block, limit, &mut output)? {
            return Ok(None);
        }
        blocks = rest;
    }
    Ok(Some(output))
}

/// Decompresses one block and appends it. Returns `false` if the output would exceed `limit`.
fn unsnap_block(block: &[u8], limit: usize, output: &mut Vec<u8>) -> io::Result<bool> {
    // A copy element yields at most 64 bytes from 3, so a block that claims more than 32 times its size is damaged.
    let claimed = snap::raw::decompress_len(block)?;
    if claimed > block.len().saturating_mul(32) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "block claims an invalid length"));
    }
    let start = output.len();
    if claimed > limit - start {
        return Ok(false);
    }
    output.resize(start + claimed, 0);
    let written = snap::raw::Decoder::new().decompress(block, &mut output[start..])?;
    output.truncate(start + written);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::allocations;

    fn compressed(codec: Codec, input: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        codec.compress(input, &mut out);
        out.freeze()
    }

    #[test]
    fn every_codec_is_undone() {
        let long: Vec<u8> = (0..200_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for codec in Codec::ALL {
            for input in [&b""[..], b"x", &long] {
                let packed = compressed(codec, input);
                // An empty xerial stream consists of its header only.
                assert_eq!(codec.decompress(&packed, input.len()).unwrap(), input, "{codec:?}");
            }
            assert_eq!(Codec::from_attributes(codec as i16 | 0x78), Some(codec));
        }
        assert_eq!((5..8).filter_map(Codec::from_attributes).count(), 0);
    }

    #[test]
    fn raw_snappy_is_undone() {
        let packed: Bytes = snap::raw::Encoder::new().compress_vec(&[5; 1000]).unwrap().into();
        assert_eq!(Codec::Snappy.decompress(&packed, 1000).unwrap(), vec![5; 1000]);
    }

    #[test]
    fn a_bomb_is_not_unfolded() {
        let input = vec![0u8; 32 << 20];
        for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
            let packed = compressed(codec, &input);
            let limit = 64 * 1024;
            let (result, allocated) = allocations::during(|| codec.decompress(&packed, limit));
            assert_eq!(result, Err(DecompressError::TooLarge { limit }));
            assert!(allocated < 1 << 20, "{codec:?}: {allocated}");
        }
    }

    #[test]
    fn damage_is_an_error_not_a_panic() {
        let input: Vec<u8> = (0..5_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let mut rng = fastrand::Rng::with_seed(6);
        for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
            let packed = compressed(codec, &input);
            for _ in 0..300 {
                let mut damaged = packed.to_vec();
                match rng.u8(..3) {
                    0 => damaged.truncate(rng.usize(..packed.len())),
                    1 => damaged[rng.usize(..packed.len())] ^= 1 << rng.u8(..8),
                    _ => damaged[..16.min(packed.len())].iter_mut().for_each(|byte| *byte = rng.u8(..)),
                }
                let (_, allocated) = allocations::during(|| codec.decompress(&damaged.into(), 1 << 20));
                assert!(allocated < 8 << 20, "{codec:?}: {allocated}");
            }
        }
    }
}
