//! Authorised operations (KIP-430): the operations that a client may perform on a resource, as a bit field.
//!
//! There is no authorizer yet, so each client may perform all operations of the kind of resource (Kafka's
//! `AclEntry.supportedOperations`).

/// Numbers of operations (`AclOperation.code`). Each is the position of its bit.
const READ: u8 = 3;
const WRITE: u8 = 4;
const CREATE: u8 = 5;
const DELETE: u8 = 6;
const ALTER: u8 = 7;
const DESCRIBE: u8 = 8;
const CLUSTER_ACTION: u8 = 9;
const DESCRIBE_CONFIGS: u8 = 10;
const ALTER_CONFIGS: u8 = 11;
const IDEMPOTENT_WRITE: u8 = 12;

const fn bits(operations: &[u8]) -> i32 {
    let (mut bits, mut at) = (0, 0);
    while at < operations.len() {
        bits |= 1 << operations[at];
        at += 1;
    }
    bits
}

/// Operations on a topic.
pub const TOPIC: i32 = bits(&[READ, WRITE, CREATE, DELETE, ALTER, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS]);

/// Operations on a consumer group.
pub const GROUP: i32 = bits(&[READ, DELETE, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS]);

/// Operations on the cluster.
pub const CLUSTER: i32 =
    bits(&[CREATE, ALTER, DESCRIBE, CLUSTER_ACTION, DESCRIBE_CONFIGS, ALTER_CONFIGS, IDEMPOTENT_WRITE]);

/// The value for operations that the request did not ask for.
pub const NOT_ASKED: i32 = i32::MIN;

/// The operations, if the request asked for them.
pub fn told(asked: bool, operations: i32) -> i32 {
    if asked { operations } else { NOT_ASKED }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the values that a Kafka 4 broker without an authorizer answers.
    #[test]
    fn operations_are_kafkas_bit_fields() {
        assert_eq!((TOPIC, GROUP, CLUSTER), (0xdf8, 0xd48, 0x1fa0));
        assert_eq!((told(true, TOPIC), told(false, TOPIC)), (TOPIC, i32::MIN));
    }
}
