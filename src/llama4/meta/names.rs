//! Meta's names: which keys hold a weight, how it lies there, and how ranks divide it.
//!
//! Source: transformers' `convert_llama4_weights_to_hf.py` at 07497505 (key mapping, `get_concat_dim`,
//! `is_param_same_across_shards`) and llama-models at a9c89c47, `models/llama4/moe.py`, `models/checkpoint.py`.

use crate::llama4::{Expected, Role};

/// How the ranks divide a matrix `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    /// Every rank has all of it.
    Replicated,
    /// Outputs: every rank has some rows. For a vector, its elements.
    Outs,
    /// Inputs.
    Ins,
}

/// Which part of a rank's tensor is the rank's piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// All of it, `[out, in]`.
    Whole,
    /// All of it, `[in, out]`.
    Transposed,
    /// One of the two halves of its rows.
    Half(usize),
    /// Rows of the query, the key or the value.
    Attention(usize),
    /// One expert of `[experts * in, out]`.
    Expert,
}

/// A place where a weight may be.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) key: String,
    pub(super) split: Split,
    pub(super) take: Take,
}

/// Whether a key is known to hold no weight: tables that every program computes itself, statistics of training, and states
/// of layers that only their own library reads.
pub(super) fn is_ignored(key: &str) -> bool {
    let endings =
        ["._extra_state", ".expert_activation_DE", ".global_gate_stats_3E", ".running_gate_stats_3E", "freqs_cis"];
    matches!(key, "rope.freqs" | "freq_cis") || endings.iter().any(|ending| key.ends_with(ending))
}

/// The keys that may hold a weight, the usual one first.
pub(super) fn places(wanted: &Expected) -> Vec<Place> {
    let place = |key: String, split, take| vec![Place { key, split, take }];
    if wanted.role == Role::Vision {
        return vision(&wanted.name, wanted.shape.len() == 1).into_iter().collect();
    }
    let Some(layer) = wanted.layer else {
        return match wanted.role {
            Role::Embedding => place("tok_embeddings.weight".into(), Split::Outs, Take::Whole),
            Role::LmHead => place("output.weight".into(), Split::Outs, Take::Whole),
            Role::FinalNorm => place("norm.weight".into(), Split::Replicated, Take::Whole),
            Role::Projector => place("vision_projection.weight".into(), Split::Outs, Take::Whole),
            _ => Vec::new(),
        };
    };
    let mut places = Vec::new();
    let mut add = |module: &str, split, take| {
        places.push(Place { key: format!("layers.{layer}.{module}"), split, take });
    };
    let (outs, ins, all) = (Split::Outs, Split::Ins, Split::Replicated);
    match wanted.role {
        Role::InputNorm => {
            add("attention.wqkv.layer_norm_weight", all, Take::Whole);
            add("attention_norm.weight", all, Take::Whole);
        }
        Role::Query => {
            add("attention.wqkv.weight", outs, Take::Attention(0));
            add("attention.wq.weight", outs, Take::Whole);
        }
        Role::Key => {
            add("attention.wqkv.weight", outs, Take::Attention(1));
            add("attention.wk.weight", outs, Take::Whole);
        }
        Role::Value => {
            add("attention.wqkv.weight", outs, Take::Attention(2));
            add("attention.wv.weight", outs, Take::Whole);
        }
        Role::AttentionOutput => add("attention.wo.weight", ins, Take::Whole),
        Role::PostAttentionNorm => {
            add("feed_forward.norm.weight", all, Take::Whole);
            add("feed_forward.mlp.layer_norm_weight", all, Take::Whole);
            add("feed_forward.mlp.layer_norm.weight", all, Take::Whole);
            add("ffn_norm.weight", all, Take::Whole);
        }
        Role::Router => add("feed_forward.router_DE", all, Take::Transposed),
        Role::SharedGate => add("feed_forward.w_in_shared_FD.weight", outs, Take::Whole),
        Role::SharedUp => add("feed_forward.w_swiglu_FD.weight", outs, Take::Whole),
        Role::SharedDown => add("feed_forward.w_out_shared_DF.weight", ins, Take::Whole),
        Role::ExpertGate => add("feed_forward.experts.moe_w_in_eD_F", outs, Take::Expert),
        Role::ExpertUp => add("feed_forward.experts.moe_w_swiglu_eD_F", outs, Take::Expert),
        Role::ExpertDown => add("feed_forward.experts.moe_w_out_eF_D", ins, Take::Expert),
        Role::DenseGate => {
            add("feed_forward.mlp.fc1_weight", outs, Take::Half(0));
            add("feed_forward.w1.weight", outs, Take::Whole);
        }
        Role::DenseUp => {
            add("feed_forward.mlp.fc1_weight", outs, Take::Half(1));
            add("feed_forward.w3.weight", outs, Take::Whole);
        }
        Role::DenseDown => {
            add("feed_forward.mlp.fc2_weight", ins, Take::Whole);
            add("feed_forward.w2.weight", ins, Take::Whole);
        }
        _ => {}
    }
    places
}

/// The keys that may hold the FP8 scales of an expert's weight, which `quantize.py` writes beside it.
pub(super) fn scale_keys(wanted: &Expected, key: &str) -> [String; 2] {
    let short = match wanted.role {
        Role::ExpertGate => "w1",
        Role::ExpertUp => "w3",
        _ => "w2",
    };
    let folder = key.rsplit_once('.').map_or("", |(folder, _)| folder);
    [key.to_owned(), format!("{folder}.{short}")]
}

/// Modules of a vision layer: ours, Meta's, and how the ranks divide matrix and bias.
const VISION_MODULES: [(&str, &str, Split, Split); 8] = [
    ("input_layernorm", "ln_1", Split::Replicated, Split::Replicated),
    ("post_attention_layernorm", "ln_2", Split::Replicated, Split::Replicated),
    ("self_attn.q_proj", "attn.wq", Split::Outs, Split::Outs),
    ("self_attn.k_proj", "attn.wk", Split::Outs, Split::Outs),
    ("self_attn.v_proj", "attn.wv", Split::Outs, Split::Outs),
    ("self_attn.o_proj", "attn.wo", Split::Ins, Split::Replicated),
    ("mlp.fc1", "mlp.c_fc", Split::Outs, Split::Outs),
    ("mlp.fc2", "mlp.c_proj", Split::Ins, Split::Replicated),
];

/// Modules of the vision tower that are not in a layer.
const VISION_TOP: [(&str, &str, Split); 7] = [
    ("class_embedding", "vision_encoder.class_embedding", Split::Replicated),
    ("positional_embedding_vlm", "vision_encoder.positional_embedding_vlm", Split::Replicated),
    ("patch_embedding.linear", "vision_encoder.conv1._linear.weight", Split::Outs),
    ("layernorm_pre", "vision_encoder.ln_pre", Split::Replicated),
    ("layernorm_post", "vision_encoder.ln_post", Split::Replicated),
    ("vision_adapter.mlp.fc1", "vision_adapter.mlp.c_fc.weight", Split::Outs),
    ("vision_adapter.mlp.fc2", "vision_adapter.mlp.c_proj.weight", Split::Ins),
];

fn vision(name: &str, is_vector: bool) -> Option<Place> {
    let name = name.strip_prefix("vision_model.")?;
    let (module, is_bias) = name.strip_suffix(".bias").map_or((name, false), |module| (module, true));
    let suffix = if is_bias { "bias" } else { "weight" };
    if let Some((layer, module)) = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        let (_, theirs, matrix, bias) = VISION_MODULES.iter().find(|(ours, ..)| *ours == module)?;
        let key = format!("vision_embeddings.vision_encoder.transformer.resblocks.{layer}.{theirs}.{suffix}");
        return Some(Place { key, split: if is_bias { *bias } else { *matrix }, take: Take::Whole });
    }
    let (ours, theirs, split) = VISION_TOP.iter().find(|(ours, ..)| *ours == module)?;
    let is_norm = is_vector && ours.starts_with("layernorm");
    let key = format!("vision_embeddings.{theirs}{}", if is_norm { format!(".{suffix}") } else { String::new() });
    Some(Place { key, split: *split, take: Take::Whole })
}
