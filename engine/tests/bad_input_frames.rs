//! Bytes that are not Kafka's protocol, or that are damaged, on a real broker's port. Only the connection that sent
//! them is closed. The log names the reason and the peer, and the broker continues to serve.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use net::client::blocking::Client;
use net::codec::api::ApiKey;
use net::errors::ErrorCode;

use support::PATIENCE;
use support::broker::Broker;
use support::wire;

/// A frame: the length, then the body.
fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as i32).to_be_bytes(), body].concat()
}

/// A request header of version 1, which most requests use below their flexible versions.
fn header(api_key: i16, version: i16) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(api_key.to_be_bytes());
    bytes.extend(version.to_be_bytes());
    bytes.extend(77i32.to_be_bytes());
    bytes.extend(2i16.to_be_bytes());
    bytes.extend(b"me");
    bytes
}

fn request(api_key: i16, version: i16, body: &[u8]) -> Vec<u8> {
    frame(&[header(api_key, version), body.to_vec()].concat())
}

struct Sent {
    peer: SocketAddr,
    answer: Vec<u8>,
}

/// Sends bytes and closes the sending side. Returns everything that the broker sends until it closes the connection.
fn send(broker: &Broker, bytes: &[u8]) -> Sent {
    let mut stream = TcpStream::connect(broker.kafka()).expect("the broker accepts");
    let peer = stream.local_addr().expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // The broker may close the connection before it has received everything.
    if stream.write_all(bytes).is_ok() {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset, "the broker must close the connection: {e}"),
    }
    Sent { peer, answer }
}

/// A connection that must survive every test case.
struct Witness {
    client: Client,
    produced: i64,
}

impl Witness {
    fn new(broker: &Broker) -> Witness {
        let mut client = wire::connect(broker);
        assert_eq!(wire::create_topic(&mut client, "witness", 1, 1, &[]).error_code, 0);
        Witness { client, produced: 0 }
    }

    /// Checks that the connection is still served as before.
    fn is_served(&mut self) {
        let answer = wire::produce(&mut self.client, "witness", 0, wire::batch(&[b"still here"]));
        assert_eq!((answer.error_code, answer.base_offset), (0, self.produced));
        self.produced += 1;
    }
}

/// The broker must close the connection without an answer. It must log the error with the peer's address, unless it has
/// just logged the same.
fn closed_and_logged(broker: &Broker, witness: &mut Witness, name: &str, bytes: &[u8]) {
    let left_out = || broker.metric("millrace_connection_lines_left_out_total");
    let before = left_out();
    let sent = send(broker, bytes);
    assert_eq!(sent.answer, [0u8; 0], "{name}: an answer");
    let (peer, begun) = (sent.peer.to_string(), Instant::now());
    while !broker.output().contains(&peer) && left_out() == before {
        assert!(begun.elapsed() < PATIENCE, "{name}: no line, and none is counted as left out");
        std::thread::yield_now();
    }
    witness.is_served();
}

#[test]
fn frames_of_impossible_length() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    for (name, bytes) in [
        ("a negative length", (-1i32).to_be_bytes().to_vec()),
        ("the least length", i32::MIN.to_be_bytes().to_vec()),
        ("the greatest length", i32::MAX.to_be_bytes().to_vec()),
        ("more than socket.request.max.bytes", (104_857_601i32).to_be_bytes().to_vec()),
        ("no room for a header", frame(&[])),
        ("half a header", frame(&[0, 18, 0])),
        ("a client id longer than the frame", frame(&[0, 3, 0, 1, 0, 0, 0, 7, 0x7f, 0xff, b'x'])),
        ("a negative client id length", frame(&[0, 3, 0, 1, 0, 0, 0, 7, 0x80, 0])),
    ] {
        closed_and_logged(&broker, &mut witness, name, &bytes);
    }
}

#[test]
fn frames_that_end_early() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    let whole = request(3, 1, &[0, 0, 0, 1, 0, 7, b'w', b'i', b't', b'n', b'e', b's', b's']);
    // Alone, the whole frame gets an answer.
    assert!(!send(&broker, &whole).answer.is_empty());
    for cut in [1, 3, 4, 5, 12, whole.len() - 1] {
        closed_and_logged(&broker, &mut witness, &format!("{cut} bytes of {}", whole.len()), &whole[..cut]);
    }
}

#[test]
fn other_protocols_on_the_port() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    let http = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";
    closed_and_logged(&broker, &mut witness, "an HTTP request", http);
    let mut tls = vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];
    tls.extend([0x5a; 506]);
    closed_and_logged(&broker, &mut witness, "a TLS hello", &tls);
    closed_and_logged(&broker, &mut witness, "SSH", b"SSH-2.0-OpenSSH_9.2\r\n");
}

#[test]
fn unknown_keys_and_versions() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    for (name, key, version) in [
        ("an unknown key", 9999, 0),
        ("a negative key", -1, 0),
        ("Metadata above its highest version", 3, 99),
        ("Fetch below its lowest version", 1, -1),
        ("Produce above its highest version", 0, i16::MAX),
    ] {
        closed_and_logged(&broker, &mut witness, name, &request(key, version, &[0; 16]));
    }
    // The broker answers ApiVersions in an unknown version with the layout of version 0, so that clients can fall back
    // (KIP-511).
    let answer = send(&broker, &request(18, 99, &[0; 8])).answer;
    assert_eq!(answer[4..10], [0, 0, 0, 77, 0, 35], "the correlation id and UNSUPPORTED_VERSION");
    let (count, rows) = answer[10..].split_at(4);
    let count = i32::from_be_bytes(count.try_into().expect("four bytes")) as usize;
    assert_eq!(rows.len(), count * 6, "rows of version 0");
    assert!(rows.chunks(6).any(|row| row[..2] == 18i16.to_be_bytes()), "ApiVersions itself is named");
    witness.is_served();
}

/// Peak size of the process's address space in bytes. Includes memory that was reserved and never touched.
fn peak_address_space(broker: &Broker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.pid())).expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).expect("VmPeak");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number");
    kib * 1024
}

#[test]
fn small_frames_that_claim_billions_reserve_nothing() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    witness.is_served();
    let before = peak_address_space(&broker);
    let most = [0x7f, 0xff, 0xff, 0xff];
    // 0xfffffffe as an unsigned varint: a compact array of 2^32 - 3 elements.
    let compact = [0xfe, 0xff, 0xff, 0xff, 0x0f];
    let no_tags = [0u8];
    for (name, bytes) in [
        ("Metadata topics", request(3, 1, &most)),
        ("compact Metadata topics", request(3, 9, &[&no_tags[..], &compact].concat())),
        ("Produce topics", request(0, 7, &[&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1][..], &most].concat())),
        ("CreateTopics topics", request(19, 1, &most)),
        ("OffsetCommit group", request(8, 2, &[0x7f, 0xff])),
        ("JoinGroup strings", request(11, 0, &[0, 1, b'g', 0, 0, 0, 1, 0x7f, 0xff])),
        ("DescribeConfigs resources", request(32, 1, &most)),
        ("a list of tags", request(3, 9, &compact)),
        ("DeleteTopics names", request(20, 1, &most)),
    ] {
        closed_and_logged(&broker, &mut witness, name, &bytes);
    }
    let grown = peak_address_space(&broker) - before;
    assert!(grown < 512 << 20, "{grown} bytes were reserved");
}

#[test]
fn damaged_batches_are_answered_and_the_connection_stays() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    let mut client = wire::connect(&broker);
    assert_eq!(wire::create_topic(&mut client, "target", 1, 1, &[]).error_code, 0);
    let good = wire::batch(&[b"one", b"two", b"three"]).to_vec();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let checked = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = with(change);
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        bytes
    };
    for (name, bytes, error) in [
        ("a flipped bit in a record", with(&|b| *b.last_mut().unwrap() ^= 1), ErrorCode::CorruptMessage),
        ("a flipped bit in the header", with(&|b| b[30] ^= 1), ErrorCode::CorruptMessage),
        ("a length too great", with(&|b| b[11] = b[11].wrapping_add(1)), ErrorCode::CorruptMessage),
        ("a negative length", with(&|b| b[8] = 0xff), ErrorCode::CorruptMessage),
        ("cut off", with(&|b| b.truncate(40)), ErrorCode::CorruptMessage),
        ("a wrong count", checked(&|b| b[60] = 9), ErrorCode::InvalidRecord),
        ("no records by the count", checked(&|b| b[60] = 0), ErrorCode::InvalidRecord),
        ("a negative count", checked(&|b| b[57] = 0xff), ErrorCode::InvalidRecord),
        ("a last offset beyond the count", checked(&|b| b[26] = 9), ErrorCode::InvalidRecord),
    ] {
        let answer = wire::produce(&mut client, "target", 0, bytes.into());
        assert_eq!(ErrorCode::try_from_code(answer.error_code), Some(error), "{name}");
        witness.is_served();
    }
    // Formats 0 and 1 have their magic byte at the same position.
    for magic in [0, 1] {
        let answer = wire::produce(&mut client, "target", 0, with(&|b| b[16] = magic).into());
        let error = ErrorCode::try_from_code(answer.error_code);
        assert_eq!(error, Some(ErrorCode::UnsupportedForMessageFormat), "magic {magic}");
    }
    // The log contains none of the bad batches.
    let answer = wire::produce(&mut client, "target", 0, good.into());
    assert_eq!((answer.error_code, answer.base_offset), (0, 0));
}

#[test]
fn random_bytes() {
    let mut broker = Broker::start();
    let mut witness = Witness::new(&broker);
    let mut random = fastrand::Rng::with_seed(20_260_101);
    for round in 0..300 {
        let mut body: Vec<u8> = (0..random.usize(..200)).map(|_| random.u8(..)).collect();
        let bytes = match round % 3 {
            0 => body,
            1 => frame(&body),
            // A valid header, and then random bytes.
            _ => {
                let table = net::codec::api::TABLE;
                let api = &table[random.usize(..table.len())];
                let version = random.i16(api.lowest..=api.highest);
                body.insert(0, 0);
                request(api.key as i16, version, &body)
            }
        };
        send(&broker, &bytes);
        if round % 50 == 0 {
            witness.is_served();
        }
    }
    witness.is_served();
    assert!(broker.is_alive());
    broker.stop();
}

#[test]
fn a_connection_that_says_nothing_disturbs_nobody() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    let idle: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(broker.kafka()).expect("accepted")).collect();
    witness.is_served();
    let mut one = &idle[0];
    one.write_all(&request(18, 0, &[])).expect("sent");
    let mut answer = [0; 8];
    one.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    one.read_exact(&mut answer).expect("an idle connection is served when it speaks");
    assert_eq!(answer[4..], 77i32.to_be_bytes());
    drop(idle);
    witness.is_served();
    assert!(witness.client.version(ApiKey::Fetch).is_ok());
}

/// Strangers can cause log lines as fast as they connect. The broker writes few lines for the Kafka port and the peer
/// port together, and counts the others.
#[test]
fn a_flood_of_bad_connections_is_no_flood_of_lines() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    let begun = Instant::now();
    for n in 0..1000u32 {
        // Each line is different.
        let length = -1 - n as i32;
        assert_eq!(send(&broker, &length.to_be_bytes()).answer, [0u8; 0]);
        if n % 10 == 0 {
            let mut stream = TcpStream::connect(broker.peer()).expect("the broker accepts");
            stream.write_all(&[n.to_be_bytes(), [0xff; 4]].concat()).expect("sent");
        }
    }
    witness.is_served();
    let lines = broker.output().lines().filter(|line| line.contains("is closed") || line.contains("closing a")).count();
    let cores =
        broker.output().lines().find_map(|line| line.strip_prefix("cores ")?.trim().split(',').next()?.parse().ok());
    let allowed = cores.unwrap_or(1usize) * (16 + 1 + begun.elapsed().as_secs() as usize);
    assert!((1..=allowed).contains(&lines), "{lines} lines, {allowed} are allowed");
    let left_out = broker.metric("millrace_connection_lines_left_out_total");
    assert!(left_out >= 1000.0 - allowed as f64, "{left_out} of 1000");
}
