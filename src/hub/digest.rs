//! Digests of a file's content while it passes. It must not know where the content comes from.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::listing::{Digest, RemoteFile};
use crate::error::Interrupted;
use crate::files::hex;
use crate::progress::Control;

/// Bytes that are hashed between two looks at the stop flag.
const CHUNK: usize = 1 << 20;

/// SHA-256 of what passes, and git's SHA-1 where the hub goes by that.
pub(super) struct Hasher {
    sha256: Sha256,
    git: Option<Sha1>,
}

/// What a content hashes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// SHA-256 in hex, of every file.
    pub sha256: String,
    /// The digest that the hub promised another value or the same of.
    pub found: Digest,
}

impl Hasher {
    /// For a content that should be `file`'s.
    pub(super) fn new(file: &RemoteFile) -> Self {
        let git = match file.digest {
            // Git puts kind and length before the content of a blob.
            Digest::GitSha1(_) => Some(Sha1::new_with_prefix(format!("blob {}\0", file.bytes))),
            Digest::Sha256(_) => None,
        };
        Self { sha256: Sha256::new(), git }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(git) = &mut self.git {
            git.update(bytes);
        }
    }

    pub(super) fn finish(self) -> Hashed {
        let sha256 = hex(&self.sha256.finalize());
        let found = match self.git {
            Some(git) => Digest::GitSha1(hex(&git.finalize())),
            None => Digest::Sha256(sha256.clone()),
        };
        Hashed { sha256, found }
    }
}

/// Hashes the file at `path`, which should be `file`.
///
/// # Errors
/// It cannot be read; [`Interrupted`] after a stop.
pub fn hash_file(path: &Path, file: &RemoteFile, control: &Control<'_>) -> Result<Hashed> {
    let context = || format!("reading `{}`", path.display());
    let mut source = File::open(path).with_context(context)?;
    let mut hasher = Hasher::new(file);
    let mut chunk = vec![0; CHUNK];
    loop {
        if control.stop_requested() {
            return Err(Interrupted.into());
        }
        let length = source.read(&mut chunk).with_context(context)?;
        if length == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&chunk[..length]);
        control.progress.advance(length as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_git_and_sha256sum() {
        let file = |digest| RemoteFile { path: "a".into(), bytes: 3, digest };
        // From `printf abc | sha256sum` and `printf abc | git hash-object --stdin`.
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let git = Digest::GitSha1("f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f".into());
        let mut hasher = Hasher::new(&file(git.clone()));
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!(hasher.finish(), Hashed { sha256: sha256.into(), found: git });
        let mut hasher = Hasher::new(&file(Digest::Sha256(String::new())));
        hasher.update(b"abc");
        assert_eq!(hasher.finish().found, Digest::Sha256(sha256.into()));
    }
}
