//! One file that `torch.save` wrote (`.pth`, `.pt`): a zip archive with a pickle that says what the tensors are, and one
//! stored entry for each storage, which is mapped as it lies.
//!
//! A pickle is a program for a small machine. Nothing of it is executed here: [`pickle`] knows the tensors and plain
//! containers that checkpoints are made of, by the names in [`globals`], and refuses everything else by name. Format: PyTorch 2.13,
//! `torch/serialization.py`, `_save`.

mod globals;
mod pickle;
mod zip;

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use super::error::{FormatError, Kind};
use super::mmap::Map;
use super::{Part, SourceFile, TensorInfo, modified_ns};
use crate::dtype::elements_of;
use pickle::View;
use zip::Archive;

/// The first bytes of a zip archive with something in it.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

/// The largest pickle that is read. A rank of Maverick has 0.3 MB.
const PICKLE_BYTES_MAX: u64 = 16 << 20;

/// Opens the regular file at `real` (symbolic links resolved), which messages and the catalogue call `path`.
pub(super) fn open(path: &Path, real: &Path) -> Result<Part, FormatError> {
    // Asked before opening: opening a pipe would wait for a writer for ever.
    if !fs::metadata(real).map_err(FormatError::io(path, "open"))?.is_file() {
        return Err(FormatError::new(path, Kind::NotAFile));
    }
    let file = File::open(real).map_err(FormatError::io(path, "open"))?;
    let found = file.metadata().map_err(FormatError::io(path, "open"))?;
    let archive = Archive::open(&file, path, found.len())?;
    let text = archive.content("data.pkl", PICKLE_BYTES_MAX)?;
    if archive.has("byteorder") && archive.content("byteorder", 16)? != b"little" {
        return Err(archive.wrong("the numbers are stored with the highest byte first".into()));
    }
    let views = pickle::tensors(&text).map_err(|fault| FormatError {
        file: path.to_path_buf(),
        tensor: fault.tensor,
        kind: fault.kind,
    })?;
    let mut tensors = Vec::with_capacity(views.len());
    let mut seen = HashSet::new();
    for view in views {
        if !seen.insert(view.name.clone()) {
            return Err(FormatError::tensor(path, view.name, Kind::DuplicateTensor));
        }
        tensors.push(place(&archive, path, view)?);
    }
    let digest = xxh3_128(&[archive.directory(), &text].concat());
    Ok(Part {
        head: None,
        map: Map::new(&file, found.len()).map_err(FormatError::io(path, "map"))?,
        tensors,
        file: SourceFile {
            name: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            path: path.to_path_buf(),
            bytes: found.len(),
            modified_ns: modified_ns(&found),
            header_bytes: 0,
            header_digest: format!("{digest:032x}"),
            metadata: BTreeMap::new(),
        },
    })
}

/// Where the bytes of one tensor lie in the file.
fn place(archive: &Archive<'_>, path: &Path, view: View) -> Result<TensorInfo, FormatError> {
    let error = |kind| FormatError::tensor(path, view.name.clone(), kind);
    let bytes = view.dtype.bytes_of(&view.shape);
    let Some((bytes, elements)) = bytes.zip(elements_of(&view.shape)) else {
        return Err(error(Kind::SizeOverflow { dtype: view.dtype, shape: view.shape.clone() }));
    };
    if !is_contiguous(&view.shape, &view.stride) {
        return Err(error(Kind::NotContiguous { shape: view.shape.clone(), stride: view.stride.clone() }));
    }
    let (start, stored) = archive.locate(&format!("data/{}", view.storage)).map_err(|mut fault| {
        fault.tensor = Some(view.name.clone());
        fault
    })?;
    let element = view.dtype.block_bits() / 8;
    let first = view.offset.checked_mul(element);
    let end = view.offset.checked_add(elements).and_then(|end| end.checked_mul(element));
    let (Some(first), Some(end)) = (first, end) else {
        return Err(error(Kind::SizeOverflow { dtype: view.dtype, shape: view.shape.clone() }));
    };
    if end > stored {
        return Err(error(Kind::Truncated { expected: end, actual: stored }));
    }
    Ok(TensorInfo { name: view.name, dtype: view.dtype, shape: view.shape, file: 0, offset: start + first, bytes })
}

/// Whether elements follow each other in memory as they do in the shape. The stride of an extent of 1 says nothing.
fn is_contiguous(shape: &[u64], stride: &[u64]) -> bool {
    let mut expected = 1_u64;
    shape.contains(&0)
        || shape.iter().zip(stride).rev().all(|(&extent, &step)| {
            let fits = extent == 1 || step == expected;
            expected = expected.saturating_mul(extent);
            fits
        })
}
