//! The README's table of settings is the one in the code.

use engine::cli::config as cli_config;

const BEGIN: &str = "<!-- settings: made by the code; a test compares -->\n";
const END: &str = "<!-- end of settings -->";

#[test]
fn the_readme_lists_the_settings_as_they_are() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let (_, rest) = readme.split_once(BEGIN).expect("the README has the table's first mark");
    let (table, _) = rest.split_once(END).expect("the README has the table's last mark");
    let expected = cli_config::markdown();
    assert!(table == expected, "README.md differs; between its marks belongs:\n\n{expected}");
}
