//! Connections over real sockets: a core's executor on one side, a blocking peer on the other.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages as kafka;

use crate::client::blocking::{Client, ClientError};
use crate::codec::api::{ApiKey, api_versions_fallback, api_versions_response};
use crate::codec::fetch::{
    FetchPartition, FetchPartitionResponse, FetchRequest, FetchResponse, FetchTopic, FetchTopicResponse,
};
use crate::codec::frame::FrameError;
use crate::codec::header::RequestHeader;
use crate::codec::parts::{Parts, PartsBuilder};
use crate::codec::produce::{
    ProducePartition, ProducePartitionResponse, ProduceRequest, ProduceResponse, ProduceTopic, ProduceTopicResponse,
    TopicRef,
};
use crate::codec::request::{self, Request};
use crate::codec::response::{self, Response};
use crate::errors::ErrorCode;
use crate::records::build::BatchBuilder;
use crate::transport::conn::{self, ConnError, FrameReader, FrameWriter, MOVED_BYTES_MAX, PeerEnd};
use crate::transport::listen::{self, BindError, Bound, Listener};

const LOCAL: &str = "127.0.0.1:0";
const FRAME_BYTES_MAX: usize = 8 << 20;
/// Longer than any of these tests should take. Reaching it always fails the test.
const TIMEOUT: Duration = Duration::from_secs(30);

fn bound() -> (Bound, SocketAddr) {
    let bound = listen::bind(LOCAL.parse().unwrap(), 1).unwrap().pop().unwrap();
    let addr = bound.addr();
    (bound, addr)
}

/// Serves one connection on a new thread with its own executor.
fn serve<F, T>(handle: impl FnOnce(FrameReader, FrameWriter) -> F + Send + 'static) -> (SocketAddr, JoinHandle<T>)
where
    F: Future<Output = T>,
    T: Send + 'static,
{
    let (bound, addr) = bound();
    let server = thread::spawn(move || {
        runtime::block_on(async {
            let accepted = Listener::new(bound).unwrap().accept().await.unwrap();
            let (reader, writer) = conn::open(accepted, FRAME_BYTES_MAX).unwrap();
            handle(reader, writer).await
        })
    });
    (addr, server)
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], body].concat()
}

#[test]
fn frames_pass_both_ways() {
    let (addr, server) = serve(async |mut reader, mut writer| {
        let mut count = 0;
        while let Some(frame) = reader.read_frame().await.unwrap() {
            assert_eq!(reader.peer(), writer.peer());
            writer.write(Parts::from(Bytes::from(framed(&frame)))).await.unwrap();
            assert_eq!(writer.queued_bytes(), 0);
            count += 1;
        }
        assert_eq!(reader.buffer_bytes() / FRAME_BYTES_MAX, 0);
        count
    });
    let mut peer = TcpStream::connect(addr).unwrap();
    peer.set_read_timeout(Some(TIMEOUT)).unwrap();
    let bodies: Vec<Vec<u8>> = vec![b"a".to_vec(), vec![], vec![7; 100_000], vec![8; 4 << 20], b"z".to_vec()];
    let sent: Vec<u8> = bodies.iter().flat_map(|body| framed(body)).collect();
    let mut writing = peer.try_clone().unwrap();
    let expected = sent.clone();
    let writer = thread::spawn(move || {
        // The first bytes go one by one, so that a prefix arrives in pieces.
        sent[..12].iter().for_each(|byte| writing.write_all(&[*byte]).unwrap());
        writing.write_all(&sent[12..]).unwrap();
        writing.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut echoed = Vec::new();
    peer.read_to_end(&mut echoed).unwrap();
    writer.join().unwrap();
    assert!(echoed == expected);
    assert_eq!(server.join().unwrap(), bodies.len());
}

/// The most bytes that `moved` grew by while another task of the core ran, until it is `total`.
async fn most_between_two_turns(total: u64, moved: impl Fn() -> u64) -> u64 {
    let (mut before, mut most) = (0, 0);
    while before < total {
        let now = moved();
        most = most.max(now - before);
        before = now;
        runtime::yield_now().await;
    }
    most
}

#[test]
fn a_large_frame_leaves_other_tasks_their_turns() {
    const LARGE: usize = 6 << 20;
    let body = vec![7; LARGE];
    let total = framed(&body).len() as u64;
    let (addr, server) = serve(async move |mut reader, mut writer| {
        let handle = reader.handle();
        let received = runtime::spawn_task(most_between_two_turns(total, move || handle.received_bytes()));
        let frame = reader.read_frame().await.unwrap().unwrap();
        let handle = reader.handle();
        let sent = runtime::spawn_task(most_between_two_turns(total, move || handle.sent_bytes()));
        writer.write(Parts::from(Bytes::from(framed(&frame)))).await.unwrap();
        (received.join().await, sent.join().await)
    });
    let mut peer = TcpStream::connect(addr).unwrap();
    peer.set_read_timeout(Some(TIMEOUT)).unwrap();
    peer.write_all(&framed(&body)).unwrap();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    let mut echoed = Vec::new();
    peer.read_to_end(&mut echoed).unwrap();
    assert!(echoed == framed(&body));
    let (received, sent) = server.join().unwrap();
    let most = MOVED_BYTES_MAX as u64;
    assert!(received <= most && sent <= most, "{received} and {sent} bytes in one turn");
}

/// More buffers than one system call accepts, more bytes than the socket holds, and a reader that starts late.
#[test]
fn many_shared_parts_arrive_in_order() {
    const PARTS: usize = 5_000;
    let (written, wait) = mpsc::channel();
    let (addr, server) = serve(async move |_reader, mut writer| {
        let block = Bytes::from((0..=255u8).cycle().take(4096).collect::<Vec<_>>());
        let mut parts = PartsBuilder::default();
        for n in 0..PARTS {
            parts.fields().extend_from_slice(&(n as u32).to_be_bytes());
            parts.share(block.slice(n % 4096..));
        }
        let parts = parts.finish();
        let byte_count = parts.byte_count();
        writer.push(parts);
        assert_eq!(writer.queued_bytes(), byte_count);
        written.send(byte_count).unwrap();
        writer.flush().await.unwrap();
        assert_eq!(writer.queued_bytes(), 0);
    });
    let mut peer = TcpStream::connect(addr).unwrap();
    let byte_count = wait.recv_timeout(TIMEOUT).unwrap();
    let mut all = Vec::with_capacity(byte_count);
    peer.read_to_end(&mut all).unwrap();
    server.join().unwrap();
    assert_eq!(all.len(), byte_count);
    let mut at = 0;
    for n in 0..PARTS {
        assert_eq!(all[at..at + 4], (n as u32).to_be_bytes());
        let length = 4096 - n % 4096;
        assert!(all[at + 4..at + 4 + length].iter().enumerate().all(|(i, b)| *b == (n % 4096 + i) as u8));
        at += 4 + length;
    }
}

#[test]
fn bytes_that_are_not_kafka_end_only_their_connection() {
    let cases: [(&[u8], FrameError); 4] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", FrameError::Http { method: "GET" }),
        (&[22, 3, 1, 0, 200, 1], FrameError::Tls),
        (&[0xff; 8], FrameError::Negative { length: -1 }),
        (&[0, 0, 0, 9, 1, 2], FrameError::Cut { received: 2, length: 9 }),
    ];
    for (bytes, error) in cases {
        let (addr, server) = serve(async |mut reader, _writer| match reader.read_frame().await {
            Err(ConnError::Frame(error)) => error,
            other => panic!("{other:?}"),
        });
        let mut peer = TcpStream::connect(addr).unwrap();
        peer.write_all(bytes).unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(server.join().unwrap(), error);
    }
}

#[test]
fn shutdown_wakes_a_waiting_reader() {
    let (addr, server) = serve(async |mut reader, writer| {
        let waiting = runtime::spawn_task(async move { reader.read_frame().await });
        runtime::yield_if_needed().await;
        writer.shutdown();
        matches!(waiting.join().await, Ok(None))
    });
    let _peer = TcpStream::connect(addr).unwrap();
    assert!(server.join().unwrap());
}

#[test]
fn the_end_of_a_peer_shows_although_nothing_is_read() {
    let (tell, told) = mpsc::channel();
    let (addr, server) = serve(async move |reader, _writer| {
        let handle = reader.handle();
        for end in [PeerEnd::Open, PeerEnd::HalfClosed, PeerEnd::Gone] {
            let asked = Instant::now();
            while handle.peer_end() != end {
                assert!(asked.elapsed() < TIMEOUT, "{end:?} is not seen");
                thread::yield_now();
            }
            tell.send(()).unwrap();
        }
        assert_eq!(handle.received_bytes(), 0);
    });
    let mut peer = TcpStream::connect(addr).unwrap();
    peer.write_all(&framed(b"unread")).unwrap();
    told.recv_timeout(TIMEOUT).unwrap();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    told.recv_timeout(TIMEOUT).unwrap();
    // Without lingering, closing resets the connection.
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    server.join().unwrap();
}

#[test]
fn a_peer_that_is_gone_is_an_error_not_a_signal() {
    let (gone, wait) = mpsc::channel();
    let (addr, server) = serve(async move |mut reader, mut writer| {
        // The stream ends or is reset. Either way the peer no longer reads.
        let _ = reader.read_frame().await;
        wait.recv_timeout(TIMEOUT).unwrap();
        let block = Bytes::from(vec![0; 1 << 20]);
        loop {
            if let Err(e) = writer.write(block.clone().into()).await {
                return e.kind();
            }
        }
    });
    drop(TcpStream::connect(addr).unwrap());
    gone.send(()).unwrap();
    let kind = server.join().unwrap();
    assert!(matches!(kind, std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset), "{kind}");
}

#[test]
fn an_address_in_use_is_refused_by_name() {
    let taken = listen::bind(LOCAL.parse().unwrap(), 2).unwrap();
    let addr = taken[0].addr();
    assert_ne!(addr.port(), 0);
    assert_eq!(taken[1].addr(), addr);
    let error = listen::bind(addr, 1).unwrap_err();
    assert!(matches!(error, BindError::InUse { addr: a } if a == addr));
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
    drop(taken);
    listen::bind(addr, 3).unwrap();
    let plain = TcpListener::bind(LOCAL).unwrap();
    assert!(matches!(listen::bind(plain.local_addr().unwrap(), 1), Err(BindError::InUse { .. })));
    let elsewhere = "192.0.2.1:9092".parse().unwrap();
    assert!(matches!(listen::bind(elsewhere, 1), Err(BindError::Other { .. })));
}

/// An accepted socket belongs to no core until it is opened on one.
#[test]
fn an_accepted_connection_can_go_to_another_core() {
    let (bound, addr) = bound();
    let (hand_over, receive) = mpsc::channel();
    let acceptor = thread::spawn(move || {
        runtime::block_on(async {
            let listener = Listener::new(bound).unwrap();
            assert_eq!(listener.addr(), addr);
            hand_over.send(listener.accept().await.unwrap()).unwrap();
        });
    });
    let owner = thread::spawn(move || {
        let accepted = receive.recv_timeout(TIMEOUT).unwrap();
        runtime::block_on(async {
            let (mut reader, mut writer) = conn::open(accepted, FRAME_BYTES_MAX).unwrap();
            let frame = reader.read_frame().await.unwrap().unwrap();
            writer.write(Parts::from(frame)).await.unwrap();
        });
    });
    let answer = runtime::block_on(async {
        let accepted = conn::connect(addr).await.unwrap();
        assert_eq!(accepted.peer(), addr);
        let (mut reader, mut writer) = conn::open(accepted, FRAME_BYTES_MAX).unwrap();
        writer.write(Parts::from(Bytes::from(framed(&framed(b"ping"))))).await.unwrap();
        reader.read_frame().await.unwrap()
    });
    assert_eq!(answer.as_deref(), Some(&b"ping"[..]));
    acceptor.join().unwrap();
    owner.join().unwrap();
}

#[test]
fn connecting_to_nobody_is_an_error() {
    let free = TcpListener::bind(LOCAL).unwrap().local_addr().unwrap();
    let error = runtime::block_on(conn::connect(free)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    let error = Client::connect(&free.to_string(), "test", TIMEOUT).unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
}

/// Answers requests until the peer closes. Rejects ApiVersions above `api_versions_max`, as an older broker does.
async fn broker(mut reader: FrameReader, mut writer: FrameWriter, api_versions_max: i16) {
    let mut stored = Vec::new();
    while let Some(frame) = reader.read_frame().await.unwrap() {
        let (header, request) = match request::decode(&frame) {
            Ok((header, _)) if header.api == ApiKey::ApiVersions && header.version > api_versions_max => {
                let mut table = api_versions_fallback();
                let own = table.api_keys.iter_mut().find(|row| row.api_key == header.api as i16).unwrap();
                own.max_version = api_versions_max;
                let header = RequestHeader { version: 0, ..header };
                writer.write(response::encode(&header, table.into()).unwrap()).await.unwrap();
                continue;
            }
            Ok(decoded) => decoded,
            Err(error) => panic!("{error}"),
        };
        let response: Response = match request {
            Request::ApiVersions(_) => api_versions_response().into(),
            Request::Metadata(_) => kafka::MetadataResponse::default().with_cluster_id(Some("c".into())).into(),
            Request::Produce(produce) => store(produce, &mut stored).into(),
            Request::Fetch(fetch) => FetchResponse {
                topics: vec![FetchTopicResponse {
                    topic: fetch.topics[0].topic.clone(),
                    partitions: vec![FetchPartitionResponse::found(0, 1, 0, stored.clone())],
                }],
                ..FetchResponse::default()
            }
            .into(),
            other => panic!("{other:?}"),
        };
        writer.write(response::encode(&header, response).unwrap()).await.unwrap();
    }
}

fn store(produce: ProduceRequest, stored: &mut Vec<Bytes>) -> ProduceResponse {
    let topics = produce.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.into_iter().map(|partition| {
            stored.extend(partition.records);
            ProducePartitionResponse::stored(partition.index, stored.len() as i64 - 1, -1, 0)
        });
        ProduceTopicResponse { partitions: partitions.collect(), topic: topic.topic }
    });
    ProduceResponse { topics: topics.collect(), ..ProduceResponse::default() }
}

#[test]
fn the_client_negotiates_and_calls() {
    for api_versions_max in [4, 2] {
        let (addr, server) = serve(async move |reader, writer| broker(reader, writer, api_versions_max).await);
        let mut client = Client::connect(&addr.to_string(), "test", TIMEOUT).unwrap();
        assert_eq!(client.version(ApiKey::Metadata).unwrap(), 13);
        let metadata = client.call(kafka::MetadataRequest::default()).unwrap();
        assert_eq!(metadata.cluster_id.as_deref(), Some("c"));

        let mut builder = BatchBuilder::default();
        builder.push(1, Some(b"k"), Some(b"v"));
        let batch = builder.finish();
        for topic in [TopicRef::Name("t".into()), TopicRef::Id(uuid::Uuid::from_u128(3))] {
            let partition = ProducePartition { index: 0, records: Some(batch.clone()) };
            let produce = ProduceRequest {
                acks: -1,
                timeout_ms: 1000,
                topics: vec![ProduceTopic { topic: topic.clone(), partitions: vec![partition] }],
                ..ProduceRequest::default()
            };
            let produced = client.produce(produce).unwrap();
            assert_eq!(produced.responses[0].partition_responses[0].error_code, crate::errors::NONE);
            let partitions = vec![FetchPartition::of_consumer(0, 0, 1 << 20)];
            let topics = vec![FetchTopic { topic, partitions }];
            let fetched = client.fetch(FetchRequest::of_consumer(100, 1, 1 << 20, topics)).unwrap();
            let records = fetched.responses[0].partitions[0].records.as_ref().unwrap();
            assert!(records.starts_with(&batch));
        }
        drop(client);
        server.join().unwrap();
    }
}

#[test]
fn the_client_says_what_went_wrong() {
    // A server that closes at once.
    let (addr, server) = serve(async |_reader, _writer| ());
    let error = Client::connect(&addr.to_string(), "test", TIMEOUT).unwrap_err();
    assert!(matches!(error, ClientError::Closed { .. } | ClientError::Io(_)), "{error}");
    server.join().unwrap();

    // A server that never answers.
    let silent = TcpListener::bind(LOCAL).unwrap();
    let addr = silent.local_addr().unwrap().to_string();
    let error = Client::connect(&addr, "test", Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");

    // A server that rejects the request.
    let (addr, server) = serve(async |mut reader, mut writer| {
        let frame = reader.read_frame().await.unwrap().unwrap();
        let (header, _) = request::decode(&frame).unwrap();
        let refusal = api_versions_response().with_error_code(ErrorCode::ClusterAuthorizationFailed.code());
        writer.write(response::encode(&header, refusal.into()).unwrap()).await.unwrap();
    });
    let error = Client::connect(&addr.to_string(), "test", TIMEOUT).unwrap_err();
    assert!(matches!(error, ClientError::Refused { error: ErrorCode::ClusterAuthorizationFailed, .. }), "{error}");
    server.join().unwrap();
}
