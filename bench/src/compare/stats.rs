//! Decides whether two sets of repeats differ by more than their noise. Pure.
//!
//! Works on logarithms, so that a difference is a ratio. Runs that were made in turns are compared pair by pair,
//! which cancels drift of the machine. The mean is trimmed by one fifth at each end, because something else
//! occasionally delays a run (Yuen 1974, The two-sample trimmed t for unequal population variances).

use statrs::distribution::{ContinuousCDF, StudentsT};

/// With fewer repeats than this, the noise can't be estimated.
pub const REPEATS_MIN: usize = 3;
/// Differences smaller than 2 % do not count, however certain they are: nobody would act on them.
pub const RATIO_MIN: f64 = 0.02;

/// B as a multiple of A.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    pub ratio: f64,
    /// Lower and upper bound of the ratio, at the requested confidence.
    pub low: f64,
    pub high: f64,
}

impl Ratio {
    /// Whether the ratio differs from 1: the bounds exclude 1, and the difference is large enough to matter.
    pub fn is_difference(&self) -> bool {
        (self.low > 1.0 || self.high < 1.0) && (self.ratio - 1.0).abs() >= RATIO_MIN
    }
}

/// A trimmed mean, its standard error, and the degrees of freedom of that error.
#[derive(Debug, Clone, Copy)]
struct Mean {
    mean: f64,
    error: f64,
    freedom: f64,
}

fn trimmed(values: &[f64]) -> Mean {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let (count, cut) = (values.len(), values.len() / 5);
    let kept = &values[cut..count - cut];
    let mean = kept.iter().sum::<f64>() / kept.len() as f64;
    // Winsorized: a trimmed value counts as the nearest value that was kept.
    let winsorized = || values.iter().map(|value| value.clamp(kept[0], kept[kept.len() - 1]));
    let center = winsorized().sum::<f64>() / count as f64;
    let squares: f64 = winsorized().map(|value| (value - center).powi(2)).sum();
    let kept_count = kept.len() as f64;
    Mean { mean, error: (squares / (kept_count * (kept_count - 1.0))).sqrt(), freedom: kept_count - 1.0 }
}

/// Compares positive figures. `interleaved`: run `i` of A and run `i` of B happened at about the same time, so they
/// form a pair. Returns `None` if there are too few values or if a value is not positive.
pub fn ratio(a: &[f64], b: &[f64], interleaved: bool, confidence: f64) -> Option<Ratio> {
    if a.len().min(b.len()) < REPEATS_MIN || a.iter().chain(b).any(|value| *value <= 0.0 || !value.is_finite()) {
        return None;
    }
    let logarithms = |values: &[f64]| -> Vec<f64> { values.iter().map(|value| value.ln()).collect() };
    let (a, b) = (logarithms(a), logarithms(b));
    let difference = if interleaved && a.len() == b.len() {
        let pairs: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b - a).collect();
        trimmed(&pairs)
    } else {
        let (a, b) = (trimmed(&a), trimmed(&b));
        let (va, vb) = (a.error.powi(2), b.error.powi(2));
        // Welch: the two sets may have different variances.
        let below = va.powi(2) / a.freedom + vb.powi(2) / b.freedom;
        let freedom = if below > 0.0 { (va + vb).powi(2) / below } else { a.freedom + b.freedom };
        Mean { mean: b.mean - a.mean, error: (va + vb).sqrt(), freedom }
    };
    let student = StudentsT::new(0.0, 1.0, difference.freedom).ok()?;
    let bound = difference.error * student.inverse_cdf((1.0 + confidence) / 2.0);
    let Mean { mean, .. } = difference;
    Some(Ratio { ratio: mean.exp(), low: (mean - bound).exp(), high: (mean + bound).exp() })
}

/// Whether the runs were made in turns: each consecutive pair in time holds one run of A and one of B.
pub fn are_interleaved(a: &[f64], b: &[f64]) -> bool {
    let mut times: Vec<(f64, bool)> = a.iter().map(|t| (*t, false)).chain(b.iter().map(|t| (*t, true))).collect();
    times.sort_by(|x, y| x.0.total_cmp(&y.0));
    a.len() == b.len() && times.chunks(2).all(|pair| pair.len() == 2 && pair[0].1 != pair[1].1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::sizes::Numbers;

    const CONFIDENCE: f64 = 0.99;

    /// Twelve figures around `level` with three percent of roughly normal noise. A few are lower, as if something
    /// else had delayed the run.
    fn runs(numbers: &mut Numbers, level: f64, drift: f64) -> Vec<f64> {
        let mut uniform = || (numbers.next() & 0xffff_ffff) as f64 / f64::from(u32::MAX);
        let run = |n: i32| {
            let normal: f64 = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
            let held_up = if uniform() < 0.03 { 0.6 } else { 1.0 };
            level * (1.0 + 0.03 * normal) * held_up * (1.0 + drift * f64::from(n))
        };
        (0..12).map(run).collect()
    }

    /// The number of differences found in a thousand comparisons of A with B, where B's level is `factor` times A's.
    fn found(factor: f64, drift: f64, interleaved: bool) -> usize {
        let mut numbers = Numbers::new(5);
        let differs = |_: &i32| {
            let (a, b) = (runs(&mut numbers, 1e6, drift), runs(&mut numbers, 1e6 * factor, drift));
            ratio(&a, &b, interleaved, CONFIDENCE).unwrap().is_difference()
        };
        (0..1000).filter(differs).count()
    }

    /// Drift per run, and whether runs are interleaved. A drifting machine must be measured in turns.
    const HOW: [(f64, bool); 3] = [(0.0, false), (0.0, true), (0.01, true)];

    #[test]
    fn a_against_a_is_no_difference_in_19_of_20() {
        for (drift, interleaved) in HOW {
            let found = found(1.0, drift, interleaved);
            assert!(found <= 50, "{found} of 1000 differ, drift {drift}, interleaved {interleaved}");
        }
    }

    #[test]
    fn a_slowdown_of_ten_percent_is_found_in_19_of_20() {
        for (drift, interleaved) in HOW {
            let found = found(0.9, drift, interleaved);
            assert!(found >= 950, "{found} of 1000 found, drift {drift}, interleaved {interleaved}");
        }
    }

    #[test]
    fn the_ratio_is_that_of_the_levels() {
        let ratio = ratio(&[100.0, 102.0, 98.0, 101.0], &[90.0, 91.8, 88.2, 90.9], true, CONFIDENCE).unwrap();
        assert!((ratio.ratio - 0.9).abs() < 1e-9, "{ratio:?}");
        assert!(ratio.is_difference());
    }

    #[test]
    fn a_sure_but_tiny_difference_is_none() {
        let ratio = ratio(&[1000.0; 5], &[1001.0; 5], false, CONFIDENCE).unwrap();
        assert!(ratio.low > 1.0 && !ratio.is_difference(), "{ratio:?}");
    }

    #[test]
    fn too_few_or_impossible_figures_give_nothing() {
        assert_eq!(ratio(&[1.0, 2.0], &[1.0, 2.0, 3.0], false, CONFIDENCE), None);
        assert_eq!(ratio(&[1.0, 2.0, 0.0], &[1.0, 2.0, 3.0], false, CONFIDENCE), None);
    }

    #[test]
    fn turns_are_seen_in_the_times() {
        assert!(are_interleaved(&[1.0, 3.0, 5.0], &[2.0, 4.0, 6.0]));
        assert!(are_interleaved(&[1.0, 4.0], &[2.0, 3.0]));
        assert!(!are_interleaved(&[1.0, 2.0], &[3.0, 4.0]));
        assert!(!are_interleaved(&[1.0, 3.0], &[2.0]));
    }
}
