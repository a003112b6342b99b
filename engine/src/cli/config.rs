//! `millrace config`: all settings as text. The tables in deploy/docs/configuration.md come from the same rows.

use std::fmt::Write as _;

use crate::config::{Config, SETTINGS, Source, setting_type, topic::TOPIC_SETTINGS, unobeyed::UNOBEYED};

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

/// The broker's settings in deploy/docs/configuration.md, between their two markers.
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

/// The topics' settings in deploy/docs/configuration.md, between their two markers.
pub fn topics_markdown() -> String {
    let mut out = String::from(
        "| Setting | Type | Unit | Default | Range | Meaning | Default from |\n|---|---|---|---|---|---|---|\n",
    );
    for setting in TOPIC_SETTINGS {
        let config_type = setting_type::name(setting_type::of(setting.name, setting.kind));
        let inherits: Vec<String> = setting.inherits().iter().map(|name| format!("`{name}`")).collect();
        let from = if inherits.is_empty() { "fixed".to_owned() } else { inherits.join(", ") };
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "| `{}` | {config_type} | {} | `{}` | {} | {} | {from} |",
            setting.name,
            setting.kind.unit(),
            setting.default_value(),
            setting.kind,
            setting.doc
        );
    }
    out
}

/// Kafka's topic settings without an effect in deploy/docs/configuration.md, between their two markers.
pub fn unobeyed_markdown() -> String {
    let mut out = String::from("| Setting | Accepted value | Reason |\n|---|---|---|\n");
    for setting in UNOBEYED {
        let value = match setting.value {
            Some("") => "the empty list".to_owned(),
            Some(value) => format!("`{value}`"),
            None => "none".to_owned(),
        };
        // Writing to a string does not fail.
        let _ = writeln!(out, "| `{}` | {value} | {} |", setting.name, setting.why);
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
    fn every_row_of_a_table_has_all_cells() {
        for (table, cells) in [(markdown(), 4), (topics_markdown(), 7), (unobeyed_markdown(), 3)] {
            for row in table.lines() {
                assert_eq!(row.matches('|').count(), cells + 1, "{row}");
            }
        }
    }

    #[test]
    fn a_topics_setting_is_listed_with_the_settings_that_it_inherits() {
        let table = topics_markdown();
        let row = table.lines().find(|row| row.starts_with("| `retention.ms` |")).expect("the setting has a row");
        assert!(row.starts_with("| `retention.ms` | long | ms | `604800000` | 0 to "), "{row}");
        assert!(row.ends_with("| `log.retention.ms`, `log.retention.minutes`, `log.retention.hours` |"), "{row}");
    }
}
