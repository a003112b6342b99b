//! The documented tables of settings and of exit statuses equal those in the code.

use engine::cli::{config as cli_config, status};
use std::path::Path;

/// Compares the part of a page between two marks with the table that the code makes.
fn compare_in(page: &str, begin: &str, end: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/docs").join(page);
    let reference = std::fs::read_to_string(path).unwrap();
    let (_, rest) = reference.split_once(begin).expect("the page has the table's first mark");
    let (table, _) = rest.split_once(end).expect("the page has the table's last mark");
    assert!(table == expected, "deploy/docs/{page} differs; after '{}' belongs:\n\n{expected}", begin.trim());
}

fn compare(begin: &str, end: &str, expected: &str) {
    compare_in("configuration.md", begin, end, expected);
}

#[test]
fn the_manual_lists_the_exit_statuses_as_they_are() {
    let begin = "<!-- exit statuses: made by the code; a test compares -->\n";
    compare_in("operating.md", begin, "<!-- end of exit statuses -->", &status::markdown());
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
