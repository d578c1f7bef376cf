//! Names on the hub: a repository, a revision, a file in it, and how they are written into URLs. It must not know the network.
//!
//! Names come from the command line, from listings and from folders, and become parts of URLs and of paths on the disk: whatever could
//! lead elsewhere is refused here.

use std::fmt;
use std::path::{Component, Path};

use anyhow::Result;

use crate::error::hint;

/// How an address of the hub begins where a path could stand too.
pub const SCHEME: &str = "hf://";

/// The branch that is meant if none is named.
pub const DEFAULT_REVISION: &str = "main";

/// The ending of files that are a model of their own, of which a repository may hold many.
const FILE_ENDING: &str = ".gguf";

/// A branch that is called like this has two more names behind it: `refs/pr/1`.
const REFS: &str = "refs";

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `owner/name`.
    pub repo: String,
    /// A branch, a tag, or a commit.
    pub revision: String,
}

impl Address {
    /// Reads `owner/name`, `owner/name@revision`, either with [`SCHEME`] before it.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        let (repo, revision) = match text.strip_prefix(SCHEME).unwrap_or(text).split_once('@') {
            Some((repo, revision)) => (repo, revision),
            None => (text.strip_prefix(SCHEME).unwrap_or(text), DEFAULT_REVISION),
        };
        let parts: Vec<&str> = repo.trim_end_matches('/').split('/').collect();
        if !(1..=2).contains(&parts.len()) || !parts.iter().all(|part| is_name(part)) {
            return Err(hint(
                format!("`{text}` is not the name of a repository"),
                "write it as OWNER/NAME or OWNER/NAME@REVISION, such as meta-llama/Llama-4-Scout-17B-16E-Instruct",
            ));
        }
        if !is_revision(revision) {
            return Err(hint(
                format!("`{revision}` is not a revision"),
                "name a branch, a tag or a commit after the `@`",
            ));
        }
        Ok(Self { repo: parts.join("/"), revision: revision.to_owned() })
    }
}

/// What can stand where a path could: a repository, or one of its files that are models of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The repository.
    pub address: Address,
    /// The file's path in it.
    pub file: Option<String>,
}

impl Location {
    /// Reads an address that begins with [`SCHEME`]; `None` for anything else, which is a path then. A file is named behind the revision,
    /// if there is one: `hf://owner/name@revision/folder/file.gguf`.
    ///
    /// # Errors
    /// As [`Address::parse`], or the file's path leads out of the repository.
    pub fn of_path(path: &Path) -> Result<Option<Self>> {
        let Some(text) = path.to_str().filter(|text| text.starts_with(SCHEME)) else { return Ok(None) };
        let parts: Vec<&str> = text[SCHEME.len()..].split('/').collect();
        // A repository may be called like a file.
        if !text.ends_with(FILE_ENDING) || parts.len() <= 2 {
            return Address::parse(text).map(|address| Some(Self { address, file: None }));
        }
        let is_refs = parts.get(1).is_some_and(|name| name.ends_with(&format!("@{REFS}")));
        let repository = if is_refs { 4 } else { 2 };
        if parts.len() <= repository || !is_plain_path(&parts[repository..].join("/")) {
            return Err(hint(
                format!("`{text}` is not a file of a repository"),
                "write it as hf://OWNER/NAME/FILE.gguf or hf://OWNER/NAME@REVISION/FOLDER/FILE.gguf",
            ));
        }
        let address = Address::parse(&parts[..repository].join("/"))?;
        Ok(Some(Self { address, file: Some(parts[repository..].join("/")) }))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision == DEFAULT_REVISION { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

/// What huggingface_hub's `validate_repo_id` allows, with the same bounds.
fn is_name(part: &str) -> bool {
    let allowed = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    let odd = part.contains("--") || part.contains("..") || part.starts_with(['.', '-']) || part.ends_with(['.', '-']);
    !part.is_empty() && part.len() <= 96 && allowed && !odd
}

/// Branches may have slashes (`refs/pr/1`); as paths they must stay where they belong.
fn is_revision(revision: &str) -> bool {
    revision.len() <= 200 && is_plain_path(revision)
}

/// Whether it is 40 hexadecimal digits: the name of a commit, which never moves.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a path with `/` leads to something below where it starts, on every system.
pub fn is_plain_path(path: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':']);
    let components = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    components && path.split('/').all(plain) && !path.chars().any(char::is_control)
}

/// A path as a part of a URL.
pub(super) fn escaped_path(path: &str) -> String {
    escaped(path, |byte| byte == b'/')
}

/// A name as one segment of a URL: slashes are escaped too.
pub(super) fn escaped_segment(name: &str) -> String {
    escaped(name, |_| false)
}

fn escaped(text: &str, also: impl Fn(u8) -> bool) -> String {
    let mut url = String::with_capacity(text.len());
    for byte in text.bytes() {
        // RFC 3986: the unreserved characters.
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') || also(byte) {
            url.push(byte.into());
        } else {
            url += &format!("%{byte:02X}");
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_what_may_be_left_out() {
        let address = |repo: &str, revision: &str| Address { repo: repo.into(), revision: revision.into() };
        for (text, expected) in [
            ("meta-llama/Llama-4-Scout", address("meta-llama/Llama-4-Scout", "main")),
            ("hf://a/b@refs/pr/1", address("a/b", "refs/pr/1")),
            ("a/b@v1.0", address("a/b", "v1.0")),
            ("gpt2", address("gpt2", "main")),
        ] {
            assert_eq!(Address::parse(text).unwrap(), expected, "{text}");
        }
        for wrong in ["", "/", "a/b/c", "../b", "a/..", "a/b@", "a/b@../../x", "a/b@/x", "a b/c", "a/b@x\n", "a--b/c"] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_are_told_from_repositories_and_revisions() {
        let location = |text: &str| Location::of_path(Path::new(text)).unwrap();
        assert_eq!(location("a/b"), None);
        for (text, repo, revision, file) in [
            ("hf://a/b", "a/b", "main", None),
            ("hf://a/b@refs/pr/1", "a/b", "refs/pr/1", None),
            ("hf://a/b.gguf", "a/b.gguf", "main", None),
            ("hf://a/b/c.gguf", "a/b", "main", Some("c.gguf")),
            ("hf://a/b@v1/Q4/c-00001-of-00002.gguf", "a/b", "v1", Some("Q4/c-00001-of-00002.gguf")),
            ("hf://a/b@refs/pr/1/c.gguf", "a/b", "refs/pr/1", Some("c.gguf")),
        ] {
            let address = Address { repo: repo.into(), revision: revision.into() };
            assert_eq!(location(text), Some(Location { address, file: file.map(str::to_owned) }), "{text}");
        }
        for wrong in ["hf://a/b/../c.gguf", "hf://a/b@refs/pr/c.gguf", "hf://a/b@/c.gguf", "hf://a/b//c.gguf"] {
            assert!(Location::of_path(Path::new(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn paths_stay_below_where_they_start() {
        for path in ["a", "a/b.safetensors", "original/consolidated.00.pth"] {
            assert!(is_plain_path(path), "{path}");
        }
        for path in ["", "/a", "a/../b", "..", "./a", "a//b", "a/", "a\\b", "c:a", "a\0b", "a\nb"] {
            assert!(!is_plain_path(path), "{path:?}");
        }
        assert_eq!(escaped_path("a b/ü#?.json"), "a%20b/%C3%BC%23%3F.json");
        assert_eq!(escaped_segment("refs/pr/1"), "refs%2Fpr%2F1");
    }
}
