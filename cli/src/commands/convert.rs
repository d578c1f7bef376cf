//! `l4tool convert`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use l4::error::hint;
use l4::kernels::Float;
use l4::output::casting::Overflow;
use l4::output::converting;
use l4::output::gguf::mix::FileType;
use l4::tasks::convert::{Job, Options};
use l4::tasks::gguf as gguf_task;

use super::gguf::{self, GgufArguments};
use crate::args::OutputArguments;
use crate::context::Context;
use crate::exit::Outcome;
use crate::render;
use crate::size::Size;

/// Convert a checkpoint to Hugging Face's layout or to GGUF, in plain floats: from Meta's files, or from a quantized checkpoint
///
/// Reads Meta's `consolidated.*.pth` of any number of ranks with `params.json` and `tokenizer.model`, and every checkpoint
/// that the other commands read. No code in a pickle is ever executed. INT4 and FP8 are dequantized. The output appears
/// when it is complete and checked; an interrupted run goes on when the same command is run again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  l4tool convert Llama-4-Scout-17B-16E-Instruct/original -o scout --to hf --instruct
  l4tool convert scout-int4 -o scout-bf16 --to hf
  l4tool convert CHECKPOINT -o scout-BF16.gguf --to gguf
  l4tool convert CHECKPOINT -o mmproj-scout-BF16.gguf --to gguf --mmproj
  l4tool convert CHECKPOINT -o OUT --to hf --vision drop --dtype f16")]
pub(crate) struct Arguments {
    /// The checkpoint: a folder, or a .safetensors, .gguf or .pth file
    checkpoint: PathBuf,
    /// The folder to make, or with --to gguf the file, if its name ends in .gguf
    #[arg(short, long = "output", value_name = "OUT")]
    output: PathBuf,
    /// The layout to make
    #[arg(long, value_name = "LAYOUT")]
    to: Layout,
    /// How the routed experts are stored [default: fused]
    #[arg(long, value_name = "FORM")]
    experts: Option<Experts>,
    /// Format of all weights [default: as they are; bf16 for quantized ones and for GGUF]
    #[arg(long, value_name = "FORMAT")]
    dtype: Option<Dtype>,
    /// Take the largest value of the format for values that are larger, instead of refusing them
    #[arg(long, requires = "dtype")]
    clamp: bool,
    /// Keep the vision part, or make a text-only model [default: keep; with --to gguf see --mmproj]
    #[arg(long, value_name = "WHAT")]
    vision: Option<Vision>,
    /// Meta's files hold an instruction-tuned model (nothing in them tells)
    #[arg(long)]
    instruct: bool,
    /// Most bytes of weights in one output file
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    shard_size: Size,
    #[command(flatten)]
    output_flags: OutputArguments,
    #[command(flatten, next_help_heading = "GGUF")]
    gguf: GgufArguments,
}

/// Layouts to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Layout {
    /// Hugging Face: safetensors, config.json, tokenizer.json
    Hf,
    /// llama.cpp: one file with everything but the vision part, or with that alone
    Gguf,
}

/// How the routed experts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Experts {
    /// All of a layer in two tensors, as published
    Fused,
    /// Three matrices for each expert
    PerExpert,
}

/// Number formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dtype {
    /// bfloat16
    Bf16,
    /// IEEE half precision
    F16,
    /// IEEE single precision
    F32,
}

/// What becomes of the vision part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Vision {
    /// It stays
    Keep,
    /// It is left out: Llama4ForCausalLM
    Drop,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments, context: &Context) -> Result<Outcome> {
    let dry_run = arguments.output_flags.dry_run;
    if arguments.to == Layout::Gguf {
        return gguf::run(&arguments.gguf_options()?, dry_run, None, context);
    }
    if let Some(flag) = arguments.gguf.given() {
        bail!(hint(format!("`{flag}` is about GGUF"), "convert with `--to gguf`, or leave it out"));
    }
    let options = arguments.options();
    let job = Job::new(&options)?;
    if dry_run {
        let report = job.dry_run(&context.control())?;
        context.print(&report, render::convert::plan)?;
        return Ok(if report.forecast.disk_fits { Outcome::Yes } else { Outcome::No });
    }
    // Before the work, not after hours of it.
    for note in job.notes() {
        context.note(&format!("note: {note}"));
    }
    let report = job.run(&context.control())?;
    context.print(&report, |report| render::convert::report(report, context.verbose))?;
    Ok(Outcome::Yes)
}

impl Arguments {
    fn gguf_options(self) -> Result<gguf_task::Options> {
        let wrong = [
            ("--experts", self.experts.is_some(), "GGUF has one form for them"),
            ("--vision keep", self.vision == Some(Vision::Keep), "the vision part has a file of its own: `--mmproj`"),
        ];
        if let Some((flag, _, way)) = wrong.into_iter().find(|(_, given, _)| *given) {
            bail!(hint(format!("`{flag}` does not go with `--to gguf`"), way));
        }
        if self.vision == Some(Vision::Drop) && self.gguf.mmproj {
            bail!("`--vision drop` and `--mmproj` leave nothing to be written");
        }
        Ok(gguf_task::Options {
            command: "convert",
            source: self.checkpoint,
            out: self.output,
            part: self.gguf.part(),
            file_type: match self.dtype {
                Some(Dtype::F32) => FileType::F32,
                Some(Dtype::F16) => FileType::F16,
                Some(Dtype::Bf16) | None => FileType::BF16,
            },
            pure: false,
            rules: Vec::new(),
            stats: None,
            fallback: gguf_task::Fallback::default(),
            split_bytes_max: self.gguf.split_max_size.map(|size| size.0),
            pre_tokenizer: self.gguf.pre_tokenizer,
            name: self.gguf.name,
            instruct: self.instruct,
            overflow: if self.clamp { Overflow::Clamp } else { Overflow::Refuse },
            requantize: false,
            existing: self.output_flags.existing(),
            hash_source: self.output_flags.hash_source,
        })
    }

    fn options(self) -> Options {
        Options {
            source: self.checkpoint,
            out: self.output,
            experts: match self.experts.unwrap_or(Experts::Fused) {
                Experts::Fused => converting::Experts::Fused,
                Experts::PerExpert => converting::Experts::PerExpert,
            },
            float: self.dtype.map(|dtype| match dtype {
                Dtype::Bf16 => Float::BF16,
                Dtype::F16 => Float::F16,
                Dtype::F32 => Float::F32,
            }),
            overflow: if self.clamp { Overflow::Clamp } else { Overflow::Refuse },
            text_only: self.vision == Some(Vision::Drop),
            instruct: self.instruct,
            shard_bytes_max: self.shard_size.0,
            existing: self.output_flags.existing(),
            hash_source: self.output_flags.hash_source,
        }
    }
}
