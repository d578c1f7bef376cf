//! Where files go: into the cache that all tools of the Hugging Face Hub share, or into a folder of their own. It must not know where they come
//! from.
//!
//! The cache (huggingface_hub, "Understand caching"), with what l4tool adds while a file grows:
//!
//! ```text
//! CACHE/models--OWNER--NAME/
//!   blobs/DIGEST                           the content, named by SHA-256, or by git's SHA-1 for small files
//!   blobs/DIGEST.l4tool-part, -record      a file that grows, and the record of what it has
//!   snapshots/COMMIT/PATH                  -> ../../blobs/DIGEST
//!   refs/REVISION                          the commit that a branch is at
//! CACHE/.locks/models--OWNER--NAME/l4tool.lock
//! ```
//!
//! A folder holds the files under their own names; what grows lies in `.l4tool/` until it is whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::address::is_commit;
use super::listing::{Digest, RemoteFile};
use super::retry::pause;
use crate::files;
use crate::progress::Control;

/// What l4tool keeps in a folder while it works there.
pub(super) const WORK: &str = ".l4tool";

/// Where the files of one repository go.
#[derive(Clone, Debug)]
pub enum Place {
    /// The cache.
    Cache {
        /// Where all repositories are cached.
        root: PathBuf,
        /// `models--OWNER--NAME`.
        repo: String,
        /// The snapshot that files are part of.
        commit: String,
    },
    /// A folder.
    Folder(PathBuf),
}

/// Holds a place for this process, until it is dropped.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "the file is open for as long as the place is held")] File);

impl Place {
    /// The cache at `root`, for a commit of `repo`.
    pub fn cache(root: &Path, repo: &str, commit: &str) -> Self {
        Self::Cache { root: root.into(), repo: cache_name(repo), commit: commit.into() }
    }

    /// The folder where the files appear under their own names.
    pub fn folder(&self) -> PathBuf {
        match self {
            Self::Cache { root, repo, commit } => root.join(repo).join("snapshots").join(commit),
            Self::Folder(folder) => folder.clone(),
        }
    }

    /// Where the content of a file lies when it is whole.
    pub fn content(&self, file: &RemoteFile) -> PathBuf {
        match self {
            Self::Cache { root, repo, .. } => root.join(repo).join("blobs").join(file.digest.hex()),
            Self::Folder(folder) => folder.join(&file.path),
        }
    }

    /// Where a file grows.
    pub(super) fn part(&self, file: &RemoteFile) -> PathBuf {
        self.growing(file, "part")
    }

    /// What has arrived of it.
    pub(super) fn record(&self, file: &RemoteFile) -> PathBuf {
        self.growing(file, "record")
    }

    /// Where a file goes whose content is not what the hub promised.
    pub(super) fn aside(&self, file: &RemoteFile) -> PathBuf {
        self.growing(file, "bad")
    }

    fn growing(&self, file: &RemoteFile, what: &str) -> PathBuf {
        match self {
            Self::Cache { root, repo, .. } => {
                root.join(repo).join("blobs").join(format!("{}.l4tool-{what}", file.digest.hex()))
            }
            Self::Folder(folder) => folder.join(WORK).join(format!("{}.{what}", file.path)),
        }
    }

    /// Bytes of the disk that a growing file holds already.
    pub fn reserved_bytes(&self, file: &RemoteFile) -> u64 {
        const BLOCK: u64 = 512;
        fs::metadata(self.part(file)).map_or(0, |found| (found.blocks() * BLOCK).min(file.bytes))
    }

    /// Makes room for a file to grow and to be published.
    pub(super) fn prepare(&self, file: &RemoteFile) -> io::Result<()> {
        for path in [self.part(file), self.content(file)] {
            fs::create_dir_all(path.parent().expect("every file lies in a folder"))?;
        }
        Ok(())
    }

    /// Makes a file that has grown to its whole size appear under its name.
    pub(super) fn publish(&self, file: &RemoteFile) -> io::Result<()> {
        let content = self.content(file);
        fs::rename(self.part(file), &content)?;
        self.link(file)?;
        File::open(content.parent().expect("every file lies in a folder"))?.sync_all()?;
        match fs::remove_file(self.record(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes content that is there already appear under the file's name: in a cache, several commits share it.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn link(&self, file: &RemoteFile) -> io::Result<()> {
        let Self::Cache { .. } = self else { return Ok(()) };
        let link = self.folder().join(&file.path);
        let up = "../".repeat(2 + file.path.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{}", file.digest.hex()));
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            return Ok(());
        }
        fs::create_dir_all(link.parent().expect("every file lies in a folder"))?;
        // A link cannot be replaced in one step, so a new one is put over it.
        let new = link.with_file_name(format!(".{}.l4tool", link.file_name().unwrap_or_default().to_string_lossy()));
        let _ = fs::remove_file(&new);
        std::os::unix::fs::symlink(&target, &new)?;
        fs::rename(&new, &link)
    }

    /// Writes down which commit a branch is at, so that it can be found without the network.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn remember(&self, revision: &str) -> io::Result<()> {
        let Self::Cache { root, repo, commit } = self else { return Ok(()) };
        let path = root.join(repo).join("refs").join(revision);
        if revision == commit || fs::read_to_string(&path).is_ok_and(|found| found == *commit) {
            return Ok(());
        }
        fs::create_dir_all(path.parent().expect("a ref lies in a folder"))?;
        let new = path.with_extension("l4tool");
        fs::write(&new, commit)?;
        fs::rename(&new, &path)
    }

    /// Takes the place for this process alone; waits for another process that has it.
    ///
    /// # Errors
    /// The disk refuses; [`crate::error::Interrupted`] after a stop.
    pub fn hold(&self, control: &Control<'_>) -> Result<Hold> {
        let path = match self {
            Self::Cache { root, repo, .. } => root.join(".locks").join(repo).join("l4tool.lock"),
            Self::Folder(folder) => folder.join(WORK).join("lock"),
        };
        let context = || format!("taking hold of `{}`", path.display());
        let mut told = false;
        loop {
            fs::create_dir_all(path.parent().expect("the lock lies in a folder")).with_context(context)?;
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).with_context(context)?;
            match files::lock(&file).with_context(context)? {
                // The one who had it may have removed the file before it let go.
                Ok(()) if is_the_file(&file, &path) => return Ok(Hold(file)),
                Ok(()) => {}
                Err(held) if !told => {
                    told = true;
                    let who = held.by.map_or_else(String::new, |pid| format!(" (process {pid})"));
                    let place = self.folder();
                    control
                        .progress
                        .note(&format!("waiting for another l4tool{who} that downloads to `{}`", place.display()));
                }
                Err(_) => pause(Duration::from_millis(200), control)?,
            }
        }
    }

    /// Removes what was needed for the work only. What is left of other work, such as files set aside, stays.
    pub fn clean(&self, _hold: &Hold) {
        if let Self::Folder(folder) = self {
            let work = folder.join(WORK);
            remove_empty(&work);
            if fs::read_dir(&work).is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name() == "lock")) {
                // A folder that stays behind does no harm.
                let _ = fs::remove_file(work.join("lock")).and_then(|()| fs::remove_dir(&work));
            }
        }
    }
}

fn is_the_file(file: &File, path: &Path) -> bool {
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    file.metadata().ok().map(identity) == fs::metadata(path).ok().map(identity)
}

/// Removes the empty folders below `folder`.
fn remove_empty(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// `models--OWNER--NAME`.
fn cache_name(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

/// The commit that a revision is at, as far as the cache at `root` knows.
pub fn cached_commit(root: &Path, repo: &str, revision: &str) -> Option<String> {
    if is_commit(revision) {
        return Some(revision.to_owned());
    }
    let commit = fs::read_to_string(root.join(cache_name(repo)).join("refs").join(revision)).ok()?;
    Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
}

/// The files of a snapshot in a cache that are there, with what their names say they hash to. Sorted by path.
///
/// # Errors
/// The folder cannot be read.
pub fn cached_files(place: &Place) -> Result<Vec<RemoteFile>> {
    let folder = place.folder();
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(prefix) = folders.pop() {
        let here = folder.join(&prefix);
        for entry in fs::read_dir(&here).with_context(|| format!("listing `{}`", here.display()))? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = format!("{prefix}{name}");
            if entry.file_type()?.is_dir() {
                folders.push(path + "/");
                continue;
            }
            let target = fs::read_link(entry.path()).ok();
            let name = target.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
            let digest = name.and_then(Digest::of_hex);
            if let (Some(digest), Ok(found)) = (digest, fs::metadata(entry.path())) {
                files.push(RemoteFile { path, bytes: found.len(), digest });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::progress::Silent;

    #[test]
    fn published_files_are_links_to_blobs_and_branches_are_remembered() {
        let root = tempfile::tempdir().unwrap();
        let commit = "c".repeat(40);
        let place = Place::cache(root.path(), "a/b", &commit);
        let file = RemoteFile { path: "x/y.json".into(), bytes: 3, digest: Digest::GitSha1("d".repeat(40)) };
        place.prepare(&file).unwrap();
        fs::write(place.part(&file), "abc").unwrap();
        place.publish(&file).unwrap();
        assert_eq!(fs::read(place.folder().join("x/y.json")).unwrap(), b"abc");
        assert_eq!(cached_files(&place).unwrap(), [file]);
        assert_eq!(cached_commit(root.path(), "a/b", "refs/pr/1"), None);
        place.remember("refs/pr/1").unwrap();
        assert_eq!(cached_commit(root.path(), "a/b", "refs/pr/1"), Some(commit.clone()));
        assert_eq!(cached_commit(root.path(), "a/b", &commit), Some(commit));
    }

    #[test]
    fn a_place_is_held_by_one_and_left_clean() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Folder(folder.path().into());
        let stop = AtomicBool::new(true);
        let control = Control { progress: &Silent, stop: &stop, threads: 1, memory: 0 };
        let hold = place.hold(&control).unwrap();
        assert!(place.hold(&control).unwrap_err().is::<crate::error::Interrupted>());
        place.clean(&hold);
        drop(hold);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        place.hold(&control).unwrap();
    }
}
