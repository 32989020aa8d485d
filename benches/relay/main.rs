//! The null relay: the practical floor of what forwarding a request costs on this kernel.
//!
//! It makes the receives and sends that a gateway cannot do without, and nothing else: no HTTP beyond reading the first
//! message of each connection to learn its size, no labels, no queue, no timeouts, no counters. One thread, one ring,
//! every message received whole in one operation (MSG_WAITALL) into memory that stays where it is.
//!
//! ```text
//!  client ──recv(fixed)──▶ lane ──send(same bytes) × N──▶ destinations ──recv(fixed) × N──▶ send(answer) + recv(next)
//! ```
//! A lane is one connection to each destination; lanes are reused last in, first out, at most `--window` of them, as
//! `pyrotee run --inflight` has it. `--ring plain`, `--no-poll-first` and `--congestion` are there to see what each buys.
//!
//! Not responsible for anything a user needs: it is measured by `scripts/bench` and never shipped.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use socket2::{Domain, SockRef, Type};

/// Submission queue entries; completions get four times as many.
const RING_ENTRIES: u32 = 4096;
/// Room for the first message of a connection, whose size is not known yet.
const FIRST_BYTES: usize = 16 << 10;
/// A first message without an end of its head after this many bytes is none of ours.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// IORING_RECVSEND_POLL_FIRST (linux/io_uring.h): arm the poll without trying first.
const POLL_FIRST: u16 = 1;
/// What a completion belongs to: the low two bits of its user data.
const ACCEPT: u64 = 0;
const RECV: u64 = 1;
const SEND: u64 = 2;

fn main() -> io::Result<()> {
    let options = Options::read();
    let listener = listen(options.listen)?;
    println!("listening {}", listener.local_addr()?);
    io::stdout().flush()?;
    Relay::new(options, listener)?.run()
}

/// The standard library's backlog is 128, less than the connections that a row of the table opens at once.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// The command line.
struct Options {
    listen: SocketAddr,
    to: Vec<SocketAddr>,
    window: usize,
    deferred: bool,
    poll_first: bool,
    congestion: Option<String>,
}

impl Options {
    fn read() -> Self {
        let mut options = Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            to: Vec::new(),
            window: 64,
            deferred: true,
            poll_first: true,
            congestion: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(flag) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| usage());
            match flag.as_str() {
                "--listen" => options.listen = value().parse().unwrap_or_else(|_| usage()),
                "--to" => options.to.push(value().parse().unwrap_or_else(|_| usage())),
                "--window" => options.window = value().parse().unwrap_or_else(|_| usage()),
                "--ring" => options.deferred = value() != "plain",
                "--no-poll-first" => options.poll_first = false,
                "--congestion" => options.congestion = Some(value()),
                _ => usage(),
            }
        }
        if options.to.is_empty() || options.window == 0 {
            usage();
        }
        options
    }
}

fn usage() -> ! {
    eprintln!(
        "usage: null-relay [--listen ADDR] --to ADDR [--to ADDR]... [--window N] [--ring deferred|plain] \
         [--no-poll-first] [--congestion NAME]"
    );
    std::process::exit(64)
}

/// One socket and the message being received from it.
struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
    /// The size of every message, once the first has been read.
    total: usize,
    role: Role,
}

/// What a socket is.
enum Role {
    /// `pending`: its answer being sent, its next request being received.
    Client {
        answer: Vec<u8>,
        pending: u8,
        gone: bool,
    },
    /// Carries what `lane` carries.
    Destination { lane: usize },
}

/// One connection to each destination.
struct Lane {
    sockets: Vec<usize>,
    client: usize,
    /// Sends and receives under way.
    pending: usize,
}

struct Relay {
    options: Options,
    ring: IoUring,
    listener: TcpListener,
    /// `None`: a client that has left. Its place is not used again: a run has few of them.
    sockets: Vec<Option<Socket>>,
    lanes: Vec<Lane>,
    free: Vec<usize>,
    waiting: VecDeque<usize>,
}

impl Relay {
    fn new(options: Options, listener: TcpListener) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(RING_ENTRIES * 4);
        if options.deferred {
            builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_coop_taskrun();
        }
        Ok(Self {
            ring: builder.build(RING_ENTRIES)?,
            options,
            listener,
            sockets: Vec::new(),
            lanes: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
        })
    }

    fn run(mut self) -> io::Result<()> {
        self.accept()?;
        let mut completed: Vec<(u64, i32)> = Vec::new();
        loop {
            self.ring.submit_and_wait(1)?;
            completed.extend(
                self.ring
                    .completion()
                    .map(|entry: cqueue::Entry| (entry.user_data(), entry.result())),
            );
            for (data, result) in completed.drain(..) {
                let socket = (data >> 2) as usize;
                match data & 3 {
                    ACCEPT => self.accepted(result)?,
                    RECV => self.received(socket, result)?,
                    _ => self.sent(socket, result)?,
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let fd = types::Fd(self.listener.as_raw_fd());
        let entry = opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
            .build()
            .user_data(ACCEPT);
        self.submit(entry)
    }

    fn accepted(&mut self, result: i32) -> io::Result<()> {
        use std::os::fd::FromRawFd;
        check(result, "accept")?;
        // SAFETY: the kernel has just given this descriptor to us, nobody else has it.
        let stream = unsafe { TcpStream::from_raw_fd(result) };
        let role = Role::Client {
            answer: Vec::new(),
            pending: 1,
            gone: false,
        };
        let socket = self.add(stream, role)?;
        self.receive(socket)?;
        self.accept()
    }

    fn add(&mut self, stream: TcpStream, role: Role) -> io::Result<usize> {
        stream.set_nodelay(true)?;
        if let Some(congestion) = &self.options.congestion {
            SockRef::from(&stream).set_tcp_congestion(congestion.as_bytes())?;
        }
        self.sockets.push(Some(Socket {
            stream,
            buffer: vec![0; FIRST_BYTES],
            filled: 0,
            total: 0,
            role,
        }));
        Ok(self.sockets.len() - 1)
    }

    /// Receives the next message, or more of the first one.
    fn receive(&mut self, index: usize) -> io::Result<()> {
        let poll_first = self.options.poll_first;
        let socket = self.socket(index);
        if socket.total > 0 {
            socket.buffer.resize(socket.total, 0);
        } else if socket.filled == socket.buffer.len() {
            socket.buffer.resize(socket.filled * 2, 0);
        }
        let room = &mut socket.buffer[socket.filled..];
        let mut entry = opcode::Recv::new(
            types::Fd(socket.stream.as_raw_fd()),
            room.as_mut_ptr(),
            u32::try_from(room.len()).map_err(io::Error::other)?,
        )
        .flags(if socket.total > 0 { libc::MSG_WAITALL } else { 0 })
        .build()
        .user_data((index as u64) << 2 | RECV);
        if poll_first {
            set_ioprio(&mut entry, POLL_FIRST);
        }
        self.submit(entry)
    }

    fn received(&mut self, index: usize, result: i32) -> io::Result<()> {
        let socket = self.socket(index);
        let bytes = usize::try_from(result).unwrap_or(0);
        socket.filled += bytes;
        if socket.total == 0 && bytes > 0 {
            socket.total = message_bytes(&socket.buffer[..socket.filled])?.unwrap_or(0);
        }
        if bytes == 0 || socket.total > 0 && socket.filled > socket.total {
            return self.ended(index);
        }
        if socket.total == 0 || socket.filled < socket.total {
            return self.receive(index);
        }
        // Fixed sizes or garbage: one look at the first byte of each message tells.
        if !matches!(socket.buffer[0], b'P' | b'H') {
            return Err(io::Error::other("messages of different sizes on one connection"));
        }
        socket.filled = 0;
        match &socket.role {
            Role::Client { .. } => self.client_step(index),
            Role::Destination { lane } => {
                let lane = *lane;
                self.lane_step(lane)
            }
        }
    }

    fn sent(&mut self, index: usize, result: i32) -> io::Result<()> {
        check(result, "send")?;
        match &self.socket(index).role {
            Role::Client { .. } => self.client_step(index),
            Role::Destination { lane } => {
                let lane = *lane;
                self.lane_step(lane)
            }
        }
    }

    /// An operation of a client has ended; with the last of them its next request is here.
    fn client_step(&mut self, index: usize) -> io::Result<()> {
        let Role::Client { pending, gone, .. } = &mut self.socket(index).role else {
            return Ok(());
        };
        *pending -= 1;
        if *pending > 0 {
            return Ok(());
        }
        if *gone {
            self.sockets[index] = None;
            return Ok(());
        }
        match self.free.pop() {
            Some(lane) => self.forward(lane, index),
            None if self.lanes.len() < self.options.window => {
                let lane = self.open_lane()?;
                self.forward(lane, index)
            }
            None => {
                self.waiting.push_back(index);
                Ok(())
            }
        }
    }

    fn open_lane(&mut self) -> io::Result<usize> {
        let lane = self.lanes.len();
        let mut sockets = Vec::new();
        for address in self.options.to.clone() {
            let stream = TcpStream::connect(address)?;
            sockets.push(self.add(stream, Role::Destination { lane })?);
        }
        self.lanes.push(Lane {
            sockets,
            client: 0,
            pending: 0,
        });
        Ok(lane)
    }

    fn forward(&mut self, lane: usize, client: usize) -> io::Result<()> {
        let sockets = std::mem::take(&mut self.lanes[lane].sockets);
        self.lanes[lane].client = client;
        self.lanes[lane].pending = sockets.len() * 2;
        let (start, bytes) = {
            let request = self.socket(client);
            (request.buffer.as_ptr(), request.total)
        };
        for index in &sockets {
            self.send(*index, start, bytes)?;
            self.receive(*index)?;
        }
        self.lanes[lane].sockets = sockets;
        Ok(())
    }

    fn send(&mut self, index: usize, start: *const u8, bytes: usize) -> io::Result<()> {
        let fd = types::Fd(self.socket(index).stream.as_raw_fd());
        let entry = opcode::Send::new(fd, start, u32::try_from(bytes).map_err(io::Error::other)?)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build()
            .user_data((index as u64) << 2 | SEND);
        self.submit(entry)
    }

    /// An operation of a lane has ended; with the last of them its client is answered with what a destination said.
    fn lane_step(&mut self, lane: usize) -> io::Result<()> {
        self.lanes[lane].pending -= 1;
        if self.lanes[lane].pending > 0 {
            return Ok(());
        }
        let (client, first) = (self.lanes[lane].client, self.lanes[lane].sockets[0]);
        let said = std::mem::take(&mut self.socket(first).buffer);
        let total = self.socket(first).total;
        let mut sending = (std::ptr::null(), 0);
        if let Role::Client { answer, pending, .. } = &mut self.socket(client).role {
            answer.clear();
            answer.extend_from_slice(&said[..total]);
            *pending = 2;
            sending = (answer.as_ptr(), answer.len());
        }
        self.socket(first).buffer = said;
        self.send(client, sending.0, sending.1)?;
        self.receive(client)?;
        match self.waiting.pop_front() {
            Some(next) => self.forward(lane, next),
            None => {
                self.free.push(lane);
                Ok(())
            }
        }
    }

    /// A peer has closed: a client may, a destination may not.
    fn ended(&mut self, index: usize) -> io::Result<()> {
        match &mut self.socket(index).role {
            Role::Client { gone, .. } => {
                *gone = true;
                self.client_step(index)
            }
            Role::Destination { .. } => Err(io::Error::other("a destination has closed its connection")),
        }
    }

    fn socket(&mut self, index: usize) -> &mut Socket {
        self.sockets[index]
            .as_mut()
            .expect("operations end before their socket is dropped")
    }

    fn submit(&mut self, entry: squeue::Entry) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.ring.submit()?;
        }
        // SAFETY: the memory of an operation belongs to a socket that lives until its operations have ended (`pending`),
        // and is neither moved nor freed meanwhile: buffers are resized only before a receive, answers only after a send.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)
    }
}

fn check(result: i32, what: &str) -> io::Result<()> {
    if result < 0 {
        let error = io::Error::from_raw_os_error(-result);
        return Err(io::Error::new(error.kind(), format!("{what}: {error}")));
    }
    Ok(())
}

/// The size of the message that `bytes` begins with, once its head is whole.
fn message_bytes(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(io::Error::other("no end of a head"));
        }
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(Ok(0), |length| length.trim().parse::<usize>());
    Ok(Some(end + 4 + length.map_err(io::Error::other)?))
}

/// The `ioprio` field of a submission, which this version of the crate has no setter for on receives.
fn set_ioprio(entry: &mut squeue::Entry, ioprio: u16) {
    const { assert!(size_of::<squeue::Entry>() == 64) };
    // SAFETY: an entry is the kernel's `struct io_uring_sqe` (linux/io_uring.h): opcode and flags are its first two bytes,
    // the two after them are `ioprio`.
    unsafe { std::ptr::from_mut(entry).cast::<u16>().add(1).write(ioprio) };
}
