//! The word for every field that cannot be, and for documents that are something else.

use super::*;

/// Changes to Scout's config, and the message after the file's name.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "/text_config/hidden_size",
        "0",
        ", field `text_config.hidden_size`: `0` is not a whole number from 1 to 16777216",
    ),
    (
        "/text_config/hidden_size",
        "-5120",
        ", field `text_config.hidden_size`: `-5120` is not a whole number from 1 to 16777216",
    ),
    (
        "/text_config/hidden_size",
        "5120.5",
        ", field `text_config.hidden_size`: `5120.5` is not a whole number from 1 to 16777216",
    ),
    (
        "/text_config/hidden_size",
        "\"5120\"",
        ", field `text_config.hidden_size`: `\"5120\"` is not a whole number from 1 to 16777216",
    ),
    (
        "/text_config/intermediate_size",
        "1e300",
        ", field `text_config.intermediate_size`: `1e+300` is not a whole number from 1 to 16777216",
    ),
    (
        "/text_config/num_hidden_layers",
        "4097",
        ", field `text_config.num_hidden_layers`: `4097` is not a whole number from 1 to 4096",
    ),
    (
        "/text_config/num_hidden_layers",
        "47",
        ", field `text_config.no_rope_layers`: 48 entries, and there are 47 layers",
    ),
    (
        "/text_config/num_local_experts",
        "65537",
        ", field `text_config.num_local_experts`: `65537` is not a whole number from 1 to 2730",
    ),
    (
        "/text_config/num_experts_per_tok",
        "17",
        ", field `text_config.num_experts_per_tok`: `17` is not a whole number from 1 to 16",
    ),
    (
        "/text_config/num_key_value_heads",
        "7",
        ", field `text_config.num_key_value_heads`: `7` does not divide `num_attention_heads`, 40",
    ),
    (
        "/text_config/head_dim",
        "16777216",
        ", field `text_config.head_dim`: `16777216` times 40 heads is more than 16777216",
    ),
    ("/text_config/head_dim", "127", ", field `text_config.head_dim`: `127` is odd"),
    (
        "/text_config/moe_layers",
        "[1, 48]",
        ", field `text_config.moe_layers`: names layer `48`, and there are 48 layers",
    ),
    ("/text_config/moe_layers", "[-1]", ", field `text_config.moe_layers`: entry `-1` is not the number of a layer"),
    ("/text_config/moe_layers", "3", ", field `text_config.moe_layers`: `3` is not a list"),
    (
        "/text_config/interleave_moe_layer_step",
        "0",
        ", field `text_config.interleave_moe_layer_step`: `0` is not a whole number from 1 to 4096",
    ),
    (
        "/text_config/no_rope_layers",
        "[1, 0]",
        ", field `text_config.no_rope_layers`: 2 entries, and there are 48 layers",
    ),
    ("/text_config/no_rope_layers", "[2]", ", field `text_config.no_rope_layers`: entry `2` is not 0 or 1"),
    (
        "/text_config/layer_types",
        "[\"sliding_attention\"]",
        ", field `text_config.layer_types`: entry `\"sliding_attention\"` is not `chunked_attention` or `full_attention`",
    ),
    (
        "/text_config/floor_scale",
        "0",
        ", field `text_config.floor_scale`: `0` is not a whole number from 1 to 1099511627776",
    ),
    (
        "/text_config/floor_scale",
        "8192.5",
        ", field `text_config.floor_scale`: `8192.5` is not a whole number from 1 to 1099511627776",
    ),
    ("/text_config/rms_norm_eps", "0", ", field `text_config.rms_norm_eps`: `0` is not a finite number above 0"),
    ("/text_config/use_qk_norm", "1", ", field `text_config.use_qk_norm`: `1` is not true or false"),
    (
        "/text_config/attn_temperature_tuning",
        "\"yes\"",
        ", field `text_config.attn_temperature_tuning`: `\"yes\"` is not true, false or a number",
    ),
    ("/text_config/bos_token_id", "4294967296", ", field `text_config.bos_token_id`: `4294967296` is not a token id"),
    ("/text_config/eos_token_id", "[1, \"x\"]", ", field `text_config.eos_token_id`: entry `\"x\"` is not a token id"),
    (
        "/text_config/rope_scaling",
        "{\"rope_type\": \"yarn\"}",
        ", field `text_config.rope_scaling.rope_type`: `yarn` is not known for Llama 4, which has `default` and `llama3`",
    ),
    ("/text_config/rope_scaling/factor", "absent", ", field `text_config.rope_scaling.factor`: missing"),
    (
        "/text_config/rope_scaling/factor",
        "-8.0",
        ", field `text_config.rope_scaling.factor`: `-8.0` is not a finite number above 0",
    ),
    (
        "/text_config/rope_parameters",
        "{\"partial_rotary_factor\": 0.5}",
        ", field `text_config.rope_parameters.partial_rotary_factor`: `0.5`; Llama 4 rotates the whole head",
    ),
    ("/text_config/rope_scaling", "8", ", field `text_config.rope_scaling`: `8` is not an object"),
    ("/text_config", "[]", ", field `text_config`: `[]` is not an object"),
    ("/text_config", "absent", ", field `text_config`: missing"),
    (
        "/vision_config/num_attention_heads",
        "17",
        ", field `vision_config.num_attention_heads`: `17` does not divide `hidden_size`, 1408",
    ),
    ("/vision_config/image_size", "[336, 448]", ", field `vision_config.image_size`: `[336, 448]` is not a square"),
    (
        "/vision_config/image_size",
        "337",
        ", field `vision_config.image_size`: `337` is not a multiple of `patch_size`, 14",
    ),
    ("/vision_config/patch_size", "0", ", field `vision_config.patch_size`: `0` is not a whole number from 1 to 65536"),
    ("/vision_config/pixel_shuffle_ratio", "1.5", ", field `vision_config.pixel_shuffle_ratio`: `1.5` is more than 1"),
    ("/architectures", "[\"MixtralForCausalLM\"]", ": a `llama4` model (`MixtralForCausalLM`), not Llama 4"),
    ("/model_type", "\"mi\\u001bxtral\"", ": a `mi\\u{1b}xtral` model (`Llama4ForConditionalGeneration`), not Llama 4"),
    ("/architectures", "\"x\"", ", field `architectures`: `\"x\"` is not a list"),
];

#[test]
fn every_wrong_field_is_refused_by_name() {
    for (pointer, value, expected) in REFUSED {
        let error = parse(&with(SCOUT, &[(pointer, value)])).unwrap_err();
        assert_eq!(error.to_string(), format!("`config.json`{expected}"), "{pointer} {value}");
    }
}

#[test]
fn other_documents_are_said_to_be_what_they_are() {
    let error = |json: &str| parse(json).unwrap_err();
    let mixtral = error(r#"{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 4096}"#);
    assert_eq!(mixtral.to_string(), "`config.json`: a `mixtral` model (`MixtralForCausalLM`), not Llama 4");
    assert!(mixtral.hint.unwrap().contains("Llama4ForCausalLM"));
    assert_eq!(error(r#"{"model_type": "llama"}"#).to_string(), "`config.json`: a `llama` model, not Llama 4");
    let nothing = "`config.json`: neither `model_type` nor `architectures` says what model this is";
    assert_eq!(error("{}").to_string(), nothing);
    assert_eq!(error("[]").to_string(), "`config.json`: not a JSON object");
    assert_eq!(error("").to_string(), "`config.json`: not JSON: EOF while parsing a value at line 1 column 0");
    let deep = format!(r#"{{"a":{}}}"#, "[".repeat(100_000));
    assert!(error(&deep).to_string().starts_with("`config.json`: not JSON: recursion limit exceeded"));
}
