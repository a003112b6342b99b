//! Names of topics.

/// The reason why a name cannot be a topic's name (Kafka's rule, `Topic.validate`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a topic's name has 1 to 249 characters, not {0}")]
    Length(usize),
    #[error("a topic can't be named '.' or '..'")]
    Dots,
    #[error("a topic's name can't contain '{0}', only letters, digits, '.', '_' and '-'")]
    Character(char),
}

/// Checks a topic's name.
pub fn check_topic_name(name: &str) -> Result<(), NameError> {
    const LENGTH_MAX: usize = 249;
    if let Some(other) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        return Err(NameError::Character(other));
    }
    if !(1..=LENGTH_MAX).contains(&name.len()) {
        return Err(NameError::Length(name.len()));
    }
    if matches!(name, "." | "..") {
        return Err(NameError::Dots);
    }
    Ok(())
}
