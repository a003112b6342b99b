//! A set of CPUs, as the kernel and the setting `cores` write it.
//! Plain values.

use std::{collections::BTreeSet, fmt, str::FromStr};

/// A CPU number above this counts as a typing error.
const CPU_MAX: usize = 65_535;

/// A set of CPUs, written as the kernel does: `0-3,8`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuList(pub BTreeSet<usize>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuListError {
    #[error("'{0}' is neither a CPU number nor a range")]
    Part(String),
    #[error("the range {0} runs backwards")]
    Backwards(String),
    #[error("CPU {0} is above {CPU_MAX}")]
    TooLarge(usize),
    #[error("it names CPU {0} twice; name it once")]
    Twice(usize),
    #[error("it names no CPU")]
    Empty,
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<CpuList, CpuListError> {
        let mut cpus = BTreeSet::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let wrong = || CpuListError::Part(part.to_owned());
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: usize = first.trim().parse().map_err(|_| wrong())?;
            let last: usize = last.trim().parse().map_err(|_| wrong())?;
            if first > last {
                return Err(CpuListError::Backwards(part.to_owned()));
            }
            if last > CPU_MAX {
                return Err(CpuListError::TooLarge(last));
            }
            if let Some(twice) = (first..=last).find(|cpu| !cpus.insert(*cpu)) {
                return Err(CpuListError::Twice(twice));
            }
        }
        if cpus.is_empty() { Err(CpuListError::Empty) } else { Ok(CpuList(cpus)) }
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for &cpu in &self.0 {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => runs.push((cpu, cpu)),
            }
        }
        for (at, (first, last)) in runs.into_iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl FromIterator<usize> for CpuList {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> CpuList {
        CpuList(cpus.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        let rows: &[(&str, Result<&str, CpuListError>)] = &[
            ("0", Ok("0")),
            ("0-3", Ok("0-3")),
            ("0-3,8", Ok("0-3,8")),
            ("8,0-3\n", Ok("0-3,8")),
            (" 1 , 2 ", Ok("1-2")),
            ("3-3", Ok("3")),
            ("0,2,4-5", Ok("0,2,4-5")),
            ("0,0", Err(CpuListError::Twice(0))),
            ("0-3,2", Err(CpuListError::Twice(2))),
            ("", Err(CpuListError::Empty)),
            (",", Err(CpuListError::Empty)),
            ("3-1", Err(CpuListError::Backwards("3-1".to_owned()))),
            ("a", Err(CpuListError::Part("a".to_owned()))),
            ("-1", Err(CpuListError::Part("-1".to_owned()))),
            ("1-", Err(CpuListError::Part("1-".to_owned()))),
            ("0-99999999", Err(CpuListError::TooLarge(99_999_999))),
        ];
        for (text, expected) in rows {
            let got = text.parse::<CpuList>().map(|list| list.to_string());
            assert_eq!(got, expected.clone().map(str::to_owned), "{text:?}");
        }
    }
}
