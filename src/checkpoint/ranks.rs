//! A folder of torch files, one for each rank of the machine that they were saved on, as Meta publishes its models.
//!
//! All ranks have tensors of the same names, so a name here begins with its file's. What the pieces mean is not known here.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::error::{FormatError, Kind};
use super::folder::Folder;
use super::{Checkpoint, torch};

/// Most ranks. Meta's models have 1 to 16.
const RANKS_MAX: usize = 256;

/// Whether a file is one that torch wrote: by its name, or by its first bytes.
pub(super) fn is_torch(path: &Path) -> Result<bool, FormatError> {
    if path.extension().is_some_and(|ending| ending == "pth" || ending == "pt" || ending == "bin") {
        return Ok(true);
    }
    // Asked before opening: opening a pipe would wait for a writer for ever.
    if !fs::metadata(path).map_err(FormatError::io(path, "open"))?.is_file() {
        return Ok(false);
    }
    let mut first = Vec::new();
    let file = File::open(path).map_err(FormatError::io(path, "open"))?;
    file.take(torch::MAGIC.len() as u64).read_to_end(&mut first).map_err(FormatError::io(path, "read"))?;
    Ok(first == torch::MAGIC)
}

/// What stands before the rank in a file name such as `consolidated.03.pth` or `fp8_scales_3.pt`, and the rank; `None` for
/// names of other files.
pub fn rank_of(name: &str) -> Option<(&str, usize)> {
    let (stem, digits) = match name.strip_suffix(".pth") {
        Some("consolidated") => return Some(("consolidated", 0)),
        Some(stem) => stem.split_once('.').filter(|(stem, _)| *stem == "consolidated")?,
        None => {
            let stem = name.strip_suffix(".pt")?;
            stem.rsplit_once('_').filter(|(stem, _)| *stem == "fp8_scales" || *stem == "int4_scales")?
        }
    };
    let plain = (1..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    Some((stem, digits.parse().ok().filter(|_| plain)?))
}

impl Checkpoint {
    /// Opens the files of all ranks in a folder.
    pub(super) fn open_ranks(path: &Path, folder: &Folder) -> Result<Self, FormatError> {
        let mut names = folder.names(|name| rank_of(name).is_some())?;
        if names.iter().any(|name| name.starts_with("consolidated.0")) {
            names.retain(|name| name != "consolidated.pth");
        }
        let of_weights = names.iter().filter_map(|name| rank_of(name)).filter(|(stem, _)| *stem == "consolidated");
        let mut ranks: Vec<usize> = of_weights.map(|(_, rank)| rank).collect();
        ranks.sort_unstable();
        let Some(&last) = ranks.last() else {
            return Err(FormatError::new(path, Kind::NoWeights));
        };
        if let Some(rank) = (0..=last.min(RANKS_MAX)).find(|&rank| ranks.get(rank) != Some(&rank)) {
            return Err(FormatError::new(path, Kind::RankMissing { rank, last }));
        }
        let mut parts = Vec::with_capacity(names.len());
        for name in &names {
            let (shown, real) = folder.file(name)?;
            let mut part = torch::open(&shown, &real)?;
            if names.len() > 1 {
                for tensor in &mut part.tensors {
                    tensor.name = format!("{name}:{}", tensor.name);
                }
            }
            parts.push(part);
        }
        Self::assemble(path, folder.config(&parts)?, parts)
    }
}
