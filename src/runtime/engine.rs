//! Which kernel interface moves our bytes: io_uring where a small real operation works, epoll elsewhere.
//!
//! The engine is probed by doing: a ring is built with the flags we want and carries one message through a socket pair.
//! What the kernel *says* it supports is only read to explain a refusal (sysctl, seccomp, memlock, kernel release),
//! because the same errno has many causes (USERS.md section 6).

use std::fmt;
use std::io;
use std::time::Duration;

use monoio::io::{AsyncReadRentExt, AsyncWriteRentExt};

use super::run_local;

/// What the operator asked for (`--engine`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineChoice {
    /// io_uring where it works, epoll elsewhere.
    Auto,
    /// io_uring, or refuse to start.
    #[value(name = "io_uring", alias = "io-uring", alias = "iouring")]
    IoUring,
    /// epoll, without trying io_uring.
    Epoll,
}

/// What the cores run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// A ring per core. `deferred`: built with SINGLE_ISSUER + DEFER_TASKRUN (Linux 6.1 and later).
    IoUring {
        /// Whether the ring has the flags of DESIGN.md section 3.
        deferred: bool,
    },
    /// An epoll instance per core.
    Epoll,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IoUring { .. } => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

/// The engine taken, and why.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What the cores will run on.
    pub engine: Engine,
    /// A sentence for the first log line and `pyrotee doctor`.
    pub reason: String,
}

/// io_uring was demanded and cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("--engine io_uring: {reason}; use --engine auto to fall back to epoll, or {fix}")]
pub struct EngineRefused {
    reason: String,
    fix: String,
}

/// Finds the engine for `choice` by trying it on a thread of its own.
///
/// # Errors
/// Only for [`EngineChoice::IoUring`] where the ring cannot be built or used.
pub fn probe(choice: EngineChoice) -> Result<Verdict, EngineRefused> {
    if choice == EngineChoice::Epoll {
        return Ok(Verdict {
            engine: Engine::Epoll,
            reason: "asked for with --engine epoll".into(),
        });
    }
    let rings = try_rings();
    match (rings.verdict(), choice) {
        (Err(refusal), EngineChoice::IoUring) => Err(EngineRefused {
            reason: refusal.to_string(),
            fix: refusal.fix().to_owned(),
        }),
        (Err(refusal), _) => Ok(Verdict {
            engine: Engine::Epoll,
            reason: format!("{refusal}; to change it: {}", refusal.fix()),
        }),
        (Ok(verdict), _) => Ok(verdict),
    }
}

/// What became of the trials of io_uring.
#[derive(Debug)]
pub struct Rings {
    /// With the flags of DESIGN.md section 3.
    pub deferred: io::Result<()>,
    /// Without them; tried only where the one with them fails.
    pub plain: Option<io::Result<()>>,
}

/// Tries a ring with the flags we want, and where that fails a plain one.
pub fn try_rings() -> Rings {
    let deferred = try_engine(Engine::IoUring { deferred: true });
    let plain = deferred
        .is_err()
        .then(|| try_engine(Engine::IoUring { deferred: false }));
    Rings { deferred, plain }
}

impl Rings {
    /// The ring to take, or why there is none.
    ///
    /// # Errors
    /// When neither works.
    pub fn verdict(&self) -> Result<Verdict, Refusal> {
        let kernel = kernel_release();
        match (&self.deferred, &self.plain) {
            (Ok(()), _) => Ok(Verdict {
                engine: Engine::IoUring { deferred: true },
                reason: format!("a ring with SINGLE_ISSUER and DEFER_TASKRUN works on Linux {kernel}"),
            }),
            (Err(error), Some(Ok(()))) => Ok(Verdict {
                engine: Engine::IoUring { deferred: false },
                reason: format!(
                    "a plain ring works on Linux {kernel}, one with DEFER_TASKRUN does not ({error}; it needs 6.1)"
                ),
            }),
            (Err(error), _) => Err(Refusal::read(error)),
        }
    }
}

/// Tries the engine that needs nothing but an ordinary kernel.
///
/// # Errors
/// What went wrong; then nothing can run here.
pub fn try_epoll() -> io::Result<()> {
    try_engine(Engine::Epoll)
}

/// Carries one message through a socket pair under `engine`.
fn try_engine(engine: Engine) -> io::Result<()> {
    let trial = std::thread::Builder::new().name("probe".into()).spawn(move || {
        let (sender, receiver) = std::sync::mpsc::channel();
        run_local(engine, move || async move {
            let _ = sender.send(carry_message().await);
        })?;
        receiver
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the trial ended early")))
    })?;
    trial
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the trial panicked")))
}

async fn carry_message() -> io::Result<()> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let mut ours = monoio::net::UnixStream::from_std(ours)?;
    let mut theirs = monoio::net::UnixStream::from_std(theirs)?;
    let trial = async move {
        let (sent, _) = ours.write_all(b"ping".as_slice()).await;
        sent?;
        let (got, message) = theirs.read_exact(vec![0u8; 4]).await;
        got?;
        if message == b"ping" {
            Ok(())
        } else {
            Err(io::Error::other("the message changed on its way"))
        }
    };
    match monoio::time::timeout(Duration::from_secs(2), trial).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "an operation did not complete within 2 s",
        )),
    }
}

/// Why io_uring does not work here: the error, and what the system says about it.
#[derive(Debug)]
pub struct Refusal {
    error: String,
    cause: Cause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Sysctl(u32),
    Seccomp,
    OldKernel,
    Memory,
    Unknown,
}

impl Refusal {
    fn read(error: &io::Error) -> Self {
        let cause = classify(error.raw_os_error(), io_uring_disabled(), seccomp_mode());
        Self {
            error: error.to_string(),
            cause,
        }
    }

    /// What most likely forbids it.
    pub fn cause(&self) -> String {
        match self.cause {
            Cause::Sysctl(value) => format!("sysctl kernel.io_uring_disabled is {value}"),
            Cause::Seccomp => "a seccomp filter is active and most likely forbids it".into(),
            Cause::OldKernel => format!("kernel {} has no io_uring", kernel_release()),
            Cause::Memory => "not enough (lockable) memory for the ring".into(),
            Cause::Unknown => "cause unknown".into(),
        }
    }

    /// What the operator can change.
    pub fn fix(&self) -> &'static str {
        match self.cause {
            Cause::Sysctl(_) => "set sysctl kernel.io_uring_disabled=0",
            Cause::Seccomp => {
                "run with a seccomp profile that allows io_uring_setup, io_uring_enter and io_uring_register"
            }
            Cause::OldKernel => "run on Linux 5.11 or later (6.1 for full speed)",
            Cause::Memory => {
                "raise the locked-memory limit (ulimit -l) and check the memory limit of the container"
            }
            Cause::Unknown => "run `pyrotee doctor` for what this host allows",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "io_uring does not work here: {} ({})",
            self.error,
            self.cause()
        )
    }
}

/// The cause that explains `errno`, given the sysctl and the seccomp mode (0 none, 1 strict, 2 filter).
fn classify(errno: Option<i32>, disabled: Option<u32>, seccomp: u32) -> Cause {
    match (errno, disabled, seccomp) {
        (Some(libc::EPERM | libc::EACCES), Some(value @ 1..), _) => Cause::Sysctl(value),
        (Some(libc::EPERM | libc::EACCES | libc::ENOSYS), _, 1..) => Cause::Seccomp,
        (Some(libc::ENOSYS | libc::EINVAL), _, _) => Cause::OldKernel,
        (Some(libc::ENOMEM), _, _) => Cause::Memory,
        _ => Cause::Unknown,
    }
}

/// `kernel.io_uring_disabled`: 0 allowed, 1 only for a group, 2 for nobody; absent before Linux 6.6.
pub fn io_uring_disabled() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The `Seccomp:` line of `/proc/self/status`: 0 none, 1 strict, 2 filter.
pub fn seccomp_mode() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    line.and_then(|mode| mode.trim().parse().ok()).unwrap_or(0)
}

/// The running kernel's release, such as `6.18.44`.
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_explained_by_what_the_system_says() {
        for (errno, disabled, seccomp, cause) in [
            (libc::EPERM, Some(2), 0, Cause::Sysctl(2)),
            (libc::EPERM, Some(1), 2, Cause::Sysctl(1)),
            (libc::EPERM, Some(0), 2, Cause::Seccomp),
            (libc::ENOSYS, None, 2, Cause::Seccomp),
            (libc::ENOSYS, None, 0, Cause::OldKernel),
            (libc::EINVAL, None, 0, Cause::OldKernel),
            (libc::ENOMEM, Some(0), 0, Cause::Memory),
            (libc::EIO, Some(0), 0, Cause::Unknown),
        ] {
            assert_eq!(classify(Some(errno), disabled, seccomp), cause, "errno {errno}");
        }
    }

    #[test]
    fn epoll_always_works() {
        assert!(try_engine(Engine::Epoll).is_ok());
        assert_eq!(probe(EngineChoice::Epoll).unwrap().engine, Engine::Epoll);
    }
}
