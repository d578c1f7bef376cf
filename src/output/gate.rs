//! The last check before a checkpoint is published: it is opened again, and every weight must be what was promised.
//!
//! Experts that a tool silently leaves unquantized are the best-known failure of this field. Here they stop the run.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::checkpoint::Edges;
use crate::llama4::{Expectation, Llama4};
use crate::parallel;
use crate::progress::{Control, Unit};
use crate::quant::scheme::Scheme;

/// Threads that look at scales: they wait for the disk, which is faster with many questions at a time.
const READERS: usize = 16;

/// Opens the checkpoint in `folder` and holds it against the names and schemes that were promised.
///
/// # Errors
/// Names the first weight that is missing, in another scheme, or has a scale that is zero or not finite.
pub fn check(folder: &Path, promised: &[(&str, Option<Scheme>)], control: &Control<'_>) -> Result<()> {
    let model = Llama4::open(folder).context("opening what was written")?;
    if let Some(problem) = model.problems.first() {
        bail!("what was written is wrong: `{}` {}", problem.name, problem.message);
    }
    if model.weights.len() != promised.len() {
        bail!("{} weights were promised and {} written", promised.len(), model.weights.len());
    }
    for (weight, (name, scheme)) in model.weights.iter().zip(promised) {
        if weight.name != *name || weight.coding.scheme() != *scheme {
            let [is, was] = [weight.coding.scheme(), *scheme]
                .map(|scheme| scheme.map_or_else(|| "not quantized".into(), |scheme| scheme.to_string()));
            bail!("`{name}` was promised as {was}; what was written is `{}`, {is}", weight.name);
        }
    }
    let added: Vec<(usize, Expectation)> = (0..model.checkpoint.tensors().len())
        .map(|id| (id, model.expectation(id)))
        .filter(|(_, expectation)| expectation.is_of_quantization())
        .collect();
    control.progress.start("checking scales", added.len() as u64, 0, Unit::Tensors);
    parallel::for_each(
        added.len(),
        control.threads.max(READERS),
        control,
        || (),
        |(), index| {
            let (id, expectation) = added[index];
            model.checkpoint.will_need(id, 0..model.checkpoint.tensors()[id].bytes);
            if let Some((element, what)) = expectation.broken(model.checkpoint.bytes(id)) {
                let name = &model.checkpoint.tensors()[id].name;
                bail!("what was written is wrong: `{name}` holds {what} at element {element}");
            }
            model.checkpoint.release(id, 0..model.checkpoint.tensors()[id].bytes, Edges::Drop);
            control.progress.advance(1);
            Ok(())
        },
    )?;
    control.progress.finish();
    Ok(())
}
