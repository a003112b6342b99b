//! How a new broker enters a cluster, before its cores run: it founds one together with its seeds, or joins an
//! existing one.
//! Lives on: the main thread, which may block here, and threads that answer others meanwhile.
//!
//! A cluster is founded exactly once, by the seed with the lowest node id. It needs one round in which every seed
//! says that it belongs to no cluster and names the same seeds. The founder makes its decision durable before any
//! other broker learns of it. If the decision is lost before that, nobody has acted on it. The other brokers take the
//! cluster id and the founding peers from any member.

use super::{
    calling::{CALL_MAX, CallError, PATIENCE, call},
    node_id::{Claim, NodeId, ask_holder},
};
use crate::config::value::{HostPort, Seeds};
use consensus::{
    metadata::Rejection,
    plane::node_of,
    wire::{self, Caller, Hello},
};
use net::peer::{
    BlockingPeer,
    auth::{Handshake, Secret, nonce},
};
use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// How often the seeds are asked.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// Most callers answered at a time. When full, the next one waits until one has gone, or until the oldest has had its
/// time and gives way.
const ASKING_MAX: usize = 64;
/// Minimum time that each caller gets, however many come. Brokers need milliseconds for the handshake.
const TIME_MIN: Duration = Duration::from_millis(100);
/// How often the wait is logged.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// Identifies a cluster and its founders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub id: String,
    /// The first voters of the metadata group.
    pub founding: Vec<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("cannot listen on {addr} (peer.addr) for other brokers: {source}; choose another (--peer-addr)")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    NotJoined(#[from] JoinError),
    #[error("stopped while waiting for the seeds")]
    Stopped,
}

/// Why this broker must not join the cluster of its seeds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Each with its cluster.
    #[error("the seeds belong to different clusters: {}; check --seeds", .0.join(", "))]
    Clusters(Vec<String>),
    /// Without a secret, anyone at a seed's address could capture this broker.
    #[error(
        "the seeds belong to the cluster {cluster}, but its founder broker {founder} is not in --seeds, here {seeds:?}; \
         name all founders there, or give all brokers of the cluster the same cluster.secret.file"
    )]
    UnknownFounder { cluster: String, founder: i32, seeds: Vec<i32> },
    #[error(transparent)]
    NodeIdTaken(Rejection),
}

/// One seed's answer.
#[derive(Debug)]
pub struct Answer {
    pub node: i32,
    pub address: String,
    pub hello: Result<Hello, CallError>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Not yet, for these reasons.
    Wait(Vec<String>),
    /// Found a cluster with these peers, ascending.
    Found(Vec<u64>),
    Join(Cluster),
    Refuse(JoinError),
}

/// A cluster of one broker.
pub fn alone(peer: u64) -> Cluster {
    Cluster { id: new_id(), founding: vec![peer] }
}

fn new_id() -> String {
    Uuid::new_v4().simple().to_string()
}

/// Waits until there is a cluster to belong to. `me` names none yet. `session`: how long a silent broker counts as
/// alive.
pub fn run(
    me: &Hello,
    secret: Option<Secret>,
    seeds: &Seeds,
    listen_on: SocketAddr,
    session: Duration,
    stopped: impl Fn() -> bool,
) -> Result<Cluster, BootstrapError> {
    let answering = Answering::start(me.clone(), secret.clone(), listen_on)?;
    let mut told: Option<Instant> = None;
    let mut node_id = NodeId::new(me.node, me.peer, session);
    let decided = loop {
        if stopped() {
            break Err(BootstrapError::Stopped);
        }
        let answers = ask_all(me, secret.as_ref(), seeds);
        let waits = match decide(me, &answers) {
            Decision::Wait(why) => {
                format!("waiting for seeds: {}; a new cluster starts once all seeds have answered", why.join(", "))
            }
            Decision::Found(founding) => break Ok(Cluster { id: new_id(), founding }),
            Decision::Join(cluster) => match may_join(me, &cluster, secret.as_ref(), &answers, &mut node_id) {
                Ok(Claim::Free) => break Ok(cluster),
                Ok(Claim::Wait(why)) => why.to_string(),
                Ok(Claim::Taken(why)) => break Err(JoinError::NodeIdTaken(why).into()),
                Err(why) => break Err(why.into()),
            },
            Decision::Refuse(why) => break Err(why.into()),
        };
        if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            told = Some(Instant::now());
            tracing::info!("{waits}");
        }
        thread::sleep(ASK_EVERY);
    };
    answering.stop();
    decided
}

/// One round of questions to the other seeds.
fn ask_all(me: &Hello, secret: Option<&Secret>, seeds: &Seeds) -> Vec<Answer> {
    let others = seeds.iter().filter(|(node, _)| *node != me.node);
    let ask_one = |(node, address): &(i32, HostPort)| {
        let address = address.to_string();
        let hello = ask(me, secret.cloned(), &address);
        Answer { node: *node, address, hello }
    };
    others.map(ask_one).collect()
}

/// Whether this broker may join the cluster now. Founders must: without them there may be nobody who can tell whose
/// their node ids are.
fn may_join(
    me: &Hello,
    cluster: &Cluster,
    secret: Option<&Secret>,
    answers: &[Answer],
    node_id: &mut NodeId,
) -> Result<Claim, JoinError> {
    check_founders(me, cluster, secret.is_some())?;
    if cluster.founding.contains(&me.peer) {
        return Ok(Claim::Free);
    }
    let is_member = |answer: &&Answer| answer.hello.as_ref().is_ok_and(|hello| hello.cluster_id.is_some());
    let members = answers.iter().filter(is_member);
    Ok(node_id.claim(Instant::now(), members.map(|member| ask_holder(me.node, secret.cloned(), &member.address))))
}

/// Decides from one round of answers.
pub fn decide(me: &Hello, answers: &[Answer]) -> Decision {
    let heard: Vec<(&Answer, &Hello)> =
        answers.iter().filter_map(|answer| Some((answer, answer.hello.as_ref().ok()?))).collect();
    let clusters: BTreeSet<&String> = heard.iter().filter_map(|(_, hello)| hello.cluster_id.as_ref()).collect();
    if clusters.len() > 1 {
        let of =
            |(answer, hello): &(&Answer, &Hello)| Some(format!("{} of {}", answer.address, hello.cluster_id.as_ref()?));
        return Decision::Refuse(JoinError::Clusters(heard.iter().filter_map(of).collect()));
    }
    let member = heard.iter().find_map(|(_, hello)| Some((hello.cluster_id.clone()?, hello.founding.clone())));
    if let Some((id, founding)) = member {
        return Decision::Join(Cluster { id, founding });
    }
    if !me.seeds.contains(&me.node) {
        return Decision::Wait(vec!["no seed belongs to a cluster yet, and this broker is not a seed".to_owned()]);
    }
    let mut why = Vec::new();
    for Answer { node, address, hello } in answers {
        match hello {
            Err(error) => why.push(format!("{node}@{address} ({error})")),
            Ok(hello) if hello.node != *node => why.push(format!("{node}@{address} (broker {} answers)", hello.node)),
            Ok(hello) if hello.seeds != me.seeds => {
                why.push(format!("{node}@{address} (its --seeds are {:?}, here they are {:?})", hello.seeds, me.seeds));
            }
            Ok(_) => {}
        }
    }
    let founder = me.seeds.first() == Some(&me.node);
    if why.is_empty() && founder {
        let mut founding: Vec<u64> = heard.iter().map(|(_, hello)| hello.peer).collect();
        founding.push(me.peer);
        founding.sort_unstable();
        return Decision::Found(founding);
    }
    if why.is_empty() {
        why.push(format!("{} (it founds the cluster)", me.seeds[0]));
    }
    Decision::Wait(why)
}

/// Checks that this broker may join a cluster of these founders. With a secret, the handshake has already proved that
/// the cluster knows it. Without one, all founders must be among the seeds.
fn check_founders(me: &Hello, cluster: &Cluster, is_secured: bool) -> Result<(), JoinError> {
    let mut founders = cluster.founding.iter().map(|peer| node_of(*peer));
    match founders.find(|node| !me.seeds.contains(node)) {
        Some(founder) if !is_secured => {
            let (cluster, seeds) = (cluster.id.clone(), me.seeds.clone());
            Err(JoinError::UnknownFounder { cluster, founder, seeds })
        }
        _ => Ok(()),
    }
}

/// The hello of the broker at this address.
fn ask(me: &Hello, secret: Option<Secret>, address: &str) -> Result<Hello, CallError> {
    let (_, hello) = call(me, secret, address)?;
    Ok(hello)
}

/// Tells callers that this broker belongs to no cluster yet.
struct Answering {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Answering {
    fn start(me: Hello, secret: Option<Secret>, addr: SocketAddr) -> Result<Self, BootstrapError> {
        assert_eq!((me.caller, &me.cluster_id), (Caller::Broker, &None));
        let failed = |source| BootstrapError::Listen { addr, source };
        let listener = TcpListener::bind(addr).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let callers = Arc::new(Callers::default());
        let answer = move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let entered = stream.and_then(|stream| Ok((callers.enter(&stream)?, stream)));
                let (number, stream) = match entered {
                    Ok(entered) => entered,
                    Err(error) => {
                        tracing::debug!(%error, "somebody who asked got no answer");
                        continue;
                    }
                };
                // Each caller gets its own thread, so that a silent one does not delay the others.
                let (me, secret, inside) = (me.clone(), secret.clone(), callers.clone());
                let answer = move || {
                    if let Err(error) = answer_one(stream, &me, secret) {
                        tracing::debug!(%error, "somebody who asked got no answer");
                    }
                    inside.leave(number);
                };
                if thread::Builder::new().name("answer".to_owned()).spawn(answer).is_err() {
                    callers.leave(number);
                }
            }
        };
        let thread = thread::Builder::new().name("bootstrap".to_owned()).spawn(answer).map_err(failed)?;
        Ok(Self { addr, stop, thread })
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread. If that fails, the next caller wakes it.
        if TcpStream::connect_timeout(&self.addr, PATIENCE).is_ok() && self.thread.join().is_err() {
            tracing::error!("the thread that answers other brokers has panicked");
        }
    }
}

/// The callers that are being answered. They are strangers, so none may keep the others out.
#[derive(Default)]
struct Callers {
    /// Oldest first.
    inside: Mutex<VecDeque<Inside>>,
    gone: Condvar,
    next: AtomicU64,
}

struct Inside {
    number: u64,
    came_at: Instant,
    /// Another handle of its connection.
    stream: TcpStream,
}

impl Callers {
    /// Lets a caller in once there is room. Returns its number.
    fn enter(&self, stream: &TcpStream) -> io::Result<u64> {
        let stream = stream.try_clone()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut inside = self.inside();
        while inside.len() >= ASKING_MAX {
            let left = TIME_MIN.saturating_sub(inside[0].came_at.elapsed());
            if left.is_zero() {
                // Its thread then ends. The other side may have closed the connection before.
                let _ = inside.pop_front().expect("it is full").stream.shutdown(Shutdown::Both);
            } else {
                let waited = self.gone.wait_timeout(inside, left);
                inside = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        inside.push_back(Inside { number, came_at: Instant::now(), stream });
        Ok(number)
    }

    fn leave(&self, number: u64) {
        self.inside().retain(|inside| inside.number != number);
        self.gone.notify_one();
    }

    fn inside(&self) -> MutexGuard<'_, VecDeque<Inside>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer_one(stream: TcpStream, me: &Hello, secret: Option<Secret>) -> Result<(), CallError> {
    let mut peer = BlockingPeer::new(stream, PATIENCE)?;
    peer.set_deadline(Instant::now() + CALL_MAX);
    let handshake = Handshake::answerer(secret, wire::encode_hello(me), nonce());
    wire::decode_hello(&peer.shake_hands(handshake, false)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use consensus::plane::peer_id;

    fn hello(node: i32) -> Hello {
        Hello {
            caller: Caller::Broker,
            cluster_id: None,
            node,
            peer: peer_id(node, 7),
            incarnation: 1,
            cores: 1,
            program: "test".to_owned(),
            peer_addr: String::new(),
            seeds: vec![1, 2, 3],
            founding: Vec::new(),
            core: 0,
        }
    }

    const SESSION: Duration = Duration::from_secs(3);

    fn secret() -> Option<Secret> {
        Secret::new(&[7; 32])
    }

    #[test]
    fn a_broker_with_another_secret_is_not_joined_and_one_that_says_nothing_keeps_nobody_waiting() {
        let addr = free_addrs(1)[0];
        let answering = Answering::start(hello(1), secret(), addr).unwrap();
        let _silent: Vec<_> = (0..3).map(|_| TcpStream::connect(addr).unwrap()).collect();
        assert_eq!(ask(&hello(2), secret(), &addr.to_string()).unwrap(), hello(1));
        for (other, why) in [(Secret::new(&[8; 32]), "the secrets differ"), (None, "wants a proof")] {
            let error = ask(&hello(2), other, &addr.to_string()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        answering.stop();
    }

    /// More than are answered at a time, and no more than the kernel lets wait.
    const STRANGERS: usize = 180;

    #[test]
    fn strangers_that_say_nothing_keep_no_founder_out() {
        let addr = free_addrs(1)[0];
        let answering = Answering::start(hello(1), secret(), addr).unwrap();
        for _ in 0..3 {
            let strangers: Vec<_> = (0..STRANGERS).map(|_| TcpStream::connect(addr).unwrap()).collect();
            assert_eq!(ask(&hello(2), secret(), &addr.to_string()).unwrap(), hello(1));
            drop(strangers);
        }
        answering.stop();
    }

    #[test]
    fn the_oldest_caller_gives_way_when_all_places_are_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let callers = Callers::default();
        let connect = || {
            let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let here = listener.accept().unwrap().0;
            (callers.enter(&here).unwrap(), there)
        };
        let mut first: Vec<_> = (0..ASKING_MAX).map(|_| connect()).collect();
        let next = connect();
        let numbers = || callers.inside().iter().map(|inside| inside.number).collect::<Vec<_>>();
        assert_eq!(numbers(), (1..=ASKING_MAX as u64).collect::<Vec<_>>());
        let mut oldest = first.remove(0).1;
        oldest.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(io::Read::read(&mut oldest, &mut [0]).unwrap(), 0, "it was closed");
        callers.leave(next.0);
        callers.leave(0);
        assert_eq!(numbers(), (1..ASKING_MAX as u64).collect::<Vec<_>>());
    }

    fn of_cluster(node: i32, id: &str) -> Hello {
        Hello { cluster_id: Some(id.to_owned()), founding: vec![5], ..hello(node) }
    }

    fn answer(node: i32, hello: Result<Hello, io::ErrorKind>) -> Answer {
        Answer { node, address: format!("h{node}:1"), hello: hello.map_err(|kind| io::Error::from(kind).into()) }
    }

    #[test]
    fn the_lowest_seed_founds_once_all_are_new_and_agree() {
        let all = [answer(2, Ok(hello(2))), answer(3, Ok(hello(3)))];
        let founding = vec![peer_id(1, 7), peer_id(2, 7), peer_id(3, 7)];
        assert_eq!(decide(&hello(1), &all), Decision::Found(founding));
        let others = [answer(1, Ok(hello(1))), answer(3, Ok(hello(3)))];
        assert!(matches!(decide(&hello(2), &others), Decision::Wait(_)));
    }

    #[test]
    fn one_that_is_missing_or_disagrees_keeps_all_waiting() {
        let other_seeds = Hello { seeds: vec![1, 2], ..hello(3) };
        for (third, why) in [
            (Err(io::ErrorKind::ConnectionRefused), "3@h3:1 (connection refused)"),
            (Ok(other_seeds), "its --seeds are [1, 2], here they are [1, 2, 3]"),
            (Ok(hello(4)), "broker 4 answers"),
        ] {
            let Decision::Wait(found) = decide(&hello(1), &[answer(2, Ok(hello(2))), answer(3, third)]) else {
                panic!("{why}")
            };
            assert!(found.len() == 1 && found[0].contains(why), "{found:?}");
        }
    }

    #[test]
    fn a_broker_that_belongs_to_a_cluster_decides() {
        let cluster = Cluster { id: "c".to_owned(), founding: vec![5] };
        // This holds even for a founder whose data was erased, and even if a seed is missing.
        let answers = [answer(2, Ok(of_cluster(2, "c"))), answer(3, Err(io::ErrorKind::ConnectionReset))];
        assert_eq!(decide(&hello(1), &answers), Decision::Join(cluster.clone()));
        // It also holds for a broker that is no seed.
        let joiner = Hello { seeds: vec![2, 3], ..hello(9) };
        assert_eq!(decide(&joiner, &answers), Decision::Join(cluster));
        let new = [answer(2, Ok(hello(2))), answer(3, Ok(hello(3)))];
        assert!(matches!(decide(&joiner, &new), Decision::Wait(_)));
        let torn = [answer(2, Ok(of_cluster(2, "c"))), answer(3, Ok(of_cluster(3, "d")))];
        assert!(
            matches!(decide(&hello(1), &torn), Decision::Refuse(why) if why.to_string().contains("h2:1 of c, h3:1 of d"))
        );
    }

    #[test]
    fn without_a_secret_only_a_cluster_of_the_seeds_is_joined() {
        let cluster = |founders: &[i32]| Cluster {
            id: "c".to_owned(),
            founding: founders.iter().map(|node| peer_id(*node, 7)).collect(),
        };
        assert_eq!(check_founders(&hello(2), &cluster(&[1, 2, 3]), false), Ok(()));
        assert_eq!(check_founders(&hello(9), &cluster(&[1]), false), Ok(()));
        let refused = check_founders(&hello(2), &cluster(&[1, 4]), false).unwrap_err().to_string();
        assert!(refused.contains("its founder broker 4") && refused.contains("cluster.secret.file"), "{refused}");
        assert_eq!(check_founders(&hello(2), &cluster(&[1, 4]), true), Ok(()), "it knows the secret");
    }

    /// Loopback addresses that were free a moment ago.
    fn free_addrs(count: usize) -> Vec<SocketAddr> {
        let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        held.iter().map(|listener| listener.local_addr().unwrap()).collect()
    }

    #[test]
    fn one_of_three_founds_and_the_others_hear_of_it_from_whoever_knows() {
        let addrs = free_addrs(3);
        let seeds: Vec<String> = addrs.iter().zip(1..).map(|(addr, node)| format!("{node}@{addr}")).collect();
        let seeds: Seeds = seeds.join(",").parse().unwrap();
        let founded = Arc::new(AtomicBool::new(false));
        let waiting: Vec<_> = [2, 3]
            .map(|node| {
                let (seeds, addr, founded) = (seeds.clone(), addrs[node as usize - 1], founded.clone());
                thread::spawn(move || {
                    run(&hello(node), secret(), &seeds, addr, SESSION, || founded.load(Ordering::Acquire))
                })
            })
            .into_iter()
            .collect();
        let cluster = run(&hello(1), secret(), &seeds, addrs[0], SESSION, || false).unwrap();
        assert_eq!(cluster.founding, [peer_id(1, 7), peer_id(2, 7), peer_id(3, 7)]);
        // The founder keeps running, now as a member of its cluster.
        let member = Hello { cluster_id: Some(cluster.id.clone()), founding: cluster.founding.clone(), ..hello(1) };
        let listener = TcpListener::bind(addrs[0]).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = answer_one(stream.unwrap(), &member, secret());
            }
        });
        for waiting in waiting {
            assert_eq!(waiting.join().unwrap().unwrap(), cluster);
        }
    }

    #[test]
    fn the_wait_can_be_ended() {
        let addrs = free_addrs(2);
        let seeds: Seeds = format!("1@{},2@{}", addrs[0], addrs[1]).parse().unwrap();
        let me = Hello { seeds: vec![1, 2], ..hello(1) };
        assert!(matches!(run(&me, secret(), &seeds, addrs[0], SESSION, || true), Err(BootstrapError::Stopped)));
    }
}
