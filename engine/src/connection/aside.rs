//! Decodes large requests and encodes large answers on the thread beside the core.
//!
//! A codec handles a message in one go. With 262,144 elements, or 64 MiB, that takes tens of milliseconds, and the
//! network and the disk would wait for the core meanwhile. Small messages, almost all, are handled in place.
//!
//! Produce requests are always decoded in place: they begin in the order in which they came, and their decoder takes
//! only slices of the frame.
//!
//! Bound: one request and one answer of each connection. The memory of both is reserved before. A connection that
//! ends leaves the line.

use net::{
    codec::{
        api::ApiKey,
        header::RequestHeader,
        parts::Parts,
        request::{DecodeError, Request, Undecoded},
        response::{self, EncodeError, Response},
    },
    turn::BYTES_A_TURN,
};
use runtime::sync::{self, line::Line};

/// Most bytes of a body that is decoded in place. An element takes one byte or more.
const DECODED_BYTES_MAX: usize = BYTES_A_TURN / 4;

/// Most bytes of an answer that is encoded in place, as it was weighed: decoded and encoded.
const ENCODED_BYTES_MAX: usize = 4 * BYTES_A_TURN;

/// Most partitions of such an answer to a Produce or a Fetch, which are not weighed.
const ENCODED_PARTITIONS_MAX: usize = 16 << 10;

/// Whether the body of a request takes too long to be decoded in place.
pub fn is_large(undecoded: &Undecoded) -> bool {
    undecoded.header.api != ApiKey::Produce && undecoded.body_bytes() > DECODED_BYTES_MAX
}

/// Decodes the body of a request. The memory is what its decoded form is to take.
pub async fn decode<M: 'static>(
    line: &Line,
    undecoded: Undecoded,
    memory: M,
) -> (M, Result<(RequestHeader, Request), DecodeError>) {
    match is_large(&undecoded) {
        true => beside(line, memory, move || undecoded.decode()).await,
        false => (memory, undecoded.decode()),
    }
}

/// Encodes an answer. The memory is what it takes, `weight` its bytes as they were weighed, if they were.
pub async fn encode<M: 'static>(
    line: &Line,
    header: &RequestHeader,
    response: Response,
    memory: M,
    weight: usize,
) -> (M, Result<Parts, EncodeError>) {
    let partitions = match &response {
        Response::Produce(response) => response.topics.iter().map(|topic| topic.partitions.len()).sum(),
        Response::Fetch(response) => response.topics.iter().map(|topic| topic.partitions.len()).sum(),
        _ => 0,
    };
    if weight <= ENCODED_BYTES_MAX && partitions <= ENCODED_PARTITIONS_MAX {
        return (memory, response::encode(header, response));
    }
    let header = header.clone();
    beside(line, memory, move || response::encode(&header, response)).await
}

/// Does the work on the thread beside the core, one piece of work at a time. If the caller gives up, work that has not
/// begun is dropped. Work that has begun ends, and its memory stays held until then.
async fn beside<M: 'static, T: Send + 'static>(
    line: &Line,
    memory: M,
    work: impl FnOnce() -> T + Send + 'static,
) -> (M, T) {
    let place = line.join();
    place.first().await;
    let (promise, answer) = sync::promise();
    runtime::spawn(async move {
        let done = runtime::blocking(work).await;
        drop(place);
        promise.keep((memory, done));
    });
    answer.await.expect("the task keeps its promise")
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::{
        StrBytes,
        codec::request::{decode_header, encode as encode_request},
        messages::{
            MetadataRequest, MetadataResponse, TopicName, metadata_request::MetadataRequestTopic,
            metadata_response::MetadataResponseTopic,
        },
    };
    use runtime::sync::{Either, race};

    use std::{rc::Rc, time::Duration};

    const VERSION: i16 = 9;

    fn header() -> RequestHeader {
        RequestHeader { api: ApiKey::Metadata, version: VERSION, correlation_id: 7, client_id: None }
    }

    fn name(number: usize) -> TopicName {
        TopicName(StrBytes::from_string(format!("topic-{number}")))
    }

    /// A request that names so many topics, received.
    fn request(topics: usize) -> (Request, Undecoded) {
        let topics = (0..topics).map(|number| MetadataRequestTopic::default().with_name(Some(name(number))));
        let request = Request::from(MetadataRequest::default().with_topics(Some(topics.collect())));
        let frame = encode_request(&header(), &request).expect("it is valid").into_bytes();
        (request, decode_header(&frame.slice(4..)).expect("it is whole"))
    }

    #[test]
    fn large_messages_are_the_same_wherever_they_are_handled() {
        let test = || async {
            let line = Line::default();
            for (topics, large) in [(10, false), (20_000, true)] {
                let (sent, received) = request(topics);
                assert_eq!(is_large(&received), large, "{topics} topics");
                assert_eq!(decode(&line, received, 1).await, (1, Ok((header(), sent))));
                let topics = (0..topics).map(|number| MetadataResponseTopic::default().with_name(Some(name(number))));
                let answer = Response::from(MetadataResponse::default().with_topics(topics.collect()));
                let here = response::encode(&header(), answer.clone()).expect("it is valid").into_bytes();
                for weight in [0, ENCODED_BYTES_MAX + 1] {
                    let (memory, encoded) = encode(&line, &header(), answer.clone(), 2, weight).await;
                    assert!((memory, encoded.expect("it is valid").into_bytes()) == (2, here.clone()));
                }
            }
        };
        runtime::spawn_core(runtime::any_allowed_cpu(), "test", test).unwrap().join().unwrap();
    }

    #[test]
    fn work_that_has_begun_keeps_its_memory_and_other_work_ends_with_its_caller() {
        let test = || async {
            let (line, memory, (go, wait)) = (Line::default(), Rc::new(()), std::sync::mpsc::channel::<()>());
            let mut first = Box::pin(beside(&line, memory.clone(), move || wait.recv().is_ok()));
            assert!(matches!(race(&mut first, runtime::sleep(Duration::ZERO)).await, Either::Second(())));
            let mut second = Box::pin(beside(&line, memory.clone(), || unreachable!("its caller has gone")));
            assert!(matches!(race(&mut second, runtime::sleep(Duration::ZERO)).await, Either::Second(())));
            assert_eq!((line.len(), Rc::strong_count(&memory)), (2, 3));
            drop((first, second));
            assert_eq!((line.len(), Rc::strong_count(&memory)), (1, 2), "the first goes on");
            go.send(()).expect("the work waits for it");
            line.join().first().await;
            assert_eq!(Rc::strong_count(&memory), 1);
        };
        runtime::spawn_core(runtime::any_allowed_cpu(), "test", test).unwrap().join().unwrap();
    }
}
