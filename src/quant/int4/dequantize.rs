//! INT4 back to weights: `(q - z) * s`, rounded to the format of the scales, as compressed-tensors decompresses it.

use crate::dtype::int4::{PER_WORD, words};
use crate::kernels::{Float, Kernel, LANES, Simd, dispatch};
use crate::quant::{Target, read_scale};

/// Some rows (outputs) of a packed matrix. Bytes may lie at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// Codes: `rows` x `ceil(ins / 8)` little-endian words.
    pub codes: &'a [u8],
    /// Scales: `rows` x `ins / group_size`.
    pub scales: &'a [u8],
    /// The format of the scales.
    pub float: Float,
    /// Zero points: `rows` x `ins / group_size`; `None` if symmetric.
    pub zero_points: Option<&'a [i8]>,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub ins: usize,
    /// Inputs that share a scale; it divides `ins`.
    pub group_size: usize,
}

/// Dequantizes `rows` x `ins` weights, row after row.
///
/// # Panics
///
/// A slice does not have the size that the numbers of `packed` give it.
pub fn dequantize<T: Target>(packed: &Packed<'_>, weights: &mut [T]) {
    let Packed { rows, ins, group_size, .. } = *packed;
    assert!(group_size > 0 && ins % group_size == 0, "groups of {group_size} do not divide {ins} inputs");
    let groups = ins / group_size;
    assert_eq!(packed.codes.len(), rows * words(ins) * 4, "bytes of codes for {rows} x {ins}");
    assert_eq!(packed.scales.len(), rows * groups * packed.float.bytes(), "bytes of scales for {rows} x {groups}");
    assert!(packed.zero_points.is_none_or(|z| z.len() == rows * groups), "zero points for {rows} x {groups}");
    assert_eq!(weights.len(), rows * ins, "weights of {rows} x {ins}");
    dispatch(Dequantize { packed, weights });
}

struct Dequantize<'a, T> {
    packed: &'a Packed<'a>,
    weights: &'a mut [T],
}

impl<T: Target> Kernel for Dequantize<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Packed { ins, group_size: group, float, .. } = *self.packed;
        if ins == 0 {
            return;
        }
        let groups = ins / group;
        for (r, row) in self.weights.chunks_exact_mut(ins).enumerate() {
            let codes = &self.packed.codes[r * words(ins) * 4..][..words(ins) * 4];
            for (g, out) in row.chunks_exact_mut(group).enumerate() {
                let at = r * groups + g;
                let scale = read_scale(&self.packed.scales[at * float.bytes()..], float);
                let zero = self.packed.zero_points.map_or(0, |z| z[at]);
                if group % PER_WORD == 0 {
                    let codes = &codes[g * group / 2..][..group / 2];
                    words_of_group(s, codes, (scale, zero, float), out);
                } else {
                    for (i, out) in out.iter_mut().enumerate() {
                        let input = g * group + i;
                        let code = i32::from(codes[input / 2] >> (4 * (input % 2)) & 15) - 8;
                        *out = T::from_f32(float.round((code - i32::from(zero)) as f32 * scale));
                    }
                }
            }
        }
    }
}

/// Dequantizes a group that is whole words.
#[inline(always)]
fn words_of_group<S: Simd, T: Target>(s: S, codes: &[u8], (scale, zero, float): (f32, i8, Float), out: &mut [T]) {
    // 2^23 with a small integer in the low bits is 2^23 plus that integer.
    let offset = s.splat(8_388_608.0 + 8.0 + f32::from(zero));
    let bias = s.isplat(0x4b00_0000);
    let factor = s.splat(scale);
    let mut codes = codes.chunks(8);
    for out in out.chunks_mut(LANES) {
        let Some(code) = codes.next() else { return };
        let mut eight = [0; 8];
        eight[..code.len()].copy_from_slice(code);
        let pair = u64::from_le_bytes(eight);
        let steps = s.sub(s.floats(s.ior(s.nibbles(pair as u32, (pair >> 32) as u32), bias)), offset);
        let mut value = s.mul(steps, factor);
        match float {
            Float::BF16 => value = s.round_bf16(value),
            Float::F32 => {}
            Float::F16 => {
                let mut lanes = [0.0; LANES];
                s.store(value, &mut lanes);
                for x in &mut lanes {
                    *x = Float::F16.round(*x);
                }
                value = s.load(&lanes);
            }
        }
        if let Ok(out) = out.try_into() {
            T::store(s, value, out);
        } else {
            let mut lanes = [0.0; LANES];
            s.store(value, &mut lanes);
            for (out, x) in out.iter_mut().zip(lanes) {
                *out = T::from_f32(x);
            }
        }
    }
}

/// Packs zero points `[outs, groups]`, each in -8..=7, along the outputs into `[ceil(outs / 8), groups]` words.
///
/// # Panics
///
/// A slice does not have that size.
pub fn pack_zero_points(zero_points: &[i8], outs: usize, groups: usize, packed: &mut [u32]) {
    assert_eq!(zero_points.len(), outs * groups, "zero points of {outs} x {groups}");
    assert_eq!(packed.len(), words(outs) * groups, "words for {outs} x {groups}");
    packed.fill(0);
    for out in 0..outs {
        let row = &mut packed[out / PER_WORD * groups..][..groups];
        for (word, &zero) in row.iter_mut().zip(&zero_points[out * groups..][..groups]) {
            *word |= (u32::from((zero as u8).wrapping_add(8)) & 15) << (4 * (out % PER_WORD));
        }
    }
}

/// Undoes [`pack_zero_points`]; `packed` is little-endian words at any alignment.
///
/// # Panics
///
/// A slice does not have the size that `outs` and `groups` give it.
pub fn unpack_zero_points(packed: &[u8], outs: usize, groups: usize, zero_points: &mut [i8]) {
    assert_eq!(zero_points.len(), outs * groups, "zero points of {outs} x {groups}");
    assert_eq!(packed.len(), words(outs) * groups * 4, "bytes for {outs} x {groups}");
    for out in 0..outs {
        for group in 0..groups {
            let word = (out / PER_WORD * groups + group) * 4;
            let byte = packed[word + out % PER_WORD / 2];
            zero_points[out * groups + group] = (byte >> (4 * (out % 2)) & 15) as i8 - 8;
        }
    }
}
