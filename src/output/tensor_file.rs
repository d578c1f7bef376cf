//! A safetensors file that is filled in any order and appears when it is complete.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::header;
use super::plan::OutTensor;
use crate::dtype::Dtype;
use crate::error::hint;

/// A file in the making. Dropped before [`TensorFile::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    starts: Vec<u64>,
    finished: bool,
}

impl TensorFile {
    /// Begins a file with these tensors, in this order.
    ///
    /// # Errors
    /// The file exists, or cannot be created; a shape has no size.
    pub fn create(path: &Path, tensors: &[(&str, Dtype, &[u64])]) -> Result<Self> {
        if path.exists() {
            return Err(hint(format!("`{}` exists", path.display()), "remove it, or choose another file"));
        }
        let mut planned = Vec::new();
        for &(name, dtype, shape) in tensors {
            let Some(bytes) = dtype.bytes_of(shape) else { bail!("`{name}`: {dtype} {shape:?} has no size") };
            let shape = shape.to_vec();
            planned.push(OutTensor { name: name.into(), dtype, shape, bytes, file: 0, offset: 0, literal: None });
        }
        let header = header::encode(&[], 8, planned.iter());
        let mut end = header.len() as u64;
        let starts = planned.iter().map(|tensor| {
            end += tensor.bytes;
            end - tensor.bytes
        });
        let starts = starts.collect();
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let context = || format!("creating `{}`", partial.display());
        let file = File::create(&partial).with_context(context)?;
        file.set_len(end).and_then(|()| file.write_all_at(&header, 0)).with_context(context)?;
        Ok(Self { path: path.into(), partial, file, starts, finished: false })
    }

    /// Writes bytes of tensor `index`, from its byte `offset` on.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, index: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let context = || format!("writing `{}`", self.partial.display());
        self.file.write_all_at(bytes, self.starts[index] + offset).with_context(context)
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

impl Drop for TensorFile {
    fn drop(&mut self) {
        if !self.finished {
            // What stays behind says `.partial` in its name.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}
