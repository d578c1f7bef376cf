//! One pass over every file of a checkpoint: structure, values, checksums.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::report::{Finding, Report};
use crate::checkpoint::{Edges, SourceFile};
use crate::error::Interrupted;
use crate::llama4::gguf::tokenizer::Vocabulary;
use crate::llama4::tokenizer::TOKENIZER_NAME;
use crate::llama4::{Dialect, Llama4, ProblemKind};
use crate::output::hash::hex;
use crate::output::manifest::{self, FileRecord, MANIFEST_NAME, MANIFEST_SCHEMA, Manifest};
use crate::output::origin::hash_file;
use crate::parallel;
use crate::progress::{Control, Unit};

/// The largest manifest that is read: Maverick's, with 9,216 experts and more, has 3 MB.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// Bytes that are judged and hashed before their pages are given back.
const STRIPE_BYTES: u64 = 4 << 20;

/// Checks everything that can be checked without running the model.
pub(super) fn check(model: &Llama4, control: &Control<'_>, report: &mut Report) -> Result<()> {
    structure(model, report);
    side_files(model, report);
    let known = records(model, report)?;
    let records = known.as_deref().unwrap_or_default();
    let files = model.checkpoint.files();
    let total = files.iter().map(|file| file.bytes).sum();
    control.progress.start("reading", total, 0, Unit::Bytes);
    let findings = Mutex::new((Vec::new(), 0));
    parallel::for_each(
        files.len(),
        control.threads,
        control,
        || (),
        |(), index| {
            let wanted = records.iter().find(|record| record.name == files[index].name);
            let (found, equal) = check_file(model, index, wanted, control)?;
            let mut findings = findings.lock().expect("no thread panics holding it");
            findings.0.extend(found);
            findings.1 += usize::from(equal);
            Ok(())
        },
    )?;
    control.progress.finish();
    model.checkpoint.unchanged()?;
    let (mut found, mut equal) = findings.into_inner().expect("no thread panics holding it");
    found.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    report.problems.extend(found);
    report.tensors = model.checkpoint.tensors().len();
    report.bytes = total;
    for record in records.iter().filter(|record| files.iter().all(|file| file.name != record.name)) {
        equal += usize::from(check_beside(model.checkpoint.folder(), record, control, report)?);
    }
    report.checksums = known.is_some().then_some(equal);
    Ok(())
}

fn structure(model: &Llama4, report: &mut Report) {
    for problem in &model.problems {
        match problem.kind {
            ProblemKind::Missing => report.problem("missing", &problem.name, &problem.message),
            ProblemKind::Mismatch => report.problem("mismatch", &problem.name, &problem.message),
            ProblemKind::Misnamed => report.problem("misnamed", &problem.name, &problem.message),
            ProblemKind::Unexpected => report.notes.push(format!("`{}` {}", problem.name, problem.message)),
        }
    }
}

/// What engines need beside the weights.
fn side_files(model: &Llama4, report: &mut Report) {
    if model.dialect == Dialect::Gguf {
        // A GGUF file has all of this in its keys.
        if let Err(error) = Vocabulary::of(&model.checkpoint) {
            report.problem("tokenizer", TOKENIZER_NAME, format!("cannot be made of the keys: {error}"));
        }
        return;
    }
    let folder = model.checkpoint.folder();
    let missing = |names: &[&str]| names.iter().all(|name| !folder.join(name).exists());
    if missing(&[TOKENIZER_NAME, "tokenizer.model"]) {
        report.problem("side_file", TOKENIZER_NAME, "is missing: no engine can serve the model without it");
    }
    if missing(&["generation_config.json"]) {
        report.notes.push("`generation_config.json` is missing; engines fall back on their defaults".into());
    }
    if model.config.vision.is_some() && missing(&["preprocessor_config.json", "processor_config.json"]) {
        report.notes.push("`preprocessor_config.json` is missing; vLLM wants it to load a model with vision".into());
    }
}

/// What was recorded of the files when they were made or fetched; `None` if nothing was.
fn records(model: &Llama4, report: &mut Report) -> Result<Option<Vec<FileRecord>>> {
    // The manifest of a single file has the file's name too; a folder may have one as well, of what was downloaded.
    let beside = |name: &str| model.checkpoint.folder().join(name).exists();
    let (own, others): (Vec<&SourceFile>, Vec<&SourceFile>) =
        model.checkpoint.files().iter().partition(|file| beside(&manifest::beside(&file.name)));
    let mut records = Vec::new();
    for file in &own {
        let Some(manifest) = read_manifest(model, &manifest::beside(&file.name), report)? else { continue };
        check_recorded(file, &manifest.files, report);
        records.extend(manifest.files);
    }
    if others.is_empty() {
        return Ok(Some(records));
    }
    if beside(MANIFEST_NAME) {
        let Some(manifest) = read_manifest(model, MANIFEST_NAME, report)? else { return Ok(None) };
        others.iter().for_each(|file| check_recorded(file, &manifest.files, report));
        records.extend(manifest.files);
        return Ok(Some(records));
    }
    if own.is_empty() {
        let name = match others[..] {
            [file] if model.dialect == Dialect::Gguf => manifest::beside(&file.name),
            _ => MANIFEST_NAME.to_owned(),
        };
        report.notes.push(format!("there is no `{name}`, so checksums were not checked"));
        return Ok(None);
    }
    for file in others {
        report.notes.push(format!("`{}` has no manifest, so its checksum was not checked", file.name));
    }
    Ok(Some(records))
}

fn check_recorded(file: &SourceFile, records: &[FileRecord], report: &mut Report) {
    if !records.iter().any(|record| record.name == file.name && record.sha256.is_some()) {
        report.problem("checksum", &file.name, "has no checksum in the manifest");
    }
}

fn read_manifest(model: &Llama4, name: &str, report: &mut Report) -> Result<Option<Manifest>> {
    let Some(text) = model.checkpoint.side_file(name, MANIFEST_BYTES_MAX)? else { return Ok(None) };
    let manifest: Manifest = match serde_json::from_slice(&text) {
        Ok(manifest) => manifest,
        Err(error) => {
            report.problem("checksum", name, format!("is no manifest: {error}"));
            return Ok(None);
        }
    };
    if manifest.schema != MANIFEST_SCHEMA {
        report.problem("checksum", name, format!("has the schema {}, not {MANIFEST_SCHEMA}", manifest.schema));
        return Ok(None);
    }
    Ok(Some(manifest))
}

/// Walks one file from its first byte to its last, judging values and hashing in the same pass. Also says whether the
/// file's checksum is as recorded.
fn check_file(
    model: &Llama4,
    index: usize,
    wanted: Option<&FileRecord>,
    control: &Control<'_>,
) -> Result<(Vec<Finding>, bool)> {
    let checkpoint = &model.checkpoint;
    let file = &checkpoint.files()[index];
    let recorded = wanted.and_then(|record| record.sha256.as_ref());
    let mut sha = recorded.map(|_| Sha256::new());
    if let Some(sha) = &mut sha {
        let mut header = vec![0; usize::try_from(file.header_bytes).context("a header is held to a cap")?];
        let read = File::open(&file.path).and_then(|mut source| source.read_exact(&mut header));
        read.with_context(|| format!("reading `{}`", file.path.display()))?;
        sha.update(&header);
    }
    control.progress.advance(file.header_bytes);
    let tensors = checkpoint.tensors();
    let mut ids: Vec<usize> = (0..tensors.len()).filter(|&id| tensors[id].file == index).collect();
    ids.sort_by_key(|&id| (tensors[id].offset, tensors[id].bytes));
    let mut findings = Vec::new();
    let mut end = file.header_bytes;
    for id in ids {
        // Between tensors of a GGUF file lie the zeros that align the next one.
        let gap = end..tensors[id].offset;
        if let Some(sha) = sha.as_mut().filter(|_| !gap.is_empty()) {
            sha.update(checkpoint.file_range(index, gap));
        }
        end = tensors[id].offset + tensors[id].bytes;
        let expectation = model.expectation(id);
        let mut broken = None;
        let block = (tensors[id].dtype.block_bits() / 8).max(1);
        let stripe = STRIPE_BYTES / block * block;
        for start in (0..tensors[id].bytes).step_by(stripe as usize) {
            if control.stop_requested() {
                return Err(Interrupted.into());
            }
            let range = start..(start + stripe).min(tensors[id].bytes);
            let bytes = checkpoint.range(id, range.clone());
            if let Some(sha) = &mut sha {
                sha.update(bytes);
            }
            if broken.is_none() {
                let offset = start * 8 / tensors[id].dtype.block_bits() * tensors[id].dtype.block_len();
                broken = expectation.broken(bytes).map(|(element, what)| (offset + element as u64, what));
            }
            control.progress.advance(bytes.len() as u64);
            checkpoint.release(id, range, Edges::Drop);
        }
        if let Some((element, what)) = broken {
            let message = format!("holds {what} at element {element}");
            findings.push(Finding { kind: "value", name: tensors[id].name.clone(), message });
        }
    }
    if let Some(sha) = sha.as_mut().filter(|_| end < file.bytes) {
        sha.update(checkpoint.file_range(index, end..file.bytes));
    }
    let equal = match (sha.map(|sha| hex(&sha.finalize())), recorded) {
        (Some(is), Some(wanted)) if is != *wanted => {
            findings.push(checksum_finding(&file.name, &is, wanted));
            false
        }
        (is, _) => is.is_some(),
    };
    Ok((findings, equal))
}

/// A recorded file that holds no tensors.
fn check_beside(folder: &Path, record: &FileRecord, control: &Control<'_>, report: &mut Report) -> Result<bool> {
    // Names come from a file that may be hostile: nothing outside the folder is any of its business.
    let inside = record.name.split('/').all(|part| Path::new(part).file_name().is_some_and(|name| name == part));
    let path = folder.join(&record.name);
    if !inside || !path.is_file() {
        report.problem("checksum", &record.name, "is in the manifest and not in the folder");
        return Ok(false);
    }
    let Some(wanted) = &record.sha256 else { return Ok(false) };
    let is = hash_file(&path, control)?;
    if is == *wanted {
        return Ok(true);
    }
    report.problems.push(checksum_finding(&record.name, &is, wanted));
    Ok(false)
}

fn checksum_finding(name: &str, is: &str, wanted: &str) -> Finding {
    let message = format!("has SHA-256 {is}, the manifest says {wanted}");
    Finding { kind: "checksum", name: name.into(), message }
}
