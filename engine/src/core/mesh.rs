//! The mesh: bounded single-producer, single-consumer queues between every pair of cores.
//! Lives on: every core, one [`Mesh`] each. Carries owned values only.
//!
//! Each direction of a pair has two lanes. *Work* carries requests. *Control* carries their replies and the
//! broker's own messages, so that a burst of requests delays neither finished answers nor the metadata.
//!
//! Order: messages from one core to another in one lane arrive, and start, in the order of sending. A job starts
//! synchronously on arrival; only its waits are asynchronous.
//!
//! End: a job ends with its caller, as it would on the caller's own core. If the caller drops a [`Called`], its request
//! leaves the outbox, or a message follows it that drops the job. Until the reply, the token belongs to that request.
//!
//! Full queues: a message that does not fit waits in the sender's outbox. The outbox is bounded by what the sender
//! admitted: requests by the connections' limits on requests in flight, replies by the requests they answer. Each
//! request in the queue or on the other core adds one cancellation at most.

use crate::{
    rt::{self, QueueReceiver, QueueSender},
    sync::{Answer, Either, Flag, Notify, Promise, promise, race},
};
use slab::Slab;
use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::BTreeMap,
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
    /// Nobody wants that result any more. A reply goes back all the same, unless it already has.
    Cancel { token: usize },
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
    /// In the order of sending.
    outbox: RefCell<BTreeMap<u64, T>>,
    next_place: Cell<u64>,
    /// Whether the pump is at work. Then new messages must queue behind those in the outbox.
    stalled: Cell<bool>,
    stall: Notify,
}

impl<T: Send + 'static> Lane<T> {
    fn start(sender: rt::Sender<T>) -> Rc<Self> {
        let (outbox, next_place) = (RefCell::default(), Cell::new(0));
        let lane = Rc::new(Self { sender, outbox, next_place, stalled: Cell::new(false), stall: Notify::default() });
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
        let next = self.outbox.borrow_mut().pop_first();
        self.stalled.set(next.is_some());
        next.map(|(_, value)| value)
    }

    /// Sends a value, or puts it into the outbox. Returns its place there.
    fn push(&self, value: T) -> Option<u64> {
        let left = if self.stalled.get() { Some(value) } else { self.sender.try_send(value) };
        let place = self.next_place.get();
        self.outbox.borrow_mut().insert(place, left?);
        self.next_place.set(place + 1);
        if !self.stalled.replace(true) {
            self.stall.notify();
        }
        Some(place)
    }

    /// Takes a value out of the outbox. `None`: it was sent.
    fn withdraw(&self, place: u64) -> Option<T> {
        self.outbox.borrow_mut().remove(&place)
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
    /// The flags that end the jobs of other cores that wait here, by the calling core and its token.
    jobs: RefCell<BTreeMap<(CoreId, usize), Rc<Flag>>>,
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
        let (open, jobs, stats) = (RefCell::default(), RefCell::default(), MeshStats::default());
        let mesh = Mesh { me: self.me, peers, open, jobs, stats, probing: Cell::new(false) };
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
                        Work::Cancel { token } => at.mesh().end_job(from, token),
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
            let (core, cancelled) = (core.clone(), Rc::new(Flag::default()));
            core.mesh().jobs.borrow_mut().insert((from, token), cancelled.clone());
            rt::spawn(async move {
                let value = match race(future, cancelled.wait()).await {
                    Either::First(value) => value,
                    Either::Second(()) => Box::new(()) as Erased,
                };
                core.mesh().jobs.borrow_mut().remove(&(from, token));
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

    /// Drops a job of another core, if it has not ended.
    fn end_job(&self, from: CoreId, token: usize) {
        if let Some(cancelled) = self.jobs.borrow().get(&(from, token)) {
            cancelled.set();
        }
    }

    /// The result of this request is not wanted any more.
    fn cancel(&self, to: CoreId, token: usize, queued: Option<u64>) {
        let lane = &self.peer(to).work;
        if queued.and_then(|place| lane.withdraw(place)).is_some() {
            self.open.borrow_mut().remove(token);
            return;
        }
        add_one(&self.stats.sent);
        lane.push(Work::Cancel { token });
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

/// Runs `job` on another core and brings its result back: one message each way. It is sent when this returns. It ends
/// early if the result is dropped.
pub fn call<C, R, F>(core: &Rc<C>, to: CoreId, job: impl FnOnce(Rc<C>) -> F + Send + 'static) -> Called<C, R>
where
    C: HasMesh,
    R: Send + 'static,
    F: Future<Output = R> + 'static,
{
    let mesh = core.mesh();
    let (promise, answer) = promise();
    let token = mesh.open.borrow_mut().insert(promise);
    let job: Job<C> = Box::new(move |core| {
        let future = job(core);
        Box::pin(async move { Box::new(future.await) as Erased })
    });
    add_one(&mesh.stats.sent);
    let queued = mesh.peer(to).work.push(Work::Ask { token, job });
    Called { core: core.clone(), to, token, queued, answer, result: std::marker::PhantomData }
}

/// The result of a job on another core. Dropping it ends the job.
pub struct Called<C: HasMesh, R> {
    core: Rc<C>,
    to: CoreId,
    token: usize,
    /// The request's place in the outbox, if it was put there.
    queued: Option<u64>,
    answer: Answer<Erased>,
    result: std::marker::PhantomData<R>,
}

// No field depends on its address.
impl<C: HasMesh, R> Unpin for Called<C, R> {}

impl<C: HasMesh, R: 'static> Future for Called<C, R> {
    type Output = R;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        Pin::new(&mut self.answer).poll(cx).map(|value| {
            let value = value.expect("a job that was sent is answered: a core that fails takes the process with it");
            *value.downcast().expect("a reply has its request's type")
        })
    }
}

impl<C: HasMesh, R> Drop for Called<C, R> {
    fn drop(&mut self) {
        // After the reply, the token may belong to another request.
        if !self.answer.is_settled() {
            self.core.mesh().cancel(self.to, self.token, self.queued);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::mpsc;

    #[derive(Default)]
    struct Seen {
        arrived: RefCell<Vec<u32>>,
        opened: Flag,
        ended: Flag,
    }

    pub(crate) struct TestCore {
        mesh: Mesh<TestCore>,
        seen: Rc<Seen>,
    }

    impl TestCore {
        fn new(mesh: Mesh<Self>) -> Rc<Self> {
            Rc::new(Self { mesh, seen: Rc::default() })
        }

        /// The cancellations, and all other requests, that wait to be sent to the second core.
        fn outbox(&self) -> (usize, usize) {
            let outbox = self.mesh.peer(CoreId(1)).work.outbox.borrow();
            let cancels = outbox.values().filter(|work| matches!(work, Work::Cancel { .. })).count();
            (cancels, outbox.len() - cancels)
        }
    }

    /// Tells its core when it is dropped.
    struct Ends(Rc<Seen>);

    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.ended.set();
        }
    }

    /// The jobs that have arrived at the second core so far.
    async fn arrived(core: &Rc<TestCore>) -> Vec<u32> {
        call(core, CoreId(1), |there| async move { there.seen.arrived.take() }).await
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
            inbox.serve(&TestCore::new(mesh));
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                rt::sleep(std::time::Duration::from_millis(1)).await;
            }
        })
        .unwrap();
        let first = rt::spawn_core(cpu, "first", move || async move {
            let (mesh, inbox) = first.connect().await;
            let core = TestCore::new(mesh);
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
            let arrive = |n: u32| {
                move |there: Rc<TestCore>| {
                    there.seen.arrived.borrow_mut().push(n);
                    let arrived = there.seen.arrived.borrow().len() as u32;
                    async move { arrived }
                }
            };
            let answers: Vec<_> = (0..calls).map(|n| call(&core, CoreId(1), arrive(n))).collect();
            for (n, answer) in answers.into_iter().enumerate() {
                assert!(answer.await > n as u32);
            }
            assert_eq!(arrived(&core).await, (0..calls).collect::<Vec<_>>());
            assert_eq!(core.mesh.stats().sent.get(), u64::from(calls) + 1);
        });
    }

    #[test]
    fn what_is_sent_comes_in_its_turn_among_the_calls_and_nothing_comes_back() {
        on_two_cores(|core| async move {
            let arrive = |n: u32| move |there: &Rc<TestCore>| there.seen.arrived.borrow_mut().push(n);
            let mut calls = Vec::new();
            for n in 0..4 {
                core.mesh.send(CoreId(1), arrive(2 * n));
                calls.push(call(&core, CoreId(1), move |there| {
                    arrive(2 * n + 1)(&there);
                    async {}
                }));
            }
            assert_eq!(arrived(&core).await, (0..8).collect::<Vec<_>>());
            assert_eq!((core.mesh.stats().sent.get(), core.mesh.stats().received.get()), (9, 5));
        });
    }

    #[test]
    fn a_job_that_waits_is_answered_when_it_ends() {
        on_two_cores(|core| async move {
            let answer = call(&core, CoreId(1), |there| async move {
                there.seen.opened.wait().await;
                "done"
            });
            core.mesh.send(CoreId(1), |there| there.seen.opened.set());
            assert_eq!(answer.await, "done");
        });
    }

    #[test]
    fn a_job_ends_with_its_caller() {
        on_two_cores(|core| async move {
            let job = |there: Rc<TestCore>| async move {
                there.seen.arrived.borrow_mut().push(7);
                let _ends = Ends(there.seen.clone());
                std::future::pending::<()>().await;
            };
            let called = call(&core, CoreId(1), job);
            assert_eq!(arrived(&core).await, [7]);
            drop(called);
            let ended = async |there: Rc<TestCore>| there.seen.ended.wait().await;
            call(&core, CoreId(1), move |there| async move { ended(there).await }).await;
            let left = async |there: Rc<TestCore>| there.mesh.jobs.borrow().len();
            assert_eq!(call(&core, CoreId(1), move |there| async move { left(there).await }).await, 0);
            assert!(core.mesh.open.borrow().is_empty());
        });
    }

    #[test]
    fn a_request_whose_caller_is_gone_leaves_the_outbox() {
        on_two_cores(|core| async move {
            let arrive = |n: u32| {
                move |there: Rc<TestCore>| {
                    there.seen.arrived.borrow_mut().push(n);
                    std::future::ready(())
                }
            };
            let mut called = Vec::new();
            while core.outbox().1 < 100 {
                called.push(call(&core, CoreId(1), arrive(called.len() as u32)));
            }
            let sent = called.len() - 100;
            let last = called.pop();
            drop(called);
            assert_eq!(core.outbox(), (sent, 1));
            drop(last);
            assert_eq!(core.outbox(), (sent, 0));
            assert_eq!(arrived(&core).await, (0..sent as u32).collect::<Vec<_>>());
            assert!(core.mesh.open.borrow().is_empty());
        });
    }

    #[test]
    fn a_result_that_is_dropped_late_ends_no_other_job() {
        on_two_cores(|core| async move {
            let unread = call(&core, CoreId(1), |_| std::future::ready(1));
            assert!(arrived(&core).await.is_empty());
            // Both replies have come, so their tokens are free.
            let job = async |there: Rc<TestCore>| {
                there.seen.opened.wait().await;
                2
            };
            let next = [(); 2].map(|()| call(&core, CoreId(1), move |there| async move { job(there).await }));
            assert!(next.iter().any(|next| next.token == unread.token));
            drop(unread);
            core.mesh.send(CoreId(1), |there| there.seen.opened.set());
            for next in next {
                assert_eq!(next.await, 2);
            }
            assert!(core.mesh.open.borrow().is_empty());
        });
    }
}
