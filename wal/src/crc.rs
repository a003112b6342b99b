//! CRC-32C over bytes whose parts already have a CRC. A batch is read once for its own CRC; the CRCs of the write and
//! of the frame around it are then combined from that.
//! Lives on: anywhere; pure.

/// The polynomial, bit-reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The polynomial 1 in the same bit order.
const ONE: u32 = 1 << 31;
/// Below this many bytes, computing the CRC again costs less than combining.
const COMBINED_MIN: usize = 2048;

/// x^(2^n) modulo the polynomial.
const POWERS: [u32; 32] = {
    let mut powers = [ONE >> 1; 32];
    let mut n = 1;
    while n < powers.len() {
        powers[n] = times(powers[n - 1], powers[n - 1]);
        n += 1;
    }
    powers
};

/// The product of two polynomials, modulo the polynomial.
const fn times(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, ONE);
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
        bit >>= 1;
    }
    product
}

/// The CRC of the bytes behind `first`, followed by the `len` bytes behind `second`.
pub fn combine(first: u32, second: u32, len: usize) -> u32 {
    // x^(8 len): the factor by which `len` more bytes shift the first CRC.
    let (mut shift, mut bits) = (ONE, len);
    for power in POWERS[3..].iter().chain(&POWERS) {
        if bits == 0 {
            break;
        }
        if bits & 1 != 0 {
            shift = times(*power, shift);
        }
        bits >>= 1;
    }
    times(shift, first) ^ second
}

/// The CRC of the bytes behind `crc`, followed by `bytes`, whose own CRC is `known`.
pub fn append_known(crc: u32, bytes: &[u8], known: u32) -> u32 {
    if bytes.len() < COMBINED_MIN { crc32c::crc32c_append(crc, bytes) } else { combine(crc, known, bytes.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combined_sums_are_those_of_the_whole() {
        let mut random = fastrand::Rng::with_seed(7);
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(100_000).collect();
        for _ in 0..500 {
            let cut = random.usize(..=bytes.len());
            let end = random.usize(cut..=bytes.len());
            let (first, second) = (crc32c::crc32c(&bytes[..cut]), crc32c::crc32c(&bytes[cut..end]));
            let whole = crc32c::crc32c(&bytes[..end]);
            assert_eq!(combine(first, second, end - cut), whole, "cut at {cut} of {end}");
            assert_eq!(append_known(first, &bytes[cut..end], second), whole, "cut at {cut} of {end}");
        }
    }
}
