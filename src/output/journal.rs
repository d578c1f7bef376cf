//! The journal of a run: which tasks are finished, and under which conditions they were.
//!
//! ```text
//! OUT.partial/
//!   journal        line 1: schema and identity; then one line for every finished task
//!   model/         what becomes OUT
//! ```
//!
//! Every line is a JSON document. A task's line holds a digest of what it wrote and its sums, with floats as the hex
//! digits of their bits, because a resumed run must give the same bytes as an uninterrupted one. A line is appended only
//! after the task's data were written; a torn last line, as a kill leaves it, is dropped. Whether the data themselves
//! survived (a power cut may lose them) is found out by digest when a run goes on.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::error::hint;
use crate::files;
use crate::quant::Errors;

const SCHEMA: &str = "l4tool.journal/1";

/// What decides the bytes of the output: tool version, source files, options. Two runs may share work only if all is equal.
pub type Identity = BTreeMap<String, String>;

#[derive(Serialize, Deserialize)]
struct Head {
    schema: String,
    identity: Identity,
}

/// One finished task.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Index into the plan's tasks.
    pub task: usize,
    /// XXH3 of the task's buffers, one after the other.
    pub digest: u64,
    /// Error sums of each part of the task.
    pub totals: Vec<Errors>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    task: usize,
    digest: String,
    totals: Vec<[String; 5]>,
}

/// An open journal that this process alone writes to.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Mutex<File>,
}

impl Journal {
    /// Opens the journal at `path`, or begins one with `identity`. Gives what earlier runs finished.
    ///
    /// # Errors
    /// Another process holds it, it belongs to a run with another identity, or it cannot be read or written.
    pub fn open(path: &Path, identity: &Identity) -> Result<(Self, Vec<Finished>)> {
        let context = || format!("opening the journal `{}`", path.display());
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).with_context(context)?;
        lock(&file, path)?;
        Self::read(path, file, identity)
    }

    /// Reads a journal that is open and locked already.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub(super) fn read(path: &Path, mut file: File, identity: &Identity) -> Result<(Self, Vec<Finished>)> {
        let context = || format!("opening the journal `{}`", path.display());
        let mut text = Vec::new();
        file.read_to_end(&mut text).with_context(context)?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let mut lines = text[..whole].split_inclusive(|&byte| byte == b'\n');
        let mut finished = Vec::new();
        let mut understood = 0;
        if let Some(head) = lines.next() {
            same_identity(head, identity, path)?;
            understood = head.len();
            for (line, done) in lines.map_while(|line| Some((line, parse(line)?))) {
                understood += line.len();
                finished.push(done);
            }
        }
        // Only what was understood stays: the rest is a torn line, or worse, and is done again. Nothing else is
        // written anew, so that being killed here loses no work.
        let end = understood as u64;
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).with_context(context)?;
        if understood == 0 {
            let head = Head { schema: SCHEMA.into(), identity: identity.clone() };
            let head = serde_json::to_string(&head)? + "\n";
            file.write_all(head.as_bytes()).with_context(context)?;
        }
        file.sync_data().with_context(context)?;
        Ok((Self { path: path.into(), file: Mutex::new(file) }, finished))
    }

    /// Whether `path` is a journal of l4tool, of whatever run and version, or the torn beginning of one.
    pub(super) fn is_one(path: &Path) -> bool {
        const BEGINNING: &[u8] = br#"{"schema":"l4tool.journal/"#;
        let Ok(file) = File::open(path) else { return false };
        let mut text = Vec::new();
        let read = file.take(BEGINNING.len() as u64).read_to_end(&mut text);
        read.is_ok() && BEGINNING.starts_with(&text)
    }

    /// Records a finished task.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&self, finished: &Finished) -> Result<()> {
        let line = line(finished)?;
        let mut file = self.file.lock().expect("no writer panics while it holds the lock");
        file.write_all(line.as_bytes()).with_context(|| format!("writing the journal `{}`", self.path.display()))
    }
}

/// Takes an open journal for this process alone, until the file is closed.
///
/// # Errors
/// Says which process has it.
pub(super) fn lock(file: &File, path: &Path) -> Result<()> {
    match files::lock(file).with_context(|| format!("locking `{}`", path.display()))? {
        Ok(()) => Ok(()),
        Err(held) => {
            let who = held.by.map_or_else(String::new, |pid| format!(" (process {pid})"));
            Err(hint(
                format!("`{}` is in use by another l4tool{who}", path.display()),
                "wait for it to finish, or choose another output",
            ))
        }
    }
}

fn line(finished: &Finished) -> Result<String> {
    let hex = |value: f64| format!("{:016x}", value.to_bits());
    let totals = finished
        .totals
        .iter()
        .map(|t| {
            let floats = [t.sum_sq_weight, t.sum_sq_error, t.sum_sq_error_rtn, t.max_abs_error.into()].map(hex);
            let [weight, error, rtn, max] = floats;
            [weight, error, rtn, max, format!("{:x}", t.overflows)]
        })
        .collect();
    let line = Line { task: finished.task, digest: format!("{:016x}", finished.digest), totals };
    Ok(serde_json::to_string(&line)? + "\n")
}

fn parse(text: &[u8]) -> Option<Finished> {
    let line: Line = serde_json::from_slice(text).ok()?;
    let number = |hex: &String| u64::from_str_radix(hex, 16).ok();
    let totals = line.totals.iter().map(|[weight, error, rtn, max, overflows]| {
        Some(Errors {
            sum_sq_weight: f64::from_bits(number(weight)?),
            sum_sq_error: f64::from_bits(number(error)?),
            sum_sq_error_rtn: f64::from_bits(number(rtn)?),
            max_abs_error: f64::from_bits(number(max)?) as f32,
            overflows: number(overflows)?,
        })
    });
    Some(Finished { task: line.task, digest: number(&line.digest)?, totals: totals.collect::<Option<_>>()? })
}

/// Refuses to go on with another run's work, and says what differs.
fn same_identity(head: &[u8], identity: &Identity, path: &Path) -> Result<()> {
    let restart = "`--restart` throws the partial work away; or run the command that began it";
    let Ok(head) = serde_json::from_slice::<Head>(head) else {
        return Err(hint(format!("`{}` is not a journal of l4tool", path.display()), restart));
    };
    if head.schema != SCHEMA {
        bail!(hint(format!("`{}` is a journal of another version ({})", path.display(), head.schema), restart));
    }
    let mut differences = Vec::new();
    let keys: std::collections::BTreeSet<_> = head.identity.keys().chain(identity.keys()).collect();
    for key in keys {
        let absent = String::from("absent");
        let (was, is) = (head.identity.get(key).unwrap_or(&absent), identity.get(key).unwrap_or(&absent));
        if was != is {
            differences.push(format!("{key}: was {was}, is {is}"));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let shown = differences.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
    let folder = path.parent().unwrap_or(path).display();
    Err(hint(format!("`{folder}` holds the partial work of a different run: {shown}"), restart))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(scheme: &str) -> Identity {
        Identity::from([("scheme".to_owned(), scheme.to_owned())])
    }

    fn done(task: usize) -> Finished {
        let totals = Errors {
            sum_sq_weight: 0.1 + task as f64,
            sum_sq_error: f64::MIN_POSITIVE / 3.0,
            sum_sq_error_rtn: 1e300,
            max_abs_error: 0.0,
            overflows: 3,
        };
        Finished { task, digest: u64::MAX - task as u64, totals: vec![totals; 2] }
    }

    #[test]
    fn finished_tasks_come_back_bit_for_bit_and_a_torn_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (journal, finished) = Journal::open(&path, &identity("w4a16")).unwrap();
        assert!(finished.is_empty());
        journal.append(&done(3)).unwrap();
        journal.append(&done(1)).unwrap();
        drop(journal);
        let text = std::fs::read_to_string(&path).unwrap();
        for cut in [1, 5, 40] {
            std::fs::write(&path, &text[..text.len() - cut]).unwrap();
            let (_, finished) = Journal::open(&path, &identity("w4a16")).unwrap();
            assert_eq!(finished, [done(3)], "cut {cut}");
        }
        std::fs::write(&path, &text).unwrap();
        let (_, finished) = Journal::open(&path, &identity("w4a16")).unwrap();
        assert_eq!(finished, [done(3), done(1)]);
    }

    #[test]
    fn another_run_is_refused_with_what_differs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        drop(Journal::open(&path, &identity("w4a16")).unwrap());
        let error = Journal::open(&path, &identity("fp8-dynamic")).unwrap_err().to_string();
        assert!(error.contains("scheme: was w4a16, is fp8-dynamic"), "{error}");
    }

    #[test]
    fn two_processes_cannot_share_a_journal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let _first = Journal::open(&path, &identity("w4a16")).unwrap();
        let error = Journal::open(&path, &identity("w4a16")).unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
    }
}
