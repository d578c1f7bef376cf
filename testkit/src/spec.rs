//! What a checkpoint to be written looks like: dimensions, style of its config, container, seed.
//! It must not know how any of it is written.

use crate::Dtype;

/// A checkpoint to be written. `Default` is tiny (about 0.5 MB) and multimodal, has Scout's shape, and every one of its
/// matrices divides by groups of 32.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Width of a routed and of the shared expert.
    pub intermediate_size: usize,
    /// Width of a dense feed-forward layer.
    pub intermediate_size_mlp: usize,
    /// Routed experts of each MoE layer.
    pub experts: usize,
    /// Experts that each token is sent to.
    pub experts_per_tok: usize,
    /// Layer `i` is a MoE layer when `(i + 1) % interleave_moe_layer_step == 0`: 1 in Scout, 2 in Maverick.
    pub interleave_moe_layer_step: usize,
    /// Rows of the embedding and of the head; at least 32, for the special tokens at its end.
    pub vocab_size: usize,
    /// L2 norm of queries and keys in the layers with RoPE: Scout yes, Maverick no.
    pub use_qk_norm: bool,
    /// Base of the RoPE frequencies.
    pub rope_theta: f64,
    /// Llama 3 scaling of the RoPE frequencies; `None` in Maverick.
    pub rope_scaling: Option<RopeScaling>,
    /// Tokens that a layer with RoPE attends to, as a chunk.
    pub attention_chunk_size: usize,
    /// Tokens per step of the attention temperature in the layers without RoPE.
    pub floor_scale: usize,
    /// Strength of the attention temperature.
    pub attn_scale: f64,
    /// Longest context that the config promises.
    pub max_position_embeddings: usize,
    /// The vision tower and its projector. Ignored when `text_only`; `None` otherwise means that neither the tensors
    /// nor `vision_config` are there.
    pub vision: Option<Vision>,
    /// In which words `config.json` says it.
    pub style: Style,
    /// `Llama4ForCausalLM`: flat config, names that start with `model.`, no vision tower.
    pub text_only: bool,
    /// How the tensors are distributed over files.
    pub shards: Shards,
    /// Dtype of all tensors.
    pub dtype: Dtype,
    /// Heavy-tailed weights (Student's t with two degrees of freedom, cut at 100 deviations) instead of normal ones.
    pub outliers: bool,
    /// Write tiny-scout's `tokenizer.json` and `tokenizer_config.json` too; needs a vocabulary of 2,048 or more.
    pub tokenizer: bool,
    /// Equal seeds and dimensions give equal weights, however they are sharded.
    pub seed: u64,
}

/// Llama 3 scaling of RoPE frequencies, as in `rope_scaling` of `config.json`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    /// Long wavelengths are divided by it.
    pub factor: f64,
    /// `original_max_position_embeddings / low_freq_factor` is the wavelength above which all is scaled.
    pub low_freq_factor: f64,
    /// `original_max_position_embeddings / high_freq_factor` is the wavelength below which nothing is.
    pub high_freq_factor: f64,
    /// Context length before scaling.
    pub original_max_position_embeddings: usize,
}

/// Dimensions of the vision tower.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vision {
    /// Width of the tower.
    pub hidden_size: usize,
    /// Layers of the tower.
    pub layers: usize,
    /// Heads of the tower.
    pub heads: usize,
    /// Width of its feed-forward layers; the adapter after the pixel shuffle needs it to be `4 * hidden_size`.
    pub intermediate_size: usize,
    /// Pixels along one side of a tile.
    pub image_size: usize,
    /// Pixels along one side of a patch.
    pub patch_size: usize,
    /// Width between adapter and projector (`vision_output_dim`, `projector_input_dim` and `projector_output_dim`).
    pub output_dim: usize,
}

/// In which words `config.json` is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As published in April 2025: `rope_theta` and `rope_scaling`, `torch_dtype`, `no_rope_layers: []`,
    /// `attn_temperature_tuning: 4`, `floor_scale` as a float. transformers 5 refuses the last two.
    Published,
    /// The same, with `attn_temperature_tuning: true` and `floor_scale` as an integer: transformers 4 and 5 read it.
    Transformers4,
    /// As transformers 5 saves it: `rope_parameters`, `dtype`, `layer_types`, `no_rope_layers` and `moe_layers` in full.
    Transformers5,
}

/// How tensors are distributed over files. They stay in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shards {
    /// One `model.safetensors`, no index.
    Single,
    /// Exactly this many files of similar size (at most one per tensor), with an index.
    Split(usize),
    /// A new file when the next tensor would take this one beyond so many bytes, with an index. A tensor that is larger
    /// has a file of its own.
    ByBytes(u64),
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            hidden_size: 64,
            layers: 4,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            intermediate_size: 32,
            intermediate_size_mlp: 64,
            experts: 4,
            experts_per_tok: 1,
            interleave_moe_layer_step: 1,
            vocab_size: 256,
            use_qk_norm: true,
            rope_theta: 500_000.0,
            rope_scaling: Some(RopeScaling { original_max_position_embeddings: 64, ..RopeScaling::scout() }),
            attention_chunk_size: 32,
            floor_scale: 24,
            attn_scale: 0.1,
            max_position_embeddings: 4096,
            vision: Some(Vision::tiny()),
            style: Style::Transformers4,
            text_only: false,
            shards: Shards::Single,
            dtype: Dtype::BF16,
            outliers: false,
            tokenizer: false,
            seed: 0,
        }
    }
}

impl Spec {
    /// Small and of Scout's shape: every layer MoE, 16 experts, QK norm, scaled RoPE, sharded.
    pub fn scout_like() -> Self {
        Self { experts: 16, shards: Shards::Split(3), ..Self::default() }
    }

    /// Small and of Maverick's shape: every second layer MoE, 128 experts, no QK norm, plain RoPE, sharded.
    pub fn maverick_like() -> Self {
        Self {
            experts: 128,
            interleave_moe_layer_step: 2,
            use_qk_norm: false,
            rope_scaling: None,
            shards: Shards::Split(3),
            ..Self::default()
        }
    }

    /// The real Scout: 1,133 tensors, 217,283,587,072 bytes. Write it sparse.
    pub fn scout_full() -> Self {
        Self {
            hidden_size: 5120,
            layers: 48,
            heads: 40,
            kv_heads: 8,
            head_dim: 128,
            intermediate_size: 8192,
            intermediate_size_mlp: 16384,
            experts: 16,
            vocab_size: 202_048,
            rope_scaling: Some(RopeScaling::scout()),
            attention_chunk_size: 8192,
            floor_scale: 8192,
            max_position_embeddings: 10_485_760,
            vision: Some(Vision::full()),
            shards: Shards::Split(50),
            ..Self::default()
        }
    }

    /// The real Maverick: 1,061 tensors, 803,167,562,752 bytes. Write it sparse.
    pub fn maverick_full() -> Self {
        Self {
            experts: 128,
            interleave_moe_layer_step: 2,
            use_qk_norm: false,
            rope_scaling: None,
            max_position_embeddings: 1_048_576,
            shards: Shards::ByBytes(5_000_000_000),
            ..Self::scout_full()
        }
    }

    /// Whether decoder layer `layer` has routed experts.
    pub fn is_moe(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(self.interleave_moe_layer_step)
    }

    /// Whether decoder layer `layer` has RoPE (and chunked attention): all but every fourth.
    pub fn has_rope(&self, layer: usize) -> bool {
        !(layer + 1).is_multiple_of(4)
    }
}

impl RopeScaling {
    /// Scout's: factor 16, no middle band, 8,192 tokens originally.
    pub fn scout() -> Self {
        Self { factor: 16.0, low_freq_factor: 1.0, high_freq_factor: 1.0, original_max_position_embeddings: 8192 }
    }
}

impl Vision {
    /// Two layers, four patches after the pixel shuffle.
    pub fn tiny() -> Self {
        Self {
            hidden_size: 32,
            layers: 2,
            heads: 2,
            intermediate_size: 128,
            image_size: 56,
            patch_size: 14,
            output_dim: 48,
        }
    }

    /// The one that Scout and Maverick share.
    pub fn full() -> Self {
        Self {
            hidden_size: 1408,
            layers: 34,
            heads: 16,
            intermediate_size: 5632,
            image_size: 336,
            patch_size: 14,
            output_dim: 4096,
        }
    }
}
