//! Reads gauges and histograms, by core, from a broker's /metrics page (Prometheus text format 0.0.4).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

/// Requests `GET /metrics` from an admin port and returns the page.
pub fn metrics(admin: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, page)) if head.split(' ').nth(1) == Some("200") => Ok(page.to_owned()),
        _ => Err(io::Error::other(match answer.lines().next() {
            Some(first) => format!("GET /metrics was answered with {first:?}"),
            None => "GET /metrics got no answer; is it a broker's admin address (--admin-addr)?".to_owned(),
        })),
    }
}

/// A histogram's cumulative buckets: each counts all observations up to its bound.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Buckets {
    /// Bounds in seconds, ascending, the last infinite. Counts are cumulative.
    up_to: Vec<(f64, u64)>,
    sum_s: f64,
}

impl Buckets {
    pub fn count(&self) -> u64 {
        self.up_to.last().map_or(0, |(_, count)| *count)
    }

    pub fn sum_s(&self) -> f64 {
        self.sum_s
    }

    /// The observations since `before`, an earlier page of the same histogram. If a count went down, the broker was
    /// restarted, and all observations are new.
    pub fn since(&self, before: &Buckets) -> Buckets {
        let is_later = self.up_to.len() == before.up_to.len()
            && self.up_to.iter().zip(&before.up_to).all(|(now, before)| now.1 >= before.1);
        if !is_later {
            return self.clone();
        }
        let up_to = self.up_to.iter().zip(&before.up_to).map(|((bound, now), (_, before))| (*bound, now - before));
        Buckets { up_to: up_to.collect(), sum_s: self.sum_s - before.sum_s }
    }

    /// The upper bound of the quantile's bucket, in milliseconds, so at most one bucket too high. 0 if nothing was
    /// counted. A quantile beyond the last finite bound returns that bound.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        let rank = (quantile * self.count() as f64).ceil().max(1.0) as u64;
        let finite = || self.up_to.iter().filter(|(bound, _)| bound.is_finite());
        let found = finite().find(|(_, count)| *count >= rank).or_else(|| finite().next_back());
        found.filter(|_| self.count() > 0).map_or(0.0, |(bound, _)| (bound * 1e9).round() / 1e6)
    }
}

/// The histograms with this name, by core.
pub fn histograms(page: &str, name: &str) -> BTreeMap<usize, Buckets> {
    let mut found: BTreeMap<usize, Buckets> = BTreeMap::new();
    for Line { suffix, labels, value } in page.lines().filter_map(|line| Line::parse(line, name)) {
        let Some(core) = label(labels, "core").and_then(|core| core.parse().ok()) else { continue };
        let buckets = found.entry(core).or_default();
        match (suffix, label(labels, "le").and_then(|bound| bound.parse().ok())) {
            ("_bucket", Some(bound)) => buckets.up_to.push((bound, value as u64)),
            ("_sum", None) => buckets.sum_s = value,
            _ => {}
        }
    }
    found.retain(|_, buckets| !buckets.up_to.is_empty());
    found
}

/// The gauges with this name, by core.
pub fn gauges(page: &str, name: &str) -> BTreeMap<usize, f64> {
    let lines = page.lines().filter_map(|line| Line::parse(line, name)).filter(|line| line.suffix.is_empty());
    lines.filter_map(|line| Some((label(line.labels, "core")?.parse().ok()?, line.value))).collect()
}

/// `NAME SUFFIX { LABELS } VALUE`.
struct Line<'a> {
    suffix: &'a str,
    labels: &'a str,
    value: f64,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str, name: &str) -> Option<Line<'a>> {
        let (suffix, rest) = line.strip_prefix(name)?.split_once('{')?;
        let (labels, value) = rest.rsplit_once("} ")?;
        Some(Line { suffix, labels, value: value.trim().parse().ok()? })
    }
}

/// The value of a label. Splitting at commas suffices: no label value of the broker contains a comma or a quote.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let value = |label: &'a str| label.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"');
    labels.split(',').find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::net::TcpListener;
    use std::thread;

    const PAGE: &str = "\
# HELP millrace_turn_seconds One turn.
# TYPE millrace_turn_seconds histogram
millrace_turn_seconds_bucket{core=\"0\",le=\"0.000004096\"} 90
millrace_turn_seconds_bucket{core=\"0\",le=\"0.001\"} 99
millrace_turn_seconds_bucket{core=\"0\",le=\"2\"} 99
millrace_turn_seconds_bucket{core=\"0\",le=\"+Inf\"} 100
millrace_turn_seconds_sum{core=\"0\"} 40.5
millrace_turn_seconds_count{core=\"0\"} 100
millrace_turn_seconds_bucket{core=\"11\",le=\"0.000004096\"} 1
millrace_turn_seconds_bucket{core=\"11\",le=\"0.001\"} 2
millrace_turn_seconds_bucket{core=\"11\",le=\"2\"} 3
millrace_turn_seconds_bucket{core=\"11\",le=\"+Inf\"} 3
millrace_turn_seconds_sum{core=\"11\"} 0.25
millrace_turn_seconds_count{core=\"11\"} 3
millrace_turn_seconds_more_bucket{core=\"0\",le=\"+Inf\"} 7
# TYPE millrace_leads gauge
millrace_leads{core=\"0\"} 1
millrace_leads{core=\"1\"} 0
millrace_leads_once{core=\"0\"} 5
";

    #[test]
    fn histograms_are_read_by_core() {
        let found = histograms(PAGE, "millrace_turn_seconds");
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [0, 11]);
        let (first, other) = (&found[&0], &found[&11]);
        assert_eq!((first.count(), first.sum_s()), (100, 40.5));
        assert_eq!((other.count(), other.sum_s()), (3, 0.25));
        for (quantile, ms) in [(0.0, 0.004096), (0.5, 0.004096), (0.9, 0.004096), (0.91, 1.0), (0.99, 1.0)] {
            assert!((first.quantile_ms(quantile) - ms).abs() < 1e-9, "{quantile}: {}", first.quantile_ms(quantile));
        }
        assert_eq!(first.quantile_ms(1.0), 2000.0, "what has no bound lies beyond the last that there is");
        assert!(histograms(PAGE, "millrace_nothing").is_empty());
        assert_eq!(Buckets::default().quantile_ms(0.5), 0.0);
    }

    #[test]
    fn the_difference_of_two_pages_is_what_came_between() {
        let before = &histograms(PAGE, "millrace_turn_seconds")[&11];
        let later = PAGE.replace("le=\"2\"} 3", "le=\"2\"} 13").replace("} 3\n", "} 23\n").replace("0.25", "60.25");
        let since = histograms(&later, "millrace_turn_seconds")[&11].since(before);
        assert_eq!((since.count(), since.sum_s()), (20, 60.0));
        assert_eq!(since.quantile_ms(0.5), 2000.0);
        // The earlier page came from another process.
        assert_eq!(before.since(&histograms(&later, "millrace_turn_seconds")[&11]), *before);
    }

    #[test]
    fn gauges_are_read_by_core() {
        assert_eq!(gauges(PAGE, "millrace_leads"), BTreeMap::from([(0, 1.0), (1, 0.0)]));
    }

    #[test]
    fn a_page_is_what_the_admin_port_answers_with_200() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            for answer in ["HTTP/1.1 200 OK\r\nx: y\r\n\r\na 1\n", "HTTP/1.1 404 Not Found\r\n\r\n"] {
                let (mut stream, _) = listener.accept().unwrap();
                let asked = io::BufReader::new(&stream).lines().map_while(Result::ok).find(|line| line.is_empty());
                assert_eq!(asked.as_deref(), Some(""));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        assert_eq!(metrics(addr).unwrap(), "a 1\n");
        let refused = metrics(addr).unwrap_err().to_string();
        assert!(refused.contains("404 Not Found"), "{refused}");
        server.join().unwrap();
    }
}
