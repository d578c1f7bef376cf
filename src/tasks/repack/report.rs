//! What `repack` tells: before it runs, and after.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::fit::Fit;
use super::order::Placement;
use super::{Job, Options};
use crate::output::preflight::Forecast;
use crate::progress::Control;
use crate::tasks::Made;

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct DryRun {
    /// `l4tool.repack-plan/1`.
    pub schema: &'static str,
    /// The checkpoint.
    pub source: PathBuf,
    /// The folder that would be made.
    pub output: PathBuf,
    /// The layout.
    pub layout: String,
    /// Ranks that it is for.
    pub ranks: usize,
    /// Whether weights and cache fit the GPUs; none for a layout that is for no GPUs in particular.
    pub fit: Option<Fit>,
    /// Where experts go, if not in the model's own order.
    pub placement: Option<Placement>,
    /// Files, bytes, memory, disk.
    #[serde(flatten)]
    pub forecast: Forecast,
    /// What engines cannot load.
    pub warnings: Vec<String>,
}

impl DryRun {
    pub(super) fn new(job: &Job<'_>, control: &Control<'_>) -> Result<Self> {
        let Options { source, out, layout, .. } = job.options;
        Ok(Self {
            schema: "l4tool.repack-plan/1",
            source: source.clone(),
            output: out.clone(),
            layout: layout.to_string(),
            ranks: job.ranks,
            fit: job.fit.clone(),
            placement: job.placement.clone(),
            forecast: Forecast::new(&job.plan, out, control)?,
            warnings: job.warnings.clone(),
        })
    }
}

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `l4tool.repack/1`.
    pub schema: &'static str,
    /// The checkpoint.
    pub source: PathBuf,
    /// The folder that was made.
    pub output: PathBuf,
    /// The layout.
    pub layout: String,
    /// Ranks that it is for.
    pub ranks: usize,
    /// Whether weights and cache fit the GPUs.
    pub fit: Option<Fit>,
    /// Where experts went, if not in the model's own order.
    pub placement: Option<Placement>,
    /// Weight files.
    pub files: usize,
    /// Bytes, time and memory.
    #[serde(flatten)]
    pub made: Made,
    /// What engines cannot load.
    pub warnings: Vec<String>,
}

impl Report {
    pub(super) fn new(job: &Job<'_>, resumed: bool, elapsed: Duration) -> Self {
        let Options { source, out, layout, .. } = job.options;
        Self {
            schema: "l4tool.repack/1",
            source: source.clone(),
            output: out.clone(),
            layout: layout.to_string(),
            ranks: job.ranks,
            fit: job.fit.clone(),
            placement: job.placement.clone(),
            files: job.plan.files.len(),
            made: Made::new(&job.plan, resumed, elapsed),
            warnings: job.warnings.clone(),
        }
    }
}
