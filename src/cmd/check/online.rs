//! Whether destinations can be reached now: names, connections, TLS handshakes, folders; and whether secrets and
//! certificates can be used. Nothing is pushed.
//!
//! A destination that is away is no mistake in a configuration (pyrotee starts and waits for it), so this is asked for
//! apart. Every wait has an end, and all destinations are tried at the same time.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use serde::Serialize;

use crate::cmd::{folder, show};
use crate::config::units::show_size;
use crate::config::{AuthPlan, ClientTls, DestinationPlan, DestinationTarget, Plan, ProxyPlan};
use crate::outbound::secrets::SecretFiles;
use crate::runtime::tls::TlsFailure;
use crate::runtime::tls::client::ClientSide;
use crate::runtime::tls::server::ServerSide;

/// For a name.
const RESOLVE_MAX: Duration = Duration::from_secs(5);
/// For each address.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
/// For a destination as a whole, so that a thread that hangs (a dead network file system) is left behind.
const PROBE_MAX: Duration = Duration::from_secs(30);

/// One thing tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    destination: String,
    /// `secrets`, `proxy`, `resolve`, `connect`, `TLS` or `write`.
    what: &'static str,
    /// Whether it went well.
    pub good: bool,
    says: String,
}

/// Tries every destination.
pub fn probe(plan: &Plan) -> Vec<Probe> {
    let pending: Vec<_> = plan
        .destinations
        .iter()
        .map(|one| {
            let (sender, receiver) = mpsc::channel();
            let (name, plan) = (one.name.clone(), one.clone());
            // A thread that cannot be had drops the sender, which is told below.
            let _ = std::thread::Builder::new().name("online".into()).spawn(move || {
                // Nobody listens any more only if this took too long.
                let _ = sender.send(probe_plan(&plan));
            });
            (name, receiver)
        })
        .collect();
    let mut probes = Vec::new();
    if let Some(tls) = &plan.tls {
        let loaded = ServerSide::load(tls.clone(), &[]);
        probes.push(Probe {
            destination: "--listen".into(),
            what: "TLS",
            good: loaded.is_ok(),
            says: loaded.map_or_else(
                |error| error.to_string(),
                |_| format!("{} can be used", tls.cert_file.display()),
            ),
        });
    }
    for (destination, receiver) in pending {
        probes.extend(receiver.recv_timeout(PROBE_MAX).unwrap_or_else(|_| {
            vec![Probe {
                destination,
                what: "connect",
                good: false,
                says: format!("nothing known after {}", show::duration(PROBE_MAX)),
            }]
        }));
    }
    probes
}

/// What was tried, as a person reads it.
pub fn to_text(probes: &[Probe]) -> String {
    let mut text = String::from("Online\n");
    let width = probes
        .iter()
        .map(|probe| probe.destination.chars().count())
        .max()
        .unwrap_or(0);
    for probe in probes {
        let word = if probe.good { "ok " } else { "bad" };
        text += &format!(
            "  {word}  {:width$}  {:7}  {}\n",
            probe.destination, probe.what, probe.says
        );
    }
    text + "\n"
}

/// What a start would read, and where it would connect.
fn probe_plan(plan: &DestinationPlan) -> Vec<Probe> {
    let probe = |what, good, says| Probe {
        destination: plan.name.clone(),
        what,
        good,
        says,
    };
    let mut probes = Vec::new();
    match SecretFiles::read(plan) {
        Ok(files) if files.is_empty() => {}
        Ok(_) => probes.push(probe("secrets", true, "every secret file can be read".into())),
        Err(error) => probes.push(probe(
            "secrets",
            false,
            format!("{error}; pyrotee would not start"),
        )),
    }
    match &plan.target {
        DestinationTarget::File { directory } => {
            probes.push(Probe::of(&plan.name, "write", write(directory)))
        }
        DestinationTarget::Http { host, port, .. } => {
            let tls = plan.tls.as_ref();
            probes.extend(probe_server(&plan.name, host, *port, tls, &plan.proxy));
        }
    }
    if let AuthPlan::OAuth2(oauth2) = &plan.auth {
        let url = &oauth2.token_url;
        let name = format!("{}: oauth2", plan.name);
        probes.extend(probe_server(
            &name,
            &url.host,
            url.port,
            url.tls.as_ref(),
            &oauth2.proxy,
        ));
    }
    probes
}

impl Probe {
    fn of(name: &str, what: &'static str, result: Result<String, String>) -> Self {
        let good = result.is_ok();
        let (Ok(says) | Err(says)) = result;
        Self {
            destination: name.to_owned(),
            what,
            good,
            says,
        }
    }
}

/// Tries a destination's server, or the one that its access tokens come from: itself, or the proxy in front of it.
fn probe_server(name: &str, host: &str, port: u16, tls: Option<&ClientTls>, proxy: &ProxyPlan) -> Vec<Probe> {
    let rules = match proxy.rules(|name| std::env::var(name).ok()) {
        Ok(rules) => rules,
        Err(problem) => {
            let says = format!("{problem}; pyrotee would not start");
            return vec![Probe::of(name, "proxy", Err(says))];
        }
    };
    let mut probes = Vec::new();
    let via = rules.via(tls.is_some(), host, port);
    if via.is_some() {
        let says = "asked through a proxy, which is tried below".into();
        probes.push(Probe::of(name, "proxy", Ok(says)));
    }
    let (host, port) = via.map_or((host, port), |proxy| (&proxy.host, proxy.port));
    match resolve(host, port) {
        Err(error) => probes.push(Probe::of(name, "resolve", Err(error))),
        Ok(addresses) => {
            let list: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
            probes.push(Probe::of(name, "resolve", Ok(list.join(", "))));
            probes.push(Probe::of(name, "connect", connect(&addresses)));
            // The proxy itself speaks no TLS; files that cannot be used are found without a handshake.
            let shaken = match (tls, via) {
                (None, _) => None,
                (Some(tls), None) => Some(shake_hands(name, &addresses, tls)),
                (Some(tls), Some(_)) => ClientSide::load(tls.clone(), name)
                    .err()
                    .map(|error| Err(error.to_string())),
            };
            probes.extend(shaken.map(|result| Probe::of(name, "TLS", result)));
        }
    }
    probes
}

fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let (sender, receiver) = mpsc::channel();
    let wanted = (host.to_owned(), port);
    // The system's resolver has no deadline of its own that we could set.
    let thread = std::thread::Builder::new().name("resolve".into()).spawn(move || {
        let found = wanted
            .to_socket_addrs()
            .map(|addresses| addresses.take(ADDRESSES_MAX).collect::<Vec<_>>());
        let _ = sender.send(found);
    });
    thread.map_err(|error| format!("cannot be tried: {error}"))?;
    match receiver.recv_timeout(RESOLVE_MAX) {
        Ok(Ok(addresses)) if addresses.is_empty() => Err("the name has no address".into()),
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(format!(
            "the name does not resolve: {error}; pyrotee would start and keep asking"
        )),
        Err(_) => Err(format!(
            "no answer from the resolver within {}",
            show::duration(RESOLVE_MAX)
        )),
    }
}

/// Good when one of the addresses takes a connection.
fn connect(addresses: &[SocketAddr]) -> Result<String, String> {
    let mut taken = Vec::new();
    let mut refused = Vec::new();
    for address in addresses {
        match TcpStream::connect_timeout(address, CONNECT_MAX) {
            Ok(_) => taken.push(address.to_string()),
            Err(error) => refused.push(format!("{address}: {error}")),
        }
    }
    let refused = refused.join(", ");
    match (taken.is_empty(), refused.is_empty()) {
        (true, _) => Err(format!("{refused}; profiles would wait in its queue")),
        (false, true) => Ok(format!("{} takes connections", taken.join(", "))),
        (false, false) => Ok(format!(
            "{} takes connections; not so {refused}",
            taken.join(", ")
        )),
    }
}

/// Good when the first address that takes a connection shows a good certificate. What it thinks of ours may come later,
/// with the first request (TLS 1.3), so that is not told.
fn shake_hands(name: &str, addresses: &[SocketAddr], tls: &ClientTls) -> Result<String, String> {
    let (side, _) = ClientSide::load(tls.clone(), name).map_err(|error| error.to_string())?;
    let connect = |address| TcpStream::connect_timeout(address, CONNECT_MAX).ok();
    let mut stream = addresses
        .iter()
        .find_map(connect)
        .ok_or("no connection to try it on")?;
    let limited = stream
        .set_read_timeout(Some(CONNECT_MAX))
        .and_then(|()| stream.set_write_timeout(Some(CONNECT_MAX)));
    limited.map_err(|error| error.to_string())?;
    let greeting = side.own();
    let mut session = rustls::ClientConnection::new(greeting.config, greeting.name)
        .map_err(|error| TlsFailure::of(&error).to_string())?;
    match session.complete_io(&mut stream) {
        Ok(_) => Ok(format!("its certificate for {} is good", tls.server_name)),
        Err(error) => {
            let failure = error.get_ref().and_then(|inner| inner.downcast_ref());
            Err(failure.map_or_else(
                || error.to_string(),
                |failure| TlsFailure::of(failure).to_string(),
            ))
        }
    }
}

fn write(directory: &Path) -> Result<String, String> {
    let folder = folder::look(directory)
        .map_err(|error| format!("{} cannot be made: {error}", directory.display()))?;
    let place = folder.existing.display();
    folder
        .try_write()
        .map_err(|error| format!("no file can be made in {place}: {error}"))?;
    Ok(format!(
        "files can be made in {place}, {} free",
        show_size(folder.free)
    ))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_is_there_is_good_and_what_is_not_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (name, host, port, expected) in [
            (
                "taken",
                "127.0.0.1",
                port,
                &[("resolve", true), ("connect", true)][..],
            ),
            ("no name", "name.invalid", 1, &[("resolve", false)]),
        ] {
            let probes = probe_server(name, host, port, None, &ProxyPlan::None);
            let found: Vec<_> = probes.iter().map(|probe| (probe.what, probe.good)).collect();
            assert_eq!(found, expected, "{name}: {probes:?}");
        }
        assert!(write(&folder.path().join("new")).is_ok(), "a folder");
        assert!(write(&file).is_err(), "a file");
        // Bound and never listening: it refuses, and nobody else can get its port meanwhile.
        let reserved = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        reserved.bind(&any.into()).unwrap();
        let port = reserved.local_addr().unwrap().as_socket().unwrap().port();
        let probes = probe_server("refused", "127.0.0.1", port, None, &ProxyPlan::None);
        assert!(
            !probes[1].good && probes[1].says.contains("would wait"),
            "{probes:?}"
        );
    }
}
