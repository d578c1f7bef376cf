//! Both styles of config.json, transformers' own conversion between them, and the word for every field that cannot be.

mod refused;

use super::*;

const SCOUT: &str = include_str!("../../../../testdata/configs/scout-instruct.json");
const MAVERICK: &str = include_str!("../../../../testdata/configs/maverick-instruct.json");

fn parse(json: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("config.json"), json.as_bytes())
}

/// A config with one value replaced, by JSON pointer; the value `"absent"` takes the field out.
fn with(json: &str, changes: &[(&str, &str)]) -> String {
    let mut document: Value = serde_json::from_str(json).unwrap();
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = document.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match *value {
            "absent" => drop(parent.shift_remove(key)),
            value => drop(parent.insert(key.to_string(), serde_json::from_str(value).unwrap())),
        }
    }
    document.to_string()
}

#[test]
fn reads_the_published_style() {
    let scout = parse(SCOUT).unwrap();
    let text = &scout.text;
    assert_eq!((scout.model, scout.dtype), (Model::Multimodal, Some(Dtype::BF16)));
    assert_eq!((text.hidden_size, text.num_hidden_layers, text.vocab_size), (5120, 48, 202_048));
    assert_eq!((text.num_attention_heads, text.num_key_value_heads, text.head_dim), (40, 8, 128));
    assert_eq!((text.intermediate_size, text.intermediate_size_mlp), (8192, 16_384));
    assert_eq!((text.num_local_experts, text.num_experts_per_tok), (16, 1));
    assert_eq!(text.moe_layers, [true; 48]);
    assert_eq!(text.rope_layers[..8], [true, true, true, false, true, true, true, false]);
    assert_eq!(text.chunked_layers, text.rope_layers);
    let scaling = Llama3Scaling {
        factor: 16.0,
        low_freq_factor: 1.0,
        high_freq_factor: 1.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(text.rope, Rope { theta: 500_000.0, scaling: Some(scaling) });
    assert_eq!((text.attention_chunk_size, text.floor_scale, text.attn_scale), (Some(8192), 8192, 0.1));
    assert!(text.use_qk_norm && text.attn_temperature_tuning && !text.attention_bias && !text.tie_word_embeddings);
    assert_eq!((text.max_position_embeddings, text.rms_norm_eps), (10_485_760, 1e-5));
    assert_eq!((text.bos_token_id, text.pad_token_id), (Some(200_000), Some(200_018)));
    assert_eq!(text.eos_token_id, [200_001, 200_007, 200_008]);

    let vision = scout.vision.unwrap();
    assert_eq!((vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads), (1408, 34, 16));
    assert_eq!((vision.image_size, vision.patch_size, vision.num_channels), (336, 14, 3));
    assert_eq!((vision.projector_input_dim, vision.projector_output_dim, vision.vision_output_dim), (4096, 4096, 4096));
    assert_eq!((vision.intermediate_size, vision.rope_theta, vision.pixel_shuffle_ratio), (5632, 10_000.0, 0.5));
    assert_eq!(scout.image_tokens, Some(ImageTokens { boi: 200_080, eoi: 200_081, image: 200_092 }));

    let maverick = parse(MAVERICK).unwrap().text;
    assert_eq!(maverick.moe_layers, [false, true].repeat(24));
    assert_eq!(maverick.rope, Rope { theta: 500_000.0, scaling: None });
    assert_eq!((maverick.num_local_experts, maverick.use_qk_norm), (128, false));
}

/// The oracle is transformers 5.17: what it wrote after reading the published style must mean the same here.
#[test]
fn both_styles_mean_the_same() {
    let saved = [
        (
            SCOUT,
            include_str!("../../../../testdata/configs/scout-transformers5.json"),
            include_str!("../../../../testdata/configs/scout-text-only-transformers5.json"),
        ),
        (
            MAVERICK,
            include_str!("../../../../testdata/configs/maverick-transformers5.json"),
            include_str!("../../../../testdata/configs/maverick-text-only-transformers5.json"),
        ),
    ];
    for (published, multimodal, text_only) in saved {
        let published = parse(published).unwrap();
        let multimodal = parse(multimodal).unwrap();
        assert_eq!(multimodal.text, published.text);
        assert_eq!(multimodal.vision, published.vision);
        assert_eq!(multimodal.image_tokens, published.image_tokens);
        assert_eq!((multimodal.model, multimodal.dtype), (published.model, published.dtype));

        let text_only = parse(text_only).unwrap();
        assert_eq!(text_only.text, published.text);
        assert_eq!((text_only.model, text_only.dtype), (Model::TextOnly, Some(Dtype::BF16)));
        assert!(text_only.vision.is_none() && text_only.image_tokens.is_none());
    }
}

/// The oracle is transformers 5.17: its defaults, which it wrote out.
#[test]
fn defaults_are_those_of_transformers() {
    let defaults = parse(include_str!("../../../../testdata/configs/defaults-transformers5.json")).unwrap();
    let bare = parse(r#"{"model_type": "llama4", "text_config": {}, "vision_config": {}}"#).unwrap();
    assert_eq!(bare.text, defaults.text);
    assert_eq!(bare.vision, defaults.vision);
    assert_eq!(bare.image_tokens, defaults.image_tokens);
    let without = parse(r#"{"model_type": "llama4", "text_config": {}}"#).unwrap();
    assert_eq!(without.vision, defaults.vision);
}

#[test]
fn spellings_that_mean_the_same() {
    let scout = parse(SCOUT).unwrap();
    let same = [
        ("/text_config/attn_temperature_tuning", "4"),
        ("/text_config/attn_temperature_tuning", "absent"),
        ("/text_config/floor_scale", "8192.0"),
        ("/text_config/no_rope_layers", "[]"),
        ("/text_config/no_rope_layers", "null"),
        ("/text_config/no_rope_layers", "absent"),
        ("/text_config/moe_layers", "null"),
        ("/text_config/head_dim", "null"),
        ("/text_config/rope_theta", "500000"),
        ("/text_config/rope_scaling/rope_type", "\"llama3\""),
        ("/vision_config/image_size", "[336, 336]"),
        ("/architectures", "absent"),
        ("/model_type", "absent"),
        ("/torch_dtype", "\"torch.bfloat16\""),
        ("/image_token_index", "absent"),
        ("/image_token_id", "200092"),
    ];
    for change in same {
        let changed = parse(&with(SCOUT, &[change])).unwrap();
        assert_eq!(changed.text, scout.text, "{change:?}");
        assert_eq!(changed.vision, scout.vision, "{change:?}");
        assert_eq!(changed.image_tokens, scout.image_tokens, "{change:?}");
        assert_eq!((changed.model, changed.dtype), (scout.model, scout.dtype), "{change:?}");
    }
    // `type` is the oldest spelling.
    let oldest = with(
        SCOUT,
        &[("/text_config/rope_scaling/rope_type", "absent"), ("/text_config/rope_scaling/type", "\"llama3\"")],
    );
    assert_eq!(parse(&oldest).unwrap().text.rope, scout.text.rope);
}

#[test]
fn switches_and_lists_are_taken_from_the_document() {
    let text = |changes: &[(&str, &str)]| parse(&with(SCOUT, changes)).unwrap().text;
    for off in ["false", "0", "0.0", "null"] {
        assert!(!text(&[("/text_config/attn_temperature_tuning", off)]).attn_temperature_tuning, "{off}");
    }
    assert_eq!(text(&[("/text_config/attention_chunk_size", "null")]).attention_chunk_size, None);
    assert_eq!(text(&[("/text_config/moe_layers", "[]")]).moe_layers, [false; 48]);
    let every_third =
        text(&[("/text_config/moe_layers", "absent"), ("/text_config/interleave_moe_layer_step", "3")]).moe_layers;
    // Python's `range(step - 1, layers, step)`.
    let expected: Vec<usize> = (2..48).step_by(3).collect();
    assert_eq!((0..48).filter(|layer| every_third[*layer]).collect::<Vec<_>>(), expected);
    let two = [
        ("/text_config/num_hidden_layers", "2"),
        ("/text_config/moe_layers", "[1]"),
        ("/text_config/no_rope_layers", "[0, 1]"),
    ];
    let both = text(&two);
    assert_eq!((both.moe_layers, both.rope_layers), (vec![false, true], vec![false, true]));
    assert_eq!(both.chunked_layers, [false, true]);
    let types = ("/text_config/layer_types", r#"["chunked_attention", "full_attention"]"#);
    assert_eq!(text(&[two[0], two[1], two[2], types]).chunked_layers, [true, false]);

    let text = |change| text(&[change]);
    assert_eq!(text(("/text_config/num_key_value_heads", "null")).num_key_value_heads, 40);
    assert_eq!(text(("/text_config/eos_token_id", "7")).eos_token_id, [7]);
    assert!(text(("/text_config/eos_token_id", "null")).eos_token_id.is_empty());
    assert_eq!(text(("/text_config/pad_token_id", "-1")).pad_token_id, None);
    let theta = text(("/text_config/rope_scaling", r#"{"rope_type":"default","rope_theta":10000.0}"#)).rope;
    assert_eq!(theta, Rope { theta: 10_000.0, scaling: None });
}

#[test]
fn the_output_keeps_the_document() {
    let published = with(
        SCOUT,
        &[("/text_config/attn_temperature_tuning", "4"), ("/text_config/floor_scale", "8192.0"), ("/x_unknown", "[1]")],
    );
    let config = parse(&published).unwrap();
    let output = config.output_document(None);
    // Scout's file has the two fields as they should be: apart from the unknown field, that is the result, in the same order.
    let expected = with(SCOUT, &[("/x_unknown", "[1]")]);
    assert_eq!(output.to_string(), expected);

    let quantized = config.output_document(Some(serde_json::json!({"quant_method": "x"})));
    let keys: Vec<&String> = quantized.as_object().unwrap().keys().collect();
    assert_eq!(keys.last().unwrap().as_str(), "quantization_config");
    assert_eq!(keys.len(), config.document().len() + 1);

    // In place of the one that was there; removed without moving another field.
    let again = parse(&with(&quantized.to_string(), &[("/last", "1")])).unwrap();
    assert_eq!(again.quantization, Some(serde_json::json!({"quant_method": "x"})));
    let replaced = again.output_document(Some(Value::Null));
    assert_eq!(replaced.as_object().unwrap().keys().collect::<Vec<_>>(), again.document().keys().collect::<Vec<_>>());
    let removed = again.output_document(None);
    assert_eq!(removed.to_string(), with(&expected, &[("/last", "1")]));
}

#[test]
fn the_output_of_a_text_only_model_is_flat() {
    let text_only = include_str!("../../../../testdata/configs/scout-text-only-transformers5.json");
    let published = with(text_only, &[("/attn_temperature_tuning", "0"), ("/floor_scale", "96.0")]);
    let output = parse(&published).unwrap().output_document(None);
    assert_eq!(output.to_string(), with(text_only, &[("/attn_temperature_tuning", "false"), ("/floor_scale", "96")]));
}
