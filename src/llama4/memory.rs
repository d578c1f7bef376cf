//! What serving a model takes on GPUs: the KV cache, the context that fits, and how weights are split.
//!
//! An estimate for vLLM 0.32 (`models/llama4.py`), with its assumptions as constants here: on several GPUs matrices and KV
//! heads are split in equal parts, norms and routers are on every GPU. Knows dimensions; knows no tensor.

use serde::Serialize;

use super::config::TextConfig;
use super::names::Role;

/// An H100 80GB has 81,559 MiB (`nvidia-smi`).
const H100_BYTES: u64 = 81_559 << 20;

/// The share of a GPU's memory that an engine uses, vLLM's `gpu_memory_utilization` (0.9 for most of its life).
pub const USABLE: f64 = 0.9;

/// Kept free on each GPU for activations, tokens in flight, CUDA graphs and communication buffers.
const RESERVE_BYTES: u64 = 4 << 30;

/// Bytes of a BF16 number.
pub const BF16_BYTES: u64 = 2;

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

impl Device {
    /// A GPU with `memory_bytes` of memory.
    pub fn new(name: &'static str, memory_bytes: u64) -> Self {
        Self {
            name,
            memory_bytes,
            utilization: USABLE,
            reserve_bytes: RESERVE_BYTES,
            usable_bytes: ((memory_bytes as f64 * USABLE) as u64).saturating_sub(RESERVE_BYTES),
        }
    }

    /// The GPU that Scout and Maverick were announced for.
    pub fn h100() -> Self {
        Self::new("H100 80GB", H100_BYTES)
    }
}

/// The KV cache of one sequence of a model.
pub fn kv_cache(text: &TextConfig) -> KvCache {
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

impl KvCache {
    /// The cache of `heads` of the KV heads alone, with numbers of so many bytes.
    pub fn of_heads(&self, text: &TextConfig, heads: u64, number: u64) -> KvBytes {
        kv_bytes(text, (self.growing_layers, self.chunked_layers), heads, number)
    }

    /// Bytes that a sequence of `tokens` takes.
    pub fn bytes(&self, kv: KvBytes, tokens: u64) -> u64 {
        let capped = tokens.min(self.chunk_tokens.unwrap_or(tokens));
        kv.growing_per_token.saturating_mul(tokens).saturating_add(kv.capped_per_token.saturating_mul(capped))
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

/// Whether every GPU holds all of a weight.
pub fn is_replicated(role: Role, shape: &[usize]) -> bool {
    role == Role::Router || shape.len() == 1
}

/// Tensor parallelism needs whole query heads on each GPU, and KV heads in equal parts or copies.
pub fn cannot_split(text: &TextConfig, gpus: u64) -> Option<String> {
    let (heads, kv_heads) = (text.num_attention_heads as u64, text.num_key_value_heads as u64);
    let even = kv_heads.is_multiple_of(gpus) || gpus.is_multiple_of(kv_heads);
    (!heads.is_multiple_of(gpus) || !even)
        .then(|| format!("{heads} query heads and {kv_heads} KV heads cannot be split over {gpus} GPUs"))
}

/// The longest sequence whose cache takes at most `room` bytes.
pub fn context(room: u64, kv: KvBytes, chunk: Option<u64>) -> u64 {
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
