//! llama.cpp's names of weights, in both directions: the text model's by role and layer, the vision part's by logical name.
//!
//! Knows no shape and no file. A tensor of experts holds those of a whole layer. Logical names are those of
//! [`names`](crate::llama4::names).

use crate::llama4::names::Role;

/// Divisors of the rotary frequencies, F32 `[head_dim / 2]`; only where the rope is scaled, and no weight of the model.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Tensors beside the layers.
const BESIDE: [(&str, Role); 3] =
    [("token_embd.weight", Role::Embedding), ("output_norm.weight", Role::FinalNorm), ("output.weight", Role::LmHead)];

/// Tensors of a layer, between `blk.N.` and `.weight`.
const LAYER: [(&str, Role); 16] = [
    ("attn_norm", Role::InputNorm),
    ("attn_q", Role::Query),
    ("attn_k", Role::Key),
    ("attn_v", Role::Value),
    ("attn_output", Role::AttentionOutput),
    ("ffn_norm", Role::PostAttentionNorm),
    ("ffn_gate_inp", Role::Router),
    ("ffn_gate_shexp", Role::SharedGate),
    ("ffn_up_shexp", Role::SharedUp),
    ("ffn_down_shexp", Role::SharedDown),
    ("ffn_gate_exps", Role::ExpertGate),
    ("ffn_up_exps", Role::ExpertUp),
    ("ffn_down_exps", Role::ExpertDown),
    ("ffn_gate", Role::DenseGate),
    ("ffn_up", Role::DenseUp),
    ("ffn_down", Role::DenseDown),
];

/// Tensors of the vision part beside its layers, with their logical names.
const VISION_BESIDE: [(&str, &str); 10] = [
    ("v.class_embd", "vision_model.class_embedding"),
    ("v.patch_embd.weight", "vision_model.patch_embedding.linear"),
    ("v.position_embd.weight", "vision_model.positional_embedding_vlm"),
    ("v.pre_ln.weight", "vision_model.layernorm_pre"),
    ("v.pre_ln.bias", "vision_model.layernorm_pre.bias"),
    ("v.post_ln.weight", "vision_model.layernorm_post"),
    ("v.post_ln.bias", "vision_model.layernorm_post.bias"),
    ("mm.model.mlp.1.weight", "vision_model.vision_adapter.mlp.fc1"),
    ("mm.model.mlp.2.weight", "vision_model.vision_adapter.mlp.fc2"),
    ("mm.model.fc.weight", "multi_modal_projector.linear_1"),
];

/// Modules of a vision layer, between `v.blk.N.` and `.weight` or `.bias`, and between `vision_model.model.layers.N.` and the same.
const VISION_LAYER: [(&str, &str); 8] = [
    ("ln1", "input_layernorm"),
    ("ln2", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_out", "self_attn.o_proj"),
    ("ffn_up", "mlp.fc1"),
    ("ffn_down", "mlp.fc2"),
];

/// What llama.cpp's converter calls `ln2` at present: Gemma 4's entry for the same Hugging Face name wins over Llama 4's in its
/// table. llama.cpp loads such a file without a word, and computes something else with it.
const MISNAMED_LN2: &str = "attn_post_norm";

/// The tensor that holds a weight of the text model: of the experts' roles, all experts of the layer.
///
/// # Panics
/// If the role is none of the text model's, an attention bias, or comes without the layer that it belongs to.
pub fn text_name(role: Role, layer: Option<usize>) -> String {
    if let Some((name, _)) = BESIDE.iter().find(|entry| entry.1 == role) {
        return (*name).to_owned();
    }
    let (module, _) = LAYER.iter().find(|entry| entry.1 == role).expect("the text model's roles have names");
    format!("blk.{}.{module}.weight", layer.expect("these roles belong to a layer"))
}

/// What a tensor of the text model is: its role and its layer; `None` for any other name.
pub fn text_role(name: &str) -> Option<(Role, Option<usize>)> {
    if let Some((_, role)) = BESIDE.iter().find(|entry| entry.0 == name) {
        return Some((*role, None));
    }
    let (layer, module) = numbered(name.strip_prefix("blk.")?.strip_suffix(".weight")?)?;
    let (_, role) = LAYER.iter().find(|entry| entry.0 == module)?;
    Some((*role, Some(layer)))
}

/// The tensor that holds a weight of the vision model or the projector, by its logical name.
pub fn vision_name(logical: &str) -> Option<String> {
    if let Some((name, _)) = VISION_BESIDE.iter().find(|entry| entry.1 == logical) {
        return Some((*name).to_owned());
    }
    let (layer, parameter) = numbered(logical.strip_prefix("vision_model.model.layers.")?)?;
    let (module, suffix) = parameter.strip_suffix(".bias").map_or((parameter, "weight"), |module| (module, "bias"));
    let (ours, _) = VISION_LAYER.iter().find(|entry| entry.1 == module)?;
    Some(format!("v.blk.{layer}.{ours}.{suffix}"))
}

/// The logical name of a tensor of the vision model or the projector; `None` for any other name. Also takes the wrong name
/// that [`is_misnamed`] tells.
pub fn vision_logical(name: &str) -> Option<String> {
    if let Some((_, logical)) = VISION_BESIDE.iter().find(|entry| entry.0 == name) {
        return Some((*logical).to_owned());
    }
    let (layer, parameter) = numbered(name.strip_prefix("v.blk.")?)?;
    let (module, suffix) = parameter.rsplit_once('.')?;
    let module = if module == MISNAMED_LN2 { "ln2" } else { module };
    let (_, module) = VISION_LAYER.iter().find(|entry| entry.0 == module)?;
    match suffix {
        "weight" => Some(format!("vision_model.model.layers.{layer}.{module}")),
        "bias" => Some(format!("vision_model.model.layers.{layer}.{module}.bias")),
        _ => None,
    }
}

/// Whether a vision tensor has the name under which llama.cpp normalizes the attention's output instead of the feed-forward's input.
pub fn is_misnamed(name: &str) -> bool {
    let module = name.strip_prefix("v.blk.").and_then(numbered).and_then(|(_, rest)| rest.rsplit_once('.'));
    module.is_some_and(|(module, _)| module == MISNAMED_LN2)
}

/// Splits `7.rest`; `None` if the number is not written as a program writes it.
fn numbered(text: &str) -> Option<(usize, &str)> {
    let (digits, rest) = text.split_once('.')?;
    let number = digits.parse::<usize>().ok().filter(|number| number.to_string() == digits)?;
    Some((number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_text_model_go_both_ways() {
        for (name, role) in BESIDE {
            assert_eq!(text_name(role, None), name);
            assert_eq!(text_role(name), Some((role, None)));
        }
        for (module, role) in LAYER {
            let name = text_name(role, Some(17));
            assert_eq!(name, format!("blk.17.{module}.weight"));
            assert_eq!(text_role(&name), Some((role, Some(17))));
        }
        for foreign in
            [ROPE_FACTORS, "blk.07.attn_q.weight", "blk.7.attn_q.bias", "blk.7.ln1.weight", "blk..attn_q.weight"]
        {
            assert_eq!(text_role(foreign), None, "{foreign}");
        }
    }

    /// The left column is what `convert_hf_to_gguf.py --mmproj` of llama.cpp wrote, the right one the tensor that it read.
    #[test]
    fn names_of_the_vision_part_go_both_ways() {
        for (name, logical) in [
            ("v.class_embd", "vision_model.class_embedding"),
            ("v.blk.0.attn_out.bias", "vision_model.model.layers.0.self_attn.o_proj.bias"),
            ("v.blk.33.ffn_up.weight", "vision_model.model.layers.33.mlp.fc1"),
            ("v.blk.2.ln1.bias", "vision_model.model.layers.2.input_layernorm.bias"),
            ("v.blk.2.ln2.weight", "vision_model.model.layers.2.post_attention_layernorm"),
            ("mm.model.fc.weight", "multi_modal_projector.linear_1"),
        ] {
            assert_eq!(vision_name(logical).as_deref(), Some(name));
            assert_eq!(vision_logical(name).as_deref(), Some(logical));
            assert!(!is_misnamed(name));
        }
        let wrong = "v.blk.2.attn_post_norm.bias";
        assert!(is_misnamed(wrong));
        assert_eq!(vision_logical(wrong).as_deref(), Some("vision_model.model.layers.2.post_attention_layernorm.bias"));
        assert_eq!(vision_name("vision_model.model.layers.x.mlp.fc1"), None);
        assert_eq!(vision_logical("v.blk.3.ffn_gate.weight"), None);
    }

    /// Every weight that a Llama 4 config can promise for vision has a name.
    #[test]
    fn each_expected_vision_weight_has_a_name() {
        let config = include_bytes!("../../../testdata/tiny-scout/config.json");
        let config = crate::llama4::config::Config::parse(std::path::Path::new("config.json"), config);
        let config = config.expect("the committed config is one");
        for wanted in crate::llama4::expected(&config) {
            if matches!(wanted.role, Role::Vision | Role::Projector) {
                let name = vision_name(&wanted.name).unwrap_or_else(|| panic!("{} has no name", wanted.name));
                assert_eq!(vision_logical(&name), Some(wanted.name));
            } else {
                assert_eq!(text_role(&text_name(wanted.role, wanted.layer)), Some((wanted.role, wanted.layer)));
            }
        }
    }
}
