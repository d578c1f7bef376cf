//! Which file of a checkpoint in GGUF says what, and typed access to its keys with errors that name them.

use std::path::Path;

use crate::checkpoint::gguf::{Keys, Value};
use crate::checkpoint::{Checkpoint, shown};
use crate::llama4::config::ConfigError;

/// The key that names the kind of model.
const ARCHITECTURE_KEY: &str = "general.architecture";

/// The architecture of a vision part.
const VISION: &str = "clip";

/// The keys of the text model, or of the vision part.
#[derive(Clone, Copy)]
pub(in crate::llama4) struct Fields<'a> {
    file: &'a Path,
    pub(super) keys: Keys<'a>,
}

/// Whether a checkpoint's files are GGUF.
pub(in crate::llama4) fn is_gguf(checkpoint: &Checkpoint) -> bool {
    (0..checkpoint.files().len()).any(|file| checkpoint.keys(file).is_some())
}

impl<'a> Fields<'a> {
    /// The text model's keys: those of the first file that names an architecture and is no vision part.
    pub(in crate::llama4) fn of_text(checkpoint: &'a Checkpoint) -> Option<Self> {
        Self::all(checkpoint).find(|fields| fields.architecture().is_some_and(|name| name != VISION))
    }

    /// The vision part's keys.
    pub(super) fn of_vision(checkpoint: &'a Checkpoint) -> Option<Self> {
        Self::all(checkpoint).find(|fields| fields.architecture() == Some(VISION))
    }

    fn all(checkpoint: &'a Checkpoint) -> impl Iterator<Item = Self> {
        let files = checkpoint.files().iter().enumerate();
        files.filter_map(|(index, file)| Some(Fields { file: &file.path, keys: checkpoint.keys(index)? }))
    }

    /// What kind of model it is.
    pub(super) fn architecture(&self) -> Option<&'a str> {
        self.keys.text(ARCHITECTURE_KEY)
    }

    /// An error on a key.
    pub(super) fn error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let field = Some(shown(key));
        ConfigError { file: self.file.to_path_buf(), field, problem: problem.into(), hint: None }
    }

    /// A value as `read` gives it; `None` if the key is not there.
    fn typed<T>(&self, key: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.keys.value(key) else { return Ok(None) };
        let wrong = || self.error(key, format!("`{}` is not {what}", shown(&format!("{value:?}"))));
        read(value).map(Some).ok_or_else(wrong)
    }

    /// A whole number that is not negative.
    pub(super) fn whole(&self, key: &str) -> Result<Option<u64>, ConfigError> {
        self.typed(key, "a whole number", Value::as_u64)
    }

    /// A whole number that must be there.
    pub(super) fn required(&self, key: &str) -> Result<u64, ConfigError> {
        self.whole(key)?.ok_or_else(|| self.error(key, "missing"))
    }

    /// A floating-point number.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(key, "a floating-point number", Value::as_f64)
    }

    /// A truth value.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.typed(key, "a string", Value::as_str)
    }
}
