//! Values of settings: the kinds of values, how the broker parses them, and the texts of rejections.
//! Pure. The tables are in [`crate::config`] and [`crate::config::topic`].

use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
};

use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::config::cpu_list::{CpuList, CpuListError};

/// The unit of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Count,
    /// Users may write KiB, MiB or GiB.
    Bytes,
    Milliseconds,
    Seconds,
    Minutes,
    Hours,
}

/// The values that a setting may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    /// From `min` to `max`, both included.
    Int {
        min: i64,
        max: i64,
        unit: Unit,
    },
    /// As `Int`, or -1, which means no limit.
    IntOrUnlimited {
        min: i64,
        max: i64,
        unit: Unit,
    },
    OneOf(&'static [&'static str]),
    /// An address to listen on: host and port; port 0 picks a free one.
    Addr,
    /// Host and port, as other machines get them.
    HostPort,
    /// Brokers by node id, each with its host and port.
    Seeds,
    Path,
    /// CPUs, written as in `0-3,8`.
    Cpus,
    /// Which lines the broker logs, written as a `tracing` filter.
    LogFilter,
}

/// Why a value was rejected. Reads as the end of a sentence that begins with the setting's name and value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("must be {0}")]
    Kind(Kind),
    /// The resolver's words.
    #[error("must be {kind} that can be resolved ({0})", kind = Kind::Addr)]
    Unresolved(String),
    #[error("must be {} that can be resolved (the name has no address)", Kind::Addr)]
    NoAddress,
    #[error("must be {kind}: {0}", kind = Kind::Cpus)]
    Cpus(#[from] CpuListError),
    #[error("is out of the range of its type ({0})")]
    Type(Kind),
}

impl Kind {
    /// Checks `text` and returns it in normal form: the only form that [`Value::parse`] accepts, and the one that is
    /// shown.
    pub fn normalise(self, text: &str) -> Result<String, Unfit> {
        let text = text.trim();
        let unfit = || Unfit::Kind(self);
        match self {
            Kind::Bool => match text.to_ascii_lowercase().as_str() {
                word @ ("true" | "false") => Ok(word.to_owned()),
                _ => Err(unfit()),
            },
            Kind::Int { min, max, unit } => match unit.number(text) {
                Some(number) if (min..=max).contains(&number) => Ok(number.to_string()),
                _ => Err(unfit()),
            },
            Kind::IntOrUnlimited { min, max, unit } => match unit.number(text) {
                Some(number) if number == -1 || (min..=max).contains(&number) => Ok(number.to_string()),
                _ => Err(unfit()),
            },
            Kind::OneOf(words) => match words.iter().find(|word| word.eq_ignore_ascii_case(text)) {
                Some(word) => Ok((*word).to_owned()),
                None => Err(unfit()),
            },
            Kind::Addr => Ok(resolve(text)?.to_string()),
            Kind::HostPort => {
                let reachable = text.parse::<HostPort>().ok().filter(|addr| !addr.is_unspecified());
                reachable.map(|addr| addr.to_string()).ok_or_else(unfit)
            }
            Kind::Seeds => {
                let all = |seeds: &Seeds| seeds.iter().all(|(_, addr)| !addr.is_unspecified());
                text.parse::<Seeds>().ok().filter(all).map(|seeds| seeds.to_string()).ok_or_else(unfit)
            }
            Kind::Path => {
                if text.is_empty() {
                    return Err(unfit());
                }
                Ok(text.to_owned())
            }
            Kind::Cpus => Ok(text.parse::<CpuList>()?.to_string()),
            Kind::LogFilter => {
                // A bare word would pass as the name of a target.
                let level_or_target =
                    |part: &str| part.contains('=') || (!part.is_empty() && part.trim().parse::<LevelFilter>().is_ok());
                match text.parse::<Targets>() {
                    Ok(_) if text.split(',').all(level_or_target) => Ok(text.to_owned()),
                    _ => Err(unfit()),
                }
            }
        }
    }
}

impl Kind {
    /// The unit of the setting's numbers. Empty: the values are counts, or no numbers.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Kind::Int { unit, .. } | Kind::IntOrUnlimited { unit, .. } => unit.name().trim_start(),
            _ => "",
        }
    }
}

impl Unit {
    fn number(self, text: &str) -> Option<i64> {
        if self != Unit::Bytes {
            return text.parse().ok();
        }
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let scale = match &text[digits.len()..] {
            "" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        digits.trim_end().parse::<i64>().ok()?.checked_mul(scale)
    }

    fn name(self) -> &'static str {
        match self {
            Unit::Count => "",
            Unit::Bytes => " bytes",
            Unit::Milliseconds => " ms",
            Unit::Seconds => " s",
            Unit::Minutes => " minutes",
            Unit::Hours => " hours",
        }
    }
}

/// The range, as it follows 'must be …'.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Kind::Bool => f.write_str("true or false"),
            Kind::Int { min, max, unit } => write!(f, "{}", Range { min, max, unit }),
            Kind::IntOrUnlimited { min, max, unit } => write!(f, "{}, or -1 (no limit)", Range { min, max, unit }),
            Kind::OneOf(words) => f.write_str(&words.join(" or ")),
            Kind::Addr => f.write_str("host:port"),
            Kind::HostPort => f.write_str("host:port to which others can connect, so no port 0 and not 0.0.0.0 or [::]"),
            Kind::Seeds => f.write_str(
                "a list of id@host:port, each id once and no host 0.0.0.0 or [::], such as 1@10.0.0.1:9291,2@10.0.0.2:9291",
            ),
            Kind::Path => f.write_str("a path"),
            Kind::Cpus => f.write_str("a list of CPUs such as 0-3,8"),
            Kind::LogFilter => f.write_str("error, warn, info, debug, trace or off, also by target: info,net=debug"),
        }
    }
}

struct Range {
    min: i64,
    max: i64,
    unit: Unit,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Range { min, max, unit } if min == max => write!(f, "{min}{}", unit.name()),
            Range { min, max: i64::MAX, unit } => write!(f, "{min}{} or more", unit.name()),
            Range { min, max, unit } => write!(f, "{min} to {max}{}", unit.name()),
        }
    }
}

/// A host name may stand for several addresses. The first one counts.
fn resolve(text: &str) -> Result<SocketAddr, Unfit> {
    if let Ok(addr) = text.parse() {
        return Ok(addr);
    }
    if text.parse::<HostPort>().is_err() && !text.ends_with(":0") {
        return Err(Unfit::Kind(Kind::Addr));
    }
    let mut addrs = text.to_socket_addrs().map_err(|error| Unfit::Unresolved(error.to_string()))?;
    addrs.next().ok_or(Unfit::NoAddress)
}

/// An unresolved host, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

impl HostPort {
    /// Whether the host stands for all addresses of a machine. A broker can listen there, but no other machine can
    /// connect to it. Short forms of 0.0.0.0 resolve to it.
    fn is_unspecified(&self) -> bool {
        let zeros = !self.host.contains(|c: char| c != '0' && c != '.');
        let mapped = |addr: std::net::Ipv6Addr| addr.to_ipv4_mapped().is_some_and(|addr| addr.is_unspecified());
        zeros || self.host.parse::<std::net::Ipv6Addr>().is_ok_and(|addr| addr.is_unspecified() || mapped(addr))
    }
}

impl std::str::FromStr for HostPort {
    type Err = ();

    fn from_str(text: &str) -> Result<HostPort, ()> {
        let (host, port) = text.rsplit_once(':').ok_or(())?;
        let port = port.parse().map_err(|_| ())?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let v6_without_brackets = bare.len() == host.len() && host.contains(':');
        if bare.is_empty() || port == 0 || v6_without_brackets || bare.contains(|c: char| c.is_whitespace()) {
            return Err(());
        }
        Ok(HostPort { host: bare.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Brokers of a cluster with the addresses at which others reach them, in ascending order of node ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seeds(Vec<(i32, HostPort)>);

impl Seeds {
    pub fn iter(&self) -> impl Iterator<Item = &(i32, HostPort)> {
        self.0.iter()
    }

    /// Their node ids, ascending.
    pub fn nodes(&self) -> Vec<i32> {
        self.0.iter().map(|(node, _)| *node).collect()
    }
}

impl std::str::FromStr for Seeds {
    type Err = ();

    fn from_str(text: &str) -> Result<Seeds, ()> {
        let seed = |seed: &str| {
            let (node, address) = seed.trim().split_once('@').ok_or(())?;
            let node: i32 = node.parse().map_err(|_| ())?;
            if node < 0 { Err(()) } else { Ok((node, address.parse()?)) }
        };
        let mut seeds: Vec<(i32, HostPort)> = text.split(',').map(seed).collect::<Result<_, ()>>()?;
        seeds.sort_by_key(|(node, _)| *node);
        let twice = seeds.windows(2).any(|pair| pair[0].0 == pair[1].0);
        if twice { Err(()) } else { Ok(Seeds(seeds)) }
    }
}

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (node, address)) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{node}@{address}")?;
        }
        Ok(())
    }
}

/// The type of a setting's field. `parse` takes the output of [`Kind::normalise`]. The empty text means 'not set'.
pub trait Value: Sized {
    fn parse(text: &str) -> Option<Self>;
    /// `None`: not set.
    fn show(&self) -> Option<String>;
}

macro_rules! plain_values {
    ($($type:ty)*) => {$(
        impl Value for $type {
            fn parse(text: &str) -> Option<Self> {
                text.parse().ok()
            }
            fn show(&self) -> Option<String> {
                Some(self.to_string())
            }
        }
    )*};
}

plain_values!(bool i16 i32 i64 u32 u64 usize String SocketAddr HostPort Seeds CpuList);

impl Value for PathBuf {
    fn parse(text: &str) -> Option<PathBuf> {
        Some(PathBuf::from(text))
    }

    fn show(&self) -> Option<String> {
        Some(self.display().to_string())
    }
}

impl<V: Value> Value for Option<V> {
    fn parse(text: &str) -> Option<Option<V>> {
        if text.is_empty() { Some(None) } else { V::parse(text).map(Some) }
    }

    fn show(&self) -> Option<String> {
        self.as_ref().and_then(V::show)
    }
}

/// The name in `names` that the user probably meant by `name`.
pub fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_ascii_lowercase().replace(['_', '-'], ".");
    let (distance, nearest) = names.into_iter().map(|known| (edit_distance(&name, known), known)).min()?;
    (distance <= (nearest.len() / 3).max(1)).then_some(nearest)
}

/// Number of insertions, deletions and replacements that turn one text into the other (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Kind = Kind::Int { min: 10, max: 1 << 40, unit: Unit::Bytes };
    const COUNT: Kind = Kind::Int { min: 1, max: 9, unit: Unit::Count };
    const LIMIT: Kind = Kind::IntOrUnlimited { min: 0, max: i64::MAX, unit: Unit::Milliseconds };

    #[test]
    fn values_are_checked_by_kind() {
        let rows: &[(Kind, &str, Option<&str>)] = &[
            (Kind::Bool, "true", Some("true")),
            (Kind::Bool, " FALSE ", Some("false")),
            (Kind::Bool, "yes", None),
            (COUNT, "1", Some("1")),
            (COUNT, "9", Some("9")),
            (COUNT, "0", None),
            (COUNT, "10", None),
            (COUNT, "-1", None),
            (COUNT, "3KiB", None),
            (COUNT, "3.0", None),
            (COUNT, "", None),
            (COUNT, "99999999999999999999", None),
            (SIZE, "64MiB", Some("67108864")),
            (SIZE, "64 MiB", Some("67108864")),
            (SIZE, "1KiB", Some("1024")),
            (SIZE, "2GiB", Some("2147483648")),
            (SIZE, "10", Some("10")),
            (SIZE, "9", None),
            (SIZE, "1MB", None),
            (SIZE, "GiB", None),
            (SIZE, "9999999999GiB", None),
            (LIMIT, "-1", Some("-1")),
            (LIMIT, "0", Some("0")),
            (LIMIT, "-2", None),
            (Kind::OneOf(&["delete"]), "delete", Some("delete")),
            (Kind::OneOf(&["CreateTime", "LogAppendTime"]), "logappendtime", Some("LogAppendTime")),
            (Kind::OneOf(&["delete"]), "compact", None),
            (Kind::Addr, "127.0.0.1:0", Some("127.0.0.1:0")),
            (Kind::Addr, "[::1]:9092", Some("[::1]:9092")),
            (Kind::Addr, "127.0.0.1", None),
            (Kind::Addr, ":9092", None),
            (Kind::Addr, "127.0.0.1:65536", None),
            (Kind::HostPort, "kafka.example:9092", Some("kafka.example:9092")),
            (Kind::HostPort, "[fe80::1]:9092", Some("[fe80::1]:9092")),
            (Kind::HostPort, "fe80::1:9092", None),
            (Kind::HostPort, "kafka.example:0", None),
            (Kind::HostPort, "kafka.example", None),
            (Kind::HostPort, "a b:1", None),
            (Kind::HostPort, "0.0.0.0:9092", None),
            (Kind::HostPort, "0:9092", None),
            (Kind::HostPort, "[::]:9092", None),
            (Kind::HostPort, "[0:0::0]:9092", None),
            (Kind::HostPort, "[::ffff:0.0.0.0]:9092", None),
            (Kind::HostPort, "[::1]:9092", Some("[::1]:9092")),
            (Kind::HostPort, "0.0.0.1:9092", Some("0.0.0.1:9092")),
            (Kind::Seeds, "1@a:1,2@[::1]:2", Some("1@a:1,2@[::1]:2")),
            (Kind::Seeds, "1@a:1,2@0.0.0.0:2", None),
            (Kind::Path, "/x", Some("/x")),
            (Kind::Path, "", None),
            (Kind::Cpus, "3,0-1", Some("0-1,3")),
            (Kind::Cpus, "x", None),
            (Kind::Cpus, "0,0", None),
            (Kind::LogFilter, "info,net=debug", Some("info,net=debug")),
            (Kind::LogFilter, "loud=shout", None),
            (Kind::LogFilter, "verbose", None),
            (Kind::LogFilter, "", None),
        ];
        for (kind, text, expected) in rows {
            assert_eq!(kind.normalise(text).ok().as_deref(), *expected, "{kind:?} {text:?}");
        }
    }

    #[test]
    fn ranges_are_told_with_their_unit() {
        let told = |kind: Kind, text| kind.normalise(text).unwrap_err().to_string();
        assert_eq!(told(COUNT, "0"), "must be 1 to 9");
        assert_eq!(told(LIMIT, "-5"), "must be 0 ms or more, or -1 (no limit)");
        assert_eq!(Kind::Int { min: 1, max: 1, unit: Unit::Count }.to_string(), "1");
        assert_eq!(SIZE.to_string(), "10 to 1099511627776 bytes");
        assert_eq!([SIZE, LIMIT, COUNT, Kind::Bool].map(Kind::unit), ["bytes", "ms", "", ""]);
    }

    #[test]
    fn the_nearest_name_is_found_or_none() {
        let names = ["num.partitions", "message.max.bytes", "log.retention.ms"];
        assert_eq!(nearest("num.partition", names), Some("num.partitions"));
        assert_eq!(nearest("NUM_PARTITIONS", names), Some("num.partitions"));
        assert_eq!(nearest("max.message.bytes", names), None);
        assert_eq!(nearest("log.retention.hs", names), Some("log.retention.ms"));
        assert_eq!(nearest("zookeeper.connect", names), None);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "ab"), 2);
    }
}
