//! How one core tells another that something lies in its queue, at most one wake-up per sleep.
//!
//! The protocol, numbered on both sides (step letters are the orders that matter):
//! ```text
//! consumer                                  producer
//!  c1 empty the queue                        p1 push
//!  c2 store its waker                        p2 swap rung := true
//!  c3 rung was true? take it, back to c1     p3 was false: wake (one eventfd write if the consumer
//!  c4 sleep                                     is on another, sleeping core; a list push otherwise)
//! ```
//! A push between c1 and c3 is seen at c3, one after c3 finds the waker of c2, so none is slept through. While the bell
//! is rung and not yet heard, further pushes cost one atomic swap.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use atomic_waker::AtomicWaker;

/// One consumer waits, any number of producers ring.
#[derive(Debug, Default)]
pub struct Doorbell {
    rung: AtomicBool,
    waker: AtomicWaker,
}

impl Doorbell {
    /// Wakes the consumer unless a ring is already on its way.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    /// Ends when the bell has been rung since the last call ended. Only one task may wait at a time.
    pub async fn rung(&self) {
        poll_fn(|context| {
            if self.rung.swap(false, Ordering::SeqCst) {
                return Poll::Ready(());
            }
            self.waker.register(context.waker());
            if self.rung.swap(false, Ordering::SeqCst) {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn no_ring_is_slept_through() {
        let bell = Arc::new(Doorbell::default());
        let (sender, receiver) = crossbeam_channel::bounded::<u32>(8);
        let producer = std::thread::spawn({
            let bell = bell.clone();
            move || {
                for number in 0..10_000 {
                    let mut number = number;
                    while let Err(full) = sender.try_send(number) {
                        number = full.into_inner();
                        std::thread::yield_now();
                    }
                    bell.ring();
                }
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let heard = runtime.block_on(async {
            let mut heard = Vec::new();
            while heard.len() < 10_000 {
                heard.extend(receiver.try_iter());
                if heard.len() < 10_000 {
                    let limit = std::time::Duration::from_secs(20);
                    tokio::time::timeout(limit, bell.rung())
                        .await
                        .expect("a ring was lost");
                }
            }
            heard
        });
        producer.join().unwrap();
        assert_eq!(heard, (0..10_000).collect::<Vec<_>>());
    }
}
