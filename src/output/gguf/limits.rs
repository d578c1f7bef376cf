//! What a GGUF file cannot say about a Llama 4 model, because llama.cpp takes it for granted.
//!
//! The facts are those of llama.cpp's loader (`src/models/llama4.cpp`, commit 0c1e57098), which has no keys for any of this. What would
//! make it compute another model from the first token on is refused; what shows only in long texts is a warning.

use anyhow::Result;

use crate::error::hint;
use crate::llama4::config::TextConfig;

/// Tokens of a chunk of attention, and of a step of the temperature: `n_swa` and `n_attn_temp_floor_scale`.
const CHUNK: u64 = 8192;

/// `f_attn_temp_scale`.
const SCALE: f64 = 0.1;

/// Every fourth layer has no rotation (`load_swa_pattern(ml, 4)`, `n_no_rope_layer_step`).
const NO_ROPE_STEP: usize = 4;

/// The number of experts that tells a model without query and key norms.
const EXPERTS_WITHOUT_NORM: usize = 128;

/// `LLAMA_MAX_EXPERTS` and `LLAMA_MAX_LAYERS`.
const EXPERTS_MAX: usize = 1024;
const LAYERS_MAX: usize = 512;

/// How a model's layers are told to llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Every how many layers there are experts.
    pub moe_step: usize,
    /// Whether every layer rotates and none attends in chunks, which has a key.
    pub rotates_everywhere: bool,
}

/// Finds how the model is told to llama.cpp, and in which long texts it would differ, in sentences.
///
/// # Errors
/// llama.cpp would compute another model; says what it takes for granted.
pub fn check(text: &TextConfig) -> Result<(Pattern, Vec<String>)> {
    let refuse = |what: String| {
        hint(
            format!("llama.cpp cannot run this model: {what}"),
            "GGUF has no key for this; other containers have, such as `l4tool convert --to hf`",
        )
    };
    let experts = text.num_local_experts;
    if text.use_qk_norm == (experts == EXPERTS_WITHOUT_NORM) {
        return Err(refuse(format!(
            "it normalizes queries and keys unless there are {EXPERTS_WITHOUT_NORM} experts; this model has {experts}, and {}",
            if text.use_qk_norm { "normalizes them" } else { "does not" }
        )));
    }
    if experts > EXPERTS_MAX || text.num_hidden_layers > LAYERS_MAX {
        return Err(refuse(format!("it takes {EXPERTS_MAX} experts and {LAYERS_MAX} layers at most")));
    }
    if text.attention_bias {
        return Err(refuse("it knows no biases in Llama 4's attention".into()));
    }
    if text.hidden_act != "silu" {
        return Err(refuse(format!("it computes SiLU, and this model has `{}`", text.hidden_act)));
    }
    let steps = 1..=text.num_hidden_layers;
    let fits =
        |step: &usize| text.moe_layers.iter().enumerate().all(|(layer, moe)| *moe == (layer + 1).is_multiple_of(*step));
    let Some(moe_step) = steps.clone().find(fits) else {
        return Err(refuse("it takes experts in every n-th layer; this model has them elsewhere".into()));
    };
    let rotates_everywhere = text.rope_layers.iter().all(|&rotates| rotates) && !text.chunked_layers.contains(&true);
    let usual = |layer: usize| !(layer + 1).is_multiple_of(NO_ROPE_STEP);
    if !rotates_everywhere && text.rope_layers.iter().enumerate().any(|(layer, &rotates)| rotates != usual(layer)) {
        return Err(refuse(format!("it rotates in all layers but every {NO_ROPE_STEP}th; this model in others")));
    }
    Ok((Pattern { moe_step, rotates_everywhere }, if rotates_everywhere { Vec::new() } else { warnings(text) }))
}

fn warnings(text: &TextConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut beyond = |tokens: u64, granted: String, here: String| {
        warnings.push(format!(
            "llama.cpp takes {granted} for granted, and this model has {here}: they differ in texts of more than {tokens} tokens"
        ));
    };
    let chunk = text.attention_chunk_size.unwrap_or(u64::MAX);
    if chunk != CHUNK {
        let here = text.attention_chunk_size.map_or("none".into(), |chunk| format!("chunks of {chunk}"));
        beyond(chunk.min(CHUNK), format!("attention in chunks of {CHUNK}"), here);
    }
    if text.chunked_layers != text.rope_layers {
        beyond(chunk.min(CHUNK), "chunks in the layers that rotate".into(), "them in others".into());
    }
    let floor = text.floor_scale;
    if !text.attn_temperature_tuning {
        beyond(CHUNK, format!("a temperature that grows every {CHUNK} tokens"), "none".into());
    } else if floor != CHUNK || text.attn_scale != SCALE {
        let (granted, here) =
            (format!("{SCALE} in steps of {CHUNK}"), format!("{} in steps of {floor}", text.attn_scale));
        beyond(floor.min(CHUNK), format!("a temperature that grows by {granted}"), format!("one that grows by {here}"));
    }
    warnings
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::llama4::config::Config;

    fn text(name: &str) -> TextConfig {
        let path = format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"));
        Config::parse(Path::new(&path), &std::fs::read(&path).unwrap()).unwrap().text
    }

    #[test]
    fn published_models_fit() {
        let pattern = |name| check(&text(name)).unwrap();
        let plain = |moe_step| Pattern { moe_step, rotates_everywhere: false };
        assert_eq!(pattern("configs/scout-instruct.json"), (plain(1), vec![]));
        assert_eq!(pattern("configs/maverick-instruct.json"), (plain(2), vec![]));
        let (_, warnings) = pattern("tiny-scout/config.json");
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("more than 128 tokens"), "{warnings:?}");
        assert!(warnings[1].contains("more than 96 tokens"), "{warnings:?}");
    }

    #[test]
    fn what_llama_cpp_would_compute_otherwise_is_refused() {
        let scout = || text("configs/scout-instruct.json");
        let refused = |text: &TextConfig| check(text).unwrap_err().to_string();
        assert!(refused(&TextConfig { use_qk_norm: false, ..scout() }).contains("normalizes queries"));
        assert!(refused(&TextConfig { num_local_experts: 128, ..scout() }).contains("normalizes queries"));
        let mut other = scout();
        other.rope_layers[3] = true;
        assert!(refused(&other).contains("rotates"));
        let mut other = scout();
        other.moe_layers[0] = false;
        assert!(refused(&other).contains("experts in every"));
        let everywhere = TextConfig { rope_layers: vec![true; 48], chunked_layers: vec![false; 48], ..scout() };
        assert!(check(&everywhere).unwrap().0.rotates_everywhere);
    }
}
