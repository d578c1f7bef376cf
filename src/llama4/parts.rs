//! What a weight takes in its files: which tensors, how many bytes, and what to call the way it is stored.

use super::pieces::Elements;
use super::view::{Coding, Llama4, TensorId, Weight};
use crate::kernels::Float;

impl Coding {
    /// The tensors of a weight that is stored as one: codes or numbers first. None for what lies in pieces or parts.
    pub fn tensors(&self) -> impl Iterator<Item = TensorId> + use<> {
        let parts = match *self {
            Self::Plain(plane) => [Some(plane.tensor), None, None, None],
            Self::Int4 { packed, scale, zero_point, shape, .. } => [Some(packed), Some(scale), zero_point, Some(shape)],
            Self::Fp8 { weight, scale, input_scale, .. } => [Some(weight), Some(scale), input_scale, None],
            Self::Blocks { tensor, .. } => [Some(tensor), None, None, None],
            Self::Pieces(_) | Self::Split { .. } => [None; 4],
        };
        parts.into_iter().flatten()
    }
}

impl Llama4 {
    /// The tensors that a weight is stored in.
    pub fn tensors_of(&self, weight: &Weight) -> Vec<TensorId> {
        match weight.coding {
            Coding::Pieces(pieces) => self.pieces[pieces].pieces.iter().map(|piece| piece.tensor).collect(),
            Coding::Split { .. } => self.shards_of(weight).iter().flat_map(Coding::tensors).collect(),
            coding => coding.tensors().collect(),
        }
    }

    /// The scheme of a quantized weight; otherwise `bf16`, `f16` or `f32`, and `fp8` for codes that are fused.
    pub fn label(&self, weight: &Weight) -> String {
        let name = |float: Float| match float {
            Float::BF16 => "bf16".to_owned(),
            Float::F16 => "f16".to_owned(),
            Float::F32 => "f32".to_owned(),
        };
        match weight.coding {
            Coding::Plain(plane) => name(plane.float),
            Coding::Split { float: Some(float), .. } => name(float),
            Coding::Pieces(pieces) => match self.pieces[pieces].pieces[0].elements {
                Elements::Float(float) => name(float),
                Elements::Fp8 => "fp8".into(),
            },
            _ => weight.coding.scheme().map_or_else(String::new, |scheme| scheme.to_string()),
        }
    }

    /// Bytes of a weight, with its scales and all that belongs to them; of a fused tensor, its own share.
    pub fn stored_bytes(&self, weight: &Weight) -> u64 {
        match weight.coding {
            Coding::Plain(plane) => weight.numel() * plane.float.bytes() as u64,
            Coding::Split { float: Some(float), .. } => weight.numel() * float.bytes() as u64,
            // Rows are whole blocks.
            Coding::Blocks { dtype, .. } => weight.numel() / dtype.block_len() * dtype.block_bits() / 8,
            Coding::Pieces(pieces) => {
                let pieces = &self.pieces[pieces].pieces;
                let share = weight.numel() / pieces.len() as u64;
                pieces.iter().map(|piece| share * piece.elements.bytes() as u64).sum()
            }
            _ => self.tensors_of(weight).into_iter().map(|tensor| self.checkpoint.tensors()[tensor].bytes).sum(),
        }
    }
}
