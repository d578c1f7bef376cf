//! What a weight takes in its files: which tensors, how many bytes, and what to call the way it is stored.

use super::view::{Coding, Llama4, TensorId, Weight};
use crate::kernels::Float;

impl Coding {
    /// The tensors that a weight is stored in: codes or numbers first.
    pub fn tensors(&self) -> impl Iterator<Item = TensorId> + use<> {
        let parts = match *self {
            Self::Plain(plane) => [Some(plane.tensor), None, None, None],
            Self::Int4 { packed, scale, zero_point, shape, .. } => {
                [Some(packed), Some(scale), zero_point, Some(shape)]
            }
            Self::Fp8 { weight, scale, input_scale, .. } => [Some(weight), Some(scale), input_scale, None],
        };
        parts.into_iter().flatten()
    }
}

impl Weight {
    /// The scheme of a quantized weight; otherwise `bf16`, `f16` or `f32`.
    pub fn label(&self) -> String {
        match self.coding {
            Coding::Plain(plane) => match plane.float {
                Float::BF16 => "bf16".into(),
                Float::F16 => "f16".into(),
                Float::F32 => "f32".into(),
            },
            _ => self.coding.scheme().map_or_else(String::new, |scheme| scheme.to_string()),
        }
    }
}

impl Llama4 {
    /// Bytes of a weight, with its scales and all that belongs to them; of a fused tensor, its own share.
    pub fn stored_bytes(&self, weight: &Weight) -> u64 {
        match weight.coding {
            Coding::Plain(plane) => weight.numel() * plane.float.bytes() as u64,
            Coding::Int4 { .. } | Coding::Fp8 { .. } => {
                weight.coding.tensors().map(|tensor| self.checkpoint.tensors()[tensor].bytes).sum()
            }
        }
    }
}
