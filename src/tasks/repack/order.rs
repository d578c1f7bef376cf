//! The order of experts: what the source's own record says of it, what the user asks for, and the record of the output.
//!
//! A checkpoint whose experts were moved has `expert_placement.json` beside its weights. Whatever is made of it starts from the model's
//! own order again, so that an order never has to be undone by hand.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Options;
use super::layout::Orders;
use super::loads::{self, Loads};
use super::placement::{Redundant, balanced, imbalance, loads_of_ranks, redundant};
use crate::error::hint;
use crate::llama4::Llama4;
use crate::output::companions::{self, Companion};

/// The record of an order, beside the weights.
pub const PLACEMENT_NAME: &str = "expert_placement.json";

/// Value of [`Placement::schema`].
const SCHEMA: &str = "l4tool.expert-placement/1";

/// The largest record that is read.
const BYTES_MAX: u64 = 64 << 20;

/// How experts are spread over ranks, for every layer that has experts.
#[derive(Clone, Debug, Serialize)]
pub struct Placement {
    /// `l4tool.expert-placement/1`.
    pub schema: &'static str,
    /// Ranks of expert parallelism.
    pub ranks: usize,
    /// Routed experts of each layer.
    pub experts: usize,
    /// More copies of experts that the plan has places for, in each layer.
    pub redundant_experts: usize,
    /// Layers in order.
    pub layers: Vec<LayerPlacement>,
}

/// One layer's experts.
#[derive(Clone, Debug, Serialize)]
pub struct LayerPlacement {
    /// The layer.
    pub layer: usize,
    /// `order[i]` is the model's own number of the expert that the output calls `i`.
    pub order: Vec<usize>,
    /// Largest load of a rank over the mean, with experts in the model's own order.
    pub imbalance_before: f64,
    /// The same in the output's order.
    pub imbalance_after: f64,
    /// Where copies of busy experts would go. A checkpoint holds each expert once: an engine makes the copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redundant: Option<Redundant>,
}

#[derive(Deserialize)]
struct Record {
    schema: String,
    layers: Vec<RecordedLayer>,
}

#[derive(Deserialize)]
struct RecordedLayer {
    layer: usize,
    order: Vec<usize>,
}

/// For every layer with experts, where the source keeps the model's own expert `i`.
pub(super) fn of_source(model: &Llama4) -> Result<Orders> {
    let text = &model.config.text;
    let experts = text.num_local_experts;
    let mut places: Orders = (0..text.num_hidden_layers)
        .filter(|&layer| text.moe_layers[layer])
        .map(|layer| (layer, (0..experts).collect()))
        .collect();
    let Some(bytes) = model.checkpoint.side_file(PLACEMENT_NAME, BYTES_MAX)? else { return Ok(places) };
    let file = model.checkpoint.folder().join(PLACEMENT_NAME);
    let record: Record = serde_json::from_slice(&bytes).with_context(|| format!("reading `{}`", file.display()))?;
    let wrong = |what: String| {
        let message = format!("`{}` does not belong to these weights: {what}", file.display());
        Err(hint(message, "restore the file that was made with the weights; without it nobody knows their order"))
    };
    if record.schema != SCHEMA {
        return wrong(format!("its schema is `{}`, not `{SCHEMA}`", record.schema));
    }
    let mut left: BTreeSet<usize> = places.keys().copied().collect();
    for RecordedLayer { layer, order } in record.layers {
        let sorted: BTreeSet<usize> = order.iter().copied().collect();
        if !left.remove(&layer) || order.len() != experts || !sorted.into_iter().eq(0..experts) {
            return wrong(format!("the order of layer {layer} is none of {experts} experts"));
        }
        let place = places.get_mut(&layer).expect("a layer that was left has a place");
        for (position, expert) in order.into_iter().enumerate() {
            place[expert] = position;
        }
    }
    match left.first() {
        Some(layer) => wrong(format!("it says nothing about layer {layer}")),
        None => Ok(places),
    }
}

/// The order that `options` ask for, by the model's own numbers; with its record if it is another than the model's own.
pub(super) fn asked_for(options: &Options, model: &Llama4, source: &Orders, ranks: usize) -> Result<Option<Placement>> {
    let Some(path) = &options.statistics else { return Ok(None) };
    let loads = loads::read(path, model, source)?;
    let experts = model.config.text.num_local_experts;
    let extra = options.redundant_experts;
    if extra > 0 && !(experts + extra).is_multiple_of(ranks) {
        let fitting = (experts + extra).next_multiple_of(ranks) - experts;
        return Err(hint(
            format!("{experts} experts and {extra} copies cannot be shared out evenly among {ranks} ranks"),
            format!("use `--redundant-experts {fitting}`"),
        ));
    }
    let layers = place(&loads, ranks, extra);
    Ok(Some(Placement { schema: SCHEMA, ranks, experts, redundant_experts: extra, layers }))
}

fn place(loads: &Loads, ranks: usize, extra: usize) -> Vec<LayerPlacement> {
    let layer = |(&layer, loads): (&usize, &Vec<u64>)| {
        let own: Vec<usize> = (0..loads.len()).collect();
        let order = balanced(loads, ranks);
        let of = |order: &[usize]| imbalance(&loads_of_ranks(loads, order, ranks));
        LayerPlacement {
            layer,
            imbalance_before: of(&own),
            imbalance_after: of(&order),
            redundant: (extra > 0).then(|| redundant(loads, ranks, extra)),
            order,
        }
    };
    loads.iter().map(layer).collect()
}

/// For every layer, which expert of the source stands at each position of the output.
pub(super) fn compose(source: Orders, asked: Option<&Placement>) -> Orders {
    let mut orders = source;
    for LayerPlacement { layer, order, .. } in asked.into_iter().flat_map(|placement| &placement.layers) {
        let places = orders.get_mut(layer).expect("the loads were held against the model");
        *places = order.iter().map(|&expert| places[expert]).collect();
    }
    orders
}

/// The record as a file.
pub(super) fn companion(placement: &Placement) -> Companion {
    companions::pretty(PLACEMENT_NAME, &serde_json::to_value(placement).expect("a placement is plain data"))
}
