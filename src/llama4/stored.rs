//! Whether stored numbers can be what they claim: finite values, scales that are not zero, recorded shapes that are right.
//!
//! Judges bytes of tensors, a stripe at a time, so that whoever reads a file anyway can judge it in passing.

use super::names::{Part, Prefixes, without_rank};
use super::shards::part_shape;
use super::view::{Coding, Llama4, TensorId};
use crate::dtype::Dtype;
use crate::kernels::{self, Float};
use crate::quant::ggml;

/// What must hold for every element of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Nothing that a look at the numbers could show.
    Any,
    /// Floats that are neither NaN nor infinite.
    Finite(Float),
    /// Scales: finite and not zero.
    Scale(Float),
    /// E4M3 codes other than NaN.
    Fp8,
    /// Blocks of ggml whose numbers are finite.
    Blocks(Dtype),
    /// The logical shape of packed codes, as I64 or I32 numbers of this many bytes.
    Shape([u64; 2], usize),
}

impl Llama4 {
    /// What must hold for the elements of a tensor. Tensors that are no part of the model need hold nothing.
    pub fn expectation(&self, id: TensorId) -> Expectation {
        let info = &self.checkpoint.tensors()[id];
        let Some(weight) = self.owner[id].map(|index| &self.weights[index]) else { return Expectation::Any };
        let part = Prefixes::of(self.config.model).split(without_rank(&info.name)).map(|(_, part)| part);
        match (weight.coding, part, Float::of(info.dtype)) {
            (Coding::Blocks { dtype, .. }, ..) if ggml::decodes(dtype) => Expectation::Blocks(dtype),
            (Coding::Plain(_) | Coding::Split { scheme: None, .. }, _, Some(float)) => Expectation::Finite(float),
            (_, Some(Part::Scale | Part::InputScale), Some(float)) => Expectation::Scale(float),
            (Coding::Fp8 { .. } | Coding::Split { .. }, Some(Part::Weight), _) if info.dtype == Dtype::F8_E4M3 => {
                Expectation::Fp8
            }
            (_, Some(Part::Shape), _) => {
                let shape = match weight.coding {
                    Coding::Split { cut, count, .. } => part_shape(cut, &weight.shape, count),
                    _ => None,
                };
                let (out, input) = shape.map_or(weight.matrix(), |part| (part[0], part[1]));
                Expectation::Shape([out as u64, input as u64], if info.dtype == Dtype::I64 { 8 } else { 4 })
            }
            _ => Expectation::Any,
        }
    }
}

impl Expectation {
    /// The first element of `bytes`, whole elements, that breaks the expectation: its index and what is wrong.
    pub fn broken(self, bytes: &[u8]) -> Option<(usize, String)> {
        match self {
            Self::Any => None,
            Self::Finite(float) => {
                let index = kernels::first_nonfinite(bytes, float)?;
                Some((index, format!("the value {}", float.read(&bytes[index * float.bytes()..]))))
            }
            Self::Scale(float) => {
                let values = || bytes.chunks_exact(float.bytes()).map(|bytes| float.read(bytes));
                let index = values().position(|scale| !scale.is_finite() || scale == 0.0)?;
                Some((index, format!("a scale of {}", values().nth(index)?)))
            }
            Self::Fp8 => {
                // S.1111.111 is the only NaN that E4M3 has, for either sign.
                let index = bytes.iter().position(|code| code & 0x7f == 0x7f)?;
                Some((index, "the value NaN".into()))
            }
            Self::Blocks(dtype) => {
                let (index, bytes) = broken_block(dtype, bytes)?;
                let mut values = vec![0.0; dtype.block_len() as usize];
                ggml::decode(dtype, bytes, &mut values);
                let inside = values.iter().position(|value| !value.is_finite())?;
                Some((index * values.len() + inside, format!("the value {}", values[inside])))
            }
            Self::Shape(shape, size) => {
                let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |n, &byte| n << 8 | u64::from(byte));
                let recorded: Vec<u64> = bytes.chunks_exact(size).map(number).collect();
                (recorded != shape).then(|| (0, format!("the shape {recorded:?}, but the matrix is {shape:?}")))
            }
        }
    }

    /// Whether it is about what quantization adds: scales and shapes.
    pub fn is_of_quantization(self) -> bool {
        matches!(self, Self::Scale(_) | Self::Shape(..))
    }
}

/// The first block with a number that is NaN or infinite, and its index. Numbers are products of small integers with float16
/// scales, so that they are finite where the scales are; MXFP4's scales are powers of two up to the largest.
fn broken_block(dtype: Dtype, bytes: &[u8]) -> Option<(usize, &[u8])> {
    let size = (dtype.block_bits() / 8) as usize;
    let infinite = |block: &[u8], at: &usize| block[*at + 1] & 0x7c == 0x7c;
    let mut values = vec![0.0; dtype.block_len() as usize];
    let scales = ggml_scales(dtype);
    bytes.chunks_exact(size).enumerate().find(|(_, block)| match scales {
        [] => {
            // Twelve halves times 2^126 is more than there is.
            block[0] >= 0xfd && {
                ggml::decode(dtype, block, &mut values);
                values.iter().any(|value| !value.is_finite())
            }
        }
        scales => {
            scales.iter().any(|at| infinite(block, at)) && {
                ggml::decode(dtype, block, &mut values);
                values.iter().any(|value| !value.is_finite())
            }
        }
    })
}

/// Where the float16 scales lie in a block (`ggml/src/ggml-common.h`); none in MXFP4's.
fn ggml_scales(dtype: Dtype) -> &'static [usize] {
    match dtype {
        Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4_K | Dtype::Q5_K => &[0, 2],
        Dtype::Q2_K => &[80, 82],
        Dtype::Q3_K => &[108],
        Dtype::Q6_K => &[208],
        Dtype::MXFP4 => &[],
        _ => &[0],
    }
}
