//! The figures of a run: counts, latencies, and samples over time.

pub(crate) mod outcome;
pub(crate) mod stats;

/// Formats 1234567 as 1,234,567.
pub fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits")).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        let groups: Vec<String> = [0, 999, 1000, 1_234_567].into_iter().map(with_commas).collect();
        assert_eq!(groups, ["0", "999", "1,000", "1,234,567"]);
    }
}
