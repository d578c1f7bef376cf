//! Searches that weigh errors with the importance of inputs, against naive arithmetic.

use half::bf16;
use proptest::prelude::*;

use super::naive::{self, Group};
use super::{Matrix, isas};
use crate::dtype::int4 as nibbles;
use crate::kernels::{Float, pinned};
use crate::quant::awq::{self, Factors};
use crate::quant::int4::{self, Int4Out, Params};
use crate::quant::{ErrorSums, Layout, Method, fp8};

/// Numbers that look random, the same ones for a seed.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2) | 1;
    let mut next = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() + next() * next() * next()).collect()
}

fn matrix(weights: &[f32], shape: (usize, usize), seed: u64) -> Matrix {
    let layout = if seed.is_multiple_of(2) { Layout::OutIn } else { Layout::InOut };
    Matrix::new(weights, shape, Float::BF16, layout, 1, 3)
}

fn weighted_error(a: &[f32], b: &[f32], importance: &[f32]) -> f64 {
    let term = |((a, b), h): ((&f32, &f32), &f32)| (f64::from(*a) - f64::from(*b)).powi(2) * f64::from(*h);
    a.iter().zip(b).zip(importance).map(term).sum()
}

/// Dequantized weights, row after row.
fn int4_values(m: &Matrix, group: usize, symmetric: bool, importance: Option<&[f32]>) -> Vec<f32> {
    let (width, groups) = (nibbles::words(m.ins), m.ins / group);
    let (mut packed, mut scales) = (vec![0; m.outs * width], vec![bf16::ZERO; m.outs * groups]);
    let mut zeros = vec![0; m.outs * groups];
    let mut sums = ErrorSums::new(m.outs);
    let out = Int4Out {
        packed: &mut packed,
        packed_stride: width,
        scales: &mut scales,
        scale_stride: groups,
        zero_points: (!symmetric).then_some(&mut zeros),
    };
    let params = Params { group_size: group, symmetric, method: Method::Search };
    int4::quantize_weighted(&m.block(), &params, importance, out, sums.rows(0, m.outs)).unwrap();
    let mut values = Vec::new();
    for out in 0..m.outs {
        for input in 0..m.ins {
            let code = nibbles::unpack(packed[out * width + input / 8])[input % 8];
            let at = out * groups + input / group;
            let steps = i32::from(code) - i32::from(zeros[at]);
            values.push(bf16::from_f32(steps as f32 * scales[at].to_f32()).to_f32());
        }
    }
    values
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Never worse than round-to-nearest on any group, nearly as good as trying every scale, and the same everywhere.
    #[test]
    fn weighted_int4_search_is_near_the_best_scale(seed in any::<u64>(), symmetric in any::<bool>(), outs in 9..24_usize) {
        let (group, ins) = (32, 96);
        let weights: Vec<f32> = values(seed, outs * ins).iter().map(|&w| bf16::from_f32(w).to_f32()).collect();
        let mut importance: Vec<f32> = values(!seed, ins).iter().map(|x| x.abs().powi(3) * 50.0).collect();
        importance[5] = 0.0;
        importance[64..].fill(0.0);
        let m = matrix(&weights, (outs, ins), seed);
        let got = int4_values(&m, group, symmetric, Some(&importance));
        let (mut found, mut best_possible) = (0.0, 0.0);
        for (at, w) in weights.chunks(group).enumerate() {
            let from = at * group % ins;
            let importance = &importance[from..from + group];
            let error = weighted_error(w, &got[at * group..][..group], importance);
            let rtn = Group::rtn(w, symmetric);
            let plain = weighted_error(w, &rtn.dequantized(), importance);
            prop_assert!(error <= plain * 1.0001, "{error} {plain}");
            let best = (40..=110).map(|percent| {
                let scale = bf16::from_f32(rtn.scale * percent as f32 / 100.0).to_f32();
                weighted_error(w, &Group::with(w, scale, rtn.zero).dequantized(), importance)
            });
            found += error;
            best_possible += best.fold(f64::INFINITY, f64::min);
        }
        prop_assert!(found <= best_possible * 1.2 + 1e-12, "{found} {best_possible}");
        for isa in isas() {
            prop_assert_eq!(&pinned(isa, || int4_values(&m, group, symmetric, Some(&importance))), &got);
        }
    }

    #[test]
    fn fp8_search_finds_the_best_of_its_scales(seed in any::<u64>(), outs in 1..20_usize, ins in 1..150_usize) {
        let weights: Vec<f32> = values(seed, outs * ins).iter().map(|&w| bf16::from_f32(w).to_f32()).collect();
        let importance: Vec<f32> = values(!seed, ins).iter().map(|x| x.abs().powi(3) * 50.0).collect();
        let m = matrix(&weights, (outs, ins), seed);
        let amax: Vec<f32> = weights.chunks(ins).map(|row| naive::amax(row.iter().copied())).collect();
        for isa in isas() {
            let mut scales = vec![bf16::NAN; outs];
            let mut search = fp8::ScaleSearch::new(&amax, &importance);
            pinned(isa, || search.add(&m.block(), (0, 0)));
            search.channels(&mut scales);
            let rtn: f64 = weights
                .chunks(ins)
                .zip(&amax)
                .map(|(row, &amax)| weighted_error(row, &naive::fp8_with(row, amax).2, &vec![1.0; ins]))
                .sum();
            prop_assert!((search.error_rtn() - rtn).abs() <= 1e-4 * rtn, "{} {rtn}", search.error_rtn());
            for ((row, &amax), scale) in weights.chunks(ins).zip(&amax).zip(&scales) {
                let error = |amax: f32| {
                    let (scale, _, values) = naive::fp8_with(row, amax);
                    (scale, weighted_error(row, &values, &importance))
                };
                let tried: Vec<(f32, f64)> = (0..8).map(|c| error(amax * 2.0f32.powf(c as f32 / 8.0))).collect();
                let best = tried.iter().map(|(_, error)| *error).fold(f64::INFINITY, f64::min);
                let chosen = tried.iter().find(|(tried, _)| *tried == scale.to_f32());
                prop_assert!(chosen.is_some_and(|(_, error)| *error <= best * 1.0001 + 1e-30), "{scale} of {tried:?}");
            }
        }
    }
}

#[test]
fn equal_importance_is_no_importance() {
    let weights = values(3, 8 * 64);
    let m = matrix(&weights, (8, 64), 0);
    let stored = m.weights();
    let ones = vec![7.0; 64];
    let error = |values: Vec<f32>| weighted_error(&stored, &values, &vec![1.0; 8 * 64]);
    let (with, without) = (error(int4_values(&m, 64, true, Some(&ones))), error(int4_values(&m, 64, true, None)));
    // More scales are tried where there is importance.
    assert!((with / without - 1.0).abs() < 0.05, "{with} {without}");
}

/// The factors' error is that of the scaled weights, quantized and scaled back.
#[test]
fn awq_factors_lower_the_weighted_error() {
    let (outs, ins, group) = (40, 128, 64);
    for symmetric in [true, false] {
        let weights: Vec<f32> = values(11, outs * ins).iter().map(|&w| bf16::from_f32(w * 0.03).to_f32()).collect();
        // A few inputs carry nearly everything.
        let mean_abs: Vec<f32> =
            (0..ins).map(|i| if i % 29 == 3 { 8.0 } else { 0.2 + (i % 7) as f32 * 0.05 }).collect();
        let mean_square: Vec<f32> = mean_abs.iter().map(|x| 1.6 * x * x).collect();
        let m = matrix(&weights, (outs, ins), u64::from(symmetric));
        let found = awq::search(&m.block(), &mean_abs, &mean_square, (group, symmetric)).unwrap();
        assert!(found.error < 0.99 * found.error_plain, "{} {}", found.error, found.error_plain);
        let error_of = |factors: &[f32]| {
            let scaled: Vec<f32> = weights.iter().enumerate().map(|(i, w)| w * factors[i % ins]).collect();
            let importance: Vec<f32> = mean_square.iter().zip(factors).map(|(h, f)| h / (f * f)).collect();
            let scaled = Matrix::new(&scaled, (outs, ins), Float::F32, Layout::OutIn, 0, 0);
            let values = int4_values(&scaled, group, symmetric, Some(&importance));
            let back: Vec<f32> = values.iter().enumerate().map(|(i, v)| v / factors[i % ins]).collect();
            weights.chunks(ins).zip(back.chunks(ins)).map(|(w, v)| weighted_error(w, v, &mean_square)).sum::<f64>()
        };
        assert!((error_of(&found.factors) / found.error - 1.0).abs() < 1e-3);
        assert!((error_of(&vec![1.0; ins]) / found.error_plain - 1.0).abs() < 1e-3);
        for isa in isas() {
            assert_eq!(
                pinned(isa, || awq::search(&m.block(), &mean_abs, &mean_square, (group, symmetric))).as_ref(),
                Ok(&found)
            );
        }
        // Inputs that are all alike need no factors.
        let Factors { factors, .. } =
            awq::search(&m.block(), &vec![2.0; ins], &vec![4.0; ins], (group, symmetric)).unwrap();
        assert_eq!(factors, vec![1.0; ins]);
    }
}
