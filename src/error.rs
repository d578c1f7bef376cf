//! Errors that mean something to the caller: bad bytes in a file, a refusal with a way out, a safe stop.
//!
//! Everything above the readers uses [`anyhow::Result`]; the types here are found again by downcasting.

use std::fmt;

/// A message for the person at the keyboard, with a way out.
///
/// The command line prints the hint as the last line of an error.
#[derive(Debug)]
pub struct Hint {
    /// The error itself, without the hint.
    pub message: String,
    /// What to do about it: one sentence, lower case, no full stop.
    pub hint: String,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hint {}

/// An error with `message` and a way out.
pub fn hint(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Hint { message: message.into(), hint: hint.into() }.into()
}

/// The run stopped at a safe point because it was asked to; running the same command again goes on.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted at a safe point")
    }
}

impl std::error::Error for Interrupted {}
