//! Sends a connection's answers, and decides what becomes of its requests when its client is gone.

use super::{
    Connection, GoingOn, Host, InFlight, aside, closed,
    reply::{Pending, Reply, reads_records, waits_for_members},
};
use crate::{log_limit::Admitted, memory::Held};
use net::{
    codec::{api::ApiKey, header::RequestHeader, parts::Parts, response::Response},
    transport::conn::FrameWriter,
};
use runtime::{
    clock,
    sync::{Either, race, zip},
};
use std::{
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

/// Answers that are ready are gathered up to this many bytes before they are sent.
const UNSENT_BYTES_MAX: usize = 256 << 10;

/// How long a client that has closed its sending side may wait for its answers. Whether it still reads cannot be seen
/// before something is sent. Kafka closes at once.
pub const HALF_CLOSED_MAX: Duration = Duration::from_secs(5);

/// Most connections of a core that end while their requests go on. Further ones stay open until their requests end.
const ENDED_EARLY_MAX: usize = 1024;

/// The fate of a request that is not answered when its client has closed its sending side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Orphan {
    /// It is dropped at once.
    Dropped,
    /// It is dropped when the connection ends.
    DroppedAtEnd,
    /// It runs to its end, so that nothing is left half done.
    GoesOn,
}

impl Orphan {
    fn of(api: ApiKey) -> Self {
        match api {
            api if reads_records(api) || waits_for_members(api) => Self::Dropped,
            // Batches that have room are in the log as soon as they are checked. The rest would take room from others.
            api if api.only_reads() || api == ApiKey::Produce => Self::DroppedAtEnd,
            _ => Self::GoesOn,
        }
    }

    /// Whether such a request is dropped by now.
    fn is_dropped(self, connection: &Connection) -> bool {
        match self {
            Self::Dropped => connection.quit.is_set(),
            Self::DroppedAtEnd => connection.gone.is_set(),
            Self::GoesOn => false,
        }
    }
}

/// Sends answers in the order of their requests, until the reader is done and all are sent, or the peer is gone.
/// Answers to produce requests that are ready together leave in one write.
pub async fn answer(core: &Rc<impl Host>, connection: &Rc<Connection>, mut writer: FrameWriter) {
    loop {
        let seen = connection.started.version();
        let next = connection.answers.borrow_mut().pop_front();
        let Some(mut request) = next else {
            flush(core, connection, &mut writer).await;
            if connection.answers.borrow().is_empty() {
                if connection.read_to_end.get() {
                    return;
                }
                connection.started.past(seen).await;
            }
            continue;
        };
        let orphan = Orphan::of(request.header.api);
        // Produce requests have begun. Others begin when they are first polled, and must not stop then: they may hold
        // a place for which others wait.
        if request.header.api != ApiKey::Produce || writer.queued_bytes() > UNSENT_BYTES_MAX {
            flush(core, connection, &mut writer).await;
        }
        // A request begins with its first poll, and must not begin for a client that is gone: many of one connection
        // would each start a read of the disk, all at once.
        let ready = match orphan.is_dropped(connection) {
            true => Some(Reply::Nothing),
            false => poll_once(&mut request.answer),
        };
        let reply = match ready {
            Some(reply) => reply,
            None => match work(core, connection, &mut request, &mut writer).await {
                Some(reply) => reply,
                None if orphan == Orphan::GoesOn => {
                    end_early(core, connection, request);
                    continue;
                }
                None => Reply::Nothing,
            },
        };
        match reply {
            Reply::Nothing => {}
            Reply::HangUp { why } => {
                if !connection.gone.is_set() {
                    closed(core, connection.peer, &why);
                }
                // Answers to earlier requests still leave.
                flush(core, connection, &mut writer).await;
                connection.cut();
            }
            Reply::Send(response) => send(core, connection, &mut writer, &request.header, response, None).await,
            Reply::SendHeld(response, held) => {
                send(core, connection, &mut writer, &request.header, response, Some(held)).await;
            }
        }
        drop(request);
        connection.in_flight.update(|count| count - 1);
        connection.answered.notify();
    }
}

/// Works on a request while the answers before its own are sent. `None`: its client is gone first.
async fn work(
    core: &Rc<impl Host>,
    connection: &Connection,
    request: &mut InFlight,
    writer: &mut FrameWriter,
) -> Option<Reply> {
    let (mut reply, orphan) = (None, Orphan::of(request.header.api));
    let working = async {
        connection.is_working.set(true);
        if let Either::First(ready) = race(&mut request.answer, is_over(core, connection, orphan)).await {
            reply = Some(ready);
        }
        // A client that does not take the answers before is idle.
        connection.is_working.set(false);
    };
    zip(flush(core, connection, writer), working).await;
    reply
}

/// Resolves once the client of a request is gone and the request is dropped or goes on alone. Then the connection has
/// ended, unless the client may still read other answers.
async fn is_over(core: &Rc<impl Host>, connection: &Connection, orphan: Orphan) {
    if orphan == Orphan::Dropped {
        return connection.quit.wait().await;
    }
    race(connection.gone.wait(), half_closed(connection)).await;
    connection.cut();
    while orphan == Orphan::GoesOn && core.connections().ended_early.get() >= ENDED_EARLY_MAX {
        core.connections().changed.next().await;
    }
}

/// Resolves when a client that has closed its sending side has had its time.
pub async fn half_closed(connection: &Connection) {
    connection.quit.wait().await;
    runtime::sleep(connection.half_closed_until.get().saturating_sub(clock::now())).await;
}

/// Lets the requests of a connection that has ended go on in a task of their own, from this one on, one after the
/// other as on the connection.
fn end_early(core: &Rc<impl Host>, connection: &Connection, request: InFlight) {
    let mut requests = VecDeque::from([request]);
    requests.append(&mut connection.answers.borrow_mut());
    connection.in_flight.set(0);
    connection.answered.notify();
    let going_on = GoingOn::of(core.connections());
    runtime::spawn(async move {
        for InFlight { header, answer, memory: _held } in requests {
            match Orphan::of(header.api) {
                Orphan::GoesOn => drop(answer.await),
                Orphan::Dropped | Orphan::DroppedAtEnd => drop(answer),
            }
        }
        drop(going_on);
    });
}

/// Queues an answer. Its held memory stays held until it is sent.
async fn send(
    core: &Rc<impl Host>,
    connection: &Connection,
    writer: &mut FrameWriter,
    header: &RequestHeader,
    response: Response,
    held: Option<Held>,
) {
    let weight = held.as_ref().map_or(0, Held::bytes);
    let (held, encoded) = aside::encode(core.beside(), header, response, held, weight).await;
    match encoded {
        Ok(parts) => {
            core.metrics().kafka_response_bytes_total.add(parts.byte_count() as u64);
            writer.push(match held {
                Some(mut held) => {
                    held.shrink_to(parts.byte_count());
                    Parts::from(held.with(parts.into_bytes()))
                }
                None => parts,
            });
        }
        Err(error) => {
            let (api, version, peer) = (header.api, header.version, connection.peer);
            if let Some(Admitted { left_out }) =
                core.connection_log().admit(clock::now(), peer.ip(), &error.to_string())
            {
                tracing::error!(%peer, ?api, version, %error, left_out, "cannot encode an answer");
            }
            connection.cut();
        }
    }
}

async fn flush(core: &Rc<impl Host>, connection: &Connection, writer: &mut FrameWriter) {
    if connection.gone.is_set() {
        return writer.clear();
    }
    let (unsent, queued) = (&core.connections().unsent_bytes, writer.queued_bytes());
    unsent.set(unsent.get() + queued);
    match race(writer.flush(), half_closed(connection)).await {
        Either::First(Ok(())) => {}
        Either::First(Err(_)) | Either::Second(()) => connection.cut(),
    }
    unsent.set(unsent.get() - queued);
}

/// The future's value if it is ready now. A later poll registers the real waker.
fn poll_once(answer: &mut Pending) -> Option<Reply> {
    match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(reply) => Some(reply),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_its_client_ends_or_goes_on_by_its_kind() {
        use Orphan::{Dropped, DroppedAtEnd, GoesOn};
        let expected = [
            (ApiKey::Fetch, Dropped),
            (ApiKey::ListOffsets, Dropped),
            (ApiKey::JoinGroup, Dropped),
            (ApiKey::SyncGroup, Dropped),
            (ApiKey::Metadata, DroppedAtEnd),
            (ApiKey::Produce, DroppedAtEnd),
            (ApiKey::OffsetCommit, GoesOn),
            (ApiKey::CreateTopics, GoesOn),
            (ApiKey::DeleteTopics, GoesOn),
        ];
        for (api, fate) in expected {
            assert!(Orphan::of(api) == fate, "{api:?}");
        }
    }
}
