//! The secret files of one destination, and the task on the control plane that keeps its header lines up to date.
//!
//! ```text
//!  start:  every file is read; one that cannot be is an error that names it
//!  then:   every CHECK_EVERY a look at each file's stamp (length, modification, inode); a new one is read again
//!          after a 401 every file is read, whatever its stamp
//!          unreadable, empty or no header text: the last good secret stays in use, the log and the status say so
//! ```
//! Where a destination has OAuth2, the same task has its access tokens fetched in time (`oauth2.rs`): until one is there,
//! there are no lines and nothing is sent.
//!
//! So rotation needs no restart (row 121), whether a file is overwritten, renamed into place, or a link is turned, as
//! Kubernetes does it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use tokio::sync::mpsc;

use super::credentials::{Credentials, Wish};
use super::oauth2::{TokenProblem, Tokens};
use crate::config::destination::auth::is_field_text;
use crate::config::{AuthPlan, DestinationPlan, Secret, SecretSource};
use crate::fanout::Gate;
use crate::runtime::clock::{self, Mono};
use crate::runtime::patience;

/// How often files are looked at. A look is one system call; Alloy reads them for every request.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// Without files nothing has to be looked at; then this is how long the task sleeps at most.
const IDLE_MAX: Duration = Duration::from_secs(3600);
/// A secret is a line. What is larger is not one, and would not fit into a header.
const SECRET_BYTES_MAX: u64 = 16 << 10;

/// The secret files of one destination and what they held last.
#[derive(Debug, Default)]
pub struct SecretFiles(Vec<SecretFile>);

#[derive(Debug)]
struct SecretFile {
    option: String,
    path: PathBuf,
    good: Secret,
    stamp: Stamp,
    failing: bool,
}

/// What changes when a file does.
type Stamp = (u64, i64, i64, u64);

/// Why a secret file is of no use. Its text names option and path, never what is in it.
#[derive(Debug, thiserror::Error)]
#[error("{option}: {} {problem}", path.display())]
pub struct SecretError {
    option: String,
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is empty")]
    Empty,
    #[error("is larger than a secret can be (16 KiB)")]
    TooLarge,
    #[error("is no header text: it has a line break or another control character inside, or is not UTF-8")]
    NoText,
}

/// What a look at the files found.
#[derive(Debug, Default)]
struct Found {
    changed: bool,
    news: Vec<News>,
}

#[derive(Debug)]
enum News {
    Changed(String),
    Good(String),
    Bad(SecretError),
}

impl SecretFiles {
    /// Reads every secret file of `plan`.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn read(plan: &DestinationPlan) -> Result<Self, SecretError> {
        let files = plan.secret_files().into_iter().map(|(option, path)| {
            let path = path.to_owned();
            match read(&path) {
                Ok((good, stamp)) => Ok(SecretFile {
                    option,
                    path,
                    good,
                    stamp,
                    failing: false,
                }),
                Err(problem) => Err(SecretError {
                    option,
                    path,
                    problem,
                }),
            }
        });
        files.collect::<Result<_, _>>().map(Self)
    }

    /// Whether there are none, so that nothing can change.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The header lines that `plan` and the files make; `token` is the value of `Authorization` where that is fetched.
    pub fn lines(&self, plan: &DestinationPlan, token: Option<&str>) -> String {
        let mut lines = String::new();
        let mut line = |name: &str, value: &str| {
            let _ = write!(lines, "{name}: {value}\r\n");
        };
        for (name, value) in &plan.headers {
            line(name, value.reveal());
        }
        for (name, path) in &plan.header_files {
            line(name, self.content(path));
        }
        match &plan.auth {
            AuthPlan::None => {}
            AuthPlan::Basic { username, password } => {
                let pair = format!("{}:{}", username.reveal(), self.reveal(password));
                let pair = base64::engine::general_purpose::STANDARD.encode(pair);
                line("Authorization", &format!("Basic {pair}"));
            }
            AuthPlan::Scheme { scheme, credentials } => {
                line("Authorization", &format!("{scheme} {}", self.reveal(credentials)));
            }
            AuthPlan::OAuth2(_) => token.into_iter().for_each(|token| line("Authorization", token)),
        }
        lines
    }

    fn reveal<'a>(&'a self, source: &'a SecretSource) -> &'a str {
        match source {
            SecretSource::Value(secret) => secret.reveal(),
            SecretSource::File(path) => self.content(path),
        }
    }

    fn content(&self, path: &Path) -> &str {
        let file = self.0.iter().find(|file| file.path == path);
        file.map_or("", |file| file.good.reveal())
    }

    /// Reads what has a new stamp, or everything. Blocks on the disk.
    fn look(&mut self, everything: bool) -> Found {
        let mut found = Found::default();
        for file in &mut self.0 {
            if !everything && !file.failing && stamp_of(&file.path).is_ok_and(|stamp| stamp == file.stamp) {
                continue;
            }
            match read(&file.path) {
                Ok((good, stamp)) => {
                    file.stamp = stamp;
                    if good != file.good {
                        file.good = good;
                        found.changed = true;
                        found.news.push(News::Changed(file.option.clone()));
                    } else if file.failing {
                        found.news.push(News::Good(file.option.clone()));
                    }
                    file.failing = false;
                }
                Err(problem) => {
                    if !file.failing {
                        found.news.push(News::Bad(SecretError {
                            option: file.option.clone(),
                            path: file.path.clone(),
                            problem,
                        }));
                    }
                    file.failing = true;
                }
            }
        }
        found
    }

    fn is_failing(&self) -> bool {
        self.0.iter().any(|file| file.failing)
    }
}

fn read(path: &Path) -> Result<(Secret, Stamp), Problem> {
    let file = File::open(path)?;
    let stamp = stamp(&file.metadata()?);
    let mut bytes = Vec::new();
    file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(Problem::TooLarge);
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| Problem::NoText)?.trim();
    match text {
        // A file that is being overwritten is empty for a moment.
        "" => Err(Problem::Empty),
        text if !is_field_text(text) => Err(Problem::NoText),
        text => Ok((Secret::new(text), stamp)),
    }
}

fn stamp_of(path: &Path) -> io::Result<Stamp> {
    std::fs::metadata(path).map(|metadata| stamp(&metadata))
}

fn stamp(metadata: &std::fs::Metadata) -> Stamp {
    (
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ino(),
    )
}

/// Keeps the header lines of one destination up to date.
pub struct Keeper {
    /// The destination.
    pub gate: &'static Gate,
    /// What the operator asked for.
    pub plan: DestinationPlan,
    /// Its files, read.
    pub files: SecretFiles,
    /// Its access tokens, if it has any.
    pub tokens: Option<Tokens>,
    /// Where the lines go.
    pub credentials: Arc<Credentials>,
    /// What its core asks for.
    pub wishes: mpsc::UnboundedReceiver<Wish>,
}

impl Keeper {
    /// Keeps them as long as the process lives. Must run on a tokio `LocalSet`.
    pub async fn run(mut self) {
        loop {
            let granted = self.wait().await;
            // A wish about lines that have been replaced meanwhile is granted already.
            let version = self.credentials.lines().version;
            let is_refused = granted.iter().any(|wish| wish.used == version);
            let Some(found) = self.look(is_refused).await else {
                return; // the process ends
            };
            let mut changed = found.changed;
            if let (Some(tokens), AuthPlan::OAuth2(plan)) = (&mut self.tokens, &self.plan.auth) {
                let before = tokens.problem();
                let secret = self.files.reveal(&plan.client_secret);
                changed |= tokens.keep(secret, is_refused, found.changed, clock::now).await;
                let after = tokens.problem();
                if before != after {
                    self.tell_of_tokens(after);
                }
            }
            if changed {
                self.credentials.set(self.lines());
                self.gate.doorbell.ring();
            }
            self.tell_of_files(&found.news);
            let is_failing = self.files.is_failing()
                || self
                    .tokens
                    .as_ref()
                    .is_some_and(|tokens| tokens.problem().is_some());
            self.gate.status.set_secrets_failing(is_failing);
            // Whoever asked looks at the lines now.
            drop(granted);
        }
    }

    /// Waits until there may be something to do. Returns who asked.
    async fn wait(&mut self) -> Vec<Wish> {
        let files = if self.files.is_empty() {
            IDLE_MAX
        } else {
            CHECK_EVERY
        };
        let tokens = self.tokens.as_ref().map_or(Mono::NEVER, Tokens::wake_at);
        let patience = files.min(tokens.since(clock::now()));
        let first = tokio::time::timeout(patience, self.wishes.recv()).await;
        let mut granted: Vec<Wish> = first.ok().flatten().into_iter().collect();
        while let Ok(wish) = self.wishes.try_recv() {
            granted.push(wish);
        }
        granted
    }

    /// Looks at the files. A file system may hang: then this task does, and nothing else.
    async fn look(&mut self, everything: bool) -> Option<Found> {
        if self.files.is_empty() {
            return Some(Found::default());
        }
        let mut files = std::mem::take(&mut self.files);
        let looked = tokio::task::spawn_blocking(move || {
            let found = files.look(everything);
            (files, found)
        });
        let tell = || {
            tracing::warn!(
                destination = %self.gate.name,
                "the files of its secrets do not answer; what was read last stays in use meanwhile"
            );
        };
        let (files, found) = patience::telling(looked, tell).await.ok()?;
        self.files = files;
        Some(found)
    }

    fn lines(&self) -> Result<String, TokenProblem> {
        let token = match &self.tokens {
            Some(tokens) => Some(tokens.header()?),
            None => None,
        };
        Ok(self.files.lines(&self.plan, token))
    }

    fn tell_of_tokens(&self, problem: Option<TokenProblem>) {
        let destination = &self.gate.name;
        match problem {
            None => tracing::info!(%destination, "access token fetched"),
            Some(problem) => {
                let consequence = match self.tokens.as_ref().map(Tokens::header) {
                    Some(Ok(_)) => "the one held stays in use until its end",
                    _ => "profiles wait",
                };
                tracing::warn!(%destination, %problem, consequence, "no access token");
                self.gate
                    .status
                    .failed(format!("no access token: {problem}; {consequence}"));
            }
        }
    }

    fn tell_of_files(&self, news: &[News]) {
        let destination = &self.gate.name;
        for one in news {
            match one {
                News::Changed(option) => {
                    tracing::info!(%destination, option, "secret file has changed, the new secret is in use");
                }
                News::Good(option) => tracing::info!(%destination, option, "secret file is good again"),
                News::Bad(error) => {
                    let text = format!("{error}; the secret read last stays in use");
                    tracing::warn!(%destination, problem = %error, "secret file is no good, the secret read last stays in use");
                    self.gate.status.failed(text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &[u8]) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, text).unwrap();
        read(&path)
            .map(|(secret, _)| secret.reveal().to_owned())
            .map_err(|problem| problem.to_string())
    }

    #[test]
    fn a_secret_is_one_line_of_text() {
        for (name, content, expected) in [
            ("trimmed", &b" \n s3cret \r\n"[..], Ok("s3cret")),
            ("empty", b"", Err("empty")),
            ("blank", b" \n\t", Err("empty")),
            ("two lines", b"a\nb", Err("no header text")),
            ("no text", b"\xff\xfe", Err("no header text")),
            ("too large", &[b'x'; 16 * 1024 + 1], Err("larger")),
        ] {
            match (read_text(content), expected) {
                (Ok(read), Ok(expected)) => assert_eq!(read, expected, "{name}"),
                (Err(problem), Err(expected)) => assert!(problem.contains(expected), "{name}: {problem}"),
                (read, _) => panic!("{name}: {read:?}"),
            }
        }
    }

    #[test]
    fn a_file_is_looked_at_until_it_is_good_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "one").unwrap();
        let (good, stamp) = read(&path).unwrap();
        let mut files = SecretFiles(vec![SecretFile {
            option: "x".into(),
            path: path.clone(),
            good,
            stamp,
            failing: false,
        }]);
        assert!(files.look(false).news.is_empty(), "nothing has changed");
        std::fs::write(&path, "").unwrap();
        assert!(matches!(&files.look(false).news[..], [News::Bad(_)]));
        assert!(files.look(false).news.is_empty(), "told once");
        assert_eq!(files.content(&path), "one", "the last good one");
        std::fs::write(&path, "three").unwrap();
        let found = files.look(false);
        assert!(found.changed && matches!(&found.news[..], [News::Changed(_)]));
        assert_eq!(files.content(&path), "three");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(&files.look(true).news[..], [News::Bad(_)]));
        std::fs::write(&path, "three").unwrap();
        assert!(matches!(&files.look(false).news[..], [News::Good(_)]));
    }
}
