//! What Linux says of this process, from `/proc/self`. A file that cannot be read makes its metrics absent, not zero.

use std::fs;

/// Kernel ticks per second in `/proc/self/stat`: USER_HZ, 100 on every architecture that we build for (proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// Resident memory in bytes.
pub fn resident_bytes() -> Option<u64> {
    parse_resident(&fs::read_to_string("/proc/self/status").ok()?)
}

/// User and system time of all threads, in seconds.
pub fn cpu_seconds() -> Option<f64> {
    parse_cpu(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// Open file descriptors.
pub fn open_fds() -> Option<u64> {
    // The directory that is being read is open too.
    let listed = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    Some(listed.saturating_sub(1))
}

/// The limit of open file descriptors; `None` also where there is none.
pub fn max_fds() -> Option<u64> {
    parse_max_fds(&fs::read_to_string("/proc/self/limits").ok()?)
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn parse_cpu(stat: &str) -> Option<f64> {
    // The second field is the command in parentheses, which may hold anything; utime and stime are the 14th and 15th.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some((f64::from(user) + f64::from(system)) / TICKS_PER_SECOND)
}

fn parse_max_fds(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
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
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194304 1 2 3 4 150 50 0 0 20 0 1 0 1 2 3";
        assert_eq!(parse_cpu(stat), Some(2.0));
        assert_eq!(parse_cpu("7 (a"), None);
        assert_eq!(
            parse_max_fds("Max open files            1024      4096      files\n"),
            Some(1024)
        );
        assert_eq!(
            parse_max_fds("Max open files            unlimited unlimited files\n"),
            None
        );
    }

    #[test]
    fn this_process_can_be_read() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 0));
        assert!(open_fds().is_some_and(|count| count >= 1));
        assert!(cpu_seconds().is_some());
    }
}
