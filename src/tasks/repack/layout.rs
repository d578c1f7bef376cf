//! Which tensor goes to which file, and in what order: the layouts.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::Result;

use super::placement::slots;
use crate::checkpoint::Edges;
use crate::llama4::names::logical_name;
use crate::llama4::shards::{MODEL_KEY, RANK_KEY, RANKS_KEY};
use crate::llama4::{Coding, Llama4, Role};
use crate::output::hash::sha256;
use crate::output::plan::{FileGroup, Plan, PlanBuilder};
use crate::output::repacking::{plan_expert, plan_fused, plan_router, plan_weight};
use crate::output::sharding::{Rank, plan_fused_joined, plan_fused_part, plan_joined, plan_part};
use crate::quant;

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
    /// For programs that load one file per rank of tensor parallelism: every weight cut into equal parts, as Meta does it.
    Shards,
}

/// Every layout by name.
const NAMES: [(&str, Layout); 4] =
    [("hf", Layout::Hf), ("scout-1xh100", Layout::OneGpu), ("maverick-8xh100", Layout::Ranks), ("tp8", Layout::Shards)];

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

/// Plans the files of a layout. `digest` tells rank shards of one model from those of another: a [`sample`], or as many characters
/// as one has where nothing may be read yet.
pub(super) fn plan(
    model: &Llama4,
    layout: Layout,
    orders: &Orders,
    ranks: usize,
    file_bytes_max: Option<u64>,
    digest: &str,
) -> Result<Plan> {
    let default = match layout {
        Layout::Hf => FILE_BYTES,
        Layout::OneGpu | Layout::Ranks => LARGE_FILE_BYTES,
        // One file for each rank, however large.
        Layout::Shards => u64::MAX,
    };
    let mut builder = PlanBuilder::new(file_bytes_max.unwrap_or(default));
    if layout != Layout::Hf {
        builder.align(ALIGNMENT);
    }
    match layout {
        Layout::Hf if !model.shards.is_empty() => joined(&mut builder, model)?,
        Layout::Hf | Layout::OneGpu => in_order(&mut builder, model, layout, orders)?,
        Layout::Shards => in_shards(&mut builder, model, ranks, digest)?,
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

/// Each rank's part of every weight, in files that say what they are.
fn in_shards(builder: &mut PlanBuilder, model: &Llama4, ranks: usize, digest: &str) -> Result<()> {
    for rank in 0..ranks {
        let numbers = [(RANK_KEY, rank.to_string()), (RANKS_KEY, ranks.to_string()), (MODEL_KEY, digest.to_owned())];
        let metadata = numbers.map(|(key, value)| (key.to_owned(), value)).to_vec();
        builder.begin_group(FileGroup { stem: format!("consolidated.{rank:02}"), metadata, is_rank: true });
        let at = Rank { rank, ranks };
        for (index, weight) in model.weights.iter().enumerate() {
            builder.begin_module();
            match fused_experts(model, index) {
                Some((gate, down)) if weight.role == Role::ExpertGate && weight.expert == Some(0) => {
                    plan_fused_part(builder, model, gate, down, at)?;
                }
                Some(_) => {}
                None => plan_part(builder, model, index, at)?,
            }
        }
    }
    Ok(())
}

/// Every weight put together from the ranks' parts.
fn joined(builder: &mut PlanBuilder, model: &Llama4) -> Result<()> {
    for (index, weight) in model.weights.iter().enumerate() {
        builder.begin_module();
        match fused_experts(model, index) {
            Some((gate, down)) if weight.role == Role::ExpertGate && weight.expert == Some(0) => {
                plan_fused_joined(builder, model, gate, down)?;
            }
            Some(_) => {}
            None => plan_joined(builder, model, index)?,
        }
    }
    Ok(())
}

/// For a weight inside fused tensors, the first expert's `gate` and `down`.
fn fused_experts(model: &Llama4, index: usize) -> Option<(usize, usize)> {
    let weight = &model.weights[index];
    weight.expert?;
    let coding = model.shards_of(weight).first().unwrap_or(&weight.coding);
    let is_fused = matches!(coding, Coding::Plain(plane) if plane.layout == quant::Layout::InOut);
    let first = |role: Role| model.position(&logical_name(role, weight.layer, Some(0)));
    is_fused.then_some((first(Role::ExpertGate)?, first(Role::ExpertDown)?))
}

/// What stands for a sample in a plan that is made from headers alone.
pub(super) const NO_SAMPLE: &str = "00000000000000000000000000000000";

/// Bytes of each tensor that a sample looks at.
const SAMPLED_BYTES: u64 = 64;

/// Bytes that looking at a tensor's first ones makes resident.
const MAPPED_BYTES: u64 = 128 << 10;

/// A digest of the first bytes of what is no expert's and of each layer's first expert: two models, fine-tunes of one
/// another included, hardly ever agree on all of them.
pub(super) fn sample(model: &Llama4) -> String {
    let mut seen = Vec::new();
    for weight in model.weights.iter().filter(|weight| weight.expert.is_none_or(|expert| expert == 0)) {
        seen.extend_from_slice(weight.name.as_bytes());
        for id in weight.coding.tensors() {
            let bytes = model.checkpoint.tensors()[id].bytes;
            seen.extend_from_slice(model.checkpoint.range(id, 0..bytes.min(SAMPLED_BYTES)));
            // The system maps the pages around one that is touched.
            model.checkpoint.release(id, 0..bytes.min(MAPPED_BYTES), Edges::Drop);
        }
    }
    sha256(&seen)[..NO_SAMPLE.len()].to_owned()
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
