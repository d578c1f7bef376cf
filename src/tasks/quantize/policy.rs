//! On how much evidence a weight was quantized, in words for reports, manifests and metadata.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::quant::Method;

/// What a weight's inputs were judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Basis {
    /// By its own inputs.
    Own,
    /// By its own, shrunk toward all inputs of the layer's experts.
    Blended,
    /// It had none: by all inputs of the layer's experts.
    Pooled,
    /// Nobody in the layer had any: by the weights alone.
    Nothing,
    /// Inputs were not finite: by the weights alone.
    Unusable,
    /// Its scheme and method ask for none.
    Unneeded,
}

/// What was done to a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) method: Method,
    pub(super) basis: Basis,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weighted = self.method == Method::Search;
        match self.basis {
            Basis::Own if weighted => f.write_str("search-weighted"),
            Basis::Own | Basis::Unneeded => write!(f, "{}", self.method),
            Basis::Blended => write!(f, "{}-blended", self.method),
            Basis::Pooled => write!(f, "{}-pooled", self.method),
            Basis::Nothing if self.method == Method::Rtn => write!(f, "{}-unseen", self.method),
            Basis::Nothing => f.write_str("search-unseen"),
            Basis::Unusable => f.write_str("search-not-finite"),
        }
    }
}

/// What is known of a weight after the pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Rows of calibration data that went into it.
    pub(super) tokens: u64,
    pub(super) policy: Policy,
}
