//! Block formats of ggml: values to blocks and back, as llama.cpp has them, bit for bit.
//!
//! The formats and the searches for scales are those of ggml 0.25 (`ggml/src/ggml-quants.c`, MIT); `docs/formats.md` says
//! under which conditions bytes are equal. It must not know GGUF, tensors or which type a weight gets.

mod decode;
mod fields;
mod lanes;
mod reference;
mod tables;
mod tries;

#[cfg(test)]
mod tests;

use crate::dtype::Dtype;
use crate::kernels::{Kernel, Simd, dispatch};

/// The block formats that this module knows.
pub const TYPES: [Dtype; 13] = [
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::Q8_0,
    Dtype::Q2_K,
    Dtype::Q3_K,
    Dtype::Q4_K,
    Dtype::Q5_K,
    Dtype::Q6_K,
    Dtype::IQ4_NL,
    Dtype::IQ4_XS,
    Dtype::MXFP4,
];

/// Whether [`decode`] knows this type.
pub fn decodes(dtype: Dtype) -> bool {
    TYPES.contains(&dtype)
}

/// Decodes whole blocks: exactly the values of Python's `gguf.quants.dequantize` and of llama.cpp.
///
/// # Panics
///
/// `dtype` is none of [`TYPES`], or `blocks` is not whole blocks of it that hold as many values as `values`.
pub fn decode(dtype: Dtype, blocks: &[u8], values: &mut [f32]) {
    /// The loop over blocks, compiled for each instruction set: the same operations, on more values at a time. The function is called
    /// by its name, because a function that is handed over would not be compiled anew.
    macro_rules! each {
        ($one:path, $bytes:literal, $len:literal) => {{
            struct Blocks<'a>(&'a [[u8; $bytes]], &'a mut [[f32; $len]]);
            impl Kernel for Blocks<'_> {
                type Out = ();
                #[inline(always)]
                fn run<S: Simd>(self, s: S) {
                    for (block, values) in self.0.iter().zip(self.1) {
                        $one(s, block, values);
                    }
                }
            }
            let ((blocks, rest), (values, more)) = (blocks.as_chunks(), values.as_chunks_mut());
            assert!(rest.is_empty() && more.is_empty() && blocks.len() == values.len(), "not whole blocks");
            dispatch(Blocks(blocks, values));
        }};
    }
    use Dtype::*;
    match dtype {
        Q4_0 => each!(decode::q4_0, 18, 32),
        Q4_1 => each!(decode::q4_1, 20, 32),
        Q5_0 => each!(decode::q5_0, 22, 32),
        Q5_1 => each!(decode::q5_1, 24, 32),
        Q8_0 => each!(decode::q8_0, 34, 32),
        Q2_K => each!(decode::q2_k, 84, 256),
        Q3_K => each!(decode::q3_k, 110, 256),
        Q4_K => each!(decode::q4_k, 144, 256),
        Q5_K => each!(decode::q5_k, 176, 256),
        Q6_K => each!(decode::q6_k, 210, 256),
        IQ4_NL => each!(decode::iq4_nl, 18, 32),
        IQ4_XS => each!(decode::iq4_xs, 136, 256),
        MXFP4 => each!(decode::mxfp4, 17, 32),
        _ => panic!("{dtype} is no block format that is decoded"),
    }
}

/// Encodes whole rows: exactly the bytes of llama.cpp's `ggml_quantize_chunk`, as its releases are compiled for x86-64.
///
/// `importance` has `row_len` entries, one for each column, that apply to every row; zero is allowed. Q8_0 and MXFP4 make no
/// use of it. Values that are NaN or infinite give bytes that mean nothing.
///
/// # Panics
///
/// `dtype` is none of [`TYPES`]; `row_len` is not whole blocks; `rows` is not whole rows; `importance` has not `row_len` entries;
/// `blocks` does not have the bytes that the rows take.
pub fn encode(dtype: Dtype, rows: &[f32], row_len: usize, importance: Option<&[f32]>, blocks: &mut [u8]) {
    let (block_len, block_bytes) = sizes(dtype);
    assert!(row_len > 0 && row_len.is_multiple_of(block_len), "a row of {row_len} is not whole blocks of {block_len}");
    assert!(rows.len().is_multiple_of(row_len), "not whole rows");
    assert!(importance.is_none_or(|all| all.len() == row_len), "an importance for each column");
    assert_eq!(blocks.len(), rows.len() / block_len * block_bytes, "bytes of the blocks");
    if lanes::encode(dtype, rows, row_len, importance, blocks).is_none() {
        reference::encode(dtype, rows, row_len, importance, blocks);
    }
}

/// Values and bytes of a block.
fn sizes(dtype: Dtype) -> (usize, usize) {
    (dtype.block_len() as usize, dtype.block_bits() as usize / 8)
}
