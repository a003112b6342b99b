//! `millrace config`: all settings as text. The table in deploy/docs/configuration.md comes from the same rows.

use std::fmt::Write as _;

use crate::config::{Config, SETTINGS, Source};

/// All settings with the values in force.
pub fn listing(config: &Config) -> String {
    let mut out = String::new();
    for setting in SETTINGS {
        let value = config.value(setting.name).unwrap_or_else(|| "(not set)".to_owned());
        let source = match config.source(setting.name) {
            Source::Default => "default",
            Source::File => "file",
            Source::Variable => "variable",
            Source::Flag => "flag",
        };
        let flag = setting.flag.map(|flag| format!(", --{flag}")).unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "{} = {value} ({source})\n    {}\n    {}; {}{flag}\n",
            setting.name,
            setting.doc(),
            setting.kind,
            setting.variable()
        );
    }
    out
}

/// The table in deploy/docs/configuration.md, between its two markers.
pub fn markdown() -> String {
    let mut out = String::from("| Setting | Default | Range | Meaning |\n|---|---|---|---|\n");
    for setting in SETTINGS {
        let flag = setting.flag.map(|flag| format!(" (`--{flag}`)")).unwrap_or_default();
        let default = match setting.default {
            "" => String::new(),
            default => format!("`{default}`"),
        };
        // Writing to a string does not fail.
        let _ = writeln!(out, "| `{}`{flag} | {default} | {} | {} |", setting.name, setting.kind, setting.doc());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Place, setting};

    #[test]
    fn every_setting_is_listed_with_its_value() {
        let mut config = Config::default();
        let place = Place { source: Source::File, named: "test".to_owned() };
        config.set(setting("num.partitions").unwrap(), "7", &place).unwrap();
        let listing = listing(&config);
        for setting in SETTINGS {
            assert!(listing.contains(&format!("{} = ", setting.name)) && listing.contains(&setting.variable()));
        }
        assert!(listing.contains("num.partitions = 7 (file)"), "{listing}");
        assert!(listing.contains("cores = (not set) (default)"), "{listing}");
        assert!(listing.contains("1 to 100000; MILLRACE_NUM_PARTITIONS"), "{listing}");
    }

    #[test]
    fn a_row_of_the_markdown_has_four_cells() {
        for row in markdown().lines() {
            assert_eq!(row.matches('|').count(), 5, "{row}");
        }
    }
}
