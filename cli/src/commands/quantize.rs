//! `l4tool quantize`.

use std::path::PathBuf;

use anyhow::{Context as _, Error, Result, anyhow, bail};
use clap::{ArgGroup, Args};
use l4::error::hint;
use l4::output::hash::sha256;
use l4::output::partial::Existing;
use l4::quant::Method;
use l4::quant::recipe::Recipe;
use l4::quant::scheme::Scheme;
use l4::tasks::quantize::{Job, Options, Selection, parse_method, patterns};

use crate::context::Context;
use crate::exit::Outcome;
use crate::hub::HubArguments;
use crate::render;
use crate::size::Size;

/// Quantize a checkpoint to INT4 or FP8, expert by expert, for vLLM, SGLang and transformers
///
/// Quantizes the routed experts, shared experts and dense feed-forward matrices; attention, router, embeddings, head,
/// norms and vision stay as they are. The output appears when it is complete and checked; an interrupted run goes on
/// when the same command is run again.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["int4", "fp8", "scheme", "recipe"]))]
#[command(after_help = "Examples:
  l4tool quantize Llama-4-Scout-17B-16E-Instruct -o scout-int4 --int4
  l4tool quantize Llama-4-Maverick-17B-128E-Instruct -o maverick-fp8 --fp8 --dry-run
  l4tool quantize CHECKPOINT -o OUT --int4 --group-size 64 --exclude '^layers\\.(0|47)\\.'")]
pub(crate) struct Arguments {
    /// The checkpoint: a folder, a .safetensors file, or, with --dry-run, hf://OWNER/NAME[@REVISION]
    checkpoint: PathBuf,
    /// The folder to make
    #[arg(short, long = "output", value_name = "OUT")]
    output: PathBuf,
    /// INT4 weights in groups of 128, 16-bit activations (the scheme w4a16)
    #[arg(long)]
    int4: bool,
    /// FP8 weights per channel, FP8 activations per token (the scheme fp8-dynamic)
    #[arg(long)]
    fp8: bool,
    /// One of w4a16, w4a16-asym, fp8-dynamic, fp8-block
    #[arg(long, value_name = "NAME")]
    scheme: Option<String>,
    /// Rules for which weight gets which scheme (TOML; see docs/recipes.md)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["group_size", "include"])]
    recipe: Option<PathBuf>,
    /// Inputs that share a scale, for INT4 [default: 128]
    #[arg(long, value_name = "N")]
    group_size: Option<usize>,
    /// How scales are chosen: rtn, search, or auto (search for INT4, rtn for FP8)
    #[arg(long, value_name = "NAME", default_value = "auto")]
    method: String,
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
    /// Record the SHA-256 of the source's files in the manifest; reads all of the source once more
    #[arg(long)]
    hash_source: bool,
    /// Print what would be done: files, bytes, memory, disk
    #[arg(long)]
    dry_run: bool,
    /// Replace an existing output
    #[arg(long)]
    force: bool,
    /// Throw an interrupted run's work away and start over
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    hub: HubArguments,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments, context: &Context) -> Result<Outcome> {
    let dry_run = arguments.dry_run;
    // Without a dry run the source has to be here, and opening it says so.
    let remote = if dry_run { arguments.hub.model(&arguments.checkpoint, context)? } else { None };
    let options = arguments.options()?;
    let job = match remote {
        Some(model) => Job::of(&options, model)?,
        None => Job::new(&options)?,
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
    fn options(self) -> Result<Options> {
        let selection = self.selection()?;
        Ok(Options {
            source: self.checkpoint,
            out: self.output,
            selection,
            shard_bytes_max: self.shard_size.0,
            existing: Existing { force: self.force, restart: self.restart },
            requantize: self.requantize,
            hash_source: self.hash_source,
        })
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
        let method = scheme.method(method).map_err(Error::msg)?;
        Ok(Selection::Uniform { scheme, method, include: patterns("--include", &self.include)?, exclude })
    }

    fn recipe(&self, path: &std::path::Path, method: Option<Method>, exclude: Vec<regex::Regex>) -> Result<Selection> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading the recipe `{}`", path.display()))?;
        let recipe = Recipe::parse(&text, method).map_err(|error| anyhow!("the recipe `{}`: {error}", path.display()));
        let recipe =
            recipe.map_err(|error| hint(error.to_string(), "docs/recipes.md shows how a recipe is written"))?;
        Ok(Selection::Recipe { recipe, sha256: sha256(text.as_bytes()), exclude })
    }
}
