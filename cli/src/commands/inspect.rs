//! `l4tool inspect`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use l4::tasks::inspect::{self, Options};

use crate::context::Context;
use crate::exit::Outcome;
use crate::hub::HubArguments;
use crate::render::inspect as render;
use crate::size::Size;

/// Show what is in a checkpoint, from headers alone
///
/// Without a view, prints a summary. Views can be combined. Exits with 1 if weights are missing or do not fit the config:
/// tensors that are merely unexpected are listed and do no harm.
#[derive(Debug, Args)]
#[command(
    after_help = "Columns of --tensors, separated by tabs: name, dtype, shape, bytes, file, offset, role, layer, expert.

Examples:
  l4tool inspect Llama-4-Scout-17B-16E-Instruct
  l4tool inspect hf://meta-llama/Llama-4-Maverick-17B-128E-Instruct
  l4tool inspect CHECKPOINT --tensors | sort -k4 -n
  l4tool inspect CHECKPOINT --json | jq .parameters"
)]
pub(crate) struct Arguments {
    /// The checkpoint: a folder, a .safetensors or .gguf file, or hf://OWNER/NAME[@REVISION][/FILE.gguf], of which only headers are fetched
    checkpoint: PathBuf,
    /// One line per tensor, made for pipes
    #[arg(long)]
    tensors: bool,
    /// The routed experts of each layer
    #[arg(long)]
    experts: bool,
    /// Weights in each scheme, KV cache, and the context that fits 1 and 8 H100; with a SIZE, the global bound instead
    // The global flag's own id and type: clap then leaves that flag out here, and hands a size given before the
    // command down to this one, and one given here up.
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true)]
    memory: Option<Option<Size>>,
    /// What the config means, with what it leaves out filled in
    #[arg(long)]
    config: bool,
    #[command(flatten)]
    hub: HubArguments,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments, context: &Context) -> Result<Outcome> {
    let report = match arguments.hub.model(&arguments.checkpoint, context)? {
        Some(model) => inspect::describe(&arguments.checkpoint, &model),
        None => inspect::run(&Options { source: arguments.checkpoint })?,
    };
    let mut views: Vec<fn(&inspect::Report) -> String> = Vec::new();
    for (wanted, view) in [
        (arguments.config, render::config as fn(&inspect::Report) -> String),
        (arguments.experts, render::experts),
        (matches!(arguments.memory, Some(None)), render::memory),
        (arguments.tensors, render::tensors),
    ] {
        if wanted {
            views.push(view);
        }
    }
    let summary_only = views.is_empty();
    context.print(&report, |report| {
        if summary_only {
            return render::summary(report, context.color, context.verbose);
        }
        views.iter().map(|view| view(report)).collect::<Vec<_>>().join("\n")
    })?;
    if !summary_only && !report.problems.is_empty() {
        context.note(&render::problems(&report, false, context.verbose));
    }
    Ok(if report.complete { Outcome::Yes } else { Outcome::No })
}
