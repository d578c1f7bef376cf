//! One file for each command: its arguments, what they mean, and the call.

pub(crate) mod calibrate;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod diff;
pub(crate) mod download;
mod gguf;
pub(crate) mod inspect;
pub(crate) mod man;
pub(crate) mod quantize;
pub(crate) mod repack;
pub(crate) mod routing;
pub(crate) mod verify;

use anyhow::Result;

use crate::args::Command;
use crate::context::Context;
use crate::exit::Outcome;

/// Runs a command.
pub(crate) fn run(command: Command, context: &Context) -> Result<Outcome> {
    match command {
        Command::Download(arguments) => download::run(arguments, context),
        Command::Convert(arguments) => convert::run(arguments, context),
        Command::Inspect(arguments) => inspect::run(arguments, context),
        Command::Routing(arguments) => routing::run(arguments, context),
        Command::Calibrate(arguments) => calibrate::run(arguments, context),
        Command::Quantize(arguments) => quantize::run(*arguments, context),
        Command::Repack(arguments) => repack::run(arguments, context),
        Command::Verify(arguments) => verify::run(arguments, context),
        Command::Diff(arguments) => diff::run(arguments, context),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
    }
}
