//! Where a destination's name leads to right now. Written by the control plane, read by writer cores.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, oneshot};

/// The addresses of one destination. Empty until its name has resolved for the first time.
#[derive(Debug, Default)]
pub struct Addresses {
    list: ArcSwap<Vec<SocketAddr>>,
    /// How often `list` has changed.
    changes: AtomicU64,
    is_looked_up: AtomicBool,
    looked_up: Notify,
    /// Rung by a core that could not connect: look the name up again.
    pub stale: Notify,
}

impl Addresses {
    /// Sets what the name resolves to. Returns whether that is a change.
    pub fn set(&self, mut addresses: Vec<SocketAddr>) -> bool {
        addresses.sort_unstable();
        addresses.dedup();
        if **self.list.load() == addresses {
            return false;
        }
        self.list.store(Arc::new(addresses));
        self.changes.fetch_add(1, Ordering::Release);
        true
    }

    /// Says that the name has been looked up, whether or not it has addresses.
    pub fn set_looked_up(&self) {
        if !self.is_looked_up.swap(true, Ordering::AcqRel) {
            self.looked_up.notify_waiters();
        }
    }

    /// Ends when the name has been looked up for the first time: until then nobody can say that it does not resolve.
    pub async fn looked_up(&self) {
        // Made before the look, so that a ring between the two is heard.
        let rung = self.looked_up.notified();
        if !self.is_looked_up.load(Ordering::Acquire) {
            rung.await;
        }
    }

    /// The `turn`th address, round and round; `None` while the name does not resolve.
    pub fn pick(&self, turn: usize) -> Option<SocketAddr> {
        let list = self.list.load();
        (!list.is_empty()).then(|| list[turn % list.len()])
    }

    /// How often they have changed: whoever asked [`Addresses::contains`] at this count need not ask again.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether a connection to `address` may still be used.
    pub fn contains(&self, address: SocketAddr) -> bool {
        self.list.load().contains(&address)
    }
}

/// Asks the control plane to resolve a name that is no destination's own: the target of a redirect.
#[derive(Clone, Debug)]
pub struct Resolver {
    requests: mpsc::UnboundedSender<Lookup>,
}

/// One question to the control plane.
#[derive(Debug)]
pub struct Lookup {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whether TLS is to be spoken there: then the system's roots are read too, which no core should do.
    pub is_tls: bool,
    /// Where the first address goes, or nothing when it does not resolve.
    pub reply: oneshot::Sender<SocketAddr>,
}

impl Resolver {
    /// A resolver, and the questions that the control plane answers. At most one question is open per request in flight,
    /// so the queue is bounded by the windows of all destinations.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Lookup>) {
        let (requests, lookups) = mpsc::unbounded_channel();
        (Self { requests }, lookups)
    }

    /// The first address of `host`; `None` when it does not resolve. For TLS, the system's roots are there then.
    pub async fn resolve(&self, host: &str, port: u16, is_tls: bool) -> Option<SocketAddr> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Lookup {
                host: host.to_owned(),
                port,
                is_tls,
                reply,
            })
            .ok()?;
        answer.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_set_is_a_change() {
        let addresses = Addresses::default();
        let [a, b] = ["127.0.0.1:1", "127.0.0.2:1"].map(|text| text.parse::<SocketAddr>().unwrap());
        assert_eq!(addresses.pick(0), None);
        assert!(addresses.set(vec![b, a, a]));
        assert!(!addresses.set(vec![a, b]));
        assert_eq!(
            [addresses.pick(0), addresses.pick(1), addresses.pick(2)],
            [Some(a), Some(b), Some(a)]
        );
        assert!(addresses.set(vec![a]) && !addresses.contains(b));
    }
}
