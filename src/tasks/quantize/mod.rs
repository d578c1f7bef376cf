//! `quantize`: a smaller checkpoint that engines load, made in one streaming pass.
//!
//! Memory is bounded by [`Control::memory`], whatever the model's size: a task holds the quantized rows of one or two
//! matrices and a stripe of their source. See `output` for what happens to a plan.

mod calibrate;
mod choose;
mod factors;
mod moments;
mod policy;
mod report;
mod solver;
mod state;
mod statistics;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::calibration;
use crate::calibration::data::DataOptions;
use crate::error::hint;
use crate::llama4::Llama4;
use crate::output::companions::{self, Card, Companion};
use crate::output::executor::{self, Run};
use crate::output::job;
use crate::output::modules::plan_weights;
use crate::output::origin;
use crate::output::partial::{Existing, Form};
use crate::output::plan::{Plan, PlanBuilder};
use crate::output::quantization_config::quantization_config;
use crate::progress::Control;
use crate::quant::scheme::Scheme;
use crate::quant::{Errors, Method};

use calibrate::{Calibration, Judging};
use policy::Seen;
use statistics::{Known, Statistics};

pub use calibrate::SolverOptions;
pub use choose::{Choice, Selection, patterns};
pub use report::{DryRun, LayerReport, Report, WeightReport};
pub use statistics::knowledge;

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
    /// Text to calibrate with.
    pub calibration: Option<DataOptions>,
    /// A statistics file or an importance matrix, instead of text.
    pub stats: Option<PathBuf>,
    /// How either is used.
    pub solver: SolverOptions,
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
    calibration: Option<Calibration>,
    statistics: Option<Statistics>,
    judging: Judging,
}

impl<'a> Job<'a> {
    /// Opens the source, decides for every weight and plans the output.
    ///
    /// # Errors
    /// The source or the options cannot be used.
    pub fn new(options: &'a Options, control: &Control<'_>) -> Result<Self> {
        Self::of(options, Llama4::open(&options.source)?, control)
    }

    /// As [`Job::new`], for a source that somebody opened: for a dry run, its headers are enough.
    ///
    /// # Errors
    /// As [`Job::new`].
    pub fn of(options: &'a Options, model: Llama4, control: &Control<'_>) -> Result<Self> {
        model.require_complete()?;
        model.require_joined()?;
        refuse_blocks(&model)?;
        let mut choice = Choice::make(&model, &options.selection)?;
        if !options.requantize {
            refuse_requantizing(&model, &choice)?;
        }
        let mut builder = PlanBuilder::new(options.shard_bytes_max);
        if options.calibration.is_some() || options.stats.is_some() {
            builder.leave_room_for_notes();
        }
        plan_weights(&mut builder, &model, &choice.targets)?;
        let plan = builder.finish()?;
        let here = model.checkpoint.require_here().is_ok();
        let companions = if here { companions(&model, &mut choice, &plan)? } else { Vec::new() };
        let mut settings = settings(options, &choice);
        let statistics = options.stats.as_deref();
        let statistics = statistics.map(|path| Statistics::open(path, &model)).transpose()?;
        check_data(&choice, options.calibration.is_some(), statistics.as_ref(), calibrate::is_of_use(&plan))?;
        let judging = Judging::new(&model.config.text, &options.solver)?;
        let calibration = options.calibration.as_ref();
        let calibration = calibration.map(|data| Calibration::new(&model, data, control)).transpose()?;
        if let Some(calibration) = &calibration {
            settings.extend(calibration.settings.clone());
            settings.extend(judging.settings());
        }
        if let (Some(statistics), Some(path)) = (&statistics, &options.stats) {
            settings.insert("statistics sha256".into(), origin::hash_file(path, control)?);
            if statistics.in_place_of_text(&choice.targets).is_some() {
                settings.extend(judging.settings());
            }
        }
        Ok(Self { options, model, choice, plan, companions, settings, calibration, statistics, judging })
    }

    /// What engines cannot serve, what a rule could not do, and what the person who calibrates should know.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        let notes = self.calibration.iter().flat_map(|calibration| &calibration.notes);
        self.choice.warnings.iter().chain(notes)
    }

    /// Says what [`Job::run`] would do.
    ///
    /// # Errors
    /// The output is in the way, or the memory bound too small.
    pub fn dry_run(&self, control: &Control<'_>) -> Result<DryRun> {
        let Self { options, model, choice, plan, .. } = self;
        self.job().check_destination()?;
        let mut dry_run = DryRun::new(options, model, choice, plan, control)?;
        if self.calibration.is_some() || self.stored().is_some() {
            let sequences = self.calibration.as_ref().map(|calibration| &calibration.sequences);
            let shares = calibrate::Shares::new(model, &choice.targets, plan, sequences, control)?;
            dry_run.forecast.memory_bytes = dry_run.forecast.memory_bytes.max(shares.most);
        }
        dry_run.warnings.extend(self.calibration.iter().flat_map(|calibration| calibration.notes.clone()));
        Ok(dry_run)
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
        let seen = OnceLock::new();
        let weights = |totals: &[Vec<Errors>]| report::weights(model, choice, plan, totals, seen.get());
        let records = |totals: &[Vec<Errors>]| weights(totals).iter().map(WeightReport::record).collect();
        let perform = |run: &Run<'_>| {
            let known = match (&self.calibration, self.stored(), &self.statistics) {
                (Some(calibration), ..) => {
                    calibrate::perform(run, &choice.targets, calibration, self.judging, control)?
                }
                (None, Some(stored), _) => {
                    calibrate::perform_stored(run, &choice.targets, stored, self.judging, control)?
                }
                (None, None, Some(statistics)) => {
                    let known = statistics.seen(model, &choice.targets)?;
                    run.perform(&Vec::from_iter(0..plan.tasks.len()), &Known { statistics, model })?;
                    known
                }
                (None, None, None) => return executor::fill(run),
            };
            let note = |seen: &Seen| format!("{}, {} tokens", seen.policy, seen.tokens);
            let notes = known.iter().map(|known| known.as_ref().map(note)).collect();
            seen.set(known).expect("tasks are performed once");
            Ok(notes)
        };
        let done = self.job().run_staged(&promised, perform, records, control)?;
        let mut weights = weights(&done.totals);
        if (self.calibration.is_some() || self.statistics.is_some()) && seen.get().is_none() {
            // An earlier process published the output, and wrote down there what it knew.
            report::recall(&mut weights, &self.options.out)?;
        }
        Ok(Report::new(self, weights, done.resumed, began.elapsed()))
    }

    /// Statistics that take the place of text.
    fn stored(&self) -> Option<&calibration::statistics::Statistics> {
        self.statistics.as_ref()?.in_place_of_text(&self.choice.targets)
    }

    fn job(&self) -> job::Job<'_> {
        job::Job {
            command: "quantize",
            settings: &self.settings,
            model: &self.model,
            plan: &self.plan,
            companions: &self.companions,
            out: &self.options.out,
            form: Form::Folder,
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
    Job::new(options, control)?.run(control)
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

/// Refuses blocks of ggml, which no checkpoint in safetensors can have: weights that stay as they are would have to change.
fn refuse_blocks(model: &Llama4) -> Result<()> {
    let blocks = model.weights.iter().find(|weight| weight.coding.scheme().is_some_and(Scheme::is_blocks));
    match blocks {
        Some(weight) => Err(hint(
            format!("`{}` is stored as {}, which only GGUF files have", weight.name, model.label(weight)),
            "start from the original weights, or from a GGUF file in BF16; or turn this one into floats first: `l4tool convert --to hf`",
        )),
        None => Ok(()),
    }
}

fn companions(model: &Llama4, choice: &mut Choice, plan: &Plan) -> Result<Vec<Companion>> {
    let config = quantization_config(model, &choice.stored);
    let mut files = companions::of_source(model, model.config.model, &mut choice.warnings)
        .context("collecting the files beside the weights")?;
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

/// Refuses methods and schemes that need data without any, and data that nothing makes use of.
fn check_data(choice: &Choice, given: bool, statistics: Option<&Statistics>, is_of_use: bool) -> Result<()> {
    if given && !is_of_use {
        return Err(hint(
            "nothing that was asked for makes use of calibration data",
            "INT4 with the methods gptq, awq and search does, FP8 with search, and `fp8-static`; or leave `--data` out",
        ));
    }
    let wanting = choice.targets.iter().flatten();
    let mut wanting = wanting.filter(|target| {
        let needs = target.method.needs_data() || target.scheme.needs_data();
        needs && !statistics.is_some_and(|statistics| statistics.serves(target))
    });
    match wanting.next() {
        Some(target) if !given => {
            let what = if target.scheme.needs_data() { "the scheme" } else { "the method" };
            let name = if target.scheme.needs_data() { target.scheme.to_string() } else { target.method.to_string() };
            Err(hint(
                format!("{what} `{name}` needs calibration data"),
                "give text with `--data`, or with `--stats` what `l4tool calibrate` has written (for gptq with `--hessians`); \
                 without either, `--method search` and `--scheme fp8-dynamic` are the best choices",
            ))
        }
        _ => Ok(()),
    }
}

/// Reads a method by its name; `auto` is `None`: the best for each scheme with the data at hand.
///
/// # Errors
/// There is no such method.
pub fn parse_method(name: &str) -> Result<Option<Method>> {
    match name {
        "auto" => Ok(None),
        other => other.parse().map(Some).map_err(anyhow::Error::msg),
    }
}
