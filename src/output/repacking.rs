//! From weights to planned tensors that hold the same numbers in other places: experts in another order, fused or one by one.
//!
//! Nothing is computed: matrices are copied or turned round. Which file a tensor goes to is the caller's business, through
//! the groups and modules of the [`PlanBuilder`].

use anyhow::{Result, bail};

use super::assembling::Assembled;
use super::casting::Overflow;
use super::modules::{TASK_OUTPUT_BYTES_MAX, plan_as, plan_range};
use super::plan::{PlanBuilder, Region, Task};
use super::work::Work;
use crate::kernels::Float;
use crate::llama4::names::{Part, Prefixes, logical_name};
use crate::llama4::{Coding, Llama4, Role};
use crate::quant::Layout;

/// The three matrices of an expert, in the order in which engines load them.
pub const EXPERT_ROLES: [Role; 3] = [Role::ExpertGate, Role::ExpertUp, Role::ExpertDown];

/// Plans the weight `index` as it is, under its own name.
///
/// # Errors
/// A size that does not fit 64 bits.
pub fn plan_weight(builder: &mut PlanBuilder, model: &Llama4, index: usize) -> Result<()> {
    plan_as(TASK_OUTPUT_BYTES_MAX, builder, model, index, &model.weights[index].name)
}

/// Plans all of expert `expert` of a layer as expert `position` of the output, as modules of its own.
///
/// # Errors
/// A size that does not fit 64 bits.
pub fn plan_expert(
    builder: &mut PlanBuilder,
    model: &Llama4,
    layer: usize,
    expert: usize,
    position: usize,
) -> Result<()> {
    for role in EXPERT_ROLES {
        let index = expert_weight(model, role, layer, expert)?;
        let name = logical_name(role, Some(layer), Some(position));
        plan_as(TASK_OUTPUT_BYTES_MAX, builder, model, index, &name)?;
    }
    Ok(())
}

/// Plans a layer's router with its rows in another order: row `i` of the output is row `order[i]`.
///
/// # Errors
/// The router is not plain, or has another number of rows.
pub fn plan_router(builder: &mut PlanBuilder, model: &Llama4, index: usize, order: &[usize]) -> Result<()> {
    let weight = &model.weights[index];
    let Coding::Plain(plane) = weight.coding else { bail!("`{}` is quantized; its rows cannot be moved", weight.name) };
    let info = &model.checkpoint.tensors()[plane.tensor];
    if weight.matrix().0 != order.len() {
        bail!("`{}` has {} rows for {} experts", weight.name, weight.matrix().0, order.len());
    }
    let tensor = builder.tensor(info.name.clone(), info.dtype, info.shape.clone())?;
    let row = info.bytes / order.len() as u64;
    for (position, expert) in runs(order) {
        let count = expert.len() as u64 * row;
        let first = expert.start as u64 * row;
        plan_range(builder, plane.tensor, first..first + count, (tensor, position as u64 * row), Some(plane.float));
    }
    Ok(())
}

/// Plans a layer's experts as the two fused tensors `[experts, in, out]`: expert `i` of the output is expert `order[i]`.
///
/// # Errors
/// An expert is quantized, or the experts differ in their format.
pub fn plan_fused(builder: &mut PlanBuilder, model: &Llama4, layer: usize, order: &[usize]) -> Result<()> {
    for (part, roles) in [(Part::FusedGateUp, &EXPERT_ROLES[..2]), (Part::FusedDown, &EXPERT_ROLES[2..])] {
        let first = expert_weight(model, roles[0], layer, order[0])?;
        let Coding::Plain(plane) = model.weights[first].coding else {
            bail!("`{}` is quantized; fused tensors hold plain numbers", model.weights[first].name);
        };
        if plane.layout == Layout::InOut {
            let info = &model.checkpoint.tensors()[plane.tensor];
            let tensor = builder.tensor(info.name.clone(), info.dtype, info.shape.clone())?;
            let slice = info.bytes / order.len() as u64;
            for (position, expert) in runs(order) {
                let range = expert.start as u64 * slice..expert.end as u64 * slice;
                plan_range(builder, plane.tensor, range, (tensor, position as u64 * slice), Some(plane.float));
            }
        } else {
            let modules = order.iter().map(|&expert| {
                roles.iter().map(|&role| expert_weight(model, role, layer, expert)).collect::<Result<Vec<_>>>()
            });
            fuse(builder, model, (layer, part), &modules.collect::<Result<Vec<_>>>()?, plane.float)?;
        }
    }
    Ok(())
}

/// Fuses modules: `experts[i]` are the matrices that lie side by side in slice `i`.
fn fuse(
    builder: &mut PlanBuilder,
    model: &Llama4,
    (layer, part): (usize, Part),
    experts: &[Vec<usize>],
    float: Float,
) -> Result<()> {
    let plain = |&weight: &usize| matches!(model.weights[weight].coding, Coding::Plain(plane) if plane.layout == Layout::OutIn && plane.float == float);
    if let Some(&odd) = experts.iter().flatten().find(|weight| !plain(weight)) {
        let label = model.label(&model.weights[odd]);
        bail!(
            "`{}` is {label}, and others of its layer are not; experts are fused in one format",
            model.weights[odd].name
        );
    }
    let (_, input) = model.weights[experts[0][0]].matrix();
    let width: u64 = experts[0].iter().map(|&weight| model.weights[weight].matrix().0 as u64).sum();
    let name = Prefixes::of(model.config.model).fused(layer, part);
    let tensor = builder.tensor(name, float.dtype(), vec![experts.len() as u64, input as u64, width])?;
    let row = width * float.bytes() as u64;
    let step = usize::try_from(TASK_OUTPUT_BYTES_MAX / row.max(1)).unwrap_or(usize::MAX).clamp(1, input);
    let out = model.weights[experts[0][0]].matrix().0;
    for (position, weights) in experts.iter().enumerate() {
        for first in (0..input).step_by(step) {
            let ins = first..(first + step).min(input);
            let start = (position as u64 * input as u64 + first as u64) * row;
            let region = Region { tensor, start, bytes: ins.len() as u64 * row };
            let (weights, layout, overflow) = (weights.clone(), Layout::InOut, Overflow::Refuse);
            let work = Work::Assemble(Assembled { weights, outs: 0..out, ins, layout, float, overflow });
            let (source_bytes, memory) = (work.source_bytes(model), region.bytes + work.working_bytes(model));
            builder.task(Task { work, writes: vec![region], source_bytes, memory });
        }
    }
    Ok(())
}

fn expert_weight(model: &Llama4, role: Role, layer: usize, expert: usize) -> Result<usize> {
    let name = logical_name(role, Some(layer), Some(expert));
    match model.position(&name) {
        Some(index) => Ok(index),
        None => bail!("`{name}` is missing"),
    }
}

/// Stretches of an order that follow each other in the source too: the position of each, and its experts.
fn runs(order: &[usize]) -> Vec<(usize, std::ops::Range<usize>)> {
    let mut runs: Vec<(usize, std::ops::Range<usize>)> = Vec::new();
    for (position, &expert) in order.iter().enumerate() {
        match runs.last_mut() {
            Some((_, run)) if run.end == expert => run.end += 1,
            _ => runs.push((position, expert..expert + 1)),
        }
    }
    runs
}
