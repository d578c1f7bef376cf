//! Without the network: what a cache or a folder knows of a revision, and whether it is whole. It must not open a socket.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::manifest::Ledger;
use super::report::Problem;
use super::state::State;
use super::{Destination, Options};
use crate::checkpoint::INDEX_NAME;
use crate::error::hint;
use crate::hub::{Digest, Hashed, Listing, Place, RemoteFile, cached_commit, cached_files, hash_file, is_plain_path};
use crate::output::origin;
use crate::parallel;
use crate::progress::{Control, Unit};

/// What is known of the files of a revision, and where they are.
pub(super) fn listing(options: &Options) -> Result<(Listing, Place)> {
    let address = &options.address;
    match &options.destination {
        Destination::Cache(root) => {
            let commit = cached_commit(root, &address.repo, &address.revision);
            let place = commit.as_ref().map(|commit| Place::cache(root, &address.repo, commit));
            let (Some(commit), Some(place)) = (commit, place.filter(|place| place.folder().is_dir())) else {
                return Err(hint(
                    format!("`{}` at `{}` is not in the cache `{}`", address.repo, address.revision, root.display()),
                    "run the command once without `--offline`",
                ));
            };
            let files = match tree(&place.folder()) {
                Some(files) => files,
                None => cached_files(&place)?,
            };
            Ok((Listing { address: address.clone(), commit, files }, place))
        }
        Destination::Folder(folder) => {
            let Some((manifest, _)) = origin::download(folder) else {
                return Err(hint(
                    format!("`{}` holds no download that l4tool knows of", folder.display()),
                    "run the command once without `--offline`",
                ));
            };
            let commit = manifest.source.revision.unwrap_or_default();
            if manifest.source.repo.as_ref() != Some(&address.repo) {
                bail!("`{}` holds files of `{}`", folder.display(), manifest.source.repo.unwrap_or_default());
            }
            let files = manifest.files.into_iter().filter_map(|record| {
                let digest = Digest::of_hex(record.sha256.as_deref()?)?;
                is_plain_path(&record.name).then_some(RemoteFile { path: record.name, bytes: record.bytes, digest })
            });
            let listing = Listing { address: address.clone(), commit, files: files.collect() };
            Ok((listing, Place::Folder(folder.clone())))
        }
    }
}

/// huggingface_hub (since 2.0) notes the list of a commit's files in `trees/COMMIT.json` beside `snapshots/`.
fn tree(snapshot: &Path) -> Option<Vec<RemoteFile>> {
    #[derive(Deserialize)]
    struct Tree {
        format_version: u32,
        files: BTreeMap<String, Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        size: u64,
        blob_id: String,
        lfs_sha256: Option<String>,
    }
    let repo = snapshot.parent()?.parent()?;
    let commit = snapshot.file_name()?.to_str()?;
    let text = fs::read(repo.join("trees").join(format!("{commit}.json"))).ok()?;
    let tree: Tree = serde_json::from_slice(&text).ok().filter(|tree: &Tree| tree.format_version == 1)?;
    let files = tree.files.into_iter().map(|(path, entry)| {
        let digest = Digest::of_hex(entry.lfs_sha256.as_ref().unwrap_or(&entry.blob_id))?;
        is_plain_path(&path).then_some(RemoteFile { path, bytes: entry.size, digest })
    });
    files.collect()
}

/// Checks that everything that is wanted is there and is what its digest says. Gives what is not.
///
/// # Errors
/// Files are missing, or cannot be read.
pub(super) fn check(
    listing: &Listing,
    place: &Place,
    files: &[&RemoteFile],
    control: &Control<'_>,
) -> Result<Vec<Problem>> {
    let folder = place.folder();
    let mut missing: BTreeSet<String> =
        files.iter().filter(|file| !folder.join(&file.path).is_file()).map(|file| file.path.clone()).collect();
    missing.extend(missing_shards(&folder, files)?);
    if let Some(first) = missing.first() {
        let more = if missing.len() > 1 { format!(" and {} more files", missing.len() - 1) } else { String::new() };
        return Err(hint(
            format!("`{}` is not complete: `{first}`{more} of `{}` missing", folder.display(), listing.address.repo),
            "run the command once without `--offline`",
        ));
    }
    let ledger = Ledger::read(place, listing);
    let unsure: Vec<&RemoteFile> =
        files.iter().copied().filter(|file| !matches!(State::of(file, place, &ledger), State::Verified(_))).collect();
    control.progress.start("checking what is there", unsure.iter().map(|file| file.bytes).sum(), 0, Unit::Bytes);
    let problems = Mutex::new(Vec::new());
    parallel::for_each(
        unsure.len(),
        control.threads,
        control,
        || (),
        |(), index| {
            let file = unsure[index];
            let path = folder.join(&file.path);
            let Hashed { found, .. } = hash_file(&path, file, control)?;
            if found != file.digest {
                let problem = Problem::new(&file.path, &file.digest, &found, path);
                problems.lock().expect("nothing panics while it holds the lock").push(problem);
            }
            Ok(())
        },
    )?;
    control.progress.finish();
    let mut problems = problems.into_inner().expect("nothing panics while it holds the lock");
    problems.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(problems)
}

/// Files that the index names and the folder does not have: where the list of files itself comes from the folder, nothing else would show.
fn missing_shards(folder: &Path, files: &[&RemoteFile]) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    if !files.iter().any(|file| file.path == INDEX_NAME) {
        return Ok(Vec::new());
    }
    let path = folder.join(INDEX_NAME);
    let text = fs::read(&path).with_context(|| format!("reading `{}`", path.display()))?;
    let index: Index = serde_json::from_slice(&text).with_context(|| format!("reading `{}`", path.display()))?;
    let wanted: BTreeSet<String> = index.weight_map.into_values().collect();
    Ok(wanted.into_iter().filter(|name| !folder.join(name).is_file()).collect())
}
