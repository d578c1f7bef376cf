//! A safetensors file that is filled in any order and appears when it is complete.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};

use super::header;
use super::plan::OutTensor;
use super::whole_file::WholeFile;
use crate::dtype::Dtype;

/// A file in the making. Dropped before [`TensorFile::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct TensorFile {
    file: WholeFile,
    starts: Vec<u64>,
}

impl TensorFile {
    /// Begins a file with these tensors, in this order.
    ///
    /// # Errors
    /// The file exists, or cannot be created; a shape has no size.
    pub fn create(path: &Path, tensors: &[(&str, Dtype, &[u64])]) -> Result<Self> {
        Self::create_with(path, tensors, &BTreeMap::new(), false)
    }

    /// The same with metadata of its own, and perhaps in place of a file that is there.
    ///
    /// # Errors
    /// As [`TensorFile::create`].
    pub fn create_with(
        path: &Path,
        tensors: &[(&str, Dtype, &[u64])],
        metadata: &BTreeMap<String, String>,
        replace: bool,
    ) -> Result<Self> {
        let mut planned = Vec::new();
        for &(name, dtype, shape) in tensors {
            let Some(bytes) = dtype.bytes_of(shape) else { bail!("`{name}`: {dtype} {shape:?} has no size") };
            let shape = shape.to_vec();
            planned.push(OutTensor { name: name.into(), dtype, shape, bytes, file: 0, offset: 0, literal: None });
        }
        let metadata: Vec<(String, String)> =
            metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let header = header::encode(&metadata, 8, planned.iter());
        let mut end = header.len() as u64;
        let starts = planned.iter().map(|tensor| {
            end += tensor.bytes;
            end - tensor.bytes
        });
        let starts = starts.collect();
        let file = WholeFile::create(path, end, replace)?;
        file.write(0, &header)?;
        Ok(Self { file, starts })
    }

    /// Writes bytes of tensor `index`, from its byte `offset` on.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, index: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write(self.starts[index] + offset, bytes)
    }

    /// Makes the file appear.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn finish(self) -> Result<()> {
        self.file.finish()
    }
}
