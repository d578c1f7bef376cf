//! The forward pass of the text model, layer by layer, with weights that stream from a checkpoint.
//!
//! The order of steps is that of `Llama4TextDecoderLayer` in transformers 5.17 (`models/llama4/modeling_llama4.py`).
//! Activations are float32; a weight is the value that it is stored as, whatever its coding. Resident besides the
//! activations: one matrix at a time.

use std::ops::Range;

use anyhow::{Result, bail};

use super::attention::{AttentionOptions, Temperature, attend};
use super::moe::Routing;
use super::ops::{add, rms_norm, silu_mul};
use super::rope::{RopeOptions, RopeTable, Scaling};
use super::weights;
use crate::llama4::config::TextConfig;
use crate::llama4::names::logical_name;
use crate::llama4::{Llama4, Role, Weight};

/// A model and the sequences that run through it.
pub struct Forward<'a> {
    model: &'a Llama4,
    rope: RopeTable,
    sequences: Vec<Range<usize>>,
}

/// The three matrices of a feed-forward network: gate, up, down. Here the shared expert's.
pub const SHARED: [Role; 3] = [Role::SharedGate, Role::SharedUp, Role::SharedDown];
/// Those of a layer without experts.
pub const DENSE: [Role; 3] = [Role::DenseGate, Role::DenseUp, Role::DenseDown];
/// Those of a routed expert.
pub const EXPERT: [Role; 3] = [Role::ExpertGate, Role::ExpertUp, Role::ExpertDown];

impl<'a> Forward<'a> {
    /// Prepares to run sequences of these lengths, each from position 0.
    ///
    /// # Errors
    /// Weights are missing, or the config asks for something that this forward pass does not do.
    pub fn new(model: &'a Llama4, lengths: &[usize]) -> Result<Self> {
        model.require_complete()?;
        let text = &model.config.text;
        if text.hidden_act != "silu" {
            bail!("the forward pass knows `hidden_act` silu, not `{}`", text.hidden_act);
        }
        let mut end = 0;
        let sequences = lengths.iter().map(|&length| {
            end += length;
            end - length..end
        });
        let sequences = sequences.collect();
        let positions = lengths.iter().copied().max().unwrap_or(0);
        Ok(Self { model, rope: RopeTable::new(&rope_options(text), positions), sequences })
    }

    /// Number of decoder layers.
    pub fn layers(&self) -> usize {
        self.model.config.text.num_hidden_layers
    }

    /// The residual stream before the first layer, `[tokens, hidden]`.
    ///
    /// # Errors
    /// A token that is not in the vocabulary.
    pub fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let text = &self.model.config.text;
        let weight = self.weight(Role::Embedding, None, None);
        let mut hidden = vec![0.0; tokens.len() * text.hidden_size];
        for (&token, row) in tokens.iter().zip(hidden.chunks_exact_mut(text.hidden_size)) {
            if token as usize >= text.vocab_size {
                bail!("token {token} is outside the vocabulary of {}", text.vocab_size);
            }
            weights::row(self.model, weight, token as usize, row);
        }
        Ok(hidden)
    }

    /// Runs one layer on the residual stream `[tokens, hidden]`, in place. Gives the router's logits `[tokens, experts]`
    /// of a layer that has one.
    ///
    /// # Panics
    /// If `hidden` does not hold the tokens of all sequences.
    pub fn layer(&self, layer: usize, hidden: &mut [f32]) -> Option<Vec<f32>> {
        let text = &self.model.config.text;
        let x = self.normed(Role::InputNorm, layer, hidden);
        add(hidden, &self.attention(layer, &x));
        let x = self.normed(Role::PostAttentionNorm, layer, hidden);
        if !text.moe_layers[layer] {
            add(hidden, &self.mlp(DENSE, layer, None, &x));
            return None;
        }
        let logits = self.linear(Role::Router, layer, &x);
        let mut out = self.mlp(SHARED, layer, None, &x);
        let routing = Routing::new(&logits, text.num_local_experts, text.num_experts_per_tok);
        for expert in 0..text.num_local_experts {
            let share = routing.share(expert);
            if !share.tokens.is_empty() {
                let result = self.mlp(EXPERT, layer, Some(expert), &share.gather(&x, text.hidden_size));
                share.scatter_add(&result, text.hidden_size, &mut out);
            }
        }
        add(hidden, &out);
        Some(logits)
    }

    /// The final norm of the residual stream.
    pub fn final_norm(&self, hidden: &[f32]) -> Vec<f32> {
        let norm = self.model.plain_values(self.weight(Role::FinalNorm, None, None));
        rms_norm(hidden, &norm, self.model.config.text.rms_norm_eps as f32)
    }

    /// The matrix that turns the normed residual stream into logits; for [`weights::apply_outputs`].
    pub fn head(&self) -> &'a Weight {
        let role = if self.model.config.text.tie_word_embeddings { Role::Embedding } else { Role::LmHead };
        self.weight(role, None, None)
    }

    /// The model that runs.
    pub fn model(&self) -> &'a Llama4 {
        self.model
    }

    fn attention(&self, layer: usize, x: &[f32]) -> Vec<f32> {
        let query = self.linear(Role::Query, layer, x); // [tokens, heads * head_dim]
        let key = self.linear(Role::Key, layer, x); // [tokens, kv_heads * head_dim]
        let value = self.linear(Role::Value, layer, x);
        let out = self.attend(layer, &self.sequences, query, key, &value);
        self.linear(Role::AttentionOutput, layer, &out)
    }

    /// What the heads of a layer give for `sequences`, which follow one another without gaps: `query` is
    /// `[tokens, heads * head_dim]`, as the result is; `key` and `value` are `[tokens, kv_heads * head_dim]`.
    ///
    /// # Panics
    /// If lengths do not agree, or a sequence is longer than any that [`Forward::new`] was told of.
    pub fn attend(
        &self,
        layer: usize,
        sequences: &[Range<usize>],
        mut query: Vec<f32>,
        mut key: Vec<f32>,
        value: &[f32],
    ) -> Vec<f32> {
        let text = &self.model.config.text;
        let mut out = vec![0.0; query.len()];
        let rope = text.rope_layers[layer].then_some(&self.rope);
        attend(&attention_options(text, layer), rope, sequences, &mut query, &mut key, value, &mut out);
        out
    }

    /// The residual stream after one of a layer's two norms.
    pub fn normed(&self, role: Role, layer: usize, hidden: &[f32]) -> Vec<f32> {
        let norm = self.model.plain_values(self.weight(role, Some(layer), None));
        rms_norm(hidden, &norm, self.model.config.text.rms_norm_eps as f32)
    }

    /// `down(silu(gate(x)) * up(x))`.
    fn mlp(&self, [gate, up, down]: [Role; 3], layer: usize, expert: Option<usize>, x: &[f32]) -> Vec<f32> {
        let linear = |role, x: &[f32]| weights::apply(self.model, self.weight(role, Some(layer), expert), x);
        let mut inner = linear(gate, x);
        silu_mul(&mut inner, &linear(up, x));
        linear(down, &inner)
    }

    /// A linear map of a layer, with its bias where the model has biases.
    fn linear(&self, role: Role, layer: usize, x: &[f32]) -> Vec<f32> {
        let mut y = weights::apply(self.model, self.weight(role, Some(layer), None), x);
        self.add_bias(role, layer, &mut y);
        y
    }

    /// Adds the bias of a linear map of a layer to its results, where the model has biases.
    pub fn add_bias(&self, role: Role, layer: usize, y: &mut [f32]) {
        let bias = format!("{}.bias", logical_name(role, Some(layer), None));
        if let Some(bias) = self.model.named(&bias) {
            let bias = self.model.plain_values(bias);
            for row in y.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(&bias).for_each(|(y, bias)| *y += bias);
            }
        }
    }

    /// A weight of the model; `layer` and `expert` as the role has them.
    ///
    /// # Panics
    /// If the config promises no such weight.
    pub fn weight(&self, role: Role, layer: Option<usize>, expert: Option<usize>) -> &'a Weight {
        self.model.weight(role, layer, expert).expect("a complete model has every weight of its config")
    }
}

fn rope_options(text: &TextConfig) -> RopeOptions {
    let scaling = text.rope.scaling.as_ref().map(|scaling| Scaling {
        factor: scaling.factor as f32,
        low_freq_factor: scaling.low_freq_factor as f32,
        high_freq_factor: scaling.high_freq_factor as f32,
        original_positions: scaling.original_max_position_embeddings as f32,
    });
    RopeOptions { head_dim: text.head_dim, theta: text.rope.theta as f32, scaling }
}

fn attention_options(text: &TextConfig, layer: usize) -> AttentionOptions {
    let rope = text.rope_layers[layer];
    let tuned = text.attn_temperature_tuning && !rope;
    AttentionOptions {
        heads: text.num_attention_heads,
        kv_heads: text.num_key_value_heads,
        head_dim: text.head_dim,
        qk_norm_eps: (rope && text.use_qk_norm).then_some(text.rms_norm_eps as f32),
        chunk: text.attention_chunk_size.filter(|_| text.chunked_layers[layer]).map(|size| size as usize),
        temperature: tuned
            .then_some(Temperature { floor_scale: text.floor_scale as f32, attn_scale: text.attn_scale as f32 }),
    }
}
