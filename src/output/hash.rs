//! SHA-256 of an output file while its parts are still being written out of order.
//!
//! The digest must be what `sha256sum` prints, so the bytes have to pass in order. A thread that finishes the part behind
//! what others hash, or wait to hash, stands in line with it: reading it back from the disk later would take longer. Any
//! other part is marked, and read back by whoever hashes up to it. So a thread waits only for threads that are hashing.

use std::collections::BTreeMap;
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
    /// Where the line ends: up to here some thread hashes, or has what it will hash when it is its turn.
    claimed: u64,
    /// Finished parts beyond the line: start -> end.
    parts: BTreeMap<u64, u64>,
    /// Absent while a thread is hashing.
    sha: Option<Sha256>,
    /// A part could not be read back: the run fails, and nobody need wait.
    failed: bool,
}

impl Default for FileHash {
    fn default() -> Self {
        let sha = Some(Sha256::new());
        let state = State { frontier: 0, claimed: 0, parts: BTreeMap::new(), sha, failed: false };
        Self { state: Mutex::new(state), moved: Condvar::new() }
    }
}

impl FileHash {
    /// Takes note that the part that begins at `start` and holds `bytes` is written, and hashes on if that is possible now.
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
        let end = start + bytes.len() as u64;
        let mut state = self.lock();
        if state.claimed == start {
            state.claimed = end;
            self.in_turn(state, (start, end), |sha| {
                permits.with(|| sha.update(bytes));
                Ok(())
            })?;
            return self.go_on(file, bounce, permits);
        }
        drop(state);
        self.found(file, start, end, bounce, permits)
    }

    /// As [`FileHash::written`], for a part that an earlier run has written.
    ///
    /// # Errors
    /// The file cannot be read back.
    pub fn found(&self, file: &OutputFile, start: u64, end: u64, bounce: &mut Bounce, permits: &Permits) -> Result<()> {
        if start < end {
            self.lock().parts.insert(start, end);
        }
        self.go_on(file, bounce, permits)
    }

    /// Hashes parts that are finished, from the end of the line as far as they reach.
    fn go_on(&self, file: &OutputFile, bounce: &mut Bounce, permits: &Permits) -> Result<()> {
        loop {
            let mut state = self.lock();
            let from = state.claimed;
            let mut to = from;
            while let Some(end) = state.parts.remove(&to) {
                to = end;
            }
            if to == from {
                return Ok(());
            }
            state.claimed = to;
            self.in_turn(state, (from, to), |sha| {
                Ok(file.read(from, to, bounce, |piece| permits.with(|| sha.update(piece)))?)
            })?;
        }
    }

    /// Waits for whoever stands before this thread in line, and lets it hash its claim, `from..to`.
    fn in_turn(
        &self,
        state: MutexGuard<'_, State>,
        (from, to): (u64, u64),
        hash: impl FnOnce(&mut Sha256) -> Result<()>,
    ) -> Result<()> {
        let before = |state: &mut State| !state.failed && (state.frontier != from || state.sha.is_none());
        let mut state = self.moved.wait_while(state, before).expect(HELD);
        // Without a state to go on from, another thread has failed and will say why.
        let sha = if state.failed { None } else { state.sha.take() };
        let Some(mut sha) = sha else { return Ok(()) };
        drop(state);
        let hashed = hash(&mut sha);
        let mut state = self.lock();
        state.frontier = to;
        state.sha = Some(sha);
        state.failed = hashed.is_err();
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
        file.write_all_at(&content, 0, bounce).unwrap();
        let cuts = [0, 10, 1_000_000, 1_000_001, 2_500_000, 3_000_000_u64];
        for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
            let hash = FileHash::default();
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
    fn threads_in_line_pass_every_byte_once() {
        let content: Vec<u8> = (0..2_000_000_u32).map(|i| ((i * 11) >> 4) as u8).collect();
        let folder = tempfile::tempdir().unwrap();
        let file = OutputFile::create(&folder.path().join("content"), content.len() as u64).unwrap();
        file.write_all_at(&content, 0, &mut Bounce::default()).unwrap();
        let (hash, permits) = (FileHash::default(), Permits::new(2));
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    let mut bounce = Bounce::default();
                    loop {
                        let start = 997 * next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if start >= content.len() {
                            break;
                        }
                        let part = &content[start..content.len().min(start + 997)];
                        hash.written(&file, start as u64, part, &mut bounce, &permits).unwrap();
                    }
                });
            }
        });
        assert_eq!(hash.digest(2_000_000).unwrap(), sha256(&content));
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
