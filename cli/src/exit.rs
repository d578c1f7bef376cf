//! How a run ends: exit codes, and errors as `error:`, `caused by:` and `hint:` lines.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use l4::checkpoint::FormatError;
use l4::error::{Hint, Interrupted};
use l4::llama4::config::ConfigError;

use crate::args::{ColorMode, Global};
use crate::render::printable;

/// The answer of a command that did what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done, or yes.
    Yes,
    /// A check failed, or a threshold was passed.
    No,
}

impl Outcome {
    /// The process's exit code.
    pub(crate) fn code(self) -> ExitCode {
        match self {
            Self::Yes => ExitCode::SUCCESS,
            Self::No => ExitCode::from(1),
        }
    }
}

/// The code of a command that could not do it.
const FAILURE: u8 = 2;

/// `EX_TEMPFAIL` of sysexits.h: stopped at a safe point.
const INTERRUPTED: u8 = 75;

/// Prints what clap has to say. Help and version are answers, not errors.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // A reader that has gone away is no reason to complain.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(FAILURE) } else { ExitCode::SUCCESS }
}

/// Prints an error and gives its exit code. A reader of standard output that went away is not an error.
pub(crate) fn failure(error: &anyhow::Error, global: &Global) -> ExitCode {
    if error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let interrupted = error.chain().any(|cause| cause.is::<Interrupted>());
    let hint = if interrupted { Some("run the same command again to go on".to_owned()) } else { hint_of(error) };
    let colored = match global.color {
        ColorMode::Always => true,
        ColorMode::Never => false,
        ColorMode::Auto => io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    let mut text = String::new();
    for (index, cause) in error.chain().enumerate() {
        let (label, color) = if index == 0 { ("error", "1;31") } else { ("caused by", "31") };
        push_line(&mut text, label, color, &cause.to_string(), colored);
    }
    if let Some(hint) = hint {
        push_line(&mut text, "hint", "1;36", &hint, colored);
    }
    // There is nobody left to tell if this fails.
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(if interrupted { INTERRUPTED } else { FAILURE })
}

fn push_line(text: &mut String, label: &str, color: &str, message: &str, colored: bool) {
    // Names in messages come from files that may be hostile: no control character of theirs reaches the terminal.
    let message = printable(message);
    if colored {
        *text += &format!("\x1b[{color}m{label}:\x1b[0m {message}\n");
    } else {
        *text += &format!("{label}: {message}\n");
    }
}

fn hint_of(error: &anyhow::Error) -> Option<String> {
    // A hint that was added as context is found by the error itself and not among the causes.
    let context = error.downcast_ref::<Hint>().map(|hint| hint.hint.clone());
    context.or_else(|| {
        error.chain().find_map(|cause| {
            let own = cause.downcast_ref::<Hint>().map(|hint| hint.hint.clone());
            let format = || cause.downcast_ref::<FormatError>()?.hint();
            let config = || cause.downcast_ref::<ConfigError>()?.hint.clone();
            own.or_else(format).or_else(config).or_else(|| disk_hint(cause.downcast_ref::<io::Error>()?))
        })
    })
}

/// What to do about a disk that takes no more. What is finished is kept in any case.
fn disk_hint(error: &io::Error) -> Option<String> {
    let full =
        matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge);
    full.then(|| "make room (disk, quota or limit on file sizes), then run the same command again to go on".to_owned())
}

fn is_broken_pipe(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}
