//! SHA-256 of an output file while its parts are still being written out of order.
//!
//! The digest must be what `sha256sum` prints, so the bytes have to pass in order. Whoever finishes a part marks it; if
//! the part lies at the frontier, that thread hashes it, and on from there as far as finished parts reach, reading back what
//! others have written. Nobody waits: a thread that finds another one hashing leaves its part to it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::Result;
use sha2::{Digest, Sha256};

use super::file::{Bounce, OutputFile};
pub use crate::files::hex;

/// The digest of one file in the making.
#[derive(Debug)]
pub struct FileHash {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes hashed so far.
    frontier: u64,
    /// Finished parts beyond the frontier: start -> end.
    parts: BTreeMap<u64, u64>,
    /// Absent while a thread is hashing.
    sha: Option<Sha256>,
}

impl Default for FileHash {
    fn default() -> Self {
        Self { state: Mutex::new(State { frontier: 0, parts: BTreeMap::new(), sha: Some(Sha256::new()) }) }
    }
}

impl FileHash {
    /// Marks the part that begins at `start` and holds `bytes` as written, and hashes on if that is possible now.
    ///
    /// # Errors
    /// The file cannot be read back.
    pub fn written(&self, file: &OutputFile, start: u64, bytes: &[u8], bounce: &mut Bounce) -> Result<()> {
        let mut state = self.lock();
        match state.sha.take() {
            // It is the next one: no need to read back what is at hand.
            Some(mut sha) if state.frontier == start => {
                drop(state);
                sha.update(bytes);
                state = self.lock();
                state.frontier = start + bytes.len() as u64;
                state.sha = Some(sha);
            }
            sha => {
                state.sha = sha;
                if !bytes.is_empty() {
                    state.parts.insert(start, start + bytes.len() as u64);
                }
            }
        }
        drop(state);
        self.go_on(file, bounce)
    }

    /// As [`FileHash::written`], for a part that an earlier run has written.
    ///
    /// # Errors
    /// The file cannot be read back.
    pub fn found(&self, file: &OutputFile, start: u64, end: u64, bounce: &mut Bounce) -> Result<()> {
        if start < end {
            self.lock().parts.insert(start, end);
        }
        self.go_on(file, bounce)
    }

    /// Hashes from the frontier as far as finished parts reach, unless another thread does.
    fn go_on(&self, file: &OutputFile, bounce: &mut Bounce) -> Result<()> {
        loop {
            let (from, to, mut sha) = {
                let mut state = self.lock();
                let from = state.frontier;
                let mut to = from;
                while let Some(end) = state.parts.remove(&to) {
                    to = end;
                }
                if to == from {
                    return Ok(());
                }
                let Some(sha) = state.sha.take() else {
                    // Another thread is hashing; it looks again when it is done.
                    state.parts.insert(from, to);
                    return Ok(());
                };
                (from, to, sha)
            };
            file.read(from, to, bounce, |piece| sha.update(piece))?;
            let mut state = self.lock();
            state.frontier = to;
            state.sha = Some(sha);
        }
    }

    /// The digest in hex, if all `bytes` of the file have passed.
    pub fn digest(&self, bytes: u64) -> Option<String> {
        let state = self.lock();
        let sha = state.sha.clone().filter(|_| state.frontier == bytes)?;
        Some(hex(&sha.finalize()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the lock")
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
        let bounce = &mut Bounce::default();
        file.write_all_at(&content, 0, bounce).unwrap();
        let cuts = [0, 10, 1_000_000, 1_000_001, 2_500_000, 3_000_000_u64];
        for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
            let hash = FileHash::default();
            for part in order {
                assert_eq!(hash.digest(3_000_000), None);
                let (start, end) = (cuts[part], cuts[part + 1]);
                if part % 2 == 0 {
                    hash.written(&file, start, &content[start as usize..end as usize], bounce).unwrap();
                } else {
                    hash.found(&file, start, end, bounce).unwrap();
                }
            }
            assert_eq!(hash.digest(3_000_000).unwrap(), sha256(&content));
        }
        // From `printf abc | sha256sum`.
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
