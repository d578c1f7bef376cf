//! What a tensor's name says: which weight of the model it belongs to, and which part of it it is.
//!
//! Knows the names of Hugging Face checkpoints: fused BF16 experts, and one module per expert as compressed-tensors
//! stores them. It knows no shape and no file. Logical names are the per-expert module names without the prefix and
//! without `.weight`, whatever the container calls the tensor.

use std::fmt::Write as _;

use serde::Serialize;

use super::config::Model;

/// What a weight is for. The order is the order of a forward pass, which is also the order of output files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// `embed_tokens`, `[vocab, hidden]`.
    Embedding,
    /// `input_layernorm`, `[hidden]`.
    InputNorm,
    /// `self_attn.q_proj`, `[heads * head_dim, hidden]`.
    Query,
    /// `self_attn.k_proj`, `[kv_heads * head_dim, hidden]`.
    Key,
    /// `self_attn.v_proj`, `[kv_heads * head_dim, hidden]`.
    Value,
    /// `self_attn.o_proj`, `[hidden, heads * head_dim]`.
    AttentionOutput,
    /// A bias of one of the four attention projections; only with `attention_bias`.
    AttentionBias,
    /// `post_attention_layernorm`, `[hidden]`.
    PostAttentionNorm,
    /// `feed_forward.router`, `[experts, hidden]`.
    Router,
    /// `feed_forward.shared_expert.gate_proj`, `[intermediate, hidden]`.
    SharedGate,
    /// `feed_forward.shared_expert.up_proj`, `[intermediate, hidden]`.
    SharedUp,
    /// `feed_forward.shared_expert.down_proj`, `[hidden, intermediate]`.
    SharedDown,
    /// `feed_forward.experts.E.gate_proj`, `[intermediate, hidden]`.
    ExpertGate,
    /// `feed_forward.experts.E.up_proj`, `[intermediate, hidden]`.
    ExpertUp,
    /// `feed_forward.experts.E.down_proj`, `[hidden, intermediate]`.
    ExpertDown,
    /// `feed_forward.gate_proj` of a layer without experts, `[intermediate_mlp, hidden]`.
    DenseGate,
    /// `feed_forward.up_proj` of a layer without experts, `[intermediate_mlp, hidden]`.
    DenseUp,
    /// `feed_forward.down_proj` of a layer without experts, `[hidden, intermediate_mlp]`.
    DenseDown,
    /// `norm`, `[hidden]`.
    FinalNorm,
    /// `lm_head`, `[vocab, hidden]`.
    LmHead,
    /// Anything of `vision_model`.
    Vision,
    /// `multi_modal_projector.linear_1`, `[hidden, projector_input]`.
    Projector,
}

impl Role {
    /// The part of the model that counts are reported for.
    pub fn component(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::InputNorm | Self::PostAttentionNorm | Self::FinalNorm => "norms",
            Self::Query | Self::Key | Self::Value | Self::AttentionOutput | Self::AttentionBias => "attention",
            Self::Router => "router",
            Self::SharedGate | Self::SharedUp | Self::SharedDown => "shared_experts",
            Self::ExpertGate | Self::ExpertUp | Self::ExpertDown => "routed_experts",
            Self::DenseGate | Self::DenseUp | Self::DenseDown => "dense_ffn",
            Self::LmHead => "lm_head",
            Self::Vision => "vision",
            Self::Projector => "projector",
        }
    }

    /// Whether it belongs to one of a routed layer's experts.
    pub fn is_expert(self) -> bool {
        matches!(self, Self::ExpertGate | Self::ExpertUp | Self::ExpertDown)
    }

    /// Whether it is a feed-forward matrix: what is quantized unless the user says otherwise.
    pub fn is_feed_forward(self) -> bool {
        self.is_expert()
            || matches!(self, Self::SharedGate | Self::SharedUp | Self::SharedDown)
            || matches!(self, Self::DenseGate | Self::DenseUp | Self::DenseDown)
    }

    /// Whether it is one of the four attention projections.
    pub fn is_attention(self) -> bool {
        matches!(self, Self::Query | Self::Key | Self::Value | Self::AttentionOutput)
    }

    /// The module name inside a decoder layer (`self_attn.q_proj`), for roles that are one module of a layer and not
    /// of an expert.
    pub fn layer_module(self) -> Option<&'static str> {
        LAYER_MODULES.iter().find(|(_, role)| *role == self).map(|(module, _)| *module)
    }

    /// `gate_proj`, `up_proj` or `down_proj` of an expert.
    pub fn expert_module(self) -> Option<&'static str> {
        EXPERT_MODULES.iter().find(|(_, role)| *role == self).map(|(module, _)| *module)
    }
}

/// Modules of a decoder layer by role, as `transformers` names them (`models/llama4/modeling_llama4.py`).
const LAYER_MODULES: [(&str, Role); 13] = [
    ("input_layernorm", Role::InputNorm),
    ("self_attn.q_proj", Role::Query),
    ("self_attn.k_proj", Role::Key),
    ("self_attn.v_proj", Role::Value),
    ("self_attn.o_proj", Role::AttentionOutput),
    ("post_attention_layernorm", Role::PostAttentionNorm),
    ("feed_forward.router", Role::Router),
    ("feed_forward.shared_expert.gate_proj", Role::SharedGate),
    ("feed_forward.shared_expert.up_proj", Role::SharedUp),
    ("feed_forward.shared_expert.down_proj", Role::SharedDown),
    ("feed_forward.gate_proj", Role::DenseGate),
    ("feed_forward.up_proj", Role::DenseUp),
    ("feed_forward.down_proj", Role::DenseDown),
];

/// Modules of one expert by role.
const EXPERT_MODULES: [(&str, Role); 3] =
    [("gate_proj", Role::ExpertGate), ("up_proj", Role::ExpertUp), ("down_proj", Role::ExpertDown)];

/// The logical name of a weight of the text model.
///
/// `role` must not be [`Role::Vision`] or [`Role::AttentionBias`], whose names a role alone does not tell.
pub fn logical_name(role: Role, layer: Option<usize>, expert: Option<usize>) -> String {
    match (role, layer, expert) {
        (Role::Embedding, ..) => "embed_tokens".into(),
        (Role::FinalNorm, ..) => "norm".into(),
        (Role::LmHead, ..) => "lm_head".into(),
        (Role::Projector, ..) => "multi_modal_projector.linear_1".into(),
        (_, Some(layer), Some(expert)) => {
            let module = role.expert_module().expect("only experts' roles come with an expert");
            format!("layers.{layer}.feed_forward.experts.{expert}.{module}")
        }
        (_, Some(layer), None) => {
            format!("layers.{layer}.{}", role.layer_module().expect("a role of a layer has a module"))
        }
        (role, None, _) => unreachable!("{role:?} belongs to a layer"),
    }
}

/// Which part of a weight a physical tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// `.weight`, or a parameter without a suffix.
    Weight,
    /// `.weight_packed`: INT4 codes.
    Packed,
    /// `.weight_scale`.
    Scale,
    /// `.weight_zero_point`.
    ZeroPoint,
    /// `.weight_shape`: the logical shape of packed codes.
    Shape,
    /// `.weight_g_idx`: which group each input is in, as older GPTQ checkpoints in activation order have it.
    GroupIndex,
    /// `.input_scale`: scale of the activations.
    InputScale,
    /// `experts.gate_up_proj` of all experts, `[E, in, 2 * out]`: gate columns, then up columns.
    FusedGateUp,
    /// `experts.down_proj` of all experts, `[E, in, out]`.
    FusedDown,
    /// `experts.gate_up_proj_weight_scale`, as ModelOpt stores it.
    FusedGateUpScale,
    /// `experts.down_proj_weight_scale`.
    FusedDownScale,
    /// `experts.gate_up_proj_input_scale`.
    FusedGateUpInputScale,
    /// `experts.down_proj_input_scale`.
    FusedDownInputScale,
    /// `k_scale` or `v_scale`: for a key-value cache in FP8, of no meaning for weights.
    CacheScale,
}

/// Tensors of all experts of a layer together.
const FUSED: [(&str, Part); 6] = [
    (".gate_up_proj", Part::FusedGateUp),
    (".down_proj", Part::FusedDown),
    (".gate_up_proj_weight_scale", Part::FusedGateUpScale),
    (".down_proj_weight_scale", Part::FusedDownScale),
    (".gate_up_proj_input_scale", Part::FusedGateUpInputScale),
    (".down_proj_input_scale", Part::FusedDownInputScale),
];

/// Suffixes of the tensors that make up one module (compressed-tensors 0.19, `compressors/*/base.py`).
const SUFFIXES: [(&str, Part); 7] = [
    (".weight", Part::Weight),
    (".weight_packed", Part::Packed),
    (".weight_scale", Part::Scale),
    (".weight_zero_point", Part::ZeroPoint),
    (".weight_shape", Part::Shape),
    (".weight_g_idx", Part::GroupIndex),
    (".input_scale", Part::InputScale),
];

impl Part {
    /// The suffix of the physical name, with its dot; fused tensors have none.
    pub fn suffix(self) -> &'static str {
        SUFFIXES.iter().find(|(_, part)| *part == self).map_or("", |(suffix, _)| suffix)
    }
}

/// A tensor's own name, without the file of its rank that [`crate::checkpoint::Checkpoint::open`] puts before it.
pub fn without_rank(name: &str) -> &str {
    name.split_once(crate::checkpoint::RANK_MARK).map_or(name, |(_, own)| own)
}

/// Where the modules of a checkpoint hang: the prefixes of its architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes {
    /// Before `layers.0`, `embed_tokens` and `norm`.
    pub text: &'static str,
    /// Before `lm_head`.
    pub head: &'static str,
}

impl Prefixes {
    /// Of a model's architecture.
    pub fn of(model: Model) -> Self {
        match model {
            Model::Multimodal => Self::MULTIMODAL,
            Model::TextOnly => Self::TEXT_ONLY,
        }
    }

    /// Of `Llama4ForConditionalGeneration`.
    pub const MULTIMODAL: Self = Self { text: "language_model.model.", head: "language_model." };
    /// Of `Llama4ForCausalLM`.
    pub const TEXT_ONLY: Self = Self { text: "model.", head: "" };

    /// The physical module name of a logical one: the prefix put back.
    pub fn physical(self, logical: &str) -> String {
        let mut name = String::with_capacity(self.text.len() + logical.len());
        if logical == "lm_head" {
            name.push_str(self.head);
        } else if !is_beside_text(logical) {
            name.push_str(self.text);
        }
        let _ = write!(name, "{logical}");
        name
    }

    /// The physical name of a layer's fused experts; `part` is one of the two that are fused.
    pub fn fused(self, layer: usize, part: Part) -> String {
        let name = if part == Part::FusedGateUp { "gate_up_proj" } else { "down_proj" };
        self.physical(&format!("layers.{layer}.feed_forward.experts.{name}"))
    }

    /// Splits a physical tensor name into the logical module and the part; `None` if it stands outside these prefixes.
    ///
    /// A fused expert tensor gives its own module name, `layers.N.feed_forward.experts`.
    pub fn split(self, physical: &str) -> Option<(&str, Part)> {
        let logical = if is_beside_text(physical) {
            physical
        } else if let Some(rest) = physical.strip_prefix(self.text) {
            rest
        } else {
            let rest = physical.strip_prefix(self.head)?;
            rest.starts_with("lm_head.").then_some(rest)?
        };
        for (suffix, part) in FUSED {
            if let Some(module) = logical.strip_suffix(suffix)
                && module.ends_with(".experts")
            {
                return Some((module, part));
            }
        }
        if logical.ends_with(".k_proj.k_scale") || logical.ends_with(".v_proj.v_scale") {
            return Some((&logical[..logical.len() - ".k_scale".len()], Part::CacheScale));
        }
        for (suffix, part) in SUFFIXES {
            if let Some(module) = logical.strip_suffix(suffix) {
                return Some((module, part));
            }
        }
        Some((logical, Part::Weight))
    }
}

/// Modules beside the text model have the same name in every container.
fn is_beside_text(name: &str) -> bool {
    name.starts_with("vision_model.") || name.starts_with("multi_modal_projector.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_names_split_into_module_and_part() {
        let multimodal = |name| Prefixes::MULTIMODAL.split(name);
        assert_eq!(
            multimodal("language_model.model.layers.7.feed_forward.experts.3.gate_proj.weight_packed"),
            Some(("layers.7.feed_forward.experts.3.gate_proj", Part::Packed))
        );
        assert_eq!(
            multimodal("language_model.model.layers.7.feed_forward.experts.gate_up_proj"),
            Some(("layers.7.feed_forward.experts", Part::FusedGateUp))
        );
        assert_eq!(multimodal("language_model.lm_head.weight"), Some(("lm_head", Part::Weight)));
        assert_eq!(multimodal("vision_model.class_embedding"), Some(("vision_model.class_embedding", Part::Weight)));
        assert_eq!(
            multimodal("vision_model.layernorm_pre.bias"),
            Some(("vision_model.layernorm_pre.bias", Part::Weight))
        );
        assert_eq!(multimodal("model.layers.0.input_layernorm.weight"), None);
        assert_eq!(
            Prefixes::TEXT_ONLY.split("model.layers.0.input_layernorm.weight"),
            Some(("layers.0.input_layernorm", Part::Weight))
        );
        assert_eq!(Prefixes::TEXT_ONLY.split("lm_head.weight"), Some(("lm_head", Part::Weight)));
    }

    #[test]
    fn every_role_of_a_layer_names_a_module_that_splits_back() {
        for (module, role) in LAYER_MODULES {
            let name = logical_name(role, Some(3), None);
            assert_eq!(name, format!("layers.3.{module}"));
            let physical = format!("{}.weight", Prefixes::MULTIMODAL.physical(&name));
            assert_eq!(Prefixes::MULTIMODAL.split(&physical), Some((name.as_str(), Part::Weight)));
        }
        assert_eq!(logical_name(Role::ExpertUp, Some(1), Some(127)), "layers.1.feed_forward.experts.127.up_proj");
    }
}
