//! Workload `etcd`: puts and linearizable reads of etcd, the peer that the metadata workload is compared with. It
//! speaks gRPC over HTTP/2 through `h2`, with the two messages encoded by hand. One thread serves all connections and
//! requests in flight.
//!
//! Source: etcd's rpc.proto (KV.Put, KV.Range) and the protocol of gRPC over HTTP/2.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use hdrhistogram::Histogram;
use http::{Method, Request};

use crate::clock;
use crate::error::AnyError;
use crate::figures::outcome::Outcome;
use crate::figures::stats::{Live, Tally, histogram};
use crate::load::schedule::Schedule;
use crate::load::window::Window;
use crate::machine::ceiling::Ceiling;
use crate::options::workloads::{EtcdOperation, EtcdOptions};
use crate::report::shares::Share;
use crate::report::{Report, Unit};
use crate::run;

const PUBLISH_NS: u64 = 250_000_000;
/// How long to wait for an answer.
const DRAIN: Duration = Duration::from_secs(10);

pub fn run(options: &EtcdOptions) -> Result<Report, AnyError> {
    let ceiling = Ceiling::measure(&options.run);
    let window = Window::new(options.run.warm_up, options.run.duration);
    let live: Arc<Live> = Arc::default();
    let (ended, all_ended) = mpsc::channel::<()>();
    let (shown, work) = (live.clone(), options.clone());
    let thread = thread::Builder::new().name("load-0".to_owned()).spawn(move || -> Result<Tally, AnyError> {
        // Dropped when the thread's work ends or panics; this ends `watch`.
        let _ended = ended;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let cpu_ns = clock::thread_cpu_ns();
        let mut tally = runtime.block_on(load(work, window, live))?;
        tally.cpu_ns = clock::thread_cpu_ns() - cpu_ns;
        Ok(tally)
    })?;
    let series = run::watch(&all_ended, &[shown], window);
    let tally = thread.join().map_err(|_| "the load thread panicked")??;
    let thread_cpu_share_max = tally.cpu_ns as f64 / window.duration_ns() as f64;
    let (name, shares) = match options.operation {
        EtcdOperation::Write => ("etcd-write", [Share::WriteSync, Share::LoopbackRoundTrip].as_slice()),
        EtcdOperation::Read => ("etcd-read", [Share::LoopbackRoundTrip].as_slice()),
    };
    let outcome = Outcome { tally, thread_cpu_share_max, series };
    Ok(Report::new(name, Unit::Operations, outcome, ceiling).against(shares))
}

/// State that the lanes share.
struct Shared {
    options: EtcdOptions,
    window: Window,
    live: Arc<Live>,
    results: Mutex<(Tally, Histogram<u64>, u64)>,
}

async fn load(options: EtcdOptions, window: Window, live: Arc<Live>) -> Result<Tally, AnyError> {
    let lanes = options.connections * options.in_flight;
    let results = Mutex::new((Tally::default(), histogram(), 0));
    let shared = Arc::new(Shared { options, window, live, results });
    let mut tasks = Vec::new();
    for connection in 0..shared.options.connections {
        let addr = &shared.options.bootstrap;
        let failed = |e: &dyn std::fmt::Display| format!("cannot connect to {addr}: {e}");
        let socket = tokio::net::TcpStream::connect(addr).await.map_err(|e| failed(&e))?;
        socket.set_nodelay(true).map_err(|e| failed(&e))?;
        let (sender, driver) = h2::client::handshake(socket).await.map_err(|e| failed(&e))?;
        // The driver ends with the last sender. If it fails, the requests that wait for answers report why.
        tokio::spawn(async move { _ = driver.await });
        for lane in 0..shared.options.in_flight {
            let at = connection * shared.options.in_flight + lane;
            tasks.push(tokio::spawn(lane_work(sender.clone(), at, lanes, shared.clone())));
        }
    }
    for task in tasks {
        task.await.map_err(|e| format!("a lane panicked: {e}"))?;
    }
    let mut results = shared.results.lock().map_err(|_| "a lane panicked")?;
    Ok(std::mem::take(&mut results.0))
}

/// Sends one request after the other. The number of lanes is the number of requests in flight.
async fn lane_work(mut sender: SendRequest<Bytes>, lane: usize, lanes: usize, shared: Arc<Shared>) {
    let Window { start_ns, measured_from_ns, end_ns } = shared.window;
    let mut schedule = Schedule::new(start_ns, end_ns - start_ns, shared.options.rate, lane, lanes);
    let mut number = lane as u64;
    while let Some(next_ns) = schedule.next_ns(clock::now_ns()) {
        let wait_ns = next_ns.saturating_sub(clock::now_ns());
        if wait_ns > 0 {
            tokio::time::sleep(Duration::from_nanos(wait_ns)).await;
            continue;
        }
        let Some(intended_ns) = schedule.take(clock::now_ns()) else { continue };
        let asked = ask(&mut sender, &shared.options, number);
        let answer = match tokio::time::timeout(DRAIN, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", DRAIN.as_secs()).into()),
        };
        number += lanes as u64;
        let now_ns = clock::now_ns();
        let mut results = shared.results.lock().expect("nothing panics while it holds this");
        let (tally, recent_ns, published_ns) = &mut *results;
        match answer {
            Ok(()) => {
                let latency_ns = (now_ns - intended_ns).max(1);
                shared.live.count(1, 0);
                recent_ns.saturating_record(latency_ns);
                if intended_ns >= measured_from_ns {
                    tally.records += 1;
                    tally.requests += 1;
                    tally.latency_ns.saturating_record(latency_ns);
                    tally.span_ns = tally.span_ns.max(now_ns - measured_from_ns);
                }
            }
            Err(why) => {
                shared.live.errors.fetch_add(1, Ordering::Relaxed);
                tally.fail(1, || why.to_string());
                return;
            }
        }
        if now_ns - *published_ns > PUBLISH_NS {
            *published_ns = now_ns;
            shared.live.publish(recent_ns);
        }
    }
}

async fn ask(sender: &mut SendRequest<Bytes>, options: &EtcdOptions, number: u64) -> Result<(), AnyError> {
    let key = format!("bench-{}", number % options.keys.max(1) as u64);
    let (path, message) = match options.operation {
        EtcdOperation::Write => ("/etcdserverpb.KV/Put", put(key.as_bytes(), number.to_string().as_bytes())),
        EtcdOperation::Read => ("/etcdserverpb.KV/Range", range(key.as_bytes())),
    };
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{}{path}", options.bootstrap))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    std::future::poll_fn(|context| sender.poll_ready(context)).await?;
    let (response, mut body) = sender.send_request(request, false)?;
    body.send_data(framed(&message), true)?;
    let response = response.await?;
    if let Some(status) = response.headers().get("grpc-status").filter(|status| *status != "0") {
        return Err(refusal(status, response.headers()).into());
    }
    let mut answer = response.into_body();
    while let Some(data) = answer.data().await {
        let data = data?;
        // Open the flow-control window again for the bytes that were read.
        answer.flow_control().release_capacity(data.len())?;
    }
    let trailers = answer.trailers().await?.unwrap_or_default();
    match trailers.get("grpc-status") {
        Some(status) if status == "0" => Ok(()),
        Some(status) => Err(refusal(status, &trailers).into()),
        None => Err("an answer has no status".into()),
    }
}

fn refusal(status: &http::HeaderValue, headers: &http::HeaderMap) -> String {
    let message = headers.get("grpc-message").map_or("", |message| message.to_str().unwrap_or_default());
    format!("etcd refused with status {}: {message}", status.to_str().unwrap_or("?"))
}

/// Adds gRPC's frame header: not compressed, and the length.
fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

/// PutRequest { bytes key = 1; bytes value = 2; }
fn put(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    field(&mut message, 1, key);
    field(&mut message, 2, value);
    message
}

/// RangeRequest { bytes key = 1; }. The read is linearizable unless the request sets `serializable`.
fn range(key: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    field(&mut message, 1, key);
    message
}

/// Appends a bytes field of fewer than 128 bytes, so that its length fits in one byte.
fn field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    assert!(bytes.len() < 128, "keys and values here are short");
    message.push(number << 3 | 2);
    message.push(bytes.len() as u8);
    message.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_protobuf_has_them() {
        assert_eq!(put(b"key", b"v"), [0x0a, 3, b'k', b'e', b'y', 0x12, 1, b'v']);
        assert_eq!(range(b"k"), [0x0a, 1, b'k']);
        assert_eq!(framed(&[7, 8])[..], [0, 0, 0, 0, 2, 7, 8]);
    }
}
