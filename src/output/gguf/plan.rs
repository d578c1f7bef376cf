//! The plan of a GGUF output: files with heads, tensors with offsets, and the tasks that fill them.
//!
//! Task sizes are decided here, by constants alone.

use std::ops::Range;

use anyhow::{Result, ensure};

use super::keys::Key;
use super::tensors::{GgufTensor, Source};
use crate::checkpoint::gguf::{Content, Value, encode};
use crate::dtype::Dtype;
use crate::error::hint;
use crate::kernels::Float;
use crate::llama4::{Coding, Llama4, Weight};
use crate::output::assembling::Assembled;
use crate::output::casting::Overflow;
use crate::output::encoding::{Encoded, rows_per_task};
use crate::output::modules::{TASK_OUTPUT_BYTES_MAX, outs_per_task, plan_range};
use crate::output::plan::{OutFile, OutTensor, Plan, PlanBuilder, Region, Task, refuse_twice};
use crate::output::work::Work;
use crate::quant::Layout;

/// Memory that reading a tokenizer and laying out its keys has taken, and that may not have been given back, for each byte of a head.
const PLANNING: u64 = 12;

/// How the output's files are cut and called.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// What the files' names begin with.
    pub stem: &'a str,
    /// Most bytes of tensors in one file; a tensor is never cut. `None`: all in one.
    pub bytes_max: Option<u64>,
}

/// A tensor and the type that it gets.
pub type Typed<'a> = (&'a GgufTensor, Dtype);

/// Plans a file, or several, with `tensors` in their order under `keys`.
///
/// # Errors
/// More files than llama.cpp counts, or a size that does not fit 64 bits.
pub fn plan(
    model: &Llama4,
    tensors: &[Typed<'_>],
    keys: Vec<Key>,
    files: Files<'_>,
    overflow: Overflow,
) -> Result<Plan> {
    let (mut plan, mut keys) = (Plan::default(), keys);
    let mut builder = PlanBuilder::new(u64::MAX);
    let parts = parts(tensors, files.bytes_max);
    ensure!(
        u16::try_from(parts.len()).is_ok(),
        hint(format!("the output would have {} files", parts.len()), "use a larger `--split-max-size`")
    );
    for (number, range) in parts.iter().enumerate() {
        let name = match files.bytes_max {
            None => format!("{}.gguf", files.stem),
            Some(_) => format!("{}-{:05}-of-{:05}.gguf", files.stem, number + 1, parts.len()),
        };
        // The first file has the model's keys.
        let mut keys = std::mem::take(&mut keys);
        let split = files.bytes_max.map(|_| split_keys(number as u16, parts.len() as u16, tensors.len() as i32));
        keys.extend(split.into_iter().flatten());
        let file = lay_out(&mut plan.tensors, number, name, &keys, &tensors[range.clone()])?;
        plan.files.push(file);
    }
    refuse_twice(&plan.tensors)?;
    for (id, (tensor, dtype)) in tensors.iter().enumerate() {
        if let Source::Weights(weights) = &tensor.source {
            let matrix_bytes = plan.tensors[id].bytes / weights.len() as u64;
            for (position, &weight) in weights.iter().enumerate() {
                plan_matrix(&mut builder, model, weight, (id, position as u64 * matrix_bytes), *dtype, overflow);
            }
        }
    }
    plan.tasks = builder.into_tasks();
    plan.planning_bytes = PLANNING * plan.files.iter().map(|file| file.header.len() as u64).sum::<u64>();
    Ok(plan)
}

/// Consecutive tensors that fit one file together.
fn parts(tensors: &[Typed<'_>], bytes_max: Option<u64>) -> Vec<Range<usize>> {
    let most = bytes_max.unwrap_or(u64::MAX);
    let (mut parts, mut filled): (Vec<Range<usize>>, u64) = (Vec::new(), 0);
    for (index, (tensor, dtype)) in tensors.iter().enumerate() {
        let bytes = bytes_of(tensor, *dtype);
        match parts.last_mut() {
            Some(part) if filled.saturating_add(bytes) <= most => part.end = index + 1,
            _ => {
                parts.push(index..index + 1);
                filled = 0;
            }
        }
        filled = filled.saturating_add(bytes);
    }
    parts
}

/// Size of a tensor's data.
pub fn bytes_of(tensor: &GgufTensor, dtype: Dtype) -> u64 {
    let shape: Vec<u64> = tensor.extents.iter().rev().copied().collect();
    dtype.bytes_of(&shape).expect("rows are whole blocks, and the model's own sizes were checked")
}

/// `LLM_KV_SPLIT_*` in `src/llama-arch.cpp`.
fn split_keys(number: u16, count: u16, tensors: i32) -> [Key; 3] {
    let key = |name: &str, value: Value| (format!("split.{name}"), Content::Value(value));
    [key("no", Value::U16(number)), key("count", Value::U16(count)), key("tensors.count", Value::I32(tensors))]
}

fn lay_out(
    all: &mut Vec<OutTensor>,
    file: usize,
    name: String,
    keys: &[Key],
    tensors: &[Typed<'_>],
) -> Result<OutFile> {
    let table: Vec<_> =
        tensors.iter().map(|(tensor, dtype)| (tensor.name.clone(), tensor.extents.clone(), *dtype)).collect();
    let total = tensors.iter().try_fold(0_u64, |sum, (tensor, dtype)| sum.checked_add(bytes_of(tensor, *dtype)));
    ensure!(total.is_some_and(|total| total < u64::MAX / 16), "`{name}` would be larger than any file can be");
    let layout = encode(keys, &table);
    let (mut ids, mut gaps) = (Vec::new(), Vec::new());
    let ends = layout.offsets.iter().skip(1).copied().chain([layout.bytes]);
    for (((tensor, dtype), &offset), next) in tensors.iter().zip(&layout.offsets).zip(ends) {
        let bytes = bytes_of(tensor, *dtype);
        if offset + bytes < next {
            gaps.push(offset + bytes..next);
        }
        let literal = match &tensor.source {
            Source::Literal(bytes) => Some(bytes.clone()),
            Source::Weights(_) => None,
        };
        let shape = tensor.extents.iter().rev().copied().collect();
        ids.push(all.len());
        all.push(OutTensor { name: tensor.name.clone(), dtype: *dtype, shape, bytes, file, offset, literal });
    }
    Ok(OutFile { name, header: layout.head, bytes: layout.bytes, tensors: ids, gaps, noted: Vec::new() })
}

/// One matrix as rows, from `start` of its tensor on.
fn plan_matrix(
    builder: &mut PlanBuilder,
    model: &Llama4,
    index: usize,
    (tensor, start): (usize, u64),
    dtype: Dtype,
    overflow: Overflow,
) {
    let weight = &model.weights[index];
    let (out, input) = weight.matrix();
    let float = Float::of(dtype);
    if let Some((source, range)) = copied(weight, dtype) {
        return plan_range(builder, source, range, (tensor, start), float);
    }
    let row_bytes = dtype.bytes_of(&[input as u64]).expect("rows are whole blocks");
    let step = match float {
        Some(_) => outs_per_task(TASK_OUTPUT_BYTES_MAX / 3, row_bytes, out),
        None => rows_per_task(weight),
    };
    for first in (0..out).step_by(step) {
        let outs = first..(first + step).min(out);
        let bytes = outs.len() as u64 * row_bytes;
        let writes = vec![Region { tensor, start: start + first as u64 * row_bytes, bytes }];
        let work = match float {
            Some(float) => {
                let (weights, layout) = (vec![index], Layout::OutIn);
                Work::Assemble(Assembled { weights, outs, ins: 0..input, layout, float, overflow })
            }
            None => Work::Encode(Encoded { weight: index, outs, dtype }),
        };
        let (source_bytes, working) = (work.source_bytes(model), work.working_bytes(model));
        builder.task(Task { work, writes, source_bytes, memory: bytes + working });
    }
}

/// The tensor and its bytes that are a weight's rows, if these lie there as they are to be written.
fn copied(weight: &Weight, dtype: Dtype) -> Option<(usize, Range<u64>)> {
    let (out, input) = weight.matrix();
    let (tensor, offset) = match weight.coding {
        Coding::Plain(plane) => {
            let as_it_is = plane.layout == Layout::OutIn && plane.float.dtype() == dtype && plane.stride == input;
            as_it_is.then_some((plane.tensor, plane.offset))?
        }
        Coding::Blocks { tensor, dtype: stored, offset } => (stored == dtype).then_some((tensor, offset))?,
        _ => return None,
    };
    let bytes = dtype.bytes_of(&[out as u64, input as u64]).expect("the source has them");
    Some((tensor, offset..offset + bytes))
}
