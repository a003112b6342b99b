//! A tool's connection on the peer port: requests come one behind the other, and are answered as they are done.
//! Lives on: the core that accepted it.

use super::{Host, LinkError, Peers, within};
use crate::{
    rt,
    sync::{Notify, both},
};
use bytes::Bytes;
use consensus::wire::{self, ToolAnswer, ToolResponse};
use net::{
    conn::{FrameReader, FrameWriter},
    errors::ErrorCode,
    peer::{self, CARRIED_BYTES_MAX, Kind, Lane, PeerError, PeerFrame},
};
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::Poll,
};

/// A tool's requests that are not answered yet, at most; beyond it, the connection is not read.
const REQUESTS_MAX: usize = 1024;

/// Answers on their way to a tool.
#[derive(Default)]
struct Answers {
    ready: RefCell<Vec<ToolResponse>>,
    /// Requests whose answers have not left.
    open: Cell<usize>,
    /// No more requests come.
    ended: Cell<bool>,
    /// The tool does not take answers any more.
    gone: Cell<bool>,
    changed: Notify,
}

/// Answers a tool's requests until it closes or the broker stops; returns once all answers have left.
pub(super) async fn serve<H: Host + 'static>(
    peers: &Peers,
    mut reader: FrameReader,
    writer: FrameWriter,
    host: &Rc<H>,
) -> Result<(), LinkError> {
    let answers = Rc::new(Answers::default());
    let mut served = Ok(());
    let reading = async {
        served = read(peers, &mut reader, &answers, host).await;
        answers.ended.set(true);
        answers.changed.notify();
    };
    both(reading, answers.send_all(writer)).await;
    served
}

async fn read<H: Host + 'static>(
    peers: &Peers,
    reader: &mut FrameReader,
    answers: &Rc<Answers>,
    host: &Rc<H>,
) -> Result<(), LinkError> {
    while answers.has_room().await {
        let Some(frame) = peers.next_frame(reader).await? else { return Ok(()) };
        if frame.kind != Kind::Request {
            return Err(PeerError::NoBroker.into());
        }
        let request = wire::decode_request(&frame.bytes)?;
        answers.open.set(answers.open.get() + 1);
        let mut answering = Box::pin(host.answer(request));
        // Most reads are answered at once, without a task of their own.
        match poll_fn(|context| Poll::Ready(answering.as_mut().poll(context))).await {
            Poll::Ready(response) => answers.add(response),
            Poll::Pending => {
                let answers = answers.clone();
                rt::spawn(async move { answers.add(answering.await) });
            }
        }
    }
    Ok(())
}

impl Answers {
    fn add(&self, response: ToolResponse) {
        self.ready.borrow_mut().push(response);
        self.changed.notify();
    }

    /// Waits until another request may be started; `false` if nobody takes its answer.
    async fn has_room(&self) -> bool {
        while self.open.get() >= REQUESTS_MAX && !self.gone.get() {
            self.changed.next().await;
        }
        !self.gone.get()
    }

    /// Sends answers until no more come; those that are ready together leave in one write.
    async fn send_all(&self, mut writer: FrameWriter) {
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
                peer::push(&mut writer, PeerFrame::new(Kind::Response, Lane::Control, encoded(response)));
            }
            if !matches!(within(writer.flush()).await, Ok(Ok(()))) {
                // The reader wakes, too.
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
    let message = format!("the answer's {} bytes do not go into one frame; ask for less", bytes.len());
    wire::encode_response(&ToolResponse {
        id: response.id,
        answer: ToolAnswer::Failed { code: ErrorCode::MessageTooLarge.code() as u16, message },
    })
}
