//! What making an output took: the part that the reports of all tasks with an output share.

use std::time::Duration;

use serde::Serialize;

use super::peak_memory_bytes;
use crate::output::plan::Plan;

/// Bytes, time and memory of a run that made an output.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// Bytes of weights that were read.
    pub bytes_in: u64,
    /// Bytes of weight files.
    pub bytes_out: u64,
    /// Wall time of this run.
    pub seconds: f64,
    /// Bytes read per second of this run; of a resumed run, this counts what earlier runs read.
    pub bytes_in_per_second: f64,
    /// Most resident memory, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// Whether an earlier run's work was used.
    pub resumed: bool,
}

impl Made {
    pub(super) fn new(plan: &Plan, resumed: bool, elapsed: Duration) -> Self {
        let (bytes_in, seconds) = (plan.source_bytes(), elapsed.as_secs_f64());
        Self {
            bytes_in,
            bytes_out: plan.bytes(),
            seconds,
            bytes_in_per_second: bytes_in as f64 / seconds.max(1e-9),
            peak_memory_bytes: peak_memory_bytes(),
            resumed,
        }
    }
}
