//! Keeps a second process out of a spool. The lock is the kernel's (flock), so it ends with the process, however that
//! ends; what is written in the file is for people. The folder is locked too, where its file system has that: somebody
//! may take the file for a stale one and remove it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::disk::make_folder;
use crate::runtime::clock;

/// The lock's file in the spool's folder.
pub const FILE_NAME: &str = "lock";

/// The right to write into a spool. Ends when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    _folder: File,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error(
        "the spool {} is in use by {holder}: stop that process, or give each its own --spool folder",
        folder.display()
    )]
    Held {
        /// The spool's folder.
        folder: PathBuf,
        /// What the holder wrote about itself.
        holder: String,
    },
    /// The file cannot be made or locked.
    #[error("cannot lock the spool {}: {error}; it must be a folder, and '{FILE_NAME}' in it a file, that this user may write", folder.display())]
    Io {
        /// The spool's folder.
        folder: PathBuf,
        /// The error.
        error: io::Error,
    },
}

/// Locks a spool's folder, which is made where it is missing.
///
/// # Errors
/// See [`LockError`].
pub fn lock(folder: &Path) -> Result<Lock, LockError> {
    let io = |error| LockError::Io {
        folder: folder.to_owned(),
        error,
    };
    make_folder(folder).map_err(io)?;
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let mut file = options.open(folder.join(FILE_NAME)).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(LockError::Held {
                folder: folder.to_owned(),
                holder: holder(&mut file),
            });
        }
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    let place = File::open(folder).map_err(io)?;
    if let Err(TryLockError::WouldBlock) = place.try_lock() {
        return Err(LockError::Held {
            folder: folder.to_owned(),
            holder: holder(&mut file),
        });
    }
    // It is for people only: on a full disk the lock holds without.
    let _ = file.set_len(0).and_then(|()| {
        let now = httpdate::fmt_http_date(UNIX_EPOCH + clock::unix_now());
        writeln!(file, "process {} since {now}", std::process::id())
    });
    Ok(Lock {
        _file: file,
        _folder: place,
    })
}

/// The line that the holder wrote, as far as it is one.
fn holder(file: &mut File) -> String {
    let mut line = String::new();
    let read = file.take(HOLDER_BYTES_MAX).read_to_string(&mut line);
    match read {
        Ok(_) if line.trim().starts_with("process ") && !line.trim().contains('\n') => line.trim().to_owned(),
        _ => "another process".to_owned(),
    }
}

const HOLDER_BYTES_MAX: u64 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_who_has_it() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("not/there");
        let first = lock(&folder).unwrap();
        let error = lock(&folder).unwrap_err().to_string();
        let holder = format!("in use by process {} since ", std::process::id());
        assert!(error.contains(&holder) && error.contains(" GMT: "), "{error}");
        assert!(error.contains("stop that process"), "{error}");
        drop(first);
        lock(&folder).unwrap();
    }

    #[test]
    fn removing_the_file_lets_nobody_in() {
        let root = tempfile::tempdir().unwrap();
        let first = lock(root.path()).unwrap();
        std::fs::remove_file(root.path().join(FILE_NAME)).unwrap();
        let error = lock(root.path()).unwrap_err().to_string();
        assert!(error.contains("in use by another process:"), "{error}");
        drop(first);
        lock(root.path()).unwrap();
    }

    #[test]
    fn what_others_wrote_into_the_file_is_not_repeated() {
        let root = tempfile::tempdir().unwrap();
        let first = lock(root.path()).unwrap();
        for text in ["", "anything", "process 1\nmore"] {
            std::fs::write(root.path().join(FILE_NAME), text).unwrap();
            let error = lock(root.path()).unwrap_err().to_string();
            assert!(error.contains("in use by another process:"), "{error}");
        }
        drop(first);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_told() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = lock(&file.join("spool")).unwrap_err();
        assert!(matches!(error, LockError::Io { .. }), "{error}");
    }
}
