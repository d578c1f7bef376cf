//! Reports as text for people. Nothing here computes what a report does not hold.

pub(crate) mod inspect;
pub(crate) mod quantize;
mod table;
pub(crate) mod verify;

pub(crate) use table::table;
