//! FP8 codes of sixteen weights at a time, and where they are written.

use super::Codes;
use crate::kernels::{LANES, Lanes, Simd};
use crate::quant::tally::{CHUNK, Sums, Tally, Unit};
use crate::quant::{Block, ErrorRows};

/// Where a stripe's codes and errors go.
pub(super) struct Writer<'a> {
    pub(super) codes: Codes<'a>,
    pub(super) sums: ErrorRows<'a>,
}

/// The codes of sixteen values that are not NaN, and what they decode to.
#[inline(always)]
fn encode<S: Simd>(s: S, t: S::F) -> (S::I, S::F) {
    let t = s.min(s.max(t, s.splat(-448.0)), s.splat(448.0));
    let bits = s.bits(t);
    let sign = s.iand(bits, s.isplat(0x8000_0000));
    let magnitude = s.iand(bits, s.isplat(0x7fff_ffff));
    // Normal: keep three of 23 mantissa bits; a carry rightly raises the exponent. Then change the bias from 127 to 7.
    let odd = s.iand(s.shr(magnitude, 20), s.isplat(1));
    let rounded = s.iadd(magnitude, s.iadd(odd, s.isplat(0x7_ffff)));
    let normal = s.isub(s.shr(rounded, 20), s.isplat(120 << 3));
    let normal_value = s.iand(rounded, s.isplat(0xfff0_0000));
    // Below 2^-6 the step is constant, 2^-9, which is the unit in the last place of 2^14.
    let magnitude = s.from_bits(magnitude);
    let shifter = s.splat(16384.0);
    let shifted = s.add(magnitude, shifter);
    let steps = s.isub(s.bits(shifted), s.bits(shifter));
    let least = s.splat(0.015625);
    let code = s.bits(s.select_lt(magnitude, least, s.from_bits(steps), s.from_bits(normal)));
    let value = s.select_lt(magnitude, least, s.sub(shifted, shifter), s.from_bits(normal_value));
    (s.ior(code, s.shr(sign, 24)), s.from_bits(s.ior(s.bits(value), sign)))
}

/// Codes sixteen weights and adds up their errors.
#[inline(always)]
fn code<S: Simd>(s: S, weight: S::F, scale: S::F, unit: &Unit<S>, sums: &mut Sums<S>) -> S::I {
    let (code, value) = encode(s, s.div(weight, scale));
    sums.add(s, weight, s.round_bf16(s.mul(value, scale)), unit);
    code
}

/// The largest magnitude in the first `high` lanes of a panel of tiles (`rows` long), of which `wide` rows count.
#[inline(always)]
pub(super) fn absmax<S: Simd>(s: S, panel: &[Lanes], rows: usize, wide: usize, high: usize) -> f32 {
    let mask = s.isplat(0x7fff_ffff);
    let mut largest = 0;
    for (t, tile) in panel.chunks_exact(rows).enumerate() {
        let mut most = s.isplat(0);
        for row in &tile[..wide] {
            most = s.imax(most, s.iand(s.bits(s.load(&row.0)), mask));
        }
        let mut lanes = [0; LANES];
        s.istore(most, &mut lanes);
        for (lane, &bits) in lanes.iter().enumerate() {
            if t * LANES + lane < high {
                largest = largest.max(bits);
            }
        }
    }
    f32::from_bits(largest)
}

impl Writer<'_> {
    /// Codes a tile of at most 64 inputs and `lanes` outputs from (`out`, `first_in`) on; whether all became finite.
    #[inline(always)]
    pub(super) fn tile<S: Simd>(
        &mut self,
        s: S,
        rows: &[Lanes],
        scale: S::F,
        (out, lanes): (usize, usize),
        first_in: usize,
    ) -> bool {
        let unit = Unit::of(s, scale);
        let mut sums = Sums::new(s);
        // Word `w` of an output holds the codes of inputs 4 w ..: sixteen of them are a line of its row.
        let mut square = [s.isplat(0); LANES];
        for (vector, four) in square.iter_mut().zip(rows.chunks(4)) {
            for (i, row) in four.iter().enumerate() {
                let code = code(s, s.load(&row.0), scale, &unit, &mut sums);
                *vector = s.ior(*vector, s.shl(code, 8 * i as u32));
            }
        }
        let mut tally = Tally::ZERO;
        sums.fold(s, &mut tally);
        let tally = tally.scaled(&unit);
        let square = s.transpose(square);
        let mut finite = true;
        for lane in 0..LANES {
            if lane < lanes {
                let mut line = [0; LANES];
                s.istore(square[lane], &mut line);
                let to = &mut self.codes.bytes[(out + lane) * self.codes.stride + first_in..][..rows.len()];
                if to.len() == 4 * LANES {
                    for (to, word) in to.chunks_exact_mut(4).zip(line) {
                        to.copy_from_slice(&word.to_le_bytes());
                    }
                } else {
                    for (i, to) in to.iter_mut().enumerate() {
                        *to = (line[i / 4] >> (8 * (i % 4))) as u8;
                    }
                }
                finite &= self.note(out + lane, tally.weight[lane], tally.error[lane], tally.max_abs[lane]);
            }
        }
        finite
    }

    /// Codes one output that is stored as a row; whether all became finite.
    #[inline(always)]
    pub(super) fn row<S: Simd>(&mut self, s: S, block: &Block<'_>, out: usize, scale: f32) -> bool {
        let ins = block.ins();
        let codes = &mut self.codes.bytes[out * self.codes.stride..][..ins];
        let scale = s.splat(scale);
        let unit = Unit::of(s, scale);
        let mut sums = Sums::new(s);
        let mut tally = Tally::ZERO;
        for (i, part) in codes.chunks_mut(CHUNK * LANES).enumerate() {
            for (j, to) in part.chunks_mut(LANES).enumerate() {
                let weight = block.load_row(s, out, i * CHUNK * LANES + j * LANES, to.len());
                let code = code(s, weight, scale, &unit, &mut sums);
                if let Ok(to) = to.try_into() {
                    s.store_u8(code, to);
                } else {
                    let mut sixteen = [0; LANES];
                    s.store_u8(code, &mut sixteen);
                    to.copy_from_slice(&sixteen[..to.len()]);
                }
            }
            sums.fold(s, &mut tally);
        }
        let tally = tally.scaled(&unit);
        let max = tally.max_abs.iter().fold(0.0, |a: f32, &b| a.max(b));
        self.note(out, tally.weight.iter().sum(), tally.error.iter().sum(), max)
    }

    /// Adds to the sums of an output; whether its errors are finite.
    #[inline(always)]
    fn note(&mut self, out: usize, weight: f64, error: f64, max: f32) -> bool {
        self.sums.weight[out] += weight;
        self.sums.error[out] += error;
        self.sums.rtn[out] += error;
        *self.sums.max_abs = self.sums.max_abs.max(max);
        max.is_finite()
    }
}
