//! The mesh: bounded single-producer, single-consumer queues between every pair of cores.
//! Lives on: every core, one [`Mesh`] each. Carries owned values only.
//!
//! Each direction of a pair has two lanes. *Work* carries requests. *Control* carries their replies and the
//! broker's own messages, so that a burst of requests delays neither finished answers nor the metadata.
//!
//! Order: messages from one core to another in one lane arrive, and start, in the order of sending. A job starts
//! synchronously on arrival; only its waits are asynchronous.
//!
//! Full queues: a message that does not fit waits in the sender's outbox. The outbox is bounded by what the sender
//! admitted: requests by the connections' limits on requests in flight, replies by the requests they answer.

use crate::{
    rt::{self, QueueReceiver, QueueSender},
    sync::{Answer, Either, Notify, Promise, promise, race},
};
use slab::Slab;
use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use types::CoreId;

/// Messages that fit in one queue of the mesh.
pub const QUEUE_MESSAGES: usize = 1024;

type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;
type Erased = Box<dyn Any + Send>;
type Job<C> = Box<dyn FnOnce(Rc<C>) -> LocalFuture<Erased> + Send>;
type Post<C> = Box<dyn FnOnce(&Rc<C>) + Send>;

enum Work<C> {
    /// Its result goes back.
    Ask { token: usize, job: Job<C> },
    /// Nothing goes back.
    Tell(Post<C>),
}

enum Control<C> {
    Reply { token: usize, value: Erased },
    Post(Post<C>),
}

/// One core's ends of the mesh before its executor runs.
pub struct MeshSeed<C> {
    me: CoreId,
    ends: Vec<Option<PairEnds<C>>>,
}

struct PairEnds<C> {
    work: (QueueSender<Work<C>>, QueueReceiver<Work<C>>),
    control: (QueueSender<Control<C>>, QueueReceiver<Control<C>>),
}

/// The mesh for `cores` cores: one seed for each, in order.
pub fn seeds<C: 'static>(cores: usize) -> Vec<MeshSeed<C>> {
    let mut seeds: Vec<MeshSeed<C>> =
        (0..cores).map(|me| MeshSeed { me: CoreId(me), ends: (0..cores).map(|_| None).collect() }).collect();
    for a in 0..cores {
        for b in a + 1..cores {
            let (work_ab, work_at_b) = rt::queue(QUEUE_MESSAGES);
            let (work_ba, work_at_a) = rt::queue(QUEUE_MESSAGES);
            let (control_ab, control_at_b) = rt::queue(QUEUE_MESSAGES);
            let (control_ba, control_at_a) = rt::queue(QUEUE_MESSAGES);
            seeds[a].ends[b] = Some(PairEnds { work: (work_ab, work_at_a), control: (control_ab, control_at_a) });
            seeds[b].ends[a] = Some(PairEnds { work: (work_ba, work_at_b), control: (control_ba, control_at_b) });
        }
    }
    seeds
}

/// A queue's sending end, and the outbox in front of it.
struct Lane<T: Send> {
    sender: rt::Sender<T>,
    outbox: RefCell<VecDeque<T>>,
    /// Whether the pump is at work. Then new messages must queue behind those in the outbox.
    stalled: Cell<bool>,
    stall: Notify,
}

impl<T: Send + 'static> Lane<T> {
    fn start(sender: rt::Sender<T>) -> Rc<Self> {
        let lane =
            Rc::new(Self { sender, outbox: RefCell::default(), stalled: Cell::new(false), stall: Notify::default() });
        let pump = lane.clone();
        rt::spawn(async move {
            loop {
                let seen = pump.stall.version();
                while let Some(value) = pump.take() {
                    if !pump.sender.send(value).await {
                        return;
                    }
                }
                pump.stall.past(seen).await;
            }
        });
        lane
    }

    fn take(&self) -> Option<T> {
        let next = self.outbox.borrow_mut().pop_front();
        self.stalled.set(next.is_some());
        next
    }

    fn push(&self, value: T) {
        if self.stalled.get() {
            self.outbox.borrow_mut().push_back(value);
        } else if let Some(value) = self.sender.try_send(value) {
            self.stalled.set(true);
            self.outbox.borrow_mut().push_back(value);
            self.stall.notify();
        }
    }
}

struct Peer<C: 'static> {
    work: Rc<Lane<Work<C>>>,
    control: Rc<Lane<Control<C>>>,
}

/// One core's end of all its queues.
pub struct Mesh<C: 'static> {
    me: CoreId,
    peers: Vec<Option<Peer<C>>>,
    open: RefCell<Slab<Promise<Erased>>>,
    stats: MeshStats,
    /// A tool measures round trips; see [`crate::core::mesh_probe`].
    pub(crate) probing: Cell<bool>,
}

/// Counts of messages over a core's queues since the start.
#[derive(Default)]
pub struct MeshStats {
    /// Requests and replies.
    pub sent: Cell<u64>,
    /// Requests and replies.
    pub received: Cell<u64>,
    /// The broker's own messages that arrived, about the metadata and about leaders.
    pub posted: Cell<u64>,
}

fn add_one(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

/// The receiving ends, to serve once the core exists.
pub struct MeshInbox<C: 'static> {
    queues: Vec<Inbox<C>>,
}

struct Inbox<C: 'static> {
    from: CoreId,
    work: rt::Receiver<Work<C>>,
    control: rt::Receiver<Control<C>>,
}

impl<C: 'static> MeshSeed<C> {
    /// Connects to all other cores. Returns once they have connected too.
    pub async fn connect(self) -> (Mesh<C>, MeshInbox<C>) {
        match race(self.connect_all(), keep_turning()).await {
            Either::First(connected) => connected,
            Either::Second(never) => match never {},
        }
    }

    async fn connect_all(self) -> (Mesh<C>, MeshInbox<C>) {
        let mut peers = Vec::new();
        let mut queues = Vec::new();
        for (id, ends) in self.ends.into_iter().enumerate() {
            let Some(PairEnds { work, control }) = ends else {
                peers.push(None);
                continue;
            };
            // Both cores connect the four queues of their pair in the same order, the lower core's first. Otherwise
            // they would wait for each other.
            let ((work_out, work_in), (control_out, control_in)) = if self.me.0 < id {
                let work_out = work.0.connect().await;
                let work_in = work.1.connect().await;
                let control_out = control.0.connect().await;
                ((work_out, work_in), (control_out, control.1.connect().await))
            } else {
                let work_in = work.1.connect().await;
                let work_out = work.0.connect().await;
                let control_in = control.1.connect().await;
                ((work_out, work_in), (control.0.connect().await, control_in))
            };
            peers.push(Some(Peer { work: Lane::start(work_out), control: Lane::start(control_out) }));
            queues.push(Inbox { from: CoreId(id), work: work_in, control: control_in });
        }
        let (open, stats, probing) = (RefCell::default(), MeshStats::default(), Cell::new(false));
        let mesh = Mesh { me: self.me, peers, open, stats, probing };
        (mesh, MeshInbox { queues })
    }
}

/// How often a core wakes to check whether the others have connected.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// On a busy machine, glommio sometimes fails to wake a core that goes to sleep just as another connects. The core
/// has no timers yet, so it would sleep for good. Later, its groups' timers wake it ten times a second anyway.
async fn keep_turning() -> Infallible {
    loop {
        rt::sleep(LOOK_EVERY).await;
    }
}

/// A core that has a mesh.
pub trait HasMesh: Sized + 'static {
    fn mesh(&self) -> &Mesh<Self>;
}

impl<C: HasMesh> MeshInbox<C> {
    /// Starts serving messages from other cores.
    pub fn serve(self, core: &Rc<C>) {
        for Inbox { from, work, control } in self.queues {
            let at = core.clone();
            rt::spawn(async move {
                while let Some(message) = work.recv().await {
                    add_one(&at.mesh().stats.received);
                    match message {
                        Work::Ask { token, job } => start_job(&at, from, token, job),
                        Work::Tell(job) => job(&at),
                    }
                    rt::yield_if_needed().await;
                }
            });
            let at = core.clone();
            rt::spawn(async move {
                while let Some(message) = control.recv().await {
                    match message {
                        Control::Reply { token, value } => {
                            add_one(&at.mesh().stats.received);
                            at.mesh().answer(token, value);
                        }
                        Control::Post(post) => {
                            add_one(&at.mesh().stats.posted);
                            post(&at);
                        }
                    }
                    rt::yield_if_needed().await;
                }
            });
        }
    }
}

/// Starts a job at once. If it does not end in its first step, it continues as a task.
fn start_job<C: HasMesh>(core: &Rc<C>, from: CoreId, token: usize, job: Job<C>) {
    let mut future = job(core.clone());
    // The waker of this first poll wakes nobody: if the job has to wait, its task polls it again and registers itself.
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => core.mesh().reply(from, token, value),
        Poll::Pending => {
            let core = core.clone();
            rt::spawn(async move {
                let value = future.await;
                core.mesh().reply(from, token, value);
            });
        }
    }
}

impl<C: HasMesh> Mesh<C> {
    pub fn me(&self) -> CoreId {
        self.me
    }

    pub fn cores(&self) -> usize {
        self.peers.len()
    }

    pub fn stats(&self) -> &MeshStats {
        &self.stats
    }

    fn peer(&self, to: CoreId) -> &Peer<C> {
        self.peers[to.0].as_ref().expect("a core has no queue to itself")
    }

    fn reply(&self, to: CoreId, token: usize, value: Erased) {
        add_one(&self.stats.sent);
        self.peer(to).control.push(Control::Reply { token, value });
    }

    fn answer(&self, token: usize, value: Erased) {
        self.open.borrow_mut().remove(token).keep(value);
    }

    /// Runs `job` on another core and brings its result back: one message each way. It is sent when this returns.
    pub fn call<R, F>(&self, to: CoreId, job: impl FnOnce(Rc<C>) -> F + Send + 'static) -> Called<R>
    where
        R: Send + 'static,
        F: Future<Output = R> + 'static,
    {
        let (promise, answer) = promise();
        let token = self.open.borrow_mut().insert(promise);
        let job: Job<C> = Box::new(move |core| {
            let future = job(core);
            Box::pin(async move { Box::new(future.await) as Erased })
        });
        add_one(&self.stats.sent);
        self.peer(to).work.push(Work::Ask { token, job });
        Called { answer, result: std::marker::PhantomData }
    }

    /// Runs `job` on another core, in order with the calls from here: one message, no answer.
    pub fn send(&self, to: CoreId, job: impl FnOnce(&Rc<C>) + Send + 'static) {
        add_one(&self.stats.sent);
        self.peer(to).work.push(Work::Tell(Box::new(job)));
    }

    /// Runs `post` on another core through the control lane, without an answer.
    pub fn post(&self, to: CoreId, post: impl FnOnce(&Rc<C>) + Send + 'static) {
        self.peer(to).control.push(Control::Post(Box::new(post)));
    }
}

/// The result of a job on another core.
pub struct Called<R> {
    answer: Answer<Erased>,
    result: std::marker::PhantomData<R>,
}

// No field depends on its address.
impl<R> Unpin for Called<R> {}

impl<R: 'static> Future for Called<R> {
    type Output = R;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        Pin::new(&mut self.answer).poll(cx).map(|value| {
            let value = value.expect("a job that was sent is answered: a core that fails takes the process with it");
            *value.downcast().expect("a reply has its request's type")
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::mpsc;

    pub(crate) struct TestCore {
        mesh: Mesh<TestCore>,
        arrived: RefCell<Vec<u32>>,
    }

    impl HasMesh for TestCore {
        fn mesh(&self) -> &Mesh<Self> {
            &self.mesh
        }
    }

    /// Two cores on any CPU that the test may use. `main` runs on the first.
    pub(crate) fn on_two_cores<F: Future<Output = ()> + 'static>(
        main: impl FnOnce(Rc<TestCore>) -> F + Send + 'static,
    ) {
        let cpu = crate::rt::any_allowed_cpu();
        let mut seeds = seeds::<TestCore>(2).into_iter();
        let (first, second) = (seeds.next().unwrap(), seeds.next().unwrap());
        let (stop, stopped) = mpsc::channel::<()>();
        let second = rt::spawn_core(cpu, "second", move || async move {
            let (mesh, inbox) = second.connect().await;
            inbox.serve(&Rc::new(TestCore { mesh, arrived: RefCell::default() }));
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                rt::sleep(std::time::Duration::from_millis(1)).await;
            }
        })
        .unwrap();
        let first = rt::spawn_core(cpu, "first", move || async move {
            let (mesh, inbox) = first.connect().await;
            let core = Rc::new(TestCore { mesh, arrived: RefCell::default() });
            inbox.serve(&core);
            main(core).await;
        })
        .unwrap();
        first.join().unwrap();
        drop(stop);
        second.join().unwrap();
    }

    #[test]
    fn calls_start_in_the_order_they_were_made_even_when_the_queue_is_full() {
        on_two_cores(|core| async move {
            let calls = 3 * QUEUE_MESSAGES as u32;
            let answers: Vec<_> = (0..calls)
                .map(|n| {
                    core.mesh.call(CoreId(1), move |there: Rc<TestCore>| {
                        there.arrived.borrow_mut().push(n);
                        let arrived = there.arrived.borrow().len() as u32;
                        async move { arrived }
                    })
                })
                .collect();
            for (n, answer) in answers.into_iter().enumerate() {
                assert!(answer.await > n as u32);
            }
            let order = core.mesh.call(CoreId(1), |there: Rc<TestCore>| async move { there.arrived.take() }).await;
            assert_eq!(order, (0..calls).collect::<Vec<_>>());
            assert_eq!(core.mesh.stats().sent.get(), u64::from(calls) + 1);
        });
    }

    #[test]
    fn what_is_sent_comes_in_its_turn_among_the_calls_and_nothing_comes_back() {
        on_two_cores(|core| async move {
            let arrive = |n: u32| move |there: &Rc<TestCore>| there.arrived.borrow_mut().push(n);
            for n in 0..4 {
                core.mesh.send(CoreId(1), arrive(2 * n));
                let calling = core.mesh.call(CoreId(1), move |there| {
                    arrive(2 * n + 1)(&there);
                    async {}
                });
                drop(calling);
            }
            let order = core.mesh.call(CoreId(1), |there: Rc<TestCore>| async move { there.arrived.take() }).await;
            assert_eq!(order, (0..8).collect::<Vec<_>>());
            assert_eq!((core.mesh.stats().sent.get(), core.mesh.stats().received.get()), (9, 5));
        });
    }

    #[test]
    fn a_job_that_waits_is_answered_when_it_ends() {
        on_two_cores(|core| async move {
            let answer = core
                .mesh
                .call(CoreId(1), |_| async {
                    rt::sleep(std::time::Duration::from_millis(5)).await;
                    "done"
                })
                .await;
            assert_eq!(answer, "done");
        });
    }
}
