//! Whether a core has time to spare, as the kernel's scheduler tells it.
//!
//! A core that did not sleep is saturated: what waits on it waits for the core itself. That is the time it ran and the time it
//! was ready to run while somebody else had its CPU, as a part of all time (`/proc/thread-self/schedstat`, proc_pid_schedstat(5):
//! nanoseconds on a CPU, nanoseconds waiting for one). How late its timers fire says much less: with many connections a
//! turn of a saturated loop still takes only a millisecond.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use super::clock::{self, Mono};

/// A look goes back over this time at least: long enough that a burst of requests is none yet. The kernel counts in ticks of up
/// to 4 ms (`CONFIG_HZ=250`), which makes it right to a twelfth. It costs a system call.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Saturated is a core that needed a CPU for more than this part of the time.
const BUSY_PART: f64 = 0.9;

/// The load of the thread that made it.
#[derive(Debug)]
pub struct Load {
    /// `None` where the kernel does not tell (`CONFIG_SCHED_INFO`).
    schedstat: Option<File>,
    last: Cell<Reading>,
    busy: Cell<bool>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    at: Mono,
    /// The time that a CPU was needed for until then.
    needed: Duration,
}

impl Load {
    /// The load of this thread. It must not be asked on another one.
    pub fn of_this_thread() -> Self {
        let load = Self {
            schedstat: File::open("/proc/thread-self/schedstat").ok(),
            last: Cell::default(),
            busy: Cell::new(false),
        };
        load.look();
        load
    }

    /// Whether the core was saturated lately. Where the kernel does not tell it never is.
    pub fn is_busy(&self) -> bool {
        if clock::recent().since(self.last.get().at) >= LOOK_EVERY {
            self.look();
        }
        self.busy.get()
    }

    /// Looks, where the last look is long enough ago: regular looks keep the time that the next one goes back over short.
    pub fn look(&self) {
        let Some(schedstat) = &self.schedstat else { return };
        let (last, at) = (self.last.get(), clock::now());
        if at.since(last.at) < LOOK_EVERY {
            return;
        }
        let Some(needed) = read(schedstat) else { return };
        self.busy.set(is_saturated(
            needed.saturating_sub(last.needed),
            at.since(last.at),
        ));
        self.last.set(Reading { at, needed });
    }
}

fn is_saturated(needed: Duration, of: Duration) -> bool {
    needed > of.mul_f64(BUSY_PART)
}

fn read(schedstat: &File) -> Option<Duration> {
    let mut text = [0; 64]; // three numbers of up to 20 digits
    let bytes = schedstat.read_at(&mut text, 0).ok()?;
    parse(std::str::from_utf8(&text[..bytes]).ok()?)
}

/// The time on a CPU and the time waiting for one, added up.
fn parse(schedstat: &str) -> Option<Duration> {
    let mut numbers = schedstat.split_ascii_whitespace().map(str::parse::<u64>);
    let (ran, waited) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(Duration::from_nanos(ran.saturating_add(waited)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_numbers_count() {
        for (text, nanos) in [
            ("12 30 4\n", Some(42)),
            ("0 0 0", Some(0)),
            ("18446744073709551615 1 1", Some(u64::MAX)),
            ("12", None),
            ("a b c", None),
            ("", None),
        ] {
            assert_eq!(parse(text), nanos.map(Duration::from_nanos), "{text:?}");
        }
    }

    #[test]
    fn a_core_that_hardly_sleeps_is_saturated() {
        const MS: fn(u64) -> Duration = Duration::from_millis;
        assert!(is_saturated(MS(46), MS(50)) && is_saturated(MS(54), MS(50)));
        assert!(!is_saturated(MS(44), MS(50)) && !is_saturated(MS(0), MS(0)));
    }

    #[test]
    fn a_look_that_comes_too_soon_changes_nothing() {
        let load = Load::of_this_thread();
        // Nothing was needed until a moment that is yet to come: whatever is read now would be more than all of the time since.
        let soon = clock::now().after(Duration::from_secs(3_600));
        load.last.set(Reading {
            at: soon,
            needed: Duration::ZERO,
        });
        load.busy.set(false);
        load.look();
        assert!(!load.busy.get(), "a verdict over no time at all");
        assert_eq!(
            load.last.get().at,
            soon,
            "the next one goes back over the whole time"
        );
        // One that is due looks.
        load.last.set(Reading::default());
        load.look();
        assert!(load.last.get().at > Mono::default());
    }

    #[test]
    fn a_thread_that_spins_is_busy_and_one_that_sleeps_is_not() {
        let load = Load::of_this_thread();
        let deadline = clock::now().after(Duration::from_secs(20));
        let begun = load.last.get().needed;
        // Whoever else wants the CPU meanwhile: waiting for it counts as well. Not so if this process is stopped (SIGSTOP, a
        // frozen cgroup): what comes after that counts.
        while load.last.get().needed < begun + Duration::from_millis(150) || !load.busy.get() {
            assert!(
                clock::now() < deadline,
                "a thread that spins is not seen to be busy"
            );
            load.is_busy();
        }
        std::thread::sleep(Duration::from_millis(200));
        clock::now();
        assert!(!load.is_busy());
    }
}
