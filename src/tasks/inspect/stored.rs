//! What a weight takes in its files, and what to call the way it is stored.

use crate::kernels::Float;
use crate::llama4::{Coding, Elements, Llama4, TensorId, Weight};

/// Bytes of a weight, with its scales and all that belongs to them; of a fused tensor, its own share.
pub(super) fn stored_bytes(model: &Llama4, weight: &Weight) -> u64 {
    match weight.coding {
        Coding::Plain(plane) => weight.numel() * plane.float.bytes() as u64,
        Coding::Int4 { .. } | Coding::Fp8 { .. } => {
            parts(model, weight).map(|tensor| model.checkpoint.tensors()[tensor].bytes).sum()
        }
        Coding::Pieces(pieces) => {
            let pieces = &model.pieces[pieces].pieces;
            let share = weight.numel() / pieces.len() as u64;
            pieces.iter().map(|piece| share * piece.elements.bytes() as u64).sum()
        }
    }
}

/// The tensors that a weight is stored in.
pub(super) fn parts(model: &Llama4, weight: &Weight) -> impl Iterator<Item = TensorId> {
    let parts = match weight.coding {
        Coding::Plain(plane) => [Some(plane.tensor), None, None, None],
        Coding::Pieces(pieces) => {
            return model.pieces[pieces].pieces.iter().map(|p| p.tensor).collect::<Vec<_>>().into_iter();
        }
        Coding::Int4 { packed, scale, zero_point, shape, .. } => [Some(packed), Some(scale), zero_point, Some(shape)],
        Coding::Fp8 { weight, scale, input_scale, .. } => [Some(weight), Some(scale), input_scale, None],
    };
    parts.into_iter().flatten().collect::<Vec<_>>().into_iter()
}

/// The scheme of a quantized weight; otherwise `bf16`, `f16` or `f32`.
pub(super) fn label(model: &Llama4, weight: &Weight) -> String {
    let name = |float: Float| match float {
        Float::BF16 => "bf16".to_owned(),
        Float::F16 => "f16".to_owned(),
        Float::F32 => "f32".to_owned(),
    };
    match weight.coding {
        Coding::Plain(plane) => name(plane.float),
        Coding::Pieces(pieces) => match model.pieces[pieces].pieces[0].elements {
            Elements::Float(float) => name(float),
            Elements::Fp8 => "fp8".into(),
        },
        _ => weight.coding.scheme().map_or_else(String::new, |scheme| scheme.to_string()),
    }
}
