//! `OUT.partial/`, where output is built, and the step that makes it `OUT`.
//!
//! `OUT` is complete or absent: it appears by one rename after everything in it was synced. With `force` an existing `OUT`
//! is exchanged in one step and removed afterwards. `OUT` is a folder, or one file with what is said about it beside it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::journal::{self, Finished, Identity, Journal};
use super::manifest::MANIFEST_NAME;
use crate::checkpoint::gguf;
use crate::error::hint;

/// Names inside `OUT.partial`.
const JOURNAL: &str = "journal";
const MODEL: &str = "model";
const SCRATCH: &str = "scratch";

/// What to do about what is already there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Existing {
    /// Replace an existing output.
    pub force: bool,
    /// Throw partial work away instead of going on with it.
    pub restart: bool,
}

/// What an output is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// A folder with weight files and others.
    #[default]
    Folder,
    /// One weight file of the output's own name. Other files lie beside it.
    File,
}

/// The folder of work in progress, held by this process alone.
#[derive(Debug)]
pub struct Partial {
    out: PathBuf,
    folder: PathBuf,
    /// Open for as long as the folder is ours.
    pub(super) journal: Journal,
}

/// Where the work in progress of `out` lies.
fn partial_path(out: &Path) -> Result<PathBuf> {
    let Some(name) = out.file_name() else {
        bail!("`{}` cannot be an output: it has no name of its own", out.display());
    };
    let mut name = name.to_owned();
    name.push(".partial");
    Ok(out.with_file_name(name))
}

/// Refuses an output that is one of the sources, or lies inside one (or the source inside it), or that is in the way.
///
/// # Errors
/// Says which.
pub fn check_destination(out: &Path, sources: &[&Path], existing: Existing) -> Result<()> {
    let folder = partial_path(out)?;
    sources.iter().try_for_each(|source| check_apart(out, &folder, source))?;
    check_free(out, existing)
}

/// Refuses an output that is in the way.
///
/// # Errors
/// Says which.
pub fn check_free(out: &Path, existing: Existing) -> Result<()> {
    let folder = partial_path(out)?;
    if let Ok(metadata) = out.symlink_metadata() {
        if !existing.force {
            return Err(hint(format!("`{}` exists", out.display()), "`--force` replaces it; or choose another output"));
        }
        check_movable(out, &metadata)?;
        check_checkpoint(out)?;
    }
    check_ours(&folder)
}

/// Refuses a mount point before the work: no rename can put something in its place.
fn check_movable(out: &Path, metadata: &fs::Metadata) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    match parent(out).metadata() {
        Ok(folder) if folder.dev() != metadata.dev() => Err(hint(
            format!("`{}` is where another disk is mounted, and cannot be replaced", out.display()),
            "choose a new folder inside it",
        )),
        _ => Ok(()),
    }
}

/// Replacing removes what was there: only a checkpoint, or an empty folder, may go.
fn check_checkpoint(out: &Path) -> Result<()> {
    let context = || format!("looking into `{}`", out.display());
    if out.is_file() {
        let mut magic = [0; gguf::MAGIC.len()];
        let read = File::open(out).and_then(|mut file| file.read_exact(&mut magic));
        return match read.is_ok() && magic == gguf::MAGIC {
            true => Ok(()),
            false => Err(hint(
                format!("`{}` is no GGUF file, so `--force` does not replace it", out.display()),
                "move it away, or choose another output",
            )),
        };
    }
    let is_checkpoint = out.join("config.json").exists() || out.join(MANIFEST_NAME).exists();
    if is_checkpoint || fs::read_dir(out).with_context(context)?.next().is_none() {
        return Ok(());
    }
    Err(hint(
        format!("`{}` is no checkpoint, so `--force` does not replace it", out.display()),
        "move it away, or choose another output",
    ))
}

/// The folder that holds `path`.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Keeps output and source apart. Partial work is removed at the end, so the source must not lie in its folder either.
fn check_apart(out: &Path, folder: &Path, source: &Path) -> Result<()> {
    let source_real = source.canonicalize().with_context(|| format!("looking up `{}`", source.display()))?;
    let (out_real, folder_real) = (resolve(out)?, resolve(folder)?);
    if out_real == source_real {
        return Err(hint(format!("`{}` is the source itself", out.display()), "choose another output"));
    }
    if out_real.starts_with(&source_real) {
        return Err(hint(
            format!("the output `{}` lies inside the source `{}`", out.display(), source.display()),
            "choose an output outside the source folder",
        ));
    }
    for (place, shown) in [(out_real, out), (folder_real, folder)] {
        if source_real.starts_with(&place) {
            return Err(hint(
                format!(
                    "the source `{}` lies inside `{}`, where the output is made",
                    source.display(),
                    shown.display()
                ),
                "choose an output that does not hold the source",
            ));
        }
    }
    Ok(())
}

/// Refuses to work in, and later to remove, a folder that only happens to be called `OUT.partial`.
fn check_ours(folder: &Path) -> Result<()> {
    let refuse = || {
        Err(hint(
            format!("`{}` is in the way: it is not the partial work of l4tool", folder.display()),
            "move it away, or choose another output",
        ))
    };
    match fs::read_dir(folder) {
        Ok(mut entries) => {
            let ours = entries.next().is_none() || Journal::is_one(&folder.join(JOURNAL));
            if ours { Ok(()) } else { refuse() }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => refuse(),
        Err(error) => Err(error).with_context(|| format!("looking into `{}`", folder.display())),
    }
}

/// What an earlier run of the same command finished, if it published `out` and was killed before it could clean up.
/// Cleans up after it.
///
/// # Errors
/// Another process holds the leftovers, or the disk refuses.
pub fn take_published(out: &Path, identity: &Identity) -> Result<Option<Vec<Finished>>> {
    let folder = partial_path(out)?;
    let path = folder.join(JOURNAL);
    let model = folder.join(MODEL);
    let pending = match out.file_name() {
        Some(name) if out.is_file() => model.join(name),
        _ => model,
    };
    if !out.exists() || pending.exists() || !Journal::is_one(&path) {
        return Ok(None);
    }
    let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { return Ok(None) };
    journal::lock(&file, &path)?;
    // Leftovers of another command say nothing about this one; that `out` exists is then for the caller to find.
    let read = Journal::read(&path, file, identity).ok();
    remove(&folder).with_context(|| format!("removing `{}`", folder.display()))?;
    Ok(read.map(|(_held, finished)| finished))
}

/// Removes a folder of partial work. The journal goes last: it is what tells whose folder this is.
fn remove(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() == JOURNAL {
            continue;
        }
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }?;
    }
    match fs::remove_file(folder.join(JOURNAL)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_dir(folder),
    }
}

/// The real path of something that may not exist yet.
fn resolve(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).with_context(|| format!("looking up `{}`", path.display()))?;
    let existing = nearest_existing(&absolute);
    let real = existing.canonicalize().with_context(|| format!("looking up `{}`", existing.display()))?;
    Ok(real.join(absolute.strip_prefix(existing).expect("an ancestor of it")))
}

/// Bytes on the disk that partial work for `out` holds.
pub fn reserved_bytes(out: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    const BLOCK: u64 = 512;
    let Ok(folder) = partial_path(out) else { return 0 };
    let Ok(entries) = fs::read_dir(folder.join(MODEL)) else { return 0 };
    entries.flatten().filter_map(|entry| Some(entry.metadata().ok()?.blocks() * BLOCK)).sum()
}

/// `path` itself or the nearest folder above it that exists.
pub fn nearest_existing(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"))
}

impl Partial {
    /// Takes hold of the work in progress for `out`, and tells what earlier runs finished.
    ///
    /// # Errors
    /// Another process holds it, it belongs to another run (unless `restart`), or the disk refuses.
    pub fn open(out: &Path, identity: &Identity, existing: Existing) -> Result<(Self, Vec<Finished>)> {
        let folder = partial_path(out)?;
        let shown = folder.display().to_string();
        let context = || format!("creating `{shown}`");
        fs::create_dir_all(&folder).with_context(context)?;
        let journal_path = folder.join(JOURNAL);
        if existing.restart {
            Self::clear(&folder, &journal_path)?;
        }
        let (journal, finished) = Journal::open(&journal_path, identity)?;
        let partial = Self { out: out.into(), folder, journal };
        fs::create_dir_all(partial.model()).with_context(context)?;
        Ok((partial, finished))
    }

    /// Throws away an earlier run's work, unless a living process holds it.
    fn clear(folder: &Path, journal: &Path) -> Result<()> {
        let held = File::open(journal);
        if let Ok(file) = &held {
            journal::lock(file, journal)?;
        }
        remove(folder)
            .and_then(|()| fs::create_dir_all(folder))
            .with_context(|| format!("clearing `{}`", folder.display()))
    }

    /// The folder that becomes the output.
    pub fn model(&self) -> PathBuf {
        self.folder.join(MODEL)
    }

    /// The folder for what is of use to the next process only.
    pub(super) fn scratch(&self) -> PathBuf {
        self.folder.join(SCRATCH)
    }

    /// Removes the work in progress: nothing in it can be of use to another run.
    pub fn discard(self) {
        // The error that led here is what the caller reports; a folder that stays behind does no harm.
        let _ = remove(&self.folder);
    }

    /// Makes the finished folder the output. Every file in it must have been synced.
    ///
    /// # Errors
    /// The disk refuses; the work in progress stays then.
    pub fn publish(self, existing: Existing) -> Result<()> {
        let made = self.model();
        self.appear(&made, existing)
    }

    /// As [`Partial::publish`], for an output that is one file: what lies beside it appears first, as it means nothing without the file.
    ///
    /// # Errors
    /// The disk refuses; the work in progress stays then.
    pub fn publish_file(self, existing: Existing) -> Result<()> {
        let model = self.model();
        let context = || format!("moving what is in `{}` beside `{}`", model.display(), self.out.display());
        let name = self.out.file_name().expect("looked at when the work began").to_owned();
        for entry in fs::read_dir(&model).with_context(context)? {
            let entry = entry.with_context(context)?;
            if entry.file_name() != name {
                fs::rename(entry.path(), self.out.with_file_name(entry.file_name())).with_context(context)?;
            }
        }
        let made = model.join(name);
        self.appear(&made, existing)
    }

    /// Makes `made` the output, in one step.
    fn appear(self, made: &Path, existing: Existing) -> Result<()> {
        let context = || format!("moving `{}` to `{}`", made.display(), self.out.display());
        sync_folder(&self.model()).with_context(context)?;
        if existing.force && self.out.symlink_metadata().is_ok() {
            let replaced = self.folder.join("replaced");
            exchange(made, &self.out, &replaced).with_context(context)?;
        } else {
            rename_new(made, &self.out).with_context(context)?;
        }
        sync_folder(parent(&self.out)).with_context(context)?;
        remove(&self.folder).with_context(|| format!("removing `{}`", self.folder.display()))
    }
}

/// Renames without ever replacing something that appeared meanwhile.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems know no such flag; a rename onto a folder that is not empty fails all the same.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if to.is_file() => {
            Err(io::ErrorKind::AlreadyExists.into())
        }
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::rename(from, to),
        other => Ok(other?),
    }
}

/// Swaps two folders or files in one step; the old output then lies in `aside`, inside the partial folder, and goes with it.
fn exchange(new: &Path, old: &Path, aside: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::rename(old, aside)?;
            fs::rename(new, old)
        }
        // Nobody must take the old output for partial work if this process is killed now.
        Ok(()) => fs::rename(new, aside),
        Err(error) => Err(error.into()),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
