//! Every tensor as one line: what the container says of it, and what it means.

use std::collections::HashMap;

use serde::Serialize;

use crate::dtype::Dtype;
use crate::llama4::names::{Part, Prefixes};
use crate::llama4::{Dialect, Expected, Llama4};

/// A tensor, where it is, and which part of the model it belongs to.
#[derive(Clone, Debug, Serialize)]
pub struct TensorLine {
    /// Physical name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents as stored, outermost first.
    pub shape: Vec<u64>,
    /// Name of its file.
    pub file: String,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// The part of the model, a key of `parameters.by_role`; none if it is no part of it.
    pub role: Option<&'static str>,
    /// Decoder layer.
    pub layer: Option<usize>,
    /// Routed expert; none for a fused tensor, which holds all experts of its layer.
    pub expert: Option<usize>,
    /// The logical weight; for a fused tensor, `layers.N.feed_forward.experts`.
    pub module: Option<String>,
    /// What of the module it is: `weight`, `weight_scale`, ...; `gate_up_proj` or `down_proj` for a fused tensor.
    pub part: Option<&'static str>,
    /// How many logical weights it holds a part of: two per expert in a fused `gate_up_proj`.
    pub weights: u64,
}

/// Every tensor, by file and position in it.
pub(super) fn lines(model: &Llama4, promised: &[Expected]) -> Vec<TensorLine> {
    let tensors = model.checkpoint.tensors();
    let mut weights = vec![0; tensors.len()];
    for tensor in model.weights.iter().flat_map(|weight| model.tensors_of(weight)) {
        weights[tensor] += 1;
    }
    // By the promise, not by what was found: a tensor of the wrong shape still has a place in the model.
    let places: HashMap<&str, &Expected> = promised.iter().map(|weight| (weight.name.as_str(), weight)).collect();
    let prefixes = Prefixes::of(model.config.model);
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&id| (tensors[id].file, tensors[id].offset));
    let line = |id: usize| TensorLine { weights: weights[id], ..line(model, id, prefixes, &places) };
    order.into_iter().map(line).collect()
}

fn line(model: &Llama4, id: usize, prefixes: Prefixes, places: &HashMap<&str, &Expected>) -> TensorLine {
    let tensor = &model.checkpoint.tensors()[id];
    let mut line = TensorLine {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        file: model.checkpoint.files()[tensor.file].name.clone(),
        offset: tensor.offset,
        bytes: tensor.bytes,
        role: None,
        layer: None,
        expert: None,
        module: None,
        part: None,
        weights: 0,
    };
    if model.dialect != Dialect::HuggingFace {
        let weight = model.owner[id].map(|index| &model.weights[index]);
        line.role = weight.map(|weight| weight.role.component());
        line.layer = weight.and_then(|weight| weight.layer);
        return line;
    }
    let Some((module, part)) = prefixes.split(&tensor.name) else {
        return line;
    };
    let fused = matches!(part, Part::FusedGateUp | Part::FusedDown);
    let first = if fused { format!("{module}.0.down_proj") } else { module.to_owned() };
    let Some(place) = places.get(first.as_str()) else {
        return line;
    };
    line.role = Some(place.role.component());
    line.layer = place.layer;
    line.expert = place.expert.filter(|_| !fused);
    line.module = Some(module.to_owned());
    line.part = Some(match part {
        Part::FusedGateUp => "gate_up_proj",
        Part::FusedDown => "down_proj",
        other => other.suffix().trim_start_matches('.'),
    });
    line
}
