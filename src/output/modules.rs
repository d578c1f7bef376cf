//! From logical weights to planned tensors and tasks: how a module is stored, and which work fills it.
//!
//! Quantize, convert and repack differ only in what they ask of this. It decides task sizes, by constants alone.

use anyhow::{Result, bail};

use super::converting::physical;
use super::plan::{OutTensorId, PlanBuilder, Region, Task};
use super::work::{Quantized, Work};
use crate::dtype::Dtype;
use crate::kernels::Float;
use crate::llama4::names::{Part, Prefixes, without_rank};
use crate::llama4::{Coding, Dialect, Llama4, Plane, Weight};
use crate::quant::scheme::Scheme;
use crate::quant::{Layout, Method, gptq};

/// Most bytes that one task may write from its own buffers. One expert's `gate` and `up` of Scout in FP8 are 84 MB:
/// they fit together, so their fused pages are walked once.
pub(super) const TASK_OUTPUT_BYTES_MAX: u64 = 96 << 20;

/// Bytes that a copying task moves.
pub(super) const COPY_BYTES: u64 = 16 << 20;

/// Outputs are divided among tasks at multiples of this: rows of an FP8 block, and of packed zero points.
const TASK_OUTS: usize = 128;

/// How one weight is to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its scheme.
    pub scheme: Scheme,
    /// How its scales are chosen.
    pub method: Method,
}

/// Plans every weight of `model`, in the order of a forward pass; weight `i` as `targets[i]` says, or as it is.
///
/// Experts come out one by one in `[out, in]`, also those that stay plain: a quantized checkpoint must not mix fused and
/// per-expert names.
///
/// # Errors
/// A group size that does not divide a weight's inputs, with the weight's name.
pub fn plan_weights(builder: &mut PlanBuilder, model: &Llama4, targets: &[Option<Target>]) -> Result<()> {
    plan_in_tasks_of(TASK_OUTPUT_BYTES_MAX, builder, model, targets)
}

/// [`plan_weights`] with tasks that write at most `bytes_max` each, or [`TASK_OUTS`] rows.
pub(super) fn plan_in_tasks_of(
    bytes_max: u64,
    builder: &mut PlanBuilder,
    model: &Llama4,
    targets: &[Option<Target>],
) -> Result<()> {
    assert_eq!(targets.len(), model.weights.len());
    let mut index = 0;
    while index < model.weights.len() {
        let pair = shares_pages(model, targets, index);
        let together = if pair { 2 } else { 1 };
        match targets[index] {
            Some(_) => plan_quantized(bytes_max, builder, model, index..index + together, targets)?,
            None => plan_kept(bytes_max, builder, model, index)?,
        }
        index += together;
    }
    Ok(())
}

/// Whether this weight and the next are quantized slices of the same fused rows, to be worked on in one walk.
fn shares_pages(model: &Llama4, targets: &[Option<Target>], index: usize) -> bool {
    let [this, next] = [index, index + 1].map(|index| {
        let weight = model.weights.get(index)?;
        match weight.coding {
            Coding::Plain(plane) if plane.layout == Layout::InOut => {
                // Solving takes so much longer than reading that each matrix is better off as tasks of its own.
                targets[index]
                    .filter(|target| target.method != Method::Gptq)
                    .map(|_| (plane.tensor, weight.expert, weight.shape.as_slice()))
            }
            _ => None,
        }
    });
    this.is_some() && this == next
}

/// The tensors of one module under a scheme.
struct Stored {
    codes: OutTensorId,
    scale: OutTensorId,
    zero_point: Option<OutTensorId>,
    input_scale: Option<OutTensorId>,
}

/// Adds the tensors of a quantized weight (compressed-tensors 0.19, `compressors/*/base.py`).
fn store(builder: &mut PlanBuilder, model: &Llama4, weight: &Weight, scheme: Scheme) -> Result<Stored> {
    let (out, input) = weight.matrix();
    let module = Prefixes::of(model.config.model).physical(&weight.name);
    let name = |part: Part| format!("{module}{}", part.suffix());
    let shape = |a: usize, b: usize| vec![a as u64, b as u64];
    builder.begin_module();
    match scheme {
        Scheme::W4A16 { group_size, symmetric } => {
            if !input.is_multiple_of(group_size) {
                bail!("`{}`: a group size of {group_size} does not divide its {input} inputs", weight.name);
            }
            let groups = input / group_size;
            let codes = builder.tensor(name(Part::Packed), Dtype::I32, shape(out, input.div_ceil(8)))?;
            let scale = builder.tensor(name(Part::Scale), Dtype::BF16, shape(out, groups))?;
            let zero_point = (!symmetric)
                .then(|| builder.tensor(name(Part::ZeroPoint), Dtype::I32, shape(out.div_ceil(8), groups)))
                .transpose()?;
            let logical = builder.tensor(name(Part::Shape), Dtype::I64, vec![2])?;
            builder.literal(logical, [out, input].map(|n| (n as u64).to_le_bytes()).concat());
            Ok(Stored { codes, scale, zero_point, input_scale: None })
        }
        Scheme::Fp8Dynamic | Scheme::Fp8Block { .. } => {
            let codes = builder.tensor(name(Part::Weight), Dtype::F8_E4M3, shape(out, input))?;
            let scales = match scheme {
                Scheme::Fp8Block { rows, cols } => shape(out.div_ceil(rows), input.div_ceil(cols)),
                _ => shape(out, 1),
            };
            let scale = builder.tensor(name(Part::Scale), Dtype::BF16, scales)?;
            Ok(Stored { codes, scale, zero_point: None, input_scale: None })
        }
        Scheme::Fp8Tensor { static_input } => {
            let codes = builder.tensor(name(Part::Weight), Dtype::F8_E4M3, shape(out, input))?;
            let scale = builder.tensor(name(Part::Scale), Dtype::BF16, vec![1])?;
            let input_scale =
                static_input.then(|| builder.tensor(name(Part::InputScale), Dtype::BF16, vec![1])).transpose()?;
            Ok(Stored { codes, scale, zero_point: None, input_scale })
        }
        Scheme::Blocks(_) => unreachable!("blocks of ggml are written to GGUF files alone"),
    }
}

fn plan_quantized(
    bytes_max: u64,
    builder: &mut PlanBuilder,
    model: &Llama4,
    weights: std::ops::Range<usize>,
    targets: &[Option<Target>],
) -> Result<()> {
    let mut modules = Vec::with_capacity(weights.len());
    for index in weights {
        let target = targets[index].expect("the caller looked");
        let stored = store(builder, model, &model.weights[index], target.scheme)?;
        builder.noted(stored.codes, index, &model.weights[index].name);
        modules.push((index, target, stored));
    }
    let (out, _) = model.weights[modules[0].0].matrix();
    let row_bytes: u64 = modules.iter().map(|(.., stored)| stored.row_bytes(builder, out)).sum();
    // A scale for the whole matrix is one task's to find.
    let whole = modules.iter().any(|(_, target, _)| matches!(target.scheme, Scheme::Fp8Tensor { .. }));
    let solved = modules.iter().any(|(_, target, _)| target.method == Method::Gptq);
    let step = match (whole, outs_per_task(bytes_max, row_bytes, out)) {
        (true, _) => out,
        (_, step) if solved => step.min(gptq::PIECE),
        (_, step) => step,
    };
    for first in (0..out).step_by(step) {
        let outs = first..(first + step).min(out);
        let mut parts = Vec::with_capacity(modules.len());
        let mut writes = Vec::new();
        for (weight, target, stored) in &modules {
            parts.push(Quantized { weight: *weight, outs: outs.clone(), target: *target });
            writes.extend(stored.regions(builder, &outs, out, target.scheme));
        }
        let work = Work::Quantize(parts);
        let output: u64 = writes.iter().map(|region| region.bytes).sum();
        let (source_bytes, working) = (work.source_bytes(model), work.working_bytes(model));
        builder.task(Task { work, writes, source_bytes, memory: output + working });
    }
    Ok(())
}

/// Rows of `row_bytes` each, out of `out`, that one task writes.
pub(super) fn outs_per_task(bytes_max: u64, row_bytes: u64, out: usize) -> usize {
    let fitting = usize::try_from(bytes_max / row_bytes.max(1)).unwrap_or(usize::MAX);
    (fitting / TASK_OUTS * TASK_OUTS).clamp(TASK_OUTS, out.next_multiple_of(TASK_OUTS))
}

impl Stored {
    /// Bytes of output per row of the matrix, rounded up.
    fn row_bytes(&self, builder: &PlanBuilder, out: usize) -> u64 {
        let ids = [Some(self.codes), Some(self.scale), self.zero_point];
        ids.into_iter().flatten().map(|id| builder.bytes_of(id).div_ceil(out as u64)).sum()
    }

    /// What the task for `outs` of `out` rows writes.
    fn regions(&self, builder: &PlanBuilder, outs: &std::ops::Range<usize>, out: usize, scheme: Scheme) -> Vec<Region> {
        let scale_rows = match scheme {
            Scheme::Fp8Block { rows, .. } => rows,
            Scheme::Fp8Tensor { .. } => out,
            _ => 1,
        };
        let parts =
            [(Some(self.codes), 1), (Some(self.scale), scale_rows), (self.zero_point, 8), (self.input_scale, out)];
        let region = |(tensor, rows_together): (Option<OutTensorId>, usize)| {
            let tensor = tensor?;
            let stored_rows = out.div_ceil(rows_together) as u64;
            let row_bytes = builder.bytes_of(tensor) / stored_rows;
            let (first, end) = (outs.start / rows_together, outs.end.div_ceil(rows_together));
            Some(Region { tensor, start: first as u64 * row_bytes, bytes: (end - first) as u64 * row_bytes })
        };
        parts.into_iter().filter_map(region).collect()
    }
}

/// Plans a weight that stays as it is.
fn plan_kept(bytes_max: u64, builder: &mut PlanBuilder, model: &Llama4, index: usize) -> Result<()> {
    builder.begin_module();
    plan_as(bytes_max, builder, model, index, &model.weights[index].name)
}

/// Plans a weight as it is under the logical name `name`, in the module that was begun last. One expert's slice of a fused tensor
/// becomes a module of its own.
pub(super) fn plan_as(
    bytes_max: u64,
    builder: &mut PlanBuilder,
    model: &Llama4,
    index: usize,
    name: &str,
) -> Result<()> {
    let weight = &model.weights[index];
    if let (Coding::Plain(plane), Dialect::Gguf) = (weight.coding, model.dialect) {
        let shape = weight.shape.iter().map(|&n| n as u64).collect();
        let tensor = builder.tensor(physical(model.config.model, name), plane.float.dtype(), shape)?;
        let bytes = weight.numel() * plane.float.bytes() as u64;
        plan_range(builder, plane.tensor, plane.offset..plane.offset + bytes, (tensor, 0), Some(plane.float));
        return Ok(());
    }
    if let Coding::Plain(plane) = weight.coding {
        return match plane.layout {
            Layout::InOut => plan_unfused(bytes_max, builder, model, index, plane, name),
            Layout::OutIn => {
                let name = renamed(model, weight, plane.tensor, name);
                plan_copy_as(name, builder, model, plane.tensor, Some(plane.float))
            }
        };
    }
    for tensor in weight.coding.tensors() {
        plan_copy_as(renamed(model, weight, tensor, name), builder, model, tensor, None)?;
    }
    Ok(())
}

/// The name of a tensor of `weight` if the weight is called `name`.
fn renamed(model: &Llama4, weight: &Weight, tensor: usize, name: &str) -> String {
    let stored = without_rank(&model.checkpoint.tensors()[tensor].name);
    let prefixes = Prefixes::of(model.config.model);
    match prefixes.split(stored) {
        Some((_, part)) if weight.name != name => format!("{}{}", prefixes.physical(name), part.suffix()),
        _ => stored.to_owned(),
    }
}

/// A tensor whose bytes stay the same, under any name; floats are looked at on the way.
pub(super) fn plan_copy_as(
    name: String,
    builder: &mut PlanBuilder,
    model: &Llama4,
    source: usize,
    float: Option<Float>,
) -> Result<()> {
    let info = &model.checkpoint.tensors()[source];
    let tensor = builder.tensor(name, info.dtype, info.shape.clone())?;
    plan_range(builder, source, 0..info.bytes, (tensor, 0), float);
    Ok(())
}

/// Tasks that copy a range of a tensor to `start` in another one.
pub(super) fn plan_range(
    builder: &mut PlanBuilder,
    source: usize,
    range: std::ops::Range<u64>,
    (tensor, start): (OutTensorId, u64),
    float: Option<Float>,
) {
    for first in range.clone().step_by(COPY_BYTES as usize) {
        let piece = first..(first + COPY_BYTES).min(range.end);
        let bytes = piece.end - piece.start;
        let writes = vec![Region { tensor, start: start + (first - range.start), bytes }];
        builder.task(Task {
            work: Work::Copy { tensor: source, range: piece, float },
            writes,
            source_bytes: bytes,
            memory: bytes,
        });
    }
}

/// One expert's plain matrix, taken out of its fused tensor and turned to `[out, in]`.
fn plan_unfused(
    bytes_max: u64,
    builder: &mut PlanBuilder,
    model: &Llama4,
    index: usize,
    plane: Plane,
    name: &str,
) -> Result<()> {
    let weight = &model.weights[index];
    let (out, input) = weight.matrix();
    let name = format!("{}.weight", Prefixes::of(model.config.model).physical(name));
    let tensor = builder.tensor(name, plane.float.dtype(), vec![out as u64, input as u64])?;
    let row_bytes = input as u64 * plane.float.bytes() as u64;
    let step = outs_per_task(bytes_max, row_bytes, out);
    for first in (0..out).step_by(step) {
        let outs = first..(first + step).min(out);
        let bytes = outs.len() as u64 * row_bytes;
        let writes = vec![Region { tensor, start: first as u64 * row_bytes, bytes }];
        let work = Work::Unfuse { weight: index, outs };
        let (source_bytes, working) = (work.source_bytes(model), work.working_bytes(model));
        builder.task(Task { work, writes, source_bytes, memory: bytes + working });
    }
    Ok(())
}
