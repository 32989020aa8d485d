//! What the operator asked for, and what it means.
//!
//! Two steps: [`Flags`] is what was typed (command line and `PYROTEE_...`), [`Plan`] is what follows from it after every
//! check, immutable from then on. Everything that can be found wrong without a socket or a disk is found wrong here, so
//! `pyrotee check` runs the very same code as `pyrotee run`.
//!
//! A file in Alloy's syntax ([`alloy`]) says the same as flags would, and becomes part of the same plan.
//!
//! Every bound of the gateway is worked out in [`plan`] and printed at start.

pub mod alloy;
pub mod destination;
pub mod flags;
pub mod plan;
pub mod tls;
pub mod units;

pub use alloy::blocks::FileConfig;
pub use destination::auth::{AuthPlan, SecretSource};
pub use destination::oauth2::{OAuth2Plan, TokenUrl};
pub use destination::proxy::{Proxy, ProxyPlan, ProxyRules};
pub use destination::{DestinationPlan, DestinationTarget, Secret};
pub use flags::{AckPolicy, Flags, LabelMode, LogFormat, Overflow, SpoolOrphans, SpoolSync, TraceHeaders};
pub use plan::{Host, Plan, PlanError, PlanErrors, SpoolPlan};
pub use tls::{ClientAuth, ClientTls, ServerTls, TlsVersion};
