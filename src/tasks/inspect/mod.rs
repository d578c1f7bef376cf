//! `inspect`: what is in a checkpoint, and what it takes to serve it, from headers and config alone.
//!
//! Opens no more than headers, so it costs the same for 400 billion parameters as for four hundred. Counts are of
//! logical parameters whatever stores them; bytes are those in the files. It must not read a weight.

mod experts;
mod foreign;
mod gguf;
mod memory;
mod settings;
mod tensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

pub use crate::llama4::memory::{Device, KvBytes, KvCache, USABLE};
pub use experts::ExpertLayer;
pub use gguf::{GgufFacts, GgufFile};
pub use memory::{Fit, Memory, SchemeMemory, Suggestion};
pub use settings::{RopeSettings, Settings, VisionSettings};
pub use tensors::TensorLine;

use crate::dtype::Dtype;
use crate::llama4::{Dialect, Expected, Llama4, Problem, ProblemKind, Role, expected};

/// What to inspect.
#[derive(Clone, Debug)]
pub struct Options {
    /// A folder, or a file with tensors.
    pub source: PathBuf,
}

/// What is in a checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `l4tool.inspect/1`.
    pub schema: &'static str,
    /// The checkpoint, as the user named it.
    pub checkpoint: PathBuf,
    /// The container: `safetensors`, `torch` or `gguf`.
    pub format: &'static str,
    /// The model's class in transformers.
    pub architecture: &'static str,
    /// Whether nothing is missing and everything fits the config. Unexpected tensors do not count.
    pub complete: bool,
    /// The config, with what it leaves out filled in.
    pub config: Settings,
    /// Numbers of parameters.
    pub parameters: Parameters,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Tensors and bytes by element type.
    pub dtypes: BTreeMap<Dtype, DtypeCount>,
    /// The parts of the model, in the order of a forward pass.
    pub components: Vec<Component>,
    /// How it is quantized.
    pub quantization: Quantization,
    /// What GGUF files say of themselves; none for another container.
    pub gguf: Option<GgufFacts>,
    /// The files.
    pub files: Vec<FileLine>,
    /// Every tensor, by file and position in it.
    pub tensors: Vec<TensorLine>,
    /// Every layer that has routed experts.
    pub experts: Vec<ExpertLayer>,
    /// What it takes to serve the model.
    pub memory: Memory,
    /// What is missing, does not fit, or is no part of the model.
    pub problems: Vec<Problem>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

/// Numbers of logical parameters: what a matrix has before it is quantized.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// In the weights that are there.
    pub total: u64,
    /// That the config promises; `total`, if nothing is missing.
    pub promised: u64,
    /// Of the text model, as promised.
    pub text: u64,
    /// Of the text model that one token passes through: everything, with `num_experts_per_tok` of the routed experts.
    /// Embedding and head count in full.
    pub active: u64,
    /// `total`, by the part of the model.
    pub by_role: BTreeMap<&'static str, u64>,
}

/// Tensors of one element type.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct DtypeCount {
    /// How many.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One part of the model.
#[derive(Clone, Debug, Serialize)]
pub struct Component {
    /// `routed_experts`, `attention`, ...
    pub role: &'static str,
    /// Matrices and vectors.
    pub weights: u64,
    /// Parameters.
    pub parameters: u64,
    /// Bytes, with scales and all that belongs to them.
    pub bytes: u64,
    /// How many weights are stored in which way: a scheme, or `bf16`, `f16`, `f32`.
    pub stored_as: BTreeMap<String, u64>,
}

/// How a checkpoint is quantized.
#[derive(Clone, Debug, Serialize)]
pub struct Quantization {
    /// `quant_method` of the config.
    pub method: Option<String>,
    /// `format` of the config.
    pub format: Option<String>,
    /// What is stored in each scheme; empty if nothing is quantized.
    pub schemes: BTreeMap<String, SchemeCount>,
}

/// What is stored in one scheme.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SchemeCount {
    /// Matrices.
    pub weights: u64,
    /// Parameters.
    pub parameters: u64,
    /// Bytes, with scales and all that belongs to them.
    pub bytes: u64,
    /// Bits per parameter.
    pub bits_per_weight: f64,
    /// Matrices, by the part of the model.
    pub by_role: BTreeMap<&'static str, u64>,
}

/// One file with tensors.
#[derive(Clone, Debug, Serialize)]
pub struct FileLine {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Tensors in it.
    pub tensors: u64,
}

/// Looks at a checkpoint.
///
/// # Errors
/// It is no safetensors checkpoint (the error says what it is instead, where that shows), its headers are malformed, or it
/// has no config of a Llama 4 model. Missing and odd weights are no errors but [`Report::problems`].
pub fn run(options: &Options) -> Result<Report> {
    let model = Llama4::open(&options.source).map_err(|error| foreign::explain(&options.source, error))?;
    Ok(describe(&options.source, &model))
}

/// Looks at a checkpoint that somebody opened, also one of which only headers are here. The report calls it `source`.
pub fn describe(source: &Path, model: &Llama4) -> Report {
    let promised = expected(&model.config);
    let components = components(model);
    let quantization = quantization(model);
    let problems = model.problems.clone();
    Report {
        schema: "l4tool.inspect/1",
        checkpoint: source.to_path_buf(),
        format: match model.dialect {
            Dialect::HuggingFace => "safetensors",
            Dialect::Meta => "torch",
            Dialect::Gguf => "gguf",
        },
        architecture: model.config.model.architecture(),
        complete: problems
            .iter()
            .all(|problem| matches!(problem.kind, ProblemKind::Unexpected | ProblemKind::Misnamed)),
        config: Settings::of(&model.config),
        parameters: parameters(model, &promised, &components),
        bytes: model.checkpoint.tensor_bytes(),
        dtypes: dtypes(model),
        components,
        quantization,
        gguf: gguf::facts(model),
        files: files(model),
        tensors: tensors::lines(model, &promised),
        experts: experts::layers(model),
        memory: memory::view(model, &promised),
        problems,
        notes: notes(model),
    }
}

/// Adds up without wrapping: a config may promise more than 2^64 of anything.
fn total(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

fn parameters(model: &Llama4, promised: &[Expected], components: &[Component]) -> Parameters {
    let text = || promised.iter().filter(|weight| !matches!(weight.role, Role::Vision | Role::Projector));
    let (routed, rest): (Vec<&Expected>, Vec<&Expected>) = text().partition(|weight| weight.role.is_expert());
    let per_token = model.config.text.num_experts_per_tok;
    // Experts of a layer are alike, so the first ones stand for those that a token is sent to.
    let active = routed.iter().filter(|weight| weight.expert.is_some_and(|expert| expert < per_token)).chain(&rest);
    Parameters {
        total: total(components.iter().map(|component| component.parameters)),
        promised: total(promised.iter().map(Expected::numel)),
        text: total(text().map(Expected::numel)),
        active: total(active.map(|weight| weight.numel())),
        by_role: components.iter().map(|component| (component.role, component.parameters)).collect(),
    }
}

impl Expected {
    /// Number of parameters; a config that asks for more than 2^64 gets that many.
    fn numel(&self) -> u64 {
        self.shape.iter().fold(1, |product: u64, &n| product.saturating_mul(n as u64))
    }
}

fn dtypes(model: &Llama4) -> BTreeMap<Dtype, DtypeCount> {
    let mut dtypes: BTreeMap<Dtype, DtypeCount> = BTreeMap::new();
    for tensor in model.checkpoint.tensors() {
        let count = dtypes.entry(tensor.dtype).or_default();
        count.tensors += 1;
        count.bytes += tensor.bytes;
    }
    dtypes
}

fn components(model: &Llama4) -> Vec<Component> {
    let mut components: Vec<Component> = Vec::new();
    for weight in &model.weights {
        let role = weight.role.component();
        let index = components.iter().position(|component| component.role == role).unwrap_or_else(|| {
            components.push(Component { role, weights: 0, parameters: 0, bytes: 0, stored_as: BTreeMap::new() });
            components.len() - 1
        });
        let component = &mut components[index];
        component.weights += 1;
        component.parameters += weight.numel();
        component.bytes += model.stored_bytes(weight);
        *component.stored_as.entry(model.label(weight)).or_default() += 1;
    }
    components
}

fn quantization(model: &Llama4) -> Quantization {
    let mut schemes: BTreeMap<String, SchemeCount> = BTreeMap::new();
    for weight in model.weights.iter().filter(|weight| weight.coding.scheme().is_some()) {
        let count = schemes.entry(model.label(weight)).or_default();
        count.weights += 1;
        count.parameters += weight.numel();
        count.bytes += model.stored_bytes(weight);
        *count.by_role.entry(weight.role.component()).or_default() += 1;
    }
    for count in schemes.values_mut() {
        count.bits_per_weight = count.bytes as f64 * 8.0 / count.parameters as f64;
    }
    let config = model.config.quantization.as_ref();
    let word = |key: &str| Some(config?.get(key)?.as_str()?.to_owned());
    Quantization { method: word("quant_method"), format: word("format"), schemes }
}

fn files(model: &Llama4) -> Vec<FileLine> {
    let files = model.checkpoint.files().iter();
    let mut files: Vec<_> =
        files.map(|file| FileLine { name: file.name.clone(), bytes: file.bytes, tensors: 0 }).collect();
    for tensor in model.checkpoint.tensors() {
        files[tensor.file].tensors += 1;
    }
    files
}

fn notes(model: &Llama4) -> Vec<String> {
    let mut notes = Vec::new();
    if let [first, rest @ ..] = model.checkpoint.unlisted() {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        notes.push(format!("`{first}`{more} in the folder is no part of the checkpoint"));
    }
    notes
}
