//! What a config means once its defaults are filled in, under transformers' names for the fields.

use serde::Serialize;

use crate::dtype::Dtype;
use crate::llama4::config::{Config, TextConfig, VisionConfig};

/// The text model's settings, and the vision model's. Lists of layers hold their numbers.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the config's own fields; the others are documented")]
pub struct Settings {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub intermediate_size_mlp: usize,
    pub num_local_experts: usize,
    pub num_experts_per_tok: usize,
    pub moe_layers: Vec<usize>,
    /// Layers that rotate queries and keys.
    pub rope_layers: Vec<usize>,
    /// Layers that attend inside chunks of `attention_chunk_size` tokens.
    pub chunked_layers: Vec<usize>,
    pub attention_chunk_size: Option<u64>,
    pub rope: RopeSettings,
    pub use_qk_norm: bool,
    pub attn_temperature_tuning: bool,
    pub floor_scale: u64,
    pub attn_scale: f64,
    pub max_position_embeddings: u64,
    pub vocab_size: usize,
    pub rms_norm_eps: f64,
    pub hidden_act: String,
    pub attention_bias: bool,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Vec<u32>,
    pub pad_token_id: Option<u32>,
    pub dtype: Option<Dtype>,
    pub vision: Option<VisionSettings>,
}

/// Rotary position embedding. Without scaling, the last four are absent.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the config's own fields")]
pub struct RopeSettings {
    pub rope_theta: f64,
    pub factor: Option<f64>,
    pub low_freq_factor: Option<f64>,
    pub high_freq_factor: Option<f64>,
    pub original_max_position_embeddings: Option<u64>,
}

/// The vision model.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the config's own fields; the others are documented")]
pub struct VisionSettings {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub pixel_shuffle_ratio: f64,
    pub vision_output_dim: usize,
    /// Vectors that one tile becomes in the prompt.
    pub tokens_per_tile: u64,
}

impl Settings {
    /// The settings of a config.
    pub(super) fn of(config: &Config) -> Self {
        let text = &config.text;
        Self {
            hidden_size: text.hidden_size,
            num_hidden_layers: text.num_hidden_layers,
            num_attention_heads: text.num_attention_heads,
            num_key_value_heads: text.num_key_value_heads,
            head_dim: text.head_dim,
            intermediate_size: text.intermediate_size,
            intermediate_size_mlp: text.intermediate_size_mlp,
            num_local_experts: text.num_local_experts,
            num_experts_per_tok: text.num_experts_per_tok,
            moe_layers: numbers(&text.moe_layers),
            rope_layers: numbers(&text.rope_layers),
            chunked_layers: numbers(&text.chunked_layers),
            attention_chunk_size: text.attention_chunk_size,
            rope: rope(text),
            use_qk_norm: text.use_qk_norm,
            attn_temperature_tuning: text.attn_temperature_tuning,
            floor_scale: text.floor_scale,
            attn_scale: text.attn_scale,
            max_position_embeddings: text.max_position_embeddings,
            vocab_size: text.vocab_size,
            rms_norm_eps: text.rms_norm_eps,
            hidden_act: text.hidden_act.clone(),
            attention_bias: text.attention_bias,
            tie_word_embeddings: text.tie_word_embeddings,
            bos_token_id: text.bos_token_id,
            eos_token_id: text.eos_token_id.clone(),
            pad_token_id: text.pad_token_id,
            dtype: config.dtype,
            vision: config.vision.as_ref().map(vision),
        }
    }
}

fn rope(text: &TextConfig) -> RopeSettings {
    let scaling = text.rope.scaling;
    RopeSettings {
        rope_theta: text.rope.theta,
        factor: scaling.map(|scaling| scaling.factor),
        low_freq_factor: scaling.map(|scaling| scaling.low_freq_factor),
        high_freq_factor: scaling.map(|scaling| scaling.high_freq_factor),
        original_max_position_embeddings: scaling.map(|scaling| scaling.original_max_position_embeddings),
    }
}

fn vision(vision: &VisionConfig) -> VisionSettings {
    // The pixel shuffle shrinks both sides of the patch grid by the ratio.
    let side = (vision.image_size / vision.patch_size) as f64 * vision.pixel_shuffle_ratio;
    VisionSettings {
        hidden_size: vision.hidden_size,
        num_hidden_layers: vision.num_hidden_layers,
        num_attention_heads: vision.num_attention_heads,
        intermediate_size: vision.intermediate_size,
        image_size: vision.image_size,
        patch_size: vision.patch_size,
        pixel_shuffle_ratio: vision.pixel_shuffle_ratio,
        vision_output_dim: vision.vision_output_dim,
        tokens_per_tile: (side * side).round() as u64,
    }
}

/// The numbers of the layers for which `flags` is set.
fn numbers(flags: &[bool]) -> Vec<usize> {
    flags.iter().enumerate().filter(|(_, flag)| **flag).map(|(layer, _)| layer).collect()
}
