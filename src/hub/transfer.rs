//! One file that grows: which blocks it has, which are on their way, and the digest that follows behind. It must not know the network.
//!
//! Blocks arrive out of order and from several connections, but a digest wants them in order. So the ranges that are handed out are always the
//! first ones that are missing, and a thread of the file's own follows behind. The blocks it needs next are handed to it in memory; others it reads
//! back, and compares with what was recorded when they were written: blocks of an earlier run that did not survive a power cut
//! are fetched again. So there is no second pass at the end.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use xxhash_rust::xxh3::xxh3_64;

use super::digest::{Hashed, Hasher};
use super::listing::RemoteFile;
use super::place::Place;
use super::record::{BLOCK, Found, Record};
use crate::files::{Aligned, Bounce, OutputFile};

/// Blocks of one file that wait in memory for the digest at most.
const HANDED_MAX: usize = 64;

/// Blocks that have arrived and are not hashed: from the first number on the network is faster than the digest, and what came then would
/// have to be read back. So many as the second are the backlog of an earlier run, which is no reason to wait.
const BACKLOG: Range<usize> = HANDED_MAX / 2..16 * HANDED_MAX;

/// How long to wait before looking whether the work is over.
const LOOK: Duration = Duration::from_millis(100);

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Block {
    Missing,
    /// A connection is fetching it.
    Taken,
    /// In the file, with the XXH3 that it should have.
    Here(u64),
}

/// A file that grows.
#[derive(Debug)]
pub(super) struct Transfer<'a> {
    pub(super) remote: &'a RemoteFile,
    part: OutputFile,
    path: PathBuf,
    record: Record,
    state: Mutex<State>,
    arrived: Condvar,
    /// Where the hub's redirects led, for as long as that address is good.
    pub(super) source: Mutex<Option<String>>,
    /// Bytes that were written since the last sync.
    unsynced: AtomicU64,
}

#[derive(Debug)]
struct State {
    blocks: Vec<Block>,
    /// No block before this one is missing.
    first: usize,
    /// Blocks that are here, and their bytes.
    here: usize,
    bytes: u64,
    /// Behind the last block of an earlier run.
    old: usize,
    /// The server gives the whole file or nothing, so one connection at a time fetches to the end.
    whole: bool,
    /// The block that the digest wants next.
    wanted: usize,
    /// Blocks that wait for the digest in memory.
    handed: BTreeMap<usize, Aligned>,
    /// Buffers that came back.
    spare: Vec<Aligned>,
}

impl State {
    /// Whether the digest is at work, and has enough to go on with.
    fn is_behind(&self) -> bool {
        let at_work = matches!(self.blocks.get(self.wanted), Some(Block::Here(_)));
        at_work && self.wanted >= self.old && BACKLOG.contains(&(self.here - self.wanted))
    }
}

/// How the digest gets at a block.
enum Next {
    /// Here it is.
    Content(Aligned),
    /// It is in the file, and has this XXH3.
    InFile(u64),
}

/// What an earlier run left of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Before {
    /// That many bytes; perhaps none.
    Bytes(u64),
    /// Bytes of what the file was then.
    Other,
}

impl<'a> Transfer<'a> {
    /// Opens the growing file, or begins it, with room for all of it on the disk.
    pub(super) fn open(remote: &'a RemoteFile, place: &Place) -> Result<(Self, Before)> {
        let path = place.part(remote);
        let context = || format!("opening `{}`", path.display());
        place.prepare(remote).with_context(context)?;
        let (record, found) = Record::open(&place.record(remote), remote).with_context(context)?;
        // A record speaks of this part only if the part has room for what it speaks of.
        let sized = fs::metadata(&path).is_ok_and(|part| part.len() >= remote.bytes);
        let found = if sized || found == Found::Other { found } else { Found::Nothing };
        // A full disk shows now and not hours later.
        let part = OutputFile::create(&path, remote.bytes);
        let part = part.with_context(|| format!("making room for `{}`", path.display()))?;
        let mut blocks = vec![Block::Missing; usize::try_from(remote.bytes.div_ceil(BLOCK))?];
        if let Found::Blocks(found) = &found {
            for &(block, digest) in found {
                blocks[block] = Block::Here(digest);
            }
        }
        let present: Vec<usize> = (0..blocks.len()).filter(|&block| blocks[block] != Block::Missing).collect();
        let bytes = present.iter().map(|&block| length(remote, block)).sum();
        let (here, old) = (present.len(), present.last().map_or(0, |last| last + 1));
        let before = if found == Found::Other { Before::Other } else { Before::Bytes(bytes) };
        let (handed, spare) = (BTreeMap::new(), Vec::new());
        let state = Mutex::new(State { blocks, first: 0, here, bytes, old, whole: false, wanted: 0, handed, spare });
        let (arrived, source, unsynced) = (Condvar::new(), Mutex::new(None), AtomicU64::new(0));
        Ok((Self { remote, part, path, record, state, arrived, source, unsynced }, before))
    }

    /// Hands out the first blocks that are missing, at most `most` for one request; `share` connections are to get some of them.
    pub(super) fn claim(&self, most: usize, share: usize) -> Option<Range<usize>> {
        let mut state = self.lock();
        let count = state.blocks.len();
        while state.first < count && state.blocks[state.first] != Block::Missing {
            state.first += 1;
        }
        let start = state.first;
        if start == count || state.is_behind() || (state.whole && state.blocks.contains(&Block::Taken)) {
            return None;
        }
        let most = match state.whole {
            true => count,
            false => most.min((count - start).div_ceil(share.max(1))),
        };
        let missing = state.blocks[start..].iter().take(most).take_while(|block| **block == Block::Missing).count();
        state.blocks[start..start + missing].fill(Block::Taken);
        Some(start..start + missing)
    }

    /// Gives back the blocks of a range that did not arrive.
    pub(super) fn give_back(&self, range: Range<usize>) {
        let mut state = self.lock();
        state.first = state.first.min(range.start);
        for block in &mut state.blocks[range] {
            if *block == Block::Taken {
                *block = Block::Missing;
            }
        }
    }

    /// Says that the server knows no ranges.
    pub(super) fn only_whole(&self) {
        self.lock().whole = true;
    }

    /// The bytes of a range of blocks.
    pub(super) fn bytes(&self, blocks: &Range<usize>) -> Range<u64> {
        blocks.start as u64 * BLOCK..(blocks.end as u64 * BLOCK).min(self.remote.bytes)
    }

    /// Length of a block.
    pub(super) fn length(&self, block: usize) -> usize {
        length(self.remote, block) as usize
    }

    /// Writes a block that has arrived, records it, and lets the digest go on. `content` has [`BLOCK`] bytes, of which those of the block
    /// count; it may be another buffer afterwards.
    pub(super) fn put(&self, block: usize, content: &mut Aligned) -> Result<()> {
        let context = || format!("writing `{}`", self.path.display());
        let bytes = &content[..self.length(block)];
        let written = self.part.write_all_at(bytes, block as u64 * BLOCK, &mut Bounce::default(), |_| ());
        written.with_context(context)?;
        let digest = self.record.append(block, bytes).with_context(context)?;
        self.unsynced.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut state = self.lock();
        state.bytes += bytes.len() as u64;
        state.here += 1;
        state.blocks[block] = Block::Here(digest);
        if state.handed.len() < HANDED_MAX && block < state.wanted + HANDED_MAX {
            let spare = state.spare.pop().unwrap_or_else(|| Aligned::new(BLOCK as usize));
            state.handed.insert(block, std::mem::replace(content, spare));
        }
        self.arrived.notify_all();
        Ok(())
    }

    /// Bytes that are here.
    pub(super) fn done(&self) -> u64 {
        self.lock().bytes
    }

    /// Syncs what was written, if it is much.
    pub(super) fn sync_if(&self, at_least: u64) -> io::Result<()> {
        if self.unsynced.load(Ordering::Relaxed) < at_least {
            return Ok(());
        }
        self.unsynced.store(0, Ordering::Relaxed);
        self.part.sync_data()
    }

    /// Follows the blocks from the first to the last as they arrive; `None` if `over` says so before. `lost` is told of blocks that are
    /// not what was recorded, `moved` of every step.
    pub(super) fn follow(
        &self,
        over: impl Fn() -> bool,
        lost: impl Fn(u64),
        moved: impl Fn(),
    ) -> Result<Option<Hashed>> {
        let mut hasher = Hasher::new(self.remote);
        let (mut buffer, mut bounce) = (Vec::new(), Bounce::default());
        let count = self.lock().blocks.len();
        let mut block = 0;
        while block < count {
            let length = self.length(block);
            match self.next(block, &over) {
                None => return Ok(None),
                Some(Next::Content(content)) => {
                    hasher.update(&content[..length]);
                    self.lock().spare.push(content);
                    block += 1;
                }
                Some(Next::InFile(digest)) => {
                    let start = block as u64 * BLOCK;
                    buffer.clear();
                    let see = |piece: &[u8]| buffer.extend_from_slice(piece);
                    let read = self.part.read(start, start + length as u64, &mut bounce, see);
                    read.with_context(|| format!("reading `{}`", self.path.display()))?;
                    if xxh3_64(&buffer) == digest {
                        hasher.update(&buffer);
                        block += 1;
                    } else {
                        self.lose(block);
                        lost(length as u64);
                    }
                }
            }
            moved();
        }
        Ok(Some(hasher.finish()))
    }

    /// Waits for a block; `None` if `over` says so before.
    fn next(&self, block: usize, over: &impl Fn() -> bool) -> Option<Next> {
        let mut state = self.lock();
        state.wanted = block;
        loop {
            if over() {
                return None;
            }
            if let Some(content) = state.handed.remove(&block) {
                return Some(Next::Content(content));
            }
            if let Block::Here(digest) = state.blocks[block] {
                return Some(Next::InFile(digest));
            }
            state = self.arrived.wait_timeout(state, LOOK).expect("nothing panics while it holds the lock").0;
        }
    }

    fn lose(&self, block: usize) {
        let mut state = self.lock();
        state.blocks[block] = Block::Missing;
        state.first = state.first.min(block);
        state.bytes -= length(self.remote, block);
        state.here -= 1;
    }

    /// Forgets everything that has arrived.
    pub(super) fn start_over(&self) -> Result<()> {
        self.record.clear(self.remote).with_context(|| format!("starting `{}` over", self.path.display()))?;
        let mut state = self.lock();
        state.blocks.fill(Block::Missing);
        state.handed.clear();
        (state.first, state.here, state.bytes, state.old, state.wanted) = (0, 0, 0, 0, 0);
        Ok(())
    }

    /// Makes the file appear under its name. Everything in it has been hashed and found right.
    pub(super) fn publish(&self, place: &Place) -> Result<()> {
        let context = || format!("publishing `{}`", place.content(self.remote).display());
        self.part.sync().and_then(|()| place.publish(self.remote)).with_context(context)
    }

    /// Sets a file aside that is not what it should be; says where it lies.
    pub(super) fn set_aside(&self, place: &Place) -> Result<PathBuf> {
        let aside = place.aside(self.remote);
        // As it came, and no byte more.
        let whole = self.part.sync().and_then(|()| fs::rename(&self.path, &aside));
        let moved = whole.and_then(|()| fs::remove_file(place.record(self.remote)));
        moved.with_context(|| format!("moving `{}`", self.path.display()))?;
        Ok(aside)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the lock")
    }
}

fn length(remote: &RemoteFile, block: usize) -> u64 {
    BLOCK.min(remote.bytes - block as u64 * BLOCK)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::files::hex;
    use crate::hub::listing::Digest;
    use sha2::{Digest as _, Sha256};

    fn remote(content: &[u8]) -> RemoteFile {
        let digest = Digest::Sha256(hex(&Sha256::digest(content)));
        RemoteFile { path: "a".into(), bytes: content.len() as u64, digest }
    }

    /// A block of `content` in a buffer as connections have it.
    fn block(content: &[u8], block: usize) -> Aligned {
        let start = block * BLOCK as usize;
        let bytes = &content[start..(start + BLOCK as usize).min(content.len())];
        let mut buffer = Aligned::new(BLOCK as usize);
        buffer[..bytes.len()].copy_from_slice(bytes);
        buffer
    }

    #[test]
    fn blocks_are_handed_out_in_order_and_shared() {
        let folder = tempfile::tempdir().unwrap();
        let remote = RemoteFile { bytes: 40 * BLOCK + 1, ..remote(b"") };
        let (transfer, _) = Transfer::open(&remote, &Place::Folder(folder.path().into())).unwrap();
        assert_eq!(transfer.claim(16, 1), Some(0..16));
        assert_eq!(transfer.claim(16, 5), Some(16..21));
        transfer.give_back(0..16);
        assert_eq!(transfer.claim(16, 1), Some(0..16));
        assert_eq!(transfer.claim(16, 1), Some(21..37));
        assert_eq!(transfer.claim(16, 1), Some(37..41));
        assert_eq!((transfer.claim(16, 1), transfer.length(40)), (None, 1));
        transfer.only_whole();
        transfer.give_back(5..6);
        assert_eq!(transfer.claim(16, 8), None, "others are still on their way");
        transfer.give_back(0..41);
        assert_eq!(transfer.claim(16, 8), Some(0..41));
    }

    #[test]
    fn a_later_run_goes_on_and_finds_what_did_not_survive() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Folder(folder.path().into());
        let content: Vec<u8> = (0..3 * BLOCK as u32 + 5).map(|i| (i >> 9) as u8).collect();
        let remote = remote(&content);
        let (transfer, before) = Transfer::open(&remote, &place).unwrap();
        assert_eq!(before, Before::Bytes(0));
        for index in [3, 1] {
            transfer.put(index, &mut block(&content, index)).unwrap();
        }
        drop(transfer);
        // What a power cut does to a block that the record speaks of.
        OpenOptions::new().write(true).open(place.part(&remote)).unwrap().write_all_at(&[0xff; 99], BLOCK + 7).unwrap();
        let (transfer, before) = Transfer::open(&remote, &place).unwrap();
        assert_eq!(before, Before::Bytes(BLOCK + 5));
        assert_eq!(transfer.claim(16, 1), Some(0..1));
        transfer.put(0, &mut block(&content, 0)).unwrap();
        assert_eq!(transfer.claim(16, 1), Some(2..3));
        transfer.put(2, &mut block(&content, 2)).unwrap();
        let lost = AtomicU64::new(0);
        let hashed = std::thread::scope(|scope| {
            let following =
                scope.spawn(|| transfer.follow(|| false, |bytes| lost.store(bytes, Ordering::Relaxed), || ()));
            while transfer.claim(16, 1) != Some(1..2) {
                std::thread::yield_now();
            }
            transfer.put(1, &mut block(&content, 1)).unwrap();
            following.join().unwrap().unwrap().unwrap()
        });
        assert_eq!((hashed.found, lost.into_inner()), (remote.digest.clone(), BLOCK));
        transfer.publish(&place).unwrap();
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), content);
    }

    #[test]
    fn what_is_over_stops_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let remote = RemoteFile { bytes: 9, ..remote(b"") };
        let (transfer, _) = Transfer::open(&remote, &Place::Folder(folder.path().into())).unwrap();
        assert_eq!(transfer.follow(|| true, |_| (), || ()).unwrap(), None);
    }

    #[test]
    fn nothing_is_handed_out_while_the_digest_is_behind() {
        let content = vec![7; 40 * BLOCK as usize];
        let folder = tempfile::tempdir().unwrap();
        let remote = remote(&content);
        let (transfer, _) = Transfer::open(&remote, &Place::Folder(folder.path().into())).unwrap();
        assert_eq!(transfer.claim(1 + BACKLOG.start, 1), Some(0..1 + BACKLOG.start));
        for at in 1..1 + BACKLOG.start {
            transfer.put(at, &mut block(&content, at)).unwrap();
        }
        // The digest waits for the first block, and the network may be slow with it: others are welcome.
        assert_eq!(transfer.claim(1, 1), Some(1 + BACKLOG.start..2 + BACKLOG.start));
        transfer.put(0, &mut block(&content, 0)).unwrap();
        assert_eq!(transfer.claim(1, 1), None);
        let steps = AtomicU64::new(0);
        let four = || steps.load(Ordering::Relaxed) == 4;
        let step = || _ = steps.fetch_add(1, Ordering::Relaxed);
        assert_eq!(transfer.follow(four, |_| (), step).unwrap(), None);
        assert_eq!(transfer.claim(1, 1), Some(2 + BACKLOG.start..3 + BACKLOG.start));
    }
}
