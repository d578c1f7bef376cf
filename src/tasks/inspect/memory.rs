//! What it takes to serve the model: weights in each scheme, KV cache, and the context that fits GPUs of 80 GB.
//!
//! An estimate for one sequence at a time in vLLM; [`crate::llama4::memory`] holds its assumptions. Weights are exact: from shapes,
//! with scales. Scheme rows are for what `quantize` does unless told otherwise: feed-forward matrices in the scheme,
//! everything else in BF16.

use std::collections::BTreeSet;

use serde::Serialize;

use super::total;
use crate::llama4::config::TextConfig;
use crate::llama4::memory::{BF16_BYTES, Device, KvCache, cannot_split, context, is_replicated, kv_cache};
use crate::llama4::{Expected, Llama4};
use crate::quant::scheme::Scheme;

/// Numbers of GPUs that are looked at.
const GPUS: [u64; 2] = [1, 8];

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
    let device = Device::h100();
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

fn as_stored(model: &Llama4, budget: u64) -> SchemeMemory {
    let labels: BTreeSet<String> = model.weights.iter().map(|weight| model.label(weight)).collect();
    let weights =
        || model.weights.iter().map(|weight| (is_replicated(weight.role, &weight.shape), model.stored_bytes(weight)));
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
    let weights =
        || promised.iter().map(|weight| (is_replicated(weight.role, &weight.shape), bytes_in(scheme, weight)));
    SchemeMemory {
        scheme: name,
        weights_bytes: Some(total(weights().map(|(_, bytes)| bytes))),
        reason: None,
        fits: fits(text, budget, |gpus| per_gpu(weights(), gpus)),
    }
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
        Scheme::Blocks(dtype) => out * input.div_ceil(dtype.block_len()) * dtype.block_bits() / 8,
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
            let bytes = cache.of_heads(text, heads, number);
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
