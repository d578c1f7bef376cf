//! `l4tool repack`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use l4::error::hint;
use l4::tasks::repack::{Job, Layout, Options};

use crate::args::OutputArguments;
use crate::context::Context;
use crate::exit::Outcome;
use crate::render;
use crate::size::Size;

/// How experts are spread over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PlacementKind {
    /// In the model's own order, in equal parts
    Linear,
    /// So that ranks have the same load; needs --stats
    Balanced,
}

/// Number format of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KvDtype {
    /// Two bytes for a number
    Bf16,
    /// One byte for a number
    Fp8,
}

/// Lay a checkpoint's files out for a deployment, and check that it fits the GPUs
///
/// The weights stay what they are; only where they lie changes. `scout-1xh100`: a few large files in loading order, data
/// aligned for direct reads. `maverick-8xh100`: each rank's experts in files of their own, what all ranks need apart;
/// for any number of --ranks. `tp8`: each rank's part of every weight, cut as Meta does it. `hf`: back to ordinary files. If weights and KV cache do not fit, nothing is written and
/// the exit code is 1.
#[derive(Debug, Args)]
#[command(mut_arg("dry_run", |arg| arg.help("Print what would be done, and whether it fits: GPU memory, files, bytes, memory, disk")))]
#[command(after_help = "Examples:
  l4tool repack scout-int4 -o scout-1xh100 --layout scout-1xh100 --context 131072
  l4tool repack maverick-fp8 -o maverick-ep8 --layout maverick-8xh100 --dry-run
  l4tool repack maverick-int4 -o maverick-ep8 --layout maverick-8xh100 --placement balanced --stats STATS
  l4tool repack maverick-ep8 -o maverick-int4 --layout hf")]
pub(crate) struct Arguments {
    /// The checkpoint: a folder or a .safetensors file
    checkpoint: PathBuf,
    /// The folder to make
    #[arg(short, long = "output", value_name = "OUT")]
    output: PathBuf,
    /// One of hf, scout-1xh100, maverick-8xh100, tp8
    #[arg(long, value_name = "NAME")]
    layout: Layout,
    /// Ranks of the layouts that have them [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    ranks: Option<u16>,
    /// How experts are spread over ranks
    #[arg(long, value_name = "HOW", default_value = "linear")]
    placement: PlacementKind,
    /// How many tokens each expert got: what `calibrate` wrote, or JSON (docs/repack.md)
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// More copies of busy experts, per layer, to plan places for; they are in expert_placement.json only
    #[arg(long, value_name = "N", default_value_t = 0, requires = "stats")]
    redundant_experts: u16,
    /// Memory of one GPU [default: that of an H100, 79.6GiB]
    #[arg(long, value_name = "SIZE")]
    gpu_memory: Option<Size>,
    /// Tokens of context that have to fit [default: 8192]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    context: Option<u64>,
    /// Sequences of that length that have to fit at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    sequences: u64,
    /// Number format of the KV cache
    #[arg(long, value_name = "DTYPE", default_value = "bf16")]
    kv_dtype: KvDtype,
    /// Write the output even if it does not fit
    #[arg(long)]
    ignore_fit: bool,
    /// Most bytes of weights in one output file [default: 5GB for hf, 20GB otherwise; tp8 has one file for each rank]
    #[arg(long, value_name = "SIZE")]
    shard_size: Option<Size>,
    #[command(flatten)]
    output_flags: OutputArguments,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments, context: &Context) -> Result<Outcome> {
    let (dry_run, ignore_fit) = (arguments.output_flags.dry_run, arguments.ignore_fit);
    let options = arguments.options()?;
    let job = Job::new(&options)?;
    let refused = !job.fits() && !ignore_fit;
    if dry_run || refused {
        let report = job.dry_run(&context.control())?;
        context.print(&report, render::repack::plan)?;
        if refused && !dry_run {
            context.note("it does not fit, so nothing was written; `--ignore-fit` writes it all the same");
        }
        return Ok(if report.forecast.disk_fits && !refused { Outcome::Yes } else { Outcome::No });
    }
    // Before the work, not after hours of it.
    for warning in job.warnings() {
        context.note(&format!("warning: {warning}"));
    }
    let report = job.run(&context.control())?;
    context.print(&report, render::repack::report)?;
    Ok(Outcome::Yes)
}

impl Arguments {
    fn options(self) -> Result<Options> {
        match (self.placement, &self.stats) {
            (PlacementKind::Balanced, None) => {
                bail!(hint("`--placement balanced` needs to know the load", "give it with `--stats FILE`"))
            }
            (PlacementKind::Linear, Some(_)) => {
                bail!(hint("`--stats` does nothing with linear placement", "add `--placement balanced`"))
            }
            _ => {}
        }
        Ok(Options {
            source: self.checkpoint,
            out: self.output,
            layout: self.layout,
            ranks: self.ranks.map(usize::from),
            statistics: self.stats,
            redundant_experts: self.redundant_experts.into(),
            shard_bytes_max: self.shard_size.map(|size| size.0),
            gpu_memory: self.gpu_memory.map(|size| size.0),
            kv_fp8: self.kv_dtype == KvDtype::Fp8,
            context: self.context,
            sequences: self.sequences,
            existing: self.output_flags.existing(),
            hash_source: self.output_flags.hash_source,
        })
    }
}
