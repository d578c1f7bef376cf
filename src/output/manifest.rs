//! `l4tool.manifest.json`: what a checkpoint was made from, by which options, and what every file's SHA-256 is.
//!
//! It lies beside the weights and holds nothing that differs between two runs on the same inputs: no time, no host, no
//! path. `verify` reads it back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The manifest's file name.
pub const MANIFEST_NAME: &str = "l4tool.manifest.json";

/// What the manifest of an output that is one file is called, beside it.
pub fn beside(file: &str) -> String {
    format!("{file}.{MANIFEST_NAME}")
}

/// The version that manifests and model cards name.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Value of [`Manifest::schema`].
pub const MANIFEST_SCHEMA: &str = "l4tool.manifest/1";

/// The whole manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_SCHEMA`].
    pub schema: String,
    /// Version of l4tool that wrote the checkpoint.
    pub tool_version: String,
    /// The command that did, such as `quantize`.
    pub command: String,
    /// What decides the bytes: options by name.
    pub options: BTreeMap<String, String>,
    /// Where it came from.
    pub source: Origin,
    /// Every other file of the checkpoint, sorted by name.
    pub files: Vec<FileRecord>,
    /// Every logical weight that was changed, in the order of a forward pass.
    pub weights: Vec<WeightRecord>,
}

/// The source of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Repository on the hub, if the source lies in a hub cache.
    pub repo: Option<String>,
    /// Its commit.
    pub revision: Option<String>,
    /// Its weight files, index and config.
    pub files: Vec<FileRecord>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Name in the folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in hex, where it is known.
    pub sha256: Option<String>,
}

/// What happened to one weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightRecord {
    /// Logical name.
    pub name: String,
    /// Scheme it is stored in.
    pub scheme: String,
    /// How its scales were chosen.
    pub policy: String,
    /// Calibration tokens that it saw; `None` without calibration.
    pub tokens: Option<u64>,
    /// Root of the squared error over the squared weights.
    pub rel_rms_error: f64,
    /// The largest difference.
    pub max_abs_error: f32,
}
