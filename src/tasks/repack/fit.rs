//! Whether weights and KV cache fit the GPUs that a layout is for.
//!
//! The same arithmetic as `inspect --memory`, for what the layout puts on each rank. Knows sizes only.

use serde::Serialize;

use super::layout::{Layout, Orders};
use super::placement::slots;
use super::{Options, Placement};
use crate::llama4::memory::{BF16_BYTES, Device, cannot_split, context, is_replicated, kv_cache};
use crate::llama4::{Llama4, Role, Weight};
use crate::output::repacking::EXPERT_ROLES;

/// Context that has to fit unless the user asks for another one.
const CONTEXT: u64 = 8192;

/// Whether a layout fits its GPUs.
#[derive(Clone, Debug, Serialize)]
pub struct Fit {
    /// GPUs, one for each rank.
    pub gpus: usize,
    /// One of them.
    pub device: Device,
    /// Weights on the GPU that has most of them.
    pub weights_bytes_per_gpu: u64,
    /// `bf16` or `fp8`.
    pub kv_dtype: &'static str,
    /// Tokens of each sequence.
    pub context: u64,
    /// Sequences at a time.
    pub sequences: u64,
    /// KV cache of one sequence, on all GPUs together.
    pub kv_bytes_per_sequence: u64,
    /// KV cache of all sequences, on each GPU.
    pub kv_bytes_per_gpu: u64,
    /// Whether all of it fits.
    pub fits: bool,
    /// The longest context with which so many sequences fit; 0 if none does, or not even the weights.
    pub context_max: u64,
    /// What was assumed.
    pub notes: Vec<String>,
}

impl Fit {
    /// Of what `options` ask for; `None` for a layout that is for no GPUs in particular.
    pub(super) fn new(
        options: &Options,
        model: &Llama4,
        orders: &Orders,
        placement: Option<&Placement>,
        gpus: usize,
    ) -> Option<Self> {
        if options.layout == Layout::Hf {
            return None;
        }
        let text = &model.config.text;
        let device = options.gpu_memory.map_or_else(Device::h100, |bytes| Device::new("GPU", bytes));
        let mut notes = Vec::new();
        let unsplit = cannot_split(text, gpus as u64);
        if let Some(reason) = &unsplit {
            notes.push(format!("{reason}: counted as if every GPU held all of attention and cache"));
        }
        if let Some(Placement { redundant_experts: extra @ 1.., experts, .. }) = placement {
            notes.push(format!(
                "layers with experts have {extra} copies besides the {experts}: all of them are counted"
            ));
        }
        let shared = shared_per_gpu(options.layout, model, gpus, unsplit.is_some());
        let experts = match options.layout {
            Layout::Ranks => experts_per_gpu(model, orders, placement, gpus),
            _ => 0,
        };
        let weights_bytes_per_gpu = shared.saturating_add(experts);
        let cache = kv_cache(text);
        let (kv_dtype, number) = if options.kv_fp8 { ("fp8", 1) } else { ("bf16", BF16_BYTES) };
        let heads = text.num_key_value_heads as u64;
        let heads_per_gpu = if unsplit.is_some() { heads } else { heads.div_ceil(gpus as u64) };
        let kv = cache.of_heads(text, heads_per_gpu, number);
        let tokens = options.context.unwrap_or(CONTEXT.min(cache.context_max));
        let sequences = options.sequences;
        let kv_bytes_per_gpu = cache.bytes(kv, tokens).saturating_mul(sequences);
        let room = device.usable_bytes.saturating_sub(weights_bytes_per_gpu);
        let context_max = context(room / sequences, kv, cache.chunk_tokens).min(cache.context_max);
        if tokens > cache.context_max {
            notes.push(format!("the model's longest context is {}", cache.context_max));
        }
        Some(Self {
            gpus,
            weights_bytes_per_gpu,
            kv_dtype,
            context: tokens,
            sequences,
            kv_bytes_per_sequence: cache.bytes(cache.of_heads(text, heads, number), tokens),
            kv_bytes_per_gpu,
            fits: weights_bytes_per_gpu <= device.usable_bytes
                && kv_bytes_per_gpu <= room
                && tokens <= cache.context_max,
            context_max,
            device,
            notes,
        })
    }
}

/// Weights on every GPU but for experts that the layout gives to one rank each.
fn shared_per_gpu(layout: Layout, model: &Llama4, gpus: usize, attention_whole: bool) -> u64 {
    let whole = |weight: &Weight| {
        let attention = weight.role.is_attention() || weight.role == Role::AttentionBias;
        is_replicated(weight.role, &weight.shape) || (attention && attention_whole)
    };
    let by_experts = layout == Layout::Ranks;
    let shared = model.weights.iter().filter(|weight| !by_experts || weight.expert.is_none()).map(|weight| {
        let bytes = model.stored_bytes(weight);
        if whole(weight) { bytes } else { bytes.div_ceil(gpus as u64) }
    });
    shared.fold(0, u64::saturating_add)
}

/// Experts on the GPU that has most of them. A copy of an expert takes as much memory as the expert: an engine that makes copies
/// keeps weights for every place.
fn experts_per_gpu(model: &Llama4, orders: &Orders, placement: Option<&Placement>, gpus: usize) -> u64 {
    let stored = |layer: usize, expert: usize| {
        let weights = EXPERT_ROLES.iter().filter_map(|&role| model.weight(role, Some(layer), Some(expert)));
        weights.map(|weight| model.stored_bytes(weight)).fold(0, u64::saturating_add)
    };
    let layers = placement.map_or(&[][..], |placement| &placement.layers);
    // Experts of a layer differ in size if they differ in their scheme, so they are added up rank by rank.
    let mut ranks = vec![0_u64; gpus];
    for (&layer, order) in orders {
        let bytes: Vec<u64> = order.iter().map(|&expert| stored(layer, expert)).collect();
        let redundant = layers.iter().find(|placed| placed.layer == layer).and_then(|placed| placed.redundant.as_ref());
        for (rank, sum) in ranks.iter_mut().enumerate() {
            *sum = match redundant {
                Some(copies) => copies.on_rank(gpus, rank).iter().map(|&at| bytes[at]).fold(*sum, u64::saturating_add),
                None => bytes[slots(order.len(), gpus, rank)].iter().copied().fold(*sum, u64::saturating_add),
            };
        }
    }
    ranks.into_iter().max().unwrap_or(0)
}
