//! States a run's figures as shares and multiples of the machine's limits, because machines differ.

use std::collections::BTreeMap;

use crate::report::Report;

/// A figure and the limit that it is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Throughput compared with the same client against a broker that does nothing.
    ClientCap,
    /// Bytes compared with the disk's sequential durable writes.
    DiskWrite,
    /// Bytes compared with the disk's sequential reads.
    DiskRead,
    /// Bytes compared with the throughput of loopback.
    LoopbackBytes,
    /// Latency as a multiple of one durable block.
    WriteSync,
    /// Latency as a multiple of a bound. The bound is the client's latency against a broker that does nothing, plus
    /// one and a half durable block writes measured while the client runs.
    PacedWrite,
    /// Latency as a multiple of one loopback round trip.
    LoopbackRoundTrip,
    /// Latency as a multiple of one round trip between two threads on two CPUs.
    CoreRoundTrip,
}

/// Shares are named `…_share_of_…` and normally lie between 0 and 1; multiples are named `…_times_…`. A figure whose
/// limit was not measured is left out.
pub fn of(report: &Report, wanted: &[Share]) -> BTreeMap<String, f64> {
    let ceiling = &report.ceiling;
    let mut shares = BTreeMap::new();
    let mut put = |name: &str, value: f64, of: Option<f64>| {
        if let Some(of) = of.filter(|of| *of > 0.0) {
            shares.insert(name.to_owned(), value / of);
        }
    };
    for share in wanted {
        match share {
            Share::ClientCap => {
                put("rate_share_of_client_cap", report.per_s(), ceiling.client_cap_per_s);
                put("p99_times_client_cap_p99", report.p99_ms, ceiling.client_cap_p99_ms);
            }
            Share::DiskWrite => put("mb_share_of_disk_write", report.mb_per_s, ceiling.raw_write_mb_per_s),
            Share::DiskRead => put("mb_share_of_disk_read", report.mb_per_s, ceiling.raw_read_mb_per_s),
            Share::LoopbackBytes => put("mb_share_of_loopback", report.mb_per_s, ceiling.loopback_mb_per_s),
            Share::WriteSync => {
                put("p50_times_raw_write_sync_p50", report.p50_ms, ceiling.raw_write_sync_p50_ms);
                put("p99_times_raw_write_sync_p99", report.p99_ms, ceiling.raw_write_sync_p99_ms);
            }
            Share::PacedWrite => {
                let bound = ceiling.client_cap_p99_ms.zip(ceiling.raw_write_sync_loaded_p99_ms);
                put("p99_times_paced_bound", report.p99_ms, bound.map(|(cap, raw)| cap + 1.5 * raw));
            }
            Share::LoopbackRoundTrip => {
                put("p50_times_loopback_p50", report.p50_ms, ceiling.loopback_p50_ms);
                put("p99_times_loopback_p99", report.p99_ms, ceiling.loopback_p99_ms);
            }
            Share::CoreRoundTrip => {
                put("p50_times_core_spin_p50", report.p50_ms, ceiling.core_spin_p50_ms);
                put("p50_times_core_wake_p50", report.p50_ms, ceiling.core_wake_p50_ms);
                put("p99_times_core_wake_p99", report.p99_ms, ceiling.core_wake_p99_ms);
            }
        }
    }
    shares
}

/// Formats a share in percent and a multiple as a plain number.
pub fn written(name: &str, value: f64) -> String {
    if name.contains("_share_of_") { format!("{:.1} %", value * 100.0) } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ceiling::Ceiling;

    #[test]
    fn only_what_was_measured_has_a_share() {
        let ceiling = Ceiling {
            raw_write_sync_p50_ms: Some(0.5),
            raw_write_mb_per_s: Some(200.0),
            loopback_p50_ms: Some(0.0),
            client_cap_p99_ms: Some(1.0),
            raw_write_sync_loaded_p99_ms: Some(2.0),
            ..Ceiling::default()
        };
        let report = Report { mb_per_s: 50.0, p50_ms: 2.0, p99_ms: 6.0, ceiling, ..Report::default() };
        let all = [Share::DiskWrite, Share::WriteSync, Share::PacedWrite, Share::LoopbackRoundTrip];
        let want = [
            ("mb_share_of_disk_write".to_owned(), 0.25),
            ("p50_times_raw_write_sync_p50".to_owned(), 4.0),
            ("p99_times_paced_bound".to_owned(), 1.5),
        ];
        assert_eq!(of(&report, &all), BTreeMap::from(want));
        assert_eq!(written("mb_share_of_disk_write", 0.25), "25.0 %");
        assert_eq!(written("p50_times_raw_write_sync_p50", 4.0), "4.00");
    }
}
