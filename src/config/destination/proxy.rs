//! Whether a destination is asked through a proxy, and which one (WIRE.md 4.1; row 124). Text in, checked rules out; no I/O:
//! the environment is read through a function.
//!
//! ```text
//!  proxy-url                    every request goes through it
//!  proxy-url and no-proxy       but those to hosts that no-proxy names, and to this machine itself
//!  proxy-from-environment       HTTP_PROXY, HTTPS_PROXY and NO_PROXY, upper or lower case, say the same three things
//!  none of them                 no proxy, whatever the environment says
//! ```
//! The rules of `no-proxy` are those of Go's `httpproxy`, which Alloy follows.

use std::net::IpAddr;

use base64::Engine as _;
use serde::Serialize;
use url::Url;

use super::{Secret, host_of, percent_decode, valid_header, valid_header_value};

/// Where a destination's proxy is, if it has one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyPlan {
    /// Nowhere: it is asked directly.
    #[default]
    None,
    /// What the operator says.
    Rules(ProxyRules),
    /// What the environment says at start.
    FromEnvironment {
        /// Headers of a `CONNECT`.
        connect_headers: Vec<(String, Secret)>,
    },
}

/// Which proxy a request takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProxyRules {
    /// For `http://`.
    pub http: Option<Proxy>,
    /// For `https://`.
    pub https: Option<Proxy>,
    /// Whom no proxy is taken for.
    pub no_proxy: NoProxy,
    /// Headers of a `CONNECT`.
    pub connect_headers: Vec<(String, Secret)>,
}

/// One proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Proxy {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User and password of its URL in base64, for `Proxy-Authorization: Basic`.
    pub credentials: Option<Secret>,
}

/// Whom no proxy is taken for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoProxy {
    /// Nobody: every request takes the proxy, also to this machine.
    #[default]
    Nobody,
    /// This machine (`localhost`, loopback addresses) and these.
    These(Vec<Exception>),
    /// Everybody (`*`).
    Everybody,
}

/// One entry of `no-proxy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exception {
    who: Who,
    /// Only on this port.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Who {
    Address(IpAddr),
    /// The first so many bits of an address.
    Network(IpAddr, u32),
    /// Names that end in this, which begins with a dot; `itself`: also the name without it.
    Domain {
        suffix: String,
        itself: bool,
    },
}

/// What was said about proxies, before it is known whether it fits together.
#[derive(Clone, Debug, Default)]
pub struct ProxyOptions {
    /// `proxy-url`.
    pub url: Option<Secret>,
    /// `no-proxy`, its entries separated by commas or spaces.
    pub no_proxy: Option<String>,
    /// `proxy-from-environment`.
    pub from_environment: bool,
    /// `proxy-connect-header.NAME`.
    pub connect_headers: Vec<(String, Secret)>,
}

/// The options of `--to` that are set here.
pub const PROXY_OPTIONS: [&str; 3] = ["proxy-url", "no-proxy", "proxy-from-environment"];
/// What the names of the others begin with.
pub const PROXY_CONNECT_HEADER: &str = "proxy-connect-header.";

impl ProxyOptions {
    /// Takes the option `key` if it is one of ours. Returns whether it is.
    ///
    /// # Errors
    /// A sentence that repeats no secret.
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        if let Some(name) = key.strip_prefix(PROXY_CONNECT_HEADER) {
            let value = Secret::new(valid_header_value(name, value)?);
            self.connect_headers.push((valid_header(name)?.to_owned(), value));
            return Ok(true);
        }
        match key {
            "proxy-url" => self.url = Some(Secret::new(value)),
            "no-proxy" => self.no_proxy = Some(value.to_owned()),
            "proxy-from-environment" => {
                let problem = |_| format!("{key}={value}: expected true or false");
                self.from_environment = value.parse().map_err(problem)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Checks what was said and says what follows (WIRE.md 4.1, config errors).
    ///
    /// # Errors
    /// A sentence: options that exclude or need each other, a bad URL, a bad entry.
    pub fn plan(self) -> Result<ProxyPlan, String> {
        let connect_headers = self.connect_headers;
        match (self.url, self.no_proxy, self.from_environment) {
            (Some(_), _, true) => {
                Err("has both proxy-url and proxy-from-environment; keep one of them".into())
            }
            (None, Some(_), true) => {
                Err("no-proxy has no effect with proxy-from-environment; set NO_PROXY".into())
            }
            (None, Some(_), false) => Err("no-proxy needs proxy-url".into()),
            (None, None, false) if !connect_headers.is_empty() => {
                Err("proxy-connect-header needs proxy-url or proxy-from-environment".into())
            }
            (None, None, false) => Ok(ProxyPlan::None),
            (None, None, true) => Ok(ProxyPlan::FromEnvironment { connect_headers }),
            (Some(url), no_proxy, false) => {
                let proxy = Proxy::parse(url.reveal()).map_err(|problem| format!("proxy-url {problem}"))?;
                Ok(ProxyPlan::Rules(ProxyRules {
                    http: Some(proxy.clone()),
                    https: Some(proxy),
                    no_proxy: no_proxy.as_deref().map_or(Ok(NoProxy::Nobody), NoProxy::parse)?,
                    connect_headers,
                }))
            }
        }
    }
}

impl ProxyPlan {
    /// The rules, with `environment` read where the operator wants that.
    ///
    /// # Errors
    /// A variable that holds no good proxy; its value is not repeated.
    pub fn rules(&self, environment: impl Fn(&str) -> Option<String>) -> Result<ProxyRules, String> {
        let connect_headers = match self {
            Self::None => return Ok(ProxyRules::default()),
            Self::Rules(rules) => return Ok(rules.clone()),
            Self::FromEnvironment { connect_headers } => connect_headers.clone(),
        };
        let get = |name: &str| {
            let both = [name.to_owned(), name.to_ascii_lowercase()];
            both.into_iter()
                .find_map(|name| environment(&name).filter(|value| !value.is_empty()))
        };
        let proxy = |name: &str| {
            let parsed = get(name).map(|value| Proxy::parse(&value)).transpose();
            parsed.map_err(|problem| format!("{name} {problem}"))
        };
        Ok(ProxyRules {
            http: proxy("HTTP_PROXY")?,
            https: proxy("HTTPS_PROXY")?,
            no_proxy: NoProxy::parse(&get("NO_PROXY").unwrap_or_default())
                .map_err(|problem| format!("NO_PROXY: {problem}"))?,
            connect_headers,
        })
    }
}

impl ProxyRules {
    /// The proxy that a request to this server takes, if any.
    pub fn via(&self, is_tls: bool, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = if is_tls { &self.https } else { &self.http };
        proxy.as_ref().filter(|_| !self.no_proxy.names(host, port))
    }
}

impl Proxy {
    /// Reads a proxy's URL; without a scheme it is `http://`.
    fn parse(text: &str) -> Result<Self, String> {
        let with_scheme = match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        let url = Url::parse(&with_scheme).map_err(|error| format!("is no good URL: {error}"))?;
        if url.scheme() != "http" {
            return Err(format!(
                "has the scheme {}; only http:// proxies can be used (https:// destinations are tunnelled through them)",
                url.scheme()
            ));
        }
        let host = host_of(&url).ok_or("has no host")?;
        let port = url.port().unwrap_or(80);
        if port == 0 {
            return Err("has port 0, which cannot be connected to".into());
        }
        let credentials = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => {
                let decode = |text| percent_decode(text).ok_or("has a bad %-escape in its user or password");
                let pair = [decode(user)?, decode(password.unwrap_or_default())?].join(&b':');
                let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
                Some(Secret::new(encoded))
            }
        };
        Ok(Self {
            host,
            port,
            credentials,
        })
    }
}

impl NoProxy {
    fn parse(text: &str) -> Result<Self, String> {
        let mut exceptions = Vec::new();
        let entries = text.split(|c: char| c == ',' || c.is_ascii_whitespace());
        for entry in entries.filter(|entry| !entry.is_empty()) {
            if entry == "*" {
                return Ok(Self::Everybody);
            }
            let exception = Exception::parse(&entry.to_ascii_lowercase());
            exceptions.push(exception.ok_or_else(|| {
                format!("no-proxy: '{entry}' is no name, address, network (10.0.0.0/8) or *")
            })?);
        }
        Ok(Self::These(exceptions))
    }

    fn names(&self, host: &str, port: u16) -> bool {
        let exceptions = match self {
            Self::Nobody => return false,
            Self::Everybody => return true,
            Self::These(exceptions) => exceptions,
        };
        let host = host.to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        host == "localhost"
            || address.is_some_and(|address| address.is_loopback())
            || exceptions.iter().any(|one| one.names(&host, address, port))
    }
}

impl Exception {
    /// Reads one entry in lower case.
    fn parse(entry: &str) -> Option<Self> {
        if let Some((network, bits)) = entry.split_once('/') {
            let (network, bits) = (network.parse::<IpAddr>().ok()?, bits.parse().ok()?);
            let who = Who::Network(network, bits);
            return (bits <= width(network)).then_some(Self { who, port: None });
        }
        if let Ok(address) = entry.trim_matches(['[', ']']).parse() {
            let who = Who::Address(address);
            return Some(Self { who, port: None });
        }
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        if let Ok(address) = name.trim_matches(['[', ']']).parse() {
            let who = Who::Address(address);
            return Some(Self { who, port });
        }
        let name = name
            .strip_prefix('*')
            .filter(|rest| rest.starts_with('.'))
            .unwrap_or(name);
        let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.trim_matches('.').is_empty() || !name.chars().all(allowed) {
            return None;
        }
        let who = Who::Domain {
            itself: !name.starts_with('.'),
            suffix: format!(".{}", name.trim_start_matches('.')),
        };
        Some(Self { who, port })
    }

    fn names(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        let is_he = match &self.who {
            Who::Address(one) => address == Some(*one),
            Who::Network(network, bits) => address.is_some_and(|address| is_within(address, *network, *bits)),
            Who::Domain { suffix, itself } => host.ends_with(suffix) || *itself && host == &suffix[1..],
        };
        is_he && self.port.is_none_or(|only| only == port)
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn is_within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let value = |address| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    // A shift by all 128 bits leaves nothing to compare.
    let first_bits = |address| value(address).checked_shr(width(network) - bits).unwrap_or(0);
    address.is_ipv4() == network.is_ipv4() && first_bits(address) == first_bits(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(options: &[(&str, &str)]) -> Result<ProxyPlan, String> {
        let mut all = ProxyOptions::default();
        for (key, value) in options {
            assert!(all.set(key, value)?, "{key} is an option");
        }
        all.plan()
    }

    fn rules(options: &[(&str, &str)]) -> ProxyRules {
        plan(options)
            .unwrap()
            .rules(|_| panic!("the environment is not asked"))
            .unwrap()
    }

    #[test]
    fn no_proxy_names_whom_go_s_httpproxy_names() {
        for (no_proxy, host, port, named) in [
            ("", "pyroscope", 80, false),
            ("", "localhost", 80, true),
            ("", "127.9.9.9", 80, true),
            ("", "::1", 80, true),
            ("*", "anything", 1, true),
            ("example.com", "example.com", 80, true),
            ("example.com", "A.Example.com", 80, true),
            ("example.com", "badexample.com", 80, false),
            (".example.com", "a.example.com", 80, true),
            (".example.com", "example.com", 80, false),
            ("*.example.com", "a.example.com", 80, true),
            ("*.example.com", "example.com", 80, false),
            ("example.com:4040", "example.com", 4040, true),
            ("example.com:4040", "example.com", 80, false),
            ("10.0.0.0/8", "10.1.2.3", 80, true),
            ("10.0.0.0/8", "11.1.2.3", 80, false),
            ("10.0.0.0/8", "ten.example", 80, false),
            ("0.0.0.0/0", "8.8.8.8", 80, true),
            ("0.0.0.0/0", "::2", 80, false),
            ("::/0", "fe80::1", 80, true),
            ("fe80::/10", "fe80::1", 80, true),
            ("192.0.2.1", "192.0.2.1", 80, true),
            ("192.0.2.1:81", "192.0.2.1", 80, false),
            ("[2001:db8::1]:81", "2001:db8::1", 81, true),
            ("2001:db8::1", "2001:db8::1", 81, true),
            ("a, b.c  d", "d", 80, true),
        ] {
            let rules = rules(&[("proxy-url", "http://p:3128"), ("no-proxy", no_proxy)]);
            assert_eq!(
                rules.via(false, host, port).is_none(),
                named,
                "{no_proxy}: {host}:{port}"
            );
        }
        let always = rules(&[("proxy-url", "http://p:3128")]);
        assert!(always.via(false, "localhost", 80).is_some(), "nobody is left out");
    }

    #[test]
    fn the_environment_is_asked_only_when_told_to() {
        let environment = |name: &str| match name {
            "HTTP_PROXY" => Some(String::new()),
            "http_proxy" => Some("us%20er:s3cret@proxy".to_owned()),
            "HTTPS_PROXY" => Some("http://[::1]:3128/".to_owned()),
            "no_proxy" => Some(".local,10.0.0.0/8".to_owned()),
            _ => None,
        };
        let plan = plan(&[("proxy-from-environment", "true")]).unwrap();
        let rules = plan.rules(environment).unwrap();
        let http = rules.via(false, "h", 1).unwrap();
        assert_eq!((http.host.as_str(), http.port), ("proxy", 80));
        assert_eq!(http.credentials, Some(Secret::new("dXMgZXI6czNjcmV0")));
        let https = rules.via(true, "h", 1).unwrap();
        assert_eq!(
            (https.host.as_str(), https.port, &https.credentials),
            ("::1", 3128, &None)
        );
        assert!(rules.via(true, "a.local", 1).is_none());
        let bad = plan.rules(|name| (name == "HTTPS_PROXY").then(|| "socks5://s3cret@h".to_owned()));
        let bad = bad.unwrap_err();
        assert!(bad.contains("HTTPS_PROXY") && !bad.contains("s3cret"), "{bad}");
        assert_eq!(
            ProxyPlan::None.rules(environment).unwrap().via(false, "h", 1),
            None
        );
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let url = ("proxy-url", "http://u:s3cret@p:1");
        for (name, options, says) in [
            ("no URL", &[("no-proxy", "a")][..], "needs proxy-url"),
            ("two ways", &[url, ("proxy-from-environment", "true")], "keep one"),
            (
                "no-proxy and environment",
                &[("no-proxy", "a"), ("proxy-from-environment", "true")],
                "NO_PROXY",
            ),
            ("headers alone", &[("proxy-connect-header.X", "s3cret")], "needs"),
            (
                "a bad header",
                &[url, ("proxy-connect-header.Host", "s3cret")],
                "Host",
            ),
            (
                "a bad truth",
                &[("proxy-from-environment", "yes")],
                "true or false",
            ),
            (
                "no scheme of ours",
                &[("proxy-url", "socks5://s3cret@p")],
                "socks5",
            ),
            ("no host", &[("proxy-url", "")], "proxy-url"),
            ("port 0", &[("proxy-url", "http://s3cret@p:0")], "port 0"),
            ("a bad entry", &[url, ("no-proxy", "10.0.0.0/33")], "10.0.0.0/33"),
            ("a bad port", &[url, ("no-proxy", "a:b")], "a:b"),
        ] {
            let error = plan(options).unwrap_err();
            assert!(
                error.contains(says) && !error.contains("s3cret"),
                "{name}: {error}"
            );
        }
    }
}
