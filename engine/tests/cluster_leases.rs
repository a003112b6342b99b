//! Metadata reads under read leases, from outside. A broker answers alone while its lease lasts. No answer is older
//! than a lease, even if brokers are paused, cut off or deposed.
//!
//! Topics are created all the time, and the test lists the topics of all brokers all the time. Each read records when
//! it began. It must show every topic that was acknowledged a lease before that.

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use consensus::plane::Acks;
use net::client::blocking::{Client, ClientError};
use net::codec::api::ApiKey;
use net::errors;
use net::messages::MetadataRequest;

use support::PATIENCE;
use support::cluster::{Cluster, wait_until};
use support::proxy::Mode;
use support::tool::{Tool, create_topic};
use support::wire;

const BROKERS: usize = 3;
/// The greatest age of a leased read.
const LEASE: Duration = Duration::from_secs(5);
/// Longer than a lease plus an election.
const AWAY: Duration = Duration::from_millis(6500);
/// Time that one change waits for its acknowledgement.
const CHANGE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);
/// Number of reads that wait for a broker which does not answer.
const LATE_READS: usize = 8;

/// One answered read.
#[derive(Debug, Clone)]
struct Read {
    begun: Instant,
    /// The numbers of the topics that it showed.
    shown: BTreeSet<u64>,
}

/// The acknowledged topics, and when they were acknowledged.
type Acked = Vec<(u64, Instant)>;

/// All violations in the successive reads of one reader.
fn stale(acked: &Acked, reads: &[Read]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut before = &BTreeSet::new();
    for (at, Read { begun, shown }) in reads.iter().enumerate() {
        let due = acked.iter().filter(|(_, acked)| *acked + LEASE < *begun);
        for (number, acked) in due.filter(|(number, _)| !shown.contains(number)) {
            wrong.push(format!("read {at} misses topic {number}, acknowledged {:?} before", *begun - *acked));
        }
        if let Some(lost) = before.difference(shown).next() {
            wrong.push(format!("read {at} does not show topic {lost} any more"));
        }
        before = shown;
    }
    wrong
}

/// Lists the topics of one broker. `None`: the broker may not answer.
fn read(client: &mut Client) -> Result<Option<Read>, ClientError> {
    let begun = ask(client)?;
    answer(client, begun)
}

/// Sends the request. Returns when that was.
fn ask(client: &mut Client) -> Result<Instant, ClientError> {
    let begun = Instant::now();
    let request = MetadataRequest::default().with_topics(None).with_allow_auto_topic_creation(false);
    client.send(client.version(ApiKey::Metadata)?, &request.into())?;
    Ok(begun)
}

fn answer(client: &mut Client, begun: Instant) -> Result<Option<Read>, ClientError> {
    let told = client.receive()?.decode::<MetadataRequest>()?;
    assert_eq!(told.error_code, errors::NONE);
    let topics = told.topics;
    if topics.iter().any(|topic| topic.error_code != errors::NONE) {
        return Ok(None);
    }
    let number = |name: &str| name.strip_prefix("topic-")?.parse().ok();
    let shown = topics.iter().filter_map(|topic| number(topic.name.as_ref()?.0.as_str())).collect();
    Ok(Some(Read { begun, shown }))
}

/// Reads from a broker that does not answer. They begin before `returns` brings the broker back.
fn late_reads(mut clients: Vec<Client>, returns: impl FnOnce()) -> Vec<Read> {
    let begun: Vec<Instant> = clients.iter_mut().map(|client| ask(client).expect("it is sent")).collect();
    returns();
    let answers = clients.iter_mut().zip(begun).map(|(client, begun)| answer(client, begun).expect("an answer"));
    // If the broker could not get an answer in time, it returns an error, and the read does not count.
    answers.flatten().collect()
}

/// One thread that creates topics, and one thread per broker that reads from it.
struct Clients {
    done: Arc<AtomicBool>,
    acked: Arc<Mutex<Acked>>,
    writer: JoinHandle<()>,
    readers: Vec<JoinHandle<Vec<Read>>>,
}

impl Clients {
    fn start(cluster: &Cluster) -> Clients {
        let (done, acked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Acked::new())));
        let secret = cluster.broker(0).secret();
        let peers: Vec<_> = (0..BROKERS).map(|i| cluster.broker(i).peer()).collect();
        let writer = {
            let (done, acked) = (done.clone(), acked.clone());
            thread::spawn(move || {
                let mut tools: Vec<Option<Tool>> = peers.iter().map(|_| None).collect();
                let mut number = 0;
                while !done.load(Ordering::Relaxed) {
                    number += 1;
                    // Uses all brokers in turn. An unacknowledged creation is not retried.
                    let through = number as usize % BROKERS;
                    let slot = &mut tools[through];
                    if slot.is_none() {
                        *slot = Tool::connect_to(peers[through], Some(secret.clone()), CHANGE).ok();
                    }
                    let Some(tool) = slot else { continue };
                    match tool.write(Acks::Quorum, create_topic(&format!("topic-{number}"), through as i32 + 1)) {
                        Ok(()) => acked.lock().unwrap().push((number, Instant::now())),
                        Err(_) => *slot = None,
                    }
                    thread::sleep(PAUSE);
                }
            })
        };
        let reader = |i: usize| {
            let (done, addr) = (done.clone(), cluster.broker(i).bootstrap());
            thread::spawn(move || {
                let (mut client, mut reads) = (None, Vec::new());
                while !done.load(Ordering::Relaxed) {
                    if client.is_none() {
                        client = Client::connect(&addr, "reader", PATIENCE).ok();
                    }
                    match client.as_mut().map(read) {
                        Some(Ok(answer)) => reads.extend(answer),
                        Some(Err(_)) => client = None,
                        None => {}
                    }
                    thread::sleep(PAUSE);
                }
                reads
            })
        };
        let readers = (0..BROKERS).map(reader).collect();
        Clients { done, acked, writer, readers }
    }

    fn acked(&self) -> usize {
        self.acked.lock().unwrap().len()
    }

    fn wait_for_changes(&self, more: usize) {
        let target = self.acked() + more;
        wait_until("further changes", || self.acked() >= target);
    }

    /// Ends the threads, and checks every read.
    fn stop(self, late: &[Read]) {
        self.done.store(true, Ordering::Relaxed);
        self.writer.join().expect("the writer goes on whatever it is told");
        let acked = self.acked.lock().unwrap();
        for (broker, reader) in self.readers.into_iter().enumerate() {
            let reads = reader.join().expect("a reader goes on whatever it is told");
            assert!(!reads.is_empty(), "broker {broker} was never read from");
            let wrong = stale(&acked, &reads);
            assert!(wrong.is_empty(), "broker {broker}: {wrong:#?}");
        }
        for read in late {
            let wrong = stale(&acked, std::slice::from_ref(read));
            assert!(wrong.is_empty(), "{wrong:#?}");
        }
    }
}

fn valid_and_expired(cluster: &Cluster, i: usize) -> [f64; 2] {
    ["valid", "expired"].map(|kind| cluster.broker(i).metric(&format!("millrace_lease_{kind}_reads_total")))
}

#[test]
fn the_judge_catches_what_is_stale() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let read = |ms: u64, shown: &[u64]| Read { begun: at(ms), shown: shown.iter().copied().collect() };
    let acked = vec![(1, at(100)), (2, at(200))];
    let sound = [read(50, &[]), read(5050, &[1]), read(5150, &[1, 3]), read(5250, &[1, 2, 3])];
    assert_eq!(stale(&acked, &sound), [""; 0]);
    assert_eq!(stale(&acked, &[read(5101, &[2])]).len(), 1, "what was acknowledged more than a lease ago is missing");
    assert_eq!(stale(&acked, &[read(10, &[1, 2]), read(20, &[1])]).len(), 1, "it goes back");
}

#[test]
fn brokers_answer_reads_alone_while_their_leases_last_and_ask_once_they_do_not() {
    let cluster = Cluster::start(BROKERS, &[]);
    let leader = cluster.leader();
    let follower = (leader + 1) % BROKERS;
    let clients = Clients::start(&cluster);
    clients.wait_for_changes(5);
    let mut client = wire::connect(cluster.broker(follower));
    wait_until("valid lease", || {
        let before = valid_and_expired(&cluster, follower);
        read(&mut client).expect("an answer");
        let after = valid_and_expired(&cluster, follower);
        after[0] > before[0] && after[1] == before[1]
    });

    // Nobody can help the follower to answer now.
    cluster.set_all_ways(follower, Mode::Silent);
    let alone = read(&mut client).expect("an answer").expect("a lease that was renewed a moment ago");
    let expired = valid_and_expired(&cluster, follower)[1];
    wait_until("read without a lease", || valid_and_expired(&cluster, follower)[1] > expired);
    clients.wait_for_changes(5);
    let late = late_reads(connect_many(&cluster, follower), || cluster.set_all_ways(follower, Mode::Open));
    clients.wait_for_changes(5);
    clients.stop(&[vec![alone], late].concat());
}

fn connect_many(cluster: &Cluster, i: usize) -> Vec<Client> {
    (0..LATE_READS).map(|_| wire::connect(cluster.broker(i))).collect()
}

/// Pauses a broker for longer than its lease, while clients create topics.
fn stops(cluster: &Cluster, i: usize) {
    let clients = Clients::start(cluster);
    clients.wait_for_changes(5);
    let before = valid_and_expired(cluster, i)[1];
    let late = connect_many(cluster, i);
    cluster.broker(i).signal(libc::SIGSTOP);
    clients.wait_for_changes(5);
    thread::sleep(AWAY);
    // These requests wait in its sockets when it wakes up.
    let late = late_reads(late, || cluster.broker(i).signal(libc::SIGCONT));
    assert!(valid_and_expired(cluster, i)[1] > before, "a lease outlived its time");
    clients.wait_for_changes(5);
    clients.stop(&late);
}

#[test]
fn a_follower_that_was_stopped_for_longer_than_its_lease_shows_nothing_old() {
    let cluster = Cluster::start(BROKERS, &[]);
    stops(&cluster, (cluster.leader() + 1) % BROKERS);
}

#[test]
fn a_leader_that_was_stopped_for_longer_than_its_lease_shows_nothing_old() {
    let cluster = Cluster::start(BROKERS, &[]);
    stops(&cluster, cluster.leader());
}

#[test]
fn a_lead_that_is_handed_over_leaves_no_reader_behind() {
    let mut cluster = Cluster::start(BROKERS, &[]);
    let clients = Clients::start(&cluster);
    for _ in 0..2 {
        clients.wait_for_changes(5);
        let leader = cluster.leader();
        cluster.stop(leader);
        clients.wait_for_changes(5);
        cluster.begin(leader);
    }
    // All brokers must show the topics that were acknowledged before the last hand-over.
    thread::sleep(LEASE);
    clients.wait_for_changes(5);
    clients.stop(&[]);
}
