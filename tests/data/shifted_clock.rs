//! A library for `LD_PRELOAD`, built by `tests/clocks.rs`: the wall clock of the process is off by as many nanoseconds as the
//! file named in `SHIFTED_CLOCK` says (8 bytes, little-endian, signed), read at every look at the clock. Monotonic clocks are
//! as they are. It needs no crates, and nothing of libc but what is declared here.

use std::ffi::{c_char, c_int, c_long};
use std::sync::atomic::{AtomicI32, Ordering};

#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: c_long,
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn getenv(name: *const c_char) -> *const c_char;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn pread(file: c_int, into: *mut u8, bytes: usize, offset: i64) -> isize;
}

#[cfg(target_arch = "x86_64")]
const CLOCK_GETTIME: c_long = 228;
#[cfg(target_arch = "aarch64")]
const CLOCK_GETTIME: c_long = 113;
/// CLOCK_REALTIME and CLOCK_REALTIME_COARSE.
const WALL_CLOCKS: [c_int; 2] = [0, 5];
/// O_CLOEXEC.
const CLOSE_ON_EXEC: c_int = 0o2_000_000;
const SECOND: i64 = 1_000_000_000;

static FILE: AtomicI32 = AtomicI32::new(-1);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, at: *mut Timespec) -> c_int {
    // SAFETY: the caller's pointer goes to the kernel as it came.
    let result = unsafe { syscall(CLOCK_GETTIME, clock as c_long, at) } as c_int;
    if result == 0 && WALL_CLOCKS.contains(&clock) {
        // SAFETY: the kernel has just written there.
        let at = unsafe { &mut *at };
        let shifted = at.seconds * SECOND + at.nanoseconds as i64 + shift();
        at.seconds = shifted.div_euclid(SECOND);
        at.nanoseconds = shifted.rem_euclid(SECOND) as c_long;
    }
    result
}

fn shift() -> i64 {
    let mut file = FILE.load(Ordering::Relaxed);
    if file < 0 {
        // SAFETY: both names end in a zero; the environment does not change.
        file = unsafe {
            let path = getenv(c"SHIFTED_CLOCK".as_ptr());
            if path.is_null() { -1 } else { open(path, CLOSE_ON_EXEC) }
        };
        FILE.store(file, Ordering::Relaxed);
    }
    let mut bytes = [0; 8];
    // SAFETY: there is room for 8 bytes.
    let read = unsafe { pread(file, bytes.as_mut_ptr(), bytes.len(), 0) };
    if read == 8 { i64::from_le_bytes(bytes) } else { 0 }
}
