//! What is written down about the data: which files, and a digest of the tokens.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::inputs::{Input, Place};

/// Larger files are recorded without a digest: of a folder of 50 GB only what is used is read, and the tokens have a digest of their own.
const HASHED_BYTES_MAX: u64 = 256 << 20;

/// A file that tokens were taken from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileRecord {
    /// The label that the data stand under.
    pub label: String,
    /// The file's name, without its folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of all of it, in hexadecimal; none if it has more than 256 MiB.
    pub sha256: Option<String>,
}

impl FileRecord {
    pub(super) fn of(input: &Input, label: &str) -> Result<Self> {
        let (name, sha256) = match &input.place {
            Place::Memory(name, text) => ((*name).to_owned(), Some(hex(&Sha256::digest(text.as_bytes())))),
            Place::File(path) => {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let digest = || -> std::io::Result<String> {
                    let (mut file, mut digest) = (File::open(path)?, Sha256::new());
                    let mut buffer = vec![0; 1 << 20];
                    loop {
                        match file.read(&mut buffer)? {
                            0 => return Ok(hex(&digest.finalize())),
                            count => digest.update(&buffer[..count]),
                        }
                    }
                };
                let wanted = input.bytes <= HASHED_BYTES_MAX;
                let digest = wanted.then(digest).transpose();
                (name, digest.with_context(|| format!("reading `{}`", path.display()))?)
            }
        };
        Ok(Self { label: label.to_owned(), name, bytes: input.bytes, sha256 })
    }
}

/// SHA-256 of sequences: of each, its length and then its tokens, as little-endian 32-bit numbers.
pub fn tokens_sha256<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> String {
    let mut digest = Sha256::new();
    for sequence in sequences {
        digest.update((sequence.len() as u32).to_le_bytes());
        for token in sequence {
            digest.update(token.to_le_bytes());
        }
    }
    hex(&digest.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
