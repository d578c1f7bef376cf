//! What `calibrate` tells.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::{Options, Source};
use crate::calibration::statistics::{DataPart, LabelCount, LayerRouting, Layout, Meta};
use crate::tasks::peak_memory_bytes;

/// Experts with fewer tokens than this count as seldom seen.
const FEW_TOKENS: u64 = 128;

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `l4tool.calibrate/1`.
    pub schema: &'static str,
    /// The checkpoint; none for a merge.
    pub source: Option<PathBuf>,
    /// The statistics that were merged.
    pub merged: Vec<PathBuf>,
    /// The statistics file.
    pub output: Option<PathBuf>,
    /// llama.cpp's importance matrix.
    pub imatrix: Option<PathBuf>,
    /// Whether nothing was written because the user only wanted to know.
    pub dry_run: bool,
    /// Whether the text came with the program.
    pub builtin: bool,
    /// Tokens of all labels.
    pub tokens: u64,
    /// What was run under each label.
    pub labels: Vec<LabelCount>,
    /// The data, by run.
    pub data: Vec<DataPart>,
    /// Bytes of the tensors of the statistics.
    pub bytes: u64,
    /// How well the tokens cover the experts of each layer.
    pub layers: Vec<CoverageReport>,
    /// What is worth knowing.
    pub notes: Vec<String>,
    /// Wall time.
    pub seconds: f64,
    /// Tokens run per second.
    pub tokens_per_second: Option<f64>,
    /// Most resident memory, where the system tells.
    pub peak_memory_bytes: Option<u64>,
}

/// How well the tokens cover one layer's experts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CoverageReport {
    /// Number of the layer.
    pub layer: usize,
    /// Experts that saw no token.
    pub unseen: usize,
    /// Experts that saw fewer than 128.
    pub few: usize,
    /// Tokens of the expert that saw fewest.
    pub least: u64,
    /// Tokens of the expert in the middle.
    pub median: u64,
    /// Tokens of the expert that saw most.
    pub most: u64,
}

impl Report {
    pub(super) fn new(options: &Options, meta: &Meta, layout: &Layout, notes: Vec<String>) -> Self {
        let (source, merged) = match &options.source {
            Source::Run { checkpoint, .. } => (Some(checkpoint.clone()), Vec::new()),
            Source::Merge(parts) => (None, parts.clone()),
        };
        let bytes = layout.entries.iter().filter_map(|entry| entry.dtype.bytes_of(&entry.shape));
        Self {
            schema: "l4tool.calibrate/1",
            source,
            merged,
            output: options.out.clone(),
            imatrix: options.imatrix.clone(),
            dry_run: options.dry_run,
            builtin: false,
            tokens: meta.tokens(),
            labels: meta.labels.clone(),
            data: meta.data.clone(),
            bytes: bytes.sum(),
            layers: Vec::new(),
            notes,
            seconds: 0.0,
            tokens_per_second: None,
            peak_memory_bytes: None,
        }
    }

    /// Sums the tokens of each expert up, over labels and over parts that are merged.
    pub(super) fn cover(&mut self, routing: &[LayerRouting], experts: usize) {
        let mut layers: Vec<usize> = routing.iter().map(|layer| layer.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        self.layers = Vec::from_iter(layers.into_iter().map(|layer| {
            let own = || routing.iter().filter(|routing| routing.layer == layer);
            let of = |expert| own().flat_map(move |routing| routing.tokens.iter().skip(expert).step_by(experts)).sum();
            let mut tokens: Vec<u64> = (0..experts).map(of).collect();
            tokens.sort_unstable();
            CoverageReport {
                layer,
                unseen: tokens.iter().filter(|&&count| count == 0).count(),
                few: tokens.iter().filter(|&&count| count < FEW_TOKENS).count(),
                least: tokens[0],
                median: tokens[experts / 2],
                most: tokens[experts - 1],
            }
        }));
    }

    pub(super) fn finish(&mut self, elapsed: Duration) {
        self.seconds = elapsed.as_secs_f64();
        if self.source.is_some() && !self.dry_run {
            self.tokens_per_second = Some(self.tokens as f64 / self.seconds.max(1e-9));
        }
        self.peak_memory_bytes = peak_memory_bytes();
    }
}
