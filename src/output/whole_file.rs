//! A file that is filled in any order and appears when it is complete.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::error::hint;

/// A file in the making, called `NAME.partial`. Dropped before [`WholeFile::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct WholeFile {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    finished: bool,
}

/// Refuses a file that is there already, unless it is to be replaced.
///
/// # Errors
/// The file exists.
pub fn refuse_existing(path: &Path, replace: bool) -> Result<()> {
    if path.exists() && !replace {
        return Err(hint(format!("`{}` exists", path.display()), "`--force` replaces it; or choose another file"));
    }
    Ok(())
}

impl WholeFile {
    /// Begins a file of `bytes`, all zero.
    ///
    /// # Errors
    /// It exists and is not to be replaced, or cannot be created.
    pub fn create(path: &Path, bytes: u64, replace: bool) -> Result<Self> {
        refuse_existing(path, replace)?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let context = || format!("creating `{}`", partial.display());
        let file = File::create(&partial).with_context(context)?;
        let whole = Self { path: path.into(), partial: partial.clone(), file, finished: false };
        whole.file.set_len(bytes).with_context(context)?;
        Ok(whole)
    }

    /// Writes bytes from `offset` on.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).with_context(|| format!("writing `{}`", self.partial.display()))
    }

    /// Makes the file appear.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn finish(mut self) -> Result<()> {
        let context = || format!("finishing `{}`", self.path.display());
        self.file.sync_all().and_then(|()| std::fs::rename(&self.partial, &self.path)).with_context(context)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if !self.finished {
            // What stays behind says `.partial` in its name.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}
