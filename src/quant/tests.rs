//! The quantizers against compressed-tensors' own output and against a naive reading of the same arithmetic.

mod errors;
mod goldens;
mod gptq;
mod importance;
mod naive;
mod properties;

use half::{bf16, f16};

use super::{Block, Layout};
use crate::kernels::{Float, Isa};

/// The instruction sets that this machine has.
fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

/// A matrix in memory, and where a view of it begins.
#[derive(Debug)]
struct Matrix {
    bytes: Vec<u8>,
    offset: usize,
    float: Float,
    layout: Layout,
    stride: usize,
    outs: usize,
    ins: usize,
}

impl Matrix {
    /// Stores `weights` (`outs` x `ins`), `offset` bytes into a buffer, with `gap` values between stored rows.
    fn new(
        weights: &[f32],
        (outs, ins): (usize, usize),
        float: Float,
        layout: Layout,
        gap: usize,
        offset: usize,
    ) -> Self {
        let (rows, columns) = if layout == Layout::OutIn { (outs, ins) } else { (ins, outs) };
        let stride = columns + gap;
        let mut bytes = vec![0xff; offset];
        for row in 0..rows {
            for column in 0..columns {
                let x = if layout == Layout::OutIn { weights[row * ins + column] } else { weights[column * ins + row] };
                match float {
                    Float::BF16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
                    Float::F16 => bytes.extend(f16::from_f32(x).to_le_bytes()),
                    Float::F32 => bytes.extend(x.to_le_bytes()),
                }
            }
            if row + 1 < rows {
                bytes.resize(bytes.len() + gap * float.bytes(), 0xff);
            }
        }
        Self { bytes, offset, float, layout, stride, outs, ins }
    }

    fn block(&self) -> Block<'_> {
        Block::new(&self.bytes[self.offset..], self.float, self.layout, self.stride, (self.outs, self.ins))
    }

    /// The stripe of `n` outputs or inputs, whichever rows are stored, from `first` on.
    fn stripe(&self, first: usize, n: usize) -> Block<'_> {
        let shape = if self.layout == Layout::OutIn { (n, self.ins) } else { (self.outs, n) };
        let from = self.offset + first * self.stride * self.float.bytes();
        Block::new(&self.bytes[from..], self.float, self.layout, self.stride, shape)
    }

    /// The weights as stored.
    fn weights(&self) -> Vec<f32> {
        let block = self.block();
        (0..self.outs).flat_map(|out| (0..self.ins).map(move |input| block.get(out, input))).collect()
    }
}
