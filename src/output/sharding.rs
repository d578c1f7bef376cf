//! Rank shards of tensor parallelism: from weights to planned parts of them, and from parts back to whole tensors.
//!
//! Bytes are moved and nothing else: a part of a quantized matrix is a quantized matrix, because groups, blocks and packed words
//! are never cut in two. Whether they would be is found out here.

use anyhow::{Result, bail};

use super::gathering::{self, Strip};
use super::modules::{COPY_BYTES, plan_range};
use super::plan::{OutTensorId, PlanBuilder, Region, Task};
use super::work::Work;
use crate::dtype::Dtype;
use crate::error::hint;
use crate::kernels::Float;
use crate::llama4::names::{Part, Prefixes, without_rank};
use crate::llama4::shards::{Cut, cut, part_shape, tensor_cut};
use crate::llama4::{Coding, Llama4, Plane, Weight};
use crate::quant::Layout;
use crate::quant::scheme::Scheme;

/// Most bytes of pages that a task of strips touches: its rows lie far apart.
const TOUCHED_BYTES_MAX: u64 = 32 << 20;

/// One of several equal parts.
#[derive(Clone, Copy, Debug)]
pub struct Rank {
    /// Which one.
    pub rank: usize,
    /// Of how many.
    pub ranks: usize,
}

/// Plans one rank's part of the weight `index`; an expert inside a fused tensor is planned with [`plan_fused_part`] instead.
///
/// # Errors
/// The parts would not be equal, or would cut a group or a block in two.
pub fn plan_part(builder: &mut PlanBuilder, model: &Llama4, index: usize, at: Rank) -> Result<()> {
    let weight = &model.weights[index];
    let how = cut(weight.role, &weight.name);
    let part = check(weight, how, at.ranks)?;
    let scheme = weight.coding.scheme();
    let float = match weight.coding {
        Coding::Plain(plane) => Some(plane.float),
        _ => None,
    };
    for source in weight.coding.tensors() {
        let info = &model.checkpoint.tensors()[source];
        let kind = Prefixes::of(model.config.model).split(&info.name).map_or(Part::Weight, |(_, part)| part);
        if kind == Part::Shape {
            let tensor = builder.tensor(info.name.clone(), info.dtype, info.shape.clone())?;
            builder.literal(tensor, shape_bytes(info.dtype, &part));
            continue;
        }
        let how = tensor_cut(how, kind, scheme);
        let Some(shape) = part_shape(how, &dimensions(&info.shape), at.ranks) else {
            return Err(uneven(
                weight,
                &format!("`{}` of shape {:?}", info.name, info.shape),
                at.ranks,
                coarse(weight),
            ));
        };
        let tensor = builder.tensor(info.name.clone(), info.dtype, shape.iter().map(|&n| n as u64).collect())?;
        let (rows, row) = rows_of(&info.shape, info.bytes);
        match how {
            Cut::Whole => plan_range(builder, source, 0..info.bytes, (tensor, 0), float),
            Cut::Outputs => {
                let bytes = info.bytes / at.ranks as u64;
                let start = at.rank as u64 * bytes;
                plan_range(builder, source, start..start + bytes, (tensor, 0), float);
            }
            Cut::Inputs => {
                let run = row / at.ranks as u64;
                let strip = Strip { tensor: source, start: at.rank as u64 * run, run, stride: row };
                plan_strips(builder, &[strip], rows, tensor, float);
            }
        }
    }
    Ok(())
}

/// Plans one rank's part of a layer's fused experts, given the first expert's three matrices.
///
/// # Errors
/// The parts would not be equal.
pub fn plan_fused_part(builder: &mut PlanBuilder, model: &Llama4, gate: usize, down: usize, at: Rank) -> Result<()> {
    for (index, halves) in [(gate, 2), (down, 1)] {
        let weight = &model.weights[index];
        let how = cut(weight.role, &weight.name);
        check(weight, how, at.ranks)?;
        let plane = fused_plane(weight)?;
        let info = &model.checkpoint.tensors()[plane.tensor];
        let [experts, inputs, columns] = info.shape[..] else { bail!("`{}` is not fused", info.name) };
        let size = plane.float.bytes() as u64;
        let ranks = at.ranks as u64;
        if how == Cut::Outputs {
            let tensor = builder.tensor(info.name.clone(), info.dtype, vec![experts, inputs, columns / ranks])?;
            let (stride, run) = (columns * size, columns * size / halves / ranks);
            let strips: Vec<Strip> = (0..halves)
                .map(|half| Strip {
                    tensor: plane.tensor,
                    start: half * (stride / halves) + at.rank as u64 * run,
                    run,
                    stride,
                })
                .collect();
            plan_strips(builder, &strips, experts * inputs, tensor, Some(plane.float));
        } else {
            let tensor = builder.tensor(info.name.clone(), info.dtype, vec![experts, inputs / ranks, columns])?;
            let slice = inputs * columns * size;
            let part = slice / ranks;
            for expert in 0..experts {
                let start = expert * slice + at.rank as u64 * part;
                plan_range(builder, plane.tensor, start..start + part, (tensor, expert * part), Some(plane.float));
            }
        }
    }
    Ok(())
}

/// Plans the weight `index` of a checkpoint in rank shards as the whole tensors that it was cut out of.
///
/// # Errors
/// The weight is in a form that no shard has.
pub fn plan_joined(builder: &mut PlanBuilder, model: &Llama4, index: usize) -> Result<()> {
    let weight = &model.weights[index];
    let Coding::Split { cut: how, scheme, .. } = weight.coding else {
        return super::repacking::plan_weight(builder, model, index);
    };
    let parts: Vec<Vec<usize>> = model.shards_of(weight).iter().map(|coding| coding.tensors().collect()).collect();
    let float = match model.shards_of(weight)[0] {
        Coding::Plain(plane) => Some(plane.float),
        _ => None,
    };
    for (place, &first) in parts[0].iter().enumerate() {
        let info = &model.checkpoint.tensors()[first];
        let name = without_rank(&info.name);
        let kind = Prefixes::of(model.config.model).split(name).map_or(Part::Weight, |(_, part)| part);
        if kind == Part::Shape {
            let tensor = builder.tensor(name.to_owned(), info.dtype, info.shape.clone())?;
            builder.literal(tensor, shape_bytes(info.dtype, &weight.shape));
            continue;
        }
        let how = tensor_cut(how, kind, scheme);
        let mut shape = info.shape.clone();
        let ranks = parts.len() as u64;
        match (how, shape.as_mut_slice()) {
            (Cut::Outputs, [rows, ..]) => *rows *= ranks,
            (Cut::Inputs, [.., columns]) => *columns *= ranks,
            _ => {}
        }
        let tensor = builder.tensor(name.to_owned(), info.dtype, shape)?;
        let (rows, row) = rows_of(&info.shape, info.bytes);
        match how {
            Cut::Whole => plan_range(builder, first, 0..info.bytes, (tensor, 0), float),
            Cut::Outputs => {
                for (rank, ids) in parts.iter().enumerate() {
                    plan_range(builder, ids[place], 0..info.bytes, (tensor, rank as u64 * info.bytes), float);
                }
            }
            Cut::Inputs => {
                let strip = |ids: &Vec<usize>| Strip { tensor: ids[place], start: 0, run: row, stride: row };
                let strips: Vec<Strip> = parts.iter().map(strip).collect();
                plan_strips(builder, &strips, rows, tensor, float);
            }
        }
    }
    Ok(())
}

/// Plans a layer's fused experts from the parts that the ranks have, given the first expert's `gate` and `down`.
///
/// # Errors
/// The experts are not fused.
pub fn plan_fused_joined(builder: &mut PlanBuilder, model: &Llama4, gate: usize, down: usize) -> Result<()> {
    for (index, halves) in [(gate, 2), (down, 1)] {
        let weight = &model.weights[index];
        let planes = model.shards_of(weight).iter().map(|coding| match coding {
            Coding::Plain(plane) if plane.layout == Layout::InOut => Ok(*plane),
            _ => bail!("`{}` is not fused", weight.name),
        });
        let planes = planes.collect::<Result<Vec<Plane>>>()?;
        let info = &model.checkpoint.tensors()[planes[0].tensor];
        let [experts, inputs, columns] = info.shape[..] else { bail!("`{}` is not fused", info.name) };
        let (ranks, size) = (planes.len() as u64, planes[0].float.bytes() as u64);
        let float = Some(planes[0].float);
        let name = without_rank(&info.name).to_owned();
        if halves == 2 {
            let tensor = builder.tensor(name, info.dtype, vec![experts, inputs, columns * ranks])?;
            let (stride, run) = (columns * size, columns * size / halves);
            let strip = |half: u64| move |plane: &Plane| Strip { tensor: plane.tensor, start: half * run, run, stride };
            let strips: Vec<Strip> = planes.iter().map(strip(0)).chain(planes.iter().map(strip(1))).collect();
            plan_strips(builder, &strips, experts * inputs, tensor, float);
        } else {
            let tensor = builder.tensor(name, info.dtype, vec![experts, inputs * ranks, columns])?;
            let part = inputs * columns * size;
            for expert in 0..experts {
                for (rank, plane) in planes.iter().enumerate() {
                    let start = (expert * ranks + rank as u64) * part;
                    plan_range(builder, plane.tensor, expert * part..(expert + 1) * part, (tensor, start), float);
                }
            }
        }
    }
    Ok(())
}

/// Tasks that fill a tensor with rows of strips.
fn plan_strips(builder: &mut PlanBuilder, strips: &[Strip], rows: u64, tensor: OutTensorId, float: Option<Float>) {
    let row = gathering::bytes(strips, 1);
    let apart: u64 = strips.iter().map(|strip| strip.stride).sum();
    let step = (COPY_BYTES / row.max(1)).min(TOUCHED_BYTES_MAX / apart.max(1)).max(1);
    for first in (0..rows).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
        let count = step.min(rows - first);
        let moved = |strip: &Strip| Strip { start: strip.start + first * strip.stride, ..strip.clone() };
        let strips: Vec<Strip> = strips.iter().map(moved).collect();
        let bytes = count * row;
        let memory = bytes + gathering::touched(&strips, count);
        let writes = vec![Region { tensor, start: first * row, bytes }];
        builder.task(Task { work: Work::Gather { strips, rows: count, float }, writes, source_bytes: bytes, memory });
    }
}

/// The shape of a rank's part of a weight.
fn check(weight: &Weight, how: Cut, ranks: usize) -> Result<Vec<usize>> {
    let Some(part) = part_shape(how, &weight.shape, ranks) else {
        return Err(uneven(
            weight,
            &format!("its shape {:?}", weight.shape),
            ranks,
            "use a number of `--ranks` that divides it",
        ));
    };
    let (out, input) = (part[0], part[part.len() - 1]);
    let whole = match (weight.coding.scheme(), how) {
        (_, Cut::Whole) | (None | Some(Scheme::Fp8Dynamic | Scheme::Fp8Tensor { .. }), _) => true,
        // Eight codes share a word, eight outputs a word of zero points.
        (Some(Scheme::W4A16 { group_size, .. }), Cut::Inputs) => {
            input.is_multiple_of(group_size) && input.is_multiple_of(8)
        }
        (Some(Scheme::W4A16 { symmetric, .. }), Cut::Outputs) => symmetric || out.is_multiple_of(8),
        (Some(Scheme::Fp8Block { rows, .. }), Cut::Outputs) => out.is_multiple_of(rows),
        (Some(Scheme::Fp8Block { cols, .. }), Cut::Inputs) => input.is_multiple_of(cols),
        (Some(Scheme::Blocks(_)), Cut::Outputs) => true,
        (Some(Scheme::Blocks(dtype)), Cut::Inputs) => (input as u64).is_multiple_of(dtype.block_len()),
    };
    if whole { Ok(part) } else { Err(uneven(weight, "what shares a scale or a word", ranks, coarse(weight))) }
}

/// What to do where parts would be smaller than what shares a scale.
fn coarse(weight: &Weight) -> &'static str {
    match weight.coding.scheme() {
        Some(Scheme::W4A16 { .. }) => "use fewer `--ranks`, or quantize with a smaller `--group-size`",
        _ => "use fewer `--ranks`",
    }
}

fn uneven(weight: &Weight, what: &str, ranks: usize, remedy: &str) -> anyhow::Error {
    hint(format!("`{}` cannot be cut for {ranks} ranks: {what} does not divide", weight.name), remedy)
}

fn fused_plane(weight: &Weight) -> Result<Plane> {
    match weight.coding {
        Coding::Plain(plane) if plane.layout == Layout::InOut => Ok(plane),
        _ => bail!("`{}` is not fused", weight.name),
    }
}

/// The logical shape of packed codes as it is stored.
fn shape_bytes(dtype: Dtype, shape: &[usize]) -> Vec<u8> {
    let width = if dtype == Dtype::I64 { 8 } else { 4 };
    shape.iter().flat_map(|&n| (n as u64).to_le_bytes()[..width].to_vec()).collect()
}

fn dimensions(shape: &[u64]) -> Vec<usize> {
    shape.iter().map(|&n| n as usize).collect()
}

/// Rows of a tensor and bytes of each; a vector is one row.
fn rows_of(shape: &[u64], bytes: u64) -> (u64, u64) {
    match *shape {
        [rows, _] if rows > 0 => (rows, bytes / rows),
        _ => (1, bytes),
    }
}
