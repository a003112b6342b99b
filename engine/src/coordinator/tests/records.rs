//! The log's format: golden bytes, every version that Kafka ever wrote, and invalid bytes.

use bytes::Bytes;
use fastrand::Rng;
use net::{
    Uuid,
    records::{build::BatchBuilder, compression::Codec},
};

use super::world::{World, text};
use crate::coordinator::{CommittedOffset, Config, GroupMetadata, GroupRecord, MemberMetadata, RecordError, Unusable};

fn offset() -> CommittedOffset {
    CommittedOffset {
        topic_id: Uuid::nil(),
        offset: 0x0102,
        leader_epoch: 7,
        metadata: text("me"),
        commit_timestamp: 0x0a0b,
        expire_timestamp: None,
    }
}

fn group() -> GroupMetadata {
    GroupMetadata {
        protocol_type: text("consumer"),
        generation: 5,
        protocol: Some(text("range")),
        leader: Some(text("m1")),
        state_timestamp: 0x0c0d,
        members: vec![MemberMetadata {
            member_id: text("m1"),
            instance_id: Some(text("i")),
            client_id: text("c"),
            client_host: text("/h"),
            rebalance_timeout_ms: 0x0e,
            session_timeout_ms: 0x0f,
            subscription: Bytes::from_static(b"su"),
            assignment: Bytes::from_static(b"ass"),
        }],
    }
}

fn offset_record(value: Option<CommittedOffset>) -> GroupRecord {
    GroupRecord::Offset { group: text("g"), topic: text("to"), partition: 3, value }
}

fn group_record(value: Option<GroupMetadata>) -> GroupRecord {
    GroupRecord::Group { group: text("g"), value }
}

const OFFSET_KEY: &[u8] = b"\0\x01\0\x01g\0\x02to\0\0\0\x03";
const GROUP_KEY: &[u8] = b"\0\x02\0\x01g";
const OFFSET_3: &[u8] = b"\0\x03\0\0\0\0\0\0\x01\x02\0\0\0\x07\0\x02me\0\0\0\0\0\0\x0a\x0b";
const OFFSET_4: &[u8] = b"\0\x04\0\0\0\0\0\0\x01\x02\0\0\0\x07\x03me\0\0\0\0\0\0\x0a\x0b\x01\0\x10topic id 16 byte";
const OFFSET_1: &[u8] = b"\0\x01\0\0\0\0\0\0\x01\x02\0\x02me\0\0\0\0\0\0\x0a\x0b\0\0\0\0\0\0\0\x63";
const GROUP_3: &[u8] = b"\0\x03\0\x08consumer\0\0\0\x05\0\x05range\0\x02m1\0\0\0\0\0\0\x0c\x0d\0\0\0\x01\
\0\x02m1\0\x01i\0\x01c\0\x02/h\0\0\0\x0e\0\0\0\x0f\0\0\0\x02su\0\0\0\x03ass";

/// A record, its key and its value as bytes.
type Row = (GroupRecord, &'static [u8], Option<&'static [u8]>);

#[test]
fn golden_bytes() {
    let expiring = CommittedOffset { leader_epoch: -1, expire_timestamp: Some(0x63), ..offset() };
    let of_topic = CommittedOffset { topic_id: Uuid::from_bytes(*b"topic id 16 byte"), ..offset() };
    let empty = GroupMetadata { protocol_type: text(""), protocol: None, leader: None, members: vec![], ..group() };
    #[rustfmt::skip]
    let rows: &[Row] = &[
        (offset_record(Some(offset())), OFFSET_KEY, Some(OFFSET_3)),
        (offset_record(Some(of_topic)), OFFSET_KEY, Some(OFFSET_4)),
        (offset_record(Some(expiring)), OFFSET_KEY, Some(OFFSET_1)),
        (offset_record(None), OFFSET_KEY, None),
        (group_record(Some(group())), GROUP_KEY, Some(GROUP_3)),
        (group_record(Some(empty)), GROUP_KEY, Some(b"\0\x03\0\0\0\0\0\x05\xff\xff\xff\xff\0\0\0\0\0\0\x0c\x0d\0\0\0\0")),
        (group_record(None), GROUP_KEY, None),
    ];
    for (record, key, value) in rows {
        let encoded = record.encode();
        assert_eq!((&encoded.0[..], encoded.1.as_deref()), (*key, *value), "{record:?}");
        assert_eq!(GroupRecord::decode(Some(key), *value).as_ref(), Ok(record));
    }
}

#[test]
fn all_versions_are_read() {
    let old = CommittedOffset { leader_epoch: -1, ..offset() };
    let member = &group().members[0];
    let plain = MemberMetadata { instance_id: None, ..member.clone() };
    let plain_1 = GroupMetadata { state_timestamp: -1, members: vec![plain.clone()], ..group() };
    let plain_0 = GroupMetadata {
        members: vec![MemberMetadata { rebalance_timeout_ms: plain.session_timeout_ms, ..plain.clone() }],
        ..plain_1.clone()
    };
    #[rustfmt::skip]
    let offsets: &[(&[u8], CommittedOffset)] = &[
        (b"\0\0\0\0\0\0\0\0\x01\x02\0\x02me\0\0\0\0\0\0\x0a\x0b", old.clone()),
        (b"\0\x01\0\0\0\0\0\0\x01\x02\0\x02me\0\0\0\0\0\0\x0a\x0b\xff\xff\xff\xff\xff\xff\xff\xff", old.clone()),
        (b"\0\x02\0\0\0\0\0\0\x01\x02\0\x02me\0\0\0\0\0\0\x0a\x0b", old),
        // Compact, with an unknown tagged field at the end, or with none.
        (b"\0\x04\0\0\0\0\0\0\x01\x02\0\0\0\x07\x03me\0\0\0\0\0\0\x0a\x0b\x01\x05\x02xx", offset()),
        (b"\0\x04\0\0\0\0\0\0\x01\x02\0\0\0\x07\x03me\0\0\0\0\0\0\x0a\x0b\0", offset()),
    ];
    for (bytes, want) in offsets {
        assert_eq!(GroupRecord::decode(Some(OFFSET_KEY), Some(bytes)), Ok(offset_record(Some(want.clone()))));
        let key_0 = [&[0, 0], &OFFSET_KEY[2..]].concat();
        assert_eq!(GroupRecord::decode(Some(&key_0), Some(bytes)), Ok(offset_record(Some(want.clone()))));
    }
    #[rustfmt::skip]
    let groups: &[(&[u8], GroupMetadata)] = &[
        (b"\0\0\0\x08consumer\0\0\0\x05\0\x05range\0\x02m1\0\0\0\x01\0\x02m1\0\x01c\0\x02/h\0\0\0\x0f\0\0\0\x02su\0\0\0\x03ass", plain_0),
        (b"\0\x01\0\x08consumer\0\0\0\x05\0\x05range\0\x02m1\0\0\0\x01\0\x02m1\0\x01c\0\x02/h\0\0\0\x0e\0\0\0\x0f\0\0\0\x02su\0\0\0\x03ass", plain_1),
        (b"\0\x02\0\x08consumer\0\0\0\x05\0\x05range\0\x02m1\0\0\0\0\0\0\x0c\x0d\0\0\0\x01\0\x02m1\0\x01c\0\x02/h\0\0\0\x0e\0\0\0\x0f\0\0\0\x02su\0\0\0\x03ass",
         GroupMetadata { members: vec![plain], ..group() }),
        (b"\0\x04\x09consumer\0\0\0\x05\x06range\x03m1\0\0\0\0\0\0\x0c\x0d\x02\x03m1\x02i\x02c\x03/h\0\0\0\x0e\0\0\0\x0f\x03su\x04ass\0\0", group()),
    ];
    for (bytes, want) in groups {
        assert_eq!(GroupRecord::decode(Some(GROUP_KEY), Some(bytes)), Ok(group_record(Some(want.clone()))));
    }
}

#[test]
fn a_damaged_record_is_named() {
    let edit = |at: usize, byte: u8| {
        let mut bytes = GROUP_3.to_vec();
        bytes[at] = byte;
        GroupRecord::decode(Some(GROUP_KEY), Some(&bytes)).unwrap_err()
    };
    assert_eq!(GroupRecord::decode(None, Some(GROUP_3)), Err(RecordError::NoKey));
    assert_eq!(GroupRecord::decode(Some(b"\0\x03\0\x01g"), None), Err(RecordError::KeyVersion(3)));
    assert_eq!(GroupRecord::decode(Some(b"\xff\xff"), None), Err(RecordError::KeyVersion(-1)));
    assert_eq!(edit(1, 5), RecordError::ValueVersion(5));
    assert_eq!(edit(0, 0xff), RecordError::ValueVersion(-253));
    assert_eq!(edit(4, 0xff), RecordError::Utf8("protocol type"));
    assert_eq!(edit(2, 0x80), RecordError::Length("protocol type"));
    assert_eq!(edit(12, 0x80), RecordError::Contradiction("a negative generation"));
    let short_id = [&OFFSET_4[..27], b"\x02xx"].concat();
    assert_eq!(GroupRecord::decode(Some(OFFSET_KEY), Some(&short_id)), Err(RecordError::Length("topic id")));
    // A count of more members than there are bytes: no memory is reserved for them.
    let count = GROUP_3.len() - (4 + 3 + 3 + 4 + 4 + 4 + 6 + 7) - 4;
    assert_eq!(GROUP_3[count..count + 4], [0, 0, 0, 1]);
    assert_eq!(edit(count, 0x7f), RecordError::Cut("member id"));
    assert_eq!(edit(count, 0xff), RecordError::Length("members"));

    let broken = |change: &dyn Fn(&mut GroupMetadata)| {
        let mut value = group();
        change(&mut value);
        let (key, value) = group_record(Some(value)).encode();
        GroupRecord::decode(Some(&key), value.as_deref()).unwrap_err()
    };
    let contradiction = RecordError::Contradiction;
    assert_eq!(broken(&|g| g.protocol = None), contradiction("members without a protocol"));
    assert_eq!(broken(&|g| g.leader = Some(text("m2"))), contradiction("a leader that is not a member"));
    assert_eq!(broken(&|g| g.members.push(g.members[0].clone())), contradiction("one member twice"));
    assert_eq!(broken(&|g| g.members[0].session_timeout_ms = 0), contradiction("a session timeout below 1 ms"));
    let same_instance = |g: &mut GroupMetadata| {
        let other = MemberMetadata { member_id: text("m2"), ..g.members[0].clone() };
        g.members.push(other);
    };
    assert_eq!(broken(&same_instance), contradiction("one member twice"));
}

#[test]
fn cut_and_damaged_records_never_panic() {
    let mut rng = Rng::with_seed(1);
    for (key, value) in [(OFFSET_KEY, OFFSET_3), (OFFSET_KEY, OFFSET_4), (OFFSET_KEY, OFFSET_1), (GROUP_KEY, GROUP_3)] {
        for cut in 0..value.len() {
            assert!(GroupRecord::decode(Some(key), Some(&value[..cut])).is_err(), "{cut} bytes of {value:?}");
        }
        for cut in 0..key.len() {
            assert!(GroupRecord::decode(Some(&key[..cut]), Some(value)).is_err());
        }
        for _ in 0..20_000 {
            let mut bytes = value.to_vec();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            if let Ok(record) = GroupRecord::decode(Some(key), Some(&bytes)) {
                // Whatever is accepted can be encoded again, and decodes to the same record.
                let (key, value) = record.encode();
                assert_eq!(GroupRecord::decode(Some(&key), value.as_deref()), Ok(record));
            }
        }
    }
}

/// A record's key and value as bytes.
type KeyValue<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// Builds one batch of these records.
fn batch(records: &[KeyValue<'_>]) -> Bytes {
    let mut batch = BatchBuilder::new(Codec::None);
    for (key, value) in records {
        batch.push(0, *key, *value);
    }
    batch.finish()
}

#[test]
fn unusable_records_are_reported_and_the_rest_is_used() {
    let mut world = World::new(Config::default());
    world.store(&batch(&[
        (Some(OFFSET_KEY), Some(OFFSET_3)),
        (None, Some(OFFSET_3)),
        (Some(GROUP_KEY), Some(&GROUP_3[..20])),
        (Some(b"\0\x09"), None),
        (Some(b"\0\x01\0\x01g\0\x02to\0\0\0\x04"), Some(OFFSET_3)),
    ]));
    let mut cut = batch(&[(Some(OFFSET_KEY), None)]).to_vec();
    cut[20] ^= 1;
    world.log.push(cut.into());
    world.log.push(Bytes::from_static(b"no batch at all"));
    let transactional = BatchBuilder::new(Codec::None).producer(1, 0, 0);
    let mut transactional = {
        let mut batch = transactional;
        batch.push(0, Some(OFFSET_KEY), None);
        batch.finish().to_vec()
    };
    transactional[22] |= 1 << 4;
    world.log.push(transactional.into());
    let unusable = world.restart();
    let shown: Vec<String> = unusable.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "record at offset 1: the record has no key",
            "record at offset 2: protocol is cut off",
            "record at offset 3: key version 9 is unknown",
            "the batch can't be read: 15 bytes are too few for a record batch of 61",
            "the batch is part of a transaction",
        ]
    );
    assert!(matches!(unusable[0], Unusable::Record { offset: 1, error: RecordError::NoKey }));
    // The store detects the batch with the wrong CRC; here its records still apply.
    assert_eq!(world.coordinator.len(), 1);
}

#[test]
fn compressed_batches_are_read() {
    let mut world = World::new(Config::default());
    for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let mut batch = BatchBuilder::new(codec);
        batch.push(0, Some(format!("\0\u{1}\0\u{1}{}\0\u{2}to\0\0\0\u{3}", codec as u8).as_bytes()), Some(OFFSET_3));
        world.store(&batch.finish());
    }
    assert_eq!(world.restart(), []);
    assert_eq!(world.coordinator.len(), 4);
}
