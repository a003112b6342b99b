//! All slices at one index, as bytes. Equal slices give equal bytes.

use super::{
    PartitionLeader, SLICES, Slice, SliceId, Watermark,
    command::SHARED_MAX,
    encoding::{RestoreError, broker_in, broker_out, topic_in, topic_out},
    slice_answers::Answers,
};
use crate::generated::metadata::millrace::metadata as fb;
use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, VerifierOptions, WIPOffset};
use std::sync::Arc;
use types::{GroupId, RaftIndex, Term};

/// Encodes the slices as of `index`. All slices must be there, in any order.
pub fn join(index: RaftIndex, slices: &mut [Slice]) -> Bytes {
    slices.sort_unstable_by_key(Slice::id);
    let mut joint = Joint::with_room(64 << 10);
    for slice in slices {
        joint.add(slice);
    }
    joint.finish(index)
}

/// A snapshot that is built slice by slice. With many topics this takes a while, so the caller can yield between
/// two slices.
pub struct Joint {
    out: FlatBufferBuilder<'static>,
    slices: Vec<WIPOffset<fb::Slice<'static>>>,
}

impl Joint {
    /// Starts with a buffer of about `bytes` bytes. If the snapshot is larger, the buffer grows and its content is
    /// copied.
    pub fn with_room(bytes: usize) -> Self {
        Self { out: FlatBufferBuilder::with_capacity(bytes), slices: Vec::with_capacity(SLICES) }
    }

    /// Adds the next slice. Slices must come in order.
    pub fn add(&mut self, slice: &Slice) {
        assert_eq!(usize::from(slice.id().0), self.slices.len(), "a snapshot has every slice once, in order");
        let out = &mut self.out;
        let topics: Vec<_> = slice.topics().map(|topic| topic_out(out, topic)).collect();
        let origins = slice.answers.write(out);
        let leaders: Vec<_> = slice.leaders.iter().map(|(group, leader)| leader_out(out, *group, leader)).collect();
        let watermarks = slice.watermarks.iter().map(|(group, watermark)| watermark_out(out, *group, *watermark));
        let watermarks: Vec<_> = watermarks.collect();
        let brokers: Vec<_> = slice.brokers.values().map(|broker| broker_out(out, broker)).collect();
        let gone: Vec<u64> = slice.gone_peers.iter().copied().collect();
        let features: Vec<_> = slice
            .features
            .iter()
            .map(|(name, level)| {
                let name = Some(out.create_string(name));
                fb::Feature::create(out, &fb::FeatureArgs { name, level: *level })
            })
            .collect();
        let settings: Vec<_> = slice
            .settings
            .iter()
            .map(|((node, name), value)| {
                let args = fb::ClusterSettingArgs {
                    for_node: node.is_some(),
                    node: node.unwrap_or_default(),
                    name: Some(out.create_string(name)),
                    value: Some(out.create_string(value)),
                };
                fb::ClusterSetting::create(out, &args)
            })
            .collect();
        let args = fb::SliceArgs {
            number: slice.id().0,
            group_high: slice.group_high,
            next_producer_id: slice.next_producer_id,
            topics: Some(out.create_vector(&topics)),
            origins: origins.map(|origins| out.create_vector(&origins)),
            leaders: (!leaders.is_empty()).then(|| out.create_vector(&leaders)),
            watermarks: (!watermarks.is_empty()).then(|| out.create_vector(&watermarks)),
            brokers: (!brokers.is_empty()).then(|| out.create_vector(&brokers)),
            gone_peers: (!gone.is_empty()).then(|| out.create_vector(&gone)),
            features: (!features.is_empty()).then(|| out.create_vector(&features)),
            settings: (!settings.is_empty()).then(|| out.create_vector(&settings)),
        };
        self.slices.push(fb::Slice::create(out, &args));
    }

    pub fn finish(self, index: RaftIndex) -> Bytes {
        let Self { mut out, slices } = self;
        assert_eq!(slices.len(), SLICES, "a snapshot has every slice");
        let slices = Some(out.create_vector(&slices));
        let root = fb::Snapshot::create(&mut out, &fb::SnapshotArgs { index: index.get(), slices });
        out.finish(root, None);
        let (buffer, start) = out.collapse();
        Bytes::from(buffer).slice(start..)
    }
}

fn leader_out<'b>(
    out: &mut FlatBufferBuilder<'b>,
    group: GroupId,
    leader: &PartitionLeader,
) -> WIPOffset<fb::PartitionLeader<'b>> {
    let PartitionLeader { term, leader, ref voters } = *leader;
    let voters = Some(out.create_vector(voters));
    fb::PartitionLeader::create(out, &fb::PartitionLeaderArgs { group: group.0, term: term.0, leader, voters })
}

pub(super) fn watermark_out<'b>(
    out: &mut FlatBufferBuilder<'b>,
    group: GroupId,
    watermark: Watermark,
) -> WIPOffset<fb::Watermark<'b>> {
    let Watermark { high_watermark, log_start, end_offset } = watermark;
    fb::Watermark::create(out, &fb::WatermarkArgs { group: group.0, high_watermark, log_start, end_offset })
}

pub(super) fn watermark_in(watermark: fb::Watermark<'_>) -> Watermark {
    Watermark {
        high_watermark: watermark.high_watermark(),
        log_start: watermark.log_start(),
        end_offset: watermark.end_offset(),
    }
}

/// Least bytes of a table and of the reference to it. A builder writes each table once.
const TABLE_BYTES_MIN: usize = 8;

/// Decodes a snapshot: its index and every slice, in order. The bytes are verified first, with limits in proportion to
/// them: a snapshot has one table per partition, however many there are, but forged bytes could refer to the same part
/// a million times.
pub fn restore(bytes: &[u8]) -> Result<(RaftIndex, Vec<Slice>), RestoreError> {
    let options = VerifierOptions {
        max_tables: bytes.len() / TABLE_BYTES_MIN,
        max_apparent_size: bytes.len().saturating_mul(SHARED_MAX),
        ..VerifierOptions::default()
    };
    let snapshot = flatbuffers::root_with_opts::<fb::Snapshot<'_>>(&options, bytes)?;
    let slices: Vec<Slice> = snapshot.slices().iter().map(slice_in).collect::<Result<_, _>>()?;
    if !slices.iter().map(Slice::id).eq(SliceId::all()) {
        return Err(RestoreError::Slices);
    }
    Ok((RaftIndex::new(snapshot.index()), slices))
}

fn slice_in(from: fb::Slice<'_>) -> Result<Slice, RestoreError> {
    let mut slice = Slice::new(SliceId(from.number()));
    slice.group_high = from.group_high();
    slice.next_producer_id = from.next_producer_id();
    slice.answers = Answers::read(from.origins().into_iter().flatten())?;
    let leaders = from.leaders().into_iter().flatten();
    let leaders = leaders
        .map(|known| {
            let voters = known.voters().iter().collect();
            (GroupId(known.group()), PartitionLeader { term: Term(known.term()), leader: known.leader(), voters })
        })
        .collect();
    slice.leaders = Arc::new(leaders);
    let watermarks = from.watermarks().into_iter().flatten();
    let watermarks = watermarks.map(|watermark| (GroupId(watermark.group()), watermark_in(watermark)));
    slice.watermarks = Arc::new(watermarks.collect());
    let brokers = from.brokers().into_iter().flatten().map(broker_in);
    slice.brokers = brokers.map(|broker| (broker.node, Arc::new(broker))).collect();
    slice.gone_peers = Arc::new(from.gone_peers().into_iter().flatten().collect());
    let features = from.features().into_iter().flatten();
    slice.features = Arc::new(features.map(|feature| (feature.name().to_owned(), feature.level())).collect());
    let settings = from.settings().into_iter().flatten().map(|setting| {
        let node = setting.for_node().then(|| setting.node());
        ((node, setting.name().to_owned()), setting.value().to_owned())
    });
    slice.settings = Arc::new(settings.collect());
    let topics = from.topics().iter().map(topic_in).map(|topic| (topic.name.clone(), Arc::new(topic)));
    slice.topics = Arc::new(topics.collect());
    Ok(slice)
}
