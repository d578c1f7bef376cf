//! What a source was when it was opened: so that a later run can tell whether it is still the same, and a long one whether it still holds.

use std::fs;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::error::{FormatError, Kind};
use super::{Checkpoint, shown};

/// The identity of a source as far as sizes, times and headers can tell. It says nothing about where the source lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Every file that was read at opening (weights, index, config), sorted by name.
    pub files: Vec<FileFingerprint>,
}

/// The identity of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFingerprint {
    /// Name in the folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// When it was modified, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// XXH3-128 in hexadecimal: of the header for files of weights, of everything for index and config.
    pub digest: String,
}

impl Fingerprint {
    /// The first difference, in words that fit after "the source has changed: "; `None` if there is none.
    pub fn difference(&self, now: &Self) -> Option<String> {
        for was in &self.files {
            let name = shown(&was.name);
            let Some(is) = now.files.iter().find(|file| file.name == was.name) else {
                return Some(format!("`{name}` is gone"));
            };
            if was.bytes != is.bytes {
                return Some(format!("`{name}` had {} bytes and has {}", was.bytes, is.bytes));
            }
            if was.digest != is.digest {
                return Some(format!("`{name}` has another header or content"));
            }
            if was.modified_ns != is.modified_ns {
                return Some(format!("`{name}` was modified"));
            }
        }
        let new = now.files.iter().find(|file| !self.files.iter().any(|was| was.name == file.name));
        new.map(|file| format!("`{}` is new", shown(&file.name)))
    }
}

impl Checkpoint {
    /// The identity of everything that was read at opening. Costs nothing: it was taken then.
    pub fn fingerprint(&self) -> Fingerprint {
        let weights = self.files.iter().map(|file| FileFingerprint {
            name: file.name.clone(),
            bytes: file.bytes,
            modified_ns: file.modified_ns,
            digest: file.header_digest.clone(),
        });
        let sides = self.sides.iter().map(|side| side.fingerprint.clone());
        let mut files: Vec<_> = weights.chain(sides).collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Fingerprint { files }
    }

    /// Checks that every file of the checkpoint has the size and the modification time that it had at opening: one system call each.
    ///
    /// # Errors
    /// [`Kind::Changed`], or [`Kind::Io`] for a file that is gone. After an error no byte of the checkpoint may be relied on, and
    /// those behind a file's new end must not be touched.
    pub fn unchanged(&self) -> Result<(), FormatError> {
        self.require_here()?;
        let weights = self.files.iter().map(|file| (&file.path, file.bytes, file.modified_ns));
        let sides = self.sides.iter().map(|side| (&side.path, side.fingerprint.bytes, side.fingerprint.modified_ns));
        for (path, was_bytes, was_modified_ns) in weights.chain(sides) {
            let now = fs::metadata(path).map_err(FormatError::io(path, "look at"))?;
            if now.len() != was_bytes || modified_ns(&now) != was_modified_ns {
                return Err(FormatError::new(path, Kind::Changed { was_bytes, bytes: now.len() }));
            }
        }
        Ok(())
    }
}

/// A file without tensors that was read at opening.
#[derive(Debug)]
pub(super) struct SideFile {
    path: PathBuf,
    fingerprint: FileFingerprint,
}

impl SideFile {
    pub(super) fn new(name: &str, path: PathBuf, content: &[u8], modified_ns: i64) -> Self {
        let digest = format!("{:032x}", xxh3_128(content));
        let fingerprint = FileFingerprint { name: name.to_string(), bytes: content.len() as u64, modified_ns, digest };
        Self { path, fingerprint }
    }
}

/// When a file was modified, in nanoseconds since 1970; 0 where the system cannot say, and at the bounds of `i64` (years 1677 and 2262)
/// beyond them.
pub(super) fn modified_ns(metadata: &fs::Metadata) -> i64 {
    let Ok(time) = metadata.modified() else { return 0 };
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}
