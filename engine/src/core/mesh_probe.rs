//! Measures round trips from one core to another for tools. They use the normal mesh, beside its other traffic.
//! Lives on: the core that receives the request. The other core only answers.
//!
//! Invariants: at most a quarter of one queue is in flight, and a core runs one probe at a time. So a tool with
//! large requests does not fill the queues. Each round trip waits for the other core, and meanwhile this one does
//! its own work.

use crate::core::mesh::{self, HasMesh, QUEUE_MESSAGES};
use consensus::wire::MeshTimes;
use runtime::sync::{all, promise};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant},
};
use types::CoreId;

/// Most round trips to one core in one request. Requests for more are rejected.
pub const ROUNDS_MAX: u32 = 100_000;
/// Most round trips in flight at a time. Requests for more are rejected.
pub const IN_FLIGHT_MAX: u16 = QUEUE_MESSAGES as u16 / 4;
/// Time limit of one request, for all cores together. Remaining round trips are left out. So when a tool
/// disconnects, its work ends within this time.
pub const TIME_MAX: Duration = Duration::from_secs(1);
/// Bucket bounds have this many significant bits, so they are off by a 32nd at most.
const SIGNIFICANT_BITS: u32 = 6;

/// A tool's request.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// `None`: each other core, one after the other.
    pub to: Option<u16>,
    pub rounds: u32,
    pub in_flight: u16,
}

/// Why the request was rejected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "this broker has one core, so it sends no messages between cores; start it on two CPUs or more: --cores 0,1"
    )]
    OneCore,
    #[error("core {to} can't be probed: the broker's cores are 0 to {last}, and core {me} sends the probe")]
    NoSuchCore { to: u16, me: usize, last: usize },
    #[error("{0} round trips to a core; 1 to {ROUNDS_MAX} are allowed")]
    Rounds(u32),
    #[error("{0} round trips at a time; 1 to {IN_FLIGHT_MAX} are allowed")]
    InFlight(u16),
    #[error("this core is probing for another tool; try again in a second")]
    Busy,
}

/// Makes the round trips that a tool requests.
pub async fn run<C: HasMesh>(core: &Rc<C>, probe: Probe) -> Result<Vec<MeshTimes>, ProbeError> {
    let mesh = core.mesh();
    let targets = targets(mesh.me(), mesh.cores(), probe)?;
    if mesh.probing.replace(true) {
        return Err(ProbeError::Busy);
    }
    let mut found = Vec::with_capacity(targets.len());
    let share = TIME_MAX / targets.len() as u32;
    for to in targets {
        found.push(to_core(core, to, probe, Instant::now() + share).await);
    }
    mesh.probing.set(false);
    Ok(found)
}

/// Checks the request, and returns the cores to measure.
fn targets(me: CoreId, cores: usize, probe: Probe) -> Result<Vec<CoreId>, ProbeError> {
    let others: Vec<CoreId> = (0..cores).map(CoreId).filter(|other| *other != me).collect();
    let Probe { to, rounds, in_flight } = probe;
    if others.is_empty() {
        return Err(ProbeError::OneCore);
    }
    if !(1..=ROUNDS_MAX).contains(&rounds) {
        return Err(ProbeError::Rounds(rounds));
    }
    if !(1..=IN_FLIGHT_MAX).contains(&in_flight) {
        return Err(ProbeError::InFlight(in_flight));
    }
    match to {
        None => Ok(others),
        Some(to) if others.contains(&CoreId(to.into())) => Ok(vec![CoreId(to.into())]),
        Some(to) => Err(ProbeError::NoSuchCore { to, me: me.0, last: cores - 1 }),
    }
}

/// State shared by the round trips that are in flight together.
struct Trips {
    left: Cell<u32>,
    until: Instant,
    times: RefCell<Times>,
}

async fn to_core<C: HasMesh>(core: &Rc<C>, to: CoreId, probe: Probe, until: Instant) -> MeshTimes {
    let trips = Rc::new(Trips { left: Cell::new(probe.rounds), until, times: RefCell::default() });
    // One task for each lane, so that an answer wakes only its own lane.
    let lanes = (0..u32::from(probe.in_flight).min(probe.rounds)).map(|_| {
        let (ended, lane_ended) = promise();
        let (core, trips) = (core.clone(), trips.clone());
        runtime::spawn(async move {
            trips.run(&core, to).await;
            ended.keep(());
        });
        lane_ended
    });
    let lanes = lanes.collect();
    all(lanes).await;
    trips.times.take().summed_up(to)
}

impl Trips {
    /// Makes one round trip after the other, until none is left or the time is up.
    async fn run<C: HasMesh>(&self, core: &Rc<C>, to: CoreId) {
        while let Some(left) = self.left.get().checked_sub(1) {
            self.left.set(left);
            let sent = Instant::now();
            mesh::ask(core, to, C::ping()).await;
            let answered = Instant::now();
            self.times.borrow_mut().record(answered - sent);
            if answered >= self.until {
                return;
            }
            runtime::yield_if_needed().await;
        }
    }
}

/// Durations of round trips: exact minimum, maximum and sum, and buckets for the distribution.
#[derive(Default)]
struct Times {
    min_ns: Option<u64>,
    max_ns: u64,
    sum_ns: u64,
    /// By their inclusive upper bounds. At most 32 for each power of two.
    buckets: BTreeMap<u64, u64>,
}

impl Times {
    fn record(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.min_ns = Some(self.min_ns.map_or(ns, |min| min.min(ns)));
        self.max_ns = self.max_ns.max(ns);
        self.sum_ns = self.sum_ns.saturating_add(ns);
        *self.buckets.entry(up_to(ns)).or_default() += 1;
    }

    fn summed_up(self, to: CoreId) -> MeshTimes {
        let to = u16::try_from(to.0).expect("a broker has fewer cores than that");
        let Times { min_ns, max_ns, sum_ns, buckets } = self;
        MeshTimes { to, min_ns: min_ns.unwrap_or(0), max_ns, sum_ns, buckets: buckets.into_iter().collect() }
    }
}

/// The largest number of ns with the same leading bits.
fn up_to(ns: u64) -> u64 {
    let cut = (u64::BITS - ns.leading_zeros()).saturating_sub(SIGNIFICANT_BITS);
    ns | ((1 << cut) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::mesh::tests::{TestCore, on_two_cores};

    const PROBE: Probe = Probe { to: None, rounds: 100, in_flight: 1 };

    #[test]
    fn a_bucket_is_off_by_a_32nd_at_most() {
        let mut before = 0;
        for ns in (0..5_000).chain([1 << 20, (1 << 20) + 1, u64::MAX - 1, u64::MAX]) {
            let bound = up_to(ns);
            assert!(bound >= ns && bound - ns <= ns / 32 && bound >= before, "{ns}: {bound}");
            assert_eq!(up_to(bound), bound);
            before = bound;
        }
    }

    #[test]
    fn a_probe_that_cannot_run_is_refused() {
        let asked = |probe| targets(CoreId(1), 3, probe);
        assert_eq!(asked(PROBE), Ok(vec![CoreId(0), CoreId(2)]));
        assert_eq!(asked(Probe { to: Some(2), ..PROBE }), Ok(vec![CoreId(2)]));
        for to in [1, 3, u16::MAX] {
            let refused = ProbeError::NoSuchCore { to, me: 1, last: 2 };
            assert_eq!(asked(Probe { to: Some(to), ..PROBE }), Err(refused));
        }
        for rounds in [0, ROUNDS_MAX + 1] {
            assert_eq!(asked(Probe { rounds, ..PROBE }), Err(ProbeError::Rounds(rounds)));
        }
        for in_flight in [0, IN_FLIGHT_MAX + 1] {
            assert_eq!(asked(Probe { in_flight, ..PROBE }), Err(ProbeError::InFlight(in_flight)));
        }
        assert_eq!(targets(CoreId(0), 1, PROBE), Err(ProbeError::OneCore));
        assert!(ProbeError::OneCore.to_string().contains("--cores"));
    }

    #[test]
    fn every_round_trip_goes_over_the_mesh_and_is_counted_once() {
        on_two_cores(|core: Rc<TestCore>| async move {
            for in_flight in [1, 7, 200] {
                let before = core.mesh().stats().sent.get();
                let found = run(&core, Probe { in_flight, ..PROBE }).await.unwrap();
                assert_eq!(found.len(), 1);
                let MeshTimes { to, min_ns, max_ns, sum_ns, ref buckets } = found[0];
                // On a very slow machine, the time may be up before the last round trip.
                let count: u64 = buckets.iter().map(|(_, count)| count).sum();
                assert_eq!(count, core.mesh().stats().sent.get() - before);
                assert!(to == 1 && (1..=100).contains(&count), "{found:?}");
                assert!(0 < min_ns && min_ns <= max_ns && sum_ns >= max_ns, "{found:?}");
                assert!(buckets.last().is_some_and(|(bound, _)| *bound >= max_ns), "{found:?}");
            }
        });
    }

    #[test]
    fn a_core_makes_round_trips_for_one_tool_at_a_time() {
        on_two_cores(|core: Rc<TestCore>| async move {
            let both = vec![run(&core, PROBE), run(&core, PROBE)];
            let mut found = all(both).await.into_iter();
            assert!(found.next().unwrap().is_ok());
            assert_eq!(found.next().unwrap(), Err(ProbeError::Busy));
            assert!(run(&core, PROBE).await.is_ok(), "the first has ended");
        });
    }
}
