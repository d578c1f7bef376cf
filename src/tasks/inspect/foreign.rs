//! What a path is that is no Llama 4 checkpoint in safetensors: a better error than "no weights here".
//!
//! Looked at only after opening failed. It must not read more than names and a file's first bytes.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::checkpoint::{Checkpoint, FormatError, Kind, shown};
use crate::error::hint;
use crate::llama4::config::ConfigError;

/// The error, in the words of what `path` is, where that shows.
pub(super) fn explain(path: &Path, error: anyhow::Error) -> anyhow::Error {
    if let Some(error) = error.chain().find_map(|cause| cause.downcast_ref::<ConfigError>()) {
        return config_error(path, error);
    }
    let kind = error.chain().find_map(|cause| Some(&cause.downcast_ref::<FormatError>()?.kind));
    let other = match kind {
        Some(Kind::NoWeights) => folder_kind(path),
        Some(Kind::TooShort { .. } | Kind::HeaderPastEnd { .. } | Kind::TooLarge { .. } | Kind::NotAnObject) => {
            file_kind(path)
        }
        _ => None,
    };
    match other {
        Some(other) => hint(
            format!("`{}` {other}, which this version cannot read", path.display()),
            "name the folder of the checkpoint in Hugging Face form: safetensors files and `config.json`",
        ),
        None => error,
    }
}

/// A config that is missing says nothing; the tensors do.
fn config_error(path: &Path, error: &ConfigError) -> anyhow::Error {
    let missing = error.file.metadata().is_err();
    if let (true, Ok(checkpoint)) = (missing, Checkpoint::open(path)) {
        let tensors = checkpoint.tensors();
        let first = tensors.first().map_or_else(String::new, |tensor| format!(" (`{}`, ...)", shown(&tensor.name)));
        let message = format!(
            "`{}` holds {} tensors{first}, but no `config.json` beside them says what model they are",
            path.display(),
            tensors.len(),
        );
        return hint(message, "put the model's `config.json` into the folder, from where the weights came from");
    }
    match &error.hint {
        Some(way_out) => hint(error.to_string(), way_out.clone()),
        None => anyhow::anyhow!("{error}"),
    }
}

/// What a folder without safetensors holds instead.
fn folder_kind(path: &Path) -> Option<String> {
    let entries = fs::read_dir(path).ok()?;
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    let of_kind = |what: &str, wanted: &dyn Fn(&str) -> bool| {
        let first = names.iter().find(|name| wanted(name))?;
        Some(format!("is a folder of {what} (`{}`)", shown(first)))
    };
    of_kind("PyTorch files", &|name| [".pth", ".pt", ".bin"].iter().any(|end| name.ends_with(end)))
}

/// What a file is by its first bytes.
fn file_kind(path: &Path) -> Option<String> {
    let mut first = [0; 2];
    File::open(path).ok()?.read_exact(&mut first).ok()?;
    match first {
        // torch.save writes a ZIP archive since PyTorch 1.6, which is read; a bare pickle (protocol 2) before.
        [0x80, 2] => Some("is a pickled PyTorch file".to_owned()),
        _ => None,
    }
}
