//! Reports as text for people. Nothing here computes what a report does not hold.

pub(crate) mod calibrate;
pub(crate) mod convert;
pub(crate) mod diff;
pub(crate) mod download;
mod forecast;
pub(crate) mod gguf;
pub(crate) mod inspect;
mod made;
pub(crate) mod quantize;
pub(crate) mod repack;
pub(crate) mod routing;
mod table;
pub(crate) mod verify;

pub(crate) use table::table;

/// `text` with its control characters spelled out, except for line breaks.
pub(crate) fn printable(text: &str) -> String {
    let spell = |c: char| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(spell).collect()
}
