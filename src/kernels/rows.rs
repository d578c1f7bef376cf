//! Row-wise float32 functions of the forward pass (norms, softmax, SwiGLU), compiled once for each instruction set.
//!
//! Plain loops over slices; the compiler makes the vectors. Knows no model. Reductions run over 16 lanes in a fixed order, and
//! no multiply-add is contracted, so every instruction set gives the same bits.

/// Lanes of a reduction.
const LANES: usize = 16;

/// Defines a public function that runs `$body` compiled for the instruction set in use.
macro_rules! dispatch {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $type:ty),*) = $body:ident) => {
        $(#[$doc])*
        pub fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw")]
                fn avx512($($arg: $type),*) {
                    $body($($arg),*);
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) {
                    $body($($arg),*);
                }
                match super::active() {
                    // SAFETY: an instruction set is active only where it is available.
                    super::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    super::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    super::Isa::Scalar => {}
                }
            }
            $body($($arg),*);
        }
    };
}

dispatch! {
    /// `out = x / sqrt(mean(x^2) + eps) * weight` for one row. The weight multiplies last, as
    /// `Llama4TextRMSNorm` does.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body
}

dispatch! {
    /// [`rms_norm`] without weight, in place.
    pub fn normalize(x: &mut [f32], eps: f32) = normalize_body
}

dispatch! {
    /// Softmax of one row, in place. An empty row stays empty; a NaN anywhere makes the whole row NaN.
    pub fn softmax(row: &mut [f32]) = softmax_body
}

dispatch! {
    /// `gate = silu(gate) * up`, the activation of SwiGLU.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn silu_mul(gate: &mut [f32], up: &[f32]) = silu_mul_body
}

/// The sum of `f(x)` over 16 lanes, then by halves.
#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += f(chunk[lane]);
        }
    }
    for (sum, &value) in sums.iter_mut().zip(rest) {
        *sum += f(value);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0]
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of(x, |value| value * value) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn rms_norm_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == out.len() && weight.len() == x.len(), "a norm's weight and rows have the same length");
    let scale = inverse_rms(x, eps);
    for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

#[inline(always)]
fn normalize_body(x: &mut [f32], eps: f32) {
    let scale = inverse_rms(x, eps);
    x.iter_mut().for_each(|x| *x *= scale);
}

#[inline(always)]
fn softmax_body(row: &mut [f32]) {
    let mut highest = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            highest[lane] = if chunk[lane] > highest[lane] { chunk[lane] } else { highest[lane] };
        }
    }
    let highest = rest.iter().chain(&highest).copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|value| *value = exp(*value - highest));
    let scale = 1.0 / sum_of(row, |value| value);
    row.iter_mut().for_each(|value| *value *= scale);
}

#[inline(always)]
fn silu_mul_body(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up have the same length");
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// `1 / (1 + e^-x)`.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `e^x` to within 2 units in the last place, without a branch: 0 below -87.3, held at e^88 above 88, NaN for NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; ln 2 in two parts so that `r` is exact enough; `e^r` by its Taylor series to the
/// seventh power (the eighth term is below 2^-29); `2^n` by its exponent bits.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    const HIGHEST: f32 = 88.0;
    /// Adding it rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let held = if x < LOWEST { LOWEST } else { x };
    let held = if held > HIGHEST { HIGHEST } else { held };
    let shifted = held * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (held - n * LN2_HIGH) - n * LN2_LOW;
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000));
    if x < LOWEST { 0.0 } else { series * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units() {
        let mut x = -87.2f32;
        while x < 88.0 {
            let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - expected).abs() <= expected * 2.0f64.powi(-22), "e^{x} = {got:e}, not {expected:e}");
            x += 0.001_37;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-200.0), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(1000.0) > 1e38);
    }

    /// Softmax, norm and SwiGLU against float64, at lengths around the lanes.
    #[test]
    fn rows_agree_with_float64() {
        for len in [1usize, 2, 15, 16, 17, 31, 64, 100] {
            let x: Vec<f32> = (0..len).map(|i| ((i * 37 % 29) as f32 - 14.0) * 0.7).collect();
            let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let near = |got: &[f32], expected: Vec<f64>| {
                for (&got, expected) in got.iter().zip(expected) {
                    assert!(
                        (f64::from(got) - expected).abs() <= expected.abs() * 2e-6 + 1e-12,
                        "{got} {expected} {len}"
                    );
                }
            };

            let mut row = x.clone();
            softmax(&mut row);
            let total: f64 = wide.iter().map(|x| x.exp()).sum();
            near(&row, wide.iter().map(|x| x.exp() / total).collect());

            let weight: Vec<f32> = (0..len).map(|i| 0.5 + i as f32 / 64.0).collect();
            let mut out = vec![0.0; len];
            rms_norm(&x, &weight, 1e-5, &mut out);
            let rms = (wide.iter().map(|x| x * x).sum::<f64>() / len as f64 + 1e-5).sqrt();
            near(&out, wide.iter().zip(&weight).map(|(x, &w)| x / rms * f64::from(w)).collect());
            let mut row = x.clone();
            normalize(&mut row, 1e-5);
            near(&row, wide.iter().map(|x| x / rms).collect());

            let mut gate = x.clone();
            silu_mul(&mut gate, &weight);
            near(&gate, wide.iter().zip(&weight).map(|(x, &w)| x / (1.0 + (-x).exp()) * f64::from(w)).collect());
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        use crate::kernels::{Isa, pinned};
        for len in [1usize, 7, 16, 33, 100, 1000] {
            let x: Vec<f32> = (0..len).map(|i| ((i * 7919 % 1013) as f32 - 506.0) / 37.0).collect();
            let weight: Vec<f32> = (0..len).map(|i| 0.3 + (i * 31 % 97) as f32 / 7.0).collect();
            let everything = || {
                let (mut softmaxed, mut normed, mut unweighted, mut gate) =
                    (x.clone(), x.clone(), x.clone(), x.clone());
                softmax(&mut softmaxed);
                rms_norm(&x, &weight, 1e-5, &mut normed);
                normalize(&mut unweighted, 1e-5);
                silu_mul(&mut gate, &weight);
                [softmaxed, normed, unweighted, gate].concat().iter().map(|value| value.to_bits()).collect::<Vec<u32>>()
            };
            let expected = pinned(Isa::Scalar, everything);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                assert_eq!(pinned(isa, everything), expected, "{isa} {len}");
            }
        }
    }

    #[test]
    fn sigmoid_agrees_with_float64() {
        for i in -2000..2000 {
            let x = i as f32 / 100.0;
            let expected = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(sigmoid(x)) - expected).abs() <= expected * 4e-7, "{x}");
        }
        assert!(sigmoid(-200.0) < 1e-37 && sigmoid(200.0) == 1.0);
        assert!(sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn nan_is_not_hidden() {
        let mut row = vec![1.0; 40];
        row[20] = f32::NAN;
        softmax(&mut row);
        assert!(row.iter().all(|value| value.is_nan()));
        softmax(&mut []);
    }
}
