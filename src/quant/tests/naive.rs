//! The arithmetic of the module documentation, one element at a time.

use half::bf16;

use crate::dtype::fp8;

fn bf(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// A group quantized: scale, zero point, codes.
pub(super) struct Group {
    pub(super) scale: f32,
    pub(super) zero: i8,
    pub(super) codes: Vec<i8>,
}

impl Group {
    pub(super) fn rtn(weights: &[f32], symmetric: bool) -> Self {
        let low = weights.iter().copied().fold(0.0, f32::min);
        let high = weights.iter().copied().fold(0.0, f32::max);
        let mut scale = bf(if symmetric { high.max(-low) / 7.5 } else { (high - low) / 15.0 });
        let mut zero = 0;
        if scale == 0.0 {
            scale = 2.0_f32.powi(-7);
        } else if !symmetric {
            zero = (-8.0 - low / scale).clamp(-8.0, 7.0).round_ties_even() as i8;
        }
        Self::with(weights, scale, zero)
    }

    pub(super) fn with(weights: &[f32], scale: f32, zero: i8) -> Self {
        let code = |w: &f32| (w / scale + f32::from(zero)).clamp(-8.0, 7.0).round_ties_even() as i8;
        Self { scale, zero, codes: weights.iter().map(code).collect() }
    }

    pub(super) fn dequantized(&self) -> Vec<f32> {
        self.codes.iter().map(|q| bf((i32::from(*q) - i32::from(self.zero)) as f32 * self.scale)).collect()
    }
}

/// Sum of squared differences.
pub(super) fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

/// Scale, codes and dequantized values of weights that share an FP8 scale.
pub(super) fn fp8_with(weights: &[f32], amax: f32) -> (f32, Vec<u8>, Vec<f32>) {
    let mut scale = bf(amax / 448.0);
    if scale == 0.0 {
        scale = 2.0_f32.powi(-7);
    }
    let codes: Vec<u8> = weights.iter().map(|w| fp8::encode((w / scale).clamp(-448.0, 448.0))).collect();
    let values = codes.iter().map(|c| bf(fp8::decode(*c) * scale)).collect();
    (scale, codes, values)
}

pub(super) fn amax(weights: impl IntoIterator<Item = f32>) -> f32 {
    weights.into_iter().fold(0.0, |a, b| a.max(b.abs()))
}
