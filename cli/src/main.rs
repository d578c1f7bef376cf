//! The command line of l4tool: parse, run, render, exit.

mod args;
mod commands;
mod context;
mod exit;
mod hub;
mod progress;
mod render;
mod size;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return exit::usage(&error),
    };
    let context = match context::Context::new(&arguments.global) {
        Ok(context) => context,
        Err(error) => return exit::failure(&error, &arguments.global),
    };
    match commands::run(arguments.command, &context) {
        Ok(outcome) => outcome.code(),
        Err(error) => {
            context.control().progress.finish();
            exit::failure(&error, &arguments.global)
        }
    }
}
