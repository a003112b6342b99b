//! Workload `mesh`: messages from one core of a running broker to another and back, through the broker's own queues.
//! A tool request makes the broker perform and measure the round trips itself, so the figures exclude the network.

use std::error::Error;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use consensus::wire::{MeshTimes, ToolAnswer, ToolAsk};
use hdrhistogram::Histogram;
use net::peer::PeerError;
use serde::Serialize;

use crate::brokers::tool::{self, Tool, resolve};
use crate::clock;
use crate::error::AnyError;
use crate::figures::outcome::Outcome;
use crate::figures::stats::{Live, Tally, histogram, quantile_ms};
use crate::figures::with_commas;
use crate::load::window::Window;
use crate::machine::ceiling::Ceiling;
use crate::options::workloads::MeshOptions;
use crate::report::shares::Share;
use crate::report::{Report, Unit};
use crate::run;

/// Round trips per core in one request. The broker allows at most 100,000 and stops after one second.
const ROUNDS: u32 = 2_000;

/// Measured round trips to one core.
#[derive(Debug)]
struct Target {
    core: u16,
    took_ns: Histogram<u64>,
    sum_ns: u64,
    min_ns: u64,
}

/// The figures of one core as they appear in the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figures {
    from: u16,
    to: u16,
    round_trips: u64,
    min_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
    mean_ms: f64,
}

pub fn run(options: &MeshOptions) -> Result<Report, AnyError> {
    let mut probe = Probe {
        tool: Tool::connect(resolve(&options.peer)?, tool::secret(&options.secret)?)?,
        options: options.clone(),
    };
    // A broker that does not support the request reports that here.
    let (from, _) = probe.ask(1).map_err(|e| refused(&options.peer, &*e))?;
    let ceiling = Ceiling::measure_cores(&options.run, &options.ceiling_cpus)?;
    let window = Window::new(options.run.warm_up, options.run.duration);
    let (ended, all_ended) = mpsc::channel::<()>();
    let live: Arc<Live> = Arc::default();
    let asking = thread::spawn({
        let live = live.clone();
        move || {
            // Dropped when the work ends or panics; this ends `watch`.
            let _ended = ended;
            probe.ask_for(window, &live)
        }
    });
    let series = run::watch(&all_ended, &[live], window);
    let asked = asking.join().map_err(|_| "the thread that asks panicked")?;
    let (targets, mut tally) = asked.map_err(|e| format!("{}: {e}", options.peer))?;
    for target in &targets {
        tally.latency_ns.add(&target.took_ns)?;
    }
    tally.records = tally.latency_ns.len();
    let thread_cpu_share_max = tally.cpu_ns as f64 / window.duration_ns().max(1) as f64;
    let cores: Vec<Figures> = targets.iter().map(|target| target.figures(from)).collect();
    cores.iter().for_each(Figures::print);
    let slowest = cores.iter().map(|core| core.p99_ms).fold(0.0, f64::max);
    let report = Report::new("mesh", Unit::Operations, Outcome { tally, thread_cpu_share_max, series }, ceiling);
    let report = report.against(&[Share::CoreRoundTrip, Share::LoopbackRoundTrip]);
    Ok(report.with_extra("slowest_core_p99_ms", slowest).with_extra("cores", serde_json::to_value(&cores)?))
}

fn refused(peer: &str, error: &(dyn Error + 'static)) -> String {
    let is_older = matches!(error.downcast_ref(), Some(PeerError::Closed));
    let older = if is_older { "; a broker of an older version does not know this request" } else { "" };
    format!("{peer} can't measure round trips between cores: {error}{older}")
}

struct Probe {
    tool: Tool,
    options: MeshOptions,
}

impl Probe {
    /// Returns the core that handled the request, and the measured times.
    fn ask(&mut self, rounds: u32) -> Result<(u16, Vec<MeshTimes>), AnyError> {
        let MeshOptions { core: to, in_flight, .. } = self.options;
        match self.tool.ask(ToolAsk::ProbeMesh { to, rounds, in_flight })? {
            ToolAnswer::MeshProbed { from, times } => Ok((from, times)),
            _ => Err("a request for round trips got another kind of answer".into()),
        }
    }

    /// Sends one request after the other until the window ends. Requests of the warm-up do not count.
    fn ask_for(&mut self, window: Window, live: &Live) -> Result<(Vec<Target>, Tally), AnyError> {
        let mut tally = Tally::default();
        let mut targets: Vec<Target> = Vec::new();
        let cpu_ns = clock::thread_cpu_ns();
        loop {
            let begin_ns = clock::now_ns();
            if begin_ns >= window.end_ns {
                break;
            }
            let (_, found) = self.ask(ROUNDS)?;
            let mut recent = histogram();
            for times in &found {
                let count = add(&mut recent, times);
                live.count(count, 0);
            }
            live.publish(&mut recent);
            if begin_ns < window.measured_from_ns {
                continue;
            }
            tally.requests += 1;
            tally.span_ns = clock::now_ns() - window.measured_from_ns;
            targets.resize_with(targets.len().max(found.len()), Target::default);
            targets.iter_mut().zip(&found).for_each(|(target, times)| target.take(times));
        }
        tally.cpu_ns = clock::thread_cpu_ns() - cpu_ns;
        Ok((targets, tally))
    }
}

/// Adds the broker's counts and returns their sum. Each bucket counts at its upper bound, but no higher than the
/// longest time.
fn add(took_ns: &mut Histogram<u64>, times: &MeshTimes) -> u64 {
    for (up_to_ns, count) in &times.buckets {
        took_ns.saturating_record_n((*up_to_ns).clamp(1, times.max_ns.max(1)), *count);
    }
    times.buckets.iter().map(|(_, count)| count).sum()
}

impl Default for Target {
    fn default() -> Target {
        Target { core: 0, took_ns: histogram(), sum_ns: 0, min_ns: u64::MAX }
    }
}

impl Target {
    fn take(&mut self, times: &MeshTimes) {
        self.core = times.to;
        self.sum_ns += times.sum_ns;
        self.min_ns = self.min_ns.min(times.min_ns);
        add(&mut self.took_ns, times);
    }

    fn figures(&self, from: u16) -> Figures {
        let round_trips = self.took_ns.len();
        let ms = |ns: u64| ns as f64 / 1e6;
        Figures {
            from,
            to: self.core,
            round_trips,
            min_ms: ms(self.min_ns),
            p50_ms: quantile_ms(&self.took_ns, 0.5),
            p99_ms: quantile_ms(&self.took_ns, 0.99),
            p999_ms: quantile_ms(&self.took_ns, 0.999),
            max_ms: ms(self.took_ns.max()),
            mean_ms: ms(self.sum_ns) / round_trips.max(1) as f64,
        }
    }
}

impl Figures {
    fn print(&self) {
        let Figures { from, to, min_ms, p50_ms, p99_ms, p999_ms, max_ms, .. } = self;
        let round_trips = with_commas(self.round_trips);
        eprintln!(
            "core {from} to core {to} and back: min {min_ms:.4} ms, p50 {p50_ms:.4} ms, p99 {p99_ms:.4} ms, p99.9 {p999_ms:.4} ms, max {max_ms:.4} ms ({round_trips} round trips)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_buckets_add_up() {
        let times = |buckets: &[(u64, u64)], min_ns, max_ns| {
            let sum_ns = buckets.iter().map(|(up_to, count)| up_to * count).sum();
            MeshTimes { to: 3, min_ns, max_ns, sum_ns, buckets: buckets.to_vec() }
        };
        let mut target = Target::default();
        target.take(&times(&[(10_239, 98), (20_479, 1)], 10_000, 20_000));
        target.take(&times(&[(10_239, 1), (1_015_807, 1)], 9_990, 1_000_000));
        let found = target.figures(0);
        assert_eq!((found.from, found.to, found.round_trips), (0, 3, 101));
        // Equal to three digits.
        let is = |found: f64, want: f64| (found - want).abs() <= want * 1e-3;
        assert!(is(found.p50_ms, 0.010239) && is(found.p99_ms, 0.02) && is(found.p999_ms, 1.0), "{found:?}");
        assert!(is(found.max_ms, 1.0) && is(found.min_ms, 0.00999), "{found:?}");
        assert!(is(found.mean_ms, (10_239.0 * 99.0 + 20_479.0 + 1_015_807.0) / 101.0 / 1e6), "{found:?}");
    }
}
