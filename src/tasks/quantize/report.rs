//! What `quantize` tells: before it runs, and after.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::policy::Seen;
use super::{Choice, Job, Options};
use crate::llama4::{Llama4, Role};
use crate::output::manifest::{MANIFEST_NAME, Manifest, WeightRecord};
use crate::output::plan::Plan;
use crate::output::preflight::Forecast;
use crate::output::work::Work;
use crate::progress::Control;
use crate::quant::{Errors, Method};
use crate::tasks::Made;

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct DryRun {
    /// `l4tool.quantize-plan/1`.
    pub schema: &'static str,
    /// The checkpoint.
    pub source: PathBuf,
    /// The folder that would be made.
    pub output: PathBuf,
    /// One line per scheme.
    pub schemes: Vec<String>,
    /// Bits per quantized weight, scales included.
    pub bits_per_weight: f64,
    /// Files, bytes, memory and disk.
    #[serde(flatten)]
    pub forecast: Forecast,
    /// What engines cannot serve.
    pub warnings: Vec<String>,
}

impl DryRun {
    pub(super) fn new(
        options: &Options,
        model: &Llama4,
        choice: &Choice,
        plan: &Plan,
        control: &Control<'_>,
    ) -> Result<Self> {
        Ok(Self {
            schema: "l4tool.quantize-plan/1",
            source: options.source.clone(),
            output: options.out.clone(),
            schemes: choice.summary(model),
            bits_per_weight: bits_per_weight(model, choice, plan),
            forecast: Forecast::new(plan, &options.out, control)?,
            warnings: choice.warnings.clone(),
        })
    }
}

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `l4tool.quantize/1`.
    pub schema: &'static str,
    /// The checkpoint.
    pub source: PathBuf,
    /// The folder that was made.
    pub output: PathBuf,
    /// Schemes in the output, joined with `+`.
    pub scheme: String,
    /// Methods that were used, joined with `+`.
    pub method: String,
    /// One line per scheme.
    pub schemes: Vec<String>,
    /// Errors by layer.
    pub layers: Vec<LayerReport>,
    /// Every weight that was quantized, in the order of a forward pass.
    pub weights: Vec<WeightReport>,
    /// Errors over all of them.
    pub rel_rms_error: f64,
    /// The same with round-to-nearest.
    pub rel_rms_error_rtn: f64,
    /// Bits per quantized weight, scales included.
    pub bits_per_weight: f64,
    /// Bytes, time and memory.
    #[serde(flatten)]
    pub made: Made,
    /// What engines cannot serve.
    pub warnings: Vec<String>,
}

/// Errors of one layer's quantized weights.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Number of the layer.
    pub layer: usize,
    /// Weights that were quantized.
    pub weights: usize,
    /// Their error.
    pub rel_rms_error: f64,
    /// Their error with round-to-nearest.
    pub rel_rms_error_rtn: f64,
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
    /// Scheme.
    pub scheme: String,
    /// How its scales were chosen.
    pub policy: String,
    /// Calibration tokens that it saw; none without calibration.
    pub tokens: Option<u64>,
    /// Root of the squared error over the squared weights.
    pub rel_rms_error: f64,
    /// The same with round-to-nearest.
    pub rel_rms_error_rtn: f64,
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

/// Adds up what the tasks of each weight gave, in the order of the tasks.
/// `seen` is what calibration knows of each weight.
pub(super) fn weights(
    model: &Llama4,
    choice: &Choice,
    plan: &Plan,
    totals: &[Vec<Errors>],
    seen: Option<&Vec<Option<Seen>>>,
) -> Vec<WeightReport> {
    let mut sums: BTreeMap<usize, Errors> = BTreeMap::new();
    for (task, errors) in plan.tasks.iter().zip(totals) {
        let Work::Quantize(parts) = &task.work else { continue };
        for (part, errors) in parts.iter().zip(errors) {
            sums.entry(part.weight).or_default().add(errors);
        }
    }
    let report = |(index, errors): (usize, Errors)| {
        let weight = &model.weights[index];
        let target = choice.targets[index].expect("only targets have tasks that quantize");
        let seen = seen.and_then(|seen| seen[index]);
        WeightReport {
            name: weight.name.clone(),
            layer: weight.layer,
            role: weight.role,
            expert: weight.expert,
            scheme: target.scheme.to_string(),
            policy: seen.map_or_else(|| target.method.to_string(), |seen| seen.policy.to_string()),
            tokens: seen.map(|seen| seen.tokens),
            rel_rms_error: errors.relative_rms(),
            rel_rms_error_rtn: relative_rms_rtn(&errors),
            max_abs_error: errors.max_abs_error,
            errors,
        }
    };
    sums.into_iter().map(report).collect()
}

/// Fills in what calibration knew, from the manifest of a finished output.
pub(super) fn recall(weights: &mut [WeightReport], out: &Path) -> Result<()> {
    let path = out.join(MANIFEST_NAME);
    let text = std::fs::read(&path).with_context(|| format!("reading `{}`", path.display()))?;
    let manifest: Manifest = serde_json::from_slice(&text).with_context(|| format!("reading `{}`", path.display()))?;
    for (weight, record) in weights.iter_mut().zip(manifest.weights) {
        if weight.name == record.name {
            (weight.policy, weight.tokens) = (record.policy, record.tokens);
        }
    }
    Ok(())
}

fn relative_rms_rtn(errors: &Errors) -> f64 {
    Errors { sum_sq_error: errors.sum_sq_error_rtn, ..*errors }.relative_rms()
}

/// Bits that a quantized weight takes on average, with scales, zero points and shapes.
pub(super) fn bits_per_weight(model: &Llama4, choice: &Choice, plan: &Plan) -> f64 {
    let quantized = |index: usize| choice.targets[index].is_some();
    let weights: u64 =
        model.weights.iter().enumerate().filter(|(index, _)| quantized(*index)).map(|(_, weight)| weight.numel()).sum();
    let bytes: u64 = plan
        .tasks
        .iter()
        .filter(|task| matches!(task.work, Work::Quantize(_)))
        .flat_map(|task| &task.writes)
        .map(|region| region.bytes)
        .sum();
    8.0 * bytes as f64 / (weights as f64).max(1.0)
}

impl Report {
    pub(super) fn new(job: &Job<'_>, weights: Vec<WeightReport>, resumed: bool, elapsed: Duration) -> Self {
        let Job { options, model, choice, plan, .. } = job;
        let mut total = Errors::default();
        let mut by_layer: BTreeMap<usize, (Errors, Vec<&WeightReport>)> = BTreeMap::new();
        for weight in &weights {
            total.add(&weight.errors);
            let (errors, members) = by_layer.entry(weight.layer.unwrap_or_default()).or_default();
            errors.add(&weight.errors);
            members.push(weight);
        }
        let layers = by_layer.into_iter().map(|(layer, (errors, members))| {
            let worst = members.iter().max_by(|a, b| a.rel_rms_error.total_cmp(&b.rel_rms_error));
            LayerReport {
                layer,
                weights: members.len(),
                rel_rms_error: errors.relative_rms(),
                rel_rms_error_rtn: relative_rms_rtn(&errors),
                worst: worst.map(|weight| weight.name.clone()).unwrap_or_default(),
            }
        });
        let layers = layers.collect();
        let joined = |mut names: Vec<String>| {
            names.sort();
            names.dedup();
            names.join("+")
        };
        let targets = || choice.targets.iter().flatten();
        Self {
            schema: "l4tool.quantize/1",
            source: options.source.clone(),
            output: options.out.clone(),
            scheme: joined(targets().map(|target| target.scheme.to_string()).collect()),
            method: joined(targets().map(|target| Method::to_string(&target.method)).collect()),
            schemes: choice.summary(model),
            layers,
            rel_rms_error: total.relative_rms(),
            rel_rms_error_rtn: relative_rms_rtn(&total),
            weights,
            bits_per_weight: bits_per_weight(model, choice, plan),
            made: Made::new(plan, resumed, elapsed),
            warnings: choice.warnings.clone(),
        }
    }
}
