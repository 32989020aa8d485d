//! The memory that a gateway may take, as docs/what-happens-when.md states it, and what it has taken.
//!
//! Responsible for the formula and for reading the kernel's account of a process. Not responsible for making it grow.

use std::fs;

use super::gateway::Gateway;
use super::tell;

/// The program itself: code, tables, the control plane, and what the allocator keeps for later, in bytes.
const BASE: u64 = 32 << 20;
/// Each core: its pool of receive buffers (4 MiB), its ring or event list, its stack, what its allocator keeps.
const PER_CORE: u64 = 8 << 20;
/// Each destination: its crossing between cores.
const PER_DESTINATION: u64 = 2 << 20;
/// Each destination's spool: its thread has buffers of all sizes, of which the allocator keeps some for later, too.
const PER_SPOOL: u64 = 16 << 20;
/// Each request that may be under way to a destination: what the head of an answer may grow to (72 KiB, in a buffer that
/// doubles).
const PER_REQUEST: u64 = 128 << 10;
/// `--inflight`, where a test does not say otherwise.
const INFLIGHT: u64 = 64;
/// Each client connection: its task, and the small buffer that no limit counts.
const PER_CONNECTION: u64 = 8 << 10;

/// The formula as the page writes it.
pub fn formula() -> String {
    let (base, core, destination) = (BASE >> 20, PER_CORE >> 20, PER_DESTINATION >> 20);
    let (spool, request, connection) = (PER_SPOOL >> 20, PER_REQUEST >> 10, PER_CONNECTION >> 10);
    format!(
        "--memory-limit + {base} MiB + {core} MiB per core + ({destination} MiB + {request} KiB * inflight) per destination \
         + {spool} MiB per destination with a spool + {connection} KiB per client connection"
    )
}

/// What decides how much a gateway may take.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// `--memory-limit`, in bytes.
    pub limit: u64,
    /// `--cores`.
    pub cores: u64,
    /// Number of `--to`.
    pub destinations: u64,
    /// How many of them have a spool.
    pub spools: u64,
    /// Most client connections at a time.
    pub connections: u64,
}

impl Memory {
    /// The most resident memory that it may ever take, in bytes.
    pub fn allowed(&self) -> u64 {
        let per_destination = PER_DESTINATION + INFLIGHT * PER_REQUEST;
        let parts = BASE + self.cores * PER_CORE + self.destinations * per_destination;
        let parts = parts + self.spools * PER_SPOOL;
        self.limit + parts + self.connections * PER_CONNECTION
    }

    /// Asserts that the gateway has never taken more, and says how much it was.
    pub fn assert_kept(&self, gateway: &Gateway, what: &str) {
        let peak = peak_bytes(gateway.process.id());
        let allowed = self.allowed();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        tell(format_args!(
            "{what}: at most {:.1} MiB resident, {:.1} MiB allowed",
            mib(peak),
            mib(allowed)
        ));
        assert!(
            peak <= allowed,
            "{what}: {peak} bytes were resident, {allowed} are allowed: {self:?}"
        );
    }
}

/// The most that was ever resident of a process (VmHWM), in bytes.
fn peak_bytes(process: u32) -> u64 {
    status_bytes(process, "VmHWM:")
}

/// What is resident of a process now (VmRSS), in bytes.
pub fn resident_bytes(process: u32) -> u64 {
    status_bytes(process, "VmRSS:")
}

fn status_bytes(process: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.expect("the kernel tells it in kB") << 10
}
