//! The keys of GGUF files as a config: the same model in the words of Hugging Face.
//!
//! Sources: llama.cpp at 0c1e57098, `src/models/llama4.cpp` (keys, and what has no key), `conversion/llama.py` and `conversion/llama4.py`
//! (which field a key comes from), `tools/mtmd/clip.cpp` (vision). What llama.cpp takes for granted is taken for granted here: the
//! model that a GGUF file holds is the one that llama.cpp runs.

use serde_json::{Map, Value, json};

use super::keys::Fields;
use super::names::{ROPE_FACTORS, text_name, vision_name};
use super::rope;
use crate::checkpoint::{Checkpoint, shown};
use crate::dtype::Dtype;
use crate::llama4::config::{ConfigError, Model};
use crate::llama4::names::Role;

/// Chunks of attention, and positions per step of the temperature; llama.cpp knows no others.
const CHUNK: u64 = 8192;

/// The only number of experts with which llama.cpp does not normalize queries and keys. There is no key for it.
const EXPERTS_WITHOUT_QK_NORM: u64 = 128;

/// Every n-th layer has no rotary embedding.
const NOPE_INTERVAL: u64 = 4;

/// The document of a checkpoint in GGUF.
///
/// # Errors
/// It is no Llama 4 model; a key is missing or cannot be; the rope is scaled in a way that no config describes.
pub(in crate::llama4) fn document(checkpoint: &Checkpoint) -> Result<Map<String, Value>, ConfigError> {
    let vision = Fields::of_vision(checkpoint);
    let Some(fields) = Fields::of_text(checkpoint) else {
        let path = checkpoint.files().first().map_or(checkpoint.folder(), |file| &file.path);
        let problem = match vision {
            Some(_) => "the vision part of a model (mmproj) alone",
            None => "no `general.architecture` says what model this is",
        };
        let hint = Some("name the folder that holds the text model's file too".to_owned());
        return Err(ConfigError { file: path.to_path_buf(), field: None, problem: problem.into(), hint });
    };
    match fields.architecture() {
        Some("llama4") => {}
        other => {
            let problem = format!("a `{}` model, not Llama 4", shown(other.unwrap_or_default()));
            let hint = Some("this program works on Llama 4, `llama4` in GGUF".to_owned());
            return Err(ConfigError { hint, ..fields.error("general.architecture", problem) });
        }
    }
    let text = text(&fields, checkpoint)?;
    let dtype = torch_dtype(&fields)?;
    let Some(vision) = vision else {
        let mut document = Map::new();
        document.insert("architectures".into(), json!([Model::TextOnly.architecture()]));
        document.extend(text);
        document.insert("torch_dtype".into(), dtype.into());
        return Ok(document);
    };
    let mut document = Map::new();
    document.insert("architectures".into(), json!([Model::Multimodal.architecture()]));
    for (field, token) in [
        ("boi_token_index", "<|image_start|>"),
        ("eoi_token_index", "<|image_end|>"),
        ("image_token_index", "<|patch|>"),
    ] {
        let mut tokens = fields.keys.strings("tokenizer.ggml.tokens").into_iter().flatten();
        if let Some(id) = tokens.position(|text| text == token) {
            document.insert(field.into(), id.into());
        }
    }
    document.insert("model_type".into(), "llama4".into());
    document.insert("tie_word_embeddings".into(), text["tie_word_embeddings"].clone());
    document.insert("text_config".into(), text.into());
    document.insert("torch_dtype".into(), dtype.into());
    document.insert("vision_config".into(), vision_document(&vision, checkpoint)?.into());
    Ok(document)
}

/// The format that most tensors had before they were quantized, as far as the file tells (`enum llama_ftype`).
fn torch_dtype(fields: &Fields<'_>) -> Result<&'static str, ConfigError> {
    Ok(match fields.whole("general.file_type")? {
        Some(0) => "float32",
        Some(1) => "float16",
        _ => "bfloat16",
    })
}

/// The text model's section.
fn text(fields: &Fields<'_>, checkpoint: &Checkpoint) -> Result<Map<String, Value>, ConfigError> {
    let key = |name: &str| format!("llama4.{name}");
    let required = |name: &str| fields.required(&key(name));
    let heads = required("attention.head_count")?;
    let width = required("embedding_length")?;
    let head_dim = match fields.whole(&key("attention.key_length"))? {
        Some(length) => length,
        None => width / heads.max(1),
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(length) = fields.whole(&key(name))?.filter(|length| *length != head_dim) {
            let problem = format!("`{length}`, and keys have {head_dim}: Llama 4 has the same for all");
            return Err(fields.error(&key(name), problem));
        }
    }
    let experts = required("expert_count")?;
    let layers = required("block_count")?;
    let theta = fields.float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    check_rope(fields, &key)?;
    let rows = |role: Role| {
        let id = checkpoint.find(&text_name(role, None))?;
        checkpoint.tensors()[id].shape.first().copied()
    };
    let vocabulary = match fields.whole(&key("vocab_size"))? {
        Some(size) => Some(size),
        None => rows(Role::Embedding),
    };
    let unchunked = fields.whole(&key("attention.sliding_window"))? == Some(0);
    let token = |name: &str| fields.whole(&format!("tokenizer.ggml.{name}_token_id"));
    let document = json!({
        "model_type": "llama4_text",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": fields.whole(&key("attention.head_count_kv"))?.unwrap_or(heads),
        "head_dim": head_dim,
        "intermediate_size": required("expert_feed_forward_length")?,
        "intermediate_size_mlp": required("feed_forward_length")?,
        "num_local_experts": experts,
        "num_experts_per_tok": required("expert_used_count")?,
        "interleave_moe_layer_step": required("interleave_moe_layer_step")?,
        "no_rope_layer_interval": if unchunked { layers.saturating_add(1) } else { NOPE_INTERVAL },
        "attention_chunk_size": if unchunked { Value::Null } else { CHUNK.into() },
        "use_qk_norm": experts != EXPERTS_WITHOUT_QK_NORM,
        "attn_temperature_tuning": true,
        "floor_scale": CHUNK,
        "attn_scale": 0.1,
        "rope_theta": theta,
        "rope_scaling": rope_scaling(fields, checkpoint, head_dim, theta)?,
        "max_position_embeddings": required("context_length")?,
        "vocab_size": vocabulary,
        "rms_norm_eps": fields.float(&key("attention.layer_norm_rms_epsilon"))?,
        "hidden_act": "silu",
        "attention_bias": false,
        "tie_word_embeddings": checkpoint.find(&text_name(Role::LmHead, None)).is_none(),
        "bos_token_id": token("bos")?,
        "eos_token_id": token("eos")?,
        "pad_token_id": token("padding")?,
    });
    match document {
        Value::Object(document) => Ok(document),
        _ => unreachable!("an object was made"),
    }
}

/// Refuses what llama.cpp would do and no config of Llama 4 can say.
fn check_rope(fields: &Fields<'_>, key: &impl Fn(&str) -> String) -> Result<(), ConfigError> {
    let name = key("rope.scaling.type");
    match fields.text(&name)? {
        None | Some("none") => {}
        Some(other) => {
            let problem = format!("`{}` is not known for Llama 4, whose scaling is in `{ROPE_FACTORS}`", shown(other));
            return Err(fields.error(&name, problem));
        }
    }
    let name = key("rope.freq_base_swa");
    match (fields.float(&name)?, fields.float(&key("rope.freq_base"))?) {
        (Some(chunked), Some(base)) if chunked != base => {
            Err(fields.error(&name, format!("`{chunked}`, and `{base}` elsewhere: Llama 4 has one base")))
        }
        _ => Ok(()),
    }
}

/// `rope_scaling` from the tensor of divisors.
fn rope_scaling(fields: &Fields<'_>, checkpoint: &Checkpoint, head_dim: u64, theta: f64) -> Result<Value, ConfigError> {
    let Some(id) = checkpoint.find(ROPE_FACTORS) else { return Ok(Value::Null) };
    let tensor = &checkpoint.tensors()[id];
    if tensor.dtype != Dtype::F32 || tensor.shape != [head_dim / 2] {
        let (dtype, shape) = (tensor.dtype, &tensor.shape);
        return Err(fields.error(ROPE_FACTORS, format!("{dtype} {shape:?} instead of F32 [{}]", head_dim / 2)));
    }
    let bytes = checkpoint.bytes(id).chunks_exact(4);
    let factors: Vec<f32> = bytes.map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect();
    match rope::scaling(&factors, head_dim as usize, theta) {
        Ok(None) => Ok(Value::Null),
        Ok(Some(scaling)) => Ok(json!({
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        })),
        Err(problem) => Err(fields.error(ROPE_FACTORS, problem)),
    }
}

/// The vision model's section. Sizes that have no key are those of the tensors.
fn vision_document(fields: &Fields<'_>, checkpoint: &Checkpoint) -> Result<Map<String, Value>, ConfigError> {
    let key = |name: &str| format!("clip.vision.{name}");
    if let Some(other) = fields.text("clip.projector_type")?.filter(|kind| *kind != "llama4") {
        return Err(fields.error("clip.projector_type", format!("`{}`, not Llama 4's", shown(other))));
    }
    let shape = |logical: &str| {
        let name = vision_name(logical)?;
        Some(checkpoint.tensors()[checkpoint.find(&name)?].shape.as_slice())
    };
    let extent = |logical: &str, axis: usize| shape(logical)?.get(axis).copied();
    let patch = fields.required(&key("patch_size"))?;
    let pixels = patch.saturating_mul(patch).max(1);
    let scale = fields.required(&key("projector.scale_factor"))?.max(1);
    let gelu = fields.flag("clip.use_gelu")?.unwrap_or(true);
    let document = json!({
        "model_type": "llama4_vision_model",
        "hidden_size": fields.required(&key("embedding_length"))?,
        "num_hidden_layers": fields.required(&key("block_count"))?,
        "num_attention_heads": fields.required(&key("attention.head_count"))?,
        "intermediate_size": fields.required(&key("feed_forward_length"))?,
        "num_channels": extent("vision_model.patch_embedding.linear", 1).map(|inputs| inputs / pixels),
        "image_size": fields.required(&key("image_size"))?,
        "patch_size": patch,
        "norm_eps": fields.float(&key("attention.layer_norm_epsilon"))?,
        "rope_theta": 10_000.0,
        "pixel_shuffle_ratio": 1.0 / scale as f64,
        "projector_input_dim": extent("vision_model.vision_adapter.mlp.fc1", 0),
        "projector_output_dim": extent("vision_model.vision_adapter.mlp.fc2", 0),
        "vision_output_dim": extent("multi_modal_projector.linear_1", 1),
        "multi_modal_projector_bias": false,
        "vision_feature_select_strategy": "default",
        "hidden_act": if gelu { "gelu" } else { "silu" },
    });
    match document {
        Value::Object(document) => Ok(document),
        _ => unreachable!("an object was made"),
    }
}
