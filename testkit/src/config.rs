//! `config.json` and `generation_config.json` in the words of different times. It must not know tensors or files.
//! Sources: the published files of April 2025, and what transformers 5.17 saves.

use serde_json::{Map, Value, json};

use crate::{Dtype, Spec, Style, Vision};

/// Ids of the special tokens.
struct Special {
    bos: usize,
    eos: [usize; 3],
    pad: usize,
    image_start: usize,
    image_end: usize,
    patch: usize,
}

/// Llama 4's own ids in its own vocabulary, otherwise ids near the end of the vocabulary, as in tiny-scout.
fn special(vocab: usize) -> Special {
    if vocab == 202_048 {
        return Special {
            bos: 200_000,
            eos: [200_001, 200_007, 200_008],
            pad: 200_018,
            image_start: 200_080,
            image_end: 200_081,
            patch: 200_092,
        };
    }
    Special {
        bos: vocab - 15,
        eos: [vocab - 14, vocab - 11, vocab - 10],
        pad: vocab - 7,
        image_start: vocab - 6,
        image_end: vocab - 5,
        patch: vocab - 1,
    }
}

/// The contents of `config.json`.
pub fn config_json(spec: &Spec) -> Value {
    let mut text = text_config(spec);
    if spec.text_only {
        text.insert("architectures".into(), json!(["Llama4ForCausalLM"]));
        return Value::Object(text);
    }
    let token = special(spec.vocab_size);
    let mut top = object(json!({
        "architectures": ["Llama4ForConditionalGeneration"],
        "boi_token_index": token.image_start,
        "eoi_token_index": token.image_end,
        "image_token_index": token.patch,
        "model_type": "llama4",
        "text_config": text,
        "tie_word_embeddings": false,
    }));
    top.insert(dtype_key(spec.style).into(), json!(dtype_name(spec.dtype)));
    if let Some(vision) = &spec.vision {
        top.insert("vision_config".into(), Value::Object(vision_config(vision, spec.style)));
    }
    let version = if spec.style == Style::Transformers5 { "5.17.0" } else { "4.51.0.dev0" };
    top.insert("transformers_version".into(), json!(version));
    Value::Object(top)
}

fn text_config(spec: &Spec) -> Map<String, Value> {
    let token = special(spec.vocab_size);
    let mut config = object(json!({
        "attention_bias": false,
        "attention_chunk_size": spec.attention_chunk_size,
        "attention_dropout": 0.0,
        "attn_scale": spec.attn_scale,
        "attn_temperature_tuning": true,
        "bos_token_id": token.bos,
        "eos_token_id": token.eos,
        "floor_scale": spec.floor_scale,
        "for_llm_compressor": false,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "hidden_size": spec.hidden_size,
        "initializer_range": 0.02,
        "interleave_moe_layer_step": spec.interleave_moe_layer_step,
        "intermediate_size": spec.intermediate_size,
        "intermediate_size_mlp": spec.intermediate_size_mlp,
        "max_position_embeddings": spec.max_position_embeddings,
        "model_type": "llama4_text",
        "no_rope_layers": [],
        "num_attention_heads": spec.heads,
        "num_experts_per_tok": spec.experts_per_tok,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "num_local_experts": spec.experts,
        "output_router_logits": false,
        "pad_token_id": token.pad,
        "rms_norm_eps": 1e-5,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "tie_word_embeddings": false,
        "use_cache": true,
        "use_qk_norm": spec.use_qk_norm,
        "vocab_size": spec.vocab_size,
    }));
    config.insert(dtype_key(spec.style).into(), json!(dtype_name(spec.dtype)));
    let scaling = spec.rope_scaling.map(|s| {
        object(json!({
            "factor": s.factor,
            "high_freq_factor": s.high_freq_factor,
            "low_freq_factor": s.low_freq_factor,
            "original_max_position_embeddings": s.original_max_position_embeddings,
            "rope_type": "llama3",
        }))
    });
    if spec.style == Style::Transformers5 {
        let mut rope = scaling.unwrap_or_else(|| object(json!({"rope_type": "default"})));
        rope.insert("rope_theta".into(), json!(spec.rope_theta));
        config.insert("rope_parameters".into(), Value::Object(rope));
        let layers = 0..spec.layers;
        let attention = |layer| {
            if spec.has_rope(layer) { "chunked_attention" } else { "full_attention" }
        };
        config.insert("no_rope_layer_interval".into(), json!(4));
        config.insert("layer_types".into(), layers.clone().map(attention).collect());
        config.insert("moe_layers".into(), layers.clone().filter(|&layer| spec.is_moe(layer)).collect());
        config.insert("no_rope_layers".into(), layers.map(|layer| u8::from(spec.has_rope(layer))).collect());
    } else {
        config.insert("rope_theta".into(), json!(spec.rope_theta));
        config.insert("rope_scaling".into(), scaling.map_or(Value::Null, Value::Object));
    }
    if spec.style == Style::Published {
        config.insert("attn_temperature_tuning".into(), json!(4));
        config.insert("floor_scale".into(), json!(spec.floor_scale as f64));
    }
    config
}

fn vision_config(v: &Vision, style: Style) -> Map<String, Value> {
    let mut config = object(json!({
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": v.hidden_size,
        "image_size": v.image_size,
        "initializer_range": 0.02,
        "intermediate_size": v.intermediate_size,
        "model_type": "llama4_vision_model",
        "multi_modal_projector_bias": false,
        "norm_eps": 1e-5,
        "num_attention_heads": v.heads,
        "num_channels": 3,
        "num_hidden_layers": v.layers,
        "patch_size": v.patch_size,
        "pixel_shuffle_ratio": 0.5,
        "projector_dropout": 0.0,
        "projector_input_dim": v.output_dim,
        "projector_output_dim": v.output_dim,
        "vision_feature_select_strategy": "default",
        "vision_output_dim": v.output_dim,
    }));
    if style == Style::Transformers5 {
        config.insert("rope_parameters".into(), json!({"rope_theta": 10000.0, "rope_type": "default"}));
    } else {
        config.insert("rope_theta".into(), json!(10000));
        config.insert("vision_feature_layer".into(), json!(-1));
    }
    config
}

/// The contents of `generation_config.json`.
pub fn generation_config_json(spec: &Spec) -> Value {
    let token = special(spec.vocab_size);
    json!({
        "bos_token_id": token.bos,
        "do_sample": true,
        "eos_token_id": token.eos,
        "pad_token_id": token.pad,
        "temperature": 0.6,
        "top_p": 0.9,
        "transformers_version": "4.51.0.dev0",
    })
}

fn dtype_key(style: Style) -> &'static str {
    if style == Style::Transformers5 { "dtype" } else { "torch_dtype" }
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::F32 => "float32",
        _ => "bfloat16",
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("called with object literals only, not {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field that the reference config of the real model has, our config of it has too, with the same value.
    fn assert_agrees(spec: &Spec, reference: &str) {
        let reference: Value = serde_json::from_str(reference).unwrap();
        let ours = config_json(spec);
        for section in ["text_config", "vision_config"] {
            for (key, expected) in reference[section].as_object().unwrap() {
                // Not a property of the model, and lists that are empty in ours because empty means the default.
                if ["cache_implementation", "moe_layers", "no_rope_layers"].contains(&key.as_str()) {
                    continue;
                }
                assert_eq!(&ours[section][key], expected, "{section}.{key}");
            }
        }
        for key in ["architectures", "boi_token_index", "eoi_token_index", "image_token_index", "torch_dtype"] {
            assert_eq!(ours[key], reference[key], "{key}");
        }
        // The lists that transformers 5 writes in full are the reference's.
        let full = config_json(&Spec { style: Style::Transformers5, ..spec.clone() });
        for key in ["moe_layers", "no_rope_layers"] {
            assert_eq!(full["text_config"][key], reference["text_config"][key], "{key}");
        }
    }

    #[test]
    fn configs_of_the_real_models() {
        let scout = include_str!("../../testdata/full-size/config-scout-instruct.json");
        assert_agrees(&Spec::scout_full(), scout);
        let maverick = include_str!("../../testdata/full-size/config-maverick-instruct.json");
        assert_agrees(&Spec::maverick_full(), maverick);
    }

    #[test]
    fn the_published_style_has_its_odd_types() {
        let config = config_json(&Spec { style: Style::Published, ..Spec::default() });
        assert_eq!(config["text_config"]["attn_temperature_tuning"].to_string(), "4");
        assert_eq!(config["text_config"]["floor_scale"].to_string(), "24.0");
    }
}
