//! The two text formats that a scraper may ask for, and which one it gets.
//!
//! Prometheus text 0.0.4 (the exposition format page of the Prometheus documentation) and OpenMetrics 1.0. They differ in
//! how a counter's family is named (with and without `_total`), in units, in info metrics, in how `le` is written
//! (`1` and `1.0`), in what is escaped in help, and in the end mark. Not responsible for which metrics there are.

use std::fmt::Write;

use crate::runtime::histogram::Reading;

/// What a metric does over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its name ends in `_total`, but for some of Alloy's.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations by bucket.
    Histogram,
    /// Always 1, its labels are the message; its name ends in `_info`.
    Info,
}

/// What is known about a metric without its values.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name as dashboards write it.
    pub name: &'static str,
    /// What it does over time.
    pub kind: Kind,
    /// What it counts; empty where it has none (up, info).
    pub unit: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// A sentence or two for the person who reads it.
    pub help: &'static str,
}

/// How the scrape is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// OpenMetrics for a scraper that ranks it at least as high as plain text, Prometheus text for everyone else.
    pub fn negotiate<'a>(accepts: impl Iterator<Item = &'a str>) -> Self {
        let (mut open_metrics, mut prometheus) = (0.0, 0.0);
        for range in accepts.flat_map(|accept| accept.split(',')) {
            let mut parameters = range.split(';').map(str::trim);
            let media_type = parameters.next().unwrap_or_default();
            let (mut version, mut quality) = ("", 1.0);
            for parameter in parameters {
                match parameter.split_once('=') {
                    Some(("version", value)) => version = value.trim_matches('"'),
                    Some(("q", value)) => quality = value.parse::<f64>().unwrap_or(0.0),
                    _ => {}
                }
            }
            if media_type.eq_ignore_ascii_case("application/openmetrics-text")
                && matches!(version, "" | "0.0.1" | "1.0.0")
            {
                open_metrics = quality.max(open_metrics);
            } else if media_type.eq_ignore_ascii_case("text/plain") && matches!(version, "" | "0.0.4") {
                prometheus = quality.max(prometheus);
            }
        }
        if open_metrics > 0.0 && open_metrics >= prometheus {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The `Content-Type` of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A scrape being written.
#[derive(Debug)]
pub struct Encoder {
    format: Format,
    out: String,
}

impl Encoder {
    /// Nothing yet.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            out: String::with_capacity(16 << 10),
        }
    }

    /// Begins a family; its samples follow.
    pub fn family(&mut self, family: &'static Family) -> Samples<'_> {
        let open = self.format == Format::OpenMetrics;
        let (name, kind) = match (family.kind, open) {
            (Kind::Counter, true) => (strip(family.name, "_total"), "counter"),
            (Kind::Counter, false) => (family.name, "counter"),
            (Kind::Info, true) => (strip(family.name, "_info"), "info"),
            (Kind::Gauge, _) | (Kind::Info, false) => (family.name, "gauge"),
            (Kind::Histogram, _) => (family.name, "histogram"),
        };
        let help = escape(family.help, open);
        put(
            &mut self.out,
            format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"),
        );
        // OpenMetrics allows a unit only where the name ends in it.
        if open && !family.unit.is_empty() && strip(name, family.unit).ends_with('_') {
            put(&mut self.out, format_args!("# UNIT {name} {}\n", family.unit));
        }
        Samples {
            family,
            format: self.format,
            out: &mut self.out,
        }
    }

    /// Ends the scrape.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

/// Where the values of one family go.
#[derive(Debug)]
pub struct Samples<'a> {
    family: &'static Family,
    format: Format,
    out: &'a mut String,
}

impl Samples<'_> {
    /// One value; `labels` are the values of [`Family::labels`], in order.
    pub fn add(&mut self, labels: &[&str], value: impl Into<Value>) {
        self.line("", labels, None, value.into());
    }

    /// One value, where there is one.
    pub fn add_if(&mut self, labels: &[&str], value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.add(labels, value);
        }
    }

    /// One histogram.
    pub fn histogram(&mut self, labels: &[&str], reading: &Reading) {
        let mut below = 0;
        for (bound, count) in &reading.buckets {
            below += count;
            let bound = self.bound(*bound);
            self.line("_bucket", labels, Some(&bound), Value::Whole(below));
        }
        // Counted once: a core may add to the buckets at any time, and `+Inf` has to equal `_count`.
        let count = below + reading.beyond;
        self.line("_bucket", labels, Some("+Inf"), Value::Whole(count));
        self.line("_sum", labels, None, Value::Fraction(reading.seconds));
        self.line("_count", labels, None, Value::Whole(count));
    }

    fn bound(&self, bound: f64) -> String {
        match self.format {
            Format::Prometheus => format!("{bound}"),
            Format::OpenMetrics => format!("{bound:?}"),
        }
    }

    fn line(&mut self, suffix: &str, labels: &[&str], le: Option<&str>, value: Value) {
        debug_assert_eq!(labels.len(), self.family.labels.len(), "{}", self.family.name);
        self.out.push_str(self.family.name);
        self.out.push_str(suffix);
        // A few counters of Alloy's are called without the suffix that OpenMetrics demands.
        let is_counter = self.family.kind == Kind::Counter && self.format == Format::OpenMetrics;
        if is_counter && !self.family.name.ends_with("_total") {
            self.out.push_str("_total");
        }
        let le = le.map(|le| ("le", le));
        let pairs = self
            .family
            .labels
            .iter()
            .copied()
            .zip(labels.iter().copied())
            .chain(le);
        let mut separator = '{';
        for (name, value) in pairs {
            put(
                self.out,
                format_args!("{separator}{name}=\"{}\"", escape(value, true)),
            );
            separator = ',';
        }
        if separator == ',' {
            self.out.push('}');
        }
        match value {
            Value::Whole(value) => put(self.out, format_args!(" {value}\n")),
            Value::Fraction(value) => put(self.out, format_args!(" {value}\n")),
        }
    }
}

/// A sample's value.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// A count.
    Whole(u64),
    /// Seconds, mostly. Finite.
    Fraction(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Fraction(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(u64::from(value))
    }
}

fn strip<'a>(name: &'a str, suffix: &str) -> &'a str {
    name.strip_suffix(suffix).unwrap_or(name)
}

/// Backslash, LF and, where `quotes`, the double quote: label values in both formats, help in OpenMetrics.
fn escape(text: &str, quotes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_what_the_scraper_prefers() {
        use Format::{OpenMetrics, Prometheus};
        for (accept, format) in [
            ("", Prometheus),
            ("*/*", Prometheus),
            ("text/html, */*;q=0.1", Prometheus),
            ("text/plain;version=0.0.4", Prometheus),
            ("application/openmetrics-text", OpenMetrics),
            ("Application/OpenMetrics-Text; version=\"1.0.0\"", OpenMetrics),
            ("application/openmetrics-text;q=0", Prometheus),
            ("application/openmetrics-text;version=2.0.0", Prometheus),
            ("application/openmetrics-text;q=0.1,text/plain;q=0.9", Prometheus),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                 application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,\
                 text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                OpenMetrics,
            ),
        ] {
            assert_eq!(Format::negotiate([accept].into_iter()), format, "{accept}");
        }
    }

    #[test]
    fn families_are_written_as_each_format_wants_them() {
        static BYTES: Family = Family {
            name: "a_bytes_total",
            kind: Kind::Counter,
            unit: "bytes",
            labels: &["who"],
            help: "Says \"hi\".",
        };
        static INFO: Family = Family {
            name: "b_info",
            kind: Kind::Info,
            unit: "",
            labels: &[],
            help: "B.",
        };
        static TOOK: Family = Family {
            name: "took",
            kind: Kind::Histogram,
            unit: "seconds",
            labels: &[],
            help: "T.",
        };
        let reading = Reading {
            buckets: vec![(0.5, 1), (1.0, 2)],
            beyond: 1,
            seconds: 3.25,
        };
        let write = |format| {
            let mut encoder = Encoder::new(format);
            encoder.family(&BYTES).add(&["x\\y\n\"z\""], 7u64);
            encoder.family(&INFO).add(&[], 1u64);
            encoder.family(&TOOK).histogram(&[], &reading);
            encoder.finish()
        };
        assert_eq!(
            write(Format::Prometheus),
            "# HELP a_bytes_total Says \"hi\".\n# TYPE a_bytes_total counter\n\
             a_bytes_total{who=\"x\\\\y\\n\\\"z\\\"\"} 7\n\
             # HELP b_info B.\n# TYPE b_info gauge\nb_info 1\n\
             # HELP took T.\n# TYPE took histogram\n\
             took_bucket{le=\"0.5\"} 1\ntook_bucket{le=\"1\"} 3\ntook_bucket{le=\"+Inf\"} 4\ntook_sum 3.25\n\
             took_count 4\n"
        );
        assert_eq!(
            write(Format::OpenMetrics),
            "# HELP a_bytes Says \\\"hi\\\".\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n\
             a_bytes_total{who=\"x\\\\y\\n\\\"z\\\"\"} 7\n\
             # HELP b B.\n# TYPE b info\nb_info 1\n\
             # HELP took T.\n# TYPE took histogram\n\
             took_bucket{le=\"0.5\"} 1\ntook_bucket{le=\"1.0\"} 3\ntook_bucket{le=\"+Inf\"} 4\ntook_sum 3.25\n\
             took_count 4\n# EOF\n"
        );
    }
}
