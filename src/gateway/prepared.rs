//! What a gateway is made of, before any of it runs: listeners bound, certificates read, spools locked and read.
//!
//! Apart from the rest because it can take long: a spool is read from its first segment to its last.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::Context;

use super::destinations::Opened;
use super::spools;
use crate::config::Plan;
use crate::runtime::socket;
use crate::runtime::tls::files::Watched;
use crate::runtime::tls::server::ServerSide;
use crate::spool::Lock;

/// What clients may choose from by ALPN, the best first: those that know both and need HTTP/2 (gRPC) leave the choice to us.
const PROTOCOLS: [&str; 2] = ["h2", "http/1.1"];

/// All that a start can be refused for before there are threads.
pub struct Prepared {
    pub(super) plan: Arc<Plan>,
    pub(super) tls: Option<Arc<ServerSide>>,
    pub(super) certificates: Option<Watched>,
    pub(super) addresses: Vec<SocketAddr>,
    /// Of each address, one for each inbound core.
    pub(super) listeners: Vec<Vec<TcpListener>>,
    pub(super) lock: Option<Lock>,
    /// In the order of the plan.
    pub(super) opened: Vec<Opened>,
}

impl Prepared {
    /// Binds every listener and opens every destination. Clients wait in the kernel's backlog from here on. Says to `tell`
    /// what it is at, in words that go behind "starting: ".
    ///
    /// # Errors
    /// An address that cannot be bound, a certificate that cannot be used, a spool that another process has or that cannot
    /// be had, a thread that cannot be started.
    pub fn new(plan: Plan, tell: &dyn Fn(String)) -> anyhow::Result<Self> {
        let plan = Arc::new(plan);
        let (tls, certificates) = server_side(&plan)?.unzip();
        let (addresses, listeners) = bind(&plan)?;
        let lock = spools::lock(&plan, tell)?;
        let all = plan.destinations.iter();
        let opened = all
            .map(|one| Opened::open(one, &plan, true, tell))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            plan,
            tls,
            certificates,
            addresses,
            listeners,
            lock,
            opened,
        })
    }
}

/// The listeners of every address, one for each inbound core.
fn bind(plan: &Plan) -> anyhow::Result<(Vec<SocketAddr>, Vec<Vec<TcpListener>>)> {
    let mut addresses = Vec::new();
    let mut all = Vec::new();
    for wanted in &plan.listen {
        let listeners = socket::listeners(*wanted, plan.inbound_cores())
            .with_context(|| format!("--listen {wanted}: cannot bind; is another process using it?"))?;
        addresses.push(listeners[0].local_addr()?);
        all.push(listeners);
    }
    Ok((addresses, all))
}

/// What handshakes with clients go by, if they speak TLS, and the files that it is made of.
fn server_side(plan: &Plan) -> anyhow::Result<Option<(Arc<ServerSide>, Watched)>> {
    let side = plan
        .tls
        .as_ref()
        .map(|tls| ServerSide::load(tls.clone(), &PROTOCOLS));
    Ok(side.transpose()?)
}
