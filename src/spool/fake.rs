//! A disk in memory that does what disks do: it fails, fills up, writes a part, forgets what was not synced, tears what
//! was, and flips bits. For tests; everything random comes from the seed.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::Disk;

/// Bytes that reach the medium together or not at all.
const SECTOR_BYTES: usize = 512;

/// A disk. Clones are the same disk, which outlives the store on it.
#[derive(Clone, Debug)]
pub(crate) struct FakeDisk(Arc<Mutex<State>>);

/// An open file.
#[derive(Debug)]
pub(crate) struct FakeFile(usize);

/// What the disk is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    List,
    Create,
    Open,
    Write,
    Read,
    Truncate,
    Sync,
    SyncFolder,
    Remove,
}

/// What goes wrong, until it is changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// These fail with EIO, one in so many.
    pub(crate) eio: Vec<(Operation, usize)>,
    /// The operation of this kind after so many others of it fails with this error, once.
    pub(crate) nth: Option<(Operation, usize, ErrorKind)>,
    /// One write in so many is short.
    pub(crate) short_writes: Option<usize>,
    /// Room for so many bytes.
    pub(crate) room: Option<u64>,
    /// Nothing can be changed.
    pub(crate) read_only: bool,
}

#[derive(Debug)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    /// What a power loss leaves for certain.
    names_synced: BTreeMap<String, usize>,
    faults: Faults,
    random: fastrand::Rng,
    on_read: Option<OnRead>,
}

/// What happens elsewhere while something is being read.
struct OnRead(Box<dyn FnMut() + Send>);

impl std::fmt::Debug for OnRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnRead")
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    /// What happened since, in order.
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

impl FakeDisk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            names_synced: BTreeMap::new(),
            faults: Faults::default(),
            random: fastrand::Rng::with_seed(seed),
            on_read: None,
        })))
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Calls `happens` in the middle of each read.
    pub(crate) fn on_read(&self, happens: impl FnMut() + Send + 'static) {
        self.state().on_read = Some(OnRead(Box::new(happens)));
    }

    /// Bytes in all files.
    pub(crate) fn used(&self) -> u64 {
        self.state().used()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.inodes[state.names[name]].bytes.clone()
    }

    /// Puts a file there, on the medium, in place of any other of that name.
    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        state.inodes.push(Inode {
            synced: bytes.clone(),
            bytes,
            pending: Vec::new(),
        });
        let inode = state.inodes.len() - 1;
        state.names.insert(name.to_owned(), inode);
        state.names_synced.insert(name.to_owned(), inode);
    }

    /// Takes a file away for good.
    pub(crate) fn lose(&self, name: &str) {
        let mut state = self.state();
        state.names.remove(name);
        state.names_synced.remove(name);
    }

    /// Changes a bit of a file behind everybody's back.
    pub(crate) fn flip(&self, name: &str, at: usize, bit: u32) {
        let mut state = self.state();
        let inode = state.names[name];
        let inode = &mut state.inodes[inode];
        inode.bytes[at] ^= 1 << bit;
        if let Some(byte) = inode.synced.get_mut(at) {
            *byte ^= 1 << bit;
        }
        for change in &mut inode.pending {
            if let Change::Write(offset, bytes) = change
                && let Some(byte) = at.checked_sub(*offset).and_then(|at| bytes.get_mut(at))
            {
                *byte ^= 1 << bit;
            }
        }
    }

    /// The power fails and comes back: of what was not synced anything may be there or not.
    pub(crate) fn lose_power(&self) {
        let mut state = self.state();
        let State {
            inodes,
            names,
            names_synced,
            random,
            ..
        } = &mut *state;
        let mut kept = names_synced.clone();
        for (name, inode) in &*names {
            if random.bool() {
                kept.insert(name.clone(), *inode);
            }
        }
        for name in names_synced.keys() {
            if !names.contains_key(name) && random.bool() {
                kept.remove(name);
            }
        }
        for inode in inodes.iter_mut() {
            inode.bytes = if random.bool() {
                inode.cut_short(random)
            } else {
                inode.torn(random)
            };
            inode.synced = inode.bytes.clone();
            inode.pending.clear();
        }
        *names = kept.clone();
        *names_synced = kept;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics inside")
    }
}

impl Inode {
    fn apply(bytes: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Write(offset, written) => {
                let end = offset + written.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(written);
            }
            Change::Truncate(length) => bytes.resize(*length, 0),
        }
    }

    fn change(&mut self, change: Change) {
        Self::apply(&mut self.bytes, &change);
        self.pending.push(change);
    }

    /// What was written in order up to a moment, and a part of the next.
    fn cut_short(&self, random: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        let whole = random.usize(..=self.pending.len());
        for change in &self.pending[..whole] {
            Self::apply(&mut bytes, change);
        }
        if let Some(Change::Write(offset, written)) = self.pending.get(whole) {
            let part = written[..random.usize(..=written.len())].to_vec();
            Self::apply(&mut bytes, &Change::Write(*offset, part));
        }
        bytes
    }

    /// Each sector as it was or as it is, and any length between.
    fn torn(&self, random: &mut fastrand::Rng) -> Vec<u8> {
        if self.pending.is_empty() {
            return self.synced.clone();
        }
        let (shorter, longer) = (
            self.synced.len().min(self.bytes.len()),
            self.synced.len().max(self.bytes.len()),
        );
        let mut bytes = vec![0; random.usize(shorter..=longer)];
        for (index, sector) in bytes.chunks_mut(SECTOR_BYTES).enumerate() {
            let source = if random.bool() { &self.bytes } else { &self.synced };
            let source = source.get(index * SECTOR_BYTES..).unwrap_or_default();
            let length = sector.len().min(source.len());
            sector[..length].copy_from_slice(&source[..length]);
        }
        bytes
    }
}

impl State {
    fn used(&self) -> u64 {
        let linked = self
            .names
            .values()
            .map(|inode| self.inodes[*inode].bytes.len() as u64);
        linked.sum()
    }

    /// Fails if this operation is to fail.
    fn enter(&mut self, operation: Operation) -> io::Result<()> {
        if let Some((which, left, kind)) = &mut self.faults.nth
            && *which == operation
        {
            if *left == 0 {
                let kind = *kind;
                self.faults.nth = None;
                return Err(kind.into());
            }
            *left -= 1;
        }
        for (which, one_in) in &self.faults.eio {
            if *which == operation && self.random.usize(..*one_in) == 0 {
                return Err(io::Error::other("EIO"));
            }
        }
        let changes = [
            Operation::Create,
            Operation::Write,
            Operation::Truncate,
            Operation::Remove,
        ];
        if self.faults.read_only && changes.contains(&operation) {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(())
    }

    fn add(&mut self, name: &str) -> FakeFile {
        self.inodes.push(Inode::default());
        self.names.insert(name.to_owned(), self.inodes.len() - 1);
        FakeFile(self.inodes.len() - 1)
    }
}

impl Disk for FakeDisk {
    type File = FakeFile;

    fn list(&self) -> io::Result<Vec<String>> {
        self.state().enter(Operation::List)?;
        Ok(self.names())
    }

    fn create(&self, name: &str) -> io::Result<FakeFile> {
        let mut state = self.state();
        if state.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        state.enter(Operation::Create)?;
        Ok(state.add(name))
    }

    fn open(&self, name: &str) -> io::Result<FakeFile> {
        let mut state = self.state();
        let inode = state.names.get(name).copied().ok_or(ErrorKind::NotFound)?;
        state.enter(Operation::Open)?;
        Ok(FakeFile(inode))
    }

    fn has(&self, name: &str) -> bool {
        self.state().names.contains_key(name)
    }

    fn open_or_create(&self, name: &str) -> io::Result<FakeFile> {
        let mut state = self.state();
        state.enter(Operation::Create)?;
        match state.names.get(name) {
            Some(inode) => Ok(FakeFile(*inode)),
            None => Ok(state.add(name)),
        }
    }

    fn bytes(&self, file: &FakeFile) -> io::Result<u64> {
        Ok(self.state().inodes[file.0].bytes.len() as u64)
    }

    fn write_at(&self, file: &FakeFile, offset: u64, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state();
        assert!(!slices.is_empty(), "a system call for nothing");
        let bytes: Vec<u8> = slices
            .iter()
            .take(1024)
            .flat_map(|slice| slice.to_vec())
            .collect();
        let failed = state.enter(Operation::Write);
        let mut length = bytes.len();
        if let Some(room) = state.faults.room {
            let inode = &state.inodes[file.0];
            let inside = (inode.bytes.len() as u64).saturating_sub(offset);
            let free = room.saturating_sub(state.used()) + inside;
            length = length.min(free as usize);
            if length == 0 && !bytes.is_empty() {
                return Err(ErrorKind::StorageFull.into());
            }
        }
        if let Some(one_in) = state.faults.short_writes
            && length > 1
            && state.random.usize(..one_in) == 0
        {
            length = state.random.usize(1..length);
        }
        if failed.is_err() {
            // What a failed write has left in the file nobody knows.
            length = state.random.usize(..=length.saturating_sub(1));
        }
        let written = Change::Write(offset as usize, bytes[..length].to_vec());
        if length > 0 {
            state.inodes[file.0].change(written);
        }
        failed.map(|()| length)
    }

    fn read_at(&self, file: &FakeFile, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state();
        state.enter(Operation::Read)?;
        if let Some(OnRead(happens)) = &mut state.on_read {
            happens();
        }
        let bytes = state.inodes[file.0]
            .bytes
            .get(offset as usize..)
            .unwrap_or_default();
        let length = bytes.len().min(into.len());
        into[..length].copy_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn read_behind(&self, file: &FakeFile, offset: u64, into: &mut Vec<u8>) -> io::Result<usize> {
        let mut state = self.state();
        state.enter(Operation::Read)?;
        if let Some(OnRead(happens)) = &mut state.on_read {
            happens();
        }
        let bytes = state.inodes[file.0]
            .bytes
            .get(offset as usize..)
            .unwrap_or_default();
        let mut length = bytes.len().min(into.capacity() - into.len());
        if length > 1 && state.faults.short_writes.is_some() {
            length = length.div_ceil(2);
        }
        let bytes = bytes[..length].to_vec();
        into.extend_from_slice(&bytes);
        Ok(length)
    }

    fn truncate(&self, file: &FakeFile, bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        state.enter(Operation::Truncate)?;
        state.inodes[file.0].change(Change::Truncate(bytes as usize));
        Ok(())
    }

    fn sync(&self, file: &FakeFile) -> io::Result<()> {
        let mut state = self.state();
        let failed = state.enter(Operation::Sync);
        let State { inodes, random, .. } = &mut *state;
        let inode = &mut inodes[file.0];
        // Some of it reached the medium; the rest is taken for clean and never written (see the fsync errors of 2018).
        for change in std::mem::take(&mut inode.pending) {
            if failed.is_ok() || random.bool() {
                Inode::apply(&mut inode.synced, &change);
            }
        }
        failed
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut state = self.state();
        state.enter(Operation::SyncFolder)?;
        state.names_synced = state.names.clone();
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        if !state.names.contains_key(name) {
            return Err(ErrorKind::NotFound.into());
        }
        state.enter(Operation::Remove)?;
        state.names.remove(name);
        Ok(())
    }

    fn salt(&self) -> u64 {
        self.state().random.u64(..)
    }
}
