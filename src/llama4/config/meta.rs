//! Meta's `params.json` as a config: the same model in the words of Hugging Face.
//!
//! Sources: llama-models at a9c89c47, `models/llama4/args.py` (fields and defaults) and `moe.py` (inner widths); transformers'
//! `convert_llama4_weights_to_hf.py` at 07497505 (tokens, context, what the config says); the RoPE scaling is Meta's
//! correction of July 2025: only Scout's, by 16, without a band in between. Sizes that a formula gives are taken from the
//! tensors where they are there.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::fields::{ConfigError, Fields};
use super::text::DIMENSION_MAX;
use crate::checkpoint::{Checkpoint, rank_of};

/// Ids at the end of the vocabulary that stand for no text (`Tokenizer.num_reserved_special_tokens`).
pub(in crate::llama4) const SPECIAL_TOKENS: usize = 2048;

/// Places of special tokens among these.
const BEGIN_OF_TEXT: usize = 0;
const END_OF_TEXT: usize = 1;
const END_OF_MESSAGE: usize = 7;
const END_OF_TURN: usize = 8;
const PAD: usize = 18;
const IMAGE_START: usize = 80;
const IMAGE_END: usize = 81;
const PATCH: usize = 92;

/// What the tensors say of sizes.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::llama4) struct Facts {
    /// Rows of a shared expert's `w_in`, of all ranks together.
    expert: Option<u64>,
    /// Rows of a dense layer's `w1`, of all ranks together.
    dense: Option<u64>,
    /// Whether there is a vision tower.
    vision: bool,
}

impl Facts {
    /// Looks at the catalogue.
    pub(in crate::llama4) fn of(checkpoint: &Checkpoint) -> Self {
        let mut facts = Self::default();
        let ranks =
            checkpoint.files().iter().filter(|file| rank_of(&file.name).is_none_or(|of| of.0 == "consolidated"));
        let ranks = ranks.count() as u64;
        for tensor in checkpoint.tensors() {
            let rows = tensor.shape.first().and_then(|rows| rows.checked_mul(ranks));
            if tensor.name.ends_with("feed_forward.w_in_shared_FD.weight") {
                facts.expert = rows;
            } else if tensor.name.ends_with("feed_forward.mlp.fc1_weight") {
                facts.dense = rows.map(|rows| rows / 2);
            } else if tensor.name.ends_with("feed_forward.w1.weight") {
                facts.dense = rows;
            }
            facts.vision |= tensor.name.contains("vision_embeddings.");
        }
        facts
    }
}

/// The config of a base model whose `params.json` is `json`.
///
/// # Errors
/// It is not JSON, or a field is missing or cannot be.
pub(super) fn document(file: &Path, json: &[u8], facts: &Facts) -> Result<Map<String, Value>, ConfigError> {
    let error = |problem: String| ConfigError { file: PathBuf::from(file), field: None, problem, hint: None };
    let whole = match serde_json::from_slice(json) {
        Ok(Value::Object(whole)) => whole,
        Ok(_) => return Err(error("not a JSON object".into())),
        Err(e) => return Err(error(format!("not JSON: {e}"))),
    };
    let top = Fields { file, section: "", map: &whole };
    let params = top.object("model", "model.")?.unwrap_or(top);
    if ["dim", "n_layers", "n_heads"].iter().any(|field| params.get(field).is_none()) {
        let hint = Some("`params.json` of Llama 4 has `dim`, `n_layers`, `n_heads`, `moe_args`".to_owned());
        return Err(ConfigError { hint, ..error("not the parameters of a Llama 4 model".into()) });
    }
    let text = text(&params, facts)?;
    let vocabulary = text.get("vocab_size").and_then(Value::as_u64).unwrap_or(0);
    let Some(base) = vocabulary.checked_sub(SPECIAL_TOKENS as u64) else {
        let problem = format!("`{vocabulary}` does not leave room for {SPECIAL_TOKENS} special tokens");
        return Err(params.error("vocab_size", problem));
    };
    let vision = params.object("vision_args", "vision_args.")?;
    let mut document = Map::new();
    match vision.filter(|_| facts.vision) {
        Some(vision) => {
            document.insert("architectures".into(), json!(["Llama4ForConditionalGeneration"]));
            document.insert("boi_token_index".into(), (base + IMAGE_START as u64).into());
            document.insert("eoi_token_index".into(), (base + IMAGE_END as u64).into());
            document.insert("image_token_index".into(), (base + PATCH as u64).into());
            document.insert("model_type".into(), "llama4".into());
            document.insert("text_config".into(), text.into());
            document.insert("tie_word_embeddings".into(), false.into());
            document.insert("torch_dtype".into(), "bfloat16".into());
            document.insert("vision_config".into(), vision_config(&vision)?);
        }
        None => {
            document.insert("architectures".into(), json!(["Llama4ForCausalLM"]));
            document.extend(text);
        }
    }
    Ok(document)
}

/// Sets what tells an instruction-tuned model from a base model: tokens that end a turn, and the longest context (10M tokens
/// with 16 experts, else 1M; 256k for a base model).
pub(in crate::llama4) fn set_instruct(document: &mut Map<String, Value>) {
    let text = match document.get_mut("text_config") {
        Some(Value::Object(text)) => text,
        _ => document,
    };
    let number = |text: &Map<String, Value>, field: &str| text.get(field).and_then(Value::as_u64).unwrap_or(0);
    let base = number(text, "vocab_size").saturating_sub(SPECIAL_TOKENS as u64);
    let ends = [END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN].map(|place| base + place as u64);
    text.insert("eos_token_id".into(), json!(ends));
    let context: u64 = if number(text, "num_local_experts") == 16 { 10_485_760 } else { 1_048_576 };
    text.insert("max_position_embeddings".into(), context.into());
}

/// `generation_config.json` of an instruction-tuned model with this config.
pub(in crate::llama4) fn generation_config(text: &super::TextConfig) -> Value {
    json!({
        "bos_token_id": text.bos_token_id,
        "do_sample": true,
        "eos_token_id": text.eos_token_id,
        "pad_token_id": text.pad_token_id,
        "temperature": 0.6,
        "top_p": 0.9,
    })
}

/// `preprocessor_config.json`: how images become tiles (transformers, `image_processing_llama4_fast.py`).
pub(in crate::llama4) fn preprocessor_config(vision: &super::VisionConfig) -> Value {
    json!({
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Llama4ImageProcessorFast",
        "image_std": [0.5, 0.5, 0.5],
        "max_patches": 16,
        "processor_class": "Llama4Processor",
        "resample": 2,
        "rescale_factor": 0.003_921_568_627_450_98,
        "size": {"height": vision.image_size, "width": vision.image_size},
    })
}

fn text(params: &Fields<'_>, facts: &Facts) -> Result<Map<String, Value>, ConfigError> {
    let dim = params.count("dim", 0, DIMENSION_MAX)?;
    let layers = params.count("n_layers", 0, 4096)?;
    let heads = params.count("n_heads", 0, 65_536)?;
    let vocabulary = params.count("vocab_size", 202_048, 1 << 28)?;
    let interval =
        params.get("nope_layer_interval").map(|_| params.count("nope_layer_interval", 1, 4096)).transpose()?;
    let rotates = (0..layers).map(|layer| u8::from(interval.is_none_or(|every| !(layer + 1).is_multiple_of(every))));
    let moe = params.object("moe_args", "moe_args.")?;
    let step = moe.map_or(Ok(1), |moe| moe.count("interleave_moe_layer_step", 1, 4096))?;
    let routed: Vec<usize> = match moe {
        Some(_) => (0..layers).filter(|layer| (layer + 1).is_multiple_of(step)).collect(),
        None => Vec::new(),
    };
    let widths = widths(params, moe.as_ref(), dim)?;
    let base = vocabulary.saturating_sub(SPECIAL_TOKENS);
    let chunk = params.get("attention_chunk_size").map(|_| params.whole("attention_chunk_size", 0, 1..=1 << 40));
    let document = json!({
        "attention_bias": false,
        "attention_chunk_size": chunk.transpose()?,
        "attention_dropout": 0.0,
        "attn_scale": params.positive("attn_scale", Some(0.1))?,
        "attn_temperature_tuning": true,
        "bos_token_id": base + BEGIN_OF_TEXT,
        "eos_token_id": base + END_OF_TEXT,
        "floor_scale": params.whole("floor_scale", 8192, 1..=1 << 40)?,
        "for_llm_compressor": false,
        "head_dim": params.count("head_dim", dim / heads, DIMENSION_MAX)?,
        "hidden_act": "silu",
        "hidden_size": dim,
        "initializer_range": 0.02,
        "interleave_moe_layer_step": step,
        "intermediate_size": facts.expert.unwrap_or(widths.expert),
        "intermediate_size_mlp": facts.dense.unwrap_or(widths.dense),
        "max_position_embeddings": 262_144,
        "model_type": "llama4_text",
        "moe_layers": routed,
        "no_rope_layers": rotates.collect::<Vec<_>>(),
        "num_attention_heads": heads,
        "num_experts_per_tok": moe.map_or(Ok(1), |moe| moe.count("top_k", 1, 65_536))?,
        "num_hidden_layers": layers,
        "num_key_value_heads": params.count("n_kv_heads", heads, 65_536)?,
        "num_local_experts": moe.map_or(Ok(1), |moe| moe.count("num_experts", 0, 65_536))?,
        "output_router_logits": false,
        "pad_token_id": base + PAD,
        "rms_norm_eps": params.positive("norm_eps", Some(1e-5))?,
        "rope_scaling": rope_scaling(params)?,
        "rope_theta": params.positive("rope_theta", Some(500_000.0))?,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "use_qk_norm": params.flag("use_qk_norm", false)?,
        "vocab_size": vocabulary,
    });
    match document {
        Value::Object(document) => Ok(document),
        _ => unreachable!("written as an object"),
    }
}

/// Meta's values where the file has none: the fields came after the models (`ModelArgs.validate`).
fn rope_scaling(params: &Fields<'_>) -> Result<Value, ConfigError> {
    if !params.flag("use_scaled_rope", false)? {
        return Ok(Value::Null);
    }
    Ok(json!({
        "factor": params.positive("rope_scaling_factor", Some(16.0))?,
        "high_freq_factor": params.positive("rope_high_freq_factor", Some(1.0))?,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }))
}

/// The vision tower; what Meta has no field for has one value only.
fn vision_config(vision: &Fields<'_>) -> Result<Value, ConfigError> {
    let side = |key: &str, section: &'static str, default: u64| match vision.get(key) {
        Some(Value::Object(size)) => {
            let size = Fields { section, map: size, ..*vision };
            let (height, width) = (size.whole("height", 0, 1..=1 << 16)?, size.whole("width", 0, 1..=1 << 16)?);
            if height == width { Ok(height) } else { Err(size.error("width", format!("`{width}` is not the height"))) }
        }
        _ => vision.whole(key, default, 1..=1 << 16),
    };
    let dim = vision.whole("dim", 1408, 1..=DIMENSION_MAX as u64)?;
    let output = vision.whole("output_dim", 4096, 1..=DIMENSION_MAX as u64)?;
    let inner = vision.positive("mlp_ratio", Some(4.0))? * dim as f64;
    Ok(json!({
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": dim,
        "image_size": side("image_size", "vision_args.image_size.", 336)?,
        "initializer_range": 0.02,
        "intermediate_size": inner as u64,
        "model_type": "llama4_vision_model",
        "multi_modal_projector_bias": false,
        "norm_eps": 1e-5,
        "num_attention_heads": vision.whole("n_heads", 16, 1..=DIMENSION_MAX as u64)?,
        "num_channels": 3,
        "num_hidden_layers": vision.whole("n_layers", 34, 1..=4096)?,
        "patch_size": side("patch_size", "vision_args.patch_size.", 14)?,
        "pixel_shuffle_ratio": vision.positive("pixel_shuffle_ratio", Some(0.5))?,
        "projector_dropout": 0.0,
        "projector_input_dim": output,
        "projector_output_dim": output,
        "rope_theta": 10_000.0,
        "vision_feature_select_strategy": "default",
        "vision_output_dim": output,
    }))
}

/// Inner widths of the feed-forwards.
struct Widths {
    expert: u64,
    dense: u64,
}

/// The formulas of `FeedForward` and `MoE`: two thirds of a multiple, by a factor, rounded up; an expert's also divided among
/// those that work on a token.
fn widths(params: &Fields<'_>, moe: Option<&Fields<'_>>, dim: usize) -> Result<Widths, ConfigError> {
    let exp = params.positive("ffn_exp", Some(4.0))?;
    let factor = params.positive("ffn_dim_multiplier", Some(1.0))?;
    let multiple = params.whole("multiple_of", 256, 1..=1 << 24)?;
    let dim = dim as f64;
    // Python's `int` cuts towards zero, as this does; what is too large becomes a dimension that the config refuses.
    let rounded = |width: f64| (width as u64).saturating_add(multiple - 1) / multiple * multiple;
    let mut expert = (factor * (2.0 * (exp * dim).trunc() / 3.0).trunc()).trunc();
    if let Some(moe) = moe
        && moe.flag("auto_scale_F", true)?
    {
        expert /= moe.positive("capacity_factor", Some(1.0))? + 1.0;
    }
    let dense = factor * (exp * (2.0 * dim / 3.0).trunc()).trunc();
    Ok(Widths { expert: rounded(expert), dense: rounded(dense) })
}
