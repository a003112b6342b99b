//! Workload `metadata`: raw commands and queries over the peer port (module `peer`), or topics created and deleted
//! through the Kafka API.

pub(crate) mod peer;

use std::net::SocketAddr;
use std::sync::Arc;

use net::StrBytes;
use net::client::Answer;
use net::codec::api::ApiKey;
use net::codec::request::Request;
use net::errors::{self, ErrorCode};
use net::messages::create_topics_request::CreatableTopic;
use net::messages::{CreateTopicsRequest, DeleteTopicsRequest, TopicName};

use crate::brokers::tool::{self, resolve};
use crate::clock;
use crate::error::AnyError;
use crate::figures::outcome::Outcome;
use crate::figures::stats::Live;
use crate::load::error::LoadError;
use crate::load::ops::{self, Pace};
use crate::load::setup::{self, Lane};
use crate::load::window::Window;
use crate::machine::ceiling::Ceiling;
use crate::options::workloads::{MetadataOptions, Operation};
use crate::report::shares::Share;
use crate::report::{Report, Unit};
use crate::run;
use crate::workloads::metadata::peer::Named;

/// How long the broker may take for one request.
const REQUEST_TIMEOUT_MS: i32 = 30_000;

pub fn run(options: &MetadataOptions) -> Result<Report, AnyError> {
    let (name, shares) = match options.operation {
        Operation::Write => ("metadata-write", [Share::WriteSync, Share::LoopbackRoundTrip].as_slice()),
        Operation::Read => ("metadata-read", [Share::LoopbackRoundTrip].as_slice()),
        Operation::CreateTopics => ("create-topics", [Share::WriteSync].as_slice()),
        Operation::DeleteTopics => ("delete-topics", [Share::WriteSync].as_slice()),
    };
    let raw = matches!(options.operation, Operation::Write | Operation::Read);
    let (outcome, ceiling) = if raw { by_peer(options, |_| ())? } else { by_kafka(options)? };
    Ok(Report::new(name, Unit::Operations, outcome, ceiling).against(shares))
}

fn pace(options: &MetadataOptions) -> Pace {
    Pace {
        rate: options.rate,
        connections: options.threads.connections.unwrap_or(1),
        in_flight: options.in_flight,
        window: Window::new(options.run.warm_up, options.run.duration),
    }
}

/// Writes or reads over the peer port. Calls `begins` with the run's window just before the load begins.
pub fn by_peer(options: &MetadataOptions, begins: impl FnOnce(Window)) -> Result<(Outcome, Ceiling), AnyError> {
    let addr = resolve(&options.peer)?;
    let topics: Arc<[Named]> = peer::prepare(options, addr)?.into();
    let ceiling = Ceiling::measure(&options.run);
    let pace = pace(options);
    begins(pace.window);
    let plan = peer::Plan { asks: peer::asks(options, topics), pace, secret: tool::secret(&options.secret)? };
    let work = move |at: usize, lane: Lane, live: Arc<Live>| peer::lane_work(plan.clone(), at, lane.addr, live);
    let outcome = run::drive(&options.threads, lanes(addr, options), pace.window, work)?;
    Ok((outcome, ceiling))
}

fn lanes(addr: SocketAddr, options: &MetadataOptions) -> Vec<Lane> {
    (0..options.threads.connections.unwrap_or(1)).map(|_| Lane { addr, partitions: Vec::new() }).collect()
}

/// Creates topics whose names are unique to this run. The operation delete-topics leaves a few topics: the newest, and
/// those created before there was one to delete. The operation create-topics leaves all topics.
fn by_kafka(options: &MetadataOptions) -> Result<(Outcome, Ceiling), AnyError> {
    let client = setup::connect(&options.bootstrap)?;
    let (create, delete) = (client.version(ApiKey::CreateTopics)?, client.version(ApiKey::DeleteTopics)?);
    // DeleteTopics identifies topics by name up to version 5.
    let delete = delete.min(5);
    drop(client);
    let ceiling = Ceiling::measure(&options.run);
    let pace = pace(options);
    let run = clock::unix_ms();
    let deletes = options.operation == Operation::DeleteTopics;
    let (partitions, replication) = (options.partitions, options.replication_factor);
    let in_flight = options.in_flight as u64;
    let work = move |at: usize, lane: Lane, live: Arc<Live>| {
        let name = move |n: u64| TopicName(StrBytes::from_string(format!("bench-created-{run}-{at}-{n}")));
        let make = move |n: u64| -> (i16, Request) {
            // Requests alternate between creating and deleting a topic. The topic to delete was created more than
            // `in_flight` requests earlier, so the answer to its creation has arrived.
            let lag = in_flight / 2 + 1;
            if deletes && n % 2 == 1 && n / 2 >= lag {
                let names = vec![name(n / 2 - lag)];
                let request =
                    DeleteTopicsRequest::default().with_topic_names(names).with_timeout_ms(REQUEST_TIMEOUT_MS);
                return (delete, request.into());
            }
            let number = if !deletes {
                n
            } else if n.is_multiple_of(2) {
                n / 2
            } else {
                // There is no topic to delete yet. Create one that stays.
                u64::MAX - n
            };
            let topic = CreatableTopic::default()
                .with_name(name(number))
                .with_num_partitions(partitions)
                .with_replication_factor(replication);
            let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(REQUEST_TIMEOUT_MS);
            (create, request.into())
        };
        ops::lane_work(pace, at, lane.addr, live, make, check)
    };
    let outcome = run::drive(&options.threads, lanes(resolve(&options.bootstrap)?, options), pace.window, work)?;
    Ok((outcome, ceiling))
}

fn check(answer: Answer) -> Result<(), LoadError> {
    let mut codes = Vec::new();
    if answer.api == ApiKey::DeleteTopics {
        let response = answer.decode::<DeleteTopicsRequest>()?;
        codes.extend(response.responses.iter().map(|topic| topic.error_code));
    } else {
        let response = answer.decode::<CreateTopicsRequest>()?;
        codes.extend(response.topics.iter().map(|topic| topic.error_code));
    }
    match codes.first() {
        Some(code) => Ok(errors::check(*code)?),
        None => Err(ErrorCode::UnknownServerError.into()),
    }
}
