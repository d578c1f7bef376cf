//! What `verify` tells.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::{Options, Thresholds};
use crate::tasks::peak_memory_bytes;

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `l4tool.verify/1`.
    pub schema: &'static str,
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// What it was held against.
    pub against: Option<PathBuf>,
    /// Whether there are no problems.
    pub ok: bool,
    /// Everything that is wrong.
    pub problems: Vec<Finding>,
    /// What is worth knowing and no problem.
    pub notes: Vec<String>,
    /// Tensors that were looked at.
    pub tensors: usize,
    /// Bytes that were read and judged.
    pub bytes: u64,
    /// Files whose SHA-256 equals the manifest's; none without a manifest.
    pub checksums: Option<usize>,
    /// Tokens that were run.
    pub tokens: usize,
    /// How far the residual stream after each layer is from the reference's.
    pub layers: Vec<LayerReport>,
    /// How far the logits are from the reference's.
    pub logits: Option<LogitsReport>,
    /// Perplexity on the text.
    pub perplexity: Option<Perplexity>,
    /// Wall time.
    pub seconds: f64,
    /// Tokens that went through the model (or both) per second of the forward pass.
    pub tokens_per_second: Option<f64>,
    /// Most resident memory, where the system tells.
    pub peak_memory_bytes: Option<u64>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `missing`, `mismatch`, `value`, `side_file`, `checksum` or `threshold`.
    pub kind: &'static str,
    /// The weight, tensor, file or threshold.
    pub name: String,
    /// What is wrong with it.
    pub message: String,
}

/// One layer against the reference.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Number of the layer.
    pub layer: usize,
    /// Root of the squared difference over the squared reference.
    pub rel_rms_error: f64,
    /// Cosine of the angle between both.
    pub cosine: f64,
    /// Share of tokens that go to the same experts; none for a dense layer.
    pub router_agreement: Option<f64>,
}

/// The logits against the reference's.
#[derive(Clone, Debug, Serialize)]
pub struct LogitsReport {
    /// Mean Kullback-Leibler divergence of the next-token distributions, in nats.
    pub kl_mean: f64,
    /// The divergence that 99 % of the tokens do not exceed.
    pub kl_p99: f64,
    /// The largest divergence.
    pub kl_max: f64,
    /// Share of tokens on which both prefer the same next token.
    pub top1_agreement: f64,
    /// The largest difference of a logit.
    pub max_abs_diff: f64,
}

/// Perplexity on the text: e to the mean negative log-likelihood of each token after the first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// Of the reference.
    pub reference: Option<f64>,
    /// Of the checkpoint.
    pub candidate: f64,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            schema: "l4tool.verify/1",
            checkpoint: options.checkpoint.clone(),
            against: options.against.clone(),
            ok: false,
            problems: Vec::new(),
            notes: Vec::new(),
            tensors: 0,
            bytes: 0,
            checksums: None,
            tokens: 0,
            layers: Vec::new(),
            logits: None,
            perplexity: None,
            seconds: 0.0,
            tokens_per_second: None,
            peak_memory_bytes: None,
        }
    }

    pub(super) fn problem(&mut self, kind: &'static str, name: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Finding { kind, name: name.into(), message: message.into() });
    }

    /// Turns what exceeds a threshold into problems. What is not a number exceeds every threshold.
    pub(super) fn hold_against(&mut self, thresholds: &Thresholds) {
        let mut exceeded = Vec::new();
        if let (Some(limit), Some(logits)) = (thresholds.max_kl, &self.logits)
            && (logits.kl_mean > limit || logits.kl_mean.is_nan())
        {
            exceeded.push(("max_kl", format!("the mean KL divergence is {:.6}, the limit {limit}", logits.kl_mean)));
        }
        if let (Some(limit), Some(logits)) = (thresholds.min_top1, &self.logits)
            && (logits.top1_agreement < limit || logits.top1_agreement.is_nan())
        {
            exceeded.push(("min_top1", format!("top-1 agreement is {:.4}, the limit {limit}", logits.top1_agreement)));
        }
        if let (Some(limit), Some(Perplexity { reference: Some(reference), candidate })) =
            (thresholds.max_ppl_increase, self.perplexity)
        {
            let increase = candidate / reference - 1.0;
            if increase > limit || increase.is_nan() {
                exceeded.push(("max_ppl_increase", format!("perplexity rises by {increase:.5}, the limit is {limit}")));
            }
        }
        for (name, message) in exceeded {
            self.problem("threshold", name, message);
        }
    }

    pub(super) fn finish(&mut self, elapsed: Duration) {
        self.ok = self.problems.is_empty();
        self.seconds = elapsed.as_secs_f64();
        self.peak_memory_bytes = peak_memory_bytes();
    }
}
