//! How many tokens each expert got: what a placement is made from.
//!
//! Either what `calibrate` wrote, which knows its model, or a JSON document, `{"schema": "l4tool.expert-loads/1", "layers": [{"layer": 1, "tokens": [17, 4, ...]}, ...]}`: one number
//! for each expert, one entry for each layer with experts. Knows no model but the one that the numbers are held against.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::layout::Orders;
use crate::calibration::statistics::Statistics;
use crate::error::hint;
use crate::files;
use crate::llama4::Llama4;
use crate::llama4::config::TextConfig;

/// The schema of the document.
const SCHEMA: &str = "l4tool.expert-loads/1";

/// The largest document that is read: Maverick's has 40 kB.
const BYTES_MAX: u64 = 64 << 20;

/// Tokens that each expert got, by layer.
pub(super) type Loads = BTreeMap<usize, Vec<u64>>;

#[derive(Deserialize)]
struct Document {
    schema: String,
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    layer: usize,
    tokens: Vec<u64>,
}

/// Reads the loads from a file, by the model's own numbers of experts; `places` says where `model` has them.
///
/// # Errors
/// The file cannot be read, is neither of the two, or is of another model.
pub(super) fn read(path: &Path, model: &Llama4, places: &Orders) -> Result<Loads> {
    let loads = if Statistics::is_one(path) {
        let statistics = Statistics::open(path)?;
        // By the routers, rows in order: these are the numbers that experts have in this very checkpoint.
        statistics.check_model(model)?;
        let own = |(layer, tokens): (usize, Vec<u64>)| {
            let places = places.get(&layer)?;
            Some((layer, places.iter().map(|&place| tokens[place]).collect()))
        };
        statistics.loads().into_iter().filter_map(own).collect()
    } else {
        document(path)?
    };
    check(&loads, &model.config.text)?;
    Ok(loads)
}

fn document(path: &Path) -> Result<Loads> {
    let context = || format!("reading the statistics `{}`", path.display());
    let (file, bytes) = files::open_regular(path).with_context(context)?;
    if bytes > BYTES_MAX {
        let message = format!("the statistics `{}` have {bytes} bytes; the most is {BYTES_MAX}", path.display());
        return Err(hint(message, "name the file that holds the numbers of tokens"));
    }
    let mut text = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut text).with_context(context)?;
    let document: Document = serde_json::from_slice(&text).with_context(context)?;
    if document.schema != SCHEMA {
        let message = format!("`{}` has the schema `{}`, not `{SCHEMA}`", path.display(), document.schema);
        return Err(hint(message, "docs/repack.md shows what the file looks like"));
    }
    let mut loads = Loads::new();
    for Layer { layer, tokens } in document.layers {
        if loads.insert(layer, tokens).is_some() {
            return Err(hint(format!("`{}` has layer {layer} twice", path.display()), "write every layer once"));
        }
    }
    Ok(loads)
}

/// Refuses loads that are not this model's: other layers with experts, or another number of experts.
///
/// # Errors
/// Names the first layer that does not fit.
fn check(loads: &Loads, text: &TextConfig) -> Result<()> {
    let wrong = |what: String| Err(hint(what, "make the statistics with this model, or with one of its dimensions"));
    let experts = text.num_local_experts;
    for layer in (0..text.num_hidden_layers).filter(|&layer| text.moe_layers[layer]) {
        match loads.get(&layer) {
            Some(tokens) if tokens.len() == experts => {}
            Some(tokens) => {
                let found = tokens.len();
                return wrong(format!(
                    "the statistics are of another model: layer {layer} has {found} experts there, {experts} here"
                ));
            }
            None => return wrong(format!("the statistics are of another model: they have nothing on layer {layer}")),
        }
    }
    let is_ours = |layer: usize| text.moe_layers.get(layer).copied().unwrap_or(false);
    match loads.keys().find(|&&layer| !is_ours(layer)) {
        Some(layer) => wrong(format!("the statistics are of another model: layer {layer} has no experts here")),
        None => Ok(()),
    }
}
