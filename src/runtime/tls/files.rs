//! Certificates and keys in PEM files, and the watch over them.
//!
//! What has changed is seen within a second and read on a thread of its own, never on a core. Files that cannot be
//! used leave what was good in force: a rotation writes one file after the other, and the last write is seen too.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::runtime::patience;

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The largest file that is read: a bundle of all roots of the web is below 1 MiB.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// A file that cannot be used, or several that do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option} {}: {problem}", .path.display())]
pub struct TlsFileError {
    /// The flag or option that names it.
    pub option: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong and what to do.
    pub problem: String,
}

impl TlsFileError {
    /// `problem` with the file that `option` names.
    pub fn new(option: &'static str, path: &Path, problem: impl Into<String>) -> Self {
        Self {
            option,
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

/// All certificates of a file, at least one.
///
/// # Errors
/// When it cannot be read, or holds none.
pub fn certificates(option: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let bytes = read(option, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(TlsFileError::new(
            option,
            path,
            "holds no certificate; it needs PEM with -----BEGIN CERTIFICATE-----",
        )),
        Err(error) => Err(TlsFileError::new(
            option,
            path,
            format!("is no good PEM: {error}"),
        )),
    }
}

/// The private key of a file: PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
/// When it cannot be read, or holds none. The message tells nothing of what is in it.
pub fn private_key(option: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let bytes = read(option, path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
        TlsFileError::new(
            option,
            path,
            "holds no private key that can be read; it needs unencrypted PEM with -----BEGIN PRIVATE KEY-----",
        )
    })
}

/// The certificates of a file as those that sign others.
///
/// # Errors
/// When it cannot be read, or holds none that can be used.
pub fn authorities(option: &'static str, path: &Path) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates(option, path)?);
    if added == 0 {
        return Err(TlsFileError::new(
            option,
            path,
            "holds no certificate that can be used",
        ));
    }
    Ok(roots)
}

fn read(option: &'static str, path: &Path) -> Result<Vec<u8>, TlsFileError> {
    let refuse = |problem: String| TlsFileError::new(option, path, problem);
    let file = File::open(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let mut bytes = Vec::new();
    match file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes) {
        Err(error) => Err(refuse(format!("cannot be read: {error}"))),
        Ok(_) if bytes.len() as u64 > FILE_BYTES_MAX => Err(refuse("is larger than 8 MiB".into())),
        Ok(_) => Ok(bytes),
    }
}

/// What a file looked like when it was read: any write or replacement changes it.
type Stamp = Option<[i64; 7]>;

/// What several files look like now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamps(Vec<Stamp>);

impl Stamps {
    /// Looks at `files`, through links: a mounted secret is replaced by turning one.
    pub fn of<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Self {
        Self(files.map(|file| stamp(file)).collect())
    }
}

#[allow(clippy::cast_possible_wrap)] // compared for equality only
fn stamp(file: &Path) -> Stamp {
    let seen = std::fs::metadata(file).ok()?;
    Some([
        seen.dev() as i64,
        seen.ino() as i64,
        seen.size() as i64,
        seen.mtime(),
        seen.mtime_nsec(),
        seen.ctime(),
        seen.ctime_nsec(),
    ])
}

/// Something made of files, and how to make it again.
pub struct Watched {
    /// Whose it is, for the log: `--listen`, or a destination's name.
    pub owner: String,
    /// The files.
    pub files: Vec<PathBuf>,
    /// What they looked like before they were read.
    pub stamps: Stamps,
    /// Reads them and puts what they hold in force.
    pub reload: Box<dyn Fn() -> Result<(), TlsFileError> + Send + Sync>,
}

/// Reads the files of `watched` again whenever they change, and as long as they cannot be used: it may have been for want of
/// descriptors, and then nothing would change any more. Runs on the control plane, for as long as the process lives.
pub async fn keep_fresh(watched: Watched) {
    let watched = std::sync::Arc::new(watched);
    let mut seen = watched.stamps.clone();
    let mut problem: Option<TlsFileError> = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (own, before, is_failing) = (watched.clone(), seen.clone(), problem.is_some());
        // A file system may hang; what waits for it must not be the control plane.
        let looked = tokio::task::spawn_blocking(move || {
            let now = Stamps::of(own.files.iter());
            let reloaded = (now != before || is_failing).then(|| (own.reload)());
            (now, reloaded)
        });
        let tell = || {
            tracing::warn!(
                owner = %watched.owner,
                "the files of its certificates do not answer; those from before stay in force meanwhile"
            );
        };
        let Ok((now, reloaded)) = patience::telling(looked, tell).await else {
            return;
        };
        seen = now;
        match reloaded {
            None => {}
            Some(Ok(())) => {
                problem = None;
                tracing::info!(owner = %watched.owner, "certificates read again, new connections use them");
            }
            Some(Err(error)) => {
                if problem.as_ref() != Some(&error) {
                    tracing::error!(
                        owner = %watched.owner,
                        %error,
                        "changed certificates cannot be used, those from before stay in force"
                    );
                }
                problem = Some(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_use_are_told_apart_and_never_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let secret = "MIIEsecret";
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let empty = write("empty.pem", "");
        let broken = write(
            "broken.pem",
            &format!("-----BEGIN CERTIFICATE-----\n{secret}!!\n-----END CERTIFICATE-----\n"),
        );
        let no_der = write(
            "no-der.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        );
        for (name, error, says) in [
            (
                "absent",
                certificates("o", Path::new("absent")).unwrap_err(),
                "cannot be read",
            ),
            (
                "empty",
                certificates("o", &empty).unwrap_err(),
                "holds no certificate",
            ),
            ("broken", certificates("o", &broken).unwrap_err(), "no good PEM"),
            ("no DER", authorities("o", &no_der).unwrap_err(), "can be used"),
            ("no key", private_key("o", &broken).unwrap_err(), "no private key"),
        ] {
            let text = error.to_string();
            assert!(text.contains(says) && !text.contains(secret), "{name}: {text}");
        }
    }

    #[tokio::test]
    async fn what_could_not_be_read_is_tried_again_without_another_change() {
        let folder = tempfile::tempdir().unwrap();
        let files = vec![folder.path().join("file")];
        let stamps = Stamps::of(files.iter());
        std::fs::write(&files[0], "new").unwrap();
        let (tried, mut tries) = tokio::sync::mpsc::unbounded_channel();
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let watched = Watched {
            owner: "a".into(),
            stamps,
            reload: Box::new(move || {
                let call = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let _ = tried.send(call);
                match call {
                    0 => Err(TlsFileError::new(
                        "o",
                        Path::new("file"),
                        "cannot be read: too many open files",
                    )),
                    _ => Ok(()),
                }
            }),
            files,
        };
        let both = async { (tries.recv().await, tries.recv().await) };
        tokio::select! {
            () = keep_fresh(watched) => unreachable!("it runs as long as the process"),
            tried = tokio::time::timeout(Duration::from_secs(60), both) => {
                assert_eq!(tried, Ok((Some(0), Some(1))));
            }
        }
    }

    #[test]
    fn any_write_changes_the_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let files = [path.clone()];
        let absent = Stamps::of(files.iter());
        std::fs::write(&path, "one").unwrap();
        let one = Stamps::of(files.iter());
        assert_ne!(one, absent);
        assert_eq!(one, Stamps::of(files.iter()));
        let other = folder.path().join("other");
        std::fs::write(&other, "two").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(Stamps::of(files.iter()), one);
    }
}
