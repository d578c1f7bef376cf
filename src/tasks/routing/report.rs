//! What `routing` tells.

use std::path::PathBuf;

use serde::Serialize;

use super::numbers::{distance, mutual_information, percentile, spread};
use super::{Options, Sort};
use crate::calibration::statistics::{LabelCount, LayerRouting, Meta, SCORE_BINS};

/// An expert with more than this many times the mean load is called overloaded.
pub(super) const OVERLOADED: f64 = 2.0;

/// Transitions of a layer that are reported unless all are wanted.
const TRANSITIONS_SHOWN: usize = 5;

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `l4tool.routing/1`.
    pub schema: &'static str,
    /// The statistics file or checkpoint.
    pub source: PathBuf,
    /// Tokens that were run.
    pub tokens: u64,
    /// What was run under each label.
    pub labels: Vec<LabelCount>,
    /// Layers of the model, with and without experts.
    pub num_hidden_layers: usize,
    /// Experts of a layer.
    pub num_local_experts: usize,
    /// Experts that a token goes to.
    pub num_experts_per_tok: usize,
    /// The layers with experts.
    pub layers: Vec<LayerReport>,
    /// Experts, as selected and sorted.
    pub experts: Vec<ExpertReport>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

/// One layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Number of the layer.
    pub layer: usize,
    /// Pairs of a token and an expert that it went to.
    pub tokens: u64,
    /// Tokens of each expert.
    pub loads: Vec<u64>,
    /// Experts that saw any.
    pub used: usize,
    /// Experts that saw none.
    pub dead: Vec<usize>,
    /// Experts with more than twice the mean load.
    pub overloaded: Vec<usize>,
    /// Entropy of the loads, in bits.
    pub entropy_bits: f64,
    /// The same over its maximum, the logarithm of the number of experts.
    pub entropy_share: f64,
    /// Largest load over the mean.
    pub max_over_mean: f64,
    /// Coefficient of variation of the loads: standard deviation over mean.
    pub variation: f64,
    /// Mean gate score.
    pub score_mean: Option<f64>,
    /// Each label by itself, if there are several.
    pub labels: Vec<LabelReport>,
    /// Bits that the expert of the last layer before that has some tells about this layer's.
    pub transition_bits: Option<f64>,
    /// The most frequent ways from an expert of that layer to one of this.
    pub transitions: Vec<Transition>,
    /// All of them, `[from][to]`, on demand.
    pub transition_counts: Option<Vec<Vec<u64>>>,
}

/// One label in one layer.
#[derive(Clone, Debug, Serialize)]
pub struct LabelReport {
    /// The label.
    pub label: String,
    /// Tokens of each expert.
    pub loads: Vec<u64>,
    /// Experts that saw any.
    pub used: usize,
    /// Entropy of the loads, in bits.
    pub entropy_bits: f64,
    /// Largest load over the mean.
    pub max_over_mean: f64,
    /// The expert with the largest load.
    pub busiest: usize,
    /// Share of tokens that would have to go to other experts to be spread as those of the other labels together.
    pub distance: f64,
}

/// From an expert of one layer to one of the next.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Transition {
    /// Expert of the layer before.
    pub from: usize,
    /// Expert of this layer.
    pub to: usize,
    /// Tokens.
    pub tokens: u64,
    /// Share of those that came from `from`.
    pub share: f64,
}

/// One expert of one layer.
#[derive(Clone, Debug, Serialize)]
pub struct ExpertReport {
    /// Number of the layer.
    pub layer: usize,
    /// Number of the expert.
    pub expert: usize,
    /// Tokens that went to it.
    pub tokens: u64,
    /// Share of the layer's tokens.
    pub share: f64,
    /// Load over the layer's mean.
    pub load: f64,
    /// Mean gate score; none for an expert that saw nothing.
    pub score_mean: Option<f64>,
    /// Gate score below which 5 % of its tokens lie, as finely as the histogram tells.
    pub score_p5: Option<f64>,
    /// The median.
    pub score_p50: Option<f64>,
    /// 95 %.
    pub score_p95: Option<f64>,
    /// Its tokens under each label.
    pub by_label: Vec<u64>,
}

impl Report {
    pub(super) fn new(options: &Options, meta: &Meta, routing: &[LayerRouting], notes: Vec<String>) -> Self {
        let model = &meta.model;
        let is_wanted = |routing: &&LayerRouting| options.layers.is_empty() || options.layers.contains(&routing.layer);
        let wanted = || routing.iter().filter(is_wanted);
        let mut experts: Vec<ExpertReport> = wanted()
            .flat_map(|routing| experts_of(routing, model.num_local_experts))
            .filter(|row| options.experts.is_empty() || options.experts.contains(&row.expert))
            .collect();
        sort(&mut experts, options.sort);
        experts.truncate(options.top.unwrap_or(usize::MAX));
        Self {
            schema: "l4tool.routing/1",
            source: options.source.clone(),
            tokens: meta.tokens(),
            labels: meta.labels.clone(),
            num_hidden_layers: model.moe_layers.len(),
            num_local_experts: model.num_local_experts,
            num_experts_per_tok: model.num_experts_per_tok,
            layers: wanted().map(|routing| layer_of(routing, meta, options.transitions)).collect(),
            experts,
            notes,
        }
    }
}

fn sort(rows: &mut [ExpertReport], by: Sort) {
    // Equal rows stay in the order of layers and experts.
    match by {
        Sort::Layer => {}
        Sort::Expert => rows.sort_by_key(|row| row.expert),
        Sort::Tokens => rows.sort_by_key(|row| std::cmp::Reverse(row.tokens)),
        Sort::Share => rows.sort_by(|a, b| b.share.total_cmp(&a.share)),
        Sort::Score => rows.sort_by(|a, b| b.score_mean.unwrap_or(-1.0).total_cmp(&a.score_mean.unwrap_or(-1.0))),
    }
}

/// The tokens of each expert over all labels.
fn loads_of(routing: &LayerRouting, experts: usize) -> Vec<u64> {
    (0..experts).map(|expert| routing.tokens.iter().skip(expert).step_by(experts).sum()).collect()
}

fn layer_of(routing: &LayerRouting, meta: &Meta, all_transitions: bool) -> LayerReport {
    let experts = meta.model.num_local_experts;
    let loads = loads_of(routing, experts);
    let spread = spread(&loads);
    let tokens: u64 = loads.iter().sum();
    let mean = tokens as f64 / experts as f64;
    let most = (experts as f64).log2();
    let which = |test: &dyn Fn(u64) -> bool| (0..experts).filter(|&expert| test(loads[expert])).collect::<Vec<usize>>();
    let counts = routing.transitions.as_deref();
    LayerReport {
        layer: routing.layer,
        tokens,
        used: loads.iter().filter(|&&load| load > 0).count(),
        dead: which(&|load| load == 0),
        overloaded: which(&|load| load as f64 > OVERLOADED * mean),
        entropy_bits: spread.entropy_bits,
        entropy_share: if most > 0.0 { spread.entropy_bits / most } else { 1.0 },
        max_over_mean: spread.max_over_mean,
        variation: spread.variation,
        score_mean: (tokens > 0).then(|| routing.score_sum.iter().sum::<f64>() / tokens as f64),
        labels: labels_of(routing, meta, &loads),
        transition_bits: counts.map(|counts| mutual_information(counts, experts)),
        transitions: counts.map_or_else(Vec::new, |counts| strongest(counts, experts)),
        transition_counts: counts
            .filter(|_| all_transitions)
            .map(|counts| counts.chunks_exact(experts).map(<[u64]>::to_vec).collect()),
        loads,
    }
}

fn labels_of(routing: &LayerRouting, meta: &Meta, loads: &[u64]) -> Vec<LabelReport> {
    if meta.labels.len() < 2 {
        return Vec::new();
    }
    let labels = meta.labels.iter().zip(routing.tokens.chunks_exact(loads.len()));
    Vec::from_iter(labels.map(|(label, own)| {
        let spread = spread(own);
        let others: Vec<u64> = loads.iter().zip(own).map(|(all, own)| all - own).collect();
        LabelReport {
            label: label.label.clone(),
            loads: own.to_vec(),
            used: own.iter().filter(|&&load| load > 0).count(),
            entropy_bits: spread.entropy_bits,
            max_over_mean: spread.max_over_mean,
            busiest: (0..own.len()).max_by_key(|&expert| (own[expert], std::cmp::Reverse(expert))).unwrap_or(0),
            distance: distance(own, &others),
        }
    }))
}

fn strongest(counts: &[u64], experts: usize) -> Vec<Transition> {
    let mut order: Vec<usize> = (0..counts.len()).filter(|&index| counts[index] > 0).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(counts[index]), index));
    order.truncate(TRANSITIONS_SHOWN);
    Vec::from_iter(order.into_iter().map(|index| {
        let (from, to) = (index / experts, index % experts);
        let left: u64 = counts[from * experts..][..experts].iter().sum();
        Transition { from, to, tokens: counts[index], share: counts[index] as f64 / left as f64 }
    }))
}

fn experts_of(routing: &LayerRouting, experts: usize) -> Vec<ExpertReport> {
    let loads = loads_of(routing, experts);
    let total: u64 = loads.iter().sum();
    Vec::from_iter((0..experts).map(|expert| {
        let tokens = loads[expert];
        let bins = &routing.histogram[expert * SCORE_BINS..][..SCORE_BINS];
        let scores: f64 = routing.score_sum.iter().skip(expert).step_by(experts).sum();
        let share = if total > 0 { tokens as f64 / total as f64 } else { 0.0 };
        ExpertReport {
            layer: routing.layer,
            expert,
            tokens,
            share,
            load: share * experts as f64,
            score_mean: (tokens > 0).then(|| scores / tokens as f64),
            score_p5: percentile(bins, 0.05),
            score_p50: percentile(bins, 0.5),
            score_p95: percentile(bins, 0.95),
            by_label: routing.tokens.iter().skip(expert).step_by(experts).copied().collect(),
        }
    }))
}
