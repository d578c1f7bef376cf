//! The durable record of which blocks of a growing file have arrived.
//!
//! ```text
//! line 1    {"schema":"l4tool.part/1","bytes":N,"digest":{"sha256":"..."}}      whose file it is
//! line 2..  INDEX XXH3                                                          one for every block of 1 MiB, in any order
//! ```
//!
//! A line is appended after the block's bytes were written, without a sync. A kill leaves at most a torn line, which is dropped; a power cut
//! may lose bytes that the record speaks of, so every block is compared with its XXH3 before it counts. It must not know where bytes come from.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::listing::{Digest, RemoteFile};

const SCHEMA: &str = "l4tool.part/1";

/// Bytes of a block; the last one of a file may be shorter. What a kill loses is at most one for each connection.
pub(super) const BLOCK: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Head {
    schema: String,
    bytes: u64,
    digest: Digest,
}

/// An open record.
#[derive(Debug)]
pub(super) struct Record {
    file: Mutex<File>,
}

/// What a record said when it was opened.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// Nothing: the file is new.
    Nothing,
    /// Blocks of this very content: index and XXH3.
    Blocks(Vec<(usize, u64)>),
    /// Blocks of another content, which are of no use.
    Other,
}

impl Record {
    /// Opens the record of `file`, or begins one.
    pub(super) fn open(path: &Path, remote: &RemoteFile) -> io::Result<(Self, Found)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let (found, understood) = read(&text, remote);
        file.set_len(understood as u64)?;
        file.seek(SeekFrom::Start(understood as u64))?;
        let record = Self { file: Mutex::new(file) };
        if understood == 0 {
            record.begin(remote)?;
        }
        Ok((record, found))
    }

    fn begin(&self, remote: &RemoteFile) -> io::Result<()> {
        let head = Head { schema: SCHEMA.into(), bytes: remote.bytes, digest: remote.digest.clone() };
        let line = serde_json::to_string(&head).expect("a head is plain data") + "\n";
        self.lock().write_all(line.as_bytes())
    }

    /// Records that the bytes of a block are in the file.
    pub(super) fn append(&self, block: usize, content: &[u8]) -> io::Result<u64> {
        let digest = xxh3_64(content);
        self.lock().write_all(format!("{block} {digest:016x}\n").as_bytes())?;
        Ok(digest)
    }

    /// Forgets every block.
    pub(super) fn clear(&self, remote: &RemoteFile) -> io::Result<()> {
        {
            let mut file = self.lock();
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
        }
        self.begin(remote)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, File> {
        self.file.lock().expect("nothing panics while it holds the lock")
    }
}

/// What a record says, and how many of its bytes say it.
fn read(text: &[u8], remote: &RemoteFile) -> (Found, usize) {
    let mut lines = text.split_inclusive(|&byte| byte == b'\n').take_while(|line| line.ends_with(b"\n"));
    let Some(first) = lines.next() else { return (Found::Nothing, 0) };
    match serde_json::from_slice::<Head>(first) {
        Ok(head) if head.schema == SCHEMA && head.bytes == remote.bytes && head.digest == remote.digest => {}
        _ => return (Found::Other, 0),
    }
    let count = remote.bytes.div_ceil(BLOCK);
    let mut understood = first.len();
    let mut blocks = Vec::new();
    for line in lines {
        let parsed = std::str::from_utf8(line).ok().and_then(|line| {
            let (block, digest) = line.trim_end().split_once(' ')?;
            Some((block.parse::<usize>().ok()?, u64::from_str_radix(digest, 16).ok()?))
        });
        let Some((block, digest)) = parsed.filter(|(block, _)| (*block as u64) < count) else { break };
        blocks.push((block, digest));
        understood += line.len();
    }
    (Found::Blocks(blocks), understood)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(digit: &str) -> RemoteFile {
        RemoteFile { path: "a".into(), bytes: 3 * BLOCK + 1, digest: Digest::Sha256(digit.repeat(64)) }
    }

    #[test]
    fn blocks_come_back_and_torn_lines_and_other_files_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let (record, found) = Record::open(&path, &remote("a")).unwrap();
        assert_eq!(found, Found::Nothing);
        let digests = [3, 0].map(|block| (block, record.append(block, &[block as u8; 5]).unwrap()));
        drop(record);
        assert_eq!(Record::open(&path, &remote("a")).unwrap().1, Found::Blocks(digests.into()));
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 1]).unwrap();
        assert_eq!(Record::open(&path, &remote("a")).unwrap().1, Found::Blocks(digests[..1].into()));
        // Blocks that the file does not have, and what is no line of ours.
        for wrong in ["4 0123456789abcdef\n", "x\n", "\u{fffd}\n"] {
            let mut text = text.clone();
            text.extend_from_slice(wrong.as_bytes());
            std::fs::write(&path, &text).unwrap();
            assert_eq!(Record::open(&path, &remote("a")).unwrap().1, Found::Blocks(digests.into()), "{wrong}");
        }
        assert_eq!(Record::open(&path, &remote("b")).unwrap().1, Found::Other);
        let (record, found) = Record::open(&path, &remote("b")).unwrap();
        assert_eq!(found, Found::Blocks(vec![]));
        record.append(1, b"x").unwrap();
        record.clear(&remote("b")).unwrap();
        assert_eq!(Record::open(&path, &remote("b")).unwrap().1, Found::Blocks(vec![]));
    }
}
