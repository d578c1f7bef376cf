//! From what the user names to files: labels, globs, folders, and what kind of text each file is.
//!
//! Reads no more of a file than it takes to see whether it is text. Knows no tokenizer.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::checkpoint::shown;
use crate::error::hint;

/// The label of data that the user gave none.
pub const DEFAULT_LABEL: &str = "data";

/// Most labels of one run: each has counts of its own in the statistics.
pub const LABELS_MAX: usize = 64;

/// Most files of one run. Their names are held in memory.
const FILES_MAX: usize = 1_000_000;

/// Folders inside folders that are still walked.
const DEPTH_MAX: usize = 64;

/// Bytes that tell text from anything else.
const PROBE_BYTES: usize = 8192;

/// What is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One running text.
    Text,
    /// One JSON object per line.
    JsonLines,
    /// A table with a column `text`.
    Parquet,
}

/// Where bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A file.
    File(PathBuf),
    /// Text inside the program, with its name.
    Memory(&'static str, &'static str),
}

/// One file of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Input {
    pub(super) place: Place,
    pub(super) kind: Kind,
    pub(super) bytes: u64,
}

/// The files under one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Labelled {
    pub(super) label: String,
    pub(super) inputs: Vec<Input>,
}

/// Splits `code=src.txt` into label and path. A `=` belongs to the path where what stands before it is no label, or where
/// a file of the whole name exists.
fn split(argument: &str) -> (&str, &str) {
    match argument.split_once('=') {
        Some((label, path)) if is_label(label) && !path.is_empty() && !Path::new(argument).exists() => (label, path),
        _ => (DEFAULT_LABEL, argument),
    }
}

/// Letters, digits, `_`, `-` and `.`: labels stand in tables, file names and JSON.
pub fn is_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=64).contains(&text.len()) && text.chars().all(plain)
}

/// Resolves the user's `--data` arguments. Labels keep the order in which they first appear; files under a label are
/// sorted by path, so that the result does not depend on the order of a folder.
///
/// # Errors
/// Nothing is there, it is no text, or there is too much of it.
pub(super) fn resolve(arguments: &[String], notes: &mut Vec<String>) -> Result<Vec<Labelled>> {
    let mut labelled: Vec<Labelled> = Vec::new();
    for argument in arguments {
        let (label, path) = split(argument);
        let found = inputs_of(path, notes).with_context(|| format!("--data `{}`", shown(argument)))?;
        match labelled.iter_mut().find(|existing| existing.label == label) {
            Some(existing) => existing.inputs.extend(found),
            None => labelled.push(Labelled { label: label.to_owned(), inputs: found }),
        }
    }
    if labelled.len() > LABELS_MAX {
        bail!("{} labels, and at most {LABELS_MAX} are kept apart", labelled.len());
    }
    for entry in &mut labelled {
        entry.inputs.sort_by(|a, b| path_of(a).cmp(path_of(b)));
        entry.inputs.dedup_by(|a, b| a.place == b.place);
        if entry.inputs.len() > FILES_MAX {
            bail!("{} files, and at most {FILES_MAX} are read", entry.inputs.len());
        }
    }
    Ok(labelled)
}

fn path_of(input: &Input) -> &Path {
    match &input.place {
        Place::File(path) => path,
        Place::Memory(name, _) => Path::new(name),
    }
}

fn inputs_of(argument: &str, notes: &mut Vec<String>) -> Result<Vec<Input>> {
    let path = Path::new(argument);
    let mut inputs = Vec::new();
    if path.exists() {
        add(path, &mut inputs, notes)?;
    } else if argument.contains(['*', '?', '[']) {
        let paths = glob::glob(argument).context("this is no pattern of file names")?;
        for path in paths.take(FILES_MAX + 1) {
            add(&path?, &mut inputs, notes)?;
        }
    } else {
        return Err(hint(
            format!("`{}` does not exist", shown(argument)),
            "name a file, a folder or a quoted pattern such as 'texts/*.txt', with a label as in `code=src.txt` if you like",
        ));
    }
    if inputs.is_empty() {
        bail!("no text in it");
    }
    Ok(inputs)
}

/// A file that was named, or all that a folder holds.
fn add(path: &Path, inputs: &mut Vec<Input>, notes: &mut Vec<String>) -> Result<()> {
    if path.is_dir() {
        return walk(path, 0, inputs, notes);
    }
    let input = classify(path)?;
    if input.kind == Kind::Text && !is_text(path)? {
        return Err(hint(
            format!("`{}` is no text in UTF-8", path.display()),
            "convert it with iconv, or decompress it first",
        ));
    }
    inputs.push(input);
    Ok(())
}

fn walk(folder: &Path, depth: usize, inputs: &mut Vec<Input>, notes: &mut Vec<String>) -> Result<()> {
    if depth > DEPTH_MAX {
        bail!("`{}` is more than {DEPTH_MAX} folders deep", folder.display());
    }
    let entries = fs::read_dir(folder).with_context(|| format!("listing `{}`", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    paths.sort_unstable();
    for path in paths {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        // Links to folders are not followed: they could lead round in a circle.
        let is_link = path.symlink_metadata().is_ok_and(|found| found.is_symlink());
        if hidden || (is_link && path.is_dir()) {
            continue;
        }
        if path.is_dir() {
            walk(&path, depth + 1, inputs, notes)?;
        } else if path.is_file() {
            match classify(&path) {
                Ok(input) if input.kind != Kind::Text || is_text(&path)? => inputs.push(input),
                _ => notes.push(format!("`{}` is no text and was left out", path.display())),
            }
        }
        if inputs.len() > FILES_MAX {
            bail!("more than {FILES_MAX} files");
        }
    }
    Ok(())
}

/// Kind by the ending of the name.
fn classify(path: &Path) -> Result<Input> {
    let found = fs::metadata(path).with_context(|| format!("opening `{}`", path.display()))?;
    if !found.is_file() {
        bail!("`{}` is neither a file nor a folder", path.display());
    }
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    let kind = match ending.as_deref() {
        Some("jsonl" | "ndjson" | "json") => Kind::JsonLines,
        Some("parquet") => Kind::Parquet,
        Some("gz" | "zst" | "xz" | "bz2" | "zip") => {
            return Err(hint(format!("`{}` is compressed", path.display()), "decompress it first"));
        }
        _ => Kind::Text,
    };
    Ok(Input { place: Place::File(path.to_owned()), kind, bytes: found.len() })
}

/// Whether a file begins like text: UTF-8 without NUL.
fn is_text(path: &Path) -> Result<bool> {
    let context = || format!("reading `{}`", path.display());
    let mut head = Vec::with_capacity(PROBE_BYTES);
    let file = File::open(path).with_context(context)?;
    file.take(PROBE_BYTES as u64).read_to_end(&mut head).with_context(context)?;
    let valid = match std::str::from_utf8(&head) {
        Ok(_) => true,
        // A character may be cut by the end of what was read.
        Err(error) => error.error_len().is_none(),
    };
    Ok(valid && !head.contains(&0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_before_the_first_equals_sign() {
        assert_eq!(split("code=src.txt"), ("code", "src.txt"));
        assert_eq!(split("src.txt"), (DEFAULT_LABEL, "src.txt"));
        assert_eq!(split("a b=src.txt"), (DEFAULT_LABEL, "a b=src.txt"));
        assert_eq!(split("code="), (DEFAULT_LABEL, "code="));
        assert_eq!(split("x=a=b"), ("x", "a=b"));
    }

    #[test]
    fn folders_and_globs_are_sorted_and_leave_out_what_is_no_text() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        fs::create_dir(folder.path().join("deep")).unwrap();
        write("b.txt", b"two");
        write("deep/a.md", "drei".as_bytes());
        write("c.jsonl", b"{}");
        write("picture.png", b"\x89PNG\0\0");
        write(".hidden", b"text");
        let mut notes = Vec::new();
        let base = folder.path().to_str().unwrap();
        let found = resolve(&[format!("x={base}")], &mut notes).unwrap();
        let names: Vec<_> = found[0].inputs.iter().map(|i| path_of(i).strip_prefix(base).unwrap().to_owned()).collect();
        assert_eq!(names, ["b.txt", "c.jsonl", "deep/a.md"].map(PathBuf::from));
        assert_eq!(
            found[0].inputs.iter().map(|i| i.kind).collect::<Vec<_>>(),
            [Kind::Text, Kind::JsonLines, Kind::Text]
        );
        assert!(notes.len() == 1 && notes[0].contains("picture.png"), "{notes:?}");
        let globbed = resolve(&[format!("{base}/*.txt"), format!("{base}/b.txt")], &mut notes).unwrap();
        assert_eq!(globbed[0].inputs.len(), 1, "a file that is named twice is read once");
        let error = format!("{:#}", resolve(&[format!("{base}/picture.png")], &mut notes).unwrap_err());
        assert!(error.contains("no text in UTF-8"), "{error}");
        assert!(resolve(&[format!("{base}/none*")], &mut notes).is_err());
    }
}
