//! What can be known of a folder before anything is written there: is there room, and may we write.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// A folder, or where it would be made.
#[derive(Debug)]
pub struct Folder {
    /// The folder itself, or the nearest one above it that exists.
    pub existing: PathBuf,
    /// Bytes free there for us.
    pub free: u64,
}

/// Looks at `directory`, which need not exist yet. Changes nothing.
///
/// # Errors
/// When no folder above it can be looked at, or something else than a folder is in the way.
pub fn look(directory: &Path) -> io::Result<Folder> {
    let absolute = std::path::absolute(directory)?;
    for existing in absolute.ancestors() {
        match std::fs::metadata(existing) {
            Ok(metadata) if metadata.is_dir() => {
                let space = rustix::fs::statvfs(existing)?;
                return Ok(Folder {
                    existing: existing.to_owned(),
                    free: space.f_bavail.saturating_mul(space.f_frsize),
                });
            }
            Ok(_) => return Err(io::Error::other(format!("{} is no folder", existing.display()))),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

impl Folder {
    /// Makes a file there and removes it again: the only proof that holds for every file system and every user.
    ///
    /// # Errors
    /// Why that was not possible.
    pub fn try_write(&self) -> io::Result<()> {
        let mut name = OsString::from(".pyrotee-");
        name.push(uuid::Uuid::new_v4().to_string());
        let file = self.existing.join(name);
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&file)?;
        std::fs::remove_file(&file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_yet_is_looked_for_above() {
        let root = tempfile::tempdir().unwrap();
        let folder = look(&root.path().join("not/there")).unwrap();
        assert_eq!(folder.existing, root.path());
        assert!(folder.free > 0);
        folder.try_write().unwrap();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_way_is_told() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(look(&file).unwrap_err().to_string().contains("is no folder"));
        assert!(
            look(&file.join("below"))
                .unwrap_err()
                .to_string()
                .contains("is no folder")
        );
    }
}
