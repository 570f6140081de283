//! Scrapes of a program's metrics, and promtool's opinion of them. `scripts/setup.sh` fetches
//! promtool.

use crate::process::PATIENCE;
use ring_metrics::{Format, Kind, Metric, Program, catalogue};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A scrape in the Prometheus text format.
#[derive(Debug)]
pub struct Samples {
    pub text: String,
    /// Values by what stands before them: the name and the labels.
    values: BTreeMap<String, f64>,
}

impl Samples {
    pub fn of(text: String) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        };
        let values = lines.map(sample).collect();
        Self { text, values }
    }

    /// Returns the value of a series, which is named with its labels, as in `x_total{ring="a"}`.
    pub fn get(&self, series: &str) -> Option<f64> {
        self.values.get(series).copied()
    }

    /// Returns the value of a ring's series without other labels.
    pub fn of_ring(&self, name: &str, ring: &str) -> f64 {
        let series = format!("{name}{{ring=\"{ring}\"}}");
        self.get(&series).unwrap_or_else(|| panic!("no {series} in {}", self.text))
    }

    /// Returns the names of the families and the names of their labels.
    fn families(&self) -> BTreeSet<(String, Vec<String>)> {
        let heads = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let kinds: BTreeMap<_, _> = heads.filter_map(|head| head.split_once(' ')).collect();
        let family = |series: &str| {
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let ends = ["_bucket", "_sum", "_count"].iter();
            let mut family = ends.filter_map(|end| name.strip_suffix(end));
            let family = family.find(|name| kinds.get(name) == Some(&"histogram"));
            let pairs = labels.trim_end_matches('}').split(',');
            let names = pairs.filter_map(|pair| pair.split_once('=')).map(|(name, _)| name);
            let names = names.filter(|name| *name != "le").map(str::to_owned).collect();
            (family.unwrap_or(name).to_owned(), names)
        };
        self.values.keys().map(|series| family(series)).collect()
    }

    /// Checks that the scrape has the metrics of the catalogue that are `program`'s, and no others.
    ///
    /// # Panics
    /// If it does not.
    pub fn assert_complete(&self, program: Program) {
        let its = |metric: &&&Metric| metric.is_of(program);
        let family = |metric: &&Metric| {
            (metric.full_name(), metric.labels.iter().map(|label| (*label).to_owned()).collect())
        };
        let expected: BTreeSet<_> = catalogue::ALL.iter().filter(its).map(family).collect();
        assert_eq!(self.families(), expected, "left: the scrape, right: the catalogue");
        for metric in catalogue::ALL.iter().filter(its) {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge | Kind::Info => "gauge",
                Kind::Histogram => "histogram",
            };
            let head = format!("# TYPE {} {kind}\n", metric.full_name());
            assert!(self.text.contains(&head), "{} lacks {head}", self.text);
        }
    }

    /// Checks that promtool has no objection.
    ///
    /// # Panics
    /// If it has one.
    pub fn assert_lints(&self) {
        let mut child = Command::new(promtool())
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(self.text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && words.is_empty(), "{words}\n{}", self.text);
    }
}

/// Returns the promtool that scripts/setup.sh has fetched.
pub fn promtool() -> PathBuf {
    if let Some(path) = std::env::var_os("BLOCKRING_PROMTOOL") {
        return path.into();
    }
    let this = std::env::current_exe().unwrap();
    let mut places = this.ancestors().map(|folder| folder.join("promtool/promtool"));
    places.find(|path| path.is_file()).expect("promtool is missing: run scripts/fetch-promtool.sh")
}

/// A connection to a server of metrics.
pub trait Client: Read + Write {}
impl<T: Read + Write> Client for T {}

/// Connects to a socket, or to `127.0.0.1:PORT`.
pub fn connect(address: &Path) -> std::io::Result<Box<dyn Client>> {
    if let Some(Ok(address)) = address.to_str().map(str::parse::<SocketAddr>) {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        return Ok(Box::new(stream));
    }
    let stream = UnixStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(Box::new(stream))
}

/// Asks for `path`. Returns the whole answer.
pub fn get(address: &Path, path: &str, headers: &str) -> std::io::Result<String> {
    let mut client = connect(address)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nCache-Control: no-cache\r\n{headers}\r\n"
    );
    client.write_all(request.as_bytes())?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Scrapes the server at a socket or port.
pub fn scrape(address: &Path) -> Samples {
    let answer = get(address, "/metrics", "").unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(Format::Prometheus.content_type()), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    Samples::of(body.to_owned())
}
