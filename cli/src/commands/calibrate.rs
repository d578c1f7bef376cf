//! `l4tool calibrate`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use l4::calibration::data::{DEFAULT_SAMPLES, DataOptions};
use l4::tasks::calibrate::{self, Options, Source};

use crate::context::Context;
use crate::exit::Outcome;
use crate::render;

/// Run text through a model and keep statistics: routing, and how large every weight's inputs are
///
/// The model runs layer by layer on the CPU, in bounded memory. The file serves `quantize --stats` and `routing`; --imatrix
/// writes llama.cpp's importance matrix. Without --data a small built-in set is run: text of your own is better.
#[derive(Debug, Args)]
#[command(
    after_help = "Data are text files, JSON Lines (an object per line with `text`, `messages` or `input_ids`), Parquet files with a
column `text`, folders of these, and quoted patterns. A label may stand before each, as in `code=src/`.

Examples:
  l4tool calibrate Llama-4-Scout-17B-16E-Instruct --data chats.jsonl --data code='src/*.py' -o scout.stats
  l4tool calibrate CHECKPOINT --data book.txt --imatrix imatrix.gguf
  l4tool calibrate --merge monday.stats tuesday.stats -o both.stats"
)]
pub(crate) struct Arguments {
    /// The checkpoint: a folder, a .safetensors file or a .gguf file
    #[arg(required_unless_present = "merge")]
    checkpoint: Option<PathBuf>,
    #[command(flatten)]
    data: DataArguments,
    /// Add statistics of the same model up, instead of running text
    #[arg(long, value_name = "STATS", num_args = 1.., conflicts_with_all = ["checkpoint", "data", "samples", "seq_len", "seed"])]
    merge: Vec<PathBuf>,
    /// The statistics file to write
    #[arg(short, long = "output", value_name = "STATS", required_unless_present = "imatrix")]
    output: Option<PathBuf>,
    /// Write llama.cpp's importance matrix, for `llama-quantize --imatrix`
    #[arg(long, value_name = "FILE.gguf")]
    imatrix: Option<PathBuf>,
    /// Keep the Hessian of every weight's input as well: 4 bytes times the square of its width, for each expert (105 and 268 MB)
    #[arg(long, conflicts_with = "merge", requires = "output")]
    hessians: bool,
    /// Say what would be run and written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Replace a file that exists
    #[arg(long)]
    force: bool,
}

/// Which text to run; the same for every command that runs some.
#[derive(Debug, Args)]
pub(crate) struct DataArguments {
    /// Text to run: a file, a folder or a pattern, with a label before `=` if you like; may be repeated
    #[arg(long, value_name = "[LABEL=]PATH", num_args = 1..)]
    pub(crate) data: Vec<String>,
    /// Sequences to draw, in equal shares from all labels [default: 128]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Tokens of a sequence [default: 2048, or the model's context if that is less]
    #[arg(long, value_name = "N")]
    seq_len: Option<usize>,
    /// Says which parts are drawn when there is more than enough [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl DataArguments {
    /// The options, with what is left out filled in.
    pub(crate) fn options(&self) -> DataOptions {
        DataOptions {
            data: self.data.clone(),
            samples: self.samples.unwrap_or(DEFAULT_SAMPLES),
            seq_len: self.seq_len,
            seed: self.seed.unwrap_or(0),
        }
    }

    /// Whether the user said anything about text.
    pub(crate) fn is_given(&self) -> bool {
        !self.data.is_empty() || self.samples.is_some() || self.seq_len.is_some() || self.seed.is_some()
    }
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments, context: &Context) -> Result<Outcome> {
    let source = match (arguments.checkpoint, arguments.merge) {
        (Some(checkpoint), _) => Source::Run { checkpoint, data: arguments.data.options() },
        (None, merge) if !merge.is_empty() => Source::Merge(merge),
        (None, _) => bail!("there is no checkpoint"),
    };
    let options = Options {
        source,
        out: arguments.output,
        imatrix: arguments.imatrix,
        hessians: arguments.hessians,
        force: arguments.force,
        temporary: std::env::temp_dir(),
        dry_run: arguments.dry_run,
    };
    let report = calibrate::run(&options, &context.control())?;
    context.print(&report, render::calibrate::report)?;
    Ok(Outcome::Yes)
}
