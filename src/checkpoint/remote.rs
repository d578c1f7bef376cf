//! A checkpoint whose files lie elsewhere: opened from its headers, which somebody fetches. It must not know how they are fetched.
//!
//! The same checks as for files on the disk; what cannot be done is to read a weight. Headers are asked for in one go, with as many bytes as the
//! index lets expect, and the few that turn out longer in a second one: what counts is round trips.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::Result;

use super::error::{FormatError, Kind};
use super::folder::is_weights;
use super::index::{self, INDEX_NAME, Index};
use super::mmap::Map;
use super::{CONFIG_BYTES_MAX, CONFIG_NAMES, Checkpoint, Part, SideFile, safetensors, take_single};

/// Bytes that one tensor takes in a header besides its name: dtype, shape, offsets of up to 13 digits, and JSON's signs.
const ENTRY_BYTES: u64 = 112;

/// Fewest bytes of a file that are asked for.
const FIRST_BYTES: u64 = 8 << 10;

/// A folder that lies elsewhere.
pub trait Remote {
    /// Names and sizes of the files in it, sorted by name; no folders, and nothing below them.
    fn files(&self) -> Vec<(String, u64)>;

    /// The bytes of ranges of files, each as long as its range, in the order they were asked for.
    ///
    /// # Errors
    /// They cannot be fetched.
    fn read(&self, wanted: &[(String, Range<u64>)]) -> Result<Vec<Vec<u8>>>;
}

/// Whether a path is an address rather than a file.
pub(super) fn is_address(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.starts_with("hf:"))
}

impl Checkpoint {
    /// Opens a folder that lies elsewhere and that messages call `path`: with an index, or with one safetensors file. Fetches index, config
    /// and headers.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], or the folder cannot be read.
    pub fn open_remote(path: &Path, remote: &dyn Remote) -> Result<Self> {
        let files: BTreeMap<String, u64> = remote.files().into_iter().collect();
        let mut sides = small_files(path, remote, &files)?;
        let config =
            CONFIG_NAMES.iter().find_map(|name| sides.remove(*name).map(|(side, content)| (*name, side, content)));
        let mut weights: Vec<String> = files.keys().filter(|name| is_weights(name)).cloned().collect();
        let (index, names) = match sides.remove(INDEX_NAME) {
            Some((side, text)) => {
                let index = Index::parse(&path.join(INDEX_NAME), &text)?;
                let names: Vec<String> = index.files().into_iter().map(str::to_owned).collect();
                weights.retain(|name| !names.contains(name));
                (Some((side, index)), names)
            }
            None => (None, vec![take_single(path, &mut weights)?]),
        };
        let missing: Vec<&String> = names.iter().filter(|name| !files.contains_key(*name)).collect();
        if let Some(first) = missing.first() {
            let kind = Kind::ShardMissing { others: missing.len() - 1 };
            return Err(FormatError::new(&path.join(first), kind).into());
        }
        let expected = index.as_ref().map(|(_, index)| index.name_bytes(ENTRY_BYTES)).unwrap_or_default();
        let sized =
            names.iter().map(|name| (name.clone(), files[name], expected.get(name.as_str()).copied().unwrap_or(0)));
        let sizes: Vec<(String, u64, u64)> = sized.collect();
        let parts = heads(path, remote, &sizes)?;
        let mut checkpoint = Self::assemble(path, config, parts)?;
        if let Some((side, index)) = index {
            index.check(&checkpoint.files, &checkpoint.tensors)?;
            checkpoint.sides.push(side);
        }
        checkpoint.unlisted = weights;
        checkpoint.elsewhere = Some(files.into_keys().collect());
        Ok(checkpoint)
    }

    /// Whether only headers are here, and no weight can be read.
    pub fn is_elsewhere(&self) -> bool {
        self.elsewhere.is_some()
    }

    /// Refuses a checkpoint of which only headers are here. Whoever reads weights asks this first.
    ///
    /// # Errors
    /// Says how to fetch it.
    pub fn require_here(&self) -> Result<(), FormatError> {
        if self.is_elsewhere() { Err(FormatError::new(&self.folder, Kind::Elsewhere)) } else { Ok(()) }
    }
}

/// Index and config, where the folder has them.
fn small_files(
    path: &Path,
    remote: &dyn Remote,
    files: &BTreeMap<String, u64>,
) -> Result<BTreeMap<String, (SideFile, Vec<u8>)>> {
    let mut wanted = Vec::new();
    let [config, params] = CONFIG_NAMES;
    for (name, cap) in [(INDEX_NAME, index::INDEX_BYTES_MAX), (config, CONFIG_BYTES_MAX), (params, CONFIG_BYTES_MAX)] {
        let Some(&bytes) = files.get(name) else { continue };
        if bytes > cap {
            return Err(FormatError::new(&path.join(name), Kind::TooLarge { bytes, cap }).into());
        }
        wanted.push((name.to_owned(), 0..bytes));
    }
    let contents = remote.read(&wanted)?;
    let named = wanted.into_iter().zip(contents).map(|((name, _), content)| {
        let side = SideFile::new(&name, path.join(&name), &content, 0);
        (name, (side, content))
    });
    Ok(named.collect())
}

/// The headers of files, given as name, size, and bytes that the header is expected to have.
fn heads(path: &Path, remote: &dyn Remote, files: &[(String, u64, u64)]) -> Result<Vec<Part>> {
    let first = |(name, bytes, expected): &(String, u64, u64)| {
        let length = (expected + FIRST_BYTES).min(super::HEADER_BYTES_MAX).min(*bytes);
        (name.clone(), 0..length)
    };
    let mut heads = remote.read(&files.iter().map(first).collect::<Vec<_>>())?;
    let mut rest = Vec::new();
    let mut longer = Vec::new();
    for (position, ((name, bytes, _), head)) in files.iter().zip(&mut heads).enumerate() {
        let length = safetensors::head_bytes(&path.join(name), head, *bytes)?;
        if length > head.len() as u64 {
            rest.push((name.clone(), head.len() as u64..length));
            longer.push(position);
        }
        head.truncate(usize::try_from(length)?);
    }
    for (position, more) in longer.into_iter().zip(remote.read(&rest)?) {
        heads[position].extend_from_slice(&more);
    }
    let described = files.iter().zip(&heads).map(|((name, bytes, _), head)| {
        safetensors::describe(&path.join(name), head, *bytes, 0, || Ok(Map::absent())).map_err(anyhow::Error::from)
    });
    described.collect()
}
