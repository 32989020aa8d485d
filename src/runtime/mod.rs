//! One core: a pinned thread that owns its ring, its connections and its memory.
//!
//! Responsible for: choosing and probing the engine ([`engine`]), building the single-threaded runtime of a core and
//! pinning it ([`start_core`]), time ([`clock`]), waking a core from another one ([`doorbell`]) and receive buffers
//! ([`pool`]), what happens when file descriptors run out ([`descriptors`]), whether a core has time to spare ([`load`]), and saying so when files do not answer ([`patience`]). Not responsible for what runs on a core: the stations bring their own futures.
//!
//! A core's ring is built with `SINGLE_ISSUER | DEFER_TASKRUN | COOP_TASKRUN`: only its own thread submits, and the
//! kernel runs completions when we enter, not by interrupting us. DESIGN.md section 3 has the measurement behind it (up
//! to 1.5x at low concurrency).

pub mod clock;
pub mod descriptors;
pub mod doorbell;
pub mod engine;
pub mod histogram;
pub mod load;
pub mod patience;
pub mod phase;
pub mod pool;
pub mod reserved;
pub mod socket;
pub mod stream;
pub mod sweeper;
pub mod tls;

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

pub use engine::Engine;

/// Submission queue entries of a core's ring. One loop turn rarely queues more; when it does, monoio submits early.
const RING_ENTRIES: u32 = 1024;
/// Completion queue entries: every connection may complete in the same turn (connections on one core at the default
/// limit: 16384), and an overflow costs the kernel an allocation, not us a loss.
const RING_COMPLETIONS: u32 = 8192;

/// Which thread of the data plane something belongs to. Counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoreId(pub usize);

/// Starts the thread of one core, pinned to `cpu` when given, and runs `main` on it to its end.
///
/// `main` is called on the new thread, so what it builds need not be `Send`.
///
/// # Errors
/// When the operating system refuses the thread. A ring that cannot be built there is returned through the join handle:
/// [`engine::probe`] has built one just before, so that is rare (a memory limit reached in between).
pub fn start_core<F, M>(
    core: CoreId,
    engine: Engine,
    cpu: Option<usize>,
    main: M,
) -> io::Result<JoinHandle<io::Result<()>>>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    std::thread::Builder::new()
        .name(format!("core-{}", core.0))
        .spawn(move || {
            if let Some(cpu) = cpu {
                pin(cpu);
            }
            run_local(engine, main)
        })
}

/// Runs `main` on the calling thread under `engine` until it ends.
///
/// # Errors
/// When the ring or the epoll instance cannot be built.
pub fn run_local<F, M>(engine: Engine, main: M) -> io::Result<()>
where
    M: FnOnce() -> F,
    F: Future<Output = ()> + 'static,
{
    pool::keep_idle_buffers();
    match engine {
        Engine::IoUring { deferred } => {
            let mut ring = io_uring::IoUring::builder();
            ring.setup_cqsize(RING_COMPLETIONS);
            if deferred {
                ring.setup_single_issuer()
                    .setup_defer_taskrun()
                    .setup_coop_taskrun();
            }
            RuntimeBuilder::<IoUringDriver>::new()
                .with_entries(RING_ENTRIES)
                .uring_builder(ring)
                .enable_timer()
                .build()?
                .block_on(async { main().await });
        }
        Engine::Epoll => {
            RuntimeBuilder::<LegacyDriver>::new()
                .enable_timer()
                .build()?
                .block_on(async { main().await });
        }
    }
    Ok(())
}

/// The CPUs this process may run on, in order.
pub fn allowed_cpus() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU)
            .filter(|cpu| set.is_set(*cpu))
            .collect(),
        Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    }
}

/// What the plan needs to know of this machine.
pub fn host() -> crate::config::Host {
    crate::config::Host {
        cpus: allowed_cpus(),
        cpu_quota: cpu_quota(),
    }
}

/// The CPUs' worth of time that the cgroup allows (`cpu.max` of cgroup v2), if it limits any.
fn cpu_quota() -> Option<f64> {
    let text = std::fs::read_to_string("/sys/fs/cgroup/cpu.max").ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok().filter(|period| *period > 0.0)?)
}

/// Raises the limit of open files as far as the process may. Returns the limit then in force, if there is one.
pub fn raise_file_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    getrlimit(Resource::Nofile).current
}

/// Pins the calling thread. A refusal costs speed, not correctness, so it is only reported.
fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(cpu, %error, "could not pin a core to its cpu, running unpinned");
    }
}

/// Keeps the kernel from backing this process's memory with huge pages, which the allocator asks for: one buffer in use would
/// keep 2 MiB resident, and `--memory-limit` would say little about what the process takes. Measured, they save no time: bodies
/// are received into memory that was used before. A kernel that knows no huge pages is fine too.
pub fn take_small_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
