//! What is there of a file before anything is fetched.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result};

use super::manifest::Ledger;
use crate::error::hint;
use crate::hub::{Hashed, Place, RemoteFile, hash_file};
use crate::parallel;
use crate::progress::{Control, Unit};

/// What is there of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    /// All of it, verified and untouched since; its SHA-256.
    Verified(String),
    /// Something of the right size, which nobody has verified.
    Unverified,
    /// Something of another size.
    Other,
    /// Nothing under its name.
    Missing,
}

impl State {
    pub(super) fn of(file: &RemoteFile, place: &Place, ledger: &Ledger) -> Self {
        let path = place.content(file);
        match fs::metadata(&path) {
            Err(_) => Self::Missing,
            Ok(found) if found.len() != file.bytes || !found.is_file() => Self::Other,
            Ok(_) => ledger.verified(&path, file).map_or(Self::Unverified, Self::Verified),
        }
    }
}

/// Hashes what is there and not verified. Gives the SHA-256 of each file that is right, and `None` for what must be fetched; what is
/// wrong in a cache is set aside.
///
/// # Errors
/// A file in a folder is not the repository's and was not put there by l4tool, unless `force`; a file cannot be read.
pub(super) fn check(
    files: &[&RemoteFile],
    states: &[State],
    place: &Place,
    ledger: &Ledger,
    force: bool,
    control: &Control<'_>,
) -> Result<Vec<Option<String>>> {
    let results: Vec<OnceLock<Option<String>>> = files.iter().map(|_| OnceLock::new()).collect();
    let unsure = files.iter().zip(states).filter(|(_, state)| **state == State::Unverified);
    control.progress.start("checking what is there", unsure.map(|(file, _)| file.bytes).sum(), 0, Unit::Bytes);
    parallel::for_each(
        files.len(),
        control.threads,
        control,
        || (),
        |(), index| {
            let file = files[index];
            let path = place.content(file);
            let result = match &states[index] {
                State::Verified(sha256) => Some(sha256.clone()),
                State::Missing => None,
                State::Unverified => {
                    let Hashed { sha256, found } = hash_file(&path, file, control)?;
                    if found == file.digest {
                        Some(sha256)
                    } else {
                        give_way(file, &path, &sha256, place, ledger, force, control)?
                    }
                }
                State::Other if force || matches!(place, Place::Cache { .. }) => {
                    give_way(file, &path, "", place, ledger, force, control)?
                }
                State::Other => {
                    let sha256 = hash_file(&path, file, control)?.sha256;
                    give_way(file, &path, &sha256, place, ledger, force, control)?
                }
            };
            results[index].set(result).expect("every file is checked once");
            Ok(())
        },
    )?;
    control.progress.finish();
    Ok(results.into_iter().map(|result| result.into_inner().expect("every file was checked")).collect())
}

/// Deals with a content that is wrong. Gives `None`, for the caller's convenience: the file must be fetched.
fn give_way(
    file: &RemoteFile,
    path: &Path,
    sha256: &str,
    place: &Place,
    ledger: &Ledger,
    force: bool,
    control: &Control<'_>,
) -> Result<Option<String>> {
    match place {
        Place::Cache { .. } => {
            let aside = path.with_extension("l4tool-bad");
            fs::rename(path, &aside).with_context(|| format!("moving `{}`", path.display()))?;
            let aside = aside.display();
            control
                .progress
                .note(&format!("`{}` in the cache is damaged; it is fetched again (moved to `{aside}`)", file.path));
            Ok(None)
        }
        // The new version takes its place when it is whole.
        Place::Folder(_) if force || ledger.is_ours(&file.path, sha256) => Ok(None),
        Place::Folder(_) => Err(hint(
            format!("`{}` is there, and is not the file of that name in the repository", path.display()),
            "`--force` replaces it; or choose another folder",
        )),
    }
}
