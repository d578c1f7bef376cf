//! `convert`: an ordinary Hugging Face checkpoint in plain floats, from Meta's own files or from any other layout.
//!
//! One streaming pass; memory is bounded by [`Control::memory`], whatever the model's size. See `output` for what happens to a
//! plan.

mod beside;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use crate::checkpoint::shown;
use crate::error::hint;
use crate::kernels::Float;
use crate::llama4::config::Model;
use crate::llama4::{Coding, Dialect, Llama4, ProblemKind, Role};
use crate::output::casting::Overflow;
use crate::output::companions::Companion;
use crate::output::converting::{Experts, Form, plan_conversion};
use crate::output::job;
use crate::output::partial::{self, Existing};
use crate::output::plan::{Plan, PlanBuilder};
use crate::progress::Control;
use crate::quant::Errors;

pub use report::{DryRun, Report, WeightReport};

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The checkpoint: a folder or a file.
    pub source: PathBuf,
    /// The folder to be made.
    pub out: PathBuf,
    /// How the routed experts are stored.
    pub experts: Experts,
    /// The format of all floats; `None`: as they are.
    pub float: Option<Float>,
    /// What to do with values that are too large for the format.
    pub overflow: Overflow,
    /// Leave the vision part out.
    pub text_only: bool,
    /// Meta's files hold an instruction-tuned model, which they do not tell.
    pub instruct: bool,
    /// Most bytes of data in one output file.
    pub shard_bytes_max: u64,
    /// What to do about what is already there.
    pub existing: Existing,
    /// Compute the SHA-256 of the source's files for the manifest: reads all of the source.
    pub hash_source: bool,
}

/// A run that is ready to begin: everything that is known before one weight is read.
#[derive(Debug)]
pub struct Job<'a> {
    options: &'a Options,
    model: Llama4,
    form: Form,
    plan: Plan,
    companions: Vec<Companion>,
    settings: BTreeMap<String, String>,
    changes: Vec<String>,
    notes: Vec<String>,
}

impl<'a> Job<'a> {
    /// Opens the source and plans the output.
    ///
    /// # Errors
    /// The source or the options cannot be used.
    pub fn new(options: &'a Options) -> Result<Self> {
        let mut model = Llama4::open(&options.source)?;
        model.require_weights()?;
        match (model.dialect, options.instruct) {
            (Dialect::Meta, _) => model.check_ranks()?,
            (Dialect::HuggingFace | Dialect::Gguf, false) => {}
            (Dialect::HuggingFace | Dialect::Gguf, true) => {
                return Err(hint(
                    "`--instruct` is for Meta's own files, which do not tell what kind of model they hold",
                    "leave it out: this checkpoint says what it is itself",
                ));
            }
        }
        if options.instruct {
            model.config = model.config.instructed()?;
        }
        let output_model = if options.text_only { Model::TextOnly } else { model.config.model };
        let (experts, overflow) = (options.experts, options.overflow);
        let float = options.float.or_else(|| usual_float(&model));
        let form = Form { model: output_model, experts, float, overflow };
        let mut builder = PlanBuilder::new(options.shard_bytes_max);
        plan_conversion(&mut builder, &model, &form)?;
        let plan = builder.finish()?;
        let changes = changes(&model, &form);
        let mut notes = notes(&model, &form);
        let companions = beside::files(options, &model, &form, &plan, &changes, &mut notes)?;
        let settings = settings(options);
        Ok(Self { options, model, form, plan, companions, settings, changes, notes })
    }

    /// What the user should know before the work.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Says what [`Job::run`] would do.
    ///
    /// # Errors
    /// The output is in the way, or the memory bound too small.
    pub fn dry_run(&self, control: &Control<'_>) -> Result<DryRun> {
        self.job().check_destination()?;
        DryRun::new(self, control)
    }

    /// Makes the output.
    ///
    /// # Errors
    /// The output is in the way; the disk is full or does not answer; a weight is NaN, infinite or does not fit the format;
    /// [`crate::error::Interrupted`] after a safe stop. The output does not exist then.
    pub fn run(&self, control: &Control<'_>) -> Result<Report> {
        let began = Instant::now();
        let Self { model, form, plan, .. } = self;
        let kept = model.weights.iter().filter(|weight| form.keeps(weight));
        let promised: Vec<_> = kept.map(|weight| (weight.name.as_str(), None)).collect();
        let records = |totals: &[Vec<Errors>]| {
            report::weights(model, form, plan, totals).iter().map(WeightReport::record).collect()
        };
        let done = self.job().run(&promised, records, control)?;
        let weights = report::weights(model, form, plan, &done.totals);
        Ok(Report::new(self, weights, done.resumed, began.elapsed()))
    }

    fn job(&self) -> job::Job<'_> {
        job::Job {
            command: "convert",
            settings: &self.settings,
            model: &self.model,
            plan: &self.plan,
            companions: &self.companions,
            out: &self.options.out,
            form: partial::Form::Folder,
            existing: self.options.existing,
            hash_source: self.options.hash_source,
        }
    }
}

/// Converts a checkpoint: [`Job::new`] and [`Job::run`].
///
/// # Errors
/// As these.
pub fn run(options: &Options, control: &Control<'_>) -> Result<Report> {
    Job::new(options)?.run(control)
}

/// The one format for all floats that a checkpoint without mixed formats is to have, where the user names none. A GGUF file
/// has its norms and routers in F32 whatever the model was: the embedding says what it was, if it is plain.
fn usual_float(model: &Llama4) -> Option<Float> {
    if model.dialect != Dialect::Gguf {
        return None;
    }
    let embedding = model.weight(Role::Embedding, None, None);
    Some(embedding.and_then(|weight| model.stored_float(weight)).unwrap_or(Float::BF16))
}

/// The options that decide the bytes of the output, by name.
fn settings(options: &Options) -> BTreeMap<String, String> {
    let dtype = options.float.map_or_else(|| "as it is".into(), |float| float.dtype().to_string());
    let entries = [
        ("to", "hf".to_owned()),
        ("experts", word(options.experts).to_owned()),
        ("dtype", dtype),
        ("clamp", (options.overflow == Overflow::Clamp).to_string()),
        ("vision", if options.text_only { "drop" } else { "keep" }.to_owned()),
        ("instruct", options.instruct.to_string()),
        ("shard size", options.shard_bytes_max.to_string()),
        ("hash source", options.hash_source.to_string()),
    ];
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn word(experts: Experts) -> &'static str {
    match experts {
        Experts::Fused => "fused",
        Experts::PerExpert => "per-expert",
    }
}

/// What is done, in a line each.
fn changes(model: &Llama4, form: &Form) -> Vec<String> {
    let mut changes = Vec::new();
    let kept = || model.weights.iter().filter(|weight| form.keeps(weight));
    if model.dialect == Dialect::Meta {
        let ranks = model.checkpoint.files().iter().filter(|file| file.name.starts_with("consolidated")).count().max(1);
        changes.push(match ranks {
            1 => "Meta's layout in one file: names and layouts changed".into(),
            _ => format!("Meta's layout in {ranks} ranks: joined"),
        });
    }
    if model.dialect == Dialect::Gguf {
        changes.push("llama.cpp's layout: names, layouts and config are Hugging Face's again".into());
    }
    let mut schemes: BTreeMap<String, usize> = BTreeMap::new();
    for weight in kept() {
        let scheme = match weight.coding {
            Coding::Pieces(id) if model.pieces[id].is_quantized() => Some("fp8".to_owned()),
            coding => coding.scheme().map(|scheme| scheme.to_string()),
        };
        *schemes.entry(scheme.unwrap_or_default()).or_default() += 1;
    }
    let float = form.float.unwrap_or(Float::BF16).dtype();
    for (scheme, count) in schemes.iter().filter(|(scheme, _)| !scheme.is_empty()) {
        changes.push(format!("{count} matrices in {scheme}: dequantized to {float}"));
    }
    let mut casts: BTreeMap<String, usize> = BTreeMap::new();
    for weight in kept() {
        if let Some(stored) = model.stored_float(weight)
            && stored != form.float_of(model, weight)
        {
            *casts.entry(stored.dtype().to_string()).or_default() += 1;
        }
    }
    changes.extend(casts.iter().map(|(stored, count)| format!("{count} weights in {stored}: cast to {float}")));
    let dropped = model.weights.len() - kept().count();
    if dropped > 0 {
        changes.push(format!("{dropped} weights of the vision part: left out"));
    }
    changes
}

/// What the user should know.
fn notes(model: &Llama4, form: &Form) -> Vec<String> {
    let mut notes = Vec::new();
    let mut strangers = model.problems.iter().filter(|problem| problem.kind == ProblemKind::Unexpected);
    if let Some(first) = strangers.next() {
        let (count, name) = (1 + strangers.count(), shown(&first.name));
        notes.push(format!("{count} tensors are no part of this model and are left out, such as `{name}`"));
    }
    if model.dialect == Dialect::Meta && model.pieces.iter().any(|pieces| pieces.is_quantized()) {
        notes.push(
            "Meta's FP8 experts become plain floats: their scales cover the inputs of one rank, which no engine reads"
                .into(),
        );
    }
    if form.experts == Experts::PerExpert && model.config.text.moe_layers.contains(&true) {
        notes.push("transformers does not load experts one by one unless they are quantized; vLLM does".into());
    }
    notes
}
