//! The header lines that tell one destination who we are: written by the control plane when a secret changes, read by the
//! destination's core for every request.
//!
//! ```text
//!  core                                             control plane (secrets.rs)
//!  lines() ── one load ──▶ Lines ◀── set ────────── a file has changed, a token has come
//!  refused(used): 401 ─── wish ───────────────────▶ looks again, at once
//!             ◀────────── done ──────────────────── then: are the lines other ones than those refused?
//! ```
//! Not responsible for where secrets come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::{mpsc, oneshot};

use super::oauth2::TokenProblem;

/// What a core asks the control plane for.
#[derive(Debug)]
pub struct Wish {
    /// The version that is no good. If it is no longer the current one there is nothing to do.
    pub used: u64,
    /// Dropped when it has been looked after.
    pub done: oneshot::Sender<()>,
}

/// What the operator sets on every request to one destination.
#[derive(Debug)]
pub struct Credentials {
    current: ArcSwap<Lines>,
    /// `current`'s version, doubled, and one more where it is missing: all that a request asks before it is written.
    state: AtomicU64,
    /// `None` where nothing can change: then nobody listens.
    wishes: Option<mpsc::UnboundedSender<Wish>>,
}

/// Header lines at one moment.
#[derive(Debug)]
pub struct Lines {
    /// Each ends in CRLF.
    pub text: String,
    /// Counts the changes.
    pub version: u64,
    /// Why nothing can be sent now: an access token is missing.
    pub missing: Option<TokenProblem>,
}

impl Credentials {
    /// Lines that never change.
    pub fn fixed(text: String) -> Self {
        Self {
            current: ArcSwap::from_pointee(Lines {
                text,
                version: 0,
                missing: None,
            }),
            state: AtomicU64::new(0),
            wishes: None,
        }
    }

    /// Lines that somebody keeps up to date, and what he is asked for. A destination has at most one wish open per request
    /// in flight, so the queue is bounded by its window.
    pub fn kept(text: String) -> (Self, mpsc::UnboundedReceiver<Wish>) {
        let (sender, wishes) = mpsc::unbounded_channel();
        let credentials = Self {
            wishes: Some(sender),
            ..Self::fixed(text)
        };
        (credentials, wishes)
    }

    /// The lines of now. One atomic load, nothing is allocated.
    pub fn lines(&self) -> Guard<Arc<Lines>> {
        self.current.load()
    }

    /// Replaces the lines, or says why there are none. Returns whether they are other ones.
    pub fn set(&self, lines: Result<String, TokenProblem>) -> bool {
        let current = self.current.load();
        let (text, missing) = match lines {
            Ok(text) => (text, None),
            Err(problem) => (String::new(), Some(problem)),
        };
        if current.text == text && current.missing == missing {
            return false;
        }
        let version = current.version + 1;
        self.current.store(Arc::new(Lines {
            text,
            version,
            missing,
        }));
        // Behind it: whoever sees this finds those lines, or newer ones.
        let state = version << 1 | u64::from(missing.is_some());
        self.state.store(state, Ordering::Release);
        true
    }

    /// The version of the lines of now.
    ///
    /// # Errors
    /// Why nothing can be sent.
    pub fn ready(&self) -> Result<u64, TokenProblem> {
        let state = self.state.load(Ordering::Acquire);
        if state & 1 == 0 {
            return Ok(state >> 1);
        }
        let lines = self.lines();
        match lines.missing {
            None => Ok(lines.version),
            Some(problem) => Err(problem),
        }
    }

    /// Has missing lines looked after. Waits for the control plane; the caller sets the limit.
    pub async fn wanted(&self) {
        self.refused(self.lines().version).await;
    }

    /// The destination has refused the lines of version `used` (401): has them looked after, and says whether there are
    /// other ones now, so that asking again makes sense. Waits for the control plane; the caller sets the limit.
    pub async fn refused(&self, used: u64) -> bool {
        let Some(wishes) = &self.wishes else {
            return false;
        };
        let (done, looked_after) = oneshot::channel();
        if self.lines().version == used && wishes.send(Wish { used, done }).is_ok() {
            let _ = looked_after.await;
        }
        self.lines().version != used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_lines_are_a_change() {
        let credentials = Credentials::fixed("A: 1\r\n".into());
        assert!(!credentials.set(Ok("A: 1\r\n".into())) && credentials.set(Ok("A: 2\r\n".into())));
        let lines = credentials.lines();
        assert_eq!((lines.text.as_str(), lines.version), ("A: 2\r\n", 1));
        assert_eq!(credentials.ready(), Ok(1));
        assert!(credentials.set(Err(TokenProblem::NotYet)) && !credentials.set(Err(TokenProblem::NotYet)));
        assert_eq!(credentials.ready(), Err(TokenProblem::NotYet));
    }

    #[tokio::test]
    async fn a_refusal_has_them_looked_after_once() {
        let (credentials, mut wishes) = Credentials::kept("A: 1\r\n".into());
        let (again, ()) = tokio::join!(credentials.refused(0), async {
            let wish = wishes.recv().await.expect("a wish");
            assert_eq!(wish.used, 0);
            credentials.set(Ok("A: 2\r\n".into()));
        });
        assert!(again);
        // The lines have changed meanwhile: nobody has to look.
        assert!(credentials.refused(0).await && wishes.try_recv().is_err());
        assert!(!Credentials::fixed(String::new()).refused(0).await);
    }
}
