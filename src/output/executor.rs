//! Runs a plan: the only code that creates weight files.
//!
//! Workers take tasks in order, compute into their own buffers, write at known offsets, record the task in the journal
//! and hash on. A worker holds one task at a time, so resident memory is bounded by the number of workers times the largest
//! task; how many there are is all that the memory bound decides. There are more workers than threads, so that the
//! processor has work while some wait for the disk or for their turn to hash; permits keep them from computing all at once.
//! A stop is obeyed between tasks.
//!
//! A [`Run`] may be performed in stages, where what one task needs to know follows from what others have written.

use std::collections::HashSet;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::companions::Companion;
use super::evidence::{Evidence, Nothing};
use super::hash::FileHash;
use super::header;
use super::journal::Finished;
use super::partial::Partial;
use super::plan::{NOTE_BYTES_MAX, OutFile, Plan, Region, Task};
use super::preflight;
use super::work::{BadWeight, Buffers};
use crate::error::Hint;
use crate::files::{Bounce, OutputFile};
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

/// What there is to note in the headers about each weight of the model, in at most [`NOTE_BYTES_MAX`] bytes; or nothing.
pub type Notes = Vec<Option<String>>;

/// A file being filled.
struct Target<'a> {
    plan: &'a OutFile,
    file: OutputFile,
    hash: FileHash,
}

/// Performs every task of an open run that is not finished.
///
/// # Errors
/// As [`Run::perform`].
pub fn fill(run: &Run<'_>) -> Result<Notes> {
    run.perform(&Vec::from_iter(0..run.plan.tasks.len()), &Nothing)?;
    Ok(Notes::new())
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

/// A plan being filled inside the partial folder.
pub struct Run<'a> {
    plan: &'a Plan,
    model: &'a Llama4,
    partial: &'a Partial,
    targets: Vec<Target<'a>>,
    totals: Vec<OnceLock<Vec<Errors>>>,
    /// Tasks that an earlier run had finished.
    kept: usize,
    /// One for each thread that may compute.
    permits: Permits,
    control: &'a Control<'a>,
}

impl<'a> Target<'a> {
    fn create(folder: &Path, plan: &'a OutFile) -> Result<Self> {
        let path = folder.join(&plan.name);
        let file = OutputFile::create(&path, plan.bytes)
            .with_context(|| format!("creating `{}` of {} bytes", path.display(), plan.bytes))?;
        Ok(Self { plan, file, hash: FileHash::default() })
    }

    fn write(&self, bytes: &[u8], offset: u64, bounce: &mut Bounce, see: impl FnMut(&[u8])) -> Result<()> {
        self.file
            .write_all_at(bytes, offset, bounce, see)
            .with_context(|| format!("writing `{}` at {offset}", self.plan.name))
    }

    /// Hashes what was written, as far as the file is complete up to there.
    fn hash(&self, offset: u64, bytes: &[u8], bounce: &mut Bounce, permits: &Permits) -> Result<()> {
        self.hash
            .written(&self.file, offset, bytes, bounce, permits)
            .with_context(|| format!("reading back `{}`", self.plan.name))
    }
}

/// What a worker keeps from task to task.
#[derive(Default)]
struct Worker {
    buffers: Buffers,
    bounce: Bounce,
}

/// A task that others may stand in line behind: dropped when it fails, or panics.
struct Unfinished<'a>(&'a Run<'a>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.targets.iter().for_each(|target| target.hash.give_up());
    }
}

impl<'a> Run<'a> {
    /// Opens every file of `plan` inside `partial`, and finds out what of `finished` is still there.
    ///
    /// # Errors
    /// The disk refuses; [`Interrupted`](crate::error::Interrupted) after a safe stop.
    pub fn open(
        plan: &'a Plan,
        model: &'a Llama4,
        partial: &'a Partial,
        finished: Vec<Finished>,
        control: &'a Control<'a>,
    ) -> Result<Self> {
        let folder = partial.model();
        remove_strangers(&folder, plan)?;
        let targets = plan.files.iter().map(|file| Target::create(&folder, file)).collect::<Result<Vec<_>>>()?;
        let totals = plan.tasks.iter().map(|_| OnceLock::new()).collect();
        let mut run =
            Self { plan, model, partial, targets, totals, kept: 0, permits: Permits::new(control.threads), control };
        run.write_literals()?;
        run.kept = run.recheck(finished)?;
        Ok(run)
    }

    /// The plan.
    pub fn plan(&self) -> &'a Plan {
        self.plan
    }

    /// The source.
    pub fn model(&self) -> &'a Llama4 {
        self.model
    }

    /// A folder for what is of use to the next process, should this one be killed. It goes when the output is published.
    pub fn scratch(&self) -> PathBuf {
        self.partial.scratch()
    }

    /// Whether a task is finished.
    pub fn is_finished(&self, task: usize) -> bool {
        self.totals[task].get().is_some()
    }

    /// Performs those of `tasks` that are not finished, by as many workers as the memory bound allows.
    ///
    /// # Errors
    /// [`Interrupted`](crate::error::Interrupted) after a safe stop; [`BadWeight`] if a weight cannot be used; otherwise what
    /// the disk or the source refused, with the name of the file or the weight.
    pub fn perform(&self, tasks: &[usize], evidence: &dyn Evidence) -> Result<()> {
        let bytes = |tasks: &[usize]| tasks.iter().map(|&task| self.plan.tasks[task].source_bytes).sum::<u64>();
        let pending: Vec<usize> = tasks.iter().copied().filter(|&task| !self.is_finished(task)).collect();
        let total = bytes(tasks);
        self.control.progress.start("writing", total, total - bytes(&pending), Unit::Bytes);
        let workers = preflight::workers(self.plan, self.control)?;
        for region in pending.iter().flat_map(|&task| &self.plan.tasks[task].writes) {
            let (file, offset) = self.plan.place(region);
            self.targets[file].hash.line_up(offset, offset + region.bytes);
        }
        parallel::for_each(pending.len(), workers, self.control, Worker::default, |worker, index| {
            let unfinished = Unfinished(self);
            self.compute(pending[index], evidence, worker)?;
            std::mem::forget(unfinished);
            self.control.progress.advance(self.plan.tasks[pending[index]].source_bytes);
            Ok(())
        })?;
        self.control.progress.finish();
        Ok(())
    }

    /// Performs those of `tasks` that are not finished in the current rayon pool, `at_once` of them at the same time at most.
    ///
    /// # Errors
    /// As [`Run::perform`], but for the stop, which the caller looks out for.
    pub fn perform_in_pool(&self, tasks: &[usize], at_once: usize, evidence: &dyn Evidence) -> Result<()> {
        let pending: Vec<usize> = tasks.iter().copied().filter(|&task| !self.is_finished(task)).collect();
        for tasks in pending.chunks(at_once.max(1)) {
            tasks
                .par_iter()
                .try_for_each_init(Worker::default, |worker, &task| self.compute(task, evidence, worker))?;
        }
        Ok(())
    }

    /// Reads back what a task has written: `bytes` of a region, counted from its start.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_back(&self, region: &Region, bytes: Range<u64>) -> Result<Vec<u8>> {
        assert!(bytes.end <= region.bytes, "inside the region");
        let (file, offset) = self.plan.place(region);
        let target = &self.targets[file];
        let mut read = Vec::with_capacity((bytes.end - bytes.start) as usize);
        let see = |piece: &[u8]| read.extend_from_slice(piece);
        let (start, end) = (offset + bytes.start, offset + bytes.end);
        let read_all = target.file.read(start, end, &mut Bounce::default(), see);
        read_all.with_context(|| format!("reading back `{}`", target.plan.name))?;
        Ok(read)
    }

    /// Writes headers and the tensors whose contents the plan holds.
    fn write_literals(&self) -> Result<()> {
        let bounce = &mut Bounce::default();
        for target in &self.targets {
            target.write(&target.plan.header, 0, bounce, |_| ())?;
            if target.plan.noted.is_empty() {
                target.hash(0, &target.plan.header, bounce, &self.permits)?;
            }
            for gap in &target.plan.gaps {
                // A new file is all zeros.
                let found = target.hash.found(&target.file, gap.start, gap.end, bounce, &self.permits);
                found.with_context(|| format!("reading back `{}`", target.plan.name))?;
            }
            for &id in &target.plan.tensors {
                let tensor = &self.plan.tensors[id];
                if let Some(contents) = &tensor.literal {
                    target.write(contents, tensor.offset, bounce, |_| ())?;
                    target.hash(tensor.offset, contents, bounce, &self.permits)?;
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

    /// Computes one task, writes it and records it.
    fn compute(&self, index: usize, evidence: &dyn Evidence, worker: &mut Worker) -> Result<()> {
        let task: &Task = &self.plan.tasks[index];
        let Worker { buffers, bounce } = worker;
        let totals = self
            .permits
            .with(|| task.work.run(self.model, &task.writes, buffers, evidence))
            .map_err(|error| self.locate(task, error))?;
        let results = task.work.results(self.model, buffers, &task.writes);
        let mut digest = Xxh3::new();
        for (region, bytes) in task.writes.iter().zip(&results) {
            assert_eq!(bytes.len() as u64, region.bytes, "`{}`", self.plan.tensors[region.tensor].name);
            let (file, offset) = self.plan.place(region);
            self.targets[file].write(bytes, offset, bounce, |piece| digest.update(piece))?;
        }
        let digest = digest.digest();
        self.partial.journal.append(&Finished { task: index, digest, totals: totals.clone() })?;
        self.totals[index].set(totals).expect("a task runs once");
        for (region, bytes) in task.writes.iter().zip(&results) {
            let (file, offset) = self.plan.place(region);
            self.targets[file].hash(offset, bytes, bounce, &self.permits)?;
        }
        task.work.release(self.model);
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
                .found(&target.file, start, start + region.bytes, bounce, &self.permits)
                .with_context(|| format!("reading back `{}`", target.plan.name))?;
        }
        Ok(())
    }

    /// Writes the notes into the headers that have room for them; `notes` has one for each weight of the model, or is empty.
    fn write_notes(&self, notes: &[Option<String>]) -> Result<()> {
        let bounce = &mut Bounce::default();
        for target in self.targets.iter().filter(|target| !target.plan.noted.is_empty()) {
            let note = |(weight, name): &(usize, String)| {
                let note = notes.get(*weight)?.as_ref().filter(|note| note.len() <= NOTE_BYTES_MAX)?;
                Some(format!("{name}: {note}"))
            };
            let notes: Vec<String> = target.plan.noted.iter().filter_map(note).collect();
            let tensors = target.plan.tensors.iter().map(|&id| &self.plan.tensors[id]);
            let header = header::with_notes(&target.plan.header, tensors, &notes.join("; "));
            target.write(&header, 0, bounce, |_| ())?;
            target.hash(0, &header, bounce, &self.permits)?;
        }
        Ok(())
    }

    /// Writes what there is to note about weights into the headers, syncs every file and collects the digests. Every task
    /// must have been performed.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn close(self, notes: &[Option<String>]) -> Result<Filled> {
        self.write_notes(notes)?;
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
        let resumed = self.kept;
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
