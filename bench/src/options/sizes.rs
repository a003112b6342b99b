//! Record sizes: one size, a range, or several sizes with weights. Pure.

use std::str::FromStr;

use crate::options::parse::{ValueError, size};

/// A distribution of sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sizes {
    Fixed(usize),
    /// Every size from the first to the last is equally likely.
    Range(usize, usize),
    /// Sizes, each with the cumulative weight up to and including its own.
    Mix(Vec<(usize, u64)>),
}

impl Sizes {
    /// The size for a number. Uniformly distributed numbers yield the distribution.
    pub fn pick(&self, number: u64) -> usize {
        match self {
            Sizes::Fixed(size) => *size,
            Sizes::Range(first, last) => first + (number % (last - first + 1) as u64) as usize,
            Sizes::Mix(mix) => {
                let total = mix.last().map_or(1, |(_, sum)| *sum);
                let place = number % total;
                let found = mix.iter().find(|(_, sum)| place < *sum);
                found.map(|(size, _)| *size).expect("the last sum is the total")
            }
        }
    }

    pub fn is_fixed(&self) -> bool {
        matches!(self, Sizes::Fixed(_))
    }

    pub fn max(&self) -> usize {
        match self {
            Sizes::Fixed(size) => *size,
            Sizes::Range(_, last) => *last,
            Sizes::Mix(mix) => mix.iter().map(|(size, _)| *size).max().unwrap_or(0),
        }
    }

    pub fn min(&self) -> usize {
        match self {
            Sizes::Fixed(size) => *size,
            Sizes::Range(first, _) => *first,
            Sizes::Mix(mix) => mix.iter().map(|(size, _)| *size).min().unwrap_or(0),
        }
    }
}

impl FromStr for Sizes {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Sizes, ValueError> {
        if text.contains(':') {
            return mix(text);
        }
        if let Some((first, last)) = text.split_once('-') {
            let (first, last) = (size(first)?, size(last)?);
            if first > last {
                return Err(ValueError::Descending { text: text.to_owned(), first, last });
            }
            return Ok(Sizes::Range(first, last));
        }
        size(text).map(Sizes::Fixed)
    }
}

/// Reads sizes with weights: 100:9,10KiB:1.
fn mix(text: &str) -> Result<Sizes, ValueError> {
    let mut sum = 0;
    let mut mix = Vec::new();
    for part in text.split(',') {
        let (bytes, weight) = part.split_once(':').ok_or_else(|| ValueError::Weighted { text: part.to_owned() })?;
        let number: Option<u32> = weight.trim().parse().ok().filter(|number| *number > 0);
        let wrong = || ValueError::Weight { text: part.to_owned(), weight: weight.to_owned() };
        sum += u64::from(number.ok_or_else(wrong)?);
        mix.push((size(bytes)?, sum));
    }
    Ok(Sizes::Mix(mix))
}

/// Random numbers by xorshift64*: fast, and the same in every run.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        // Consecutive seeds must not give similar sequences, and a state of 0 would stay 0.
        Numbers((seed.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The high bits are of better quality.
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, want) in [
            ("100", Sizes::Fixed(100)),
            ("100-2KiB", Sizes::Range(100, 2048)),
            ("100:9,10KiB:1", Sizes::Mix(vec![(100, 9), (10240, 10)])),
        ] {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for text in ["", "-100", "2KiB-100", "100:", "100:0", "100:9,10KiB", "x"] {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_wrong_size_says_what_is_wrong() {
        for (text, why) in [
            ("100:0", "weight \"0\" of \"100:0\" is not a whole number from 1 to 4294967295"),
            ("100:9,10KiB", "\"10KiB\" is not a size with a weight, such as 10KiB:1"),
            ("2KiB-100", "\"2KiB-100\" begins with the larger size; write 100-2048"),
            ("x", "\"x\" is not a size such as 100, 4KiB or 1MB, at most 1GiB"),
        ] {
            assert_eq!(text.parse::<Sizes>().unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn a_mix_comes_in_its_proportions() {
        let sizes: Sizes = "100:9,10KiB:1".parse().unwrap();
        let mut numbers = Numbers::new(7);
        let large = (0..100_000).filter(|_| sizes.pick(numbers.next()) == 10240).count();
        assert!((9_500..10_500).contains(&large), "{large} of 100000");
        assert_eq!((sizes.min(), sizes.max()), (100, 10240));
    }

    #[test]
    fn a_range_covers_its_ends() {
        let sizes: Sizes = "3-5".parse().unwrap();
        let mut numbers = Numbers::new(1);
        let mut seen: Vec<usize> = (0..1000).map(|_| sizes.pick(numbers.next())).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [3, 4, 5]);
    }
}
