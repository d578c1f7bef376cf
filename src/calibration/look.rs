//! A pass that only looks on: routing, and sums for a statistics file.

use std::path::Path;

use anyhow::Result;

use super::Pass;
use super::data::CalibrationData;
use super::statistics::{Collector, LayerRouting, ModelKey, Output};
use crate::error::hint;
use crate::llama4::Llama4;
use crate::progress::Control;

/// Resident memory besides what is counted: code, catalogue, tokenizer.
const BASE_BYTES: u64 = 72 << 20;

/// Runs the data through a model and counts; with `output`, sums go there as well. Activations that do not fit the memory bound lie
/// in `folder`, in files without a name.
///
/// # Errors
/// Memory that is not enough for one step; what the model, the disk or the sink refuse; [`crate::error::Interrupted`].
pub fn look(
    model: &Llama4,
    key: &ModelKey,
    data: &CalibrationData,
    output: Option<Output<'_>>,
    folder: &Path,
    control: &Control<'_>,
) -> Result<Vec<LayerRouting>> {
    let sequences = data.sequences()?;
    let text = &model.config.text;
    let hessians = output.as_ref().is_some_and(|output| output.hessians);
    // Gate and up of a fused expert are resident together; dequantized, in float32 at most.
    let matrix = 2 * (text.intermediate_size * text.hidden_size) as u64 * size_of::<f32>() as u64;
    let needed = BASE_BYTES
        + matrix
        + Pass::working_bytes(model, &sequences)
        + Collector::bytes(key, data.labels.len(), sequences.tokens(), hessians)
        + 8 * sequences.tokens() as u64;
    let Some(room) = control.memory.checked_sub(needed) else {
        return Err(hint(
            format!("a step of this model needs about {needed} bytes of memory, the bound is {}", control.memory),
            "allow more `--memory`, or choose a smaller `--seq-len`; Hessians alone take 4 bytes times the square of the widest input",
        ));
    };
    let labels: Vec<usize> = (0..data.labels.len())
        .map(|label| data.samples.iter().filter(|sample| sample.label == label).map(|sample| sample.tokens.len()).sum())
        .collect();
    let pass = Pass::new(model, &sequences, folder, room, *control)?;
    let mut collector = Collector::new(key.clone(), &labels, output);
    pass.run(&mut collector)?;
    Ok(collector.into_routing())
}
