//! What the hub knows of a folder: its files with their digests, and the commit that follows from them. It must not know HTTP.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Files at least this large are kept in LFS, whatever their name (the hub's own limit).
const LFS_BYTES_MIN: u64 = 10 << 20;

/// A file of a repository.
#[derive(Clone, Debug)]
pub(super) struct RepoFile {
    /// Relative to the repository, with `/`.
    pub(super) path: String,
    pub(super) real: PathBuf,
    pub(super) bytes: u64,
    modified: SystemTime,
    /// Git's SHA-1: of the content, or of the LFS pointer.
    pub(super) git_oid: String,
    /// SHA-256 of the content, for files in LFS.
    pub(super) sha256: Option<String>,
}

/// A repository at its one commit.
#[derive(Clone, Debug)]
pub(super) struct Repo {
    pub(super) commit: String,
    /// Sorted by path.
    pub(super) files: Vec<RepoFile>,
}

impl Repo {
    /// Reads a folder. What is unchanged since `before` is not hashed again. Files larger than `fake_above` get a digest that is not
    /// theirs: hashing the holes of a sparse model would take hours.
    pub(super) fn read(folder: &Path, before: Option<&Self>, fake_above: u64) -> Result<Self> {
        let mut files = Vec::new();
        collect(folder, "", before, fake_above, &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut commit = Sha1::new();
        for file in &files {
            commit.update(format!("{} {} {}\n", file.path, file.bytes, file.etag()));
        }
        Ok(Self { commit: hex(&commit.finalize()), files })
    }

    pub(super) fn file(&self, path: &str) -> Option<&RepoFile> {
        self.files.iter().find(|file| file.path == path)
    }
}

impl RepoFile {
    fn new(path: String, real: PathBuf, bytes: u64, modified: SystemTime, fake: bool) -> Result<Self> {
        let named = [".safetensors", ".gguf", ".pth", ".bin"].iter().any(|end| path.ends_with(end));
        let lfs = named || bytes >= LFS_BYTES_MIN;
        let sha256 = match (lfs, fake) {
            (false, _) => None,
            (true, true) => Some(hex(&Sha256::digest(format!("{path} {bytes}")))),
            (true, false) => Some(hash(Sha256::new(), &real)?),
        };
        let git_oid = match &sha256 {
            // What git keeps of a file in LFS is a text that points to it.
            Some(sha256) => {
                let text = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {bytes}\n");
                hex(&git_blob(text.len() as u64).chain_update(text).finalize())
            }
            None => hash(git_blob(bytes), &real)?,
        };
        Ok(Self { path, real, bytes, modified, git_oid, sha256 })
    }

    /// What the hub sends as `ETag`, and what names the blob in its cache.
    pub(super) fn etag(&self) -> &str {
        self.sha256.as_ref().unwrap_or(&self.git_oid)
    }
}

fn collect(
    folder: &Path,
    prefix: &str,
    before: Option<&Repo>,
    fake_above: u64,
    files: &mut Vec<RepoFile>,
) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let metadata = fs::metadata(entry.path())?;
        if metadata.is_dir() {
            collect(&entry.path(), &format!("{path}/"), before, fake_above, files)?;
            continue;
        }
        let (bytes, modified) = (metadata.len(), metadata.modified()?);
        let known = before.and_then(|repo| repo.file(&path));
        match known.filter(|file| file.bytes == bytes && file.modified == modified) {
            Some(known) => files.push(known.clone()),
            None => files.push(RepoFile::new(path, entry.path(), bytes, modified, bytes > fake_above)?),
        }
    }
    Ok(())
}

/// Git hashes a blob behind its kind and length.
fn git_blob(bytes: u64) -> Sha1 {
    Sha1::new().chain_update(format!("blob {bytes}\0"))
}

fn hash<D: Digest>(mut digest: D, path: &Path) -> Result<String> {
    let mut file = File::open(path)?;
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex(&digest.finalize())),
            length => digest.update(&chunk[..length]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_git_and_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "abc").unwrap();
        fs::write(folder.path().join("model.safetensors"), "abc").unwrap();
        let repo = Repo::read(folder.path(), None, u64::MAX).unwrap();
        // From `printf abc | git hash-object --stdin` and `printf abc | sha256sum`.
        assert_eq!(repo.file("config.json").unwrap().etag(), "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f");
        let weights = repo.file("model.safetensors").unwrap();
        assert_eq!(weights.etag(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        fs::write(folder.path().join("config.json"), "abcd").unwrap();
        let changed = Repo::read(folder.path(), Some(&repo), u64::MAX).unwrap();
        assert_ne!(changed.commit, repo.commit);
    }
}
