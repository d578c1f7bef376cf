//! The text part of a Llama 4 config: `text_config`, or the whole document of a text-only model.
//!
//! Names, meanings and defaults are those of transformers 5.17, `configuration_llama4.py`, `Llama4TextConfig`; the older spellings are those
//! that the published configs of April 2025 use.

use serde_json::Value;

use super::fields::{ConfigError, Fields, whole};
use crate::checkpoint::shown;

// Bounds far beyond every announced model. They keep products of two dimensions inside 64 bits and lists in memory.
const LAYERS_MAX: usize = 4096;
const EXPERTS_MAX: usize = 65_536;
/// Experts of all layers together: every one has entries in the catalogue of weights (Maverick's 24 layers have 3,072).
const EXPERTS_TOTAL_MAX: usize = 131_072;
const HEADS_MAX: usize = 65_536;
pub(super) const DIMENSION_MAX: usize = 1 << 24;
const VOCABULARY_MAX: usize = 1 << 28;
const POSITIONS_MAX: u64 = 1 << 40;

/// The text model's dimensions and switches. Lists have one entry per layer.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Inner width of a routed expert and of the shared expert.
    pub intermediate_size: usize,
    /// Inner width of the dense feed-forward of layers without experts.
    pub intermediate_size_mlp: usize,
    /// Routed experts per layer.
    pub num_local_experts: usize,
    /// Routed experts that one token is sent to.
    pub num_experts_per_tok: usize,
    /// Which layers have experts.
    pub moe_layers: Vec<bool>,
    /// Which layers rotate queries and keys. The field `no_rope_layers` means this too, despite its name: 1 = rotates.
    pub rope_layers: Vec<bool>,
    /// Which layers attend inside chunks of `attention_chunk_size` only.
    pub chunked_layers: Vec<bool>,
    /// Whether layers with RoPE normalize queries and keys.
    pub use_qk_norm: bool,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Tokens in one chunk; `None`: no chunks.
    pub attention_chunk_size: Option<u64>,
    /// Whether layers without RoPE scale queries by their position.
    pub attn_temperature_tuning: bool,
    /// Positions per step of that scale.
    pub floor_scale: u64,
    /// Strength of that scale.
    pub attn_scale: f64,
    /// Longest context.
    pub max_position_embeddings: u64,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f64,
    /// Activation of the feed-forwards' gate; `silu` in every published model.
    pub hidden_act: String,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the attention's linear maps have biases.
    pub attention_bias: bool,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text or a turn.
    pub eos_token_id: Vec<u32>,
    /// Token that fills up a batch.
    pub pad_token_id: Option<u32>,
}

/// Rotary position embedding of the text model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Stretching of the long wavelengths; `None`: none.
    pub scaling: Option<Llama3Scaling>,
}

/// `rope_type: llama3` (transformers, `modeling_rope_utils.py`, `_compute_llama3_parameters`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// By how much long wavelengths are stretched.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched in full.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// The context of pretraining.
    pub original_max_position_embeddings: u64,
}

impl TextConfig {
    /// Reads and checks the text model's fields. `tie_word_embeddings` is the document's own, for where the section has none.
    pub(super) fn read(fields: &Fields<'_>, tie_word_embeddings: bool) -> Result<Self, ConfigError> {
        let hidden_size = fields.count("hidden_size", 5120, DIMENSION_MAX)?;
        let num_hidden_layers = fields.count("num_hidden_layers", 48, LAYERS_MAX)?;
        let num_attention_heads = fields.count("num_attention_heads", 40, HEADS_MAX)?;
        // A default that follows from another field is for null; a missing field has a number of its own (5.17 and older agree).
        let num_key_value_heads = match fields.map.get("num_key_value_heads") {
            Some(Value::Null) => num_attention_heads,
            _ => fields.count("num_key_value_heads", 8, HEADS_MAX)?,
        };
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let problem =
                format!("`{num_key_value_heads}` does not divide `num_attention_heads`, {num_attention_heads}");
            return Err(fields.error("num_key_value_heads", problem));
        }
        let head_dim = read_head_dim(fields, hidden_size, num_attention_heads)?;
        let num_local_experts =
            fields.count("num_local_experts", 16, EXPERTS_MAX.min(EXPERTS_TOTAL_MAX / num_hidden_layers))?;
        let rope_layers = read_rope_layers(fields, num_hidden_layers)?;
        let max_position_embeddings = fields.whole("max_position_embeddings", 4096 * 32, 1..=POSITIONS_MAX)?;
        let attention_chunk_size = match fields.map.get("attention_chunk_size") {
            Some(Value::Null) => None,
            _ => Some(fields.whole("attention_chunk_size", 8192, 1..=POSITIONS_MAX)?),
        };
        Ok(Self {
            hidden_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            intermediate_size: fields.count("intermediate_size", 8192, DIMENSION_MAX)?,
            intermediate_size_mlp: fields.count("intermediate_size_mlp", 16_384, DIMENSION_MAX)?,
            num_local_experts,
            num_experts_per_tok: fields.count("num_experts_per_tok", 1, num_local_experts)?,
            moe_layers: read_moe_layers(fields, num_hidden_layers)?,
            chunked_layers: read_chunked_layers(fields, &rope_layers)?,
            rope_layers,
            use_qk_norm: fields.flag("use_qk_norm", true)?,
            rope: read_rope(fields, max_position_embeddings)?,
            attention_chunk_size,
            attn_temperature_tuning: fields.truthy("attn_temperature_tuning", true)?,
            floor_scale: fields.whole("floor_scale", 8192, 1..=POSITIONS_MAX)?,
            attn_scale: fields.positive("attn_scale", Some(0.1))?,
            max_position_embeddings,
            vocab_size: fields.count("vocab_size", 202_048, VOCABULARY_MAX)?,
            rms_norm_eps: fields.positive("rms_norm_eps", Some(1e-5))?,
            hidden_act: fields.text("hidden_act")?.unwrap_or("silu").to_string(),
            tie_word_embeddings: fields.flag("tie_word_embeddings", tie_word_embeddings)?,
            attention_bias: fields.flag("attention_bias", false)?,
            bos_token_id: fields.token("bos_token_id", Some(1))?,
            eos_token_id: fields.tokens("eos_token_id", 2)?,
            pad_token_id: fields.token("pad_token_id", None)?,
        })
    }
}

fn read_head_dim(fields: &Fields<'_>, hidden_size: usize, heads: usize) -> Result<usize, ConfigError> {
    let head_dim = match fields.map.get("head_dim") {
        Some(Value::Null) if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        Some(Value::Null) => {
            let problem = format!("null, and `hidden_size`, {hidden_size}, is not a multiple of {heads} heads");
            return Err(fields.error("head_dim", problem));
        }
        _ => fields.count("head_dim", 128, DIMENSION_MAX)?,
    };
    // RoPE turns pairs of neighbouring elements.
    if !head_dim.is_multiple_of(2) {
        return Err(fields.error("head_dim", format!("`{head_dim}` is odd")));
    }
    if heads * head_dim > DIMENSION_MAX {
        let problem = format!("`{head_dim}` times {heads} heads is more than {DIMENSION_MAX}");
        return Err(fields.error("head_dim", problem));
    }
    Ok(head_dim)
}

/// From `moe_layers`, else every `interleave_moe_layer_step`-th layer.
fn read_moe_layers(fields: &Fields<'_>, layers: usize) -> Result<Vec<bool>, ConfigError> {
    // transformers takes the step from the list's absence only, but a step of 0 is a fault in any case.
    let step = fields.count("interleave_moe_layer_step", 1, LAYERS_MAX)?;
    let Some(listed) = fields.list("moe_layers", "the number of a layer", whole)? else {
        return Ok((0..layers).map(|layer| (layer + 1).is_multiple_of(step)).collect());
    };
    let mut moe_layers = vec![false; layers];
    for layer in listed {
        match usize::try_from(layer).ok().and_then(|layer| moe_layers.get_mut(layer)) {
            Some(entry) => *entry = true,
            None => {
                return Err(fields.error("moe_layers", format!("names layer `{layer}`, and there are {layers} layers")));
            }
        }
    }
    Ok(moe_layers)
}

/// From `no_rope_layers` where it has entries, else all but every `no_rope_layer_interval`-th layer.
fn read_rope_layers(fields: &Fields<'_>, layers: usize) -> Result<Vec<bool>, ConfigError> {
    let interval = fields.count("no_rope_layer_interval", 4, LAYERS_MAX)?;
    let entry = |value: &Value| match value {
        Value::Bool(rotates) => Some(*rotates),
        _ => whole(value).filter(|flag| *flag <= 1).map(|flag| flag == 1),
    };
    match fields.list("no_rope_layers", "0 or 1", entry)? {
        Some(listed) if !listed.is_empty() => one_per_layer(fields, "no_rope_layers", listed, layers),
        _ => Ok((0..layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect()),
    }
}

/// From `layer_types`, else the layers with RoPE.
fn read_chunked_layers(fields: &Fields<'_>, rope_layers: &[bool]) -> Result<Vec<bool>, ConfigError> {
    let entry = |value: &Value| match value.as_str() {
        Some("chunked_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    match fields.list("layer_types", "`chunked_attention` or `full_attention`", entry)? {
        Some(listed) => one_per_layer(fields, "layer_types", listed, rope_layers.len()),
        None => Ok(rope_layers.to_vec()),
    }
}

fn one_per_layer<T>(fields: &Fields<'_>, key: &str, list: Vec<T>, layers: usize) -> Result<Vec<T>, ConfigError> {
    if list.len() == layers {
        return Ok(list);
    }
    Err(fields.error(key, format!("{} entries, and there are {layers} layers", list.len())))
}

/// `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).
fn read_rope(fields: &Fields<'_>, max_position_embeddings: u64) -> Result<Rope, ConfigError> {
    // Found in all sorts of fine-tunes, both at once among them; transformers 5 lets `rope_parameters` win where it has a value.
    let new = fields.object("rope_parameters", "text_config.rope_parameters.")?;
    let old = fields.object("rope_scaling", "text_config.rope_scaling.")?;
    let outer = fields.positive("rope_theta", Some(500_000.0))?;
    let theta = new.or(old).map_or(Ok(outer), |rope| rope.positive("rope_theta", Some(outer)))?;
    let Some(rope) = new.or(old) else {
        return Ok(Rope { theta, scaling: None });
    };

    let partial = rope.positive("partial_rotary_factor", Some(1.0))?;
    if partial != 1.0 {
        return Err(rope.error("partial_rotary_factor", format!("`{partial}`; Llama 4 rotates the whole head")));
    }
    // `type` is the spelling from before `rope_type`.
    let rope_type = rope.text("rope_type")?.or(rope.text("type")?).unwrap_or("default");
    let scaling = match rope_type {
        "default" => None,
        "llama3" => Some(Llama3Scaling {
            factor: rope.positive("factor", None)?,
            low_freq_factor: rope.positive("low_freq_factor", None)?,
            high_freq_factor: rope.positive("high_freq_factor", None)?,
            original_max_position_embeddings: rope.whole(
                "original_max_position_embeddings",
                max_position_embeddings,
                1..=POSITIONS_MAX,
            )?,
        }),
        other => {
            let problem = format!("`{}` is not known for Llama 4, which has `default` and `llama3`", shown(other));
            return Err(rope.error("rope_type", problem));
        }
    };
    Ok(Rope { theta, scaling })
}
