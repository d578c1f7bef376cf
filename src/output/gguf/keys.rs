//! The keys of a GGUF file that describe the model, in the order of llama.cpp's converter.
//!
//! `conversion/base.py` and `conversion/llama.py` of llama.cpp, commit 0c1e57098. What the converter guesses from the names of folders and
//! from model cards is left out: it would make the bytes depend on where a checkpoint lies.

use serde_json::Value as Json;

use super::limits::Pattern;
use super::mix::FileType;
use super::tensors::GgufTensor;
use crate::checkpoint::gguf::{Content, Value};
use crate::llama4::config::TextConfig;

/// What `general.architecture` says, and what the model's own keys begin with.
const ARCHITECTURE: &str = "llama4";

/// `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;

/// A key with its value.
pub type Key = (String, Content);

/// What is known of the model besides its config.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The model's name.
    pub name: Option<String>,
    /// `generation_config.json`.
    pub generation: Option<Json>,
}

pub(super) fn value(key: impl Into<String>, value: Value) -> Key {
    (key.into(), Content::Value(value))
}

pub(super) fn text(key: impl Into<String>, text: &str) -> Key {
    value(key, Value::String(text.to_owned()))
}

/// Every key of the text model but those of the tokenizer.
pub fn keys(
    config: &TextConfig,
    pattern: Pattern,
    file_type: FileType,
    tensors: &[GgufTensor],
    about: &About,
) -> Vec<Key> {
    let mut keys = vec![text("general.architecture", ARCHITECTURE), text("general.type", "model")];
    keys.extend(general(tensors, about));
    let own = |key: &str| format!("{ARCHITECTURE}.{key}");
    // Counts are bounded by the config's own checks; a context beyond 2^32 is as good as that.
    let count = |key: &str, count: u64| value(own(key), Value::U32(u32::try_from(count).unwrap_or(u32::MAX)));
    let size = |key: &str, size: usize| count(key, size as u64);
    let float = |key: &str, number: f64| value(own(key), Value::F32(number as f32));
    keys.extend([
        size("block_count", config.num_hidden_layers),
        count("context_length", config.max_position_embeddings),
        size("embedding_length", config.hidden_size),
        size("feed_forward_length", config.intermediate_size_mlp),
        size("attention.head_count", config.num_attention_heads),
        size("attention.head_count_kv", config.num_key_value_heads),
        float("rope.freq_base", config.rope.theta),
        float("attention.layer_norm_rms_epsilon", config.rms_norm_eps),
        size("expert_count", config.num_local_experts),
        size("expert_used_count", config.num_experts_per_tok),
        size("attention.key_length", config.head_dim),
        size("attention.value_length", config.head_dim),
        value("general.file_type", Value::U32(file_type.number())),
        size("vocab_size", config.vocab_size),
        size("rope.dimension_count", config.head_dim),
        size("interleave_moe_layer_step", pattern.moe_step),
        size("expert_feed_forward_length", config.intermediate_size),
    ]);
    if pattern.rotates_everywhere {
        keys.push(size("attention.sliding_window", 0));
    }
    keys.push(quantization_version());
    keys
}

/// The version of the block formats, which is one for all.
pub(super) fn quantization_version() -> Key {
    value("general.quantization_version", Value::U32(QUANTIZATION_VERSION))
}

/// How tokens are chosen, as `generation_config.json` has it; name, size and licence.
pub(super) fn general(tensors: &[GgufTensor], about: &About) -> Vec<Key> {
    let mut keys = Vec::new();
    let setting = |name: &str| about.generation.as_ref()?.get(name)?.as_f64();
    if let Some(top_k) = setting("top_k") {
        keys.push(value("general.sampling.top_k", Value::I32(top_k as i32)));
    }
    for (key, name) in [("top_p", "top_p"), ("min_p", "min_p"), ("temp", "temperature")] {
        if let Some(number) = setting(name) {
            keys.push(value(format!("general.sampling.{key}"), Value::F32(number as f32)));
        }
    }
    if let Some(name) = &about.name {
        keys.push(text("general.name", name));
    }
    keys.push(text("general.size_label", &size_label(tensors)));
    // Whatever is made of Llama 4 is under its licence.
    keys.extend([text("general.license", "other"), text("general.license.name", "llama4")]);
    keys
}

/// Experts times what one of them and everything else has (`size_label` in `gguf-py/gguf/utility.py`).
fn size_label(tensors: &[GgufTensor]) -> String {
    let experts = |tensor: &GgufTensor| tensor.name.contains("_exps.").then(|| tensor.extents[2]);
    let parameters: u64 = tensors.iter().map(|tensor| tensor.numel() / experts(tensor).unwrap_or(1)).sum();
    match tensors.iter().find_map(experts) {
        Some(experts) => format!("{experts}x{}", rounded(parameters)),
        None => rounded(parameters),
    }
}

fn rounded(parameters: u64) -> String {
    let parameters = parameters as f64;
    let (scaled, letter) = match parameters {
        n if n > 1e12 => (n * 1e-12, 'T'),
        n if n > 1e9 => (n * 1e-9, 'B'),
        n if n > 1e6 => (n * 1e-6, 'M'),
        n => (n * 1e-3, 'K'),
    };
    let digits = match scaled.round_ties_even() as u64 {
        0 => 0,
        whole => whole.to_string().len(),
    };
    format!("{scaled:.*}{letter}", 2_usize.saturating_sub(digits))
}

/// The name of a repository as a title: `Llama-4-Scout` is `Llama 4 Scout` (`id_to_title` in `gguf-py/gguf/metadata.py`).
pub fn title(repository: &str) -> String {
    let name = repository.rsplit('/').next().unwrap_or(repository).replace('-', " ");
    let word = |word: &str| {
        let mut letters = word.chars();
        let is_lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
        let is_number = word.starts_with(|c: char| c.is_ascii_digit()) || is_version(word);
        match letters.next() {
            Some(first) if is_lower && !is_number => first.to_uppercase().chain(letters).collect::<String>(),
            _ => word.to_owned(),
        }
    };
    name.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// `v1`, `v1.2`.
fn is_version(word: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    word.strip_prefix('v').is_some_and(|rest| rest.split('.').all(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `model_weight_count_rounded_notation` and `id_to_title` of the Python package say.
    #[test]
    fn labels_and_titles_are_the_converter_s() {
        assert_eq!(rounded(17_170_000_000), "17B");
        assert_eq!(rounded(2_460_000), "2.5M");
        assert_eq!(rounded(999_600), "1000K");
        assert_eq!(rounded(12), "0.01K");
        assert_eq!(title("meta-llama/Llama-4-Scout-17B-16E-Instruct"), "Llama 4 Scout 17B 16E Instruct");
        assert_eq!(title("tiny-scout-v1.2"), "Tiny Scout v1.2");
    }
}
