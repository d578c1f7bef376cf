//! The last check before a GGUF output is published: it is opened again, and must hold what was planned.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::checkpoint::gguf::Gguf;
use crate::output::plan::Plan;

/// Opens the files of `plan` in `folder` and holds their tensors against it.
///
/// # Errors
/// Names the first tensor that is not as it was planned.
pub fn check(folder: &Path, plan: &Plan) -> Result<()> {
    for file in &plan.files {
        let gguf = Gguf::open(&folder.join(&file.name)).context("opening what was written")?;
        ensure!(
            gguf.tensors.len() == file.tensors.len(),
            "`{}` was planned with {} tensors and has {}",
            file.name,
            file.tensors.len(),
            gguf.tensors.len()
        );
        for (found, &id) in gguf.tensors.iter().zip(&file.tensors) {
            let planned = &plan.tensors[id];
            let same = found.name == planned.name
                && found.dtype == planned.dtype
                && found.extents.iter().rev().eq(&planned.shape)
                && (found.offset, found.bytes) == (planned.offset, planned.bytes);
            if !same {
                bail!("what was written is wrong: `{}` was planned as {planned:?} and is {found:?}", planned.name);
            }
        }
    }
    Ok(())
}
