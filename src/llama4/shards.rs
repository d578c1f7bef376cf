//! Weights in rank shards: which dimension of a weight is divided among the ranks of tensor parallelism.
//!
//! The rules are those by which Meta divides its checkpoints (`models/checkpoint.py` of llama-models, and the table in transformers'
//! `convert_llama4_weights_to_hf.py`) and by which vLLM divides them while it loads: outputs of what fans out, inputs of what
//! fans in, whole heads, rows of the vocabulary; norms and routers are on every rank. Knows names and shapes; knows no file.

use super::names::{Part, Role};
use crate::quant::scheme::Scheme;

/// Key of a file's metadata: which rank it is, from 0.
pub const RANK_KEY: &str = "l4tool.rank";
/// Key of a file's metadata: how many ranks there are.
pub const RANKS_KEY: &str = "l4tool.ranks";
/// Key of a file's metadata: a digest of a sample of the model.
pub const MODEL_KEY: &str = "l4tool.model";

/// How a weight is divided among ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Every rank has all of it.
    Whole,
    /// Each rank has a range of outputs: rows of `[out, in]`.
    Outputs,
    /// Each rank has a range of inputs: columns of `[out, in]`, or a range of a vector.
    Inputs,
}

/// How the weight with this role and logical name is divided.
pub fn cut(role: Role, name: &str) -> Cut {
    match role {
        Role::Embedding | Role::LmHead | Role::Projector => Cut::Outputs,
        Role::Query | Role::Key | Role::Value => Cut::Outputs,
        Role::SharedGate | Role::SharedUp | Role::ExpertGate | Role::ExpertUp | Role::DenseGate | Role::DenseUp => {
            Cut::Outputs
        }
        Role::AttentionOutput | Role::SharedDown | Role::ExpertDown | Role::DenseDown => Cut::Inputs,
        Role::InputNorm | Role::PostAttentionNorm | Role::FinalNorm | Role::Router => Cut::Whole,
        // The bias of what fans in is added once, after the sum over ranks.
        Role::AttentionBias if name.contains(".o_proj.") => Cut::Whole,
        Role::AttentionBias => Cut::Inputs,
        Role::Vision => vision(name),
    }
}

fn vision(name: &str) -> Cut {
    let is_bias = name.ends_with(".bias");
    let module = name.strip_suffix(".bias").unwrap_or(name);
    let any = |endings: &[&str]| endings.iter().any(|ending| module.ends_with(ending));
    if any(&[".q_proj", ".k_proj", ".v_proj", ".fc1", "patch_embedding.linear"]) {
        if is_bias { Cut::Inputs } else { Cut::Outputs }
    } else if any(&[".o_proj", ".fc2"]) && !is_bias {
        Cut::Inputs
    } else {
        Cut::Whole
    }
}

/// The shape of one of `ranks` equal parts; `None` if they are not equal.
pub fn part_shape(cut: Cut, shape: &[usize], ranks: usize) -> Option<Vec<usize>> {
    let mut part = shape.to_vec();
    let dimension = match cut {
        Cut::Whole => return Some(part),
        Cut::Outputs => part.first_mut()?,
        Cut::Inputs => part.last_mut()?,
    };
    if !dimension.is_multiple_of(ranks) {
        return None;
    }
    *dimension /= ranks;
    Some(part)
}

/// How one tensor of a weight is divided if the weight is: along its rows, its columns, or not at all.
pub fn tensor_cut(cut: Cut, part: Part, scheme: Option<Scheme>) -> Cut {
    match (part, scheme) {
        (Part::Shape | Part::InputScale, _) => Cut::Whole,
        // One scale for the matrix.
        (Part::Scale, Some(Scheme::Fp8Tensor { .. })) => Cut::Whole,
        // A scale for each output covers all inputs.
        (Part::Scale, Some(Scheme::Fp8Dynamic)) if cut == Cut::Inputs => Cut::Whole,
        _ => cut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The per-rank shapes of Meta's Scout on eight ranks.
    #[test]
    fn parts_have_the_shapes_of_metas_ranks() {
        for (role, name, whole, part) in [
            (Role::Embedding, "embed_tokens", vec![202_048, 5120], vec![25_256, 5120]),
            (Role::Query, "layers.0.self_attn.q_proj", vec![5120, 5120], vec![640, 5120]),
            (Role::Key, "layers.0.self_attn.k_proj", vec![1024, 5120], vec![128, 5120]),
            (Role::AttentionOutput, "layers.0.self_attn.o_proj", vec![5120, 5120], vec![5120, 640]),
            (Role::SharedDown, "layers.0.feed_forward.shared_expert.down_proj", vec![5120, 8192], vec![5120, 1024]),
            (Role::DenseGate, "layers.0.feed_forward.gate_proj", vec![16_384, 5120], vec![2048, 5120]),
            (Role::FinalNorm, "norm", vec![5120], vec![5120]),
            (Role::Vision, "vision_model.patch_embedding.linear", vec![1408, 588], vec![176, 588]),
            (Role::Vision, "vision_model.model.layers.3.self_attn.q_proj.bias", vec![1408], vec![176]),
            (Role::Vision, "vision_model.model.layers.3.self_attn.o_proj.bias", vec![1408], vec![1408]),
            (Role::Vision, "vision_model.model.layers.3.mlp.fc1", vec![5632, 1408], vec![704, 1408]),
            (Role::Vision, "vision_model.model.layers.3.mlp.fc2", vec![1408, 5632], vec![1408, 704]),
            (Role::Vision, "vision_model.vision_adapter.mlp.fc1", vec![4096, 5632], vec![512, 5632]),
            (Role::Vision, "vision_model.vision_adapter.mlp.fc2", vec![4096, 4096], vec![4096, 512]),
            (Role::Vision, "vision_model.class_embedding", vec![1408], vec![1408]),
            (Role::Projector, "multi_modal_projector.linear_1", vec![5120, 4096], vec![640, 4096]),
        ] {
            assert_eq!(part_shape(cut(role, name), &whole, 8), Some(part), "{name}");
        }
        assert_eq!(part_shape(Cut::Outputs, &[10, 4], 4), None);
    }
}
