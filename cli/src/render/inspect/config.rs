//! What the config means, as a list.

use std::fmt::Display;

use l4::checkpoint::shown;
use l4::tasks::inspect::{Report, Settings};

use super::words::{numbers, or_dash};
use crate::size::grouped;

/// What the config means.
pub(crate) fn config(report: &Report) -> String {
    let settings = &report.config;
    let mut text = String::new();
    let mut line = |label: &str, value: &dyn Display| text += &format!("{label:<24} {value}\n");
    line("architecture", &report.architecture);
    line("dtype", &settings.dtype.map_or_else(|| "not given".into(), |dtype| dtype.to_string()));
    line("vocab_size", &grouped(settings.vocab_size as u64));
    line("max_position_embeddings", &grouped(settings.max_position_embeddings));
    line("hidden_size", &settings.hidden_size);
    line("num_hidden_layers", &settings.num_hidden_layers);
    line("num_attention_heads", &settings.num_attention_heads);
    line("num_key_value_heads", &settings.num_key_value_heads);
    line("head_dim", &settings.head_dim);
    line("intermediate_size", &format!("{} (routed and shared experts)", settings.intermediate_size));
    line("intermediate_size_mlp", &format!("{} (dense layers)", settings.intermediate_size_mlp));
    line("num_local_experts", &settings.num_local_experts);
    line("num_experts_per_tok", &settings.num_experts_per_tok);
    let all = settings.num_hidden_layers;
    line("experts in layers", &numbers(&settings.moe_layers, all));
    line("RoPE in layers", &numbers(&settings.rope_layers, all));
    line("chunks in layers", &numbers(&settings.chunked_layers, all));
    line("attention_chunk_size", &settings.attention_chunk_size.map_or_else(|| "none".into(), grouped));
    line("rope_theta", &settings.rope.rope_theta);
    line("rope scaling", &rope_scaling(settings));
    line("use_qk_norm", &settings.use_qk_norm);
    line("attn_temperature_tuning", &settings.attn_temperature_tuning);
    line("floor_scale, attn_scale", &format!("{}, {}", grouped(settings.floor_scale), settings.attn_scale));
    line("rms_norm_eps", &settings.rms_norm_eps);
    line("hidden_act", &shown(&settings.hidden_act));
    line("attention_bias", &settings.attention_bias);
    line("tie_word_embeddings", &settings.tie_word_embeddings);
    let tokens: Vec<String> = settings.eos_token_id.iter().map(u32::to_string).collect();
    let tokens = [or_dash(settings.bos_token_id), tokens.join("/"), or_dash(settings.pad_token_id)].join(", ");
    line("bos, eos, pad token", &tokens);
    if let Some(vision) = &settings.vision {
        line("vision hidden_size", &vision.hidden_size);
        line("vision layers, heads", &format!("{}, {}", vision.num_hidden_layers, vision.num_attention_heads));
        line("vision image, patch", &format!("{0}x{0}, {1}x{1} pixels", vision.image_size, vision.patch_size));
        line("tokens per tile", &vision.tokens_per_tile);
    }
    text
}

fn rope_scaling(settings: &Settings) -> String {
    let rope = &settings.rope;
    match (rope.factor, rope.low_freq_factor, rope.high_freq_factor, rope.original_max_position_embeddings) {
        (Some(factor), Some(low), Some(high), Some(original)) => {
            format!("llama3, factor {factor}, low {low}, high {high}, original context {}", grouped(original))
        }
        _ => "none".into(),
    }
}
