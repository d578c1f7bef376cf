//! Flags of commands that write GGUF, and what is done with them.

use anyhow::Result;
use clap::{Args, ValueEnum};
use l4::llama4::Llama4;
use l4::tasks::gguf::{Fallback, Job, Options, Part};

use crate::context::Context;
use crate::exit::Outcome;
use crate::render;
use crate::size::Size;

/// How GGUF files are written.
#[derive(Debug, Args)]
pub(crate) struct GgufArguments {
    /// Files of at most this many bytes of weights, in a folder OUT
    #[arg(long, value_name = "SIZE")]
    pub(crate) split_max_size: Option<Size>,
    /// llama.cpp's name for the way in which the tokenizer cuts texts [default: recognized]
    #[arg(long, value_name = "NAME")]
    pub(crate) pre_tokenizer: Option<String>,
    /// The model's name in the file [default: its repository's, where that is known]
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: Option<String>,
    /// Write the vision part, which llama.cpp reads from a file of its own, instead of the text model
    #[arg(long)]
    pub(crate) mmproj: bool,
}

impl GgufArguments {
    /// The first of these flags that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        [
            ("--split-max-size", self.split_max_size.is_some()),
            ("--pre-tokenizer", self.pre_tokenizer.is_some()),
            ("--name", self.name.is_some()),
            ("--mmproj", self.mmproj),
        ]
        .into_iter()
        .find_map(|(flag, given)| given.then_some(flag))
    }

    /// What of the model is to be written.
    pub(crate) fn part(&self) -> Part {
        if self.mmproj { Part::Vision } else { Part::Text }
    }
}

/// What experts without calibration data get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImatrixFallback {
    /// What the layer's other experts see
    #[default]
    Pooled,
    /// Ones, as llama-quantize has it
    Ones,
}

impl From<ImatrixFallback> for Fallback {
    fn from(fallback: ImatrixFallback) -> Self {
        match fallback {
            ImatrixFallback::Pooled => Self::Pooled,
            ImatrixFallback::Ones => Self::Ones,
        }
    }
}

/// Makes the output, or says what it would be.
pub(crate) fn run(options: &Options, dry_run: bool, remote: Option<Llama4>, context: &Context) -> Result<Outcome> {
    let control = context.control();
    let job = match remote {
        Some(model) => Job::of(options, model, &control)?,
        None => Job::new(options, &control)?,
    };
    if dry_run {
        let report = job.dry_run(&control)?;
        context.print(&report, |plan| render::gguf::plan(plan, context.verbose))?;
        return Ok(if report.forecast.disk_fits { Outcome::Yes } else { Outcome::No });
    }
    // Before the work, not after hours of it.
    for warning in job.warnings() {
        context.note(&format!("warning: {warning}"));
    }
    let report = job.run(&control)?;
    context.print(&report, |report| render::gguf::report(report, context.verbose))?;
    Ok(Outcome::Yes)
}
