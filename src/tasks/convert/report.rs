//! What `convert` tells: before it runs, and after.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::{Job, word};
use crate::llama4::{Dialect, Llama4};
use crate::output::converting::Form;
use crate::output::manifest::WeightRecord;
use crate::output::plan::Plan;
use crate::output::preflight::Forecast;
use crate::output::work::Work;
use crate::progress::Control;
use crate::quant::Errors;
use crate::tasks::Made;

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct DryRun {
    /// `l4tool.convert-plan/1`.
    pub schema: &'static str,
    /// The checkpoint.
    pub source: PathBuf,
    /// The folder that would be made.
    pub output: PathBuf,
    /// What is done, a line each.
    pub changes: Vec<String>,
    /// Files, bytes, memory and disk.
    #[serde(flatten)]
    pub forecast: Forecast,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl DryRun {
    pub(super) fn new(job: &Job<'_>, control: &Control<'_>) -> Result<Self> {
        Ok(Self {
            schema: "l4tool.convert-plan/1",
            source: job.options.source.clone(),
            output: job.options.out.clone(),
            changes: job.changes.clone(),
            forecast: Forecast::new(&job.plan, &job.options.out, control)?,
            notes: job.notes.clone(),
        })
    }
}

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `l4tool.convert/1`.
    pub schema: &'static str,
    /// The checkpoint.
    pub source: PathBuf,
    /// The folder that was made.
    pub output: PathBuf,
    /// What the source was: `meta` or `hf`.
    pub from: &'static str,
    /// The class in transformers that the output is of.
    pub architecture: &'static str,
    /// How the routed experts are stored: `fused` or `per-expert`.
    pub experts: &'static str,
    /// What was done, a line each.
    pub changes: Vec<String>,
    /// Weights in the output.
    pub weights: usize,
    /// Weights whose values changed: rounded, or too large for the format.
    pub rounded: Vec<WeightReport>,
    /// Error over all of these, root of the squared error over the squared values.
    pub rel_rms_error: f64,
    /// Values that were too large for the format and became the largest that it has.
    pub overflows: u64,
    /// Bytes, time and memory.
    #[serde(flatten)]
    pub made: Made,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// A weight whose values changed.
#[derive(Clone, Debug, Serialize)]
pub struct WeightReport {
    /// Logical name.
    pub name: String,
    /// Its format in the output.
    pub dtype: String,
    /// Root of the squared error over the squared values.
    pub rel_rms_error: f64,
    /// The largest difference.
    pub max_abs_error: f32,
    /// Values that were too large for the format.
    pub overflows: u64,
    #[serde(skip)]
    errors: Errors,
}

impl WeightReport {
    /// What the manifest keeps of it.
    pub(super) fn record(&self) -> WeightRecord {
        WeightRecord {
            name: self.name.clone(),
            scheme: self.dtype.clone(),
            policy: if self.overflows > 0 { "clamp" } else { "round" }.into(),
            tokens: None,
            rel_rms_error: self.rel_rms_error,
            max_abs_error: self.max_abs_error,
        }
    }
}

/// The weights that did not keep their values, from what the tasks of each gave, in the order of the tasks.
pub(super) fn weights(model: &Llama4, form: &Form, plan: &Plan, totals: &[Vec<Errors>]) -> Vec<WeightReport> {
    let mut sums: BTreeMap<usize, Errors> = BTreeMap::new();
    for (task, errors) in plan.tasks.iter().zip(totals) {
        let Work::Assemble(part) = &task.work else { continue };
        for (weight, errors) in part.weights.iter().zip(errors) {
            sums.entry(*weight).or_default().add(errors);
        }
    }
    let report = |(index, errors): (usize, Errors)| {
        let weight = &model.weights[index];
        WeightReport {
            name: weight.name.clone(),
            dtype: form.float_of(model, weight).dtype().name().to_ascii_lowercase(),
            rel_rms_error: errors.relative_rms(),
            max_abs_error: errors.max_abs_error,
            overflows: errors.overflows,
            errors,
        }
    };
    let changed = sums.into_iter().filter(|(_, errors)| errors.sum_sq_error > 0.0 || errors.overflows > 0);
    changed.map(report).collect()
}

impl Report {
    pub(super) fn new(job: &Job<'_>, rounded: Vec<WeightReport>, resumed: bool, elapsed: Duration) -> Self {
        let Job { options, model, form, plan, changes, notes, .. } = job;
        let mut total = Errors::default();
        for weight in &rounded {
            total.add(&weight.errors);
        }
        Self {
            schema: "l4tool.convert/1",
            source: options.source.clone(),
            output: options.out.clone(),
            from: match model.dialect {
                Dialect::HuggingFace => "hf",
                Dialect::Meta => "meta",
                Dialect::Gguf => "gguf",
            },
            architecture: form.model.architecture(),
            experts: word(form.experts),
            changes: changes.clone(),
            weights: model.weights.iter().filter(|weight| form.keeps(weight)).count(),
            rounded,
            rel_rms_error: total.relative_rms(),
            overflows: total.overflows,
            made: Made::new(plan, resumed, elapsed),
            notes: notes.clone(),
        }
    }
}
