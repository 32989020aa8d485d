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
//!
//! Where consumer and producer share a thread the consumer may have an attendant there ([`Doorbell::attend`]), who comes at once
//! when he is called: what was pushed is looked after in the middle of the producer's turn, not behind all that waits for its
//! own.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use atomic_waker::AtomicWaker;

/// One consumer waits, any number of producers ring.
#[derive(Debug, Default)]
pub struct Doorbell {
    rung: AtomicBool,
    waker: AtomicWaker,
}

/// Who looks after what a bell is rung for.
type Attendant = Rc<dyn Fn()>;

thread_local! {
    /// Of this thread, with the bells that they attend. A core serves few destinations.
    static ATTENDANTS: RefCell<Vec<(*const Doorbell, Attendant)>> = const { RefCell::new(Vec::new()) };
}

impl Doorbell {
    /// Has `attendant` called on this thread from now on. He must not call this bell himself.
    pub fn attend(&'static self, attendant: impl Fn() + 'static) {
        ATTENDANTS.with_borrow_mut(|all| all.push((std::ptr::from_ref(self), Rc::new(attendant))));
    }

    /// Sends this thread's attendant away.
    pub fn dismiss_attendant(&self) {
        ATTENDANTS.with_borrow_mut(|all| all.retain(|(bell, _)| !std::ptr::eq(*bell, self)));
    }

    /// Calls the attendant of this thread, or rings where it has none.
    pub fn call(&self) {
        let attendant = ATTENDANTS.with_borrow(|all| {
            let mut all = all.iter();
            all.find_map(|(bell, attendant)| std::ptr::eq(*bell, self).then(|| attendant.clone()))
        });
        match attendant {
            Some(attendant) => attendant(),
            None => self.ring(),
        }
    }

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
    fn an_attendant_is_called_on_his_own_thread_only() {
        let [attended, other]: [&'static Doorbell; 2] = [(); 2].map(|()| &*Box::leak(Box::default()));
        let calls = Rc::new(std::cell::Cell::new(0));
        attended.attend({
            let calls = calls.clone();
            move || calls.set(calls.get() + 1)
        });
        let is_rung = |bell: &Doorbell| bell.rung.swap(false, Ordering::SeqCst);
        attended.call();
        other.call();
        assert_eq!((calls.get(), is_rung(attended), is_rung(other)), (1, false, true));
        std::thread::spawn(|| attended.call()).join().unwrap();
        assert_eq!((calls.get(), is_rung(attended)), (1, true));
        attended.dismiss_attendant();
        attended.call();
        assert_eq!((calls.get(), is_rung(attended)), (1, true));
    }

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
