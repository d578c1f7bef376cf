//! `l4tool verify`.

use anyhow::{Result, bail};
use clap::Args;

use crate::context::Context;
use crate::exit::Outcome;

/// verify
#[derive(Debug, Args)]
pub(crate) struct Arguments {}

/// Runs the command.
pub(crate) fn run(_arguments: Arguments, _context: &Context) -> Result<Outcome> {
    bail!("not on this branch")
}
