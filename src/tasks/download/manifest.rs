//! The manifest of a download: what was verified, and when.
//!
//! It is written anew after every file, so it is never older than what it speaks of. A file that was touched after that is not believed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::hub::{Digest, Listing, Place, RemoteFile};
use crate::output::manifest::{FileRecord, MANIFEST_NAME, MANIFEST_SCHEMA, Manifest, Origin};
use crate::output::{companions, origin};

/// The version that manifests name.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is known to be verified in a place.
pub(super) struct Ledger {
    path: PathBuf,
    repo: String,
    commit: String,
    /// Of the commit that is being downloaded: what the manifest will say.
    entries: BTreeMap<String, FileRecord>,
    /// Contents that were verified under any commit: name, size and digest, with the time of the manifest that says so.
    verified: Vec<(FileRecord, SystemTime)>,
}

impl Ledger {
    /// Reads the manifests of a place; in a cache, those of all snapshots, because they share contents.
    pub(super) fn read(place: &Place, listing: &Listing) -> Self {
        let folder = place.folder();
        let mut folders = vec![folder.clone()];
        if let (Place::Cache { .. }, Some(Ok(snapshots))) = (place, folder.parent().map(fs::read_dir)) {
            folders.extend(snapshots.flatten().map(|entry| entry.path()).filter(|other| *other != folder));
        }
        let (mut entries, mut verified) = (BTreeMap::new(), Vec::new());
        for (index, one) in folders.iter().enumerate() {
            let Some((manifest, written)) = origin::download(one) else { continue };
            let same = manifest.source.repo.as_ref() == Some(&listing.address.repo)
                && manifest.source.revision.as_ref() == Some(&listing.commit);
            for record in manifest.files {
                verified.push((record.clone(), written));
                // Files of an earlier call for other files of the same commit stay in the manifest while they are as they were.
                if index == 0 && same && is_untouched(&folder.join(&record.name), &record, written) {
                    entries.insert(record.name.clone(), record);
                }
            }
        }
        let path = folder.join(MANIFEST_NAME);
        Self { path, repo: listing.address.repo.clone(), commit: listing.commit.clone(), entries, verified }
    }

    /// The SHA-256 of the content at `path`, if it was verified to be `file`'s and not touched since.
    pub(super) fn verified(&self, path: &Path, file: &RemoteFile) -> Option<String> {
        let Digest::Sha256(sha256) = &file.digest else { return None };
        let known = self.verified.iter().any(|(record, written)| {
            record.sha256.as_ref() == Some(sha256) && record.bytes == file.bytes && is_untouched(path, record, *written)
        });
        known.then(|| sha256.clone())
    }

    /// Whether the file of that name is what l4tool put there: then it may be replaced by a newer version.
    pub(super) fn is_ours(&self, name: &str, sha256: &str) -> bool {
        self.verified.iter().any(|(record, _)| record.name == name && record.sha256.as_deref() == Some(sha256))
    }

    /// Notes a verified file.
    pub(super) fn enter(&mut self, file: &RemoteFile, sha256: &str) {
        let record = FileRecord { name: file.path.clone(), bytes: file.bytes, sha256: Some(sha256.to_owned()) };
        self.entries.insert(file.path.clone(), record);
    }

    /// Writes the manifest, in one step.
    pub(super) fn write(&self) -> Result<()> {
        let manifest = Manifest {
            schema: MANIFEST_SCHEMA.into(),
            tool_version: VERSION.into(),
            command: "download".into(),
            options: BTreeMap::new(),
            source: Origin { repo: Some(self.repo.clone()), revision: Some(self.commit.clone()), files: Vec::new() },
            files: self.entries.values().cloned().collect(),
            weights: Vec::new(),
        };
        let document = serde_json::to_value(manifest).expect("a manifest is plain data");
        let contents = companions::pretty(MANIFEST_NAME, &document).contents;
        let new = self.path.with_file_name(format!(".{MANIFEST_NAME}.new"));
        let write = || {
            fs::create_dir_all(self.path.parent().expect("a manifest lies in a folder"))?;
            let mut file = fs::File::create(&new)?;
            file.write_all(&contents)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        write().with_context(|| format!("writing `{}`", self.path.display()))
    }
}

/// Whether a file has the recorded size and was not changed after the record was written.
fn is_untouched(path: &Path, record: &FileRecord, written: SystemTime) -> bool {
    let found = fs::metadata(path);
    found.is_ok_and(|found| found.len() == record.bytes && found.modified().is_ok_and(|modified| modified <= written))
}
