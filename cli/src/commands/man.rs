//! `l4tool man`.

use std::io::Write;

use anyhow::{Result, bail};
use clap::{Args, CommandFactory};

use crate::exit::Outcome;

/// Print the manual page of l4tool or of one of its commands
#[derive(Debug, Args)]
#[command(after_help = "Example: l4tool man quantize | man -l -")]
pub(crate) struct Arguments {
    /// The command [default: l4tool itself]
    command: Option<String>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome> {
    let mut top = crate::args::Arguments::command();
    top.build();
    let shown = match &arguments.command {
        None => top,
        Some(name) => match top.find_subcommand(name) {
            Some(command) => command.clone(),
            None => bail!("`{name}` is no command of l4tool"),
        },
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(shown).render(&mut page)?;
    std::io::stdout().write_all(&page)?;
    Ok(Outcome::Yes)
}
