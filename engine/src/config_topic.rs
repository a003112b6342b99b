//! stand-in
use crate::config::Config;
use std::collections::BTreeMap;
use wal::log::LogOptions;
pub struct TopicConfig {
    pub max_message_bytes: usize,
    pub retention_ms: Option<u64>,
    pub retention_bytes: Option<u64>,
}
impl TopicConfig {
    pub fn resolve(_: &BTreeMap<String, String>, _: &Config) -> Self {
        Self { max_message_bytes: 1 << 20, retention_ms: None, retention_bytes: None }
    }
    pub fn stamps(&self) -> bool {
        false
    }
    pub fn log_options(&self) -> LogOptions {
        LogOptions::default()
    }
}
pub struct Described {
    pub name: &'static str,
    pub value: String,
    pub source: i8,
}
pub fn describe(_: &BTreeMap<String, String>, _: &Config) -> Vec<Described> {
    vec![]
}
pub fn validate(_: &str, _: &str) -> Result<(), String> {
    Ok(())
}
