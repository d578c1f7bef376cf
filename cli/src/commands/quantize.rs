//! `l4tool quantize`.

use std::path::PathBuf;

use anyhow::{Context as _, Error, Result, anyhow, bail};
use clap::{ArgGroup, Args};
use l4::error::hint;
use l4::output::casting::Overflow;
use l4::output::gguf::mix::FileType;
use l4::output::hash::sha256;
use l4::quant::Method;
use l4::quant::recipe::Recipe;
use l4::quant::scheme::{Knowledge, Scheme};
use l4::tasks::gguf as gguf_task;
use l4::tasks::gguf::rules::{self, Action, TypeRule};
use l4::tasks::quantize::{Job, Options, Selection, SolverOptions, knowledge, parse_method, patterns};

use super::calibrate::DataArguments;
use super::gguf::{self, GgufArguments, ImatrixFallback};
use crate::args::OutputArguments;
use crate::context::Context;
use crate::exit::Outcome;
use crate::hub::HubArguments;
use crate::render;
use crate::size::Size;

/// Quantize a checkpoint: to INT4 or FP8 for vLLM, SGLang and transformers, or to GGUF for llama.cpp
///
/// Quantizes the routed experts, shared experts and dense feed-forward matrices; attention, router, embeddings, head,
/// norms and vision stay as they are. The output appears when it is complete and checked; an interrupted run goes on
/// when the same command is run again.
///
/// With one of llama.cpp's presets as the scheme, OUT is a GGUF file with the types that llama-quantize gives each tensor, and with
/// its bytes; see docs/gguf.md.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["int4", "fp8", "scheme", "recipe"]))]
#[command(after_help = "Examples:
  l4tool quantize Llama-4-Scout-17B-16E-Instruct -o scout-int4 --int4
  l4tool quantize Llama-4-Maverick-17B-128E-Instruct -o maverick-fp8 --fp8 --dry-run
  l4tool quantize CHECKPOINT -o scout-Q4_K_M.gguf --scheme q4_k_m --stats stats.safetensors
  l4tool quantize CHECKPOINT -o OUT --int4 --group-size 64 --exclude '^layers\\.(0|47)\\.'")]
pub(crate) struct Arguments {
    /// The checkpoint: a folder, a .safetensors or .gguf file, or, with --dry-run, hf://OWNER/NAME[@REVISION][/FILE.gguf]
    checkpoint: PathBuf,
    /// The folder to make, or the file, if its name ends in .gguf
    #[arg(short, long = "output", value_name = "OUT")]
    output: PathBuf,
    /// INT4 weights in groups of 128, 16-bit activations (the scheme w4a16)
    #[arg(long)]
    int4: bool,
    /// FP8 weights per channel, FP8 activations per token (the scheme fp8-dynamic)
    #[arg(long)]
    fp8: bool,
    /// One of w4a16, w4a16-asym, fp8-dynamic, fp8-block, fp8-static (with --data); or for GGUF q8_0, q6_k, q5_k_m, q5_k_s,
    /// q4_k_m, q4_k_s, q3_k_l, q3_k_m, q3_k_s, q2_k, q5_1, q5_0, q4_1, q4_0, iq4_nl, iq4_xs, mxfp4, f32, f16, bf16
    #[arg(long, value_name = "NAME")]
    scheme: Option<String>,
    /// Rules for which weight gets which scheme (TOML; see docs/recipes.md)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["group_size", "include"])]
    recipe: Option<PathBuf>,
    /// Inputs that share a scale, for INT4 [default: 128]
    #[arg(long, value_name = "N")]
    group_size: Option<usize>,
    /// How weights are rounded: rtn, search (FP8: with data), gptq or awq (INT4 with data), or auto (INT4: gptq with data or
    /// Hessians, search without; FP8: rtn)
    #[arg(long, value_name = "NAME", default_value = "auto")]
    method: String,
    #[command(flatten, next_help_heading = "Calibration")]
    data: DataArguments,
    /// Calibrate with the small set of text that comes with l4tool; text of your own is better
    #[arg(long, conflicts_with = "data", help_heading = "Calibration")]
    calibrate: bool,
    /// What `l4tool calibrate` or `llama-imatrix` has written, instead of text: weighs errors for the method search; what
    /// calibrate has written serves fp8-static too, and with its --hessians gptq
    #[arg(long, value_name = "STATS", conflicts_with_all = ["data", "calibrate"], help_heading = "Calibration")]
    stats: Option<PathBuf>,
    /// For gptq: added to the diagonal of the second moments, as a share of its mean
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, help_heading = "Calibration")]
    damping: f64,
    /// Experts with fewer tokens than this are judged by the other experts' tokens of their layer too [default: twice the
    /// model's hidden size]
    #[arg(long, value_name = "N", help_heading = "Calibration")]
    expert_tokens: Option<usize>,
    /// For how many tokens the layer's count then [default: half the model's hidden size]
    #[arg(long, value_name = "N", help_heading = "Calibration")]
    shrink: Option<f64>,
    /// Quantize the weights whose logical names match, instead of the default set; may be repeated
    #[arg(long, value_name = "REGEX")]
    include: Vec<String>,
    /// Leave the weights whose logical names match as they are; may be repeated
    #[arg(long, value_name = "REGEX")]
    exclude: Vec<String>,
    /// Most bytes of weights in one output file
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    shard_size: Size,
    /// Quantize weights again that are quantized already
    #[arg(long)]
    requantize: bool,
    #[command(flatten)]
    output_flags: OutputArguments,
    /// One type for all tensors instead of the preset's mixture
    #[arg(long, help_heading = "GGUF")]
    pure: bool,
    /// What experts get that no token of the statistics reached
    #[arg(long, value_name = "WHAT", help_heading = "GGUF")]
    imatrix_fallback: Option<ImatrixFallback>,
    #[command(flatten, next_help_heading = "GGUF")]
    gguf: GgufArguments,
    #[command(flatten)]
    hub: HubArguments,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments, context: &Context) -> Result<Outcome> {
    let dry_run = arguments.output_flags.dry_run;
    // Without a dry run the source has to be here, and opening it says so.
    let remote = if dry_run { arguments.hub.model(&arguments.checkpoint, context)? } else { None };
    if let Some((preset, rules)) = arguments.gguf_preset()? {
        return gguf::run(&arguments.gguf_options(preset, rules)?, dry_run, remote, context);
    }
    let options = arguments.options()?;
    let job = match remote {
        Some(model) => Job::of(&options, model, &context.control())?,
        None => Job::new(&options, &context.control())?,
    };
    if dry_run {
        let report = job.dry_run(&context.control())?;
        context.print(&report, render::quantize::plan)?;
        return Ok(if report.forecast.disk_fits { Outcome::Yes } else { Outcome::No });
    }
    // Before the work, not after hours of it.
    for warning in job.warnings() {
        context.note(&format!("warning: {warning}"));
    }
    let report = job.run(&context.control())?;
    context.print(&report, |report| render::quantize::report(report, context.verbose))?;
    Ok(Outcome::Yes)
}

impl Arguments {
    /// The preset, and the rules of the recipe, if GGUF is asked for.
    fn gguf_preset(&self) -> Result<Option<(FileType, Vec<TypeRule>)>> {
        if let Some(preset) = self.scheme.as_deref().and_then(FileType::parse) {
            return Ok(Some((preset, Vec::new())));
        }
        let Some(path) = &self.recipe else { return Ok(None) };
        let text = read_recipe(path)?;
        if !rules::is_recipe(&text) {
            return Ok(None);
        }
        let parsed = rules::parse_recipe(&text);
        parsed.map(Some).map_err(|error| anyhow!("the recipe `{}`: {error}", path.display()))
    }

    fn gguf_options(self, file_type: FileType, mut rules: Vec<TypeRule>) -> Result<gguf_task::Options> {
        let not_for_gguf = [
            ("--method", self.method != "auto", "GGUF's formats have one method, llama.cpp's"),
            ("--group-size", self.group_size.is_some(), "GGUF's formats have groups of their own"),
            ("--data", self.has_data(), "run `l4tool calibrate` and give what it writes with `--stats`"),
        ];
        if let Some((flag, _, way)) = not_for_gguf.into_iter().find(|(_, given, _)| *given) {
            bail!(hint(format!("`{flag}` does not go with the scheme {file_type}"), way));
        }
        if self.imatrix_fallback.is_some() && self.stats.is_none() {
            bail!(hint("`--imatrix-fallback` is about statistics", "name some with `--stats`"));
        }
        let rule = |action| move |pattern| TypeRule { pattern, action };
        let include = patterns("--include", &self.include)?;
        if !include.is_empty() {
            rules.extend(patterns("--include", &[".".to_owned()])?.into_iter().map(rule(Action::Keep)));
            rules.extend(include.into_iter().map(rule(Action::Preset)));
        }
        rules.extend(patterns("--exclude", &self.exclude)?.into_iter().map(rule(Action::Keep)));
        Ok(gguf_task::Options {
            command: "quantize",
            source: self.checkpoint,
            out: self.output,
            part: self.gguf.part(),
            file_type,
            pure: self.pure,
            rules,
            stats: self.stats,
            fallback: self.imatrix_fallback.unwrap_or_default().into(),
            split_bytes_max: self.gguf.split_max_size.map(|size| size.0),
            pre_tokenizer: self.gguf.pre_tokenizer,
            name: self.gguf.name,
            instruct: false,
            overflow: Overflow::Refuse,
            requantize: self.requantize,
            existing: self.output_flags.existing(),
            hash_source: self.output_flags.hash_source,
        })
    }

    fn options(self) -> Result<Options> {
        let of_gguf = [("--pure", self.pure), ("--imatrix-fallback", self.imatrix_fallback.is_some())];
        let flag = of_gguf.into_iter().find_map(|(flag, given)| given.then_some(flag)).or(self.gguf.given());
        if let Some(flag) = flag {
            bail!(hint(format!("`{flag}` is about GGUF"), "choose one of its schemes, such as `--scheme q4_k_m`"));
        }
        let selection = self.selection()?;
        if self.data.is_given() && !self.has_data() {
            bail!(hint(
                "`--samples`, `--seq-len` and `--seed` are about calibration data",
                "name some with `--data`, or add `--calibrate`"
            ));
        }
        let calibration = self.has_data().then(|| self.data.options());
        Ok(Options {
            source: self.checkpoint,
            out: self.output,
            selection,
            shard_bytes_max: self.shard_size.0,
            existing: self.output_flags.existing(),
            requantize: self.requantize,
            hash_source: self.output_flags.hash_source,
            calibration,
            stats: self.stats,
            solver: SolverOptions { damping: self.damping, expert_tokens: self.expert_tokens, shrink: self.shrink },
        })
    }

    fn has_data(&self) -> bool {
        self.calibrate || !self.data.data.is_empty()
    }

    fn known(&self) -> Result<Knowledge> {
        match (self.has_data(), &self.stats) {
            (true, _) => Ok(Knowledge::Inputs),
            (false, Some(path)) => knowledge(path),
            (false, None) => Ok(Knowledge::Nothing),
        }
    }

    fn selection(&self) -> Result<Selection> {
        let method = parse_method(&self.method)?;
        let exclude = patterns("--exclude", &self.exclude)?;
        if let Some(path) = &self.recipe {
            return self.recipe(path, method, exclude);
        }
        let name = match (self.int4, self.fp8, &self.scheme) {
            (true, ..) => "w4a16",
            (_, true, _) => "fp8-dynamic",
            (.., Some(name)) => name,
            _ => bail!("name a scheme: --int4, --fp8, --scheme NAME or --recipe FILE"),
        };
        let scheme = Scheme::parse(name, self.group_size).map_err(Error::msg)?;
        let method = scheme.method(method, self.known()?).map_err(Error::msg)?;
        Ok(Selection::Uniform { scheme, method, include: patterns("--include", &self.include)?, exclude })
    }

    fn recipe(&self, path: &std::path::Path, method: Option<Method>, exclude: Vec<regex::Regex>) -> Result<Selection> {
        let text = read_recipe(path)?;
        let recipe = Recipe::parse(&text, method, self.known()?)
            .map_err(|error| anyhow!("the recipe `{}`: {error}", path.display()));
        let recipe =
            recipe.map_err(|error| hint(error.to_string(), "docs/recipes.md shows how a recipe is written"))?;
        Ok(Selection::Recipe { recipe, sha256: sha256(text.as_bytes()), exclude })
    }
}

fn read_recipe(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading the recipe `{}`", path.display()))
}
