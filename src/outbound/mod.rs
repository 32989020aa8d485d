//! From parcel to outcome: one destination, its connections, its retries.
//!
//! Pure and tested without a socket: [`classify`] (what an answer means), [`backoff`] (how long to wait), [`health`] (up,
//! down, retry budget), [`window`] (how many at a time), [`waiting`] (retries by due time and age), [`desk`]
//! (what goes next), [`departure`] (how one ends that was removed). Around them: [`connection`] (one request and its answer),
//! [`destination`] (dispatcher and lanes), `call` (what is passed through), [`addresses`] (where names lead),
//! [`credentials`], [`secrets`] and [`oauth2`] (who we are to it, and where that comes from; [`client`] asks for tokens). On disk instead: [`archive`].

pub mod addresses;
pub mod archive;
pub mod backoff;
mod call;
pub mod classify;
pub mod client;
pub mod connection;
pub mod credentials;
pub mod departure;
pub mod desk;
pub mod destination;
pub mod dns;
mod gather;
pub mod head;
pub mod health;
pub mod oauth2;
pub mod secrets;
#[cfg(test)]
mod simulation;
pub mod waiting;
pub mod window;
