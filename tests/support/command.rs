//! A foreign process in the hands of a test: lines in, lines out, a deadline for each wait, and an end with its test.
//!
//! Responsible for the process and for what it said; every failure shows all of that. Not responsible for what the
//! lines mean. `support/mod.rs` holds the like for `pyrotee` itself, whose standard input nobody needs.

#![allow(dead_code)] // every test binary compiles this file and uses its own part of it

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use pyrotee::runtime::clock;

/// Nothing that a test waits for on a machine that works takes longer, unless it says so.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Which of its outputs a process wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A running process, killed with all its children when dropped.
pub struct Running {
    child: Child,
    name: String,
    stdin: Option<ChildStdin>,
    lines: Receiver<(From, String)>,
    said: Said,
}

/// All that a process has said so far.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// To standard output.
    pub stdout: String,
    /// To standard error.
    pub stderr: String,
}

impl Running {
    /// Starts `command`, in a process group of its own so that its children end with it.
    pub fn start(mut command: Command) -> Self {
        let name = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let (sender, lines) = mpsc::channel();
        listen(child.stdout.take().expect("piped"), From::Stdout, sender.clone());
        listen(child.stderr.take().expect("piped"), From::Stderr, sender);
        Self {
            stdin: child.stdin.take(),
            child,
            name,
            lines,
            said: Said::default(),
        }
    }

    /// Waits for the first line that `pick` makes something of.
    pub fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(From, &str) -> Option<T>) -> T {
        let deadline = clock::now().after(PATIENCE);
        loop {
            match self.lines.recv_timeout(deadline.since(clock::now())) {
                Ok((from, line)) => {
                    self.said.hear(from, &line);
                    if let Some(picked) = pick(from, &line) {
                        return picked;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {what} in time\n{}", self.story()),
                Err(RecvTimeoutError::Disconnected) => panic!("ended without {what}\n{}", self.story()),
            }
        }
    }

    /// Writes to its standard input.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        self.stdin
            .as_mut()
            .expect("not closed before")
            .write_all(text.as_bytes())
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until it ends by itself, at most `patience`; returns how, and all it said.
    pub fn end(mut self, patience: Duration) -> (ExitStatus, Said) {
        self.close_stdin();
        let deadline = clock::now().after(patience);
        // Its end, and that of every child that has its outputs, closes the channel.
        loop {
            match self.lines.recv_timeout(deadline.since(clock::now())) {
                Ok((from, line)) => self.said.hear(from, &line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("still running after {patience:?}\n{}", self.story())
                }
            }
        }
        let status = self.child.wait().expect("it is our child");
        (status, std::mem::take(&mut self.said))
    }

    /// Its name and all it said, for a failure.
    pub fn story(&mut self) -> String {
        while let Ok((from, line)) = self.lines.try_recv() {
            self.said.hear(from, &line);
        }
        let Said { stdout, stderr } = &self.said;
        format!("{}\nstdout:\n{stdout}stderr:\n{stderr}", self.name)
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let group = rustix::process::Pid::from_child(&self.child);
        // An error means that it has ended already.
        let _ = rustix::process::kill_process_group(group, signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its id stays its own until we wait for it, so this reaches nobody else.
        if let Ok(None) = self.child.try_wait() {
            self.signal(rustix::process::Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

impl Said {
    fn hear(&mut self, from: From, line: &str) {
        let text = match from {
            From::Stdout => &mut self.stdout,
            From::Stderr => &mut self.stderr,
        };
        let _ = writeln!(text, "{line}");
    }
}

fn listen(pipe: impl io::Read + Send + 'static, from: From, lines: Sender<(From, String)>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        // What is no UTF-8 is shown as well as it can be: an odd byte must not end the listening.
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line);
            if lines
                .send((from, text.trim_end_matches(['\n', '\r']).to_owned()))
                .is_err()
            {
                return;
            }
            line.clear();
        }
    });
}
