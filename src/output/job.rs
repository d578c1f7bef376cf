//! One run of a command that writes a checkpoint, from the first check to the published folder: what such commands have
//! in common.
//!
//! A command makes a [`Plan`], the files that lie beside the weights, and a list of what the output must hold; everything
//! after that is here. This knows no command: its name and its options are text for the journal and the manifest.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use super::companions::{self, Companion};
use super::executor::{self, Filled, Notes, Run};
use super::hash::sha256;
use super::journal::Identity;
use super::manifest::{FileRecord, MANIFEST_NAME, MANIFEST_SCHEMA, Manifest, Origin, VERSION, WeightRecord};
use super::partial::{self, Existing, Form, Partial};
use super::plan::Plan;
use super::work::BadWeight;
use super::{gate, manifest, origin, preflight};
use crate::llama4::Llama4;
use crate::progress::Control;
use crate::quant::Errors;
use crate::quant::scheme::Scheme;

/// A run that is ready to begin.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// The command, such as `quantize`.
    pub command: &'a str,
    /// The options that decide the bytes of the output, by name.
    pub settings: &'a BTreeMap<String, String>,
    /// The source.
    pub model: &'a Llama4,
    /// The weight files.
    pub plan: &'a Plan,
    /// The files beside them, sorted by name; the manifest is added to them.
    pub companions: &'a [Companion],
    /// The folder or file to be made.
    pub out: &'a Path,
    /// Which of them.
    pub form: Form,
    /// What to do about what is already there.
    pub existing: Existing,
    /// Compute the SHA-256 of the source's files for the manifest.
    pub hash_source: bool,
}

/// What a run leaves to report.
#[derive(Debug)]
pub struct Done {
    /// For every task of the plan, the error sums of its parts.
    pub totals: Vec<Vec<Errors>>,
    /// Whether an earlier run's work was used.
    pub resumed: bool,
}

impl Job<'_> {
    /// Refuses an output that is in the way, or too close to the source.
    ///
    /// # Errors
    /// Says which.
    pub fn check_destination(&self) -> Result<()> {
        // A source that lies elsewhere has no folder to keep apart from.
        match self.model.checkpoint.is_elsewhere() {
            true => partial::check_free(self.out, self.existing),
            false => partial::check_destination(self.out, &self.model.checkpoint.named(), self.existing),
        }
    }

    /// Makes the output. `promised` is every weight that it must hold, in the order of a forward pass, with its scheme;
    /// `records` gives the manifest's account of the weights that were changed, from the error sums of all tasks.
    ///
    /// # Errors
    /// The output is in the way; the disk is full or does not answer; a weight cannot be used;
    /// [`crate::error::Interrupted`] after a safe stop. The output does not exist then.
    pub fn run(
        &self,
        promised: &[(&str, Option<Scheme>)],
        records: impl FnOnce(&[Vec<Errors>]) -> Vec<WeightRecord>,
        control: &Control<'_>,
    ) -> Result<Done> {
        self.run_staged(promised, executor::fill, records, control)
    }

    /// [`Job::run`] with `perform` performing the tasks, all of them, as it sees fit, and giving what there is to note in headers.
    ///
    /// # Errors
    /// As [`Job::run`], and what `perform` gives.
    pub fn run_staged(
        &self,
        promised: &[(&str, Option<Scheme>)],
        perform: impl FnOnce(&Run<'_>) -> Result<Notes>,
        records: impl FnOnce(&[Vec<Errors>]) -> Vec<WeightRecord>,
        control: &Control<'_>,
    ) -> Result<Done> {
        self.run_checked(|folder| gate::check(folder, promised, control), perform, records, control)
    }

    /// [`Job::run_staged`] with `check` as the last look at what was written, in the folder that it is given.
    ///
    /// # Errors
    /// As [`Job::run_staged`], and what `check` gives.
    pub fn run_checked(
        &self,
        check: impl FnOnce(&Path) -> Result<()>,
        perform: impl FnOnce(&Run<'_>) -> Result<Notes>,
        records: impl FnOnce(&[Vec<Errors>]) -> Vec<WeightRecord>,
        control: &Control<'_>,
    ) -> Result<Done> {
        self.model.checkpoint.require_here()?;
        let identity = self.identity();
        if self.is_published()
            && let Some(finished) = partial::take_published(self.out, &identity)?
            && let Some(totals) = executor::totals(self.plan, &finished)
        {
            return Ok(Done { totals, resumed: true });
        }
        self.check_destination()?;
        preflight::workers(self.plan, control)?;
        let side_bytes: u64 = self.companions.iter().map(|file| file.contents.len() as u64).sum();
        preflight::check_disk(self.out, self.plan.bytes() + side_bytes)?;
        let mut source = origin::describe(&self.model.checkpoint);
        if self.hash_source {
            origin::hash_files(&mut source, self.model.checkpoint.folder(), control)?;
        }
        let (partial, finished) = Partial::open(self.out, &identity, self.existing)?;
        let filled = || -> Result<Filled> {
            let run = Run::open(self.plan, self.model, &partial, finished, control)?;
            let notes = perform(&run)?;
            run.close(&notes)
        };
        let filled = match filled() {
            Ok(filled) => filled,
            Err(error) => {
                if error.chain().any(|cause| cause.is::<BadWeight>()) {
                    partial.discard();
                }
                return Err(error);
            }
        };
        if let Err(error) = self.model.checkpoint.unchanged() {
            // What was read is neither the old source nor the new one.
            partial.discard();
            return Err(error.into());
        }
        let manifest = self.manifest(source, &filled, records(&filled.totals));
        for file in self.companions.iter().chain([&manifest]) {
            executor::write_companion(&partial, file)?;
        }
        check(&partial.model())?;
        match self.form {
            Form::Folder => partial.publish(self.existing)?,
            Form::File => partial.publish_file(self.existing)?,
        }
        Ok(Done { resumed: filled.resumed > 0, totals: filled.totals })
    }

    /// Whether the output that is there was made by this very command.
    fn is_published(&self) -> bool {
        let manifest = match self.form {
            Form::Folder => self.out.join(MANIFEST_NAME),
            Form::File => self.out.with_file_name(self.manifest_name()),
        };
        let text = std::fs::read(manifest);
        let manifest = text.ok().and_then(|text| serde_json::from_slice::<Manifest>(&text).ok());
        !self.existing.restart
            && manifest.is_some_and(|manifest| {
                manifest.tool_version == VERSION
                    && manifest.command == self.command
                    && manifest.options == *self.settings
            })
    }

    /// What the manifest is called: beside one file it has that file's name too.
    pub fn manifest_name(&self) -> String {
        match (self.form, self.out.file_name()) {
            (Form::File, Some(name)) => manifest::beside(&name.to_string_lossy()),
            _ => MANIFEST_NAME.to_owned(),
        }
    }

    /// What decides the bytes of the output.
    fn identity(&self) -> Identity {
        let mut identity = self.settings.clone();
        identity.insert("command".into(), self.command.into());
        identity.insert("l4tool version".into(), VERSION.into());
        for file in self.model.checkpoint.fingerprint().files {
            let what = format!("{} bytes, header {}, modified {}", file.bytes, file.digest, file.modified_ns);
            identity.insert(format!("source file {}", file.name), what);
        }
        identity
    }

    fn manifest(&self, source: Origin, filled: &Filled, weights: Vec<WeightRecord>) -> Companion {
        let written = self.plan.files.iter().zip(&filled.digests).map(|(file, digest)| FileRecord {
            name: file.name.clone(),
            bytes: file.bytes,
            sha256: Some(digest.clone()),
        });
        let beside = self.companions.iter().map(|file| FileRecord {
            name: file.name.clone(),
            bytes: file.contents.len() as u64,
            sha256: Some(sha256(&file.contents)),
        });
        let mut files: Vec<FileRecord> = written.chain(beside).collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = Manifest {
            schema: MANIFEST_SCHEMA.into(),
            tool_version: VERSION.into(),
            command: self.command.into(),
            options: self.settings.clone(),
            source,
            files,
            weights,
        };
        let document = serde_json::to_value(manifest).expect("a manifest is plain data");
        companions::pretty(&self.manifest_name(), &document)
    }
}
