//! Where a source came from, as far as its folder tells without the network.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::hash::hex;
use super::manifest::{FileRecord, MANIFEST_NAME, MANIFEST_SCHEMA, Manifest, Origin};
use crate::checkpoint::Checkpoint;
use crate::error::Interrupted;
use crate::parallel;
use crate::progress::{Control, Unit};

/// Bytes that are hashed between two looks at the stop flag.
const CHUNK: usize = 4 << 20;

/// Describes the source: repository and revision if it was downloaded or lies in a hub cache, and its files with the digests that
/// the download or the cache recorded.
pub fn describe(checkpoint: &Checkpoint) -> Origin {
    let folder = checkpoint.folder();
    let download = download(folder);
    let origin =
        download.as_ref().map(|(manifest, _)| (manifest.source.repo.clone(), manifest.source.revision.clone()));
    let (repo, revision) = origin.unwrap_or_else(|| repository(folder).unzip());
    let files = checkpoint.fingerprint().files.into_iter().map(|file| {
        let path = folder.join(&file.name);
        let verified = || {
            let (manifest, written) = download.as_ref()?;
            let record = manifest.files.iter().find(|record| record.name == file.name && record.bytes == file.bytes)?;
            // What was touched after it was verified may be something else.
            let modified = fs::metadata(&path).ok()?.modified().ok()?;
            record.sha256.clone().filter(|_| modified <= *written)
        };
        FileRecord { sha256: recorded_digest(&path).or_else(verified), name: file.name, bytes: file.bytes }
    });
    Origin { repo, revision, files: files.collect() }
}

/// The manifest that `download` left in a folder, and when it was written. It speaks only of files that were not touched after that.
pub fn download(folder: &Path) -> Option<(Manifest, SystemTime)> {
    let path = folder.join(MANIFEST_NAME);
    let written = fs::metadata(&path).ok()?.modified().ok()?;
    let manifest: Manifest = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
    (manifest.schema == MANIFEST_SCHEMA && manifest.command == "download").then_some((manifest, written))
}

/// `models--owner--name/snapshots/REVISION` is how the hub's cache lays a repository out.
fn repository(folder: &Path) -> Option<(String, String)> {
    let folder = folder.canonicalize().ok()?;
    let revision = folder.file_name()?.to_str()?;
    let snapshots = folder.parent()?;
    let cached = snapshots.parent()?.file_name()?.to_str()?;
    if snapshots.file_name()? != "snapshots" {
        return None;
    }
    Some((cached.strip_prefix("models--")?.replacen("--", "/", 1), revision.to_owned()))
}

/// In the hub's cache a large file is a link to a blob that is named by its SHA-256.
fn recorded_digest(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    let name = target.file_name()?.to_str()?;
    let digest = name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (digest && target.parent()?.file_name()? == "blobs").then(|| name.to_owned())
}

/// Computes the SHA-256 of every file of the source: reads all of it.
///
/// # Errors
/// A file cannot be read; [`Interrupted`] after a safe stop.
pub fn hash_files(origin: &mut Origin, folder: &Path, control: &Control<'_>) -> Result<()> {
    let total = origin.files.iter().map(|file| file.bytes).sum();
    control.progress.start("hashing the source", total, 0, Unit::Bytes);
    let digests: Vec<OnceLock<String>> = origin.files.iter().map(|_| OnceLock::new()).collect();
    parallel::for_each(
        digests.len(),
        control.threads,
        control,
        || (),
        |(), index| {
            let digest = hash_file(&folder.join(&origin.files[index].name), control)?;
            digests[index].set(digest).expect("every file is hashed once");
            Ok(())
        },
    )?;
    for (file, digest) in origin.files.iter_mut().zip(digests) {
        file.sha256 = digest.into_inner();
    }
    control.progress.finish();
    Ok(())
}

/// SHA-256 of one file, in hex.
///
/// # Errors
/// It cannot be read; [`Interrupted`] after a safe stop.
pub fn hash_file(path: &Path, control: &Control<'_>) -> Result<String> {
    use std::io::Read;
    let context = || format!("hashing `{}`", path.display());
    let mut file = fs::File::open(path).with_context(context)?;
    let mut sha = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        if control.stop_requested() {
            return Err(Interrupted.into());
        }
        let length = file.read(&mut chunk).with_context(context)?;
        if length == 0 {
            return Ok(hex(&sha.finalize()));
        }
        sha.update(&chunk[..length]);
        control.progress.advance(length as u64);
    }
}
