//! GGUF files for llama.cpp, in one streaming pass from any checkpoint: what `quantize` does for its presets, and `convert --to gguf`.
//!
//! Memory is bounded by [`Control::memory`], whatever the model's size. See `output` for what happens to a plan.

mod importance;
mod report;
pub mod rules;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Error, Result, bail};

use crate::checkpoint::gguf::{Content, Value};
use crate::checkpoint::shown;
use crate::dtype::Dtype;
use crate::error::hint;
use crate::llama4::{Coding, Dialect, Llama4, ProblemKind, Role};
use crate::output::casting::Overflow;
use crate::output::executor::{self, Notes, Run};
use crate::output::gguf::keys::{self, About, Key};
use crate::output::gguf::mix::{FileType, Mix};
use crate::output::gguf::plan::{Files, Typed};
use crate::output::gguf::tensors::{GgufTensor, tensors};
use crate::output::gguf::vision::{self, Normalization};
use crate::output::gguf::{gate, limits, plan, tokenizer};
use crate::output::hash::sha256;
use crate::output::job;
use crate::output::partial::{Existing, Form};
use crate::output::plan::Plan;
use crate::output::{companions, origin};
use crate::progress::Control;
use crate::quant::scheme::Scheme;

pub use importance::Fallback;
use importance::{Importance, Known};
pub use report::{DryRun, LayerReport, Report, TensorReport, TypeReport, WeightReport};
use rules::TypeRule;

/// The ending of files that are not to be folders.
const EXTENSION: &str = "gguf";

/// What of a model a file is to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// The text model.
    #[default]
    Text,
    /// The vision model and the projector, which llama.cpp reads from a file of their own (mmproj).
    Vision,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The command that the user gave: `quantize` or `convert`.
    pub command: &'static str,
    /// The checkpoint: a folder or a file.
    pub source: PathBuf,
    /// The file to be made, if its name ends in `.gguf`; otherwise the folder to be made, with files of its name.
    pub out: PathBuf,
    /// What of the model is written.
    pub part: Part,
    /// The preset.
    pub file_type: FileType,
    /// One type for all that is quantized.
    pub pure: bool,
    /// Types of weights that are not the preset's.
    pub rules: Vec<TypeRule>,
    /// A statistics file or an importance matrix.
    pub stats: Option<PathBuf>,
    /// What experts without data get.
    pub fallback: Fallback,
    /// Most bytes of tensors in one file of a folder.
    pub split_bytes_max: Option<u64>,
    /// llama.cpp's name for the way in which texts are cut, if it is not to be recognized.
    pub pre_tokenizer: Option<String>,
    /// The model's name, if it is not to be that of its repository.
    pub name: Option<String>,
    /// Meta's files hold an instruction-tuned model, which they do not tell.
    pub instruct: bool,
    /// What to do with values that are too large for a float format.
    pub overflow: Overflow,
    /// Allow weights that are quantized already to be quantized again.
    pub requantize: bool,
    /// What to do about what is already there.
    pub existing: Existing,
    /// Compute the SHA-256 of the source's files for the manifest: reads all of the source.
    pub hash_source: bool,
}

impl Options {
    /// Refuses what does not go together.
    fn check(&self) -> Result<()> {
        if self.form() == Form::File && self.split_bytes_max.is_some() {
            bail!(hint(
                format!("`{}` is one file, and `--split-max-size` makes several", self.out.display()),
                "give the name of a folder, without `.gguf`"
            ));
        }
        let of_text = [
            ("--split-max-size", self.split_bytes_max.is_some()),
            ("--stats", self.stats.is_some()),
            ("--pre-tokenizer", self.pre_tokenizer.is_some()),
        ];
        match of_text.into_iter().find(|(_, given)| *given && self.part == Part::Vision) {
            Some((flag, _)) => Err(hint(
                format!("`{flag}` is about the text model, and `--mmproj` writes the vision part"),
                "leave one of them out",
            )),
            None => Ok(()),
        }
    }

    fn form(&self) -> Form {
        let is_file = self.out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(EXTENSION));
        if is_file { Form::File } else { Form::Folder }
    }
}

/// A run that is ready to begin: everything that is known before one weight is read.
#[derive(Debug)]
pub struct Job<'a> {
    options: &'a Options,
    model: Llama4,
    tensors: Vec<GgufTensor>,
    dtypes: Vec<Dtype>,
    plan: Plan,
    companions: Vec<companions::Companion>,
    settings: BTreeMap<String, String>,
    importance: Option<Importance>,
    warnings: Vec<String>,
    /// Why there is no tokenizer; a dry run does without one.
    no_tokenizer: Option<Error>,
}

impl<'a> Job<'a> {
    /// Opens the source and plans the output.
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
    pub fn of(options: &'a Options, mut model: Llama4, control: &Control<'_>) -> Result<Self> {
        model.require_weights()?;
        match (model.dialect, options.instruct) {
            (Dialect::Meta, _) => model.check_ranks()?,
            (_, true) => bail!(hint(
                "`--instruct` is for Meta's own files, which do not tell what kind of model they hold",
                "leave it out: this checkpoint says what it is"
            )),
            (_, false) => {}
        }
        if options.instruct {
            model.config = model.config.instructed()?;
        }
        options.check()?;
        let importance = options.stats.as_deref();
        let importance =
            importance.map(|path| Importance::open(path, options.fallback, &model, control)).transpose()?;
        let Contents { tensors, mut keys, warnings, no_tokenizer } = match options.part {
            Part::Text => Contents::text(options, &model)?,
            Part::Vision => Contents::vision(options, &model)?,
        };
        let dtypes = dtypes(options, &model, &tensors, importance.is_some())?;
        if !options.requantize {
            refuse_requantizing(&model, &tensors, &dtypes)?;
        }
        keys.extend(importance.iter().map(importance_key));
        let typed: Vec<Typed<'_>> = tensors.iter().zip(dtypes.iter().copied()).collect();
        let stem = stem(&options.out)?;
        let files = Files { stem: &stem, bytes_max: options.split_bytes_max };
        let plan = plan::plan(&model, &typed, keys, files, options.overflow)?;
        let settings = settings(options, &plan, importance.as_ref());
        let here = model.checkpoint.require_here().is_ok();
        let companions = match options.form() {
            Form::Folder if here => companions::legal(&model.checkpoint)?,
            _ => Vec::new(),
        };
        Ok(Self { options, model, tensors, dtypes, plan, companions, settings, importance, warnings, no_tokenizer })
    }

    /// What llama.cpp will do otherwise, and what is left out.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
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
    /// The output is in the way; the disk is full or does not answer; a weight is NaN, infinite or does not fit its format; there is no
    /// tokenizer; [`crate::error::Interrupted`] after a safe stop. The output does not exist then.
    pub fn run(mut self, control: &Control<'_>) -> Result<Report> {
        let began = Instant::now();
        if let Some(error) = self.no_tokenizer.take() {
            return Err(error);
        }
        let Self { model, plan, importance, .. } = &self;
        let perform = |run: &Run<'_>| match importance {
            None => executor::fill(run),
            Some(importance) => {
                run.perform(&Vec::from_iter(0..plan.tasks.len()), &Known { importance, model })?;
                Ok(Notes::new())
            }
        };
        let known = report::known(&self)?;
        let records = |totals: &[_]| report::weights(&self, &known, totals).iter().map(WeightReport::record).collect();
        let promised = self.promised();
        let check = |folder: &Path| match self.options.part {
            Part::Text => gate::check(folder, plan, &promised),
            // Alone it is no model.
            Part::Vision => gate::check_tensors(folder, plan),
        };
        let done = self.job().run_checked(check, perform, records, control)?;
        Ok(Report::new(&self, report::weights(&self, &known, &done.totals), done.resumed, began.elapsed()))
    }

    /// Every weight of the output with its scheme.
    fn promised(&self) -> Vec<(&str, Option<Scheme>)> {
        let tensors = self.tensors.iter().zip(&self.dtypes);
        let weights = tensors.flat_map(|(tensor, &dtype)| tensor.weights().iter().map(move |&index| (index, dtype)));
        let scheme = |dtype: Dtype| (dtype.block_len() > 1).then_some(Scheme::Blocks(dtype));
        weights.map(|(index, dtype)| (self.model.weights[index].name.as_str(), scheme(dtype))).collect()
    }

    fn job(&self) -> job::Job<'_> {
        job::Job {
            command: self.options.command,
            settings: &self.settings,
            model: &self.model,
            plan: &self.plan,
            companions: &self.companions,
            out: &self.options.out,
            form: self.options.form(),
            existing: self.options.existing,
            hash_source: self.options.hash_source,
        }
    }
}

/// What a file holds, but for the tensors' types.
struct Contents {
    tensors: Vec<GgufTensor>,
    keys: Vec<Key>,
    warnings: Vec<String>,
    no_tokenizer: Option<Error>,
}

impl Contents {
    fn text(options: &Options, model: &Llama4) -> Result<Self> {
        let (pattern, limits) = limits::check(&model.config.text)?;
        let mut warnings = Vec::from_iter(left_out(model));
        warnings.extend(limits);
        let tensors = tensors(model);
        let mut keys = keys::keys(&model.config.text, pattern, options.file_type, &tensors, &about(options, model)?);
        let request =
            tokenizer::Request { pre_tokenizer: options.pre_tokenizer.as_deref(), instruct: options.instruct };
        let no_tokenizer = match tokenizer::keys(model, request) {
            Ok(own) => {
                keys.extend(own);
                None
            }
            Err(error) => Some(error),
        };
        Ok(Self { tensors, keys, warnings, no_tokenizer })
    }

    fn vision(options: &Options, model: &Llama4) -> Result<Self> {
        let configs = (&model.config.text, vision::part(model)?);
        let tensors = vision::tensors(model);
        let normalization = Normalization::of(&model.checkpoint)?;
        let keys = vision::keys(configs, options.file_type, &tensors, &about(options, model)?, normalization);
        Ok(Self { tensors, keys, warnings: Vec::new(), no_tokenizer: None })
    }
}

/// What files are called: the output's own name, without the ending.
fn stem(out: &Path) -> Result<String> {
    let name = match out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(EXTENSION)) {
        // An ending in capitals stays one, as `OUT` is what was asked for.
        true if out.extension().is_some_and(|extension| extension != EXTENSION) => {
            bail!(hint(format!("`{}` ends in capitals", out.display()), "let the name end in `.gguf`"))
        }
        true => out.file_stem(),
        false => out.file_name(),
    };
    match name.and_then(|name| name.to_str()) {
        Some(name) => Ok(name.to_owned()),
        None => bail!("`{}` cannot be an output: it has no name in UTF-8", out.display()),
    }
}

fn dtypes(options: &Options, model: &Llama4, tensors: &[GgufTensor], importance: bool) -> Result<Vec<Dtype>> {
    let text = &model.config.text;
    let mix =
        Mix { file_type: options.file_type, importance, pure: options.pure, layers: 0, experts: 0, heads_per_kv: 0 };
    let mix = match options.part {
        Part::Text => Mix {
            layers: text.num_hidden_layers,
            experts: text.num_local_experts,
            heads_per_kv: text.num_attention_heads / text.num_key_value_heads,
            ..mix
        },
        Part::Vision => mix,
    };
    let chosen = rules::chosen(model, tensors, &options.rules)?;
    let candidates: Vec<_> = tensors.iter().zip(chosen).map(|(tensor, chosen)| tensor.candidate(chosen)).collect();
    Ok(mix.dtypes(&candidates))
}

fn refuse_requantizing(model: &Llama4, tensors: &[GgufTensor], dtypes: &[Dtype]) -> Result<()> {
    let quantized = tensors.iter().zip(dtypes).filter(|(_, dtype)| dtype.block_len() > 1);
    let mut weights = quantized.flat_map(|(tensor, dtype)| tensor.weights().iter().map(move |&index| (index, dtype)));
    let again = |(index, dtype): &(usize, &Dtype)| match model.weights[*index].coding {
        // Blocks of the same type are copied.
        Coding::Blocks { dtype: stored, .. } => stored != **dtype,
        _ => model.stored_float(&model.weights[*index]).is_none(),
    };
    match weights.find(again) {
        Some((index, dtype)) => Err(hint(
            format!("`{}` is quantized already; making it {dtype} adds a second rounding", model.weights[index].name),
            "start from the original weights; or `--requantize` if this is what you want",
        )),
        None => Ok(()),
    }
}

/// What the file does not hold.
fn left_out(model: &Llama4) -> Vec<String> {
    let mut notes = Vec::new();
    let mut strangers = model.problems.iter().filter(|problem| problem.kind == ProblemKind::Unexpected);
    if let Some(first) = strangers.next() {
        let (count, name) = (1 + strangers.count(), shown(&first.name));
        notes.push(format!("{count} tensors are no part of this model and are left out, such as `{name}`"));
    }
    let vision = model.weights.iter().filter(|weight| matches!(weight.role, Role::Vision | Role::Projector)).count();
    if vision > 0 {
        notes.push(format!(
            "{vision} weights of the vision part are left out: llama.cpp reads them from a file of their own, which `--mmproj` writes"
        ));
    }
    notes
}

fn about(options: &Options, model: &Llama4) -> Result<About> {
    let here = model.checkpoint.require_here().is_ok();
    let repository = || if here { origin::describe(&model.checkpoint).repo } else { None };
    let name = options.name.clone().or_else(|| repository().map(|repository| keys::title(&repository)));
    let generation = if here { tokenizer::json(&model.checkpoint, "generation_config.json")? } else { None };
    Ok(About { name, generation })
}

/// llama.cpp writes where its importance matrix lay; the name is enough, and the same everywhere.
fn importance_key(importance: &Importance) -> Key {
    ("quantize.imatrix.file".to_owned(), Content::Value(Value::String(importance.name.clone())))
}

/// The options that decide the bytes of the output, by name.
fn settings(options: &Options, plan: &Plan, importance: Option<&Importance>) -> BTreeMap<String, String> {
    // Names, types and places of tensors, keys and tokenizer.
    let heads: String = plan.files.iter().map(|file| sha256(&file.header)).collect();
    let mut settings: BTreeMap<String, String> = [
        ("to", "gguf".to_owned()),
        ("scheme", options.file_type.to_string()),
        ("heads sha256", sha256(heads.as_bytes())),
        ("clamp", (options.overflow == Overflow::Clamp).to_string()),
        ("requantize", options.requantize.to_string()),
        ("instruct", options.instruct.to_string()),
        ("hash source", options.hash_source.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let mut also = |name: &str, value: Option<String>| settings.extend(value.map(|value| (name.to_owned(), value)));
    also("part", (options.part == Part::Vision).then(|| "vision".to_owned()));
    also("split size", options.split_bytes_max.map(|bytes| bytes.to_string()));
    also("pre-tokenizer", options.pre_tokenizer.clone());
    also("name", options.name.clone());
    also("statistics sha256", importance.map(|importance| importance.sha256.clone()));
    also("imatrix fallback", importance.map(|_| format!("{:?}", options.fallback).to_lowercase()));
    settings
}

/// Writes GGUF: [`Job::new`] and [`Job::run`].
///
/// # Errors
/// As these.
pub fn run(options: &Options, control: &Control<'_>) -> Result<Report> {
    Job::new(options, control)?.run(control)
}
