//! Typed, bounded access to the fields of a JSON object, with errors that name field and value.
//!
//! Knows no field of Llama 4.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::shown;

/// Why a `config.json` cannot be used.
#[derive(Debug)]
pub struct ConfigError {
    /// The config file.
    pub file: PathBuf,
    /// The field at fault with its section, such as `text_config.head_dim`; `None` if it is the document as a whole.
    pub field: Option<String>,
    /// What is wrong with it, with the value.
    pub problem: String,
    /// What the user can do about it, where there is something: lower case, no full stop.
    pub hint: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.file.display())?;
        if let Some(field) = &self.field {
            write!(f, ", field `{field}`")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for ConfigError {}

/// One object of the document.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) file: &'a Path,
    /// The way to the object in the document, with a dot at the end; empty at the top.
    pub(super) section: &'a str,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The field, if it is there and not null: transformers takes null for most fields as "not given".
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// An error on a field of this object.
    pub(super) fn error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let field = Some(format!("{}{key}", self.section));
        ConfigError { file: self.file.to_path_buf(), field, problem: problem.into(), hint: None }
    }

    /// An error on a value that is not what the field takes.
    fn wrong(&self, key: &str, value: &Value, wanted: impl fmt::Display) -> ConfigError {
        self.error(key, format!("`{}` is not {wanted}", shown(&value.to_string())))
    }

    /// The object in a field; `section` is the way to it.
    pub(super) fn object(&self, key: &str, section: &'a str) -> Result<Option<Self>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map, section, ..*self })),
            Some(value) => Err(self.wrong(key, value, "an object")),
        }
    }

    /// A whole number in a range; `default` if it is not given. A float without a fraction counts as a whole number.
    pub(super) fn whole(&self, key: &str, default: u64, range: RangeInclusive<u64>) -> Result<u64, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => whole(value).filter(|n| range.contains(n)).ok_or_else(|| {
                self.wrong(key, value, format_args!("a whole number from {} to {}", range.start(), range.end()))
            }),
        }
    }

    /// A number of things, from 1 to `max`.
    pub(super) fn count(&self, key: &str, default: usize, max: usize) -> Result<usize, ConfigError> {
        // No value is cut: `usize` has 64 bits here.
        self.whole(key, default as u64, 1..=max as u64).map(|n| n as usize)
    }

    /// A finite number above 0.
    pub(super) fn positive(&self, key: &str, default: Option<f64>) -> Result<f64, ConfigError> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.error(key, "missing")),
            (Some(value), _) => value
                .as_f64()
                .filter(|number| number.is_finite() && *number > 0.0)
                .ok_or_else(|| self.wrong(key, value, "a finite number above 0")),
        }
    }

    /// A truth value.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false")),
        }
    }

    /// A truth value as Python takes it: a number is true unless it is 0, null is false.
    pub(super) fn truthy(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.map.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::Number(number)) => Ok(number.as_f64() != Some(0.0)),
            Some(value) => Err(self.wrong(key, value, "true, false or a number")),
        }
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| self.wrong(key, value, "a string"))).transpose()
    }

    /// A list with `entry` applied to each element; `entry` gives `None` for what is not `wanted`.
    pub(super) fn list<T>(
        &self,
        key: &str,
        wanted: &str,
        entry: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().ok_or_else(|| self.wrong(key, value, "a list"))?;
        let entries = list.iter().map(|value| {
            let problem = || format!("entry `{}` is not {wanted}", shown(&value.to_string()));
            entry(value).ok_or_else(|| self.error(key, problem()))
        });
        entries.collect::<Result<_, _>>().map(Some)
    }

    /// A token id, or none: null and the negative ids that some tools write both mean "no such token".
    pub(super) fn token(&self, key: &str, default: Option<u32>) -> Result<Option<u32>, ConfigError> {
        match self.map.get(key) {
            None => Ok(default),
            Some(value) => token(value).ok_or_else(|| self.wrong(key, value, "a token id")),
        }
    }

    /// One token id or a list of them.
    pub(super) fn tokens(&self, key: &str, default: u32) -> Result<Vec<u32>, ConfigError> {
        match self.get(key) {
            Some(Value::Array(_)) => Ok(self.list(key, "a token id", |v| token(v).flatten())?.unwrap_or_default()),
            _ => Ok(Vec::from_iter(self.token(key, Some(default))?)),
        }
    }
}

/// The value as a whole number that is not negative.
pub(super) fn whole(value: &Value) -> Option<u64> {
    let from_float = |number: f64| {
        // Above 2^53 a float does not say which whole number was meant.
        let fits = number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number);
        fits.then_some(number as u64)
    };
    value.as_u64().or_else(|| value.as_f64().and_then(from_float))
}

/// Outer `None`: not a token id. Inner `None`: no token.
fn token(value: &Value) -> Option<Option<u32>> {
    match value {
        Value::Null => Some(None),
        _ if value.as_i64().is_some_and(|id| id < 0) => Some(None),
        _ => value.as_u64().and_then(|id| u32::try_from(id).ok()).map(Some),
    }
}
