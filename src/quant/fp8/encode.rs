//! FP8 codes of sixteen weights at a time, and where they are written.

use super::Codes;
use crate::kernels::{LANES, Lanes, Simd};
use crate::quant::quotient::Divisor;
use crate::quant::tally::{CHUNK, Sums, Tally, Unit};
use crate::quant::{Block, ErrorRows};

/// Where a stripe's codes and errors go.
pub(super) struct Writer<'a> {
    pub(super) codes: Codes<'a>,
    pub(super) sums: ErrorRows<'a>,
}

/// The codes of sixteen values that are not NaN, given their magnitudes and sign bits, and what they decode to.
#[inline(always)]
pub(super) fn encode<S: Simd>(s: S, magnitude: S::F, sign: S::I) -> (S::I, S::F) {
    let magnitude = s.bits(s.min(magnitude, s.splat(448.0)));
    // Normal: keep three of 23 mantissa bits; a carry rightly raises the exponent. Then change the bias from 127 to 7.
    let odd = s.iand(s.shr(magnitude, 20), s.isplat(1));
    let rounded = s.iadd(magnitude, s.iadd(odd, s.isplat(0x7_ffff)));
    let normal = s.isub(s.shr(rounded, 20), s.isplat(120 << 3));
    let normal_value = s.iand(rounded, s.isplat(0xfff0_0000));
    // Below 2^-6 the step is constant, 2^-9, which is the unit in the last place of 2^14.
    let magnitude = s.floats(magnitude);
    let shifter = s.splat(16384.0);
    let shifted = s.add(magnitude, shifter);
    let steps = s.isub(s.bits(shifted), s.bits(shifter));
    let least = s.splat(0.015625);
    let code = s.bits(s.select_lt(magnitude, least, s.floats(steps), s.floats(normal)));
    let value = s.select_lt(magnitude, least, s.sub(shifted, shifter), s.floats(normal_value));
    (s.ior(code, s.shr(sign, 24)), s.floats(s.ior(s.bits(value), sign)))
}

/// Codes sixteen weights and adds up their errors.
#[inline(always)]
fn code<S: Simd, const FAST: bool>(
    s: S,
    weight: S::F,
    divisor: &Divisor<S>,
    unit: &Unit<S>,
    sums: &mut Sums<S>,
) -> S::I {
    // The sign is the weight's own, so that a negative zero keeps it.
    let sign = s.iand(s.bits(weight), s.isplat(0x8000_0000));
    let (code, value) = encode(s, divisor.quotient::<FAST>(s, s.abs(weight)), sign);
    sums.add(s, weight, s.round_bf16(s.mul(value, divisor.scale)), unit);
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

/// Codes up to 64 inputs of sixteen outputs: vector `i` holds those of output `i`, four in a word.
#[inline(always)]
fn square<S: Simd, const FAST: bool>(
    s: S,
    rows: &[Lanes],
    divisor: &Divisor<S>,
    unit: &Unit<S>,
    sums: &mut Sums<S>,
) -> [S::I; LANES] {
    let mut words = [s.isplat(0); LANES];
    if let Ok(rows) = <&[Lanes; 4 * LANES]>::try_from(rows) {
        for w in 0..LANES {
            for i in 0..4 {
                let code = code::<S, FAST>(s, s.load(&rows[4 * w + i].0), divisor, unit, sums);
                words[w] = s.ior(words[w], s.shl(code, 8 * i as u32));
            }
        }
    } else {
        for (k, row) in rows.iter().enumerate() {
            let code = code::<S, FAST>(s, s.load(&row.0), divisor, unit, sums);
            words[k / 4] = s.ior(words[k / 4], s.shl(code, 8 * (k % 4) as u32));
        }
    }
    s.transpose(words)
}

/// Codes a stored row that is one output.
#[inline(always)]
fn row<S: Simd, const FAST: bool>(
    s: S,
    block: &Block<'_>,
    out: usize,
    (divisor, unit): (&Divisor<S>, &Unit<S>),
    codes: &mut [u8],
) -> Tally {
    let mut sums = Sums::new(s);
    let mut tally = Tally::ZERO;
    for (i, part) in codes.chunks_mut(CHUNK * LANES).enumerate() {
        for (j, to) in part.chunks_mut(LANES).enumerate() {
            let weight = block.load_row(s, out, i * CHUNK * LANES + j * LANES, to.len());
            let code = code::<S, FAST>(s, weight, divisor, unit, &mut sums);
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
    tally
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
        let (unit, divisor) = (Unit::of(s, scale), Divisor::new(s, scale));
        let mut sums = Sums::new(s);
        let square = if divisor.is_fast {
            square::<S, true>(s, rows, &divisor, &unit, &mut sums)
        } else {
            square::<S, false>(s, rows, &divisor, &unit, &mut sums)
        };
        let mut tally = Tally::ZERO;
        sums.fold(s, &mut tally);
        let tally = tally.scaled(&unit);
        let mut finite = true;
        for (lane, &words) in square.iter().enumerate() {
            if lane < lanes {
                let mut line = [0; LANES];
                s.istore(words, &mut line);
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
        let scale = s.splat(scale);
        let (unit, divisor) = (Unit::of(s, scale), Divisor::new(s, scale));
        let codes = &mut self.codes.bytes[out * self.codes.stride..][..block.ins()];
        let tally = if divisor.is_fast {
            row::<S, true>(s, block, out, (&divisor, &unit), codes)
        } else {
            row::<S, false>(s, block, out, (&divisor, &unit), codes)
        };
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
