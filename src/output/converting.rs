//! From logical weights to an ordinary checkpoint in plain floats: which tensors it has, and which work fills them.
//!
//! What lies in the source as it will lie in the output is copied; everything else is assembled. Task sizes are decided
//! here, by constants alone.

use std::ops::Range;

use anyhow::Result;

use super::assembling::Assembled;
use super::casting::Overflow;
use super::modules::{TASK_OUTPUT_BYTES_MAX, outs_per_task, plan_copy_as};
use super::plan::{PlanBuilder, Region, Task};
use super::work::Work;
use crate::kernels::Float;
use crate::llama4::config::Model;
use crate::llama4::names::{Prefixes, logical_name};
use crate::llama4::{Coding, Llama4, Role, Weight};
use crate::quant::Layout;

/// How the routed experts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experts {
    /// All of a layer in two tensors `[E, in, out]`, as transformers and vLLM read floats.
    Fused,
    /// Three matrices `[out, in]` for each.
    PerExpert,
}

/// What the output is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Text and images, or text alone.
    pub model: Model,
    /// How the routed experts are stored.
    pub experts: Experts,
    /// The format of all floats; `None`: the one that each has, and BF16 for what is quantized.
    pub float: Option<Float>,
    /// What to do with values that are too large for the format.
    pub overflow: Overflow,
}

impl Form {
    /// Whether the output has this weight.
    pub fn keeps(&self, weight: &Weight) -> bool {
        self.model == Model::Multimodal || !matches!(weight.role, Role::Vision | Role::Projector)
    }

    /// The number format that a weight gets.
    pub fn float_of(&self, model: &Llama4, weight: &Weight) -> Float {
        self.float.or_else(|| model.stored_float(weight)).unwrap_or(Float::BF16)
    }
}

/// Plans every weight that the output has, in the order of a forward pass.
///
/// # Errors
/// A tensor whose size does not fit 64 bits.
pub fn plan_conversion(builder: &mut PlanBuilder, model: &Llama4, form: &Form) -> Result<()> {
    for (index, weight) in model.weights.iter().enumerate().filter(|(_, weight)| form.keeps(weight)) {
        match (weight.role.is_expert(), form.experts) {
            (true, Experts::Fused) if weight.role == Role::ExpertGate && weight.expert == Some(0) => {
                let layer = weight.layer.expect("experts belong to a layer");
                plan_fused(builder, model, form, layer, &[Role::ExpertGate, Role::ExpertUp])?;
                plan_fused(builder, model, form, layer, &[Role::ExpertDown])?;
            }
            // All experts of a layer are planned with the first.
            (true, Experts::Fused) => {}
            _ => plan_linear(builder, model, form, index)?,
        }
    }
    Ok(())
}

/// One weight as a tensor of its own, `[out, in]` or a vector.
fn plan_linear(builder: &mut PlanBuilder, model: &Llama4, form: &Form, index: usize) -> Result<()> {
    let weight = &model.weights[index];
    let float = form.float_of(model, weight);
    let name = physical(form.model, &weight.name);
    builder.begin_module();
    if let Coding::Plain(plane) = weight.coding {
        let info = &model.checkpoint.tensors()[plane.tensor];
        let shape: Vec<u64> = weight.shape.iter().map(|&n| n as u64).collect();
        if plane.layout == Layout::OutIn && plane.float == float && info.shape == shape {
            return plan_copy_as(name, builder, model, plane.tensor, Some(float));
        }
    }
    let (out, input) = weight.matrix();
    let tensor = builder.tensor(name, float.dtype(), weight.shape.iter().map(|&n| n as u64).collect())?;
    let row_bytes = input as u64 * float.bytes() as u64;
    let step = outs_per_task(TASK_OUTPUT_BYTES_MAX, row_bytes, out);
    for first in (0..out).step_by(step) {
        let outs = first..(first + step).min(out);
        let region = Region { tensor, start: first as u64 * row_bytes, bytes: outs.len() as u64 * row_bytes };
        let (weights, layout) = (vec![index], Layout::OutIn);
        let part = Assembled { weights, outs, ins: 0..input, layout, float, overflow: form.overflow };
        add(builder, model, part, region);
    }
    Ok(())
}

/// The matrices of `roles` of all experts of a layer as one tensor `[E, in, out]`, side by side.
fn plan_fused(builder: &mut PlanBuilder, model: &Llama4, form: &Form, layer: usize, roles: &[Role]) -> Result<()> {
    let experts = model.config.text.num_local_experts;
    let position = |role: Role, expert: usize| {
        let name = logical_name(role, Some(layer), Some(expert));
        model.position(&name).expect("a complete model has every expert")
    };
    let first = &model.weights[position(roles[0], 0)];
    let (out, input) = first.matrix();
    let float = form.float_of(model, first);
    let columns = out * roles.len();
    let module = if roles.len() == 2 { "gate_up_proj" } else { "down_proj" };
    let name = Prefixes::of(form.model).physical(&format!("layers.{layer}.feed_forward.experts.{module}"));
    builder.begin_module();
    if let Some(source) = fused_source(model, first, columns, float) {
        return plan_copy_as(name, builder, model, source, Some(float));
    }
    let tensor = builder.tensor(name, float.dtype(), vec![experts as u64, input as u64, columns as u64])?;
    let row_bytes = columns as u64 * float.bytes() as u64;
    let step = outs_per_task(TASK_OUTPUT_BYTES_MAX, row_bytes, input);
    for expert in 0..experts {
        let weights: Vec<usize> = roles.iter().map(|&role| position(role, expert)).collect();
        for first in (0..input).step_by(step) {
            let ins: Range<usize> = first..(first + step).min(input);
            let start = (expert as u64 * input as u64 + first as u64) * row_bytes;
            let region = Region { tensor, start, bytes: ins.len() as u64 * row_bytes };
            let (weights, layout) = (weights.clone(), Layout::InOut);
            let part = Assembled { weights, outs: 0..out, ins, layout, float, overflow: form.overflow };
            add(builder, model, part, region);
        }
    }
    Ok(())
}

/// The source's tensor, if it is the very same one.
fn fused_source(model: &Llama4, first: &Weight, columns: usize, float: Float) -> Option<usize> {
    let Coding::Plain(plane) = first.coding else { return None };
    let is_whole = model.checkpoint.tensors()[plane.tensor].shape.len() == 3 && plane.stride == columns;
    (plane.layout == Layout::InOut && plane.float == float && is_whole).then_some(plane.tensor)
}

fn add(builder: &mut PlanBuilder, model: &Llama4, part: Assembled, region: Region) {
    let work = Work::Assemble(part);
    let (source_bytes, working) = (work.source_bytes(model), work.working_bytes(model));
    let memory = region.bytes + working;
    builder.task(Task { work, writes: vec![region], source_bytes, memory });
}

/// The name of a weight with this logical name in a Hugging Face checkpoint of plain floats.
pub(super) fn physical(output: Model, name: &str) -> String {
    let module = Prefixes::of(output).physical(name);
    let bare = ["vision_model.class_embedding", "vision_model.positional_embedding_vlm"];
    if name.ends_with(".bias") || bare.contains(&name) {
        return module;
    }
    format!("{module}.weight")
}
