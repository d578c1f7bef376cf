//! What making an output took, as text.

use l4::tasks::Made;

use super::forecast::duration;
use crate::size::{binary, decimal};

/// Lines on time and memory.
pub(super) fn time_and_memory(made: &Made) -> String {
    let resumed = if made.resumed { ", going on from an interrupted run" } else { "" };
    let rate = decimal(made.bytes_in_per_second as u64);
    let memory = made.peak_memory_bytes.map(|peak| format!("memory   {} at most\n", binary(peak)));
    format!("time     {} at {rate}/s{resumed}\n{}", duration(made.seconds), memory.unwrap_or_default())
}
