//! Which tensors a statistics file has: names, formats and shapes, from the model's key alone. `docs/statistics.md` describes them.

use std::collections::HashMap;

use super::ModelKey;
use crate::calibration::Place;
use crate::dtype::Dtype;

/// Bins of the histogram of gate scores: the router's logit from -16 to 16 in steps of 1/8. What lies outside counts in the
/// first and the last.
pub const SCORE_BINS: usize = 256;

/// Width of a bin.
const BIN_WIDTH: f64 = 0.125;

/// Logit at which the first bin begins.
const FIRST_LOGIT: f64 = -16.0;

/// The bin of a logit.
pub fn score_bin(logit: f32) -> usize {
    // NaN goes to bin 0: the sum of scores tells of it.
    (((f64::from(logit) - FIRST_LOGIT) / BIN_WIDTH).floor().max(0.0) as usize).min(SCORE_BINS - 1)
}

/// The score at which a bin begins (`bin` may be one more than the last): the sigmoid of its logit.
pub fn score_at(bin: f64) -> f64 {
    1.0 / (1.0 + (-(FIRST_LOGIT + bin * BIN_WIDTH)).exp())
}

/// One tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its format.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<u64>,
}

/// The tensors of a file, in the order of their data: everything of eight bytes first, so that all of it is aligned.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The tensors.
    pub entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

/// Places of a layer without experts.
pub(super) const DENSE: [Place; 4] =
    [Place::AttentionInput, Place::AttentionOutput, Place::DenseGateUp, Place::DenseDown];

/// Places of a layer with experts; those of expert 0 stand for all.
pub(super) const ROUTED: [Place; 6] = [
    Place::AttentionInput,
    Place::AttentionOutput,
    Place::SharedGateUp,
    Place::SharedDown,
    Place::ExpertGateUp(0),
    Place::ExpertDown(0),
];

/// The module that a place's tensors are named after, and whether each expert has its own.
fn module(place: Place) -> (&'static str, bool) {
    match place {
        Place::AttentionInput => ("self_attn.qkv_proj", false),
        Place::AttentionOutput => ("self_attn.o_proj", false),
        Place::DenseGateUp => ("feed_forward.gate_up_proj", false),
        Place::DenseDown => ("feed_forward.down_proj", false),
        Place::SharedGateUp => ("feed_forward.shared_expert.gate_up_proj", false),
        Place::SharedDown => ("feed_forward.shared_expert.down_proj", false),
        Place::ExpertGateUp(_) => ("feed_forward.experts.gate_up_proj", true),
        Place::ExpertDown(_) => ("feed_forward.experts.down_proj", true),
    }
}

/// The name of a place's tensor: `layers.3.feed_forward.experts.down_proj.in_sum2`.
pub fn place_name(layer: usize, place: Place, what: &str) -> String {
    format!("layers.{layer}.{}.{what}", module(place).0)
}

/// The name of a tensor of a layer's routing: `layers.3.feed_forward.router.tokens`.
pub fn router_name(layer: usize, what: &str) -> String {
    format!("layers.{layer}.feed_forward.router.{what}")
}

/// Width of a place's input.
pub(super) fn width(key: &ModelKey, place: Place) -> usize {
    match place {
        Place::AttentionOutput => key.attention_size,
        Place::DenseDown => key.intermediate_size_mlp,
        Place::SharedDown | Place::ExpertDown(_) => key.intermediate_size,
        _ => key.hidden_size,
    }
}

/// The places of a layer.
pub(super) fn places(key: &ModelKey, layer: usize) -> &'static [Place] {
    if key.moe_layers[layer] { &ROUTED } else { &DENSE }
}

impl Layout {
    /// The tensors of statistics with so many labels.
    pub fn new(key: &ModelKey, labels: usize, hessians: bool) -> Self {
        let mut entries = Vec::new();
        let mut add = |name: String, dtype: Dtype, shape: &[usize]| {
            entries.push(Entry { name, dtype, shape: shape.iter().map(|&extent| extent as u64).collect() });
        };
        let experts = key.num_local_experts;
        let mut routed_before = false;
        for layer in 0..key.moe_layers.len() {
            if key.moe_layers[layer] {
                add(router_name(layer, "tokens"), Dtype::U64, &[labels, experts]);
                add(router_name(layer, "score_sum"), Dtype::F64, &[labels, experts]);
                add(router_name(layer, "score_histogram"), Dtype::U64, &[experts, SCORE_BINS]);
                if routed_before {
                    add(router_name(layer, "transitions"), Dtype::U64, &[experts, experts]);
                }
                routed_before = true;
            }
            for &place in places(key, layer) {
                let width = width(key, place);
                let shape = if module(place).1 { vec![experts, width] } else { vec![width] };
                add(place_name(layer, place, "in_sum2"), Dtype::F64, &shape);
            }
        }
        for (what, wanted) in [("in_amax", true), ("in_hessian", hessians)] {
            for layer in (0..key.moe_layers.len()).filter(|_| wanted) {
                for &place in places(key, layer) {
                    let mut shape = if module(place).1 { vec![experts] } else { Vec::new() };
                    if what == "in_hessian" {
                        shape.extend([width(key, place); 2]);
                    }
                    add(place_name(layer, place, what), Dtype::F32, &shape);
                }
            }
        }
        let by_name = entries.iter().enumerate().map(|(index, entry)| (entry.name.clone(), index)).collect();
        Self { entries, by_name }
    }

    /// The position of a tensor in [`Layout::entries`].
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_hold_the_logits_of_their_scores() {
        for (logit, bin) in
            [(-99.0, 0), (-16.0, 0), (-15.9, 0), (-15.875, 1), (0.0, 128), (0.1249, 128), (15.99, 255), (99.0, 255)]
        {
            assert_eq!(score_bin(logit), bin, "{logit}");
        }
        assert_eq!(score_bin(f32::NAN), 0);
        assert!((score_at(128.0) - 0.5).abs() < 1e-15);
        // 1 / (1 + e^-1), by hand.
        assert!((score_at(136.0) - 0.731_058_578_63).abs() < 1e-11);
    }
}
