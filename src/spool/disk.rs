//! What the spool needs of a file system: one folder of files, read and written at offsets. [`RealDisk`] is the real
//! one; the tests' disk fails, tears and forgets on demand (`fake.rs`). Not responsible for what the bytes mean.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, OFlags};

/// One folder. Names are plain file names in it. Offsets and lengths are bytes.
pub trait Disk {
    /// An open file. Closed when dropped.
    type File;

    /// The names of all files and of what looks like one. Sub-folders, and names that are no text, are left out.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes a file to read and write; fails with `AlreadyExists` if there is one.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Opens a file that exists, to read it. Waits for nobody, whatever it is.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Whether there is a file of this name, as far as that can be told: where the disk says nothing, there is.
    fn has(&self, name: &str) -> bool;

    /// Opens a file to read and write it, and makes it if there is none.
    fn open_or_create(&self, name: &str) -> io::Result<Self::File>;

    /// Length of the file.
    fn bytes(&self, file: &Self::File) -> io::Result<u64>;

    /// Writes the slices one behind the other from `offset` on, and says how many bytes of them; one system call.
    fn write_at(&self, file: &Self::File, offset: u64, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Reads from `offset` on, and says how many bytes; 0 only at the end of the file.
    fn read_at(&self, file: &Self::File, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Reads from `offset` on behind what `into` holds, at most up to its capacity and without filling it first, and
    /// says how many bytes; 0 only at the end of the file or when `into` is full.
    fn read_behind(&self, file: &Self::File, offset: u64, into: &mut Vec<u8>) -> io::Result<usize>;

    /// Cuts the file.
    fn truncate(&self, file: &Self::File, bytes: u64) -> io::Result<()>;

    /// Returns when the file's content has reached the medium.
    fn sync(&self, file: &Self::File) -> io::Result<()>;

    /// Returns when the list of names has reached the medium.
    fn sync_folder(&self) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// A number that nobody can guess.
    fn salt(&self) -> u64;
}

/// A folder of the file system.
#[derive(Debug)]
pub struct RealDisk {
    folder: PathBuf,
}

impl RealDisk {
    /// Takes the folder, and makes it where it is missing, for our user only (0700): a spooled header may be a secret.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(folder: &Path) -> io::Result<Self> {
        if !folder.is_dir() {
            make_folder(folder)?;
            if let Some(parent) = folder.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(Self::existing(folder))
    }

    /// Takes the folder as it is: to look, without changing anything.
    pub fn existing(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Whether files can be made and removed in it, as far as that can be told without making one.
    ///
    /// # Errors
    /// Why they cannot.
    pub fn writable(&self) -> io::Result<()> {
        let wanted = Access::WRITE_OK | Access::EXEC_OK;
        Ok(rustix::fs::accessat(CWD, &self.folder, wanted, AtFlags::EACCESS)?)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Makes the folder and what is missing above it, for our user only.
///
/// # Errors
/// When it cannot be made.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

impl Disk for RealDisk {
    type File = File;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.open(self.path(name))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        // A pipe in a file's place would be waited for until somebody writes to it; so it cannot be read, and that is told.
        options
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        options.open(self.path(name))
    }

    fn has(&self, name: &str) -> bool {
        let seen = fs::metadata(self.path(name));
        !seen.is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
    }

    fn open_or_create(&self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        options.open(self.path(name))
    }

    fn bytes(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn write_at(&self, file: &File, offset: u64, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let slices = &slices[..slices.len().min(SLICES_MAX)];
        Ok(rustix::io::pwritev(file, slices, offset)?)
    }

    fn read_at(&self, file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(file, into, offset)
    }

    fn read_behind(&self, file: &File, offset: u64, into: &mut Vec<u8>) -> io::Result<usize> {
        if into.len() == into.capacity() {
            return Ok(0);
        }
        Ok(rustix::io::pread(
            file,
            rustix::buffer::spare_capacity(into),
            offset,
        )?)
    }

    fn truncate(&self, file: &File, bytes: u64) -> io::Result<()> {
        file.set_len(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn salt(&self) -> u64 {
        uuid::Uuid::new_v4().as_u64_pair().0
    }
}

/// What one `pwritev` takes: IOV_MAX of Linux (include/uapi/linux/uio.h, UIO_MAXIOV).
const SLICES_MAX: usize = 1024;

/// Writes all of the slices; on an error some of them may have been written.
///
/// # Errors
/// Those of [`Disk::write_at`], but an interruption.
pub fn write_all_at<D: Disk>(
    disk: &D,
    file: &D::File,
    mut offset: u64,
    mut slices: &mut [IoSlice<'_>],
) -> io::Result<()> {
    // Empty slices in front would make a write of nothing look like a full disk.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match disk.write_at(file, offset, slices) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `into` from `offset` on as far as the file goes, and says how far.
///
/// # Errors
/// Those of [`Disk::read_at`], but an interruption.
pub fn read_full_at<D: Disk>(disk: &D, file: &D::File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match disk.read_at(file, offset + filled as u64, &mut into[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
