//! The vision part as a file of its own, which llama.cpp calls mmproj: its tensors and keys, and what llama.cpp takes for granted about it.
//!
//! The facts are those of `conversion/llama4.py`, `MmprojModel` in `conversion/base.py` and `tools/mtmd/clip.cpp` of llama.cpp, commit
//! 0c1e57098. One of them is not followed: that converter calls the second norm of a layer `attn_post_norm`, and the program that reads it
//! computes something else with a tensor of that name; see [`names`](crate::llama4::gguf::names).

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value as Json;

use super::keys::{About, Key, general, quantization_version, text, value};
use super::mix::FileType;
use super::tensors::GgufTensor;
use super::tokenizer::json;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::gguf::{Content, Value};
use crate::error::hint;
use crate::llama4::config::{TextConfig, VisionConfig};
use crate::llama4::gguf::names::vision_name;
use crate::llama4::{Llama4, Role};

/// `hparams.rope_theta` of this kind of projector.
const ROPE_THETA: f64 = 10_000.0;

/// Colours of a pixel, and of the kernel that llama.cpp makes of the patch embedding.
const CHANNELS: usize = 3;

/// Where a processor's settings are, the file that goes first in front.
const PROCESSORS: [&str; 2] = ["processor_config.json", "preprocessor_config.json"];

/// What Llama 4's image processor subtracts and divides by where no file says anything else (transformers,
/// `image_processing_llama4.py`).
const HALF: f32 = 0.5;

/// How the values of a picture's colours are prepared: less the mean, over the standard deviation.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalization {
    /// For each colour.
    pub mean: Vec<f32>,
    /// For each colour.
    pub std: Vec<f32>,
}

impl Normalization {
    /// What a checkpoint's own keys say, or what lies beside it.
    ///
    /// # Errors
    /// A file is not JSON or cannot be read, or says something else than three numbers.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        Ok(Self { mean: colours(checkpoint, "image_mean")?, std: colours(checkpoint, "image_std")? })
    }
}

/// The three numbers called `name`.
fn colours(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let key = format!("clip.vision.{name}");
    if let Some(numbers) = (0..checkpoint.files().len()).find_map(|file| checkpoint.keys(file)?.numbers(&key)) {
        let numbers: Option<Vec<f32>> =
            numbers.take(CHANNELS + 1).map(|number| Some(number.as_f64()? as f32)).collect();
        let three = numbers.filter(|numbers| numbers.len() == CHANNELS);
        return three.with_context(|| format!("the key `{key}` is not three numbers"));
    }
    if checkpoint.require_here().is_ok() {
        for file in PROCESSORS {
            let Some(document) = json(checkpoint, file)? else { continue };
            let sections = [document.get("image_processor"), Some(&document)];
            let mut found = sections.into_iter().flatten().filter_map(|section| section.get(name));
            if let Some(found) = found.find(|found| !found.is_null()) {
                return three(found).with_context(|| format!("`{file}`: `{name}` is {found}, not three numbers"));
            }
        }
    }
    Ok(vec![HALF; CHANNELS])
}

fn three(list: &Json) -> Option<Vec<f32>> {
    let list = list.as_array().filter(|list| list.len() == CHANNELS)?;
    list.iter().map(|number| Some(number.as_f64()? as f32)).collect()
}

/// The vision part of a model.
///
/// # Errors
/// There is none, or llama.cpp would compute another one; says what it takes for granted.
pub fn part(model: &Llama4) -> Result<&VisionConfig> {
    let Some(vision) = &model.config.vision else {
        return Err(hint("this model has no vision part", "leave `--mmproj` out to write the text model"));
    };
    let granted = [
        (
            vision.rope_theta == ROPE_THETA,
            format!("a rotation with the base {ROPE_THETA}"),
            vision.rope_theta.to_string(),
        ),
        (vision.num_channels == CHANNELS, format!("{CHANNELS} colours"), vision.num_channels.to_string()),
        (vision.hidden_act == "gelu", "GELU".to_owned(), format!("`{}`", vision.hidden_act)),
        (!vision.multi_modal_projector_bias, "no bias in the projector".to_owned(), "one".to_owned()),
        (
            shuffled(vision).is_some(),
            "a pixel shuffle that divides the sides by a whole number".to_owned(),
            format!("a ratio of {}", vision.pixel_shuffle_ratio),
        ),
    ];
    match granted.into_iter().find(|(fits, ..)| !fits) {
        None => Ok(vision),
        Some((_, theirs, ours)) => Err(hint(
            format!(
                "llama.cpp cannot run this model's vision part: it takes {theirs} for granted, and this one has {ours}"
            ),
            "GGUF has no key for this; other containers have, such as `l4tool convert --to hf`",
        )),
    }
}

/// By how much the pixel shuffle divides the sides of a picture.
fn shuffled(vision: &VisionConfig) -> Option<u32> {
    let factor = (1.0 / vision.pixel_shuffle_ratio).round();
    // A ratio such as a third has no exact number.
    let fits = (vision.pixel_shuffle_ratio * factor - 1.0).abs() < 1e-6 && factor <= f64::from(u32::MAX);
    fits.then_some(factor as u32)
}

/// Every tensor of the vision part, by name: the order of `llama-quantize`, which finds no layers in these names.
pub fn tensors(model: &Llama4) -> Vec<GgufTensor> {
    let weights = model.weights.iter().enumerate();
    let of_vision = weights.filter(|(_, weight)| matches!(weight.role, Role::Vision | Role::Projector));
    // A weight without a name is a bias of the projector, and such models were refused.
    let named: BTreeMap<String, usize> =
        of_vision.filter_map(|(index, weight)| Some((vision_name(&weight.name)?, index))).collect();
    named.into_iter().map(|(name, index)| GgufTensor::of_weights(name, vec![index], model)).collect()
}

/// Every key, in the order of the converter.
///
/// # Panics
/// If the vision part is none that [`part`] gives.
pub fn keys(
    (language, vision): (&TextConfig, &VisionConfig),
    file_type: FileType,
    tensors: &[GgufTensor],
    about: &About,
    normalization: Normalization,
) -> Vec<Key> {
    let own = |key: &str| format!("clip.vision.{key}");
    // All of these were checked to be small.
    let size = |key: &str, size: usize| value(own(key), Value::U32(size as u32));
    let mut keys = vec![text("general.architecture", "clip"), text("general.type", "mmproj")];
    keys.extend(general(tensors, about));
    keys.extend([
        value("general.file_type", Value::U32(file_type.number())),
        value("clip.has_vision_encoder", Value::Bool(true)),
        size("projection_dim", language.hidden_size),
        size("image_size", vision.image_size),
        size("patch_size", vision.patch_size),
        size("embedding_length", vision.hidden_size),
        size("feed_forward_length", vision.intermediate_size),
        size("block_count", vision.num_hidden_layers),
        size("attention.head_count", vision.num_attention_heads),
        (own("image_mean"), Content::Floats(normalization.mean)),
        (own("image_std"), Content::Floats(normalization.std)),
        text("clip.projector_type", "llama4"),
        value(own("attention.layer_norm_epsilon"), Value::F32(vision.norm_eps as f32)),
        value(own("projector.scale_factor"), Value::U32(shuffled(vision).expect("the vision part was checked"))),
        value("clip.use_gelu", Value::Bool(true)),
        quantization_version(),
    ]);
    keys
}
