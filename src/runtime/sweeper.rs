//! Timeouts of one core's connections, without a timer each.
//!
//! A connection registers once and then only writes its deadline into a cell. Every [`SWEEP_EVERY`] the core looks at all
//! cells; where a deadline has passed it shuts the socket down, which ends whatever operation is in flight, and the task
//! finds [`Watch::expired`] true. So a timeout costs nothing per operation and is late by at most one sweep.
//!
//! The same cells say which connections are idle, for the connection limit and for taking receive buffers back. An idle
//! connection is never shut down but its receive is cancelled: a request that has just come in wins, is served and gets
//! its answer.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use monoio::io::{CancelHandle, Canceller};

use super::clock::{self, Mono};
use super::load::Load;
use super::{descriptors, socket};

/// How late a timeout may be.
pub const SWEEP_EVERY: Duration = Duration::from_millis(100);
/// A receive buffer that has waited this long for a request is taken back.
const BUFFER_IDLE_MAX: Duration = Duration::from_secs(1);

/// A connection that has been idle for less does not make room for others: its client may just be about to send.
pub const YIELD_IDLE_MIN: Duration = Duration::from_millis(200);

/// All connections of one core, the one that made it.
pub struct Sweeper {
    load: Load,
    /// Since when the connection that has been idle longest is idle, as of the last look; `NEVER` with none.
    longest_idle: Cell<Mono>,
    cells: RefCell<Vec<Rc<WatchCell>>>,
}

/// Why the sweeper has ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its deadline has passed.
    Deadline,
    /// Another one needed its place.
    MadeRoom,
    /// It was idle when a shutdown began.
    ShutDown,
}

/// What happens when a deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Receiving ends, an answer can still be sent.
    StopReceiving,
    /// Both directions end.
    Stop,
}

struct WatchCell {
    fd: RawFd,
    index: Cell<usize>,
    deadline: Cell<Mono>,
    expiry: Cell<Expiry>,
    ended: Cell<Option<Ended>>,
    /// When it became idle: nothing received since, nothing to send. `NEVER` while busy.
    idle_since: Cell<Mono>,
    /// Whether the receive that waits holds a buffer worth taking back.
    reclaimable: Cell<bool>,
    canceller: RefCell<Canceller>,
}

/// One connection's place at its core's sweeper; given up on drop.
pub struct Watch {
    sweeper: Rc<Sweeper>,
    cell: Rc<WatchCell>,
}

impl Default for Sweeper {
    fn default() -> Self {
        Self {
            load: Load::of_this_thread(),
            longest_idle: Cell::new(Mono::NEVER),
            cells: RefCell::default(),
        }
    }
}

impl Sweeper {
    /// Registers a connection, without a deadline.
    pub fn watch(self: &Rc<Self>, fd: RawFd) -> Watch {
        let mut cells = self.cells.borrow_mut();
        let cell = Rc::new(WatchCell {
            fd,
            index: Cell::new(cells.len()),
            deadline: Cell::new(Mono::NEVER),
            expiry: Cell::new(Expiry::Stop),
            ended: Cell::new(None),
            idle_since: Cell::new(Mono::NEVER),
            reclaimable: Cell::new(false),
            canceller: RefCell::new(Canceller::new()),
        });
        cells.push(cell.clone());
        Watch {
            sweeper: self.clone(),
            cell,
        }
    }

    /// Ends what has passed its deadline. Returns how many did.
    pub fn sweep(&self, now: Mono) -> usize {
        let mut ended = 0;
        let mut longest_idle = Mono::NEVER;
        for cell in self.cells.borrow().iter() {
            if cell.deadline.get() <= now {
                cell.deadline.set(Mono::NEVER);
                cell.ended.set(Some(Ended::Deadline));
                ended += 1;
                match cell.expiry.get() {
                    _ if cell.is_idle() => cell.cancel(),
                    Expiry::StopReceiving => socket::stop_receiving(cell.fd),
                    Expiry::Stop => socket::stop(cell.fd),
                }
            } else if cell.reclaimable.get() && now.since(cell.idle_since.get()) > BUFFER_IDLE_MAX {
                cell.reclaimable.set(false);
                cell.cancel();
            }
            if cell.ended.get().is_none() {
                longest_idle = longest_idle.min(cell.idle_since.get());
            }
        }
        self.longest_idle.set(longest_idle);
        ended
    }

    /// Since when the connection that has been idle longest is idle; `NEVER` with none. Known to within [`SWEEP_EVERY`].
    pub fn longest_idle(&self) -> Mono {
        self.longest_idle.get()
    }

    /// Closes the connection that has been idle longest, and for at least [`YIELD_IDLE_MIN`]. Returns whether there was one.
    pub fn close_longest_idle(&self, now: Mono) -> bool {
        let cells = self.cells.borrow();
        let (mut longest, mut next): (Option<&Rc<WatchCell>>, Mono) = (None, Mono::NEVER);
        for cell in cells.iter().filter(|cell| cell.ended.get().is_none()) {
            let since = cell.idle_since.get();
            match longest {
                Some(longest) if longest.idle_since.get() <= since => next = next.min(since),
                _ => {
                    next = longest.map_or(next, |longest| longest.idle_since.get());
                    longest = Some(cell);
                }
            }
        }
        let good =
            |cell: &&Rc<WatchCell>| cell.is_idle() && now.since(cell.idle_since.get()) >= YIELD_IDLE_MIN;
        let Some(cell) = longest.filter(good) else {
            return false;
        };
        self.longest_idle.set(next);
        cell.end(Ended::MadeRoom);
        true
    }

    /// Closes the longest-idle connection for somebody who is out of file descriptors. Returns whether there was one.
    pub fn make_room(&self, now: Mono) -> bool {
        let made = self.close_longest_idle(now);
        if made {
            descriptors::grant_room();
        }
        made
    }

    /// Closes every idle connection: a shutdown has begun.
    pub fn close_idle(&self) {
        for cell in self.cells.borrow().iter().filter(|cell| cell.is_idle()) {
            cell.end(Ended::ShutDown);
        }
    }

    /// Whether this core is saturated, so that what waits here waits for the core itself.
    pub fn is_busy(&self) -> bool {
        self.load.is_busy()
    }

    /// Sweeps until the core ends.
    pub async fn run(self: Rc<Self>) {
        loop {
            monoio::time::sleep(SWEEP_EVERY).await;
            clock::follow_wall_clock();
            self.load.look();
            let now = clock::recent();
            self.sweep(now);
            if descriptors::is_room_wished(now) {
                self.make_room(now);
            }
        }
    }
}

impl WatchCell {
    fn is_idle(&self) -> bool {
        self.idle_since.get() != Mono::NEVER
    }

    fn end(&self, why: Ended) {
        self.ended.set(Some(why));
        self.cancel();
    }

    fn cancel(&self) {
        let canceller = self.canceller.take();
        self.canceller.replace(canceller.cancel());
    }
}

impl Watch {
    /// Sets the deadline and what it does.
    pub fn arm(&self, deadline: Mono, expiry: Expiry) {
        self.cell.deadline.set(deadline);
        self.cell.expiry.set(expiry);
    }

    /// Takes the deadline back.
    pub fn disarm(&self) {
        self.cell.deadline.set(Mono::NEVER);
    }

    /// Whether a deadline has passed, or the connection was closed to make room.
    pub fn expired(&self) -> bool {
        self.ended().is_some()
    }

    /// Why the sweeper has ended the connection, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.cell.ended.get()
    }

    /// Ends the connection once more at the next sweep: what there was to receive may not have been enough.
    pub fn expire_again(&self) {
        self.arm(clock::recent(), Expiry::Stop);
    }

    /// Whether there is something to receive, be it the end.
    pub fn has_input(&self) -> bool {
        !socket::is_quiet(self.cell.fd)
    }

    /// Marks the connection idle since `now`, to be closed at `deadline`.
    pub fn set_idle(&self, now: Mono, deadline: Mono) {
        self.cell.idle_since.set(now);
        self.arm(deadline, Expiry::Stop);
    }

    /// Marks the connection busy. If it was to be closed, what it has received came first.
    pub fn set_busy(&self) {
        self.cell.idle_since.set(Mono::NEVER);
        self.cell.ended.set(None);
        self.cell.reclaimable.set(false);
        self.disarm();
    }

    /// For the receive that waits while idle: if it is `reclaimable`, it is cancelled once it has waited too long.
    pub fn cancel_handle(&self, reclaimable: bool) -> CancelHandle {
        self.cell.reclaimable.set(reclaimable);
        self.cell.canceller.borrow().handle()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut cells = self.sweeper.cells.borrow_mut();
        let index = self.cell.index.get();
        cells.swap_remove(index);
        if let Some(moved) = cells.get(index) {
            moved.index.set(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn at(millis: u64) -> Mono {
        Mono::default().after(Duration::from_millis(millis))
    }

    #[test]
    fn a_passed_deadline_ends_the_receive_and_only_once() {
        let sweeper = Rc::new(Sweeper::default());
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let watch = sweeper.watch(ours.as_raw_fd());
        watch.arm(at(100), Expiry::StopReceiving);
        assert_eq!(sweeper.sweep(at(99)), 0);
        assert!(!watch.expired());
        assert_eq!(sweeper.sweep(at(100)), 1);
        assert!(watch.expired());
        assert_eq!(ours.read(&mut [0; 1]).unwrap(), 0);
        assert_eq!(sweeper.sweep(at(1000)), 0);
    }

    #[test]
    fn the_longest_idle_makes_room() {
        let sweeper = Rc::new(Sweeper::default());
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        let watches: Vec<_> = pairs
            .iter()
            .map(|(ours, _)| sweeper.watch(ours.as_raw_fd()))
            .collect();
        assert!(!sweeper.close_longest_idle(at(1000)));
        watches[2].set_idle(at(5), Mono::NEVER);
        watches[1].set_idle(at(3), Mono::NEVER);
        watches[0].set_idle(at(900), Mono::NEVER);
        assert!(sweeper.close_longest_idle(at(1000)));
        assert_eq!(
            watches.iter().map(Watch::expired).collect::<Vec<_>>(),
            [false, true, false]
        );
        assert_eq!(sweeper.longest_idle(), at(5), "what is closed does not count");
        assert!(sweeper.close_longest_idle(at(1000)));
        assert!(!sweeper.close_longest_idle(at(1000)));
        sweeper.sweep(at(1000));
        assert_eq!(
            sweeper.longest_idle(),
            at(900),
            "too fresh to be closed, but idle"
        );
        assert_eq!(watches[1].ended(), Some(Ended::MadeRoom));
    }

    #[test]
    fn leaving_keeps_the_others_in_place() {
        let sweeper = Rc::new(Sweeper::default());
        let mut watches: Vec<_> = (0..5).map(|_| sweeper.watch(-1)).collect();
        watches.remove(1);
        watches.remove(0);
        for (index, cell) in sweeper.cells.borrow().iter().enumerate() {
            assert_eq!(cell.index.get(), index);
        }
        watches.clear();
        assert!(sweeper.cells.borrow().is_empty());
    }
}
