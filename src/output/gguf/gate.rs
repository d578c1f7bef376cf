//! The last check before a GGUF output is published: it is opened again, and must hold what was planned and promised.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::checkpoint::gguf::Gguf;
use crate::llama4::Llama4;
use crate::output::plan::Plan;
use crate::quant::scheme::Scheme;

/// Opens the files of `plan` in `folder` and holds their tensors against it, and the weights that they make up against the names and schemes
/// that were promised.
///
/// # Errors
/// Names the first tensor that is not as it was planned, or the first weight that is missing or in another scheme.
pub fn check(folder: &Path, plan: &Plan, promised: &[(&str, Option<Scheme>)]) -> Result<()> {
    check_tensors(folder, plan)?;
    let Some(first) = plan.files.first() else { return Ok(()) };
    let model = Llama4::open(&folder.join(&first.name)).context("opening what was written")?;
    model.require_weights().context("what was written is wrong")?;
    ensure!(
        model.weights.len() == promised.len(),
        "{} weights were promised and {} written",
        promised.len(),
        model.weights.len()
    );
    for (name, scheme) in promised {
        let written = model.named(name).map(|weight| weight.coding.scheme());
        ensure!(written == Some(*scheme), "`{name}` was promised as {scheme:?}; what was written is {written:?}");
    }
    Ok(())
}

/// Opens the files of `plan` in `folder` and holds their tensors against it.
///
/// # Errors
/// Names the first tensor that is not as it was planned.
pub fn check_tensors(folder: &Path, plan: &Plan) -> Result<()> {
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
