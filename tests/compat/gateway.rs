//! The gateway under test: the real `pyrotee run`, asked to behave as Alloy does (`--ack all`), on ports of its own.
//!
//! Also here: how a case is run under an engine, and the short ways to send one request.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use pyrotee::runtime::engine::{EngineChoice, probe};

use super::scripted::Scripted;
use super::support::{Answer, Client, DEADLINE, post};

/// Path of `/ingest` with a name that is good.
pub const INGEST: &str = "/ingest?name=app";
/// Path of Push.
pub const PUSH: &str = "/push.v1.PusherService/Push";

/// What a gateway is started with where a case says nothing else: quick to retry and quick to give up.
const DEFAULTS: [(&str, &str); 7] = [
    ("--ack", "all"),
    ("--admin", "off"),
    ("--listen", "127.0.0.1:0"),
    ("--log-level", "debug"),
    ("--max-backoff", "20ms"),
    ("--max-retries", "3"),
    ("--min-backoff", "5ms"),
];

/// Which engine a case runs under.
#[derive(Clone, Copy, Debug)]
pub struct Engine(pub &'static str);

/// Runs `case` under an engine, unless the host or `PYROTEE_ENGINES` (a comma-separated list) does not allow it.
pub fn under(engine: &'static str, case: fn(Engine)) {
    static REFUSED: OnceLock<Option<String>> = OnceLock::new();
    if let Ok(wanted) = std::env::var("PYROTEE_ENGINES")
        && !wanted.split(',').any(|one| one.trim() == engine)
    {
        eprintln!("SKIPPED under {engine}: PYROTEE_ENGINES={wanted}");
        return;
    }
    let refused = REFUSED.get_or_init(|| {
        let verdict = probe(EngineChoice::IoUring);
        verdict.err().map(|refused| refused.to_string())
    });
    match refused {
        Some(refused) if engine == "io_uring" => eprintln!("SKIPPED under io_uring: {refused}"),
        _ => case(Engine(engine)),
    }
}

/// Makes two tests of every case named: one for each engine.
macro_rules! under_both_engines {
    ($($(#[$meta:meta])* $case:ident),* $(,)?) => {
        $(
            mod $case {
                #[test]
                fn io_uring() {
                    $crate::gateway::under("io_uring", super::$case);
                }

                #[test]
                fn epoll() {
                    $crate::gateway::under("epoll", super::$case);
                }
            }
        )*
    };
}
pub(crate) use under_both_engines;

/// A running gateway, killed when dropped; what it logged is shown when the test fails.
pub struct Gateway {
    child: Child,
    /// Where clients push to.
    pub address: SocketAddr,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    text: Mutex<String>,
    news: Condvar,
}

impl Gateway {
    /// Starts one that forwards to `destinations`, named a, b, c in order, with further flags.
    pub fn to(engine: Engine, destinations: &[&Scripted], flags: &[&str]) -> Self {
        let to: Vec<String> = destinations
            .iter()
            .zip('a'..)
            .map(|(destination, name)| format!("{name}={}", destination.url()))
            .collect();
        let mut args: Vec<&str> = to.iter().flat_map(|to| ["--to", to]).collect();
        args.extend(flags);
        Self::start(engine, &args)
    }

    /// Starts one with flags alone.
    pub fn start(engine: Engine, flags: &[&str]) -> Self {
        Self::start_with(engine, flags, &[])
    }

    /// Starts one with flags, and these variables in its environment.
    pub fn start_with(engine: Engine, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pyrotee"));
        command.args(["run", "--engine", engine.0]).args(flags);
        for (flag, value) in DEFAULTS {
            if !flags.contains(&flag) {
                command.args([flag, value]);
            }
        }
        let mut child = command
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let log = Arc::new(Log::default());
        let (stderr, writing) = (child.stderr.take().expect("piped"), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut text = writing.text.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&line);
                text.push('\n');
                writing.news.notify_all();
            }
        });
        let mut gateway = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            log,
        };
        let line = gateway.log_line("listening address=");
        gateway.address = line.trim().parse().expect("the log names the address");
        gateway
    }

    /// Waits for `mark` in the log and returns what follows it on its line.
    pub fn log_line(&self, mark: &str) -> String {
        let find = |text: &str| {
            let (_, rest) = text.split_once(mark)?;
            rest.contains('\n')
                .then(|| rest.lines().next().unwrap_or_default().to_owned())
        };
        let text = self.log.text.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .log
            .news
            .wait_timeout_while(text, DEADLINE, |text| find(text).is_none());
        let (text, _) = waited.unwrap_or_else(PoisonError::into_inner);
        find(&text).unwrap_or_else(|| panic!("no '{mark}' in the log:\n{text}"))
    }

    /// All it has logged so far.
    pub fn log(&self) -> String {
        self.log
            .text
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A connection to it.
    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// One POST on a connection of its own.
    pub fn post(&self, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.client()
            .post(target, headers, body)
            .unwrap_or_else(|error| panic!("POST {target}: {error}"))
    }

    /// One Push in protobuf.
    pub fn push(&self, body: &[u8]) -> Answer {
        self.post(PUSH, &[("Content-Type", "application/proto")], body)
    }

    /// Sends bytes on a connection of their own and returns all that comes back until it is closed.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect_timeout(&self.address, DEADLINE).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
        stream.set_write_timeout(Some(DEADLINE)).expect("not zero");
        // A gateway that has refused may close while we still send.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Asserts that it still serves, after something that was meant to break it.
    pub fn assert_alive(&mut self) {
        assert_eq!(
            self.child.try_wait().expect("it is our child"),
            None,
            "it has ended"
        );
        let answer = self.post("/ready", &[], b"");
        assert_eq!(answer.status, 404);
    }

    /// Resident memory in bytes (`VmRSS`, and the most it ever was, `VmHWM`).
    pub fn memory(&self) -> (usize, usize) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
            kib.expect("Linux tells the memory of a process") << 10
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// The time that all its threads have run for: however busy the machine is, what it costs is the same.
    pub fn cpu_time(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it runs");
        let ran = threads.filter_map(|thread| {
            let told = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            told.split_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(ran.sum())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the gateway logged:\n{}", self.log());
        }
    }
}

/// An answer's headers but for those that frame it, as a map; every name occurs once.
pub fn headers(answer: &Answer) -> BTreeMap<&str, &str> {
    let mut map = BTreeMap::new();
    for (name, value) in &answer.headers {
        assert!(
            map.insert(&**name, &**value).is_none(),
            "{name} twice: {answer:?}"
        );
    }
    map
}

/// Asserts an answer in plain text, as Go's `http.Error` writes it (WIRE.md 1.7).
#[track_caller]
pub fn assert_text(answer: &Answer, status: u16, text: &str) {
    assert_eq!((answer.status, &*answer.text()), (status, text), "{answer:?}");
    let headers = headers(answer);
    assert_eq!(headers.get("content-type"), Some(&"text/plain; charset=utf-8"));
    assert_eq!(headers.get("x-content-type-options"), Some(&"nosniff"));
}

/// Asserts a status without a body.
#[track_caller]
pub fn assert_empty(answer: &Answer, status: u16) {
    assert_eq!((answer.status, &*answer.text()), (status, ""), "{answer:?}");
    if status != 204 {
        assert_eq!(answer.header("content-length"), Some("0"), "{answer:?}");
    }
}

/// Asserts a Connect error (WIRE.md 3.3) and returns its message.
#[track_caller]
pub fn assert_connect_error(answer: &Answer, status: u16, code: &str) -> String {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(
        answer.header("content-type"),
        Some("application/json"),
        "{answer:?}"
    );
    assert_eq!(answer.header("accept-encoding"), Some("gzip"), "{answer:?}");
    assert_eq!(
        answer.header("content-encoding"),
        None,
        "errors are never compressed"
    );
    assert!(!answer.body.ends_with(b"\n"), "no newline at the end");
    let error = answer.json();
    assert_eq!(error["code"], code, "{answer:?}");
    error["message"].as_str().expect("a message").to_owned()
}

/// A request without a body.
pub fn bare(method: &str, target: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
}

/// A POST that asks for the connection to be closed, as text for [`Gateway::raw`].
pub fn closing_post(target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    post(target, &[headers, &[("Connection", "close")]].concat(), body)
}

/// `text` percent-encoded byte by byte, letters and digits too: nothing is left to chance.
pub fn percent(text: &[u8]) -> String {
    text.iter().map(|byte| format!("%{byte:02X}")).collect()
}

/// Milliseconds.
pub const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// `bytes` in one gzip member, made quickly.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    compress(bytes, flate2::Compression::fast())
}

/// `bytes` in one gzip member, as small as can be.
pub fn gzip_tightly(bytes: &[u8]) -> Vec<u8> {
    compress(bytes, flate2::Compression::best())
}

fn compress(bytes: &[u8], level: flate2::Compression) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .expect("a Vec takes everything")
}

/// What a gzip stream holds.
pub fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let read = flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut out);
    read.unwrap_or_else(|error| panic!("{error}: {bytes:?}"));
    out
}
