//! SHA-256 of an output file while its parts are still being written out of order.
//!
//! The digest must be what `sha256sum` prints, so the bytes have to pass in order. Who makes parts one after the other lines
//! them up before any is begun; whoever finishes such a part has it in memory, and waits until those before it have passed:
//! reading it back from the disk later would take longer. Any other part is marked when it is written, and read back by
//! whoever hashes up to it. So a thread waits only for parts that other threads are already making.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard};

use anyhow::Result;
use sha2::{Digest, Sha256};

pub use crate::files::hex;
use crate::files::{Bounce, OutputFile};
use crate::parallel::Permits;

/// Why a lock is never poisoned.
const HELD: &str = "no thread panics while it holds the lock";

/// The digest of one file in the making.
#[derive(Debug)]
pub struct FileHash {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug)]
struct State {
    /// Bytes hashed so far.
    frontier: u64,
    /// Finished parts that are not hashed: start -> end.
    parts: BTreeMap<u64, u64>,
    line: Line,
    /// Absent while a thread is hashing.
    sha: Option<Sha256>,
    /// A part will never be finished or could not be read back: the run fails, and nobody need wait.
    failed: bool,
}

/// The order in which parts will pass, as far as it is known before they are made.
#[derive(Debug, Default)]
struct Line {
    /// Up to here every part is hashed, finished, or lined up.
    end: u64,
    /// Such parts beyond the end: start -> end.
    beyond: BTreeMap<u64, u64>,
    /// Starts of parts to wait with.
    waiting: HashSet<u64>,
}

impl Line {
    /// Whether a part stands at the end of the line, which it prolongs then.
    fn admit(&mut self, start: u64, end: u64) -> bool {
        if start > self.end {
            self.beyond.insert(start, end);
        }
        let next = start == self.end;
        if next {
            self.end = end;
            while let Some(end) = self.beyond.remove(&self.end) {
                self.end = end;
            }
        }
        next
    }
}

impl Default for FileHash {
    fn default() -> Self {
        let sha = Some(Sha256::new());
        let state = State { frontier: 0, parts: BTreeMap::new(), line: Line::default(), sha, failed: false };
        Self { state: Mutex::new(state), moved: Condvar::new() }
    }
}

impl FileHash {
    /// Takes note that the part `start..end` will be made, after all that were lined up before it.
    pub fn line_up(&self, start: u64, end: u64) {
        let mut state = self.lock();
        if start < end && state.line.admit(start, end) {
            state.line.waiting.insert(start);
        }
    }

    /// Takes note that the part that begins at `start` and holds `bytes` is written, and hashes on if that is possible. Waits for
    /// those before it if it was lined up.
    ///
    /// # Errors
    /// The file cannot be read back.
    pub fn written(
        &self,
        file: &OutputFile,
        start: u64,
        bytes: &[u8],
        bounce: &mut Bounce,
        permits: &Permits,
    ) -> Result<()> {
        if bytes.is_empty() {
            // It would take the place of the part that begins where it does.
            return Ok(());
        }
        let end = start + bytes.len() as u64;
        let mut state = self.lock();
        let waits = state.line.waiting.remove(&start);
        let comes_later = |state: &mut State| !state.failed && (state.frontier != start || state.sha.is_none());
        if waits {
            state = self.moved.wait_while(state, comes_later).expect(HELD);
        } else {
            state.line.admit(start, end);
        }
        if comes_later(&mut state) {
            state.parts.insert(start, end);
            drop(state);
        } else {
            let hash = |sha: &mut Sha256| {
                permits.with(|| sha.update(bytes));
                Ok(())
            };
            self.hash(state, end, hash)?;
        }
        self.go_on(file, bounce, permits)
    }

    /// As [`FileHash::written`], for a part that an earlier run has written.
    ///
    /// # Errors
    /// The file cannot be read back.
    pub fn found(&self, file: &OutputFile, start: u64, end: u64, bounce: &mut Bounce, permits: &Permits) -> Result<()> {
        if start < end {
            let mut state = self.lock();
            state.line.admit(start, end);
            state.parts.insert(start, end);
        }
        self.go_on(file, bounce, permits)
    }

    /// Lets nobody wait any longer: a part will not be made.
    pub fn give_up(&self) {
        self.lock().failed = true;
        self.moved.notify_all();
    }

    /// Hashes finished parts as far as they reach, unless another thread is hashing and will do so.
    fn go_on(&self, file: &OutputFile, bounce: &mut Bounce, permits: &Permits) -> Result<()> {
        loop {
            let mut state = self.lock();
            let from = state.frontier;
            let mut to = from;
            while state.sha.is_some()
                && let Some(end) = state.parts.remove(&to)
            {
                to = end;
            }
            if to == from {
                return Ok(());
            }
            self.hash(state, to, |sha| Ok(file.read(from, to, bounce, |piece| permits.with(|| sha.update(piece)))?))?;
        }
    }

    /// Moves the frontier to `to` with `hash`, while others may look at the state.
    fn hash(
        &self,
        mut state: MutexGuard<'_, State>,
        to: u64,
        hash: impl FnOnce(&mut Sha256) -> Result<()>,
    ) -> Result<()> {
        // After a failure, which another thread reports, there is nothing to go on from.
        let Some(mut sha) = state.sha.take().filter(|_| !state.failed) else { return Ok(()) };
        drop(state);
        let hashed = hash(&mut sha);
        let mut state = self.lock();
        state.frontier = to;
        state.sha = Some(sha);
        state.failed |= hashed.is_err();
        self.moved.notify_all();
        hashed
    }

    /// The digest in hex, if all `bytes` of the file have passed.
    pub fn digest(&self, bytes: u64) -> Option<String> {
        let state = self.lock();
        let sha = state.sha.clone().filter(|_| state.frontier == bytes && !state.failed)?;
        Some(hex(&sha.finalize()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(HELD)
    }
}

/// SHA-256 of a slice, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_in_any_order_give_the_digest_of_the_whole() {
        let content: Vec<u8> = (0..3_000_000_u32).map(|i| ((i * 7) >> 3) as u8).collect();
        let folder = tempfile::tempdir().unwrap();
        let file = OutputFile::create(&folder.path().join("content"), content.len() as u64).unwrap();
        let (bounce, permits) = (&mut Bounce::default(), &Permits::new(1));
        file.write_all_at(&content, 0, bounce, |_| ()).unwrap();
        let cuts = [0, 10, 1_000_000, 1_000_001, 2_500_000, 3_000_000_u64];
        for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
            let hash = FileHash::default();
            hash.line_up(cuts[2], cuts[3]);
            // A tensor without elements begins where the next one does.
            hash.written(&file, cuts[4], &[], bounce, permits).unwrap();
            for part in order {
                assert_eq!(hash.digest(3_000_000), None);
                let (start, end) = (cuts[part], cuts[part + 1]);
                if part % 2 == 0 {
                    hash.written(&file, start, &content[start as usize..end as usize], bounce, permits).unwrap();
                } else {
                    hash.found(&file, start, end, bounce, permits).unwrap();
                }
            }
            assert_eq!(hash.digest(3_000_000).unwrap(), sha256(&content));
        }
        // From `printf abc | sha256sum`.
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn threads_in_line_pass_every_byte_once_and_from_memory() {
        const STEP: usize = 997;
        let content: Vec<u8> = (0..2_000_000_u32).map(|i| ((i * 11) >> 4) as u8).collect();
        let folder = tempfile::tempdir().unwrap();
        // Reading back would find zeros.
        let file = OutputFile::create(&folder.path().join("content"), content.len() as u64).unwrap();
        let (hash, permits) = (FileHash::default(), Permits::new(2));
        let part = |start: usize| &content[start..content.len().min(start + STEP)];
        for start in (0..content.len()).step_by(STEP) {
            hash.line_up(start as u64, (start + part(start).len()) as u64);
        }
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    let mut bounce = Bounce::default();
                    loop {
                        let start = STEP * next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if start >= content.len() {
                            break;
                        }
                        hash.written(&file, start as u64, part(start), &mut bounce, &permits).unwrap();
                    }
                });
            }
        });
        assert_eq!(hash.digest(2_000_000).unwrap(), sha256(&content));
    }

    #[test]
    fn a_part_that_is_never_made_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let file = OutputFile::create(&folder.path().join("content"), 20).unwrap();
        let hash = FileHash::default();
        hash.line_up(0, 10);
        hash.line_up(10, 20);
        std::thread::scope(|scope| {
            let second = || hash.written(&file, 10, &[1; 10], &mut Bounce::default(), &Permits::new(1));
            let second = scope.spawn(second);
            // Whoever leaves that list holds the lock until it waits.
            while hash.lock().line.waiting.contains(&10) {
                std::thread::yield_now();
            }
            hash.give_up();
            second.join().unwrap().unwrap();
        });
        assert_eq!(hash.digest(20), None);
    }

    #[test]
    fn a_part_that_cannot_be_read_fails_once_and_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let file = OutputFile::create(&folder.path().join("short"), 10).unwrap();
        let (hash, permits, bounce) = (FileHash::default(), Permits::new(1), &mut Bounce::default());
        hash.found(&file, 10, 20_000, bounce, &permits).unwrap();
        assert!(hash.written(&file, 0, &[0; 10], bounce, &permits).is_err());
        hash.written(&file, 20_000, &[1; 5], bounce, &permits).unwrap();
        assert_eq!(hash.digest(20_005), None);
    }
}
