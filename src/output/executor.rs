//! Runs a plan: the only code that creates weight files.
//!
//! Workers take tasks in order, compute into their own buffers, write at known offsets, record the task in the journal
//! and hash on. A worker holds one task at a time, so resident memory is bounded by the number of workers times the largest
//! task; how many there are is all that the memory bound decides. There is one worker more than threads, so that the
//! processor has work while one waits for the disk; permits keep them from computing all at once. A stop is obeyed
//! between tasks.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use xxhash_rust::xxh3::Xxh3;

use super::companions::Companion;
use super::file::{Bounce, OutputFile};
use super::hash::FileHash;
use super::journal::Finished;
use super::partial::Partial;
use super::plan::{OutFile, Plan, Task};
use super::preflight;
use super::work::{BadWeight, Buffers};
use crate::error::Hint;
use crate::llama4::Llama4;
use crate::parallel::{self, Permits};
use crate::progress::{Control, Unit};
use crate::quant::Errors;

/// What a finished run of a plan leaves to report.
#[derive(Debug)]
pub struct Filled {
    /// For every task, the error sums of its parts.
    pub totals: Vec<Vec<Errors>>,
    /// For every file, its SHA-256 in hex.
    pub digests: Vec<String>,
    /// Tasks that an earlier run had finished.
    pub resumed: usize,
}

/// A file being filled.
struct Target<'a> {
    plan: &'a OutFile,
    file: OutputFile,
    hash: FileHash,
}

/// Fills every file of `plan` inside `partial`, going on from `finished`.
///
/// # Errors
/// [`Interrupted`](crate::error::Interrupted) after a safe stop; [`BadWeight`] if a weight cannot be used; otherwise what the disk or
/// the source refused, with the name of the file or the weight.
pub fn fill(
    plan: &Plan,
    model: &Llama4,
    partial: &Partial,
    finished: Vec<Finished>,
    control: &Control<'_>,
) -> Result<Filled> {
    let folder = partial.model();
    remove_strangers(&folder, plan)?;
    let targets = plan.files.iter().map(|file| Target::create(&folder, file)).collect::<Result<Vec<_>>>()?;
    let run =
        Run { plan, model, partial, targets, totals: plan.tasks.iter().map(|_| OnceLock::new()).collect(), control };
    run.write_literals()?;
    let kept = run.recheck(finished)?;
    let pending: Vec<usize> = (0..plan.tasks.len()).filter(|&task| run.totals[task].get().is_none()).collect();
    let done_bytes = plan.source_bytes() - pending.iter().map(|&task| plan.tasks[task].source_bytes).sum::<u64>();
    control.progress.start("writing", plan.source_bytes(), done_bytes, Unit::Bytes);
    run.perform_all(&pending)?;
    control.progress.finish();
    run.close(kept)
}

/// The error sums of every task, if all of them are among `finished`.
pub fn totals(plan: &Plan, finished: &[Finished]) -> Option<Vec<Vec<Errors>>> {
    let mut totals = vec![None; plan.tasks.len()];
    for done in finished {
        *totals.get_mut(done.task)? = Some(done.totals.clone());
    }
    totals.into_iter().collect()
}

/// Removes what the plan does not write: side files of an interrupted run, or an output that `force` had exchanged when the
/// process was killed.
fn remove_strangers(folder: &Path, plan: &Plan) -> Result<()> {
    let context = || format!("clearing `{}`", folder.display());
    let planned: HashSet<&str> = plan.files.iter().map(|file| file.name.as_str()).collect();
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        if entry.file_name().to_str().is_some_and(|name| planned.contains(name)) {
            continue;
        }
        let is_folder = entry.file_type().with_context(context)?.is_dir();
        if is_folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }
            .with_context(context)?;
    }
    Ok(())
}

struct Run<'a> {
    plan: &'a Plan,
    model: &'a Llama4,
    partial: &'a Partial,
    targets: Vec<Target<'a>>,
    totals: Vec<OnceLock<Vec<Errors>>>,
    control: &'a Control<'a>,
}

impl<'a> Target<'a> {
    fn create(folder: &Path, plan: &'a OutFile) -> Result<Self> {
        let path = folder.join(&plan.name);
        let file = OutputFile::create(&path, plan.bytes)
            .with_context(|| format!("creating `{}` of {} bytes", path.display(), plan.bytes))?;
        Ok(Self { plan, file, hash: FileHash::default() })
    }

    fn write(&self, bytes: &[u8], offset: u64, bounce: &mut Bounce) -> Result<()> {
        self.file
            .write_all_at(bytes, offset, bounce)
            .with_context(|| format!("writing `{}` at {offset}", self.plan.name))
    }

    /// Hashes what was written, as far as the file is complete up to there.
    fn hash(&self, offset: u64, bytes: &[u8], bounce: &mut Bounce) -> Result<()> {
        self.hash
            .written(&self.file, offset, bytes, bounce)
            .with_context(|| format!("reading back `{}`", self.plan.name))
    }
}

/// What a worker keeps from task to task.
#[derive(Default)]
struct Worker {
    buffers: Buffers,
    bounce: Bounce,
}

impl Run<'_> {
    /// Writes headers and the tensors whose contents the plan holds.
    fn write_literals(&self) -> Result<()> {
        let bounce = &mut Bounce::default();
        for target in &self.targets {
            target.write(&target.plan.header, 0, bounce)?;
            target.hash(0, &target.plan.header, bounce)?;
            for &id in &target.plan.tensors {
                let tensor = &self.plan.tensors[id];
                if let Some(contents) = &tensor.literal {
                    target.write(contents, tensor.offset, bounce)?;
                    target.hash(tensor.offset, contents, bounce)?;
                }
            }
        }
        Ok(())
    }

    /// Compares what the journal calls finished with what is in the files; what does not match is done again.
    fn recheck(&self, finished: Vec<Finished>) -> Result<usize> {
        let known: Vec<Finished> = finished
            .into_iter()
            .filter(|done| self.plan.tasks.get(done.task).is_some_and(|task| task.work.parts() == done.totals.len()))
            .collect();
        if known.is_empty() {
            return Ok(0);
        }
        let bytes = |task: usize| self.plan.tasks[task].writes.iter().map(|region| region.bytes).sum::<u64>();
        let total = known.iter().map(|done| bytes(done.task)).sum();
        self.control.progress.start("checking finished work", total, 0, Unit::Bytes);
        parallel::for_each(known.len(), self.control.threads, self.control, Bounce::default, |bounce, index| {
            let Finished { task, digest, totals } = &known[index];
            if self.digest_on_disk(*task, bounce)? == *digest && self.totals[*task].set(totals.clone()).is_ok() {
                self.hash_found(*task, bounce)?;
            }
            self.control.progress.advance(bytes(*task));
            Ok(())
        })?;
        self.control.progress.finish();
        Ok(self.totals.iter().filter(|totals| totals.get().is_some()).count())
    }

    fn digest_on_disk(&self, task: usize, bounce: &mut Bounce) -> Result<u64> {
        let mut digest = Xxh3::new();
        for region in &self.plan.tasks[task].writes {
            let (file, start) = self.plan.place(region);
            let target = &self.targets[file];
            target
                .file
                .read(start, start + region.bytes, bounce, |piece| digest.update(piece))
                .with_context(|| format!("reading back `{}`", target.plan.name))?;
        }
        Ok(digest.digest())
    }

    fn perform_all(&self, pending: &[usize]) -> Result<()> {
        let workers = preflight::workers(self.plan, self.control)?;
        let permits = Permits::new(self.control.threads);
        parallel::for_each(pending.len(), workers, self.control, Worker::default, |worker, index| {
            self.perform(pending[index], worker, &permits)
        })
    }

    /// Computes one task, writes it and records it.
    fn perform(&self, index: usize, worker: &mut Worker, permits: &Permits) -> Result<()> {
        let task: &Task = &self.plan.tasks[index];
        let Worker { buffers, bounce } = worker;
        let totals = permits
            .with(|| task.work.run(self.model, &task.writes, buffers))
            .map_err(|error| self.locate(task, error))?;
        let results = task.work.results(self.model, buffers, &task.writes);
        for (region, bytes) in task.writes.iter().zip(&results) {
            assert_eq!(bytes.len() as u64, region.bytes, "`{}`", self.plan.tensors[region.tensor].name);
            let (file, offset) = self.plan.place(region);
            self.targets[file].write(bytes, offset, bounce)?;
        }
        permits.with(|| {
            let mut digest = Xxh3::new();
            results.iter().for_each(|bytes| digest.update(bytes));
            self.partial.journal.append(&Finished { task: index, digest: digest.digest(), totals: totals.clone() })?;
            self.totals[index].set(totals).expect("a task runs once");
            for (region, bytes) in task.writes.iter().zip(&results) {
                let (file, offset) = self.plan.place(region);
                self.targets[file].hash(offset, bytes, bounce)?;
            }
            anyhow::Ok(())
        })?;
        task.work.release(self.model);
        self.control.progress.advance(task.source_bytes);
        Ok(())
    }

    /// Says in which file of the source a weight lies that cannot be used.
    fn locate(&self, task: &Task, error: anyhow::Error) -> anyhow::Error {
        let Some(bad) = error.downcast_ref::<BadWeight>() else { return error };
        let remedy =
            bad.remedy.unwrap_or("the file is damaged, or the model was saved after it diverged; fetch it again");
        let checkpoint = &self.model.checkpoint;
        let file = checkpoint.files()
            [checkpoint.tensors()[bad.tensor.unwrap_or_else(|| task.work.tensor(self.model))].file]
            .path
            .display();
        error.context(Hint { message: format!("`{file}` holds a weight that cannot be used"), hint: remedy.into() })
    }

    /// Hashes what an earlier run wrote.
    fn hash_found(&self, task: usize, bounce: &mut Bounce) -> Result<()> {
        for region in &self.plan.tasks[task].writes {
            let (file, start) = self.plan.place(region);
            let target = &self.targets[file];
            target
                .hash
                .found(&target.file, start, start + region.bytes, bounce)
                .with_context(|| format!("reading back `{}`", target.plan.name))?;
        }
        Ok(())
    }

    /// Syncs every file and collects the digests.
    fn close(self, resumed: usize) -> Result<Filled> {
        let mut digests = Vec::with_capacity(self.targets.len());
        self.control.progress.start("syncing", self.plan.bytes(), 0, Unit::Bytes);
        for target in &self.targets {
            let name = &target.plan.name;
            let Some(digest) = target.hash.digest(target.plan.bytes) else {
                bail!("`{name}`: the plan's tasks do not cover the file; this is a bug in l4tool");
            };
            target.file.sync().with_context(|| format!("syncing `{name}`"))?;
            self.control.progress.advance(target.plan.bytes);
            digests.push(digest);
        }
        self.control.progress.finish();
        let totals = self.totals.into_iter().map(|totals| totals.into_inner().expect("every task ran")).collect();
        Ok(Filled { totals, digests, resumed })
    }
}

/// Writes and syncs a small file beside the weights.
///
/// # Errors
/// The disk refuses; names the file.
pub fn write_companion(partial: &Partial, file: &Companion) -> Result<()> {
    use std::io::Write;
    let path = partial.model().join(&file.name);
    let write = || {
        let mut target = File::create(&path)?;
        target.write_all(&file.contents)?;
        target.sync_all()
    };
    write().with_context(|| format!("writing `{}`", path.display()))
}
