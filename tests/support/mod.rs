//! What tests of the real binary share: processes that cannot outlive their test, and a raw HTTP client.
//!
//! Everything has a deadline; a test that waits in vain fails with what it has seen so far. Not responsible for starting
//! a particular set of gateways and sinks: each test says what it needs.

#![allow(dead_code)] // every test binary compiles this file and uses its own part of it

pub mod gateway;
pub mod memory;
pub mod peer;
pub mod speaker;
pub mod tls;
pub mod wire;

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use pyrotee::runtime::clock;
use pyrotee::runtime::engine::{EngineChoice, probe};

/// Nothing here takes longer on a machine that works at all.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The engines that this host allows. Says so when io_uring is not among them.
pub fn engines() -> Vec<&'static str> {
    match probe(EngineChoice::IoUring) {
        Ok(_) => vec!["io_uring", "epoll"],
        Err(refused) => {
            tell(format_args!("SKIPPED under io_uring: {refused}"));
            vec!["epoll"]
        }
    }
}

/// Every test named here runs once per engine: `io_uring::name` and `epoll::name`. Where the host forbids io_uring, that
/// half says so and passes. A test is a function of the engine's name.
#[allow(unused_macros)] // not every test binary runs under engines this way
macro_rules! under_both_engines {
    ($($name:ident),* $(,)?) => {
        mod io_uring {
            $(#[test] fn $name() { if crate::support::is_allowed("io_uring") { super::$name("io_uring") } })*
        }
        mod epoll {
            $(#[test] fn $name() { super::$name("epoll") })*
        }
    };
}
#[allow(unused_imports)] // as above
pub(crate) use under_both_engines;

/// Whether this host allows an engine.
pub fn is_allowed(engine: &str) -> bool {
    static ALLOWED: OnceLock<Vec<&'static str>> = OnceLock::new();
    ALLOWED.get_or_init(engines).contains(&engine)
}

/// Says that a test cannot run here, and why; in CI that is a failure.
pub fn skip(test: &str, why: impl std::fmt::Display) {
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "{test} must not be skipped in CI: {why}"
    );
    tell(format_args!("SKIPPED {test}: {why}"));
}

/// One line straight to the terminal: what a passing test prints is not shown.
pub fn tell(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// A running `pyrotee`, killed when dropped.
pub struct Process {
    child: Child,
    name: String,
    lines: Receiver<String>,
    logs: Receiver<String>,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
}

/// Most that a failing test shows of what a process has said.
const SHOWN_BYTES_MAX: usize = 32 << 10;

/// A process that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// All it printed.
    pub stdout: String,
    /// All it logged.
    pub stderr: String,
}

impl Process {
    /// Starts `pyrotee` with `args`.
    pub fn start<S: AsRef<str>>(args: &[S]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_pyrotee")), args)
    }

    /// Starts `launcher` with `args`: the program itself, or one that changes something about itself and then becomes
    /// `pyrotee` (it gets the program's path as the argument in front of `args` by the caller).
    pub fn start_by<S: AsRef<str>>(mut launcher: Command, args: &[S]) -> Self {
        let args: Vec<_> = args.iter().map(AsRef::as_ref).collect();
        let mut child = launcher
            .args(&args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (sender, lines) = mpsc::channel();
        let stdout = collect(child.stdout.take().expect("piped"), Some(sender));
        let (sender, logs) = mpsc::channel();
        let stderr = collect(child.stderr.take().expect("piped"), Some(sender));
        Self {
            child,
            name: args.join(" "),
            lines,
            logs,
            stdout,
            stderr,
        }
    }

    /// Waits for a line on stdout that begins with `prefix` and returns the rest of it.
    pub fn line(&mut self, prefix: &str) -> String {
        let deadline = clock::now().after(DEADLINE);
        loop {
            match self.lines.recv_timeout(deadline.since(clock::now())) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(prefix) {
                        return rest.to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no line '{prefix}...' in time\n{}", self.seen()),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("ended without a line '{prefix}...'\n{}", self.seen())
                }
            }
        }
    }

    /// Waits for a line on stderr that `find` makes something of.
    pub fn log<T>(&mut self, what: &str, mut find: impl FnMut(&str) -> Option<T>) -> T {
        let deadline = clock::now().after(DEADLINE);
        loop {
            match self.logs.recv_timeout(deadline.since(clock::now())) {
                Ok(line) => {
                    if let Some(found) = find(&line) {
                        return found;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {what} in time\n{}", self.seen()),
                Err(RecvTimeoutError::Disconnected) => panic!("ended without {what}\n{}", self.seen()),
            }
        }
    }

    /// Waits for a line that is `prefix` and an address.
    pub fn address(&mut self, prefix: &str) -> SocketAddr {
        let text = self.line(prefix);
        text.trim()
            .parse()
            .unwrap_or_else(|_| panic!("'{prefix}{text}' has no address\n{}", self.seen()))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).expect("the process is ours and not yet waited for");
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn terminate(self) -> Ended {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> Ended {
        let deadline = clock::now().after(DEADLINE);
        // Its end closes stdout, which is an event to wait for; then the status is there or nearly so.
        while let Ok(_line) = self.lines.recv_timeout(deadline.since(clock::now())) {}
        let status = eventually(&self.name, || self.child.try_wait().expect("it is our child"));
        // The reader of stderr sees the end at the same time; give it the chance to say so.
        eventually("the end of stderr", || {
            (Arc::strong_count(&self.stderr) == 1).then_some(())
        });
        let text = |shared: &Mutex<String>| shared.lock().expect("no reader panics").clone();
        Ended {
            status,
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
        }
    }

    fn seen(&self) -> String {
        let text = |shared: &Mutex<String>| shared.lock().expect("no reader panics").clone();
        format!(
            "pyrotee {}\nstdout:\n{}stderr:\n{}",
            self.name,
            text(&self.stdout),
            text(&self.stderr)
        )
    }
}

/// A test that fails while it runs shows how it was and what it had said: rare failures have to explain themselves.
impl Drop for Process {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let how = ended.map_or("still running".to_owned(), |status| status.to_string());
            eprintln!("{how}: {}", cut(&self.seen()));
        }
    }
}

/// The end of what may be very long.
fn cut(text: &str) -> &str {
    let mut start = text.len().saturating_sub(SHOWN_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// Runs `pyrotee` to its end.
pub fn run<S: AsRef<str>>(args: &[S]) -> Ended {
    Process::start(args).wait()
}

fn collect(pipe: impl io::Read + Send + 'static, lines: Option<mpsc::Sender<String>>) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let shared = text.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let _ = writeln!(shared.lock().expect("no reader panics"), "{line}");
            if let Some(lines) = &lines {
                let _ = lines.send(line);
            }
        }
    });
    text
}

/// Asks again and again until there is an answer; for what cannot be waited for. Panics at the deadline.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = clock::now().after(DEADLINE);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(clock::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A connection to anything that speaks HTTP/1.1, byte by byte in the test's hands.
pub struct Client {
    stream: tls::Link,
    /// Received and not yet returned.
    pending: Vec<u8>,
}

/// An HTTP answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// Without framing.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first value of a header; `name` is lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| &**value)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Client {
    /// Connects.
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, DEADLINE).expect("something listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
        stream.set_write_timeout(Some(DEADLINE)).expect("not zero");
        stream.set_nodelay(true).expect("a TCP socket");
        Self {
            stream: tls::Link::Plain(stream),
            pending: Vec::new(),
        }
    }

    /// Connects and speaks TLS to `name`; the handshake happens with the first bytes.
    pub fn connect_tls(address: SocketAddr, config: Arc<tls::ClientConfig>, name: &str) -> Self {
        let mut client = Self::connect(address);
        client.stream = match client.stream {
            tls::Link::Plain(stream) => tls::Link::client(stream, config, name),
            other => other,
        };
        client
    }

    /// The connection itself.
    pub fn link(&mut self) -> &mut tls::Link {
        &mut self.stream
    }

    /// Connects with a receive buffer of about `bytes` (the kernel takes double).
    pub fn connect_small(address: SocketAddr, bytes: usize) -> Self {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(bytes).expect("a size");
        socket.connect(&address.into()).expect("something listens");
        socket.set_write_timeout(Some(DEADLINE)).expect("not zero");
        socket.set_read_timeout(Some(DEADLINE)).expect("not zero");
        Self {
            stream: tls::Link::Plain(socket.into()),
            pending: Vec::new(),
        }
    }

    /// Makes the coming close a reset.
    pub fn reset(self) {
        socket2::SockRef::from(self.stream.tcp())
            .set_linger(Some(Duration::ZERO))
            .expect("a socket");
    }

    /// Waits until the other side has closed without a word. Panics if it says something or does not close.
    pub fn expect_closed(&mut self, why: &str) {
        match self.receive_all() {
            Ok(rest) => assert!(rest.is_empty(), "{why}: {:?}", String::from_utf8_lossy(&rest)),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{why}"),
        }
    }

    /// How long a read waits from now on.
    pub fn set_patience(&self, patience: Duration) {
        self.stream
            .tcp()
            .set_read_timeout(Some(patience))
            .expect("not zero");
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Closes the sending half.
    pub fn finish(&self) {
        self.stream
            .tcp()
            .shutdown(std::net::Shutdown::Write)
            .expect("still connected");
    }

    /// Receives one answer, interim ones included.
    pub fn receive(&mut self) -> io::Result<Answer> {
        let head_end = loop {
            if let Some(at) = memchr::memmem::find(&self.pending, b"\r\n\r\n") {
                break at + 4;
            }
            self.more()?;
        };
        let head: Vec<u8> = self.pending.drain(..head_end).collect();
        let head = String::from_utf8(head).map_err(io::Error::other)?;
        let mut lines = head.trim_end().split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status: {head}")))?;
        let field = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let headers = lines.map(field).collect::<Option<Vec<_>>>();
        let headers = headers.ok_or_else(|| io::Error::other(format!("no field: {head}")))?;
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
        };
        answer.body = self.receive_body(&answer)?;
        Ok(answer)
    }

    fn receive_body(&mut self, answer: &Answer) -> io::Result<Vec<u8>> {
        if matches!(answer.status, 100..=199 | 204 | 304) {
            return Ok(Vec::new());
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            return self.receive_chunks();
        }
        match answer.header("content-length").map(str::parse) {
            Some(Ok(length)) => self.take(length),
            Some(Err(error)) => Err(io::Error::other(error)),
            None => self.receive_all(),
        }
    }

    fn receive_chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line_end = loop {
                if let Some(at) = memchr::memmem::find(&self.pending, b"\r\n") {
                    break at;
                }
                self.more()?;
            };
            let line = self.take(line_end + 2)?;
            let size = String::from_utf8_lossy(&line[..line_end]).into_owned();
            let size = usize::from_str_radix(&size, 16).map_err(io::Error::other)?;
            let data = self.take(size + 2)?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&data[..size]);
        }
    }

    /// Everything until the other side closes.
    pub fn receive_all(&mut self) -> io::Result<Vec<u8>> {
        let mut all = std::mem::take(&mut self.pending);
        self.stream.read_to_end(&mut all)?;
        Ok(all)
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.pending.len() < length {
            self.more()?;
        }
        Ok(self.pending.drain(..length).collect())
    }

    fn more(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => {
                    self.pending.extend_from_slice(&buffer[..received]);
                    return Ok(());
                }
                // With a timeout a receive ends so where this process was stopped meanwhile (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a POST with a body and receives the answer.
    pub fn post(&mut self, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        self.send(post(target, headers, body))?;
        self.receive()
    }
}

/// The bytes of a POST with `Content-Length`.
pub fn post(target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        let _ = write!(request, "{name}: {value}\r\n");
    }
    request += "\r\n";
    [request.as_bytes(), body].concat()
}

/// One GET on a connection of its own.
pub fn get(address: SocketAddr, target: &str) -> Answer {
    let mut client = Client::connect(address);
    client
        .send(format!(
            "GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
        ))
        .and_then(|()| client.receive())
        .unwrap_or_else(|error| panic!("GET {target}: {error}"))
}

/// A `pyrotee sink` and its second port.
pub struct Sink {
    /// The process.
    pub process: Process,
    /// Where it receives.
    pub address: SocketAddr,
    /// Where it tells.
    pub admin: SocketAddr,
}

impl Sink {
    /// Starts one on free ports.
    pub fn start<S: AsRef<str>>(flags: &[S]) -> Self {
        let mut args = vec!["sink", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        args.extend(flags.iter().map(AsRef::as_ref));
        let mut process = Process::start(&args);
        let address = process.address("listening on ");
        let admin = process.address("admin on ");
        Self {
            process,
            address,
            admin,
        }
    }

    /// `http://` and its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it has counted so far.
    pub fn stats(&self) -> serde_json::Value {
        get(self.admin, "/stats").json()
    }

    /// Waits until its counts satisfy a condition.
    pub fn stats_when(&self, what: &str, good: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        eventually(what, || Some(self.stats()).filter(|stats| good(stats)))
    }

    /// Replaces its faults; the syntax is that of the flags.
    pub fn set_faults(&self, flags: &str) {
        let answer = Client::connect(self.admin).post("/faults", &[], flags.as_bytes());
        let answer = answer.expect("the admin port answers");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}
