//! `model.safetensors.index.json`: which tensor lies in which file, and whether the files agree.
//!
//! ```text
//! { "metadata": { "total_size": 217283587072 },            not relied on: published ones are often wrong
//!   "weight_map": { "tensor name": "model-00001-of-00050.safetensors", .. } }
//! ```

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use super::error::{FormatError, Kind};
use super::json::{self, Pairs};
use super::{SourceFile, TensorInfo};

/// The name of the index in a folder (transformers: `SAFE_WEIGHTS_INDEX_NAME`).
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// The largest index that is read. 100,000 tensors with long names take about 20 MB.
pub(super) const INDEX_BYTES_MAX: u64 = 256_000_000;

/// An index: tensor names with their files, sorted by tensor name, without duplicates; every file name is plain.
#[derive(Debug)]
pub(super) struct Index {
    entries: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `weight_map`")]
struct IndexJson {
    weight_map: Pairs,
}

impl Index {
    /// Parses the text of the index at `path`.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, FormatError> {
        let error = |kind| FormatError::new(path, kind);
        let text = json::text(bytes).map_err(error)?;
        let IndexJson { weight_map } = serde_json::from_str(text).map_err(|e| error(json::json_error(&e)))?;
        if let Some(key) = weight_map.duplicate() {
            return Err(error(Kind::DuplicateKey { key: key.to_string() }));
        }
        if weight_map.0.is_empty() {
            return Err(error(Kind::EmptyIndex));
        }
        match weight_map.0.iter().find(|(_, shard)| !is_plain_name(shard)) {
            Some((tensor, shard)) => Err(FormatError::tensor(path, tensor, Kind::ShardName { name: shard.clone() })),
            None => Ok(Self { entries: weight_map.0 }),
        }
    }

    /// The names of the files, sorted, each once.
    pub(super) fn files(&self) -> Vec<&str> {
        let mut files: Vec<&str> = self.entries.iter().map(|(_, file)| file.as_str()).collect();
        files.sort_unstable();
        files.dedup();
        files
    }

    /// For each file, the bytes of the names in it, with `each` more for every name: about what its header takes.
    pub(super) fn name_bytes(&self, each: u64) -> BTreeMap<&str, u64> {
        let mut bytes = BTreeMap::new();
        for (name, file) in &self.entries {
            *bytes.entry(file.as_str()).or_default() += name.len() as u64 + each;
        }
        bytes
    }

    /// Index and files name the same tensors in the same places. `tensors` are sorted by name, without duplicates.
    pub(super) fn check(&self, files: &[SourceFile], tensors: &[TensorInfo]) -> Result<(), FormatError> {
        let (mut listed, mut found) = (self.entries.iter().peekable(), tensors.iter().peekable());
        loop {
            match (listed.peek(), found.peek()) {
                (None, None) => return Ok(()),
                (Some((name, shard)), tensor) if tensor.is_none_or(|tensor| *name < tensor.name) => {
                    // Every file of the index has been opened; the search runs once, on the way to an error.
                    let file =
                        files.iter().find(|file| file.name == *shard).map_or(Path::new(shard), |file| &file.path);
                    return Err(FormatError::tensor(file, name, Kind::NotInShard));
                }
                (Some((name, shard)), Some(tensor)) if *name == tensor.name => {
                    let file = &files[tensor.file];
                    if file.name != *shard {
                        let kind = Kind::WrongShard { listed: shard.clone() };
                        return Err(FormatError::tensor(&file.path, name, kind));
                    }
                    listed.next();
                    found.next();
                }
                (_, Some(tensor)) => {
                    return Err(FormatError::tensor(&files[tensor.file].path, &tensor.name, Kind::NotInIndex));
                }
                // The second arm takes every case in which only the index has names left.
                (Some(_), None) => return Ok(()),
            }
        }
    }
}

/// A name that can only be a file directly in the folder, on every operating system.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let single = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    single && !name.contains(['/', '\\', ':', '\0'])
}
