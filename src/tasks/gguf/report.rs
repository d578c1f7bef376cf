//! What is told about GGUF output: before it is made, and after.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::Job;
use super::importance::Basis;
use crate::dtype::Dtype;
use crate::llama4::{Dialect, Role};
use crate::output::gguf::plan::bytes_of;
use crate::output::manifest::WeightRecord;
use crate::output::preflight::Forecast;
use crate::output::work::Work;
use crate::progress::Control;
use crate::quant::Errors;
use crate::tasks::Made;

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct DryRun {
    /// `l4tool.quantize-plan/1` or `l4tool.convert-plan/1`.
    pub schema: String,
    /// The checkpoint.
    pub source: PathBuf,
    /// The file or folder that would be made.
    pub output: PathBuf,
    /// `gguf`.
    pub format: &'static str,
    /// The preset.
    pub scheme: String,
    /// What there would be of each type.
    pub types: Vec<TypeReport>,
    /// Every tensor, in the order of the file.
    pub tensor_list: Vec<TensorReport>,
    /// Bytes of all tensors, without what is between them.
    pub tensor_bytes: u64,
    /// Bits per weight, over all tensors.
    pub bits_per_weight: f64,
    /// Files, bytes, memory and disk.
    #[serde(flatten)]
    pub forecast: Forecast,
    /// What llama.cpp will do otherwise, and what is left out.
    pub warnings: Vec<String>,
}

/// What there is of one type.
#[derive(Clone, Debug, Serialize)]
pub struct TypeReport {
    /// The type.
    pub dtype: Dtype,
    /// Tensors of it.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// One tensor of the file.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// llama.cpp's name.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Extents, the fastest-varying first.
    pub extents: Vec<u64>,
    /// Its size.
    pub bytes: u64,
}

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `l4tool.quantize/1` or `l4tool.convert/1`.
    pub schema: String,
    /// The checkpoint.
    pub source: PathBuf,
    /// The file or folder that was made.
    pub output: PathBuf,
    /// `gguf`.
    pub format: &'static str,
    /// The preset.
    pub scheme: String,
    /// How values were rounded: `llama.cpp`, with or without importances.
    pub method: &'static str,
    /// What there is of each type.
    pub types: Vec<TypeReport>,
    /// Errors by layer.
    pub layers: Vec<LayerReport>,
    /// Every weight whose values were rounded, in the order of a forward pass.
    pub weights: Vec<WeightReport>,
    /// Experts without data, whose importances are the layer's, or ones.
    pub experts_without_data: usize,
    /// Errors over all weights.
    pub rel_rms_error: f64,
    /// Bytes of all tensors, without what is between them.
    pub tensor_bytes: u64,
    /// Bits per weight, over all tensors.
    pub bits_per_weight: f64,
    /// Bytes, time and memory.
    #[serde(flatten)]
    pub made: Made,
    /// What llama.cpp will do otherwise, and what is left out.
    pub warnings: Vec<String>,
}

/// Errors of one layer's weights.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Number of the layer; none for what belongs to none.
    pub layer: Option<usize>,
    /// Weights that were rounded.
    pub weights: usize,
    /// Their error.
    pub rel_rms_error: f64,
    /// The weight with the largest error.
    pub worst: String,
}

/// What happened to one weight.
#[derive(Clone, Debug, Serialize)]
pub struct WeightReport {
    /// Logical name.
    pub name: String,
    /// Layer.
    pub layer: Option<usize>,
    /// Role.
    pub role: Role,
    /// Expert.
    pub expert: Option<usize>,
    /// The type of its tensor.
    pub scheme: String,
    /// What the importances of its inputs rest on.
    pub policy: String,
    /// Tokens that an expert saw, where the statistics tell.
    pub tokens: Option<u64>,
    /// Root of the squared error over the squared weights.
    pub rel_rms_error: f64,
    /// The largest difference.
    pub max_abs_error: f32,
    #[serde(skip)]
    errors: Errors,
}

impl WeightReport {
    /// What the manifest keeps of it.
    pub(super) fn record(&self) -> WeightRecord {
        WeightRecord {
            name: self.name.clone(),
            scheme: self.scheme.clone(),
            policy: self.policy.clone(),
            tokens: self.tokens,
            rel_rms_error: self.rel_rms_error,
            max_abs_error: self.max_abs_error,
        }
    }
}

/// What the importances of each weight rest on, by its index.
pub(super) fn known(job: &Job<'_>) -> Result<Vec<Basis>> {
    let Some(importance) = &job.importance else { return Ok(Vec::new()) };
    job.model.weights.iter().map(|weight| Ok(importance.of(&job.model, weight)?.1)).collect()
}

/// Adds up what the tasks of each weight gave, in the order of the tasks.
pub(super) fn weights(job: &Job<'_>, known: &[Basis], totals: &[Vec<Errors>]) -> Vec<WeightReport> {
    let mut sums: BTreeMap<usize, (Dtype, Errors)> = BTreeMap::new();
    for (task, errors) in job.plan.tasks.iter().zip(totals) {
        let (weight, dtype) = match &task.work {
            Work::Encode(part) => (part.weight, part.dtype),
            Work::Assemble(part) => (part.weights[0], part.float.dtype()),
            _ => continue,
        };
        for errors in errors {
            sums.entry(weight).or_insert((dtype, Errors::default())).1.add(errors);
        }
    }
    let report = |(index, (dtype, errors)): (usize, (Dtype, Errors))| {
        let weight = &job.model.weights[index];
        let basis = known.get(index).copied().filter(|_| dtype.block_len() > 1).unwrap_or(Basis::Nothing);
        WeightReport {
            name: weight.name.clone(),
            layer: weight.layer,
            role: weight.role,
            expert: weight.expert,
            scheme: dtype.to_string(),
            policy: basis.name().to_owned(),
            tokens: job.importance.as_ref().and_then(|importance| importance.tokens(weight)),
            rel_rms_error: errors.relative_rms(),
            max_abs_error: errors.max_abs_error,
            errors,
        }
    };
    let rounded = sums.into_iter().filter(|(_, (dtype, errors))| dtype.block_len() > 1 || errors.sum_sq_error > 0.0);
    rounded.map(report).collect()
}

fn types(job: &Job<'_>) -> Vec<TypeReport> {
    let mut types: BTreeMap<Dtype, TypeReport> = BTreeMap::new();
    for (tensor, &dtype) in job.tensors.iter().zip(&job.dtypes) {
        let entry = types.entry(dtype).or_insert(TypeReport { dtype, tensors: 0, bytes: 0 });
        entry.tensors += 1;
        entry.bytes += bytes_of(tensor, dtype);
    }
    let mut types: Vec<TypeReport> = types.into_values().collect();
    types.sort_by_key(|entry| std::cmp::Reverse(entry.bytes));
    types
}

fn bits_per_weight(job: &Job<'_>) -> f64 {
    let weights: u64 = job.tensors.iter().map(|tensor| tensor.numel()).sum();
    8.0 * job.plan.data_bytes() as f64 / (weights as f64).max(1.0)
}

impl DryRun {
    pub(super) fn new(job: &Job<'_>, control: &Control<'_>) -> Result<Self> {
        let tensors = job.tensors.iter().zip(&job.dtypes).map(|(tensor, &dtype)| TensorReport {
            name: tensor.name.clone(),
            dtype,
            extents: tensor.extents.clone(),
            bytes: bytes_of(tensor, dtype),
        });
        // A GGUF file has its tokenizer in the head, which is here.
        let is_elsewhere = job.model.checkpoint.is_elsewhere() && job.model.dialect != Dialect::Gguf;
        let missing = job.no_tokenizer.as_ref().map(|error| match is_elsewhere {
            true => "the tokenizer was not fetched and is not counted; Llama 4's has 12 MB".to_owned(),
            false => format!("{error}; the file needs one"),
        });
        Ok(Self {
            schema: format!("l4tool.{}-plan/1", job.options.command),
            source: job.options.source.clone(),
            output: job.options.out.clone(),
            format: "gguf",
            scheme: job.options.file_type.to_string(),
            types: types(job),
            tensor_list: tensors.collect(),
            tensor_bytes: job.plan.data_bytes(),
            bits_per_weight: bits_per_weight(job),
            forecast: Forecast::new(&job.plan, &job.options.out, control)?,
            warnings: job.warnings.iter().cloned().chain(missing).collect(),
        })
    }
}

impl Report {
    pub(super) fn new(job: &Job<'_>, weights: Vec<WeightReport>, resumed: bool, elapsed: Duration) -> Self {
        let Job { options, plan, .. } = job;
        let mut total = Errors::default();
        let mut by_layer: BTreeMap<Option<usize>, (Errors, Vec<&WeightReport>)> = BTreeMap::new();
        for weight in &weights {
            total.add(&weight.errors);
            let (errors, members) = by_layer.entry(weight.layer).or_default();
            errors.add(&weight.errors);
            members.push(weight);
        }
        let layer = |(layer, (errors, members)): (Option<usize>, (Errors, Vec<&WeightReport>))| LayerReport {
            layer,
            weights: members.len(),
            rel_rms_error: errors.relative_rms(),
            worst: members
                .iter()
                .max_by(|a, b| a.rel_rms_error.total_cmp(&b.rel_rms_error))
                .map(|weight| weight.name.clone())
                .unwrap_or_default(),
        };
        let without = |weight: &&WeightReport| weight.role == Role::ExpertGate && weight.tokens == Some(0);
        Self {
            schema: format!("l4tool.{}/1", options.command),
            source: options.source.clone(),
            output: options.out.clone(),
            format: "gguf",
            scheme: options.file_type.to_string(),
            method: if job.importance.is_some() { "llama.cpp, with importances" } else { "llama.cpp" },
            types: types(job),
            layers: by_layer.into_iter().map(layer).collect(),
            experts_without_data: weights.iter().filter(without).count(),
            weights,
            rel_rms_error: total.relative_rms(),
            tensor_bytes: plan.data_bytes(),
            bits_per_weight: bits_per_weight(job),
            made: Made::new(plan, resumed, elapsed),
            warnings: job.warnings.clone(),
        }
    }
}
