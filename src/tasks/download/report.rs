//! What `download` tells: before it runs, and after.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::Job;
use super::state::State;
use crate::hub::{Digest, Fetched, RemoteFile};
use crate::output::preflight;
use crate::tasks::peak_memory_bytes;

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct DryRun {
    /// `l4tool.download-plan/1`.
    pub schema: &'static str,
    /// `owner/name`.
    pub repo: String,
    /// The branch, tag or commit that was asked for.
    pub revision: String,
    /// The commit that it is.
    pub commit: String,
    /// Where the files would be.
    pub folder: PathBuf,
    /// The files, by path.
    pub files: Vec<PlannedFile>,
    /// Files of the repository that would be left out.
    pub left_out: usize,
    /// Their sizes together.
    pub bytes: u64,
    /// What would be fetched.
    pub bytes_missing: u64,
    /// Free space on the disk.
    pub disk_free_bytes: u64,
    /// Whether the disk has room.
    pub disk_fits: bool,
}

/// A file of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedFile {
    /// Its path in the repository.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// `verified`, `there` (not verified yet), `other` (another content is there), or `missing`.
    pub state: &'static str,
}

impl DryRun {
    pub(super) fn new(job: &Job<'_>, files: &[&RemoteFile], states: &[State]) -> Result<Self> {
        let folder = job.place.folder();
        let planned = files.iter().zip(states).map(|(file, state)| {
            let state = match state {
                State::Verified(_) => "verified",
                State::Unverified => "there",
                State::Other => "other",
                State::Missing => "missing",
            };
            PlannedFile { name: file.path.clone(), bytes: file.bytes, state }
        });
        let missing = files.iter().zip(states).filter(|(_, state)| matches!(state, State::Missing | State::Other));
        let missing: Vec<&RemoteFile> = missing.map(|(file, _)| *file).collect();
        let disk_free_bytes = preflight::disk_free(&folder)?;
        Ok(Self {
            schema: "l4tool.download-plan/1",
            repo: job.listing.address.repo.clone(),
            revision: job.listing.address.revision.clone(),
            commit: job.listing.commit.clone(),
            files: planned.collect(),
            left_out: job.listing.files.len() - files.len(),
            bytes: files.iter().map(|file| file.bytes).sum(),
            bytes_missing: missing.iter().map(|file| file.bytes).sum(),
            disk_fits: missing.is_empty() || disk_free_bytes >= job.disk_needed(&missing),
            disk_free_bytes,
            folder,
        })
    }
}

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `l4tool.download/1`.
    pub schema: &'static str,
    /// Whether everything is there and right.
    pub ok: bool,
    /// `owner/name`.
    pub repo: String,
    /// The branch, tag or commit that was asked for.
    pub revision: String,
    /// The commit that it is.
    pub commit: String,
    /// Whether no connection was opened.
    pub offline: bool,
    /// Where the files are.
    pub folder: PathBuf,
    /// The files, by path.
    pub files: Vec<FileLine>,
    /// Their sizes together.
    pub bytes: u64,
    /// Bytes of content that came over the network in this run, with what had to be fetched twice.
    pub bytes_received: u64,
    /// Bytes that an earlier, interrupted run had fetched.
    pub bytes_resumed: u64,
    /// Wall time of this run.
    pub seconds: f64,
    /// `bytes_received` in one second.
    pub bytes_per_second: f64,
    /// Requests that failed and were tried again.
    pub retries: u64,
    /// Files that were begun anew: they had changed on the hub, or were wrong the first time.
    pub restarted: Vec<String>,
    /// Files whose content is wrong.
    pub problems: Vec<Problem>,
    /// Most resident memory, where the system tells.
    pub peak_memory_bytes: Option<u64>,
}

/// A file of a download.
#[derive(Clone, Debug, Serialize)]
pub struct FileLine {
    /// Its path in the repository.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, where it is known.
    pub sha256: Option<String>,
    /// `fetched`, `present` (it was there before), or `wrong`.
    pub state: &'static str,
}

/// A file whose content is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// Its path in the repository.
    pub file: String,
    /// The digest that it should have.
    pub expected: String,
    /// The digest that it has.
    pub found: String,
    /// Where the wrong content lies.
    pub aside: PathBuf,
}

impl Problem {
    pub(super) fn new(file: &str, expected: &Digest, found: &Digest, aside: PathBuf) -> Self {
        Self { file: file.to_owned(), expected: expected.to_string(), found: found.to_string(), aside }
    }
}

impl Report {
    pub(super) fn new(
        job: &Job<'_>,
        files: &[&RemoteFile],
        present: &[(&RemoteFile, String)],
        fetched: Fetched,
        retries: u64,
        took: Duration,
    ) -> Self {
        let was_there: BTreeMap<&str, &String> =
            present.iter().map(|(file, sha256)| (file.path.as_str(), sha256)).collect();
        let came: BTreeMap<&str, &String> =
            fetched.files.iter().map(|(path, sha256)| (path.as_str(), sha256)).collect();
        let lines = files.iter().map(|file| {
            let path = file.path.as_str();
            let (sha256, state) = match (was_there.get(path), came.get(path)) {
                (Some(sha256), _) => (Some((*sha256).clone()), "present"),
                (None, Some(sha256)) => (Some((*sha256).clone()), "fetched"),
                (None, None) => (None, "wrong"),
            };
            FileLine { name: file.path.clone(), bytes: file.bytes, sha256, state }
        });
        let wrong = fetched.mismatches.iter();
        let problems = wrong.map(|wrong| Problem::new(&wrong.path, &wrong.expected, &wrong.found, wrong.aside.clone()));
        let seconds = took.as_secs_f64();
        Self {
            bytes_received: fetched.bytes_received,
            bytes_resumed: fetched.bytes_resumed,
            bytes_per_second: fetched.bytes_received as f64 / seconds.max(1e-9),
            retries,
            ..Self::of(job, lines.collect(), problems.collect(), fetched.restarted, seconds)
        }
    }

    pub(super) fn offline(job: &Job<'_>, files: &[&RemoteFile], problems: Vec<Problem>, took: Duration) -> Self {
        let lines = files.iter().map(|file| {
            let wrong = problems.iter().any(|problem| problem.file == file.path);
            let sha256 = match &file.digest {
                Digest::Sha256(hex) if !wrong => Some(hex.clone()),
                _ => None,
            };
            let state = if wrong { "wrong" } else { "present" };
            FileLine { name: file.path.clone(), bytes: file.bytes, sha256, state }
        });
        Self::of(job, lines.collect(), problems, Vec::new(), took.as_secs_f64())
    }

    fn of(job: &Job<'_>, files: Vec<FileLine>, problems: Vec<Problem>, restarted: Vec<String>, seconds: f64) -> Self {
        Self {
            schema: "l4tool.download/1",
            ok: problems.is_empty(),
            repo: job.listing.address.repo.clone(),
            revision: job.listing.address.revision.clone(),
            commit: job.listing.commit.clone(),
            offline: job.client.is_none(),
            folder: job.place.folder(),
            bytes: files.iter().map(|file| file.bytes).sum(),
            files,
            bytes_received: 0,
            bytes_resumed: 0,
            seconds,
            bytes_per_second: 0.0,
            retries: 0,
            restarted,
            problems,
            peak_memory_bytes: peak_memory_bytes(),
        }
    }
}
