//! Statistics of a model on some text: routing, and the second moments of every weight's input. `docs/statistics.md` describes the file.
//!
//! [`Collector`] makes them while a [`Pass`](crate::calibration::Pass) runs, [`Statistics`] reads them, [`merge()`] adds them up. This module
//! creates no file: bytes go to a [`Sink`].

mod collect;
mod key;
mod layout;
mod merge;
mod meta;
mod read;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use collect::{Collector, Output, Sink};
pub use key::ModelKey;
pub use layout::{Entry, Layout, SCORE_BINS, place_name, router_name, score_at, score_bin};
pub use merge::{Merged, merge, merged};
pub use meta::{DataPart, LabelCount, Meta};
pub use read::Statistics;

/// The routing of one layer. Counts are of pairs of a token and an expert that it went to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerRouting {
    /// Number of the layer.
    pub layer: usize,
    /// `[labels, experts]`: tokens that went to an expert.
    pub tokens: Vec<u64>,
    /// `[labels, experts]`: sum of their gate scores.
    pub score_sum: Vec<f64>,
    /// `[experts, SCORE_BINS]`: their scores by [`score_bin`].
    pub histogram: Vec<u64>,
    /// `[experts, experts]`: from an expert of the last layer before that has some, to one of this layer.
    pub transitions: Option<Vec<u64>>,
}
