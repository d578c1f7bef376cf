//! `l4tool download`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use l4::hub::{Address, Selection, Settings, pattern};
use l4::tasks::download::{Destination, Job, Options};

use crate::context::Context;
use crate::exit::Outcome;
use crate::hub::{self, HubArguments};
use crate::render;
use crate::size::Size;

/// Fetch a checkpoint from the Hugging Face Hub, verified, in parallel, resumable at any byte
///
/// Fetches the weights in one format and what belongs to them, from one commit, into the cache that Python's tools use, or
/// into a folder of their own. Every file is hashed while it arrives and appears only when its digest is the one that the hub
/// promised. An interrupted download goes on when the same command is run again, also days later. Exit code 1 if a content is
/// wrong.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  l4tool download meta-llama/Llama-4-Scout-17B-16E-Instruct --dry-run
  l4tool download meta-llama/Llama-4-Scout-17B-16E-Instruct -o scout
  l4tool download OWNER/NAME@refs/pr/1 --include '*.json' --exclude 'tokenizer*'")]
pub(crate) struct Arguments {
    /// OWNER/NAME or OWNER/NAME@REVISION; the revision is a branch, a tag or a commit
    repository: String,
    /// The folder to fetch into [default: the hub's cache: $HF_HUB_CACHE, $HF_HOME/hub, ~/.cache/huggingface/hub]
    #[arg(short, long = "output", value_name = "DIR")]
    output: Option<PathBuf>,
    /// Fetch the files that match, such as '*.json', instead of the usual ones; may be repeated
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Leave out the files that match; may be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Print what would be fetched, and whether the disk has room
    #[arg(long)]
    dry_run: bool,
    /// Open no connection: check what is there, and say where
    #[arg(long)]
    offline: bool,
    /// Replace files in DIR that are not the repository's
    #[arg(long)]
    force: bool,
    /// Connections at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Failures in a row of a connection before it is given up
    #[arg(long, value_name = "N", default_value_t = 10)]
    retries: u32,
    /// Seconds without a byte after which a connection is made anew
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..))]
    stall: u16,
    /// Most bytes in a second, such as 50M
    #[arg(long, value_name = "SIZE")]
    max_bandwidth: Option<Size>,
    #[command(flatten)]
    hub: HubArguments,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments, context: &Context) -> Result<Outcome> {
    let dry_run = arguments.dry_run;
    let options = arguments.options()?;
    let control = context.control();
    let job = Job::new(&options, &control)?;
    if dry_run {
        let report = job.dry_run()?;
        context.print(&report, render::download::plan)?;
        return Ok(if report.disk_fits { Outcome::Yes } else { Outcome::No });
    }
    let report = job.run(&control)?;
    context.print(&report, |report| render::download::report(report, context.verbose))?;
    Ok(if report.ok { Outcome::Yes } else { Outcome::No })
}

impl Arguments {
    fn options(self) -> Result<Options> {
        let patterns = |globs: &[String]| globs.iter().map(|glob| pattern(glob)).collect::<Result<Vec<_>>>();
        Ok(Options {
            address: Address::parse(&self.repository)?,
            settings: Settings {
                retries: self.retries,
                stall: Duration::from_secs(self.stall.into()),
                connections: self.connections.into(),
                bandwidth: self.max_bandwidth.map(|size| size.0),
                ..self.hub.settings()?
            },
            selection: Selection { include: patterns(&self.include)?, exclude: patterns(&self.exclude)? },
            destination: match self.output {
                Some(folder) => Destination::Folder(folder),
                None => Destination::Cache(hub::cache()?),
            },
            offline: self.offline || hub::is_offline(),
            force: self.force,
        })
    }
}
