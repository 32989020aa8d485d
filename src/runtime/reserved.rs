//! A thread that is there before its work is: what must not fail half-way is begun on one of these.

use std::io;
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};

/// A thread that waits for its work. Without any it ends.
#[derive(Debug)]
pub struct Reserved {
    thread: JoinHandle<()>,
    work: SyncSender<Work>,
}

type Work = Box<dyn FnOnce() + Send>;

impl Reserved {
    /// Starts a thread named `name`.
    ///
    /// # Errors
    /// The operating system refuses one.
    pub fn new(name: &str) -> io::Result<Self> {
        let (work, given) = mpsc::sync_channel::<Work>(1);
        let wait = move || given.recv().into_iter().for_each(|work| work());
        let thread = thread::Builder::new().name(name.into()).spawn(wait)?;
        Ok(Self { thread, work })
    }

    /// Begins its work.
    pub fn begin(self, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        // There is room for one, and the thread waits for it.
        let _ = self.work.send(Box::new(work));
        self.thread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_and_none_ends_the_thread() {
        let (sender, done) = mpsc::channel();
        let working = Reserved::new("work").unwrap();
        let thread = working.begin(move || sender.send(thread::current().name().map(str::to_owned)).unwrap());
        thread.join().unwrap();
        assert_eq!(done.recv().unwrap().as_deref(), Some("work"));
        let Reserved { thread, work } = Reserved::new("idle").unwrap();
        drop(work);
        thread.join().unwrap();
    }
}
