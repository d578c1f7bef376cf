//! What it takes to serve the model: weights in each scheme, KV cache, and the context that fits GPUs of 80 GB.
//!
//! An estimate for one sequence at a time in vLLM, with its assumptions as constants here. Weights are exact: from shapes,
//! with scales. Scheme rows are for what `quantize` does unless told otherwise: feed-forward matrices in the scheme,
//! everything else in BF16. On several GPUs weights are split as vLLM's tensor parallelism does it (vLLM 0.32,
//! `models/llama4.py`): matrices and KV heads in equal parts, norms and routers on every GPU.

use std::collections::BTreeSet;

use serde::Serialize;

use super::stored::{label, stored_bytes};
use super::total;
use crate::llama4::config::TextConfig;
use crate::llama4::{Expected, Llama4, Role};
use crate::quant::scheme::Scheme;

/// An H100 80GB has 81,559 MiB (`nvidia-smi`).
const H100_BYTES: u64 = 81_559 << 20;

/// The share of a GPU's memory that an engine uses, vLLM's `gpu_memory_utilization` (0.9 for most of its life).
pub const USABLE: f64 = 0.9;

/// Kept free on each GPU for activations, tokens in flight, CUDA graphs and communication buffers.
const RESERVE_BYTES: u64 = 4 << 30;

/// Numbers of GPUs that are looked at.
const GPUS: [u64; 2] = [1, 8];

/// Bytes of a BF16 number.
const BF16_BYTES: u64 = 2;

/// What it takes to serve the model.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// The GPU that contexts are computed for.
    pub device: Device,
    /// The KV cache of one sequence.
    pub kv_cache: KvCache,
    /// The checkpoint as it is stored.
    pub stored: SchemeMemory,
    /// The model if it were quantized in each scheme, or not at all (`bf16`).
    pub schemes: Vec<SchemeMemory>,
    /// The least lossy scheme that fits the fewest GPUs, if the checkpoint as it is stored does not fit one.
    pub suggestion: Option<Suggestion>,
}

/// A GPU, and how much of it is for weights and KV cache.
#[derive(Clone, Debug, Serialize)]
pub struct Device {
    /// Its name.
    pub name: &'static str,
    /// All of its memory.
    pub memory_bytes: u64,
    /// The share that an engine uses.
    pub utilization: f64,
    /// What is kept free of that for activations, tokens in flight, CUDA graphs and communication buffers.
    pub reserve_bytes: u64,
    /// What is left for weights and KV cache.
    pub usable_bytes: u64,
}

/// The KV cache of one sequence.
#[derive(Clone, Debug, Serialize)]
pub struct KvCache {
    /// The longest context that the config allows.
    pub context_max: u64,
    /// Layers whose cache grows with the context.
    pub growing_layers: u64,
    /// Layers whose cache stops growing at `chunk_tokens`.
    pub chunked_layers: u64,
    /// The most tokens that a chunked layer holds.
    pub chunk_tokens: Option<u64>,
    /// With a cache in BF16.
    pub bf16: KvBytes,
    /// With a cache in FP8.
    pub fp8: KvBytes,
}

/// Bytes of cache for one token, over all heads.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KvBytes {
    /// In all layers.
    pub per_token: u64,
    /// In the layers that grow with the context.
    pub growing_per_token: u64,
    /// In the chunked layers.
    pub capped_per_token: u64,
}

/// The model in one scheme.
#[derive(Clone, Debug, Serialize)]
pub struct SchemeMemory {
    /// The scheme; for a checkpoint as it is stored, all ways that its weights are stored in, joined with `+`.
    pub scheme: String,
    /// Bytes of all weights; none if the scheme does not apply.
    pub weights_bytes: Option<u64>,
    /// Why it does not apply.
    pub reason: Option<String>,
    /// On one and on eight GPUs, with either cache.
    pub fits: Vec<Fit>,
}

/// Whether the model fits some GPUs, and what context then does.
#[derive(Clone, Debug, Serialize)]
pub struct Fit {
    /// How many GPUs.
    pub gpus: u64,
    /// `bf16` or `fp8`.
    pub kv_dtype: &'static str,
    /// Weights on each GPU.
    pub weights_bytes_per_gpu: u64,
    /// Whether the weights fit with room for at least one token.
    pub fits: bool,
    /// Tokens of the longest sequence that fits, if chunked layers hold no more than a chunk.
    pub context: u64,
    /// The same for an engine that keeps all tokens in all layers.
    pub context_full_cache: u64,
    /// Why the model cannot be split over so many GPUs, if so.
    pub reason: Option<String>,
}

/// A scheme that would fit.
#[derive(Clone, Debug, Serialize)]
pub struct Suggestion {
    /// The scheme.
    pub scheme: String,
    /// How many GPUs it takes.
    pub gpus: u64,
    /// Bytes of its weights.
    pub weights_bytes: u64,
    /// Tokens of context with a cache in BF16.
    pub context: u64,
}

/// The memory view of a model whose config promises `promised`.
pub(super) fn view(model: &Llama4, promised: &[Expected]) -> Memory {
    let device = device();
    let kv_cache = kv_cache(&model.config.text);
    let budget = device.usable_bytes;
    let mut schemes = vec![of_scheme(None, promised, &model.config.text, budget)];
    schemes.extend(Scheme::WRITABLE.iter().map(|name| {
        let scheme = Scheme::parse(name, None).expect("the names of the schemes that are written");
        of_scheme(Some(scheme), promised, &model.config.text, budget)
    }));
    // From the largest to the smallest; those that do not apply last.
    schemes.sort_by_key(|memory| std::cmp::Reverse(memory.weights_bytes));
    let stored = as_stored(model, budget);
    let suggestion = suggestion(&stored, &schemes);
    Memory { device, kv_cache, stored, schemes, suggestion }
}

fn device() -> Device {
    let usable = (H100_BYTES as f64 * USABLE) as u64 - RESERVE_BYTES;
    Device {
        name: "H100 80GB",
        memory_bytes: H100_BYTES,
        utilization: USABLE,
        reserve_bytes: RESERVE_BYTES,
        usable_bytes: usable,
    }
}

fn kv_cache(text: &TextConfig) -> KvCache {
    let chunked = match text.attention_chunk_size {
        Some(_) => text.chunked_layers.iter().filter(|&&chunked| chunked).count() as u64,
        None => 0,
    };
    let growing = text.num_hidden_layers as u64 - chunked;
    let heads = text.num_key_value_heads as u64;
    KvCache {
        context_max: text.max_position_embeddings,
        growing_layers: growing,
        chunked_layers: chunked,
        chunk_tokens: text.attention_chunk_size.filter(|_| chunked > 0),
        bf16: kv_bytes(text, (growing, chunked), heads, BF16_BYTES),
        fp8: kv_bytes(text, (growing, chunked), heads, 1),
    }
}

/// A key and a value for each head of each layer.
fn kv_bytes(text: &TextConfig, (growing, chunked): (u64, u64), heads: u64, number: u64) -> KvBytes {
    let layer = 2 * heads * text.head_dim as u64 * number;
    KvBytes {
        per_token: (growing + chunked) * layer,
        growing_per_token: growing * layer,
        capped_per_token: chunked * layer,
    }
}

fn as_stored(model: &Llama4, budget: u64) -> SchemeMemory {
    let labels: BTreeSet<String> = model.weights.iter().map(|weight| label(model, weight)).collect();
    let weights =
        || model.weights.iter().map(|weight| (replicated(weight.role, &weight.shape), stored_bytes(model, weight)));
    SchemeMemory {
        scheme: Vec::from_iter(labels).join("+"),
        weights_bytes: Some(total(weights().map(|(_, bytes)| bytes))),
        reason: None,
        fits: fits(&model.config.text, budget, |gpus| per_gpu(weights(), gpus)),
    }
}

fn of_scheme(scheme: Option<Scheme>, promised: &[Expected], text: &TextConfig, budget: u64) -> SchemeMemory {
    let name = scheme.map_or_else(|| "bf16".into(), |scheme| scheme.to_string());
    if let Some(reason) = promised.iter().find_map(|weight| does_not_divide(scheme?, weight)) {
        return SchemeMemory { scheme: name, weights_bytes: None, reason: Some(reason), fits: Vec::new() };
    }
    let weights = || promised.iter().map(|weight| (replicated(weight.role, &weight.shape), bytes_in(scheme, weight)));
    SchemeMemory {
        scheme: name,
        weights_bytes: Some(total(weights().map(|(_, bytes)| bytes))),
        reason: None,
        fits: fits(text, budget, |gpus| per_gpu(weights(), gpus)),
    }
}

/// Whether every GPU holds all of a weight.
fn replicated(role: Role, shape: &[usize]) -> bool {
    role == Role::Router || shape.len() == 1
}

fn per_gpu(weights: impl Iterator<Item = (bool, u64)>, gpus: u64) -> u64 {
    total(weights.map(|(replicated, bytes)| if replicated { bytes } else { bytes.div_ceil(gpus) }))
}

/// Whether groups do not divide a matrix that would be quantized, in words.
fn does_not_divide(scheme: Scheme, weight: &Expected) -> Option<String> {
    let (Scheme::W4A16 { group_size, .. }, [_, input]) = (scheme, weight.shape.as_slice()) else {
        return None;
    };
    let fails = weight.role.is_feed_forward() && !input.is_multiple_of(group_size);
    fails.then(|| format!("a group size of {group_size} does not divide the {input} inputs of `{}`", weight.name))
}

/// Bytes of a weight if the model is quantized in `scheme`. The tensors of each scheme are those of
/// compressed-tensors 0.19: codes, BF16 scales, packed zero points, and the shape of packed codes as two I64.
fn bytes_in(scheme: Option<Scheme>, weight: &Expected) -> u64 {
    let (Some(scheme), [out, input], true) = (scheme, weight.shape.as_slice(), weight.role.is_feed_forward()) else {
        return weight.numel() * BF16_BYTES;
    };
    let (out, input) = (*out as u64, *input as u64);
    match scheme {
        Scheme::W4A16 { group_size, symmetric } => {
            let groups = input.div_ceil(group_size as u64);
            let zero_points = if symmetric { 0 } else { out.div_ceil(8) * groups * 4 };
            out * input.div_ceil(8) * 4 + out * groups * BF16_BYTES + zero_points + 16
        }
        Scheme::Fp8Dynamic => out * input + out * BF16_BYTES,
        Scheme::Fp8Block { rows, cols } => {
            out * input + out.div_ceil(rows as u64) * input.div_ceil(cols as u64) * BF16_BYTES
        }
        Scheme::Fp8Tensor { static_input } => out * input + BF16_BYTES * (1 + u64::from(static_input)),
    }
}

fn fits(text: &TextConfig, budget: u64, weights_on: impl Fn(u64) -> u64) -> Vec<Fit> {
    let mut fits = Vec::new();
    for gpus in GPUS {
        let weights = weights_on(gpus);
        let reason = cannot_split(text, gpus);
        let room = if reason.is_some() { 0 } else { budget.saturating_sub(weights) };
        for (kv_dtype, number) in [("bf16", BF16_BYTES), ("fp8", 1)] {
            let cache = kv_cache(text);
            let heads = (text.num_key_value_heads as u64).div_ceil(gpus);
            let bytes = kv_bytes(text, (cache.growing_layers, cache.chunked_layers), heads, number);
            let context = context(room, bytes, cache.chunk_tokens).min(cache.context_max);
            fits.push(Fit {
                gpus,
                kv_dtype,
                weights_bytes_per_gpu: weights,
                fits: context > 0,
                context,
                context_full_cache: (room / bytes.per_token).min(cache.context_max),
                reason: reason.clone(),
            });
        }
    }
    fits
}

/// Tensor parallelism needs whole query heads on each GPU, and KV heads in equal parts or copies.
fn cannot_split(text: &TextConfig, gpus: u64) -> Option<String> {
    let (heads, kv_heads) = (text.num_attention_heads as u64, text.num_key_value_heads as u64);
    let even = kv_heads.is_multiple_of(gpus) || gpus.is_multiple_of(kv_heads);
    (!heads.is_multiple_of(gpus) || !even)
        .then(|| format!("{heads} query heads and {kv_heads} KV heads cannot be split over {gpus} GPUs"))
}

/// The longest sequence whose cache takes at most `room` bytes.
fn context(room: u64, kv: KvBytes, chunk: Option<u64>) -> u64 {
    let room = u128::from(room);
    let (growing, all) = (u128::from(kv.growing_per_token), u128::from(kv.per_token));
    let Some(chunk) = chunk.map(u128::from) else {
        return saturated(room / all);
    };
    match room.checked_sub(chunk * all) {
        None => saturated(room / all),
        Some(_) if growing == 0 => u64::MAX,
        Some(left) => saturated(chunk + left / growing),
    }
}

fn saturated(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn suggestion(stored: &SchemeMemory, schemes: &[SchemeMemory]) -> Option<Suggestion> {
    let fit = |memory: &SchemeMemory, gpus: u64| {
        let fit = memory.fits.iter().find(|fit| fit.gpus == gpus && fit.kv_dtype == "bf16")?;
        fit.fits.then_some(fit.context)
    };
    let stored_bytes = stored.weights_bytes?;
    for gpus in GPUS {
        if fit(stored, gpus).is_some() {
            return None;
        }
        // From the least lossy to the smallest.
        for name in ["bf16", "fp8-dynamic", "w4a16"] {
            let memory = schemes.iter().find(|memory| memory.scheme == name)?;
            if let (Some(context), Some(weights_bytes)) = (fit(memory, gpus), memory.weights_bytes)
                && weights_bytes < stored_bytes
            {
                return Some(Suggestion { scheme: name.to_owned(), gpus, weights_bytes, context });
            }
        }
    }
    None
}
