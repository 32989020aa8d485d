//! Keeps a destination's [`Addresses`] up to date. Runs on the control plane.
//!
//! A host that is an address already needs none of this: [`fixed_addresses`] are there before the first push.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::mpsc;

use super::addresses::{Addresses, Lookup};
use crate::fanout::Gate;
use crate::runtime::tls::client::system_roots;

/// Shortest time between two look-ups of one name, however often cores ask for it.
const LOOKUP_EVERY_MIN: Duration = Duration::from_secs(1);
/// A look-up without an answer is given up after this time.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The addresses of a host that is an address already; `None` for a name.
pub fn fixed_addresses(host: &str, port: u16) -> Option<Addresses> {
    let ip: IpAddr = host.parse().ok()?;
    let addresses = Addresses::default();
    addresses.set(vec![SocketAddr::new(ip, port)]);
    addresses.set_looked_up();
    Some(addresses)
}

/// Resolves the name `host` again every `refresh`, and sooner when a core could not connect. A name that does not resolve
/// keeps the addresses it had. Goes on until it is dropped.
pub async fn keep_resolved(
    gate: &'static Gate,
    host: String,
    port: u16,
    addresses: Arc<Addresses>,
    refresh: Duration,
) {
    let mut failing = false;
    // A reload may end this while somebody waits for the first look-up.
    let _ended = LookedUp(addresses.clone());
    loop {
        match resolve(&host, port).await {
            Ok(found) => {
                if addresses.set(found) {
                    tracing::info!(destination = %gate.name, "name resolved to new addresses");
                    gate.doorbell.ring();
                }
                failing = false;
            }
            Err(problem) => {
                if !failing {
                    tracing::warn!(destination = %gate.name, problem, "name does not resolve, profiles wait");
                }
                failing = true;
            }
        }
        addresses.set_looked_up();
        tokio::time::sleep(LOOKUP_EVERY_MIN.min(refresh)).await;
        let _ = tokio::time::timeout(refresh, addresses.stale.notified()).await;
    }
}

/// Says of addresses that they have been looked up, at its end.
struct LookedUp(Arc<Addresses>);

impl Drop for LookedUp {
    fn drop(&mut self) {
        self.0.set_looked_up();
    }
}

/// Answers the cores' questions about redirect targets, until the last core is gone.
pub async fn answer_lookups(mut lookups: mpsc::UnboundedReceiver<Lookup>) {
    while let Some(lookup) = lookups.recv().await {
        tokio::task::spawn_local(async move {
            if lookup.is_tls {
                let _ = tokio::task::spawn_blocking(system_roots).await;
            }
            if let Ok(found) = resolve(&lookup.host, lookup.port).await
                && let Some(first) = found.first()
            {
                let _ = lookup.reply.send(*first);
            }
        });
    }
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, &'static str> {
    match tokio::time::timeout(LOOKUP_TIMEOUT, lookup_host((host, port))).await {
        Ok(Ok(found)) => {
            let found: Vec<_> = found.collect();
            if found.is_empty() {
                Err("the name has no addresses")
            } else {
                Ok(found)
            }
        }
        Ok(Err(_)) => Err("the resolver does not know the name"),
        Err(_) => Err("the resolver did not answer in time"),
    }
}
