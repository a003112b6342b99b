//! The documented table of settings equals the one in the code.

use engine::cli::config as cli_config;

const BEGIN: &str = "<!-- settings: made by the code; a test compares -->\n";
const END: &str = "<!-- end of settings -->";

#[test]
fn the_reference_lists_the_settings_as_they_are() {
    let reference =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/docs/configuration.md")).unwrap();
    let (_, rest) = reference.split_once(BEGIN).expect("the page has the table's first mark");
    let (table, _) = rest.split_once(END).expect("the page has the table's last mark");
    let expected = cli_config::markdown();
    assert!(table == expected, "deploy/docs/configuration.md differs; between its marks belongs:\n\n{expected}");
}
