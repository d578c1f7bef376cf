//! `quantize`: a smaller checkpoint that engines load, made in one streaming pass.
//!
//! Memory is bounded by [`Control::memory`], whatever the model's size: a task holds the quantized rows of one or two
//! matrices and a stripe of their source. See `output` for what happens to a plan.

mod choose;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::error::hint;
use crate::llama4::Llama4;
use crate::output::companions::{self, Card, Companion};
use crate::output::job;
use crate::output::modules::plan_weights;
use crate::output::origin;
use crate::output::partial::Existing;
use crate::output::plan::{Plan, PlanBuilder};
use crate::output::quantization_config::quantization_config;
use crate::progress::Control;
use crate::quant::{Errors, Method};

pub use choose::{Choice, Selection, patterns};
pub use report::{DryRun, LayerReport, Report, WeightReport};

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The checkpoint: a folder or a file.
    pub source: PathBuf,
    /// The folder to be made.
    pub out: PathBuf,
    /// Which weights, and how.
    pub selection: Selection,
    /// Most bytes of data in one output file.
    pub shard_bytes_max: u64,
    /// What to do about what is already there.
    pub existing: Existing,
    /// Allow weights that are quantized already to be quantized again.
    pub requantize: bool,
    /// Compute the SHA-256 of the source's files for the manifest: reads all of the source.
    pub hash_source: bool,
}

/// A run that is ready to begin: everything that is known before one weight is read.
#[derive(Debug)]
pub struct Job<'a> {
    options: &'a Options,
    model: Llama4,
    choice: Choice,
    plan: Plan,
    companions: Vec<Companion>,
    settings: BTreeMap<String, String>,
}

impl<'a> Job<'a> {
    /// Opens the source, decides for every weight and plans the output.
    ///
    /// # Errors
    /// The source or the options cannot be used.
    pub fn new(options: &'a Options) -> Result<Self> {
        Self::of(options, Llama4::open(&options.source)?)
    }

    /// As [`Job::new`], for a source that somebody opened: for a dry run, its headers are enough.
    ///
    /// # Errors
    /// As [`Job::new`].
    pub fn of(options: &'a Options, model: Llama4) -> Result<Self> {
        model.require_complete()?;
        model.require_joined()?;
        let choice = Choice::make(&model, &options.selection)?;
        if !options.requantize {
            refuse_requantizing(&model, &choice)?;
        }
        let mut builder = PlanBuilder::new(options.shard_bytes_max);
        plan_weights(&mut builder, &model, &choice.targets)?;
        let plan = builder.finish()?;
        let here = model.checkpoint.require_here().is_ok();
        let companions = if here { companions(&model, &choice, &plan)? } else { Vec::new() };
        let settings = settings(options, &choice);
        Ok(Self { options, model, choice, plan, companions, settings })
    }

    /// What engines cannot serve, or what a rule could not do.
    pub fn warnings(&self) -> &[String] {
        &self.choice.warnings
    }

    /// Says what [`Job::run`] would do.
    ///
    /// # Errors
    /// The output is in the way, or the memory bound too small.
    pub fn dry_run(&self, control: &Control<'_>) -> Result<DryRun> {
        let Self { options, model, choice, plan, .. } = self;
        self.job().check_destination()?;
        DryRun::new(options, model, choice, plan, control)
    }

    /// Makes the output.
    ///
    /// # Errors
    /// The output is in the way; the disk is full or does not answer; a weight is NaN or infinite;
    /// [`crate::error::Interrupted`] after a safe stop. The output does not exist then.
    pub fn run(&self, control: &Control<'_>) -> Result<Report> {
        let began = Instant::now();
        let Self { model, choice, plan, .. } = self;
        let promised: Vec<_> =
            model.weights.iter().zip(&choice.stored).map(|(weight, scheme)| (weight.name.as_str(), *scheme)).collect();
        let records = |totals: &[Vec<Errors>]| {
            report::weights(model, choice, plan, totals).iter().map(WeightReport::record).collect()
        };
        let done = self.job().run(&promised, records, control)?;
        let weights = report::weights(model, choice, plan, &done.totals);
        Ok(Report::new(self, weights, done.resumed, began.elapsed()))
    }

    fn job(&self) -> job::Job<'_> {
        job::Job {
            command: "quantize",
            settings: &self.settings,
            model: &self.model,
            plan: &self.plan,
            companions: &self.companions,
            out: &self.options.out,
            existing: self.options.existing,
            hash_source: self.options.hash_source,
        }
    }
}

/// The options that decide the bytes of the output, by name.
fn settings(options: &Options, choice: &Choice) -> BTreeMap<String, String> {
    let mut settings = choice.settings.clone();
    settings.insert("shard size".into(), options.shard_bytes_max.to_string());
    settings.insert("requantize".into(), options.requantize.to_string());
    settings.insert("hash source".into(), options.hash_source.to_string());
    settings
}

/// Quantizes a checkpoint: [`Job::new`] and [`Job::run`].
///
/// # Errors
/// As these.
pub fn run(options: &Options, control: &Control<'_>) -> Result<Report> {
    Job::new(options)?.run(control)
}

fn refuse_requantizing(model: &Llama4, choice: &Choice) -> Result<()> {
    let twice = model.weights.iter().zip(&choice.targets).find_map(|(weight, target)| {
        let stored = weight.coding.scheme()?;
        target.map(|target| (weight, stored, target.scheme))
    });
    match twice {
        Some((weight, stored, scheme)) => Err(hint(
            format!("`{}` is stored as {stored} already; making it {scheme} adds a second rounding", weight.name),
            "start from the original weights; or `--requantize` if this is what you want",
        )),
        None => Ok(()),
    }
}

fn companions(model: &Llama4, choice: &Choice, plan: &Plan) -> Result<Vec<Companion>> {
    let config = quantization_config(model, &choice.stored);
    let mut files = companions::copied(&model.checkpoint).context("collecting the files beside the weights")?;
    files.push(companions::pretty("config.json", &model.config.output_document(Some(config))));
    files.push(companions::index(plan));
    let about = format!(
        "{:.2} bits per quantized weight, scales included; {:.1} GB of weights. What no scheme names is
stored as it was. `l4tool.manifest.json` says for every weight how it is stored and how large its error is, and for
every file what its SHA-256 is; `l4tool verify` checks both.",
        report::bits_per_weight(model, choice, plan),
        plan.bytes() as f64 / 1e9,
    );
    files.push(companions::card(&Card {
        origin: &origin::describe(&model.checkpoint),
        title: "Quantized Llama 4",
        relation: Some("quantized"),
        tags: &["compressed-tensors"],
        entries: &choice.summary(model),
        about: &about,
        images: model.config.vision.is_some(),
    }));
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Reads a method by its name; `auto` is `None`: the best for each scheme without data.
///
/// # Errors
/// Methods that need calibration data are refused, with what there is instead.
pub fn parse_method(name: &str) -> Result<Option<Method>> {
    match name {
        "auto" => Ok(None),
        "gptq" | "awq" => bail!(hint(
            format!("method `{name}` needs calibration data, and calibration is not part of this version"),
            "`--method search` is the best choice without data",
        )),
        other => other.parse().map(Some).map_err(anyhow::Error::msg),
    }
}
