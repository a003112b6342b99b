//! The mesh: bounded single-producer, single-consumer queues between every pair of cores.
//! Lives on: every core, one [`Mesh`] each. Carries owned values only.
//!
//! Everything that one core says to another is a [`Message`]. An *ask* gets a reply. A *notice* gets none.
//! [`crate::core::messages`] lists the asks and the notices of the broker.
//!
//! Each direction of a pair has two lanes, see [`Lane`]. So a burst of asks delays neither replies nor the metadata.
//!
//! Order: messages from one core to another in one lane arrive, and are handled, in the order of sending. Work on an
//! ask starts synchronously on arrival; only its waits are asynchronous.
//!
//! End: the work ends with its caller, as it would on the caller's own core. If the caller drops a [`Called`], its ask
//! leaves the outbox, or a message follows it that drops the work. Until the reply, the token belongs to that ask.
//!
//! Full queues: a message that does not fit waits in the sender's outbox. The outbox is bounded by what the sender
//! admitted: asks by the connections' limits on requests in flight, replies by the asks that they answer. Each ask in
//! the queue or on the other core adds one cancellation at most.

pub mod list;

use list::{AskKind, AskList, NoticeList};
use runtime::{
    QueueReceiver, QueueSender,
    sync::{Answer, Either, Flag, Notify, Promise, promise, race},
};
use slab::Slab;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};
use types::{CoreId, planted};

/// Messages that fit in one queue of the mesh.
pub const QUEUE_MESSAGES: usize = 1024;

/// A core that has a mesh, and the messages of its kind of core.
pub trait HasMesh: Sized + 'static {
    type Ask: AskList<Self>;
    type Reply: Send + 'static;
    type Notice: NoticeList<Self>;

    fn mesh(&self) -> &Mesh<Self>;

    /// An ask that is answered at once.
    fn ping() -> impl AskKind<Self, Reply = ()>;
}

/// The two queues from one core to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Asks, their cancellations, and notices whose order among the asks matters.
    Work,
    /// Replies, and the other notices.
    Control,
}

/// Everything that one core says to another.
pub enum Message<C: HasMesh> {
    Ask(Token, C::Ask),
    /// Nobody wants the reply any more. One comes back all the same, unless it already has.
    Cancel(Token),
    /// `None`: the ask was cancelled.
    Reply(Token, Option<C::Reply>),
    Notice(C::Notice),
}

/// Identifies an ask among those of one core that have no reply yet.
type Token = usize;

impl<C: HasMesh> Message<C> {
    fn lane(&self) -> Lane {
        match self {
            Self::Ask(..) | Self::Cancel(_) => Lane::Work,
            Self::Reply(..) => Lane::Control,
            Self::Notice(notice) => notice.lane(),
        }
    }

    fn is_post(&self) -> bool {
        matches!(self, Self::Notice(notice) if notice.lane() == Lane::Control)
    }

    /// The place of its kind in [`kinds`].
    fn kind(&self) -> usize {
        match self {
            Self::Ask(_, ask) => ask.kind(),
            Self::Notice(notice) => C::Ask::NAMES.len() + notice.kind(),
            Self::Reply(..) => C::Ask::NAMES.len() + C::Notice::NAMES.len(),
            Self::Cancel(_) => C::Ask::NAMES.len() + C::Notice::NAMES.len() + 1,
        }
    }
}

/// The names of all kinds of messages.
fn kinds<C: HasMesh>() -> impl Iterator<Item = &'static str> + Clone {
    [C::Ask::NAMES, C::Notice::NAMES, &["Reply", "Cancel"]].into_iter().flatten().copied()
}

/// One core's ends of the mesh before its executor runs.
pub struct MeshSeed<C: HasMesh> {
    me: CoreId,
    ends: Vec<Option<PairEnds<C>>>,
}

struct PairEnds<C: HasMesh> {
    work: LaneEnds<C>,
    control: LaneEnds<C>,
}

type LaneEnds<C> = (QueueSender<Message<C>>, QueueReceiver<Message<C>>);

/// The mesh for `cores` cores: one seed for each, in order.
pub fn seeds<C: HasMesh>(cores: usize) -> Vec<MeshSeed<C>> {
    let mut seeds: Vec<MeshSeed<C>> =
        (0..cores).map(|me| MeshSeed { me: CoreId(me), ends: (0..cores).map(|_| None).collect() }).collect();
    for a in 0..cores {
        for b in a + 1..cores {
            let (work_ab, work_at_b) = runtime::queue(QUEUE_MESSAGES);
            let (work_ba, work_at_a) = runtime::queue(QUEUE_MESSAGES);
            let (control_ab, control_at_b) = runtime::queue(QUEUE_MESSAGES);
            let (control_ba, control_at_a) = runtime::queue(QUEUE_MESSAGES);
            seeds[a].ends[b] = Some(PairEnds { work: (work_ab, work_at_a), control: (control_ab, control_at_a) });
            seeds[b].ends[a] = Some(PairEnds { work: (work_ba, work_at_b), control: (control_ba, control_at_b) });
        }
    }
    seeds
}

/// A queue's sending end, and the outbox in front of it.
struct Outlet<T: Send> {
    sender: runtime::Sender<T>,
    /// In the order of sending.
    outbox: RefCell<BTreeMap<u64, T>>,
    next_place: Cell<u64>,
    /// Whether the pump is at work. Then new messages must queue behind those in the outbox.
    stalled: Cell<bool>,
    stall: Notify,
}

impl<T: Send + 'static> Outlet<T> {
    fn start(sender: runtime::Sender<T>) -> Rc<Self> {
        let (outbox, next_place) = (RefCell::default(), Cell::new(0));
        let outlet = Rc::new(Self { sender, outbox, next_place, stalled: Cell::new(false), stall: Notify::default() });
        let pump = outlet.clone();
        runtime::spawn(async move {
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
        outlet
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

struct Peer<C: HasMesh> {
    work: Rc<Outlet<Message<C>>>,
    control: Rc<Outlet<Message<C>>>,
}

/// One core's end of all its queues.
pub struct Mesh<C: HasMesh> {
    me: CoreId,
    peers: Vec<Option<Peer<C>>>,
    open: RefCell<Slab<Promise<C::Reply>>>,
    /// The flags that end the work for other cores that waits here, by the asking core and its token.
    jobs: RefCell<BTreeMap<(CoreId, Token), Rc<Flag>>>,
    stats: MeshStats,
    /// Messages sent since the start, by kind.
    by_kind: Vec<Cell<u64>>,
    /// See [`Mesh::end`].
    ended: Cell<bool>,
    /// A tool measures round trips; see [`crate::core::mesh_probe`].
    pub(crate) probing: Cell<bool>,
}

/// Counts of messages over a core's queues since the start.
#[derive(Default)]
pub struct MeshStats {
    /// All messages but the notices of the control lane.
    pub sent: Cell<u64>,
    /// All messages but the notices of the control lane.
    pub received: Cell<u64>,
    /// Notices of the control lane that arrived.
    pub posted: Cell<u64>,
    /// Asks that came after [`Mesh::end`]. There should be none.
    pub late: Cell<u64>,
}

fn add_one(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

/// The receiving ends, to serve once the core exists.
pub struct MeshInbox<C: HasMesh> {
    queues: Vec<Inbox<C>>,
}

struct Inbox<C: HasMesh> {
    from: CoreId,
    lanes: [runtime::Receiver<Message<C>>; 2],
}

impl<C: HasMesh> MeshSeed<C> {
    /// Connects to all other cores. Returns once they have connected too.
    pub async fn connect(self) -> (Mesh<C>, MeshInbox<C>) {
        let mut peers = Vec::new();
        let mut queues = Vec::new();
        for (id, ends) in self.ends.into_iter().enumerate() {
            let Some(PairEnds { work, control }) = ends else {
                peers.push(None);
                continue;
            };
            let is_lower = self.me.0 < id;
            let (work_out, work_in) = connect_lane(work, is_lower).await;
            let (control_out, control_in) = connect_lane(control, is_lower).await;
            peers.push(Some(Peer { work: Outlet::start(work_out), control: Outlet::start(control_out) }));
            queues.push(Inbox { from: CoreId(id), lanes: [work_in, control_in] });
        }
        let mesh = Mesh {
            me: self.me,
            peers,
            open: RefCell::default(),
            jobs: RefCell::default(),
            stats: MeshStats::default(),
            by_kind: kinds::<C>().map(|_| Cell::default()).collect(),
            ended: Cell::new(false),
            probing: Cell::new(false),
        };
        (mesh, MeshInbox { queues })
    }
}

/// Connects one lane's queues to and from another core. Both cores connect these two in the same order, that of the
/// lower core first. Otherwise they would wait for each other.
async fn connect_lane<C: HasMesh>(
    (sender, receiver): LaneEnds<C>,
    is_lower: bool,
) -> (runtime::Sender<Message<C>>, runtime::Receiver<Message<C>>) {
    if is_lower {
        let sender = sender.connect().await;
        (sender, receiver.connect().await)
    } else {
        let receiver = receiver.connect().await;
        (sender.connect().await, receiver)
    }
}

impl<C: HasMesh> MeshInbox<C> {
    /// Starts serving messages from other cores.
    pub fn serve(self, core: &Rc<C>) {
        for Inbox { from, lanes } in self.queues {
            for lane in lanes {
                let at = core.clone();
                runtime::spawn(async move {
                    while let Some(message) = lane.recv().await {
                        receive(&at, from, message);
                        runtime::yield_if_needed().await;
                    }
                });
            }
        }
    }
}

fn receive<C: HasMesh>(core: &Rc<C>, from: CoreId, message: Message<C>) {
    let mesh = core.mesh();
    add_one(if message.is_post() { &mesh.stats.posted } else { &mesh.stats.received });
    match message {
        Message::Ask(token, ask) => {
            if mesh.ended.get() {
                add_one(&mesh.stats.late);
                let kind = C::Ask::NAMES[ask.kind()];
                tracing::warn!(core = mesh.me.0, from = from.0, kind, "a core asks although all have drained");
            }
            start(core, from, token, ask);
        }
        Message::Cancel(token) => mesh.end_job(from, token),
        Message::Reply(token, reply) => mesh.replied(token, reply),
        Message::Notice(notice) => notice.take(core),
    }
}

/// Starts the work on an ask at once. If it does not end in its first step, it continues as a task.
fn start<C: HasMesh>(core: &Rc<C>, from: CoreId, token: Token, ask: C::Ask) {
    let mut work = ask.work(core);
    // The waker of this first poll wakes nobody: if the work has to wait, its task polls it again and registers itself.
    match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(reply) => core.mesh().reply(from, token, Some(reply)),
        Poll::Pending => {
            let (core, cancelled) = (core.clone(), Rc::new(Flag::default()));
            core.mesh().jobs.borrow_mut().insert((from, token), cancelled.clone());
            runtime::spawn(async move {
                let reply = match race(work, cancelled.wait()).await {
                    Either::First(reply) => Some(reply),
                    Either::Second(()) => None,
                };
                core.mesh().jobs.borrow_mut().remove(&(from, token));
                core.mesh().reply(from, token, reply);
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

    /// The names of all kinds of messages, and how many of each were sent since the start.
    pub fn sent_by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> + Clone {
        kinds::<C>().zip(self.by_kind.iter().map(Cell::get))
    }

    fn outlet(&self, to: CoreId, lane: Lane) -> &Outlet<Message<C>> {
        let peer = self.peers[to.0].as_ref().expect("a core has no queue to itself");
        match lane {
            Lane::Work => &peer.work,
            Lane::Control => &peer.control,
        }
    }

    /// Sends a message, or puts it into the outbox. Returns its place there.
    fn push(&self, to: CoreId, message: Message<C>) -> Option<u64> {
        if !message.is_post() {
            add_one(&self.stats.sent);
        }
        add_one(&self.by_kind[message.kind()]);
        let lane = if self.is_misplaced(&message) { Lane::Work } else { message.lane() };
        self.outlet(to, lane).push(message)
    }

    /// A planted bug: every other change of the view takes the other lane.
    fn is_misplaced(&self, message: &Message<C>) -> bool {
        planted!(MeshViewOutOfOrder)
            && kinds::<C>().nth(message.kind()) == Some("Show")
            && self.by_kind[message.kind()].get().is_multiple_of(2)
    }

    fn reply(&self, to: CoreId, token: Token, reply: Option<C::Reply>) {
        self.push(to, Message::Reply(token, reply));
    }

    fn replied(&self, token: Token, reply: Option<C::Reply>) {
        let promise = self.open.borrow_mut().remove(token);
        // The caller of a cancelled ask is gone.
        if let Some(reply) = reply {
            promise.keep(reply);
        }
    }

    /// Drops the work for another core, if it has not ended.
    fn end_job(&self, from: CoreId, token: Token) {
        if let Some(cancelled) = self.jobs.borrow().get(&(from, token)) {
            cancelled.set();
        }
    }

    /// The reply to this ask is not wanted any more.
    fn cancel(&self, to: CoreId, token: Token, queued: Option<u64>) {
        if queued.and_then(|place| self.outlet(to, Lane::Work).withdraw(place)).is_some() {
            self.open.borrow_mut().remove(token);
            return;
        }
        if planted!(MeshReplyToGoneCaller) {
            self.open.borrow_mut().remove(token);
        }
        self.push(to, Message::Cancel(token));
    }

    /// All cores have drained: none asks another one any more.
    pub fn end(&self) {
        self.ended.set(true);
    }

    /// Tells another core: one message, no reply.
    pub fn tell(&self, to: CoreId, notice: C::Notice) {
        self.push(to, Message::Notice(notice));
    }
}

/// Asks another core and brings its reply back: one message each way. The first is sent when this returns. The work
/// ends early if the result is dropped.
pub fn ask<C: HasMesh, K: AskKind<C>>(core: &Rc<C>, to: CoreId, ask: K) -> Called<C, K> {
    let mesh = core.mesh();
    let (promise, answer) = promise();
    let token = mesh.open.borrow_mut().insert(promise);
    let queued = mesh.push(to, Message::Ask(token, ask.into_ask()));
    Called { core: core.clone(), to, token, queued, answer, kind: PhantomData }
}

/// The reply of another core. Dropping it ends the work there.
pub struct Called<C: HasMesh, K> {
    core: Rc<C>,
    to: CoreId,
    token: Token,
    /// The ask's place in the outbox, if it was put there.
    queued: Option<u64>,
    answer: Answer<C::Reply>,
    kind: PhantomData<K>,
}

// No field depends on its address.
impl<C: HasMesh, K> Unpin for Called<C, K> {}

impl<C: HasMesh, K: AskKind<C>> Future for Called<C, K> {
    type Output = K::Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<K::Reply> {
        Pin::new(&mut self.answer).poll(cx).map(|reply| {
            K::from_reply(reply.expect("an ask gets a reply: a core that fails takes the process with it"))
        })
    }
}

impl<C: HasMesh, K> Drop for Called<C, K> {
    fn drop(&mut self) {
        // After the reply, the token may belong to another ask.
        if !self.answer.is_settled() {
            self.core.mesh().cancel(self.to, self.token, self.queued);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
