//! Whether the stored numbers of a weight can be what they claim: finite, non-zero scales, the right logical shape,
//! finite values. This is where weights' bytes are read to be judged, not used.

use std::ops::Range;

use super::view::{Coding, Llama4, TensorId, Weight};
use crate::checkpoint::Edges;
use crate::dtype::Dtype;
use crate::kernels::{self, Float};

/// Bytes that are looked at before their pages are given back.
const STRIPE_BYTES: u64 = 4 << 20;

/// Codes of E4M3 that are not numbers, without the sign bit.
const FP8_NAN: u8 = 0x7f;

impl Llama4 {
    /// Checks what makes a quantized weight usable: scales finite and not zero, and the recorded shape right.
    ///
    /// # Errors
    /// Says what is wrong, naming the tensor and the value.
    pub fn check_scales(&self, weight: &Weight) -> Result<(), String> {
        match weight.coding {
            Coding::Plain(_) => Ok(()),
            Coding::Int4 { scale, shape, .. } => {
                self.check_shape(weight, shape)?;
                self.check_scale(scale)
            }
            Coding::Fp8 { scale, input_scale, .. } => {
                self.check_scale(scale)?;
                input_scale.map_or(Ok(()), |id| self.check_scale(id))
            }
        }
    }

    /// Checks every number of a weight: [`Llama4::check_scales`], and that no value is NaN or infinite.
    ///
    /// # Errors
    /// Says what is wrong, naming the tensor and the value.
    pub fn check_values(&self, weight: &Weight) -> Result<(), String> {
        self.check_scales(weight)?;
        match weight.coding {
            Coding::Plain(plane) => {
                let size = plane.float.bytes() as u64;
                let (out, input) = weight.matrix();
                let (rows, columns) =
                    if plane.layout == crate::quant::Layout::OutIn { (out, input) } else { (input, out) };
                let row = plane.stride as u64 * size;
                let step = (STRIPE_BYTES / row).max(1);
                for first in (0..rows as u64).step_by(step as usize) {
                    let end = (first + step).min(rows as u64);
                    let range = plane.offset + first * row..plane.offset + (end - 1) * row + columns as u64 * size;
                    self.check_finite(plane.tensor, range, plane.float, (row, columns as u64 * size))?;
                }
                Ok(())
            }
            Coding::Fp8 { weight: codes, .. } => self.check_fp8(codes),
            Coding::Int4 { .. } => Ok(()),
        }
    }

    /// Looks at `columns` bytes of every `row` bytes of a range, and gives its pages back.
    fn check_finite(
        &self,
        id: TensorId,
        range: Range<u64>,
        float: Float,
        (row, columns): (u64, u64),
    ) -> Result<(), String> {
        let bytes = self.checkpoint.range(id, range.clone());
        let found = bytes.chunks(row as usize).enumerate().find_map(|(index, line)| {
            let line = &line[..line.len().min(columns as usize)];
            Some((index, kernels::first_nonfinite(line, float)?))
        });
        if let Some((line, column)) = found {
            let at = line * row as usize + column * float.bytes();
            let value = float.read(&bytes[at..]);
            let element = (range.start + at as u64) / float.bytes() as u64;
            return Err(format!("`{}` holds {value} at element {element}", self.checkpoint.tensors()[id].name));
        }
        self.checkpoint.release(id, range, Edges::Drop);
        Ok(())
    }

    fn check_fp8(&self, id: TensorId) -> Result<(), String> {
        let info = &self.checkpoint.tensors()[id];
        for start in (0..info.bytes).step_by(STRIPE_BYTES as usize) {
            let range = start..(start + STRIPE_BYTES).min(info.bytes);
            let bytes = self.checkpoint.range(id, range.clone());
            if let Some(index) = bytes.iter().position(|&code| code & 0x7f == FP8_NAN) {
                return Err(format!("`{}` holds NaN at element {}", info.name, start + index as u64));
            }
            self.checkpoint.release(id, range, Edges::Drop);
        }
        Ok(())
    }

    fn check_scale(&self, id: TensorId) -> Result<(), String> {
        let info = &self.checkpoint.tensors()[id];
        let Some(float) = float_of(info.dtype) else { return Err(format!("`{}` is {}", info.name, info.dtype)) };
        let step = STRIPE_BYTES;
        for start in (0..info.bytes).step_by(step as usize) {
            let range = start..(start + step).min(info.bytes);
            let bytes = self.checkpoint.range(id, range.clone());
            let bad = bytes.chunks_exact(float.bytes()).position(|scale| {
                let scale = float.read(scale);
                !scale.is_finite() || scale == 0.0
            });
            if let Some(index) = bad {
                let value = float.read(&bytes[index * float.bytes()..]);
                let element = start / float.bytes() as u64 + index as u64;
                return Err(format!("`{}` holds a scale of {value} at element {element}", info.name));
            }
            self.checkpoint.release(id, range, Edges::Drop);
        }
        Ok(())
    }

    fn check_shape(&self, weight: &Weight, id: TensorId) -> Result<(), String> {
        let info = &self.checkpoint.tensors()[id];
        let bytes = self.checkpoint.bytes(id);
        let recorded: Vec<i64> = if info.dtype == Dtype::I64 {
            bytes.as_chunks::<8>().0.iter().map(|&n| i64::from_le_bytes(n)).collect()
        } else {
            bytes.as_chunks::<4>().0.iter().map(|&n| i64::from(i32::from_le_bytes(n))).collect()
        };
        let (out, input) = weight.matrix();
        if recorded == [out as i64, input as i64] {
            Ok(())
        } else {
            Err(format!("`{}` holds {recorded:?}, the matrix is [{out}, {input}]", info.name))
        }
    }
}

fn float_of(dtype: Dtype) -> Option<Float> {
    match dtype {
        Dtype::BF16 => Some(Float::BF16),
        Dtype::F16 => Some(Float::F16),
        Dtype::F32 => Some(Float::F32),
        _ => None,
    }
}
