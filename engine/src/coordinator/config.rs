//! The coordinator's settings and bounds, named as in Kafka where Kafka has them.

/// Most bytes of one string stored in the log, where lengths are INT16. A request with a longer string is rejected.
pub(crate) const STRING_BYTES_MAX: usize = i16::MAX as usize;

/// Most bytes of one member's ids, protocol names and metadata: 1 MiB. A larger join is rejected with
/// INVALID_REQUEST.
pub const MEMBER_BYTES_MAX: usize = 1 << 20;

/// Most issued member ids per group whose clients have not yet joined with them (KIP-394). When full, the oldest is
/// evicted. If its client still comes, it gets UNKNOWN_MEMBER_ID and asks for another id.
pub const PENDING_MEMBERS_MAX: usize = 1024;

/// Tombstones are written in batches of about this many bytes (256 KiB), below any sensible `max.message.bytes`.
pub(crate) const TOMBSTONE_BATCH_BYTES: usize = 256 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `group.min.session.timeout.ms`: a shorter session timeout is rejected with INVALID_SESSION_TIMEOUT.
    pub group_min_session_timeout_ms: i32,
    /// `group.max.session.timeout.ms`: a longer session timeout is rejected with INVALID_SESSION_TIMEOUT.
    pub group_max_session_timeout_ms: i32,
    /// `group.initial.rebalance.delay.ms`: how long an empty group waits for more members after the first has joined.
    pub group_initial_rebalance_delay_ms: i32,
    /// `group.max.size`: members per group. One more is rejected with GROUP_MAX_SIZE_REACHED.
    pub group_max_size: usize,
    /// How long a new member's first JoinGroup may wait, since the member cannot send heartbeats yet. Fixed in Kafka.
    pub group_new_member_join_timeout_ms: i32,
    /// `offset.metadata.max.bytes`, counted in UTF-16 units as in Kafka. Longer metadata is rejected with
    /// OFFSET_METADATA_TOO_LARGE.
    pub offset_metadata_max_bytes: usize,
    /// `offsets.retention.minutes`, in ms. The time counts from when the group became empty, or else from the commit.
    pub offsets_retention_ms: i64,
    /// `offsets.retention.check.interval.ms`.
    pub offsets_retention_check_interval_ms: i64,
    /// Most groups of one coordinator. One more is rejected with COORDINATOR_NOT_AVAILABLE.
    pub groups_max: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            group_min_session_timeout_ms: 6_000,
            group_max_session_timeout_ms: 1_800_000,
            group_initial_rebalance_delay_ms: 3_000,
            group_max_size: 10_000,
            group_new_member_join_timeout_ms: 300_000,
            offset_metadata_max_bytes: 4096,
            offsets_retention_ms: 7 * 24 * 3_600_000,
            offsets_retention_check_interval_ms: 600_000,
            groups_max: 100_000,
        }
    }
}

impl Config {
    /// Asserts what the reader of the configuration must have checked.
    pub(crate) fn assert_possible(&self) {
        assert!(self.group_min_session_timeout_ms > 0, "the minimum session timeout is above 0");
        assert!(self.group_min_session_timeout_ms <= self.group_max_session_timeout_ms, "minimum is not above maximum");
        assert!(self.group_initial_rebalance_delay_ms >= 0 && self.group_new_member_join_timeout_ms > 0);
        assert!(self.group_max_size > 0 && self.groups_max > 0, "the limits are above 0");
        assert!(self.offset_metadata_max_bytes * 3 <= STRING_BYTES_MAX, "metadata fits its length in the log");
        assert!(self.offsets_retention_ms > 0 && self.offsets_retention_check_interval_ms > 0);
    }
}
