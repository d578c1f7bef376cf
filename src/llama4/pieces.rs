//! Weights that lie in pieces: side by side in the files of several ranks, or as FP8 codes inside a fused tensor.
//!
//! What they have in common is that no engine reads them so. They are described here for whoever puts them together.

use super::view::TensorId;
use crate::kernels::Float;
use crate::quant::Layout;

/// Along which dimension pieces lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Each piece has some of the outputs.
    Outs,
    /// Each piece has some of the inputs.
    Ins,
}

/// What one stored element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elements {
    /// A float.
    Float(Float),
    /// An E4M3 code, to be multiplied by a scale.
    Fp8,
}

impl Elements {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::Float(float) => float.bytes(),
            Self::Fp8 => 1,
        }
    }
}

/// The scales of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scales {
    /// Tensor that holds them.
    pub tensor: TensorId,
    /// Their format.
    pub float: Float,
    /// Bytes from the tensor's start to the first.
    pub offset: u64,
    /// One for each output of the piece; otherwise one for all.
    pub per_output: bool,
}

/// A part of a matrix inside a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Tensor that holds it.
    pub tensor: TensorId,
    /// Format of the elements.
    pub elements: Elements,
    /// Which way it lies.
    pub layout: Layout,
    /// Bytes from the tensor's start to element (0, 0).
    pub offset: u64,
    /// Elements between the starts of consecutive stored rows.
    pub stride: usize,
    /// Scales of codes.
    pub scales: Option<Scales>,
}

/// All pieces of a matrix: of equal size, in order, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// How they lie.
    pub axis: Axis,
    /// The pieces.
    pub pieces: Vec<Piece>,
}

impl Pieces {
    /// Whether the numbers are quantized.
    pub fn is_quantized(&self) -> bool {
        self.pieces.iter().any(|piece| piece.elements == Elements::Fp8)
    }
}
