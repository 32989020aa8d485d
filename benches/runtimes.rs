//! The same sink on `monoio`, on `tokio-uring` and on plain epoll: what one request costs on each.
//!
//! The sink receives requests of a fixed size and answers each with the same bytes; there is no HTTP in it, so what is
//! compared is the runtime. One thread serves, pinned to the first CPU; one thread with plain blocking sockets drives it
//! from the last, a request on every connection per turn. The cost is CPU time of the serving thread per request.
//!
//! `cargo bench --bench runtimes` measures, `cargo test --benches` serves a few requests on each and checks the answers.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use monoio::io::{AsyncReadRentExt, AsyncWriteRentExt};
use pyrotee::runtime::{Engine, allowed_cpus, engine, run_local};
use rustix::event::epoll;

/// What the sink answers: as long as Pyroscope's answer to a push.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n";
const CONNECTIONS: usize = 16;
const DEADLINE: Duration = Duration::from_secs(20);

/// Serves connections of `listener` until all that came have closed again.
type Serve = fn(TcpListener, usize);

fn main() {
    let measures = std::env::args().any(|arg| arg == "--bench");
    let (rounds, turns) = if measures { (7, 2000) } else { (1, 5) };
    let mut sinks: Vec<(&str, Serve)> = vec![
        ("epoll, by hand", serve_epoll),
        ("monoio on epoll", serve_monoio_epoll),
    ];
    match engine::probe(engine::EngineChoice::IoUring) {
        Ok(_) => {
            sinks.push(("monoio, deferred ring", serve_monoio_deferred));
            sinks.push(("monoio, plain ring", serve_monoio_plain));
            sinks.push(("tokio-uring", serve_tokio_uring));
        }
        Err(refused) => println!("skipped, no io_uring here: {refused}"),
    }
    for request_bytes in [1 << 10, 16 << 10, 128 << 10] {
        let mut costs: HashMap<&str, Vec<f64>> = HashMap::new();
        for _ in 0..rounds {
            for (name, serve) in &sinks {
                let cost = measure(*serve, request_bytes, turns);
                costs.entry(name).or_default().push(cost);
            }
        }
        for (name, _) in &sinks {
            let Some(values) = costs.get_mut(name) else {
                continue;
            };
            values.sort_by(f64::total_cmp);
            if measures {
                let median = values[values.len() / 2];
                println!(
                    "{:>4} KiB  {name:<24} {median:7.2} µs per request",
                    request_bytes >> 10
                );
            }
        }
    }
}

/// CPU microseconds of the serving thread per request, when each of the connections sends `turns` of them.
fn measure(serve: Serve, request_bytes: usize, turns: usize) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (sender, receiver) = mpsc::channel();
    let cpus = allowed_cpus();
    let (first, last) = (cpus[0], cpus[cpus.len() - 1]);
    std::thread::Builder::new()
        .name("serve".into())
        .spawn(move || {
            pin(first);
            let before = thread_cpu_nanos();
            serve(listener, request_bytes);
            let _ = sender.send(thread_cpu_nanos() - before);
        })
        .expect("a thread");
    let driver = std::thread::spawn(move || {
        pin(last);
        drive(address, request_bytes, turns);
    });
    driver.join().expect("every request was answered");
    let spent = receiver
        .recv_timeout(DEADLINE)
        .expect("the sink ends with its last connection");
    spent as f64 / 1000.0 / (turns * CONNECTIONS) as f64
}

fn drive(address: SocketAddr, request_bytes: usize, turns: usize) {
    let request = vec![0x5a; request_bytes];
    let mut answer = vec![0; ANSWER.len()];
    let mut connections: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| {
            let connection = TcpStream::connect(address).expect("the sink listens");
            connection.set_nodelay(true).expect("a socket");
            connection.set_read_timeout(Some(DEADLINE)).expect("a socket");
            connection.set_write_timeout(Some(DEADLINE)).expect("a socket");
            connection
        })
        .collect();
    for _ in 0..turns {
        for connection in &mut connections {
            connection.write_all(&request).expect("the sink reads");
        }
        for connection in &mut connections {
            connection.read_exact(&mut answer).expect("the sink answers");
            assert_eq!(answer, ANSWER);
        }
    }
}

fn serve_monoio_deferred(listener: TcpListener, request_bytes: usize) {
    serve_monoio(Engine::IoUring { deferred: true }, listener, request_bytes);
}

fn serve_monoio_plain(listener: TcpListener, request_bytes: usize) {
    serve_monoio(Engine::IoUring { deferred: false }, listener, request_bytes);
}

fn serve_monoio_epoll(listener: TcpListener, request_bytes: usize) {
    serve_monoio(Engine::Epoll, listener, request_bytes);
}

fn serve_monoio(engine: Engine, listener: TcpListener, request_bytes: usize) {
    listener.set_nonblocking(true).expect("a socket");
    let served = run_local(engine, move || async move {
        let listener = monoio::net::TcpListener::from_std(listener).expect("a listener");
        let mut serving = Vec::new();
        for _ in 0..CONNECTIONS {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            serving.push(monoio::spawn(async move {
                let mut buffer = Vec::with_capacity(request_bytes);
                loop {
                    buffer.clear();
                    let (received, back) = stream
                        .read_exact(monoio::buf::IoBufMut::slice_mut(buffer, 0..request_bytes))
                        .await;
                    buffer = back.into_inner();
                    if received.is_err() || stream.write_all(ANSWER).await.0.is_err() {
                        return;
                    }
                }
            }));
        }
        for one in serving {
            one.await;
        }
    });
    served.expect("a runtime");
}

fn serve_tokio_uring(listener: TcpListener, request_bytes: usize) {
    tokio_uring::start(async move {
        let listener = tokio_uring::net::TcpListener::from_std(listener);
        let mut serving = Vec::new();
        for _ in 0..CONNECTIONS {
            let (stream, _) = listener.accept().await.expect("a connection");
            serving.push(tokio_uring::spawn(async move {
                use tokio_uring::buf::BoundedBuf;
                let mut buffer = vec![0; request_bytes];
                let mut filled = 0;
                loop {
                    let (received, back) = stream.read(buffer.slice(filled..)).await;
                    buffer = back.into_inner();
                    match received {
                        Ok(bytes @ 1..) => filled += bytes,
                        _ => return,
                    }
                    if filled == request_bytes {
                        filled = 0;
                        if stream.write_all(ANSWER).await.0.is_err() {
                            return;
                        }
                    }
                }
            }));
        }
        for one in serving {
            let _ = one.await;
        }
    });
}

/// Level-triggered: one wait, then one receive for each connection that has something, and one send when it is whole.
fn serve_epoll(listener: TcpListener, request_bytes: usize) {
    let poll: OwnedFd = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    let mut connections: HashMap<u64, (TcpStream, usize)> = HashMap::new();
    for _ in 0..CONNECTIONS {
        let (stream, _) = listener.accept().expect("a connection");
        stream.set_nonblocking(true).expect("a socket");
        let key = u64::try_from(stream.as_raw_fd()).expect("a descriptor");
        epoll::add(
            &poll,
            stream.as_fd(),
            epoll::EventData::new_u64(key),
            epoll::EventFlags::IN,
        )
        .expect("an epoll");
        connections.insert(key, (stream, 0));
    }
    let mut buffer = vec![0; request_bytes];
    let mut events = Vec::with_capacity(CONNECTIONS);
    while !connections.is_empty() {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None).expect("an epoll");
        for event in &events {
            let key = event.data.u64();
            let Some((stream, filled)) = connections.get_mut(&key) else {
                continue;
            };
            match stream.read(&mut buffer[*filled..]) {
                Ok(bytes @ 1..) => *filled += bytes,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                _ => {
                    connections.remove(&key);
                    continue;
                }
            }
            if *filled == request_bytes {
                *filled = 0;
                stream.write_all(ANSWER).expect("room for a short answer");
            }
        }
    }
}

/// CPU time of the calling thread (the first number of schedstat, in nanoseconds).
fn thread_cpu_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    text.split(' ')
        .next()
        .and_then(|nanos| nanos.parse().ok())
        .expect("a number")
}

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    // Refused in some containers: the numbers are then noisier.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}
