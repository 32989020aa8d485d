//! One JSON line per request, and bodies as files: what arrived, for a test to look at.
//!
//! A line is written before its request is answered, so whoever has the answer finds the line. The write blocks the core;
//! this is for tests, not for benchmarks. Not responsible for judging requests (`verify.rs`).

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::verify::Route;
use crate::runtime::clock;

/// Where requests are written down.
#[derive(Debug)]
pub struct Recorder {
    lines: Mutex<Lines>,
    bodies: Option<PathBuf>,
}

#[derive(Debug)]
struct Lines {
    file: File,
    count: u64,
}

/// A complete request, as it stands in memory.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Where it goes.
    pub route: Route,
    /// As sent.
    pub method: &'a [u8],
    /// Still percent-encoded.
    pub path: &'a [u8],
    /// Still percent-encoded, without the `?`.
    pub query: &'a [u8],
    /// In order.
    pub headers: &'a [(&'a [u8], &'a [u8])],
    /// Without chunk framing, otherwise as it came.
    pub body: &'a [u8],
}

#[derive(Serialize)]
struct Line<'a> {
    n: u64,
    unix_ms: u64,
    route: &'static str,
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body_bytes: usize,
    sha256: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_file: Option<&'a str>,
    status: u16,
}

impl Recorder {
    /// Writes lines to a new `file`, and bodies into the folder `bodies`, which is made if it is missing.
    ///
    /// # Errors
    /// When either cannot be made.
    pub fn create(file: &Path, bodies: Option<&Path>) -> io::Result<Self> {
        if let Some(bodies) = bodies {
            std::fs::create_dir_all(bodies)?;
        }
        let file = File::create(file)?;
        Ok(Self {
            lines: Mutex::new(Lines { file, count: 0 }),
            bodies: bodies.map(Path::to_owned),
        })
    }

    /// Writes down one request and the status it is about to be answered with (0: none that is true).
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, request: Request<'_>, status: u16) -> io::Result<()> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let sha256 = Sha256::digest(request.body)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let header = |(name, value): &(&[u8], &[u8])| (text(name).to_ascii_lowercase(), text(value));
        let headers = request.headers.iter().map(header).collect();
        let mut lines = self
            .lines
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let n = lines.count;
        lines.count += 1;
        let body_file = format!("{n:06}.body");
        if let Some(bodies) = &self.bodies {
            std::fs::write(bodies.join(&body_file), request.body)?;
        }
        let line = Line {
            n,
            unix_ms: u64::try_from(clock::unix_now().as_millis()).unwrap_or(u64::MAX),
            route: request.route.name(),
            method: text(request.method),
            path: text(request.path),
            query: text(request.query),
            headers,
            body_bytes: request.body.len(),
            sha256,
            body_file: self.bodies.as_ref().map(|_| &*body_file),
            status,
        };
        let mut line = serde_json::to_vec(&line)?;
        line.push(b'\n');
        lines.file.write_all(&line)
    }
}
