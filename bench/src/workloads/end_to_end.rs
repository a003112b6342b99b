//! Workload `end-to-end`: sends records by an open-loop schedule. The latency runs from a record's intended time
//! until a consumer has it.

use std::sync::Arc;

use net::StrBytes;
use net::codec::api::ApiKey;

use crate::error::AnyError;
use crate::figures::stats::{Live, quantile_ms};
use crate::load::fetcher::{self, At};
use crate::load::setup::{self, Lane};
use crate::load::window::Window;
use crate::machine::ceiling::Ceiling;
use crate::options::RecordOptions;
use crate::options::workloads::EndToEndOptions;
use crate::report::shares::Share;
use crate::report::{Report, Unit};
use crate::run;
use crate::workloads::produce::{self, STAMP_BYTES};
use crate::workloads::tail::{self, Flow};

/// Default rate in records per second. Without a rate, the latency would be that of a full queue.
pub const RATE: u64 = 10_000;

pub fn run(options: &EndToEndOptions) -> Result<Report, AnyError> {
    check_sizes(&options.records)?;
    let target = setup::prepare(&options.target, ApiKey::Produce)?;
    let fetch_version = setup::prepare(&options.target, ApiKey::Fetch)?.version;
    let readers = target.readers();
    let topic = &options.target.topic;
    let starts = fetcher::offsets(topic, &readers, At::End)?;
    let ceiling = Ceiling::measure(&options.run);
    let window = Window::new(options.run.warm_up, options.run.duration);
    let rate = options.records.rate.unwrap_or(RATE);
    let producers = target.lanes.len();
    let flow = Arc::new(Flow::new(producers));
    let plan = tail::Plan {
        produce: produce::Plan::new(topic, &target, &options.records, rate, window).stamped(),
        topic: StrBytes::from_string(topic.clone()),
        fetch_version,
        fetch_bytes: options.fetch_size,
        starts: Arc::new(starts),
        flow: flow.clone(),
        apart: None,
    };
    let lanes: Vec<Lane> = target.lanes.into_iter().chain(readers).collect();
    let work = move |index: usize, lane: Lane, live: Arc<Live>| {
        let plan = plan.clone();
        async move {
            if index < producers {
                tail::produce_work(plan, index, lane, live).await
            } else {
                tail::consume_work(plan, lane, live).await
            }
        }
    };
    let outcome = run::drive(&options.target.threads, lanes, window, work)?;
    let produced = flow.produced.lock().expect("its threads have ended").clone();
    let shares = [Share::LoopbackBytes, Share::WriteSync, Share::LoopbackRoundTrip];
    let report = Report::new("end-to-end", Unit::Records, outcome, ceiling).against(&shares);
    let quantile = |q| quantile_ms(&produced.latency_ns, q);
    Ok(report.with_extra("produce_p50_ms", quantile(0.5)).with_extra("produce_p99_ms", quantile(0.99)))
}

/// Checks that every value has room for its stamp.
pub fn check_sizes(records: &RecordOptions) -> Result<(), AnyError> {
    match records.record_size.min() {
        min if min < STAMP_BYTES => {
            Err(format!("--record-size of {min}: each value holds a stamp, so give at least {STAMP_BYTES}").into())
        }
        _ => Ok(()),
    }
}
