//! Which tensor goes to which file, and in what order: the layouts.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::Result;

use super::placement::slots;
use crate::llama4::{Llama4, Role};
use crate::output::plan::{FileGroup, Plan, PlanBuilder};
use crate::output::repacking::{plan_expert, plan_fused, plan_router, plan_weight};

/// Data begin at multiples of this in layouts for fast loading: the block size of direct reads.
const ALIGNMENT: u64 = 4096;

/// Largest file of an ordinary checkpoint, unless the user says otherwise: what transformers writes.
const FILE_BYTES: u64 = 5_000_000_000;

/// Largest file of a layout for fast loading: few files, and small enough for every hub.
const LARGE_FILE_BYTES: u64 = 20_000_000_000;

/// Where tensors go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The ordinary one: files in the order of a forward pass.
    Hf,
    /// For one GPU: a few large files in loading order, data aligned for direct reads.
    OneGpu,
    /// For expert parallelism: what all ranks need apart from each rank's experts.
    Ranks,
}

/// Every layout by name.
const NAMES: [(&str, Layout); 3] =
    [("hf", Layout::Hf), ("scout-1xh100", Layout::OneGpu), ("maverick-8xh100", Layout::Ranks)];

impl FromStr for Layout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(name, _)| *name == text).map(|(_, layout)| *layout);
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        found.ok_or_else(|| format!("there is no layout `{text}`; there are {}", names.join(", ")))
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|(_, layout)| layout == self).map_or("", |(name, _)| name))
    }
}

/// For every layer with experts, which expert of the source stands at each position of the output.
pub type Orders = BTreeMap<usize, Vec<usize>>;

/// Whether the output's experts are fused: what engines read of a model that is not quantized, unless ranks keep experts in
/// files of their own. A quantized checkpoint has a module for each expert, and the two must not be mixed.
pub(super) fn is_fused(model: &Llama4, layout: Layout) -> bool {
    layout != Layout::Ranks && model.weights.iter().all(|weight| weight.coding.scheme().is_none())
}

/// Plans the files of a layout.
pub(super) fn plan(
    model: &Llama4,
    layout: Layout,
    orders: &Orders,
    ranks: usize,
    file_bytes_max: Option<u64>,
) -> Result<Plan> {
    let default = if layout == Layout::Hf { FILE_BYTES } else { LARGE_FILE_BYTES };
    let mut builder = PlanBuilder::new(file_bytes_max.unwrap_or(default));
    builder.interleave();
    if layout != Layout::Hf {
        builder.align(ALIGNMENT);
    }
    match layout {
        Layout::Hf | Layout::OneGpu => in_order(&mut builder, model, layout, orders)?,
        Layout::Ranks => by_rank(&mut builder, model, orders, ranks)?,
    }
    builder.finish()
}

/// All weights in the order of a forward pass, which is the order in which engines load them.
fn in_order(builder: &mut PlanBuilder, model: &Llama4, layout: Layout, orders: &Orders) -> Result<()> {
    let fused = is_fused(model, layout);
    let mut layer = None;
    for index in 0..model.weights.len() {
        let weight = &model.weights[index];
        // A layer stays in one file if it is loaded as one; otherwise a weight does.
        if layout == Layout::Hf || weight.layer != layer || layer.is_none() {
            builder.begin_module();
            layer = weight.layer;
        }
        match (weight.expert, weight.layer) {
            // The first matrix of the first expert stands for all of them.
            (Some(0), Some(layer)) if weight.role == Role::ExpertGate => {
                if fused {
                    plan_fused(builder, model, layer, &orders[&layer])?;
                    continue;
                }
                for (position, &expert) in orders[&layer].iter().enumerate() {
                    if layout == Layout::Hf {
                        builder.begin_module();
                    }
                    plan_expert(builder, model, layer, expert, position)?;
                }
            }
            (Some(_), _) => {}
            (None, _) => plan_shared(builder, model, index, orders)?,
        }
    }
    Ok(())
}

/// What every rank reads in files of its own; then each rank's experts.
fn by_rank(builder: &mut PlanBuilder, model: &Llama4, orders: &Orders, ranks: usize) -> Result<()> {
    let group = |stem: String| FileGroup { stem, metadata: Vec::new(), is_rank: false };
    builder.begin_group(group("model-shared".into()));
    let mut layer = None;
    for (index, weight) in model.weights.iter().enumerate().filter(|(_, weight)| weight.expert.is_none()) {
        if weight.layer != layer || layer.is_none() {
            builder.begin_module();
            layer = weight.layer;
        }
        plan_shared(builder, model, index, orders)?;
    }
    for rank in 0..ranks {
        builder.begin_group(group(format!("model-ep{rank}")));
        for (&layer, order) in orders {
            builder.begin_module();
            for position in slots(order.len(), ranks, rank) {
                plan_expert(builder, model, layer, order[position], position)?;
            }
        }
    }
    Ok(())
}

/// A weight that is no expert's; a router's rows follow the experts.
fn plan_shared(builder: &mut PlanBuilder, model: &Llama4, index: usize, orders: &Orders) -> Result<()> {
    let weight = &model.weights[index];
    let order = weight.layer.filter(|_| weight.role == Role::Router).and_then(|layer| orders.get(&layer));
    match order {
        Some(order) => plan_router(builder, model, index, order),
        None => plan_weight(builder, model, index),
    }
}
