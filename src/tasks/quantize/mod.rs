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
use crate::output::executor::{self, Filled};
use crate::output::hash::sha256;
use crate::output::journal::Identity;
use crate::output::manifest::{FileRecord, MANIFEST_NAME, MANIFEST_SCHEMA, Manifest, Origin};
use crate::output::modules::plan_weights;
use crate::output::partial::{self, Existing, Partial};
use crate::output::plan::{Plan, PlanBuilder};
use crate::output::quantization_config::quantization_config;
use crate::output::work::BadWeight;
use crate::output::{gate, origin, preflight};
use crate::progress::Control;
use crate::quant::Method;

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
        let choice = Choice::make(&model, &options.selection)?;
        if !options.requantize {
            refuse_requantizing(&model, &choice)?;
        }
        let mut builder = PlanBuilder::new(options.shard_bytes_max);
        plan_weights(&mut builder, &model, &choice.targets)?;
        let plan = builder.finish()?;
        let here = model.checkpoint.require_here().is_ok();
        let companions = if here { companions(&model, &choice, &plan)? } else { Vec::new() };
        Ok(Self { options, model, choice, plan, companions })
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
        match model.checkpoint.is_elsewhere() {
            true => partial::check_free(&options.out, options.existing)?,
            false => partial::check_destination(&options.out, model.checkpoint.folder(), options.existing)?,
        }
        DryRun::new(options, model, choice, plan, control)
    }

    /// Makes the output.
    ///
    /// # Errors
    /// The output is in the way; the disk is full or does not answer; a weight is NaN or infinite;
    /// [`crate::error::Interrupted`] after a safe stop. The output does not exist then.
    pub fn run(&self, control: &Control<'_>) -> Result<Report> {
        let began = Instant::now();
        let Self { options, model, choice, plan, companions } = self;
        model.checkpoint.require_here()?;
        let identity = self.identity();
        if self.is_published()
            && let Some(finished) = partial::take_published(&options.out, &identity)?
            && let Some(totals) = executor::totals(plan, &finished)
        {
            let weights = report::weights(model, choice, plan, &totals);
            return Ok(Report::new(self, weights, true, began.elapsed()));
        }
        partial::check_destination(&options.out, model.checkpoint.folder(), options.existing)?;
        preflight::workers(plan, control)?;
        let side_bytes: u64 = companions.iter().map(|file| file.contents.len() as u64).sum();
        preflight::check_disk(&options.out, plan.bytes() + side_bytes)?;
        let mut origin = origin::describe(&model.checkpoint);
        if options.hash_source {
            origin::hash_files(&mut origin, model.checkpoint.folder(), control)?;
        }
        let (partial, finished) = Partial::open(&options.out, &identity, options.existing)?;
        let filled = match executor::fill(plan, model, &partial, finished, control) {
            Ok(filled) => filled,
            Err(error) => {
                if error.chain().any(|cause| cause.is::<BadWeight>()) {
                    partial.discard();
                }
                return Err(error);
            }
        };
        if let Err(error) = model.checkpoint.unchanged() {
            // What was read is neither the old source nor the new one.
            partial.discard();
            return Err(error.into());
        }
        let weights = report::weights(model, choice, plan, &filled.totals);
        let manifest = self.manifest(origin, &filled, &weights);
        for file in companions.iter().chain([&manifest]) {
            executor::write_companion(&partial, file)?;
        }
        let promised: Vec<_> =
            model.weights.iter().zip(&choice.stored).map(|(weight, scheme)| (weight.name.as_str(), *scheme)).collect();
        gate::check(&partial.model(), &promised, control)?;
        partial.publish(options.existing)?;
        Ok(Report::new(self, weights, filled.resumed > 0, began.elapsed()))
    }

    /// Whether the output that is there was made by this very command.
    fn is_published(&self) -> bool {
        let text = std::fs::read(self.options.out.join(MANIFEST_NAME));
        let manifest = text.ok().and_then(|text| serde_json::from_slice::<Manifest>(&text).ok());
        !self.options.existing.restart
            && manifest.is_some_and(|manifest| manifest.tool_version == VERSION && manifest.options == self.settings())
    }

    /// What decides the bytes of the output.
    fn identity(&self) -> Identity {
        let mut identity = self.settings();
        identity.insert("l4tool version".into(), VERSION.into());
        for file in self.model.checkpoint.fingerprint().files {
            let what = format!("{} bytes, header {}, modified {}", file.bytes, file.digest, file.modified_ns);
            identity.insert(format!("source file {}", file.name), what);
        }
        identity
    }

    /// The options that decide the bytes of the output, by name.
    fn settings(&self) -> BTreeMap<String, String> {
        let Self { options, choice, .. } = self;
        let mut settings = choice.settings.clone();
        settings.insert("shard size".into(), options.shard_bytes_max.to_string());
        settings.insert("requantize".into(), options.requantize.to_string());
        settings.insert("hash source".into(), options.hash_source.to_string());
        settings
    }

    fn manifest(&self, source: Origin, filled: &Filled, weights: &[WeightReport]) -> Companion {
        let Self { plan, companions, .. } = self;
        let written = plan.files.iter().zip(&filled.digests).map(|(file, digest)| FileRecord {
            name: file.name.clone(),
            bytes: file.bytes,
            sha256: Some(digest.clone()),
        });
        let beside = companions.iter().map(|file| FileRecord {
            name: file.name.clone(),
            bytes: file.contents.len() as u64,
            sha256: Some(sha256(&file.contents)),
        });
        let mut files: Vec<FileRecord> = written.chain(beside).collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = Manifest {
            schema: MANIFEST_SCHEMA.into(),
            tool_version: VERSION.into(),
            command: "quantize".into(),
            options: self.settings(),
            source,
            files,
            weights: weights.iter().map(WeightReport::record).collect(),
        };
        let document = serde_json::to_value(manifest).expect("a manifest is plain data");
        companions::pretty(MANIFEST_NAME, &document)
    }
}

/// The version that manifests and model cards name.
const VERSION: &str = env!("CARGO_PKG_VERSION");

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
    let origin = origin::describe(&model.checkpoint);
    files.push(companions::card(&Card {
        origin: &origin,
        schemes: &choice.summary(model),
        bits_per_weight: report::bits_per_weight(model, choice, plan),
        bytes: plan.bytes(),
        tool_version: VERSION,
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
