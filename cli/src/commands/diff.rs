//! `l4tool diff`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use l4::tasks::diff::{self, Options};

use crate::context::Context;
use crate::exit::Outcome;
use crate::render;

/// Compare two checkpoints weight by weight, whatever their containers and layouts are
///
/// Weights are matched by logical name: an expert's matrix inside a fused tensor with the same expert's module. Says for
/// each whether the bits are the same, whether they stand for the same numbers, or how far they are apart; and
/// which settings of the configs change the computation. Exit code 1 if anything differs or is missing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  l4tool diff Llama-4-Scout-17B-16E-Instruct my-finetune
  l4tool diff scout-int4 Llama-4-Scout-17B-16E-Instruct --all
  l4tool diff A B --json | jq '.weights[] | select(.status == \"different\") | .name'")]
pub(crate) struct Arguments {
    /// The first checkpoint: a folder, a .safetensors file or a .gguf file
    a: PathBuf,
    /// The second checkpoint
    b: PathBuf,
    /// List every weight that differs, not only those that differ most
    #[arg(long)]
    all: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments, context: &Context) -> Result<Outcome> {
    let Arguments { a, b, all } = arguments;
    let report = diff::run(&Options { a, b }, &context.control())?;
    context.print(&report, |report| render::diff::report(report, all, context.color))?;
    Ok(if report.same { Outcome::Yes } else { Outcome::No })
}
