//! Parses values of the command line: durations, sizes, rates, counts.

use std::time::Duration;

/// Why a value of the command line can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("{text:?} is not a duration such as 20s, 500ms or 2m, at most a year")]
    Duration { text: String },
    #[error("{text:?} is not a size such as 100, 4KiB or 1MB, at most {limit}")]
    Size { text: String, limit: &'static str },
    #[error("{text:?} is not a rate such as 10000, 10k or 1.5M, at most 1000M")]
    Rate { text: String },
    #[error("{text:?} is not a number from 1 to 100000")]
    Count { text: String },
    #[error("{text:?} is not a size with a weight, such as 10KiB:1")]
    Weighted { text: String },
    #[error("weight {weight:?} of {text:?} is not a whole number from 1 to {}", u32::MAX)]
    Weight { text: String, weight: String },
    #[error("{text:?} begins with the larger size; write {last}-{first}")]
    Descending { text: String, first: usize, last: usize },
}

/// Splits a number from its unit, which may be empty. `None` if there is no number or if it is not finite.
fn split_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..at].parse().ok()?;
    number.is_finite().then_some((number, text[at..].trim()))
}

/// 20s, 500ms, 200us, 2m; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, ValueError> {
    let wrong = || ValueError::Duration { text: text.to_owned() };
    let (number, unit) = split_unit(text).ok_or_else(wrong)?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" | "" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(wrong()),
    };
    // The rounding makes 5ms exactly 5,000,000 ns.
    let nanos = (seconds * 1e9).round();
    if nanos > 86_400e9 * 365.0 { Err(wrong()) } else { Ok(Duration::from_nanos(nanos as u64)) }
}

/// 100, 4KiB, 1MB; at most 1 GiB. In bytes.
pub fn size(text: &str) -> Result<usize, ValueError> {
    bytes(text, 1 << 30, "1GiB").map(|bytes| bytes as usize)
}

/// A size for a whole topic; at most 1 TiB. In bytes.
pub fn large_size(text: &str) -> Result<u64, ValueError> {
    bytes(text, 1 << 40, "1TiB")
}

fn bytes(text: &str, at_most: u64, limit: &'static str) -> Result<u64, ValueError> {
    let wrong = || ValueError::Size { text: text.to_owned(), limit };
    let (number, unit) = split_unit(text).ok_or_else(wrong)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "kb" => 1e3,
        "m" | "mib" => 1024.0 * 1024.0,
        "mb" => 1e6,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "gb" => 1e9,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let bytes = number * factor;
    if bytes.fract() == 0.0 && bytes <= at_most as f64 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// 10000, 10k, 1.5M; per second, at most one billion.
pub fn rate(text: &str) -> Result<u64, ValueError> {
    let wrong = || ValueError::Rate { text: text.to_owned() };
    let (number, unit) = split_unit(text).ok_or_else(wrong)?;
    let factor = match unit {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        _ => return Err(wrong()),
    };
    let rate = number * factor;
    if rate.fract() == 0.0 && rate <= 1e9 { Ok(rate as u64) } else { Err(wrong()) }
}

pub fn count(text: &str) -> Result<usize, ValueError> {
    match text.parse() {
        Ok(count @ 1..=100_000) => Ok(count),
        _ => Err(ValueError::Count { text: text.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, nanos) in [
            ("20s", 20_000_000_000),
            ("5ms", 5_000_000),
            ("0ms", 0),
            ("250us", 250_000),
            ("1.5", 1_500_000_000),
            ("2m", 120_000_000_000),
            ("1h", 3_600_000_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "s", "-1s", "1d", "1 2", "1e9", "9999999h", "..s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("100", 100), ("4KiB", 4096), ("1MB", 1_000_000), ("1.5k", 1536), ("1GiB", 1 << 30), ("0", 0)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "-1", "0.3", "2GiB", "1TB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn large_sizes() {
        assert_eq!(large_size("8GiB"), Ok(8 << 30));
        assert!(large_size("2TiB").is_err());
    }

    #[test]
    fn rates() {
        for (text, want) in [("10000", 10_000), ("10k", 10_000), ("1.5M", 1_500_000), ("0", 0)] {
            assert_eq!(rate(text), Ok(want), "{text}");
        }
        for text in ["", "-1", "1K", "0.5", "2000M"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
