//! What a statistics file says about itself: the model, the labels, the data.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::ModelKey;
use crate::calibration::data::{CalibrationData, FileRecord, LABELS_MAX, is_label};

/// The key that marks a file, and the version of its layout.
const FORMAT: (&str, &str) = ("l4tool.statistics", "1");

/// Files of one run that are named; the rest are counted.
const FILES_MAX: usize = 1000;

/// Runs that one file may be merged from.
const PARTS_MAX: usize = 65_536;

/// Most tokens of a file. It keeps every sum of counts inside 64 bits.
const TOKENS_MAX: u64 = 1 << 48;

/// What was run under one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelCount {
    /// The label.
    pub label: String,
    /// Sequences.
    pub sequences: u64,
    /// Tokens of these.
    pub tokens: u64,
}

/// The data of one run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DataPart {
    /// SHA-256 of the sequences ([`crate::calibration::data::tokens_sha256`]).
    pub tokens_sha256: String,
    /// Sequences.
    pub sequences: u64,
    /// Tokens of these.
    pub tokens: u64,
    /// Tokens of the longest one.
    pub longest: u64,
    /// The first files that tokens came from.
    pub files: Vec<FileRecord>,
    /// How many more there were.
    pub files_left_out: u64,
}

/// Everything about a file that is not a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The model.
    pub model: ModelKey,
    /// The labels, in the order of the tensors' rows.
    pub labels: Vec<LabelCount>,
    /// The runs, sorted.
    pub data: Vec<DataPart>,
    /// Whether there are Hessians.
    pub hessians: bool,
}

impl Meta {
    /// Of a run that is about to begin.
    pub fn of(model: ModelKey, data: &CalibrationData, hessians: bool) -> Self {
        let labels = data.labels.iter().enumerate().map(|(index, label)| {
            let own = || data.samples.iter().filter(move |sample| sample.label == index);
            let tokens = own().map(|sample| sample.tokens.len() as u64).sum();
            LabelCount { label: label.clone(), sequences: own().count() as u64, tokens }
        });
        let part = DataPart {
            tokens_sha256: data.sha256(),
            sequences: data.samples.len() as u64,
            tokens: data.tokens(),
            longest: data.samples.iter().map(|sample| sample.tokens.len() as u64).max().unwrap_or(0),
            files: data.files.iter().take(FILES_MAX).cloned().collect(),
            files_left_out: data.files.len().saturating_sub(FILES_MAX) as u64,
        };
        Self { labels: labels.collect(), data: vec![part], model, hessians }
    }

    /// Tokens of all labels.
    pub fn tokens(&self) -> u64 {
        self.labels.iter().map(|label| label.tokens).sum()
    }

    /// The metadata of the file: sorted strings.
    pub fn to_strings(&self) -> BTreeMap<String, String> {
        let json = |value: serde_json::Result<String>| value.expect("plain data always become JSON");
        BTreeMap::from([
            (FORMAT.0.to_owned(), FORMAT.1.to_owned()),
            ("model".to_owned(), json(serde_json::to_string(&self.model))),
            ("labels".to_owned(), json(serde_json::to_string(&self.labels))),
            ("data".to_owned(), json(serde_json::to_string(&self.data))),
            ("hessians".to_owned(), self.hessians.to_string()),
        ])
    }

    /// Whether a file's metadata say that it holds statistics, of whatever version.
    pub(super) fn is_marked(strings: &BTreeMap<String, String>) -> bool {
        strings.contains_key(FORMAT.0)
    }

    /// Reads and checks what [`Meta::to_strings`] wrote.
    pub(super) fn from_strings(strings: &BTreeMap<String, String>) -> Result<Self> {
        match strings.get(FORMAT.0).map(String::as_str) {
            None => bail!("this is no statistics file of l4tool"),
            Some(version) if version == FORMAT.1 => {}
            Some(version) => {
                bail!("statistics of version `{}`, and {} is known", crate::checkpoint::shown(version), FORMAT.1)
            }
        }
        let field = |name: &str| strings.get(name).with_context(|| format!("the metadata have no `{name}`"));
        let wrong = |name: &'static str| move || format!("the metadata's `{name}`");
        let meta = Self {
            model: serde_json::from_str(field("model")?).with_context(wrong("model"))?,
            labels: serde_json::from_str(field("labels")?).with_context(wrong("labels"))?,
            data: serde_json::from_str(field("data")?).with_context(wrong("data"))?,
            hessians: field("hessians")?.parse().with_context(wrong("hessians"))?,
        };
        meta.model.check()?;
        let labels = meta.labels.len();
        ensure!((1..=LABELS_MAX).contains(&labels), "{labels} labels; 1 to {LABELS_MAX} are known");
        ensure!((1..=PARTS_MAX).contains(&meta.data.len()), "merged from {} runs", meta.data.len());
        for (index, label) in meta.labels.iter().enumerate() {
            ensure!(is_label(&label.label), "`{}` is no label", crate::checkpoint::shown(&label.label));
            ensure!(!meta.labels[..index].iter().any(|other| other.label == label.label), "a label is there twice");
        }
        let by_label = total(meta.labels.iter().map(|label| label.tokens))?;
        let by_run = total(meta.data.iter().map(|part| part.tokens))?;
        ensure!(by_label == by_run, "{by_label} tokens under labels, and {by_run} in runs");
        Ok(meta)
    }
}

fn total(mut counts: impl Iterator<Item = u64>) -> Result<u64> {
    let sum = counts.try_fold(0_u64, u64::checked_add);
    sum.filter(|&sum| sum <= TOKENS_MAX).with_context(|| format!("more than {TOKENS_MAX} tokens"))
}
