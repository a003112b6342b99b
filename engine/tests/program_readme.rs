//! The documented tables of settings equal those in the code.

use engine::cli::config as cli_config;

/// Compares the part of deploy/docs/configuration.md between two marks with the table that the code makes.
fn compare(begin: &str, end: &str, expected: &str) {
    let reference =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/docs/configuration.md")).unwrap();
    let (_, rest) = reference.split_once(begin).expect("the page has the table's first mark");
    let (table, _) = rest.split_once(end).expect("the page has the table's last mark");
    assert!(table == expected, "deploy/docs/configuration.md differs; after '{}' belongs:\n\n{expected}", begin.trim());
}

#[test]
fn the_reference_lists_the_settings_as_they_are() {
    let begin = "<!-- settings: made by the code; a test compares -->\n";
    compare(begin, "<!-- end of settings -->", &cli_config::markdown());
}

#[test]
fn the_reference_lists_the_topic_settings_as_they_are() {
    let begin = "<!-- topic settings: made by the code; a test compares -->\n";
    compare(begin, "<!-- end of topic settings -->", &cli_config::topics_markdown());
}

#[test]
fn the_reference_lists_the_topic_settings_without_effect_as_they_are() {
    let begin = "<!-- topic settings without effect: made by the code; a test compares -->\n";
    compare(begin, "<!-- end of topic settings without effect -->", &cli_config::unobeyed_markdown());
}
