//! Workload `ready-loop`: loads the metadata group with writes. Reports what a turn of the Raft ready loop costs the
//! brokers meanwhile, by their own histograms on /metrics.
//!
//! The histograms have fixed buckets, four per power of two. A quantile is the upper bound of its bucket, so it is at
//! most a quarter too high.

use std::io;
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;

use crate::brokers::scrape::{self, Buckets};
use crate::brokers::tool::resolve;
use crate::clock;
use crate::error::AnyError;
use crate::figures::with_commas;
use crate::load::window::Window;
use crate::options::workloads::ReadyLoopOptions;
use crate::report::shares::Share;
use crate::report::{Report, Unit};
use crate::workloads::metadata;

const WALL: &str = "millrace_raft_ready_loop_latency_seconds";
const CPU: &str = "millrace_raft_ready_loop_cpu_seconds";
const LEADS: &str = "millrace_metadata_leads";

/// A broker's /metrics page, and when it was requested.
struct Page {
    at_ns: u64,
    text: String,
}

/// Figures of one core's ready loop during the measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Turns {
    /// The broker's address in --admin.
    broker: String,
    core: usize,
    /// The core leads the metadata group.
    leads: bool,
    turns_per_s: f64,
    wall_p50_ms: f64,
    wall_p99_ms: f64,
    wall_p999_ms: f64,
    wall_mean_ms: f64,
    cpu_p50_ms: f64,
    cpu_p99_ms: f64,
    cpu_p999_ms: f64,
    cpu_mean_ms: f64,
    /// CPU seconds of the loop per second.
    cpu_share: f64,
}

pub fn run(options: &ReadyLoopOptions) -> Result<Report, AnyError> {
    let admins: Vec<SocketAddr> = options.admin.iter().map(|admin| resolve(admin)).collect::<Result<_, _>>()?;
    // Fail before the load, not after it, if a page can't be read.
    for (name, addr) in options.admin.iter().zip(&admins) {
        let page = scrape::metrics(*addr).map_err(|e| refused(name, &e))?;
        if scrape::histograms(&page, CPU).is_empty() {
            return Err(format!("--admin {name}: its /metrics has no {CPU}; is it a broker's admin address?").into());
        }
    }
    let mut watching = None;
    let load = options.load();
    let (outcome, ceiling) = metadata::by_peer(&load, |window| watching = Some(watch(admins, window)))?;
    let watched =
        watching.expect("the load has begun").join().map_err(|_| "the thread that reads /metrics panicked")?;
    let mut loops = Vec::new();
    for (name, pages) in options.admin.iter().zip(watched) {
        let (before, after) = pages.map_err(|e| refused(name, &e))?;
        loops.extend(turns(name, &before, &after));
    }
    loops.iter().for_each(Turns::print);
    let report = Report::new("ready-loop", Unit::Operations, outcome, ceiling);
    Ok(with_turns(report, &loops).against(&[Share::WriteSync, Share::LoopbackRoundTrip]))
}

fn refused(admin: &str, error: &io::Error) -> String {
    format!("--admin {admin}: {error}")
}

/// Adds the figures of the core that leads the metadata group, and the list of all loops. If no queried broker leads
/// it, the loop with the highest CPU share stands in.
fn with_turns(report: Report, loops: &[Turns]) -> Report {
    let busiest = || loops.iter().max_by(|a, b| a.cpu_share.total_cmp(&b.cpu_share));
    let Some(of) = loops.iter().find(|turns| turns.leads).or_else(busiest) else { return report };
    let writes_per_turn = if of.turns_per_s > 0.0 { rounded(report.per_s() / of.turns_per_s) } else { 0.0 };
    report
        .with_extra("turns_of", of.name())
        .with_extra("turns_per_s", of.turns_per_s)
        .with_extra("writes_per_turn", writes_per_turn)
        .with_extra("turn_cpu_p50_ms", of.cpu_p50_ms)
        .with_extra("turn_cpu_p99_ms", of.cpu_p99_ms)
        .with_extra("turn_cpu_p999_ms", of.cpu_p999_ms)
        .with_extra("turn_cpu_mean_ms", of.cpu_mean_ms)
        .with_extra("turn_wall_p50_ms", of.wall_p50_ms)
        .with_extra("turn_wall_p99_ms", of.wall_p99_ms)
        .with_extra("turn_wall_p999_ms", of.wall_p999_ms)
        .with_extra("turn_wall_mean_ms", of.wall_mean_ms)
        .with_extra("loop_cpu_share", of.cpu_share)
        .with_extra("loops", serde_json::to_value(loops).expect("numbers and strings"))
}

/// Reads the pages of all brokers when the measurement begins and when it ends.
fn watch(admins: Vec<SocketAddr>, window: Window) -> JoinHandle<Vec<io::Result<(Page, Page)>>> {
    let pages = move |admins: &[SocketAddr], at_ns: u64| -> Vec<io::Result<Page>> {
        thread::sleep(Duration::from_nanos(at_ns.saturating_sub(clock::now_ns())));
        let page = |admin: &SocketAddr| {
            let at_ns = clock::now_ns();
            Ok(Page { at_ns, text: scrape::metrics(*admin)? })
        };
        admins.iter().map(page).collect()
    };
    thread::spawn(move || {
        let before = pages(&admins, window.measured_from_ns);
        let after = pages(&admins, window.end_ns);
        before.into_iter().zip(after).map(|(before, after)| Ok((before?, after?))).collect()
    })
}

/// Figures of one broker's loops between two pages. Loops without a turn are left out.
fn turns(broker: &str, before: &Page, after: &Page) -> Vec<Turns> {
    let since = |name: &str| {
        let mut earlier = scrape::histograms(&before.text, name);
        let later = scrape::histograms(&after.text, name).into_iter();
        later.map(move |(core, buckets)| (core, buckets.since(&earlier.remove(&core).unwrap_or_default())))
    };
    let leads = scrape::gauges(&after.text, LEADS);
    let seconds = after.at_ns.saturating_sub(before.at_ns).max(1) as f64 / 1e9;
    let of_core = |((core, wall), (_, cpu)): ((usize, Buckets), (usize, Buckets))| Turns {
        broker: broker.to_owned(),
        core,
        leads: leads.get(&core).is_some_and(|leads| *leads > 0.0),
        turns_per_s: rounded(cpu.count() as f64 / seconds),
        wall_p50_ms: wall.quantile_ms(0.5),
        wall_p99_ms: wall.quantile_ms(0.99),
        wall_p999_ms: wall.quantile_ms(0.999),
        wall_mean_ms: mean_ms(&wall),
        cpu_p50_ms: cpu.quantile_ms(0.5),
        cpu_p99_ms: cpu.quantile_ms(0.99),
        cpu_p999_ms: cpu.quantile_ms(0.999),
        cpu_mean_ms: mean_ms(&cpu),
        cpu_share: rounded(cpu.sum_s() / seconds),
    };
    since(WALL).zip(since(CPU)).map(of_core).filter(|turns| turns.turns_per_s > 0.0).collect()
}

fn mean_ms(buckets: &Buckets) -> f64 {
    if buckets.count() == 0 { 0.0 } else { rounded(buckets.sum_s() * 1e3 / buckets.count() as f64) }
}

/// Rounds to six decimals: milliseconds to nanoseconds.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

impl Turns {
    fn name(&self) -> String {
        let leads = if self.leads { ", which leads the metadata" } else { "" };
        format!("{} core {}{leads}", self.broker, self.core)
    }

    fn print(&self) {
        eprintln!(
            "{}: {} turns/s, {:.1} % of a CPU\n  CPU of a turn: p50 {:.4} ms, p99 {:.4} ms, p99.9 {:.4} ms, mean {:.4} ms\n  its wall time: p50 {:.4} ms, p99 {:.4} ms, p99.9 {:.4} ms, mean {:.4} ms",
            self.name(),
            with_commas(self.turns_per_s.round() as u64),
            self.cpu_share * 100.0,
            self.cpu_p50_ms,
            self.cpu_p99_ms,
            self.cpu_p999_ms,
            self.cpu_mean_ms,
            self.wall_p50_ms,
            self.wall_p99_ms,
            self.wall_p999_ms,
            self.wall_mean_ms,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page with two cores' loops. Each core has turns of up to 5 µs and of up to 1 ms of CPU time; `leads` is the
    /// core that leads.
    fn page(at_ns: u64, counts: [(u64, u64); 2], leads: usize) -> Page {
        let mut text = String::new();
        for (core, (short, long)) in counts.into_iter().enumerate() {
            for (name, factor) in [(WALL, 2.0), (CPU, 1.0)] {
                let all = short + long;
                text += &format!("{name}_bucket{{core=\"{core}\",le=\"{}\"}} {short}\n", 0.000005 * factor);
                text += &format!("{name}_bucket{{core=\"{core}\",le=\"{}\"}} {all}\n", 0.001 * factor);
                text += &format!("{name}_bucket{{core=\"{core}\",le=\"+Inf\"}} {all}\n");
                text += &format!("{name}_sum{{core=\"{core}\"}} {}\n", long as f64 * 0.001 * factor);
            }
            text += &format!("{LEADS}{{core=\"{core}\"}} {}\n", u8::from(core == leads));
        }
        Page { at_ns, text }
    }

    #[test]
    fn turns_are_those_between_the_two_pages() {
        let before = page(1_000_000_000, [(500, 500), (7, 7)], 1);
        let after = page(3_000_000_000, [(1480, 520), (7, 7)], 0);
        let found = turns("b:1", &before, &after);
        assert_eq!(found.len(), 1, "core 1 had nothing to do: {found:?}");
        let Turns { core, leads, turns_per_s, wall_p50_ms, cpu_p50_ms, cpu_p99_ms, cpu_mean_ms, cpu_share, .. } =
            found[0];
        assert_eq!((core, leads, turns_per_s), (0, true, 500.0));
        let is = |found: f64, want: f64| (found - want).abs() < 1e-9;
        assert!(is(cpu_p50_ms, 0.005) && is(cpu_p99_ms, 1.0) && is(wall_p50_ms, 0.01), "{found:?}");
        assert!(is(cpu_mean_ms, 0.02) && is(cpu_share, 0.01), "{found:?}");
    }

    #[test]
    fn the_leaders_loop_stands_for_all() {
        let of = |broker: &str, leads| {
            let before = page(0, [(0, 0), (0, 0)], leads);
            turns(broker, &before, &page(1_000_000_000, [(10, 90), (50, 50)], leads))
        };
        let turns_of = |loops: &[Turns]| {
            let report = with_turns(Report { ops_per_s: Some(300.0), ..Report::default() }, loops);
            assert_eq!(report.extra["loops"].as_array().map(Vec::len), Some(loops.len()));
            assert_eq!(report.extra["writes_per_turn"], 3.0);
            report.extra["turns_of"].clone()
        };
        let loops = [of("a:1", 9), of("b:1", 1)].concat();
        assert_eq!(turns_of(&loops), "b:1 core 1, which leads the metadata");
        assert_eq!(turns_of(&loops[..2]), "a:1 core 0");
        assert!(with_turns(Report::default(), &[]).extra.is_empty());
    }
}
