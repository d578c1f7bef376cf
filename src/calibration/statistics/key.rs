//! Which model statistics are of: the dimensions that decide their shapes, and a digest of the routers.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::error::hint;
use crate::llama4::{Llama4, Role};

// The bounds of `TextConfig`, for numbers that come from a file. They keep products of two inside 64 bits.
const LAYERS_MAX: usize = 4096;
const EXPERTS_MAX: usize = 65_536;
const EXPERTS_TOTAL_MAX: usize = 131_072;
const DIMENSION_MAX: usize = 1 << 24;

/// Experts that a token goes to. Every Llama 4 has one; with 2^48 tokens at most, pairs of them still fit 64 bits.
const EXPERTS_PER_TOKEN_MAX: usize = 64;

/// What identifies a model as far as its statistics go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelKey {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of what goes into `o_proj`: heads times their width.
    pub attention_size: usize,
    /// Inner width of experts.
    pub intermediate_size: usize,
    /// Inner width of dense feed-forwards.
    pub intermediate_size_mlp: usize,
    /// Routed experts of a layer.
    pub num_local_experts: usize,
    /// Experts that a token goes to.
    pub num_experts_per_tok: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Which layers have experts.
    pub moe_layers: Vec<bool>,
    /// XXH3-128 of all routers' weights as little-endian float32, layer after layer, in hexadecimal. Quantizing leaves routers as they are;
    /// a fine-tune has others.
    pub router_digest: String,
}

impl ModelKey {
    /// The key of an open model.
    ///
    /// # Errors
    /// A router is missing or quantized, or tokens go to more experts than can be counted.
    pub fn of(model: &Llama4) -> Result<Self> {
        let text = &model.config.text;
        let mut digest = Xxh3::new();
        for layer in (0..text.num_hidden_layers).filter(|&layer| text.moe_layers[layer]) {
            let Some(router) = model.weight(Role::Router, Some(layer), None) else {
                bail!("the router of layer {layer} is missing");
            };
            ensure!(router.coding.scheme().is_none(), "the router of layer {layer} is quantized");
            let values = model.plain_values(router);
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            digest.update(&bytes);
        }
        let key = Self {
            hidden_size: text.hidden_size,
            attention_size: text.num_attention_heads * text.head_dim,
            intermediate_size: text.intermediate_size,
            intermediate_size_mlp: text.intermediate_size_mlp,
            num_local_experts: text.num_local_experts,
            num_experts_per_tok: text.num_experts_per_tok,
            vocab_size: text.vocab_size,
            moe_layers: text.moe_layers.clone(),
            router_digest: format!("{:032x}", digest.digest128()),
        };
        key.check()?;
        Ok(key)
    }

    /// Refuses numbers that no model has.
    pub(super) fn check(&self) -> Result<()> {
        let layers = self.moe_layers.len();
        ensure!((1..=LAYERS_MAX).contains(&layers), "statistics of {layers} layers");
        let most = EXPERTS_MAX.min(EXPERTS_TOTAL_MAX / layers);
        let experts = self.num_local_experts;
        ensure!((1..=most).contains(&experts), "statistics of {experts} experts in each of {layers} layers");
        let chosen = self.num_experts_per_tok;
        let most = experts.min(EXPERTS_PER_TOKEN_MAX);
        ensure!((1..=most).contains(&chosen), "statistics of {chosen} experts for each token");
        let dimensions = [self.hidden_size, self.attention_size, self.intermediate_size, self.intermediate_size_mlp];
        ensure!(dimensions.iter().all(|size| (1..=DIMENSION_MAX).contains(size)), "dimensions of {dimensions:?}");
        Ok(())
    }

    /// Refuses another model than `self`; `what` says what the other is.
    ///
    /// # Errors
    /// Names the first difference.
    pub fn same_as(&self, other: &Self, what: &str) -> Result<()> {
        let fields = [
            ("hidden_size", self.hidden_size, other.hidden_size),
            ("attention_size", self.attention_size, other.attention_size),
            ("intermediate_size", self.intermediate_size, other.intermediate_size),
            ("intermediate_size_mlp", self.intermediate_size_mlp, other.intermediate_size_mlp),
            ("num_local_experts", self.num_local_experts, other.num_local_experts),
            ("num_experts_per_tok", self.num_experts_per_tok, other.num_experts_per_tok),
            ("vocab_size", self.vocab_size, other.vocab_size),
            ("num_hidden_layers", self.moe_layers.len(), other.moe_layers.len()),
        ];
        if let Some((field, is, wanted)) = fields.into_iter().find(|(_, a, b)| a != b) {
            bail!("the statistics are of another model: `{field}` is {is}, and {wanted} in {what}");
        }
        ensure!(
            self.moe_layers == other.moe_layers,
            "the statistics are of another model: other layers have experts than in {what}"
        );
        if self.router_digest != other.router_digest {
            return Err(hint(
                format!("the statistics are of another model: its routers have other weights than {what}"),
                "statistics of one fine-tune do not fit another; run `l4tool calibrate` on this one",
            ));
        }
        Ok(())
    }
}
