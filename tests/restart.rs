//! A gateway that is gone leaves its address free, however it went.

mod support;

use rustix::process::Signal;
use support::{Process, engines};

/// Under io_uring the kernel takes the ring apart after the process has ended, and the listener lives as long as an accept
/// is under way in it.
#[test]
fn an_address_can_be_taken_again_at_once() {
    for engine in engines() {
        for signal in [Signal::TERM, Signal::KILL] {
            for _ in 0..5 {
                let flags = |listen: &str| {
                    [
                        "run",
                        "--engine",
                        engine,
                        "--listen",
                        listen,
                        "--admin",
                        "off",
                        "--to",
                        "http://127.0.0.1:9",
                    ]
                    .map(str::to_owned)
                };
                let mut first = Process::start(&flags("127.0.0.1:0"));
                let address = first.log("its address", |line| {
                    line.split("address=").nth(1).map(str::to_owned)
                });
                first.signal(signal);
                first.wait();
                let mut second = Process::start(&flags(&address));
                second.log("the same address", |line| {
                    line.contains(&format!("address={address}")).then_some(())
                });
                second.signal(Signal::KILL);
                second.wait();
            }
        }
    }
}
