//! A folder of safetensors files, one for each rank of tensor parallelism, as `repack` writes it.
//!
//! All ranks have tensors of the same names, so a name here begins with its file's: `consolidated.03.safetensors:NAME`. What the
//! parts mean, and whether they belong together, is not known here.

use std::path::Path;

use super::error::FormatError;
use super::folder::Folder;
use super::{Checkpoint, safetensors};

/// What stands between the number of a rank and a tensor's own name.
pub const RANK_MARK: &str = ".safetensors:";

/// Whether a file is named after a rank: `consolidated.03.safetensors`.
fn is_rank(name: &str) -> bool {
    let digits = name.strip_prefix("consolidated.").and_then(|rest| rest.strip_suffix(".safetensors"));
    digits.is_some_and(|digits| (2..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether the folder holds files of ranks and no other safetensors files.
pub(super) fn is_one(folder: &Folder) -> Result<bool, FormatError> {
    let names = folder.safetensors_names()?;
    Ok(!names.is_empty() && names.iter().all(|name| is_rank(name)))
}

impl Checkpoint {
    /// Opens the files of all ranks in a folder, in the order of their names.
    pub(super) fn open_rank_files(path: &Path, folder: &Folder) -> Result<Self, FormatError> {
        let mut parts = Vec::new();
        for name in folder.safetensors_names()? {
            let (shown, real) = folder.file(&name)?;
            let mut part = safetensors::open(&shown, &real)?;
            for tensor in &mut part.tensors {
                tensor.name = format!("{name}:{}", tensor.name);
            }
            parts.push(part);
        }
        Self::assemble(path, folder.config(&parts)?, parts)
    }
}
