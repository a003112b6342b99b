//! A tool's connection on the peer port. The tool sends requests one after another; each is answered as soon as it is
//! done.
//! Lives on: the core that accepted it.

use super::{Host, LinkError, Peers, within};
use crate::{
    rt,
    sync::{Either, Notify, both, race},
};
use bytes::Bytes;
use consensus::wire::{self, ToolAnswer, ToolResponse};
use net::{
    errors::ErrorCode,
    peer::{self, CARRIED_BYTES_MAX, Kind, Lane, PeerError, PeerFrame},
    transport::conn::{FrameReader, FrameWriter},
};
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
/// Most bytes of one request.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Approximate limit of the bytes in all tools' requests and answers. When full, a connection with open requests is
/// not read.
const TOOL_BYTES_MAX: usize = 64 << 20;
/// A tool that has all its answers and sends no request for this long is disconnected.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// The share of this core's resources that tools use.
pub(super) struct ToolShare {
    pub(super) open: Cell<usize>,
    /// Bytes of unanswered requests and of unsent answers.
    bytes: Cell<usize>,
    /// Notified when bytes are released.
    room: Notify,
    pub(super) idle_max: Cell<Duration>,
}

impl Default for ToolShare {
    fn default() -> Self {
        Self { open: Cell::new(0), bytes: Cell::new(0), room: Notify::default(), idle_max: Cell::new(IDLE_MAX) }
    }
}

impl ToolShare {
    fn take(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    fn give(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() - bytes);
        self.room.notify();
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
    both(reading, answers.send_all(writer, share)).await;
    share.open.set(share.open.get() - 1);
    share.give(answers.ready.take().iter().map(Bytes::len).sum());
    served
}

async fn read<H: Host + 'static>(
    peers: &Rc<Peers>,
    reader: &mut FrameReader,
    answers: &Rc<Answers>,
    host: &Rc<H>,
) -> Result<(), LinkError> {
    while answers.has_room(&peers.tools).await {
        let Some(frame) = next_request(peers, reader, answers).await? else { return Ok(()) };
        if frame.kind != Kind::Request {
            return Err(PeerError::NoBroker.into());
        }
        let request = wire::decode_request(&frame.bytes)?;
        answers.open.set(answers.open.get() + 1);
        let bytes = frame.bytes.len();
        peers.tools.take(bytes);
        let mut answering = Box::pin(host.answer(request));
        // Most reads are answered at once, without a task of their own.
        match poll_fn(|context| Poll::Ready(answering.as_mut().poll(context))).await {
            Poll::Ready(response) => answers.add(&peers.tools, bytes, &response),
            Poll::Pending => {
                let (peers, answers) = (peers.clone(), answers.clone());
                rt::spawn(async move { answers.add(&peers.tools, bytes, &answering.await) });
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
            rt::sleep(idle_max).await;
        };
        match race(&mut next, idle).await {
            Either::First(frame) => return Ok(frame?),
            Either::Second(()) if answers.open.get() == 0 => return Err(LinkError::IdleTool(idle_max)),
            Either::Second(()) => {}
        }
    }
}

impl Answers {
    /// Queues a finished answer, which replaces its request in the tools' share.
    fn add(&self, share: &ToolShare, request_bytes: usize, response: &ToolResponse) {
        let bytes = encoded(response);
        share.take(bytes.len());
        share.give(request_bytes);
        self.ready.borrow_mut().push(bytes);
        self.changed.notify();
    }

    /// Waits until another request may start; `false` if the tool no longer takes answers.
    async fn has_room(&self, share: &ToolShare) -> bool {
        loop {
            let (seen, seen_room) = (self.changed.version(), share.room.version());
            let is_full = share.bytes.get() > TOOL_BYTES_MAX && self.open.get() > 0;
            if self.gone.get() || (self.open.get() < REQUESTS_MAX && !is_full) {
                return !self.gone.get();
            }
            race(self.changed.past(seen), share.room.past(seen_room)).await;
        }
    }

    /// Sends answers until no more will come. Answers that are ready together leave in one write.
    async fn send_all(&self, mut writer: FrameWriter, share: &ToolShare) {
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
            share.give(ready.iter().map(Bytes::len).sum());
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
