//! What Linux says of this process. A file of `/proc/self` that cannot be read makes its metrics absent, not zero.
//!
//! Reading takes a descriptor, and they are asked for most where there are none: then it is one of the reserve.

use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::runtime::descriptors;

/// Resident memory in bytes.
pub fn resident_bytes() -> Option<u64> {
    parse_resident(&descriptors::lend(|| fs::read_to_string("/proc/self/status")).ok()?)
}

/// User and system time of all threads, in seconds.
pub fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// Open file descriptors.
pub fn open_fds() -> Option<u64> {
    // The directory that is being read is open too.
    let listed = descriptors::lend(|| Ok(fs::read_dir("/proc/self/fd")?.count() as u64)).ok()?;
    Some(listed.saturating_sub(1))
}

/// The limit of open file descriptors; `None` where there is none.
pub fn max_fds() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(
            parse_resident("Name:\tx\nVmRSS:\t   4312 kB\n"),
            Some(4312 * 1024)
        );
        assert_eq!(parse_resident("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 0));
        assert!(open_fds().is_some_and(|count| count >= 1));
        assert!(cpu_seconds() > 0.0);
        assert!(max_fds().is_none_or(|limit| limit >= 1));
    }
}
