//! Meta's own checkpoints: one file for each rank, names and layouts of its training code, config in `params.json`.
//!
//! Every rank has a piece of a matrix, or all of it. What is found here is which pieces make up which logical weight; nothing
//! is read. Also `fp8_mixed`, as Meta's `scripts/quantize.py` writes it: experts in FP8 with a scale per output and rank.

mod names;
mod ranks;

use std::collections::HashMap;

use super::config::Config;
use super::expected::{Expected, expected};
use super::pieces::{Axis, Elements, Piece, Pieces, Scales};
use super::view::{Coding, Dialect, Llama4, Plane, Problem, ProblemKind, TensorId, Weight, unexpected};
use crate::checkpoint::{Checkpoint, rank_of, shown};
use crate::dtype::Dtype;
use crate::kernels::Float;
use crate::quant::Layout;
use names::{Place, Split, Take, is_ignored, places, scale_keys};

pub(super) use ranks::require_all_ranks;

/// The tensors of one key, by rank.
type Ranks = HashMap<usize, TensorId>;

/// The catalogue by key and rank.
struct Catalogue<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    ranks: usize,
    weights: HashMap<&'a str, Ranks>,
    scales: HashMap<&'a str, Ranks>,
}

/// Says of every logical weight which pieces it is made of.
pub(super) fn assign(checkpoint: Checkpoint, config: Config) -> Llama4 {
    let mut problems = Vec::new();
    let mut owner = vec![None; checkpoint.tensors().len()];
    let (mut weights, mut pieces) = (Vec::new(), Vec::new());
    problems.extend(ranks::one_of_several(&checkpoint, &config));
    {
        let catalogue = Catalogue::new(&checkpoint, &config, &mut problems);
        for wanted in expected(&config) {
            match catalogue.find(&wanted) {
                Ok((found, ids)) => {
                    for id in ids {
                        owner[id] = owner[id].or(Some(weights.len()));
                    }
                    let Expected { name, role, layer, expert, shape } = wanted;
                    let coding = match found.as_plane() {
                        Some(plane) => Coding::Plain(plane),
                        None => {
                            pieces.push(found);
                            Coding::Pieces(pieces.len() - 1)
                        }
                    };
                    weights.push(Weight { name, role, layer, expert, shape, coding });
                }
                Err((problem, ids)) => {
                    // They are accounted for by this problem; they are not unexpected on top of it.
                    for id in ids {
                        owner[id] = owner[id].or(Some(usize::MAX));
                    }
                    problems.push(problem);
                }
            }
        }
        for (id, tensor) in checkpoint.tensors().iter().enumerate() {
            if owner[id].is_none() && !is_ignored(key_of(&checkpoint, id)) {
                problems.push(unexpected(tensor));
            }
        }
    }
    for slot in &mut owner {
        *slot = slot.filter(|&index| index != usize::MAX);
    }
    Llama4::assemble(checkpoint, config, Dialect::Meta, weights, pieces, problems, owner)
}

/// A tensor's name without the file's.
fn key_of(checkpoint: &Checkpoint, id: TensorId) -> &str {
    let tensor = &checkpoint.tensors()[id];
    let file = checkpoint.files()[tensor.file].name.as_str();
    let key = tensor.name.strip_prefix(file).and_then(|rest| rest.strip_prefix(':'));
    key.unwrap_or(&tensor.name)
}

/// Where a weight was looked for and what is wrong there, with the tensors that this accounts for.
type Fault = (Problem, Vec<TensorId>);

impl<'a> Catalogue<'a> {
    fn new(checkpoint: &'a Checkpoint, config: &'a Config, problems: &mut Vec<Problem>) -> Self {
        let mut weights: HashMap<&str, Ranks> = HashMap::new();
        let mut scales: HashMap<&str, Ranks> = HashMap::new();
        let mut ranks = 1;
        let mut int4 = None;
        for (id, tensor) in checkpoint.tensors().iter().enumerate() {
            let (stem, rank) = rank_of(&checkpoint.files()[tensor.file].name).unwrap_or(("consolidated", 0));
            let key = key_of(checkpoint, id);
            match stem {
                "consolidated" => {
                    ranks = ranks.max(rank + 1);
                    weights.entry(key).or_default().insert(rank, id);
                }
                "fp8_scales" => {
                    scales.entry(key).or_default().insert(rank, id);
                }
                _ => int4 = Some(tensor.name.clone()),
            }
        }
        problems.extend(int4.map(|name| Problem {
            kind: ProblemKind::Mismatch,
            name,
            message: "belongs to Meta's `int4_mixed`, which is not supported".into(),
        }));
        Self { checkpoint, config, ranks, weights, scales }
    }

    fn find(&self, wanted: &Expected) -> Result<(Pieces, Vec<TensorId>), Fault> {
        let places = places(wanted);
        for place in &places {
            if let Some(found) = self.weights.get(place.key.as_str()) {
                let mut ids: Vec<TensorId> = found.values().copied().collect();
                ids.sort_unstable();
                return match self.join(wanted, place, found, &mut ids) {
                    Ok(pieces) => Ok((pieces, ids)),
                    Err(message) => {
                        Err((Problem { kind: ProblemKind::Mismatch, name: wanted.name.clone(), message }, ids))
                    }
                };
            }
        }
        let message = format!("is missing (shape {:?})", wanted.shape);
        Err((Problem { kind: ProblemKind::Missing, name: wanted.name.clone(), message }, Vec::new()))
    }

    /// The pieces of all ranks, in the order in which they lie side by side.
    fn join(&self, wanted: &Expected, place: &Place, found: &Ranks, ids: &mut Vec<TensorId>) -> Result<Pieces, String> {
        let (out, input) = match *wanted.shape.as_slice() {
            [out, input] => (out, input),
            _ => (1, wanted.shape.iter().product()),
        };
        let is_vector = wanted.shape.len() == 1;
        let axis = if place.split == Split::Outs && !is_vector { Axis::Outs } else { Axis::Ins };
        let members = self.members(wanted, place);
        let count = members.len();
        let whole = if axis == Axis::Outs { out } else { input };
        if !whole.is_multiple_of(count) {
            return Err(format!("has {whole} rows or columns, which do not divide among {count} ranks"));
        }
        let piece = match axis {
            Axis::Outs => (out / count, input),
            Axis::Ins => (out, input / count),
        };
        let mut pieces = Vec::with_capacity(count);
        for rank in members {
            let Some(&id) = found.get(&rank) else {
                return Err(format!("is missing in rank {rank} (`{}`)", place.key));
            };
            pieces.push(self.piece(wanted, place, (rank, id), piece, ids)?);
        }
        Ok(Pieces { axis, pieces })
    }

    /// The ranks whose pieces make up the weight. With more ranks than key heads, several ranks have the same head.
    fn members(&self, wanted: &Expected, place: &Place) -> Vec<usize> {
        if place.split == Split::Replicated {
            return vec![0];
        }
        let heads = self.config.text.num_key_value_heads;
        let is_key = matches!(wanted.role, crate::llama4::Role::Key | crate::llama4::Role::Value);
        let step = if is_key && self.ranks > heads { self.ranks / heads } else { 1 };
        (0..self.ranks).step_by(step.max(1)).collect()
    }

    /// One rank's piece of `(out, in)`.
    fn piece(
        &self,
        wanted: &Expected,
        place: &Place,
        (rank, id): (usize, TensorId),
        (out, input): (usize, usize),
        ids: &mut Vec<TensorId>,
    ) -> Result<Piece, String> {
        let tensor = &self.checkpoint.tensors()[id];
        let text = &self.config.text;
        let experts = text.num_local_experts;
        let (layout, rows, columns, first) = match place.take {
            Take::Whole => (Layout::OutIn, out, input, 0),
            Take::Transposed => (Layout::InOut, input, out, 0),
            Take::Half(half) => (Layout::OutIn, 2 * out, input, half * out),
            Take::Attention(part) => {
                let query = text.num_attention_heads * text.head_dim / self.ranks;
                let key = text.num_key_value_heads.div_ceil(self.ranks) * text.head_dim;
                (Layout::OutIn, query + 2 * key, input, [0, query, query + key][part])
            }
            Take::Expert => (Layout::InOut, experts * input, out, wanted.expert.unwrap_or(0) * input),
        };
        let mut shape = vec![rows as u64, columns as u64];
        if wanted.shape.len() == 1 {
            shape.remove(0);
        }
        let in_three = [experts as u64, (rows / experts.max(1)) as u64, columns as u64];
        if tensor.shape != shape && !(place.take == Take::Expert && tensor.shape == in_three) {
            let name = shown(&tensor.name);
            let ranks = self.ranks;
            return Err(format!(
                "has the wrong shape: `{name}` is {:?}, and a rank of {ranks} should have {shape:?}",
                tensor.shape
            ));
        }
        let (elements, scales) = if tensor.dtype == Dtype::F8_E4M3 && place.take == Take::Expert {
            (Elements::Fp8, Some(self.scales(wanted, place, rank, out, ids)?))
        } else {
            let what = || format!("is {}, which is not a float", tensor.dtype);
            (Elements::Float(Float::of(tensor.dtype).ok_or_else(what)?), None)
        };
        let offset = first as u64 * columns as u64 * elements.bytes() as u64;
        Ok(Piece { tensor: id, elements, layout, offset, stride: columns, scales })
    }

    /// The FP8 scales of one expert in one rank, one for each output.
    fn scales(
        &self,
        wanted: &Expected,
        place: &Place,
        rank: usize,
        out: usize,
        ids: &mut Vec<TensorId>,
    ) -> Result<Scales, String> {
        let found =
            scale_keys(wanted, &place.key).iter().find_map(|key| self.scales.get(key.as_str())?.get(&rank).copied());
        let Some(id) = found else {
            return Err(format!("is FP8 in rank {rank}, and has no scales in `fp8_scales_{rank}.pt`"));
        };
        ids.push(id);
        let tensor = &self.checkpoint.tensors()[id];
        let shape = [self.config.text.num_local_experts as u64, out as u64];
        let float = Float::of(tensor.dtype).filter(|_| tensor.shape == shape);
        let Some(float) = float else {
            let name = shown(&tensor.name);
            return Err(format!("has scales `{name}` of {} {:?} instead of {shape:?}", tensor.dtype, tensor.shape));
        };
        let offset = wanted.expert.unwrap_or(0) as u64 * out as u64 * float.bytes() as u64;
        Ok(Scales { tensor: id, float, offset, per_output: true })
    }
}

impl Pieces {
    /// The plane, if one piece of plain floats is all there is.
    fn as_plane(&self) -> Option<Plane> {
        match *self.pieces.as_slice() {
            [Piece { tensor, elements: Elements::Float(float), layout, offset, stride, .. }] => {
                Some(Plane { tensor, float, layout, offset, stride })
            }
            _ => None,
        }
    }
}
