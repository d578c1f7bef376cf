//! AWQ's factors in a feed-forward network: which networks get some, and what they are.
//!
//! `down`'s inputs are multiplied with them and `up`'s outputs divided, so that the network computes the same. It knows which
//! weights belong together; the numbers are `quant::awq`'s.

use std::collections::HashSet;

use anyhow::Result;

use crate::calibration::{Place, Site};
use crate::kernels::Float;
use crate::llama4::{Llama4, Role, Values, Weight, block_rows};
use crate::model::forward::{DENSE, EXPERT, SHARED};
use crate::model::ops::silu_mul;
use crate::model::weights;
use crate::output::modules::Target;
use crate::output::work::BadWeight;
use crate::quant::scheme::Scheme;
use crate::quant::{Block, Layout, Method, NonFinite, awq};

/// Outputs of `down` that factors are chosen by; there is more to choose from in a row than from row to row.
const SAMPLE: usize = 512;

/// Gate, up and down of the network that a site belongs to.
pub(super) fn roles(site: Site) -> Option<[Role; 3]> {
    match site.place {
        Place::ExpertGateUp(_) | Place::ExpertDown(_) => Some(EXPERT),
        Place::SharedGateUp | Place::SharedDown => Some(SHARED),
        Place::DenseGateUp | Place::DenseDown => Some(DENSE),
        Place::AttentionInput | Place::AttentionOutput => None,
    }
}

/// Whether `up` and `down` of a network are to be quantized so that factors between them have an effect.
pub(super) fn apply(up: Option<Target>, down: Option<Target>) -> bool {
    let asked = |target: Option<Target>| target.is_some_and(|target| target.method == Method::Awq);
    asked(up) && asked(down)
}

/// Says that there are weights with the method for which there are no factors.
pub(super) fn warning(model: &Llama4, targets: &[Option<Target>]) -> Option<String> {
    let asks = |target: &Option<Target>| target.is_some_and(|target| target.method == Method::Awq);
    let asking = || model.weights.iter().zip(targets).filter(|(_, target)| asks(target)).map(|(weight, _)| weight);
    let there: HashSet<_> = asking().map(|weight| (weight.role, weight.layer, weight.expert)).collect();
    let alone = |weight: &&Weight| {
        let network = [EXPERT, SHARED, DENSE].into_iter().find(|roles| roles.contains(&weight.role));
        network.is_none_or(|[_, up, down]| {
            [up, down].iter().any(|&role| !there.contains(&(role, weight.layer, weight.expert)))
        })
    };
    let first = asking().find(alone)?;
    Some(format!(
        "{} weights with the method awq get no factors, such as `{}`: these lie between `up_proj` and `down_proj`, where both have the method; scales are searched",
        asking().filter(alone).count(),
        first.name
    ))
}

/// `silu(gate x) * (up x)` for rows `x`, with the weights as the source has them.
pub(super) fn inner(model: &Llama4, gate: &Weight, up: &Weight, x: &[f32]) -> Vec<f32> {
    let mut inner = weights::apply(model, gate, x);
    silu_mul(&mut inner, &weights::apply(model, up, x));
    inner
}

/// The factors for the inputs of `down`, given the mean magnitude and the mean square of each; none if none is better than
/// no factors. In the current rayon pool.
///
/// # Errors
/// [`BadWeight`]: a weight is not finite.
pub(super) fn choose(
    model: &Llama4,
    down: &Weight,
    scheme: Scheme,
    (magnitudes, squares): &(Vec<f32>, Vec<f32>),
) -> Result<Option<Vec<f32>>> {
    let Scheme::W4A16 { group_size, symmetric } = scheme else { return Ok(None) };
    let (out, input) = down.matrix();
    let sampled: Vec<usize> = (0..out.min(SAMPLE)).map(|index| index * out / out.min(SAMPLE)).collect();
    let mut rows = vec![0.0f32; sampled.len() * input];
    let mut values = Values::new(model, down);
    for first in (0..out).step_by(block_rows(input)) {
        let block = first..(first + block_rows(input)).min(out);
        values.enter(block.clone());
        for (row, &at) in rows.chunks_exact_mut(input).zip(&sampled).filter(|(_, at)| block.contains(at)) {
            values.read(&(at..at + 1), row);
        }
        values.release(&block);
    }
    let shape = (sampled.len(), input);
    let block = Block::new(bytemuck::cast_slice(&rows), Float::F32, Layout::OutIn, input, shape);
    let bad = |place: NonFinite| BadWeight::new(&down.name, NonFinite { out: sampled[place.out], ..place }.to_string());
    let found = awq::search(&block, magnitudes, squares, (group_size, symmetric)).map_err(bad)?;
    Ok((found.error < found.error_plain).then_some(found.factors))
}
