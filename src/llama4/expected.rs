//! Which weights a config promises, with their logical shapes: the list that a checkpoint is held against.
//!
//! Knows no file. Shapes follow `transformers` 5.17, `models/llama4/modeling_llama4.py`; a matrix is `[out, in]`.

use super::config::{Config, TextConfig, VisionConfig};
use super::names::{Role, logical_name};

/// One weight that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Logical name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Decoder layer, for weights of one.
    pub layer: Option<usize>,
    /// Expert, for routed experts.
    pub expert: Option<usize>,
    /// Logical shape.
    pub shape: Vec<usize>,
}

/// Every weight that `config` promises, in the order of a forward pass: the text model, then vision and projector.
pub fn expected(config: &Config) -> Vec<Expected> {
    let text = &config.text;
    let mut list = List(Vec::new());
    list.push(Role::Embedding, None, None, &[text.vocab_size, text.hidden_size]);
    for layer in 0..text.num_hidden_layers {
        list.decoder_layer(text, layer);
    }
    list.push(Role::FinalNorm, None, None, &[text.hidden_size]);
    if !text.tie_word_embeddings {
        list.push(Role::LmHead, None, None, &[text.vocab_size, text.hidden_size]);
    }
    if let Some(vision) = &config.vision {
        list.vision(vision);
        list.push(Role::Projector, None, None, &[text.hidden_size, vision.vision_output_dim]);
    }
    list.0
}

struct List(Vec<Expected>);

impl List {
    fn push(&mut self, role: Role, layer: Option<usize>, expert: Option<usize>, shape: &[usize]) {
        let name = logical_name(role, layer, expert);
        self.0.push(Expected { name, role, layer, expert, shape: shape.to_vec() });
    }

    fn named(&mut self, name: String, role: Role, layer: Option<usize>, shape: &[usize]) {
        self.0.push(Expected { name, role, layer, expert: None, shape: shape.to_vec() });
    }

    fn decoder_layer(&mut self, text: &TextConfig, layer: usize) {
        let hidden = text.hidden_size;
        let query = text.num_attention_heads * text.head_dim;
        let key = text.num_key_value_heads * text.head_dim;
        let at = Some(layer);
        self.push(Role::InputNorm, at, None, &[hidden]);
        for (role, out, input) in [
            (Role::Query, query, hidden),
            (Role::Key, key, hidden),
            (Role::Value, key, hidden),
            (Role::AttentionOutput, hidden, query),
        ] {
            self.push(role, at, None, &[out, input]);
            if text.attention_bias {
                let name = format!("{}.bias", logical_name(role, at, None));
                self.named(name, Role::AttentionBias, at, &[out]);
            }
        }
        self.push(Role::PostAttentionNorm, at, None, &[hidden]);
        if !text.moe_layers[layer] {
            let inner = text.intermediate_size_mlp;
            self.push(Role::DenseGate, at, None, &[inner, hidden]);
            self.push(Role::DenseUp, at, None, &[inner, hidden]);
            self.push(Role::DenseDown, at, None, &[hidden, inner]);
            return;
        }
        let inner = text.intermediate_size;
        self.push(Role::Router, at, None, &[text.num_local_experts, hidden]);
        self.push(Role::SharedGate, at, None, &[inner, hidden]);
        self.push(Role::SharedUp, at, None, &[inner, hidden]);
        self.push(Role::SharedDown, at, None, &[hidden, inner]);
        for expert in 0..text.num_local_experts {
            self.push(Role::ExpertGate, at, Some(expert), &[inner, hidden]);
            self.push(Role::ExpertUp, at, Some(expert), &[inner, hidden]);
            self.push(Role::ExpertDown, at, Some(expert), &[hidden, inner]);
        }
    }

    fn vision(&mut self, vision: &VisionConfig) {
        let hidden = vision.hidden_size;
        let side = vision.image_size / vision.patch_size;
        self.vision_weight("class_embedding", &[hidden]);
        self.vision_weight("positional_embedding_vlm", &[side * side + 1, hidden]);
        let patch = vision.num_channels.saturating_mul(vision.patch_size * vision.patch_size);
        self.vision_weight("patch_embedding.linear", &[hidden, patch]);
        self.layer_norm("layernorm_pre", hidden);
        for layer in 0..vision.num_hidden_layers {
            let at = |module: &str| format!("model.layers.{layer}.{module}");
            self.layer_norm(&at("input_layernorm"), hidden);
            for projection in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                self.linear(&at(&format!("self_attn.{projection}")), hidden, hidden);
            }
            self.layer_norm(&at("post_attention_layernorm"), hidden);
            self.linear(&at("mlp.fc1"), vision.intermediate_size, hidden);
            self.linear(&at("mlp.fc2"), hidden, vision.intermediate_size);
        }
        self.layer_norm("layernorm_post", hidden);
        let projected = vision.projector_input_dim;
        self.vision_weight("vision_adapter.mlp.fc1", &[projected, vision.intermediate_size]);
        self.vision_weight("vision_adapter.mlp.fc2", &[vision.projector_output_dim, vision.projector_output_dim]);
    }

    fn vision_weight(&mut self, name: &str, shape: &[usize]) {
        self.named(format!("vision_model.{name}"), Role::Vision, None, shape);
    }

    fn linear(&mut self, name: &str, out: usize, input: usize) {
        self.vision_weight(name, &[out, input]);
        self.vision_weight(&format!("{name}.bias"), &[out]);
    }

    fn layer_norm(&mut self, name: &str, features: usize) {
        self.vision_weight(name, &[features]);
        self.vision_weight(&format!("{name}.bias"), &[features]);
    }
}
