//! The folder of a checkpoint: which of its files belong to it, and that none of them lies elsewhere.
//!
//! A checkpoint may come from a stranger. A name in its index or a symbolic link in its folder must not make this program read another
//! file of the user's. One layout needs links out of the folder, and is known here, the cache of the Hugging Face Hub
//! (huggingface_hub, "Understand caching"):
//!
//! ```text
//! models--OWNER--NAME/
//!   blobs/HASH                                            the content
//!   snapshots/REVISION/model-00001-of-00050.safetensors   -> ../../blobs/HASH
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::error::{FormatError, Kind};
use super::index::INDEX_NAME;
use super::json::read_capped;
use super::{CONFIG_BYTES_MAX, CONFIG_NAMES, CONFIG_NAMES_OF_RANKS, Described, Part, SideFile, modified_ns, rank_of};

/// A folder that files are opened from, by plain name.
pub(super) struct Folder {
    /// As the user wrote it.
    path: PathBuf,
    /// Where a file may really lie: the folder, and `blobs/` of a cache.
    homes: Vec<PathBuf>,
}

impl Folder {
    /// The folder at `path`, which must be one.
    pub(super) fn open(path: &Path) -> Result<Self, FormatError> {
        let real = fs::canonicalize(path).map_err(FormatError::io(path, "open"))?;
        let mut homes = Vec::from_iter(cache_blobs(&real));
        homes.push(real);
        Ok(Self { path: path.to_path_buf(), homes })
    }

    /// The path of a file in the folder, for messages, and the one behind its symbolic links, to open.
    ///
    /// # Errors
    /// [`Kind::LeavesFolder`] for a link to elsewhere; [`Kind::Io`] for a file (or link target) that is not there.
    pub(super) fn file(&self, name: &str) -> Result<(PathBuf, PathBuf), FormatError> {
        let path = self.path.join(name);
        let real = fs::canonicalize(&path).map_err(FormatError::io(&path, "open"))?;
        if self.homes.iter().any(|home| real.starts_with(home)) {
            Ok((path, real))
        } else {
            Err(FormatError::new(&path, Kind::LeavesFolder { target: real }))
        }
    }

    /// The content of a small file and its identity, or `None` if the folder does not have it.
    pub(super) fn small_file(&self, name: &str, cap: u64) -> Result<Option<(SideFile, Vec<u8>)>, FormatError> {
        let (path, real) = match self.file(name) {
            Ok(found) => found,
            Err(FormatError { kind: Kind::Io { source, .. }, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if !fs::metadata(&real).map_err(FormatError::io(&path, "open"))?.is_file() {
            return Err(FormatError::new(&path, Kind::NotAFile));
        }
        let mut file = File::open(&real).map_err(FormatError::io(&path, "open"))?;
        let found = file.metadata().map_err(FormatError::io(&path, "open"))?;
        let content = read_capped(&mut file, &path, found.len(), cap)?;
        let side = SideFile::new(name, path, &content, modified_ns(&found));
        Ok(Some((side, content)))
    }

    /// What describes the model that `parts` hold, if the folder has such a file.
    pub(super) fn config(&self, parts: &[Part]) -> Result<Option<Described>, FormatError> {
        let of_ranks = parts.iter().any(|part| rank_of(&part.file.name).is_some());
        for name in if of_ranks { CONFIG_NAMES_OF_RANKS } else { CONFIG_NAMES } {
            if let Some((side, content)) = self.small_file(name, CONFIG_BYTES_MAX)? {
                return Ok(Some((name, side, content)));
            }
        }
        Ok(None)
    }

    /// The names of the folder's `.safetensors` files, sorted.
    pub(super) fn safetensors_names(&self) -> Result<Vec<String>, FormatError> {
        self.names(is_weights)
    }

    /// The names that are `wanted`, sorted.
    pub(super) fn names(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>, FormatError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(FormatError::io(&self.path, "list"))? {
            let entry = entry.map_err(FormatError::io(&self.path, "list"))?;
            // A name that is not UTF-8 cannot stand in an index, and is no checkpoint file of any tool.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            // Names with a leading dot are what downloads and editors leave behind.
            if wanted(&name) && !name.starts_with('.') {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Whether the folder has an index (also one whose link leads nowhere: then opening it says so).
    pub(super) fn has_index(&self) -> bool {
        fs::symlink_metadata(self.path.join(INDEX_NAME)).is_ok()
    }
}

/// Whether a file of that name holds weights. Names with a leading dot are what downloads and editors leave behind.
pub(super) fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.starts_with('.')
}

/// `blobs/` of the cache repository that has this folder as a snapshot.
fn cache_blobs(snapshot: &Path) -> Option<PathBuf> {
    let snapshots = snapshot.parent()?;
    let repository = snapshots.parent()?;
    let is_cache = snapshots.file_name()? == "snapshots" && repository.file_name()?.to_str()?.starts_with("models--");
    let blobs = repository.join("blobs");
    // A `blobs` that is itself a link could lead anywhere.
    (is_cache && fs::symlink_metadata(&blobs).is_ok_and(|found| found.is_dir())).then_some(blobs)
}
