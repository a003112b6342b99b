//! A tool's connection on the peer port. The tool sends requests one after another; each is answered as soon as it is
//! done.
//! Lives on: the core that accepted it.
//!
//! All tools share the memory of their requests and of their answers. A request counts before it is decoded, until its
//! answer is encoded. An answer is encoded only while there is room, and counts until it is sent.

use super::{Host, LinkError, Peers, within};
use bytes::Bytes;
use consensus::wire::{self, ToolAnswer, ToolResponse};
use net::{
    errors::ErrorCode,
    peer::{self, CARRIED_BYTES_MAX, Kind, Lane, PeerError, PeerFrame},
    transport::conn::{FrameReader, FrameWriter},
};
use runtime::sync::{Either, Notify, race, zip};
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::Poll,
    time::Duration,
};

/// Most unanswered requests of one tool. When full, the connection is not read.
const REQUESTS_MAX: usize = 1024;

/// Most open connections of tools. Further ones are rejected.
pub(super) const TOOLS_MAX: usize = 64;
/// Most bytes of one request. A connection holds one more request of that size while it waits for room.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Bytes of all tools' unanswered requests. When full, further requests wait until others are answered. The sum exceeds
/// it by less than one request.
const REQUESTS_BYTES_MAX: usize = 16 << 20;
/// Bytes of all tools' unsent answers. When full, further answers wait, not encoded, until others are sent; a tool that
/// does not read them is disconnected. The sum exceeds it by less than one answer.
const ANSWERS_BYTES_MAX: usize = 48 << 20;
/// A tool that has all its answers and sends no request for this long is disconnected.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// The share of this core's resources that tools use.
pub(super) struct ToolShare {
    pub(super) open: Cell<usize>,
    pub(super) requests: Room,
    pub(super) answers: Room,
    pub(super) idle_max: Cell<Duration>,
}

/// Bytes that tools hold, with a limit.
pub(super) struct Room {
    pub(super) bytes: Cell<usize>,
    pub(super) max: Cell<usize>,
    /// Notified when bytes are released.
    pub(super) freed: Notify,
}

impl Default for ToolShare {
    fn default() -> Self {
        let (requests, answers) = (Room::new(REQUESTS_BYTES_MAX), Room::new(ANSWERS_BYTES_MAX));
        Self { open: Cell::new(0), requests, answers, idle_max: Cell::new(IDLE_MAX) }
    }
}

impl Room {
    fn new(max: usize) -> Self {
        Self { bytes: Cell::new(0), max: Cell::new(max), freed: Notify::default() }
    }

    fn is_full(&self) -> bool {
        self.bytes.get() >= self.max.get()
    }

    fn take(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    fn give(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() - bytes);
        self.freed.notify();
    }
}

/// A request's bytes, until it is answered or dropped.
struct Held {
    peers: Rc<Peers>,
    bytes: usize,
}

impl Held {
    fn new(peers: &Rc<Peers>, bytes: usize) -> Self {
        peers.tools.requests.take(bytes);
        Self { peers: peers.clone(), bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.peers.tools.requests.give(self.bytes);
    }
}

/// Answers to be sent to one tool.
#[derive(Default)]
struct Answers {
    /// Encoded answers; their bytes count in the tools' share.
    ready: RefCell<Vec<Bytes>>,
    /// Requests whose answers have not been sent.
    open: Cell<usize>,
    /// No more requests will come.
    ended: Cell<bool>,
    /// The tool no longer takes answers.
    gone: Cell<bool>,
    changed: Notify,
}

/// Answers a tool's requests until it closes the connection or the broker stops. Returns once all answers have been
/// sent.
pub(super) async fn serve<H: Host + 'static>(
    peers: &Rc<Peers>,
    mut reader: FrameReader,
    writer: FrameWriter,
    host: &Rc<H>,
) -> Result<(), LinkError> {
    let share = &peers.tools;
    if share.open.get() >= TOOLS_MAX.min(peers.served_max.get() / 4) {
        super::count(&peers.stats.refused, 1);
        return Err(LinkError::TooManyTools);
    }
    share.open.set(share.open.get() + 1);
    peer::trust(&mut reader, REQUEST_BYTES_MAX);
    let answers = Rc::new(Answers::default());
    let mut served = Ok(());
    let reading = async {
        served = read(peers, &mut reader, &answers, host).await;
        answers.ended.set(true);
        answers.changed.notify();
    };
    zip(reading, answers.send_all(writer, &share.answers)).await;
    share.open.set(share.open.get() - 1);
    share.answers.give(answers.ready.take().iter().map(Bytes::len).sum());
    served
}

async fn read<H: Host + 'static>(
    peers: &Rc<Peers>,
    reader: &mut FrameReader,
    answers: &Rc<Answers>,
    host: &Rc<H>,
) -> Result<(), LinkError> {
    while answers.may_start().await {
        let Some(frame) = next_request(peers, reader, answers).await? else { return Ok(()) };
        if frame.kind != Kind::Request {
            return Err(PeerError::NoBroker.into());
        }
        if !answers.has_room(&peers.tools.requests).await {
            break;
        }
        let held = Held::new(peers, frame.bytes.len());
        let request = wire::decode_request(&frame.bytes)?;
        drop(frame);
        answers.open.set(answers.open.get() + 1);
        let mut answering = Box::pin(host.answer(request));
        // Most reads are answered at once, without a task of their own.
        match poll_fn(|context| Poll::Ready(answering.as_mut().poll(context))).await {
            Poll::Ready(response) => answers.add(&peers.tools.answers, held, &response).await,
            Poll::Pending => {
                let (peers, answers) = (peers.clone(), answers.clone());
                runtime::spawn(async move { answers.add(&peers.tools.answers, held, &answering.await).await });
            }
        }
    }
    Ok(())
}

/// The next request, or an error if the tool has been idle for too long. A tool that waits for an answer is not idle.
async fn next_request(
    peers: &Peers,
    reader: &mut FrameReader,
    answers: &Answers,
) -> Result<Option<PeerFrame>, LinkError> {
    let idle_max = peers.tools.idle_max.get();
    let mut next = Box::pin(peers.next_frame(reader));
    loop {
        let idle = async {
            while answers.open.get() > 0 {
                answers.changed.next().await;
            }
            runtime::sleep(idle_max).await;
        };
        match race(&mut next, idle).await {
            Either::First(frame) => return Ok(frame?),
            Either::Second(()) if answers.open.get() == 0 => return Err(LinkError::IdleTool(idle_max)),
            Either::Second(()) => {}
        }
    }
}

impl Answers {
    /// Queues a finished answer once there is room for it, and releases its request. Drops it if the tool is gone.
    async fn add(&self, room: &Room, held: Held, response: &ToolResponse) {
        if self.has_room(room).await {
            let bytes = encoded(response);
            room.take(bytes.len());
            self.ready.borrow_mut().push(bytes);
        }
        drop(held);
        self.changed.notify();
    }

    /// Waits until another request may start; `false` if the tool no longer takes answers.
    async fn may_start(&self) -> bool {
        loop {
            let seen = self.changed.version();
            if self.gone.get() || self.open.get() < REQUESTS_MAX {
                return !self.gone.get();
            }
            self.changed.past(seen).await;
        }
    }

    /// Waits until all tools together hold less than they may; `false` if the tool no longer takes answers.
    async fn has_room(&self, room: &Room) -> bool {
        loop {
            let (seen, freed) = (self.changed.version(), room.freed.version());
            if self.gone.get() || !room.is_full() {
                return !self.gone.get();
            }
            race(self.changed.past(seen), room.freed.past(freed)).await;
        }
    }

    /// Sends answers until no more will come. Answers that are ready together leave in one write.
    async fn send_all(&self, mut writer: FrameWriter, room: &Room) {
        loop {
            let seen = self.changed.version();
            let ready = self.ready.take();
            if ready.is_empty() {
                if self.ended.get() && self.open.get() == 0 {
                    return;
                }
                self.changed.past(seen).await;
                continue;
            }
            for response in &ready {
                peer::push(&mut writer, PeerFrame::new(Kind::Response, Lane::Control, response.clone()));
            }
            let flushed = within(writer.flush()).await;
            room.give(ready.iter().map(Bytes::len).sum());
            if !matches!(flushed, Ok(Ok(()))) {
                // Wakes the reader, too.
                writer.shutdown();
                self.gone.set(true);
                return self.changed.notify();
            }
            self.open.set(self.open.get() - ready.len());
            self.changed.notify();
        }
    }
}

fn encoded(response: &ToolResponse) -> Bytes {
    let bytes = wire::encode_response(response);
    if bytes.len() <= CARRIED_BYTES_MAX {
        return bytes;
    }
    let message = format!("the answer's {} bytes do not fit into one frame; ask for less", bytes.len());
    wire::encode_response(&ToolResponse {
        id: response.id,
        answer: ToolAnswer::Failed { code: ErrorCode::MessageTooLarge.code() as u16, message },
    })
}
