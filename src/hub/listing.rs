//! What a repository holds at one commit: names, sizes and digests, as the hub tells them. It must not know which files are wanted.
//!
//! ```text
//! GET ENDPOINT/api/models/OWNER/NAME/revision/REVISION         { "sha": COMMIT, .. }
//! GET ENDPOINT/api/models/OWNER/NAME/tree/COMMIT?recursive=true
//!     [ { "type": "file", "path": .., "size": .., "oid": GIT SHA-1, "lfs": { "oid": SHA-256, "size": .. } }, .. ]
//!     with `Link: <..>; rel="next"` where there are more
//! ```
//!
//! The commit is asked for once and everything after that names it, so a push in between cannot mix two versions.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::address::{Address, escaped_path, escaped_segment, is_commit, is_plain_path};
use super::client::Client;
use super::denial::Denial;
use crate::progress::Control;

/// Most files of a repository.
const FILES_MAX: usize = 1_000_000;

/// What a file's content must hash to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Digest {
    /// SHA-256, for files in LFS.
    Sha256(String),
    /// Git's SHA-1 of a blob: of the length and the content.
    GitSha1(String),
}

impl Digest {
    /// The digits, which also name the blob in the hub's cache.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitSha1(hex) => hex,
        }
    }

    /// The digest whose digits these are, by their number.
    pub fn of_hex(hex: &str) -> Option<Self> {
        let digits = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match hex.len() {
            64 if digits => Some(Self::Sha256(hex.to_owned())),
            40 if digits => Some(Self::GitSha1(hex.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "SHA-256 {hex}"),
            Self::GitSha1(hex) => write!(f, "git SHA-1 {hex}"),
        }
    }
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Relative to the repository, with `/`.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// What it hashes to.
    pub digest: Digest,
}

/// A repository at a commit.
#[derive(Clone, Debug)]
pub struct Listing {
    /// What was asked for.
    pub address: Address,
    /// The commit that its revision is.
    pub commit: String,
    /// Every file, sorted by path.
    pub files: Vec<RemoteFile>,
}

impl Listing {
    /// Asks the hub.
    ///
    /// # Errors
    /// There is no such repository or revision, or nobody may see it; the hub does not answer, or not as a hub does;
    /// [`crate::error::Interrupted`] after a stop.
    pub fn fetch(client: &Client, address: &Address, control: &Control<'_>) -> Result<Self> {
        let endpoint = &client.settings().endpoint;
        let api = format!("{endpoint}/api/models/{}", escaped_path(&address.repo));
        let denied = |denial: &Denial| denial.error(&address.repo, &address.revision);
        let url = format!("{api}/revision/{}", escaped_segment(&address.revision));
        let (info, _) = client.persist(control, &denied, || client.json(&url))?;
        let commit = info["sha"].as_str().filter(|sha| is_commit(sha)).map(str::to_owned);
        let Some(commit) = commit else { bail!("`{endpoint}` does not answer as a hub does: it names no commit") };
        let mut files = Vec::new();
        let mut next = Some(format!("{api}/tree/{commit}?recursive=true&expand=false"));
        while let Some(url) = next {
            let (page, more) = client.persist(control, &denied, || client.json(&url))?;
            let Some(page) = page.as_array() else {
                bail!("`{endpoint}` does not answer as a hub does: no list of files")
            };
            for entry in page.iter().filter(|entry| entry["type"] == "file") {
                files.push(read(entry)?);
            }
            if files.len() > FILES_MAX || (page.is_empty() && more.is_some()) {
                bail!("the list of the files of `{}` has no end", address.repo);
            }
            next = more.map(|path| format!("{}{path}", host(endpoint)));
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let distinct: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
        if distinct.len() < files.len() {
            bail!("the list of the files of `{}` names a file twice", address.repo);
        }
        Ok(Self { address: address.clone(), commit, files })
    }

    /// Where the hub gives the content of a file, or redirects to it.
    pub(super) fn url(&self, client: &Client, file: &RemoteFile) -> String {
        let endpoint = &client.settings().endpoint;
        format!("{endpoint}/{}/resolve/{}/{}", escaped_path(&self.address.repo), self.commit, escaped_path(&file.path))
    }
}

/// Scheme and host of the endpoint, without a path.
fn host(endpoint: &str) -> &str {
    let start = endpoint.find("://").map_or(0, |at| at + 3);
    endpoint[start..].find('/').map_or(endpoint, |at| &endpoint[..start + at])
}

/// One entry. What a hub that means harm could put into it is refused: the path becomes a path on this machine.
fn read(entry: &Value) -> Result<RemoteFile> {
    let path = entry["path"].as_str().unwrap_or_default();
    let bytes = entry["lfs"]["size"].as_u64().or_else(|| entry["size"].as_u64());
    let (Some(bytes), true) = (bytes.filter(|&bytes| bytes < 1 << 62), is_plain_path(path) && !is_reserved(path))
    else {
        bail!("the hub lists a file whose name or size cannot be: {entry}");
    };
    let digest = match entry["lfs"]["oid"].as_str() {
        Some(oid) => Digest::of_hex(oid).filter(|digest| matches!(digest, Digest::Sha256(_))),
        None => entry["oid"].as_str().and_then(Digest::of_hex),
    };
    let Some(digest) = digest else { bail!("the hub lists `{path}` without a digest") };
    Ok(RemoteFile { path: path.to_owned(), bytes, digest })
}

/// Names that l4tool itself writes into a folder.
fn is_reserved(path: &str) -> bool {
    path.split('/').next().is_some_and(|first| first.eq_ignore_ascii_case(super::place::WORK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn entries_are_read_and_hostile_ones_refused() {
        let (sha1, sha256) = ("a".repeat(40), "b".repeat(64));
        let small = read(&json!({"type": "file", "path": "a/b.json", "size": 7, "oid": sha1})).unwrap();
        assert_eq!((small.bytes, small.digest), (7, Digest::GitSha1(sha1.clone())));
        let lfs = json!({"path": "m.safetensors", "size": 7, "oid": sha1, "lfs": {"oid": sha256, "size": 9}});
        let large = read(&lfs).unwrap();
        assert_eq!((large.bytes, large.digest), (9, Digest::Sha256(sha256)));
        for (path, size, oid) in [
            ("../a", json!(1), sha1.as_str()),
            ("/etc/passwd", json!(1), &sha1),
            (".l4tool/lock", json!(1), &sha1),
            ("a", json!(-1), &sha1),
            ("a", json!(u64::MAX), &sha1),
            ("a", json!(1), "main"),
        ] {
            assert!(read(&json!({"path": path, "size": size, "oid": oid})).is_err(), "{path} {size} {oid}");
        }
    }

    #[test]
    fn endpoints_with_a_path_keep_it_out_of_links() {
        assert_eq!(host("https://hub.example/mirror"), "https://hub.example");
        assert_eq!(host("https://hub.example"), "https://hub.example");
    }
}
