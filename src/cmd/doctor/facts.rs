//! What the system says about itself. Only reads; what cannot be read is `None`, never a guess.
//!
//! Not responsible for judging it (`doctor.rs`).

use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use crate::cmd::folder;
use crate::runtime::tls::client::system_roots;
use crate::runtime::{self, engine};

/// Above this a cgroup v1 limit means none: the kernel shows the largest number of whole pages.
const UNLIMITED_V1: u64 = 1 << 60;

/// What became of trying something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// A message was carried.
    Works,
    /// It was not, and the error.
    Fails(String),
    /// There was no need to try.
    Skipped,
}

impl From<std::io::Result<()>> for Trial {
    fn from(result: std::io::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Works,
            Err(error) => Self::Fails(error.to_string()),
        }
    }
}

/// What was read.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Facts {
    pub kernel: String,
    /// The clue, if there is one.
    pub container: Option<String>,
    pub ring_deferred: Trial,
    pub ring_plain: Trial,
    pub epoll: Trial,
    /// Why there is no ring, and what to change; empty where there is one.
    pub refusal: (String, String),
    pub io_uring_disabled: Option<u32>,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    pub no_new_privs: Option<bool>,
    /// In bytes; `None` is no limit.
    pub memlock: Option<u64>,
    /// `None` is no limit.
    pub files_soft: Option<u64>,
    /// `None` is no limit.
    pub files_hard: Option<u64>,
    pub somaxconn: Option<u64>,
    /// First and last.
    pub ports: Option<(u64, u64)>,
    pub tw_reuse: Option<u64>,
    /// In seconds.
    pub fin_timeout: Option<u64>,
    pub cpus_allowed: Vec<usize>,
    pub cpus_online: Option<u64>,
    pub cgroup: CgroupLimits,
    /// Of the host, in bytes.
    pub memory: Option<u64>,
    /// Certificates that the system trusts.
    pub root_certificates: usize,
    pub archive_name: PathBuf,
    /// Bytes free, or why it cannot be written.
    pub archive: Result<u64, String>,
}

impl Facts {
    /// Reads everything, and tries every engine.
    pub fn read(archive: &Path) -> Self {
        let rings = engine::try_rings();
        let refusal = match rings.verdict() {
            Ok(_) => Default::default(),
            Err(refusal) => (refusal.cause(), refusal.fix().to_owned()),
        };
        let status = text("/proc/self/status").unwrap_or_default();
        let files = getrlimit(Resource::Nofile);
        Self {
            kernel: engine::kernel_release(),
            container: container(),
            ring_deferred: rings.deferred.into(),
            ring_plain: rings.plain.map_or(Trial::Skipped, Trial::from),
            epoll: engine::try_epoll().into(),
            refusal,
            io_uring_disabled: engine::io_uring_disabled(),
            seccomp: engine::seccomp_mode(),
            no_new_privs: line(&status, "NoNewPrivs:").map(|value| value == "1"),
            memlock: getrlimit(Resource::Memlock).current,
            files_soft: files.current,
            files_hard: files.maximum,
            somaxconn: number("/proc/sys/net/core/somaxconn"),
            ports: text("/proc/sys/net/ipv4/ip_local_port_range").and_then(|range| two_numbers(&range)),
            tw_reuse: number("/proc/sys/net/ipv4/tcp_tw_reuse"),
            fin_timeout: number("/proc/sys/net/ipv4/tcp_fin_timeout"),
            cpus_allowed: runtime::allowed_cpus(),
            cpus_online: text("/sys/devices/system/cpu/online").and_then(|list| count_in_list(&list)),
            cgroup: CgroupLimits::of(&text("/proc/self/cgroup").unwrap_or_default(), text),
            memory: text("/proc/meminfo").and_then(|info| memory_total(&info)),
            root_certificates: system_roots().count,
            archive_name: archive.to_owned(),
            archive: writable(archive),
        }
    }

    /// Major and minor.
    pub fn kernel_version(&self) -> Option<(u32, u32)> {
        let mut parts = self.kernel.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }

    /// Whether some ring works.
    pub fn has_ring(&self) -> bool {
        self.ring_deferred == Trial::Works || self.ring_plain == Trial::Works
    }
}

/// What the cgroups of this process allow, the strictest of all levels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CgroupLimits {
    /// CPUs' worth of time.
    pub cpus: Option<f64>,
    /// Bytes.
    pub memory: Option<u64>,
}

impl CgroupLimits {
    /// Reads the limits for the content of `/proc/self/cgroup`. A path from outside of a container's name space is not
    /// there inside; its parents, down to the root of what is mounted, are then all that counts.
    fn of(membership: &str, read: impl Fn(&str) -> Option<String>) -> Self {
        let mut limits = Self::default();
        for line in membership.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
                continue;
            };
            let has = |name: &str| controllers.split(',').any(|controller| controller == name);
            for folder in Path::new(path).ancestors() {
                let folder = folder.display();
                let file = |mount: &str, name: &str| {
                    read(&format!("/sys/fs/cgroup{mount}{folder}/{name}").replace("//", "/"))
                };
                if controllers.is_empty() {
                    limits.add_cpus(file("", "cpu.max").and_then(|text| cpu_max(&text)));
                    limits.add_memory(file("", "memory.max").and_then(|text| text.trim().parse().ok()));
                }
                if has("cpu") {
                    let quota = file("/cpu", "cpu.cfs_quota_us");
                    let period = file("/cpu", "cpu.cfs_period_us");
                    let both = quota
                        .zip(period)
                        .map(|(quota, period)| format!("{} {}", quota.trim(), period.trim()));
                    limits.add_cpus(both.and_then(|text| cpu_max(&text)));
                }
                if has("memory") {
                    let limit =
                        file("/memory", "memory.limit_in_bytes").and_then(|text| text.trim().parse().ok());
                    limits.add_memory(limit.filter(|limit| *limit < UNLIMITED_V1));
                }
            }
        }
        limits
    }

    fn add_cpus(&mut self, cpus: Option<f64>) {
        if let Some(cpus) = cpus {
            self.cpus = Some(self.cpus.map_or(cpus, |other| other.min(cpus)));
        }
    }

    fn add_memory(&mut self, memory: Option<u64>) {
        if let Some(memory) = memory {
            self.memory = Some(self.memory.map_or(memory, |other| other.min(memory)));
        }
    }
}

/// `QUOTA PERIOD` in microseconds; `max` or a negative quota is none.
fn cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// What gives a container away. None of it is certain, so the clue is told.
fn container() -> Option<String> {
    for file in ["/.dockerenv", "/run/.containerenv"] {
        if Path::new(file).exists() {
            return Some(format!("{file} exists"));
        }
    }
    for variable in ["KUBERNETES_SERVICE_HOST", "container"] {
        if std::env::var_os(variable).is_some() {
            return Some(format!("the variable {variable} is set"));
        }
    }
    let groups = text("/proc/1/cgroup")?;
    let names = ["docker", "kubepods", "containerd", "libpod", "lxc"];
    let name = names.iter().find(|name| groups.contains(*name))?;
    Some(format!("the cgroup of process 1 names {name}"))
}

fn writable(directory: &Path) -> Result<u64, String> {
    let folder = folder::look(directory).map_err(|error| error.to_string())?;
    folder.try_write().map_err(|error| error.to_string())?;
    Ok(folder.free)
}

fn text(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn number(path: &str) -> Option<u64> {
    text(path)?.trim().parse().ok()
}

fn two_numbers(text: &str) -> Option<(u64, u64)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The value of a line of `/proc/self/status`.
fn line<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

/// How many numbers a list such as `0-3,8` has.
fn count_in_list(list: &str) -> Option<u64> {
    let mut count = 0;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

fn memory_total(info: &str) -> Option<u64> {
    let kibibytes: u64 = line(info, "MemTotal:")?.strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strictest_level_of_a_cgroup_counts() {
        let tree = |files: &'static [(&'static str, &'static str)]| {
            move |path: &str| {
                files
                    .iter()
                    .find(|(name, _)| *name == path)
                    .map(|(_, text)| (*text).to_owned())
            }
        };
        let v2 = CgroupLimits::of(
            "0::/a/b\n",
            tree(&[
                ("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
                ("/sys/fs/cgroup/a/b/memory.max", "4096\n"),
                ("/sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
                ("/sys/fs/cgroup/a/memory.max", "8192\n"),
            ]),
        );
        let expected = CgroupLimits {
            cpus: Some(1.5),
            memory: Some(4096),
        };
        assert_eq!(v2, expected);
        // Inside a container without a name space of its own, only the mounted root is there.
        let inside = CgroupLimits::of(
            "0::/kubepods/pod1\n",
            tree(&[("/sys/fs/cgroup/memory.max", "4096\n")]),
        );
        assert_eq!(
            inside,
            CgroupLimits {
                cpus: None,
                memory: Some(4096)
            }
        );
        let v1 = CgroupLimits::of(
            "5:cpu,cpuacct:/x\n4:memory:/x\n3:pids:/x\nnonsense\n",
            tree(&[
                ("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "50000\n"),
                ("/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n"),
                ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
                ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
                ("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "4096\n"),
                (
                    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                    "9223372036854771712\n",
                ),
            ]),
        );
        assert_eq!(
            v1,
            CgroupLimits {
                cpus: Some(0.5),
                memory: Some(4096)
            }
        );
        assert_eq!(CgroupLimits::of("", tree(&[])), CgroupLimits::default());
    }

    #[test]
    fn what_proc_says_is_read() {
        assert_eq!(
            ["0-3,8", "0", "x", "3-1", ""].map(count_in_list),
            [Some(5), Some(1), None, None, None]
        );
        assert_eq!(two_numbers("32768\t60999\n"), Some((32_768, 60_999)));
        assert_eq!(two_numbers("32768"), None);
        assert_eq!(
            memory_total("MemFree: 1 kB\nMemTotal:    2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(line("Seccomp:\t2\nNoNewPrivs:\t1\n", "NoNewPrivs:"), Some("1"));
    }

    #[test]
    fn this_host_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let facts = Facts::read(folder.path());
        assert_eq!(facts.epoll, Trial::Works);
        assert!(facts.kernel_version().is_some(), "{}", facts.kernel);
        assert!(!facts.cpus_allowed.is_empty());
        assert!(facts.archive.is_ok(), "{:?}", facts.archive);
        assert_eq!(facts.has_ring(), facts.refusal.0.is_empty());
    }
}
