//! `config.json` of a Llama 4 checkpoint, in every style that is in use, as one checked struct.
//!
//! Two styles: the published one of April 2025 (`rope_theta`, `rope_scaling`, `torch_dtype`, `attn_temperature_tuning: 4`, `floor_scale: 8192.0`)
//! and that of transformers 5 (`rope_parameters`, `dtype`, `layer_types`). Two models: `Llama4ForConditionalGeneration` with the text
//! model in `text_config`, and the text-only `Llama4ForCausalLM`, whose document is the text model's. Every dimension comes from the
//! document, and from transformers' defaults where the document leaves it out. Knows no tensor.

mod converted;
mod fields;
pub(super) mod meta;
mod text;
mod vision;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use converted::Conversion;
pub use fields::ConfigError;
pub use text::{Llama3Scaling, Rope, TextConfig};
pub use vision::VisionConfig;

use super::gguf;
use crate::checkpoint::{Checkpoint, rank_of, shown};
use crate::dtype::Dtype;
use fields::Fields;

/// Which of the two models a checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Text and images: `Llama4ForConditionalGeneration`.
    Multimodal,
    /// Text alone: `Llama4ForCausalLM`.
    TextOnly,
}

impl Model {
    /// The class in transformers, as `architectures` spells it.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Multimodal => "Llama4ForConditionalGeneration",
            Self::TextOnly => "Llama4ForCausalLM",
        }
    }
}

/// Tokens that stand for images in a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageTokens {
    /// Begins an image.
    pub boi: u32,
    /// Ends an image.
    pub eoi: u32,
    /// Is replaced by one vector of the vision model.
    pub image: u32,
}

/// A Llama 4 model's shape and switches.
#[derive(Clone, Debug)]
pub struct Config {
    /// Text and images, or text alone.
    pub model: Model,
    /// The text model.
    pub text: TextConfig,
    /// The vision model; `None` in a text-only model.
    pub vision: Option<VisionConfig>,
    /// Tokens for images; `None` in a text-only model.
    pub image_tokens: Option<ImageTokens>,
    /// What the document says of the weights' format (`dtype`, or `torch_dtype`); the tensors themselves decide.
    pub dtype: Option<Dtype>,
    /// How the checkpoint is quantized, for whoever can read it; `None` if it is not.
    pub quantization: Option<Value>,
    /// The document itself, in its own order. An object.
    document: Map<String, Value>,
    /// Whether the text model's fields are in `text_config`.
    nested: bool,
}

impl Config {
    /// The config of an open checkpoint.
    ///
    /// # Errors
    /// As [`Config::parse`], and if the checkpoint has no `config.json` and is not in GGUF, whose keys are its config. Of Meta's files,
    /// if `params.json` is not there, or says of the tensors that they are pieces of more ranks than there are files.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, ConfigError> {
        let file = |name: &str| checkpoint.folder().join(name);
        if gguf::is_gguf(checkpoint) {
            let path = checkpoint.files().first().map_or_else(|| file(""), |file| file.path.clone());
            return Self::of_document(&path, gguf::config::document(checkpoint)?);
        }
        match checkpoint.config() {
            Some((name @ "params.json", json)) => {
                let document = meta::document(&file(name), json, &meta::Facts::of(checkpoint))?;
                let config = Self::of_document(&file(name), document)?;
                super::meta::require_all_ranks(checkpoint, &config)?;
                Ok(config)
            }
            Some((name, json)) => Self::parse(&file(name), json),
            // The folder and not the file: it is there, and `inspect` takes a file that is not for a missing `config.json`.
            None if checkpoint.files().iter().any(|file| rank_of(&file.name).is_some()) => Err(ConfigError {
                file: checkpoint.folder().to_path_buf(),
                field: None,
                problem: "`params.json` is missing beside Meta's files of weights".to_string(),
                hint: Some("fetch `params.json` from where the weights came from".to_string()),
            }),
            None => Err(ConfigError {
                file: file("config.json"),
                field: None,
                problem: "missing beside the weights".to_string(),
                hint: Some("fetch `config.json` from where the weights came from".to_string()),
            }),
        }
    }

    /// Parses and checks a document; `file` is for messages.
    ///
    /// # Errors
    /// Text that is not a JSON object, a model that is not Llama 4 (named in the message), and any field whose value cannot be.
    pub fn parse(file: &Path, json: &[u8]) -> Result<Self, ConfigError> {
        let error = |problem: String| ConfigError { file: PathBuf::from(file), field: None, problem, hint: None };
        let document = match serde_json::from_slice(json) {
            Ok(Value::Object(document)) => document,
            Ok(_) => return Err(error("not a JSON object".to_string())),
            Err(e) => return Err(error(format!("not JSON: {e}"))),
        };
        Self::of_document(file, document)
    }

    /// Checks a document that has been read; `file` is for messages.
    fn of_document(file: &Path, document: Map<String, Value>) -> Result<Self, ConfigError> {
        let top = Fields { file, section: "", map: &document };
        let model = which_model(&top)?;
        let text = top.object("text_config", "text_config.")?;
        let nested = text.is_some();
        if !nested && top.get("hidden_size").is_none() {
            // transformers would fill in Scout's numbers here. A checkpoint whose config lost its text model is damaged instead.
            return Err(top.error("text_config", "missing"));
        }
        let tie_word_embeddings = top.flag("tie_word_embeddings", false)?;
        let text = TextConfig::read(&text.unwrap_or(top), tie_word_embeddings)?;
        let empty = Map::new();
        let (vision, image_tokens) = match model {
            Model::TextOnly => (None, None),
            Model::Multimodal => {
                let absent = Fields { section: "vision_config.", map: &empty, ..top };
                let vision = top.object("vision_config", "vision_config.")?.unwrap_or(absent);
                (Some(VisionConfig::read(&vision)?), Some(read_image_tokens(&top)?))
            }
        };
        let quantization = top.get("quantization_config").cloned();
        Ok(Self { model, text, vision, image_tokens, dtype: read_dtype(&top)?, quantization, document, nested })
    }

    /// The same model as an instruction-tuned one, where the document came from Meta's `params.json`, which does not tell:
    /// tokens that end a turn, and the longest context.
    ///
    /// # Errors
    /// The vocabulary has no room for these tokens.
    pub fn instructed(&self) -> Result<Self, ConfigError> {
        let mut document = self.document.clone();
        meta::set_instruct(&mut document);
        Self::of_document(Path::new("params.json"), document)
    }

    /// `generation_config.json` as the published instruction-tuned models have it.
    pub fn generation_config(&self) -> Value {
        meta::generation_config(&self.text)
    }

    /// `preprocessor_config.json`; `None` for a text-only model.
    pub fn preprocessor_config(&self) -> Option<Value> {
        self.vision.as_ref().map(meta::preprocessor_config)
    }

    /// The document as it was read, in its own order.
    pub fn document(&self) -> &Map<String, Value> {
        &self.document
    }

    /// The document for a checkpoint made from this one: the same fields in the same order, spelled so that every engine reads them.
    ///
    /// `attn_temperature_tuning` becomes true or false and `floor_scale` an integer: transformers 5 and vLLM refuse the published `4` and
    /// `8192.0`. `quantization` takes the place of the document's `quantization_config`, or removes it if `None`.
    pub fn output_document(&self, quantization: Option<Value>) -> Value {
        let mut document = self.document.clone();
        let text = if self.nested {
            document.get_mut("text_config").and_then(Value::as_object_mut)
        } else {
            Some(&mut document)
        };
        if let Some(text) = text {
            if let Some(flag) = text.get_mut("attn_temperature_tuning") {
                *flag = self.text.attn_temperature_tuning.into();
            }
            if let Some(floor_scale) = text.get_mut("floor_scale") {
                *floor_scale = self.text.floor_scale.into();
            }
        }
        match quantization {
            // In place where the field is there, else at the end.
            Some(quantization) => drop(document.insert("quantization_config".to_string(), quantization)),
            // Not `remove`, which moves the last field into the gap.
            None => drop(document.shift_remove("quantization_config")),
        }
        Value::Object(document)
    }
}

/// What the document says it is.
fn which_model(top: &Fields<'_>) -> Result<Model, ConfigError> {
    let model_type = top.text("model_type")?;
    let architectures = top.list("architectures", "a string", Value::as_str)?.unwrap_or_default();
    let named = [Model::Multimodal, Model::TextOnly].into_iter().find(|m| architectures.contains(&m.architecture()));
    let model = match (model_type, named) {
        (None | Some("llama4" | "llama4_text"), Some(model)) => Some(model),
        (Some("llama4"), None) if architectures.is_empty() => Some(Model::Multimodal),
        (Some("llama4_text"), None) if architectures.is_empty() => Some(Model::TextOnly),
        _ => None,
    };
    model.ok_or_else(|| {
        let problem = match (model_type, architectures.first().copied()) {
            (Some(kind), Some(class)) => format!("a `{}` model (`{}`), not Llama 4", shown(kind), shown(class)),
            (Some(name), None) | (None, Some(name)) => format!("a `{}` model, not Llama 4", shown(name)),
            (None, None) => "neither `model_type` nor `architectures` says what model this is".to_string(),
        };
        let [multimodal, text_only] = [Model::Multimodal, Model::TextOnly].map(Model::architecture);
        let hint = format!("this program works on Llama 4: `{multimodal}` and `{text_only}`");
        ConfigError { file: top.file.to_path_buf(), field: None, problem, hint: Some(hint) }
    })
}

fn read_image_tokens(top: &Fields<'_>) -> Result<ImageTokens, ConfigError> {
    // The second spelling is `attribute_map` of `Llama4Config`.
    let token = |key, alias, default: u32| match top.token(key, None)? {
        Some(id) => Ok(id),
        None => Ok(top.token(alias, None)?.unwrap_or(default)),
    };
    Ok(ImageTokens {
        boi: token("boi_token_index", "boi_token_id", 200_080)?,
        eoi: token("eoi_token_index", "eoi_token_id", 200_081)?,
        image: token("image_token_index", "image_token_id", 200_092)?,
    })
}

/// PyTorch's name of a format, with or without `torch.`; names without a counterpart here (`auto`) count as not given.
fn read_dtype(top: &Fields<'_>) -> Result<Option<Dtype>, ConfigError> {
    let name = match top.text("dtype")? {
        Some(name) => Some(name),
        None => top.text("torch_dtype")?,
    };
    Ok(name.and_then(|name| match name.strip_prefix("torch.").unwrap_or(name) {
        "bfloat16" => Some(Dtype::BF16),
        "float16" | "half" => Some(Dtype::F16),
        "float32" | "float" => Some(Dtype::F32),
        "float64" | "double" => Some(Dtype::F64),
        "float8_e4m3fn" => Some(Dtype::F8_E4M3),
        _ => None,
    }))
}
