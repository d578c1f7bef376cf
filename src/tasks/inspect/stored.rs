//! What a weight takes in its files, and what to call the way it is stored.

use crate::kernels::Float;
use crate::llama4::{Coding, Llama4, TensorId, Weight};

/// Bytes of a weight, with its scales and all that belongs to them; of a fused tensor, its own share.
pub(super) fn stored_bytes(model: &Llama4, weight: &Weight) -> u64 {
    match weight.coding {
        Coding::Plain(plane) => weight.numel() * plane.float.bytes() as u64,
        Coding::Int4 { .. } | Coding::Fp8 { .. } => {
            parts(weight).map(|tensor| model.checkpoint.tensors()[tensor].bytes).sum()
        }
    }
}

/// The tensors that a weight is stored in.
pub(super) fn parts(weight: &Weight) -> impl Iterator<Item = TensorId> {
    let parts = match weight.coding {
        Coding::Plain(plane) => [Some(plane.tensor), None, None, None],
        Coding::Int4 { packed, scale, zero_point, shape, .. } => [Some(packed), Some(scale), zero_point, Some(shape)],
        Coding::Fp8 { weight, scale, input_scale, .. } => [Some(weight), Some(scale), input_scale, None],
    };
    parts.into_iter().flatten()
}

/// The scheme of a quantized weight; otherwise `bf16`, `f16` or `f32`.
pub(super) fn label(weight: &Weight) -> String {
    match weight.coding {
        Coding::Plain(plane) => match plane.float {
            Float::BF16 => "bf16".into(),
            Float::F16 => "f16".into(),
            Float::F32 => "f32".into(),
        },
        _ => weight.coding.scheme().map_or_else(String::new, |scheme| scheme.to_string()),
    }
}
