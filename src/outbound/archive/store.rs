//! The archive's folder on disk: whole files or none, and the index. Blocking; the only place of the archive that does
//! I/O. Nothing is synced unless asked for: after a crash of the *machine* (not of pyrotee) the last seconds may be missing
//! or empty.
//!
//! ```text
//!  content ─▶ DIR/.partial-<random> ─▶ rename ─▶ DIR/<service>/<date>/<time>_<type>_<crc>.<ext>
//!  all files of a push are there ─▶ one append to DIR/index-<date>.jsonl
//! ```
//! A push that is stored again after a failure finds its files already there, equal, and leaves them alone; the index
//! lines are appended once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, IoSlice, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Buf;
use flate2::Crc;
use flate2::bufread::MultiGzDecoder;
use serde::Serialize;

use super::layout::{Civil, component, file_prefix, index_file, service_folder};
use super::segments::Segments;
use super::unpack::{Meta, Profile, unpack};
use crate::fanout::Push;
use crate::runtime::clock;

/// Most bytes that a recording is gunzipped to; one beyond that is kept gzipped. The server's bound on a body
/// (WIRE.md 1.4).
pub const JFR_BYTES_MAX: u64 = 256 << 20;
/// Slices in one vectored write.
const SLICES_MAX: usize = 64;
/// Bytes between gunzip and file.
const BLOCK_BYTES: usize = 64 << 10;
/// What unfinished files are called.
const PARTIAL_PREFIX: &str = ".partial-";
/// An unfinished file untouched for so long belongs to no living process.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(3600);
/// Longest suffix of a companion, in bytes.
const SUFFIX_BYTES_MAX: usize = 60;
/// Files of one name that differ, told apart by a number.
const NAMESAKES_MAX: u32 = 1_000;

/// Why a push is not stored.
#[derive(Debug)]
pub enum StoreError {
    /// The disk refused. Names the step, never a path.
    Disk(&'static str, io::Error),
    /// We were told to give up.
    GivenUp,
}

/// The folder of one archive.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    /// Whether `put` returns only when everything is on the disk itself.
    synced: bool,
}

/// One line of the index.
#[derive(Serialize)]
struct Line<'a> {
    /// When the push was accepted, RFC 3339.
    time: String,
    /// Path inside the archive; absent for a profile without bytes.
    file: Option<String>,
    r#type: &'a str,
    format: &'static str,
    /// Of the file.
    bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    beside: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
    #[serde(flatten)]
    meta: &'a Meta,
}

/// A finished unfinished file.
struct Partial {
    path: PathBuf,
    bytes: u64,
    crc: u32,
    /// Gzip that could not be undone, so the file is the original.
    kept_gzip: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // renamed already, or nothing more can be done
    }
}

impl Store {
    /// Creates the folder if need be, tries that files can be created in it, and removes what crashes left behind.
    ///
    /// # Errors
    /// The folder cannot be created or may not be written to. A full disk is no error here: it may have room later.
    pub fn open(directory: PathBuf, synced: bool) -> io::Result<Self> {
        let explain = |what: &str, error: io::Error| {
            let text = format!(
                "cannot {what} the archive folder {}: {error}",
                directory.display()
            );
            io::Error::new(error.kind(), text)
        };
        fs::create_dir_all(&directory).map_err(|error| explain("create", error))?;
        let store = Self {
            directory: directory.clone(),
            synced,
        };
        match store.create_partial() {
            Ok((path, _)) => fs::remove_file(path).map_err(|error| explain("write to", error))?,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
            Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => {}
            Err(error) => return Err(explain("write to", error)),
        }
        store.remove_stale();
        Ok(store)
    }

    /// Stores all profiles of a push and their index lines. `is_given_up` is asked between files.
    pub fn put(&self, push: &Push, is_given_up: impl Fn() -> bool) -> Result<(), StoreError> {
        let at = Civil::from_unix_ms(push.accepted_unix_ms);
        let mut lines = Vec::new();
        for profile in unpack(push) {
            if is_given_up() {
                return Err(StoreError::GivenUp);
            }
            let line = self.put_profile(&profile, at)?;
            serde_json::to_writer(&mut lines, &line)
                .map_err(|error| StoreError::Disk("encode the index", error.into()))?;
            lines.push(b'\n');
        }
        if lines.is_empty() {
            return Ok(());
        }
        self.append(&index_file(at), lines)
            .map_err(|error| StoreError::Disk("append to the index", error))?;
        match self.synced {
            true => self.sync().map_err(|error| StoreError::Disk("sync", error)),
            false => Ok(()),
        }
    }

    /// Everything up to now is on the disk itself. Files, names, new folders and the index are one commit of the whole
    /// file system: fewer calls than one for each of them.
    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(&self.directory)?)?)
    }

    fn put_profile<'a>(&self, profile: &'a Profile, at: Civil) -> Result<Line<'a>, StoreError> {
        let mut line = Line {
            time: at.to_string(),
            file: None,
            r#type: &profile.kind,
            format: profile.format.name(),
            bytes: 0,
            beside: Vec::new(),
            note: profile.note.as_deref(),
            meta: &profile.meta,
        };
        let folder = format!("{}/{}", service_folder(&profile.meta.service), at.date());
        let prefix = file_prefix(at, &profile.kind);
        let mut stem = format!("{folder}/{prefix}");
        if !profile.content.is_empty() {
            let partial = self.write_partial(profile.content.clone(), profile.gunzip)?;
            let extension = match partial.kept_gzip {
                true => format!("{}.gz", profile.format.extension()),
                false => profile.format.extension().to_owned(),
            };
            if partial.kept_gzip {
                line.note = Some("gzip that cannot be undone, or is too large, was kept");
            }
            stem = format!("{folder}/{prefix}_{:08x}", partial.crc);
            line.bytes = partial.bytes;
            line.file = Some(self.settle(partial, &stem, &extension)?);
        }
        for companion in &profile.companions {
            let partial = self.write_partial(companion.content.clone(), false)?;
            let suffix = component(&companion.suffix, SUFFIX_BYTES_MAX);
            line.beside.push(self.settle(partial, &stem, &suffix)?);
        }
        Ok(line)
    }

    fn write_partial(&self, content: Segments, gunzip: bool) -> Result<Partial, StoreError> {
        let (path, mut file) = self
            .create_partial()
            .map_err(|error| StoreError::Disk("create a file", error))?;
        let mut partial = Partial {
            path,
            bytes: 0,
            crc: 0,
            kept_gzip: false,
        };
        let written = match gunzip {
            true => write_gunzipped(&mut file, content, JFR_BYTES_MAX).map(|(sum, kept_gzip)| {
                partial.kept_gzip = kept_gzip;
                sum
            }),
            false => write_segments(&mut file, content),
        };
        let sum = written.map_err(|error| StoreError::Disk("write a file", error))?;
        (partial.bytes, partial.crc) = (sum.0, sum.1.sum());
        Ok(partial)
    }

    fn create_partial(&self) -> io::Result<(PathBuf, File)> {
        let path = self
            .directory
            .join(format!("{PARTIAL_PREFIX}{:016x}", fastrand::u64(..)));
        let create = || OpenOptions::new().write(true).create_new(true).open(&path);
        let file = match create() {
            // The whole archive was removed under our feet: begin a new one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.directory)?;
                create()?
            }
            other => other?,
        };
        Ok((path, file))
    }

    /// Gives a finished file its name. Returns its path inside the archive.
    fn settle(&self, partial: Partial, stem: &str, extension: &str) -> Result<String, StoreError> {
        let failed = |error| StoreError::Disk("name a file", error);
        for number in 1..NAMESAKES_MAX {
            let name = match number {
                1 => format!("{stem}.{extension}"),
                _ => format!("{stem}-{number}.{extension}"),
            };
            let path = self.directory.join(&name);
            if fs::symlink_metadata(&path).is_ok() {
                if same_content(&partial.path, &path).unwrap_or(false) {
                    return Ok(name);
                }
                continue;
            }
            match fs::rename(&partial.path, &path) {
                Ok(()) => return Ok(name),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir_all(path.parent().unwrap_or(&self.directory)).map_err(failed)?;
                    fs::rename(&partial.path, &path).map_err(failed)?;
                    return Ok(name);
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(io::ErrorKind::AlreadyExists.into()))
    }

    /// Appends whole lines, or none: what was written of them before an error is taken back.
    fn append(&self, name: &str, mut lines: Vec<u8>) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(self.directory.join(name))?;
        let metadata = file.metadata()?;
        let before = metadata.len();
        if metadata.is_file() && before > 0 {
            let mut last = [0];
            file.seek(SeekFrom::Start(before - 1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                lines.insert(0, b'\n'); // a torn line of a machine that crashed stays alone
            }
        }
        let mut written = 0;
        while written < lines.len() {
            match file.write(&lines[written..]) {
                Ok(0) => return Err(take_back(&file, before, written, io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(take_back(&file, before, written, error)),
            }
        }
        Ok(())
    }

    /// Removes unfinished files that nobody works on.
    fn remove_stale(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.flatten() {
            let is_partial = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(PARTIAL_PREFIX));
            if is_partial && age(&entry).is_some_and(|age| age > PARTIAL_AGE_MAX) {
                let _ = fs::remove_file(entry.path()); // not ours to insist
            }
        }
    }
}

fn age(entry: &fs::DirEntry) -> Option<Duration> {
    let modified = entry.metadata().ok()?.modified().ok()?;
    let modified = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(clock::unix_now().saturating_sub(modified))
}

/// Cuts off what we have written, unless somebody else has appended since.
fn take_back(file: &File, before: u64, written: usize, error: io::Error) -> io::Error {
    if file
        .metadata()
        .is_ok_and(|metadata| metadata.len() == before + written as u64)
    {
        let _ = file.set_len(before); // the next append shields itself with a line end
    }
    error
}

/// Bytes written and their CRC.
struct Sum(u64, Crc);

/// Writes slices where they lie, many per system call.
fn write_segments(file: &mut impl Write, mut content: Segments) -> io::Result<Sum> {
    let mut crc = Crc::new();
    let total = content.len() as u64;
    while content.has_remaining() {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = content.chunks_vectored(&mut slices);
        let written = match file.write_vectored(&slices[..count]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let mut left = written;
        for slice in &slices[..count] {
            let step = left.min(slice.len());
            crc.update(&slice[..step]);
            left -= step;
        }
        content.advance(written);
    }
    Ok(Sum(total, crc))
}

/// Writes what is inside the gzip, at most `bytes_max`; the gzip itself if that does not work. Returns which.
fn write_gunzipped(file: &mut File, content: Segments, bytes_max: u64) -> io::Result<(Sum, bool)> {
    let mut decoder = MultiGzDecoder::new(content.clone().reader());
    let mut block = vec![0; BLOCK_BYTES];
    let mut sum = Sum(0, Crc::new());
    loop {
        let filled = match decoder.read(&mut block) {
            Ok(0) => return Ok((sum, false)),
            Ok(filled) if sum.0 + filled as u64 <= bytes_max => filled,
            _ => break,
        };
        file.write_all(&block[..filled])?;
        sum.0 += filled as u64;
        sum.1.update(&block[..filled]);
    }
    file.set_len(0)?;
    file.rewind()?;
    Ok((write_segments(file, content)?, true))
}

fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    if !other.metadata()?.is_file() || one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let step = left.len().min(right.len());
        if step == 0 {
            return Ok(left.is_empty() && right.is_empty());
        }
        if left[..step] != right[..step] {
            return Ok(false);
        }
        one.consume(step);
        other.consume(step);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::segments::tests::split;
    use super::super::unpack::tests::{PPROF, gzip, made};
    use super::*;
    use crate::profile::route::Route;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_owned(), true).unwrap();
        (folder, store)
    }

    fn one() -> Push {
        let mut push = made(Route::Ingest, "name=shop&format=pprof", "", PPROF, 3);
        push.accepted_unix_ms = 1_795_366_767_042;
        push
    }

    const FILE: &str = "shop/2026-11-22/165927.042Z_cpu_";
    const INDEX: &str = "index-2026-11-22.jsonl";

    /// All files, sorted, with their sizes.
    fn files(folder: &Path) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    let name = entry
                        .path()
                        .strip_prefix(folder)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned();
                    found.push((name, entry.metadata().unwrap().len()));
                }
            }
        }
        found.sort();
        found
    }

    fn disk_error(result: Result<(), StoreError>) -> (&'static str, io::ErrorKind) {
        match result {
            Err(StoreError::Disk(step, error)) => (step, error.kind()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_profile_and_its_line() {
        let (folder, store) = store();
        store.put(&one(), || false).unwrap();
        let crc = super::super::layout::crc32(PPROF);
        let name = format!("{FILE}{crc:08x}.pprof");
        assert_eq!(fs::read(folder.path().join(&name)).unwrap(), PPROF);
        let index = fs::read_to_string(folder.path().join(INDEX)).unwrap();
        assert!(index.ends_with('\n'));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&index).unwrap(),
            serde_json::json!({
                "time": "2026-11-22T16:59:27.042Z", "file": name, "type": "cpu", "format": "pprof",
                "bytes": PPROF.len(), "service": "shop", "labels": {"__name__": "shop"},
            })
        );
    }

    #[test]
    fn stored_again_after_a_failure_there_is_one_file_and_one_line() {
        let (folder, store) = store();
        let index = folder.path().join(INDEX);
        symlink("/dev/full", &index).unwrap();
        for _ in 0..3 {
            let failed = disk_error(store.put(&one(), || false));
            assert_eq!(failed, ("append to the index", io::ErrorKind::StorageFull));
        }
        fs::remove_file(&index).unwrap();
        store.put(&one(), || false).unwrap();
        let files = files(folder.path());
        assert_eq!(files.len(), 2, "{files:?}");
        assert_eq!(fs::read_to_string(index).unwrap().lines().count(), 1);
    }

    #[test]
    fn a_full_disk_is_an_error_and_not_half_a_file() {
        let mut full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = write_segments(&mut full, split(PPROF, 2)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let error = write_gunzipped(&mut full, split(&gzip(PPROF), 2), 100)
            .err()
            .unwrap();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_failure_leaves_nothing_unfinished() {
        let (folder, store) = store();
        fs::write(folder.path().join("shop"), "in the way").unwrap();
        assert_eq!(
            disk_error(store.put(&one(), || false)),
            ("name a file", io::ErrorKind::NotADirectory)
        );
        assert_eq!(files(folder.path()), [("shop".to_owned(), 10)]);
    }

    #[test]
    fn a_removed_archive_begins_anew() {
        let (folder, store) = store();
        store.put(&one(), || false).unwrap();
        fs::remove_dir_all(folder.path()).unwrap();
        store.put(&one(), || false).unwrap();
        assert_eq!(files(folder.path()).len(), 2);
    }

    #[test]
    fn told_to_give_up_it_stops_before_the_next_file() {
        let (folder, store) = store();
        assert!(matches!(store.put(&one(), || true), Err(StoreError::GivenUp)));
        assert_eq!(files(folder.path()), []);
    }

    #[test]
    fn namesakes_are_told_apart_and_equals_are_one() {
        let (folder, store) = store();
        let put = |content: &[u8]| {
            let partial = store.write_partial(split(content, 2), false).unwrap();
            store.settle(partial, "s/d/name", "x").unwrap()
        };
        assert_eq!(put(b"one"), "s/d/name.x");
        assert_eq!(put(b"two"), "s/d/name-2.x");
        assert_eq!(put(b"one"), "s/d/name.x");
        assert_eq!(put(b"two"), "s/d/name-2.x");
        assert_eq!(put(b"longer"), "s/d/name-3.x");
        assert_eq!(files(folder.path()).len(), 3);
    }

    #[test]
    fn a_torn_line_stays_alone() {
        let (folder, store) = store();
        let index = folder.path().join(INDEX);
        fs::write(&index, "{\"time\":\"20").unwrap();
        store.append(INDEX, b"{}\n".to_vec()).unwrap();
        store.append(INDEX, b"{}\n".to_vec()).unwrap();
        assert_eq!(fs::read_to_string(index).unwrap(), "{\"time\":\"20\n{}\n{}\n");
    }

    #[test]
    fn what_was_appended_before_an_error_is_taken_back() {
        let (folder, _) = store();
        let path = folder.path().join("index");
        fs::write(&path, "first\nsec").unwrap();
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        take_back(&file, 6, 2, io::ErrorKind::StorageFull.into());
        assert_eq!(
            fs::read(&path).unwrap(),
            b"first\nsec",
            "somebody else has written"
        );
        take_back(&file, 6, 3, io::ErrorKind::StorageFull.into());
        assert_eq!(fs::read(&path).unwrap(), b"first\n");
    }

    #[test]
    fn recordings_are_gunzipped_within_the_bound() {
        let recording = [b"FLR\0".as_slice(), &[7; 200_000]].concat();
        let zipped = gzip(&recording);
        for (name, content, bytes_max, expected, kept) in [
            ("whole", &zipped[..], 200_004, &recording[..], false),
            ("too large", &zipped, 200_003, &zipped, true),
            ("cut", &zipped[..100], 200_004, &zipped[..100], true),
            (
                "no gzip",
                b"\x1f\x8bxxxxxxxxxxxxxxxxxxxx",
                9,
                b"\x1f\x8bxxxxxxxxxxxxxxxxxxxx",
                true,
            ),
        ] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            let (sum, kept_gzip) =
                write_gunzipped(file.as_file_mut(), split(content, 64), bytes_max).unwrap();
            assert_eq!(kept_gzip, kept, "{name}");
            assert!(fs::read(file.path()).unwrap() == expected, "{name}");
            assert_eq!(
                (sum.0, sum.1.sum()),
                (expected.len() as u64, super::super::layout::crc32(expected)),
                "{name}"
            );
        }
    }

    #[test]
    fn only_old_unfinished_files_are_removed_at_start() {
        let (folder, _) = store();
        let old = std::time::UNIX_EPOCH + Duration::from_secs(1);
        for (name, is_old) in [(".partial-1", true), (".partial-2", false), ("mine", true)] {
            let file = File::create(folder.path().join(name)).unwrap();
            if is_old {
                file.set_modified(old).unwrap();
            }
        }
        Store::open(folder.path().to_owned(), false).unwrap();
        let names: Vec<String> = files(folder.path()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [".partial-2", "mine"]);
    }

    #[test]
    fn a_folder_that_cannot_be_is_refused_with_its_name() {
        let (folder, _) = store();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below")] {
            let text = Store::open(path.clone(), false).unwrap_err().to_string();
            assert!(
                text.starts_with(&format!("cannot create the archive folder {}: ", path.display())),
                "{text}"
            );
        }
    }
}
