//! The grammar of the command line: global flags and the list of commands.

use clap::builder::Styles;
use clap::builder::styling::AnsiColor;
use clap::{Args, Parser, Subcommand, ValueEnum};
use l4::output::partial::Existing;

use crate::commands::{
    calibrate, completions, convert, diff, download, inspect, man, quantize, repack, routing, verify,
};
use crate::size::Size;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Take Llama 4 weights from where they are published to where they run: download, inspect, quantize to INT4 or FP8 per expert,
/// and verify with a reference forward pass. Streams; needs no GPU, no Python, and no memory for the whole model.
#[derive(Debug, Parser)]
#[command(name = "l4tool", version, styles = STYLES, max_term_width = 110, propagate_version = false)]
#[command(
    after_help = "Exit codes: 0 done; 1 the answer is no (a check failed, a threshold was passed); 2 could not do it;
75 interrupted at a safe point: run the same command again to go on."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command that makes a checkpoint.
#[derive(Debug, Args)]
pub(crate) struct OutputArguments {
    /// Record the SHA-256 of the source's files in the manifest; reads all of the source once more
    #[arg(long)]
    pub(crate) hash_source: bool,
    /// Print what would be done: files, bytes, memory, disk
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace an existing output
    #[arg(long)]
    force: bool,
    /// Throw an interrupted run's work away and start over
    #[arg(long)]
    restart: bool,
}

impl OutputArguments {
    /// What to do about what is already there.
    pub(crate) fn existing(&self) -> Existing {
        Existing { force: self.force, restart: self.restart }
    }
}

/// Flags that every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print the whole report as one JSON document
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Worker threads [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Bound on resident memory, such as 512M or 4GiB [default: the smaller of 4 GiB and half of the machine's]
    #[arg(long, global = true, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
    /// How progress is shown on standard error
    #[arg(long, global = true, value_name = "MODE", default_value = "auto")]
    pub(crate) progress: ProgressMode,
    /// Say less: no progress, no notes
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// When to use colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: ColorMode,
    /// Instruction set of the numeric kernels
    #[arg(long, global = true, value_name = "SET", default_value = "auto")]
    pub(crate) kernels: Kernels,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// Bars on a terminal, plain lines otherwise
    Auto,
    /// Bars
    Bar,
    /// One line every few seconds
    Plain,
    /// One JSON event per line
    Json,
    /// Nothing
    None,
}

/// When colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorMode {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// Instruction sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernels {
    /// The best that this machine has
    Auto,
    /// Portable code only
    Scalar,
    /// AVX2
    Avx2,
    /// AVX-512
    Avx512,
    /// AVX-512 and AMX
    Amx,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Download(download::Arguments),
    Inspect(inspect::Arguments),
    Routing(routing::Arguments),
    Calibrate(calibrate::Arguments),
    // Boxed because it has by far the most flags.
    Quantize(Box<quantize::Arguments>),
    Convert(convert::Arguments),
    Repack(repack::Arguments),
    Verify(verify::Arguments),
    Diff(diff::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}
