//! `l4tool verify`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use l4::tasks::verify::{self, DEFAULT_TOKENS, Options, Thresholds};

use crate::context::Context;
use crate::exit::Outcome;
use crate::render;

/// Check that a checkpoint is whole, and that it computes what a reference computes
///
/// Reads every byte once: structure, shapes, scales, NaN and Inf, and the checksums of l4tool.manifest.json. With --text
/// it also runs the reference forward pass and reports perplexity. With --against both models run in lockstep, layer by
/// layer, in the memory of one layer. Exit code 1 if anything is wrong or a threshold is passed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  l4tool verify scout-int4
  l4tool verify scout-int4 --against Llama-4-Scout-17B-16E-Instruct --max-kl 0.05 --min-top1 0.9
  l4tool verify scout-int4 --text book.txt --tokens 2048 --json | jq .perplexity")]
pub(crate) struct Arguments {
    /// The checkpoint: a folder, a .safetensors file or a .gguf file
    checkpoint: PathBuf,
    /// The checkpoint that it should compute the same as
    #[arg(long, value_name = "REFERENCE")]
    against: Option<PathBuf>,
    /// Text to run through the model [default with --against: a built-in sample]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Most tokens of the text to run
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TOKENS as u64, value_parser = clap::value_parser!(u64).range(2..))]
    tokens: u64,
    /// Write the logits [tokens, vocab] and the input_ids to a safetensors file
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    /// Largest mean KL divergence from the reference, in nats
    #[arg(long, value_name = "NATS", requires = "against")]
    max_kl: Option<f64>,
    /// Smallest share of tokens with the same most likely next token, from 0 to 1
    #[arg(long, value_name = "SHARE", requires = "against")]
    min_top1: Option<f64>,
    /// Largest relative increase of perplexity over the reference, such as 0.01
    #[arg(long, value_name = "SHARE", requires = "against")]
    max_ppl_increase: Option<f64>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments, context: &Context) -> Result<Outcome> {
    let text = match &arguments.text {
        Some(path) => {
            Some(std::fs::read_to_string(path).with_context(|| format!("reading the text `{}`", path.display()))?)
        }
        None => None,
    };
    let options = Options {
        checkpoint: arguments.checkpoint,
        against: arguments.against,
        text,
        tokens: usize::try_from(arguments.tokens)?,
        logits: arguments.logits,
        thresholds: Thresholds {
            max_kl: arguments.max_kl,
            min_top1: arguments.min_top1,
            max_ppl_increase: arguments.max_ppl_increase,
        },
    };
    let report = verify::run(&options, &context.control())?;
    context.print(&report, |report| render::verify::report(report, context.color))?;
    Ok(if report.ok { Outcome::Yes } else { Outcome::No })
}
