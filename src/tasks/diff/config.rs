//! Settings of two configs that change what a model computes. Dimensions count: they are what weights are held against.
//!
//! What does not change a forward pass is left out on purpose: token ids that begin and end a text, the longest context, the
//! dtype that the document names, and how the checkpoint is quantized, which the weights show.

use std::fmt::Debug;

use super::report::Setting;
use crate::llama4::config::{Config, TextConfig, VisionConfig};

/// Every setting that differs.
pub(super) fn differences(a: &Config, b: &Config) -> Vec<Setting> {
    let mut list = List { section: "", settings: Vec::new() };
    list.compare("architectures", &a.model.architecture(), &b.model.architecture());
    list.compare("image tokens", &a.image_tokens, &b.image_tokens);
    list.section = "text_config.";
    list.text(&a.text, &b.text);
    list.section = "vision_config.";
    if let (Some(a), Some(b)) = (&a.vision, &b.vision) {
        list.vision(a, b);
    }
    list.settings
}

/// A value as people write it: without Rust's wrapping of what may be absent.
fn spelled<T: Debug>(value: &T) -> String {
    let text = format!("{value:?}");
    let inner = text.strip_prefix("Some(").and_then(|inner| inner.strip_suffix(')'));
    let text = inner.unwrap_or(if text == "None" { "none" } else { &text });
    text.trim_matches('"').to_owned()
}

struct List {
    section: &'static str,
    settings: Vec<Setting>,
}

/// Compares the fields of the same name.
macro_rules! compare {
    ($list:ident, $a:ident, $b:ident: $($field:ident),+ $(,)?) => {
        $($list.compare(stringify!($field), &$a.$field, &$b.$field);)+
    };
}

impl List {
    fn compare<T: PartialEq + Debug>(&mut self, field: &str, a: &T, b: &T) {
        if a != b {
            self.push(field, spelled(a), spelled(b));
        }
    }

    /// Lists with an entry for each layer are told by the layers that have the property.
    fn layers(&mut self, field: &str, a: &[bool], b: &[bool]) {
        if a != b {
            let spell = |flags: &[bool]| {
                let layers = flags.iter().enumerate().filter(|(_, flag)| **flag).map(|(layer, _)| layer.to_string());
                format!("layers {}", layers.collect::<Vec<_>>().join(" "))
            };
            self.push(field, spell(a), spell(b));
        }
    }

    fn push(&mut self, field: &str, a: String, b: String) {
        self.settings.push(Setting { field: format!("{}{field}", self.section), a, b });
    }

    fn text(&mut self, a: &TextConfig, b: &TextConfig) {
        // Every field is named here, so that a new one has to be thought about.
        let TextConfig {
            hidden_size: _,
            num_hidden_layers: _,
            num_attention_heads: _,
            num_key_value_heads: _,
            head_dim: _,
            intermediate_size: _,
            intermediate_size_mlp: _,
            num_local_experts: _,
            num_experts_per_tok: _,
            moe_layers: _,
            rope_layers: _,
            chunked_layers: _,
            use_qk_norm: _,
            rope: _,
            attention_chunk_size: _,
            attn_temperature_tuning: _,
            floor_scale: _,
            attn_scale: _,
            max_position_embeddings: _,
            vocab_size: _,
            rms_norm_eps: _,
            hidden_act: _,
            tie_word_embeddings: _,
            attention_bias: _,
            bos_token_id: _,
            eos_token_id: _,
            pad_token_id: _,
        } = a;
        compare!(self, a, b: hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim);
        compare!(self, a, b: intermediate_size, intermediate_size_mlp, num_local_experts, num_experts_per_tok);
        self.layers("moe_layers", &a.moe_layers, &b.moe_layers);
        self.layers("no_rope_layers", &a.rope_layers, &b.rope_layers);
        self.layers("layer_types", &a.chunked_layers, &b.chunked_layers);
        compare!(self, a, b: use_qk_norm, attention_chunk_size, attn_temperature_tuning, floor_scale, attn_scale);
        self.compare("rope_theta", &a.rope.theta, &b.rope.theta);
        self.compare("rope_scaling", &a.rope.scaling, &b.rope.scaling);
        compare!(self, a, b: vocab_size, rms_norm_eps, hidden_act, tie_word_embeddings, attention_bias);
    }

    fn vision(&mut self, a: &VisionConfig, b: &VisionConfig) {
        let VisionConfig {
            hidden_size: _,
            num_hidden_layers: _,
            num_attention_heads: _,
            intermediate_size: _,
            num_channels: _,
            image_size: _,
            patch_size: _,
            norm_eps: _,
            rope_theta: _,
            pixel_shuffle_ratio: _,
            projector_input_dim: _,
            projector_output_dim: _,
            vision_output_dim: _,
            multi_modal_projector_bias: _,
            vision_feature_select_strategy: _,
            hidden_act: _,
        } = a;
        compare!(self, a, b: hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, num_channels);
        compare!(self, a, b: image_size, patch_size, norm_eps, rope_theta, pixel_shuffle_ratio, projector_input_dim);
        compare!(self, a, b: projector_output_dim, vision_output_dim, multi_modal_projector_bias, hidden_act);
        self.compare(
            "vision_feature_select_strategy",
            &a.vision_feature_select_strategy,
            &b.vision_feature_select_strategy,
        );
    }
}
