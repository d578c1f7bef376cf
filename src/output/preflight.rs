//! What must hold before any work begins: the output is not in the way, the disk has room, the memory bound can be kept.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::partial::{self, nearest_existing};
use super::plan::Plan;
use crate::error::hint;
pub use crate::files::BOUNCE_BYTES;
use crate::progress::Control;

/// Resident memory that the process needs besides its tasks: code, allocator, the plan and the catalogue of a
/// checkpoint of Maverick's size (measured: 24 MiB for the former, 25 MiB for 39,000 output tensors).
pub const BASE_BYTES: u64 = 56 << 20;

/// Output tensors that [`BASE_BYTES`] has room for, and bytes of each one more with its tasks and its place in the headers (measured:
/// 230 MiB for the 231,592 tensors of Maverick's rank shards).
const BASE_TENSORS: u64 = 40_000;
const TENSOR_BYTES: u64 = 1 << 10;

/// Room to leave on the disk besides the planned files.
const DISK_MARGIN_BYTES: u64 = 64 << 20;

/// Most weight files of an output: each stays open while it is filled, and systems commonly allow 1,024 open files.
const FILES_MAX: usize = 900;

/// Workers beyond the number of threads, that the processor has work while others wait for the disk: one, or this many where
/// there is nothing to compute and all wait most of the time (measured: as fast as more of them, in a quarter less time than with one).
const WAITING_TO_COPY: usize = 3;

/// Number of workers that threads and memory allow: at least one, and at most a few more than threads.
///
/// # Errors
/// There would be too many files, or not even one task fits the memory bound.
pub fn workers(plan: &Plan, control: &Control<'_>) -> Result<usize> {
    if plan.files.len() > FILES_MAX {
        return Err(hint(
            format!("the output would have {} weight files; the most is {FILES_MAX}", plan.files.len()),
            "use a larger `--shard-size`",
        ));
    }
    let each = worker_bytes(plan);
    let fitting = control.memory.saturating_sub(base_bytes(plan)) / each;
    if fitting == 0 {
        return Err(hint(
            format!("a memory bound of {} bytes is too small: the largest task needs {each}", control.memory),
            format!("use `--memory {}M` or more", (each + base_bytes(plan)).div_ceil(1 << 20)),
        ));
    }
    let waiting = if plan.only_copies() { WAITING_TO_COPY } else { 1 };
    Ok(usize::try_from(fitting).unwrap_or(usize::MAX).min(control.threads + waiting))
}

/// Memory besides that of the workers.
fn base_bytes(plan: &Plan) -> u64 {
    BASE_BYTES + plan.planning_bytes + (plan.tensors.len() as u64).saturating_sub(BASE_TENSORS) * TENSOR_BYTES
}

/// Most memory that one worker needs.
fn worker_bytes(plan: &Plan) -> u64 {
    plan.memory_min().saturating_add(BOUNCE_BYTES)
}

/// Most resident memory that a run of `plan` needs under `control`.
///
/// # Errors
/// As [`workers`].
pub fn memory_bytes(plan: &Plan, control: &Control<'_>) -> Result<u64> {
    Ok(base_bytes(plan) + worker_bytes(plan) * workers(plan, control)? as u64)
}

/// Bytes free for this user on the disk that will hold `out`.
///
/// # Errors
/// The file system does not answer.
pub fn disk_free(out: &Path) -> Result<u64> {
    let absolute = std::path::absolute(out)?;
    let folder = nearest_existing(&absolute);
    let stat =
        rustix::fs::statvfs(folder).with_context(|| format!("asking for free space at `{}`", folder.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes that must be free on the disk for an output of `bytes`; what an interrupted run reserved already is not
/// needed again.
pub fn disk_needed(out: &Path, bytes: u64) -> u64 {
    bytes.saturating_sub(partial::reserved_bytes(out)).saturating_add(DISK_MARGIN_BYTES)
}

/// Refuses a disk that has no room for an output of `bytes`.
///
/// # Errors
/// Says how much is needed and how much there is.
pub fn check_disk(out: &Path, bytes: u64) -> Result<()> {
    let (free, needed) = (disk_free(out)?, disk_needed(out, bytes));
    if free >= needed {
        return Ok(());
    }
    Err(hint(
        format!("the disk of `{}` has {free} bytes free, and the output needs {needed}", out.display()),
        "free some space, or choose an output on another disk",
    ))
}

/// What a run of a plan would read, write and need.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    /// Bytes to read.
    pub bytes_in: u64,
    /// Bytes of weight files.
    pub bytes_out: u64,
    /// Weight files, with their sizes and the number of tensors in each.
    pub files: Vec<PlannedFile>,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of tasks.
    pub tasks: usize,
    /// Most resident memory.
    pub memory_bytes: u64,
    /// Free space on the output's disk.
    pub disk_free_bytes: u64,
    /// Whether the disk has room.
    pub disk_fits: bool,
}

/// A weight file that would be made.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Tensors in it.
    pub tensors: usize,
}

impl Forecast {
    /// Of a run of `plan` that makes `out`.
    ///
    /// # Errors
    /// The memory bound is too small, or the disk does not answer.
    pub fn new(plan: &Plan, out: &Path, control: &Control<'_>) -> Result<Self> {
        let disk_free_bytes = disk_free(out)?;
        let files = plan.files.iter();
        Ok(Self {
            bytes_in: plan.source_bytes(),
            bytes_out: plan.bytes(),
            files: files
                .map(|file| PlannedFile { name: file.name.clone(), bytes: file.bytes, tensors: file.tensors.len() })
                .collect(),
            tensors: plan.tensors.len(),
            tasks: plan.tasks.len(),
            memory_bytes: memory_bytes(plan, control)?,
            disk_free_bytes,
            disk_fits: disk_free_bytes >= disk_needed(out, plan.bytes()),
        })
    }
}
