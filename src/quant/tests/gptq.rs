//! GPTQ against plain float64 arithmetic: second moments, factor, and rounding by elimination from the inverse matrix.

use half::bf16;
use safetensors::SafeTensors;

use super::{Matrix, isas};
use crate::dtype::int4 as nibbles;
use crate::kernels::gemm::{Threads, View};
use crate::kernels::{Float, pinned};
use crate::quant::gptq::{self, Factor, FactorError, Params};
use crate::quant::int4::Int4Out;
use crate::quant::{ErrorSums, Errors, Hessian, Layout};

/// A small generator (splitmix64), so that the numbers of a failure can be had again.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit() + self.unit() + self.unit()).collect()
    }
}

/// Rows whose inputs go together and differ in size; input `dead` is always zero.
fn inputs(random: &mut Random, rows: usize, ins: usize, dead: Option<usize>) -> Vec<f32> {
    let mixing = random.values(8 * ins);
    let mut x = Vec::new();
    for _ in 0..rows {
        let (hidden, own) = (random.values(8), random.values(ins));
        for i in 0..ins {
            let common: f32 = (0..8).map(|h| hidden[h] * mixing[h * ins + i]).sum();
            let size = 0.05 + 2.0 * ((i * 37 % ins) as f32 / ins as f32).powi(4);
            x.push(if dead == Some(i) { 0.0 } else { (common + own[i]) * size });
        }
    }
    x
}

/// The matrix that [`Factor`] stands for, in float64: relative to its mean diagonal, dead inputs as the mean, damped.
fn damped(x: &[f32], ins: usize, damping: f64) -> Vec<f64> {
    let mut h = vec![0.0; ins * ins];
    for row in x.chunks(ins) {
        for i in 0..ins {
            for j in 0..ins {
                h[i * ins + j] += f64::from(row[i]) * f64::from(row[j]);
            }
        }
    }
    let live = (0..ins).filter(|i| h[i * ins + i] > 0.0).count();
    let mean = (0..ins).map(|i| h[i * ins + i]).sum::<f64>() / live.max(1) as f64;
    for i in 0..ins {
        let is_dead = h[i * ins + i] == 0.0;
        h[i * ins..(i + 1) * ins].iter_mut().for_each(|value| *value /= if mean > 0.0 { mean } else { 1.0 });
        h[i * ins + i] = if is_dead { 1.0 } else { h[i * ins + i] } + damping;
    }
    h
}

/// The inverse, by Gauss-Jordan elimination.
fn inverse(h: &[f64], n: usize) -> Vec<f64> {
    let mut a = h.to_vec();
    let mut out = vec![0.0; n * n];
    (0..n).for_each(|i| out[i * n + i] = 1.0);
    for p in 0..n {
        let pivot = a[p * n + p];
        for j in 0..n {
            a[p * n + j] /= pivot;
            out[p * n + j] /= pivot;
        }
        for i in (0..n).filter(|&i| i != p) {
            let factor = a[i * n + p];
            for j in 0..n {
                a[i * n + j] -= factor * a[p * n + j];
                out[i * n + j] -= factor * out[p * n + j];
            }
        }
    }
    out
}

/// What quantizing gives.
#[derive(Debug, PartialEq)]
struct Quantized {
    packed: Vec<u32>,
    scales: Vec<bf16>,
    zeros: Vec<i8>,
    errors: Errors,
    weighted: Vec<f64>,
}

impl Quantized {
    /// In stripes of `step` outputs.
    fn of(m: &Matrix, factor: &Factor, params: &Params, step: usize) -> Self {
        let (width, groups) = (nibbles::words(m.ins), m.ins / params.group_size);
        let mut this = Self {
            packed: vec![0xdead_beef; m.outs * width],
            scales: vec![bf16::NAN; m.outs * groups],
            zeros: vec![0; m.outs * groups],
            errors: Errors::default(),
            weighted: vec![f64::NAN; m.outs],
        };
        let mut sums = ErrorSums::new(m.outs);
        for first in (0..m.outs).step_by(step) {
            let n = step.min(m.outs - first);
            let block = m.block().outputs(first, n);
            let out = Int4Out {
                packed: &mut this.packed[first * width..],
                packed_stride: width,
                scales: &mut this.scales[first * groups..],
                scale_stride: groups,
                zero_points: (!params.symmetric).then_some(&mut this.zeros[first * groups..]),
            };
            let weighted = &mut this.weighted[first..first + n];
            gptq::quantize_int4(&block, factor, params, out, sums.rows(first, n), weighted).unwrap();
        }
        this.errors = sums.finish();
        this
    }

    fn steps(&self, ins: usize, group: usize, out: usize, input: usize) -> f64 {
        let code = nibbles::unpack(self.packed[out * nibbles::words(ins) + input / 8])[input % 8];
        f64::from(code) - f64::from(self.zeros[out * (ins / group) + input / group])
    }

    fn scale(&self, ins: usize, group: usize, out: usize, input: usize) -> f64 {
        self.scales[out * (ins / group) + input / group].to_f64()
    }

    /// The values that the codes stand for.
    fn values(&self, (outs, ins): (usize, usize), group: usize) -> Vec<f64> {
        let value = |out, input| self.steps(ins, group, out, input) * self.scale(ins, group, out, input);
        let at = |i: usize| bf16::from_f64(value(i / ins, i % ins)).to_f64();
        (0..outs * ins).map(at).collect()
    }
}

/// `(w - v) H (w - v)ᵀ`
fn weighted_error(h: &[f64], w: &[f32], v: &[f64]) -> f64 {
    let n = w.len();
    let e: Vec<f64> = w.iter().zip(v).map(|(w, v)| f64::from(*w) - v).collect();
    (0..n).map(|i| e[i] * (0..n).map(|j| h[i * n + j] * e[j]).sum::<f64>()).sum()
}

/// The values of one output by the textbook: round the next input, spread the error with the inverse's row, eliminate.
fn textbook(w: &[f32], hinv: &[f64], order: &[usize], grid: impl Fn(usize) -> (f64, f64)) -> Vec<f64> {
    let n = w.len();
    let mut w: Vec<f64> = w.iter().map(|&w| f64::from(w)).collect();
    let mut hinv = hinv.to_vec();
    let mut left = order.to_vec();
    let mut values = vec![0.0; n];
    while !left.is_empty() {
        let i = left.remove(0);
        let (scale, zero) = grid(i);
        let code = (w[i] / scale + zero).clamp(-8.0, 7.0).round_ties_even();
        values[i] = bf16::from_f64((code - zero) * scale).to_f64();
        let error = (w[i] - values[i]) / hinv[i * n + i];
        let row: Vec<f64> = hinv[i * n..(i + 1) * n].to_vec();
        for &j in &left {
            w[j] -= error * row[j];
            for &k in &left {
                hinv[j * n + k] -= row[j] * row[k] / row[i];
            }
        }
    }
    values
}

struct Case {
    outs: usize,
    ins: usize,
    rows: usize,
    group: usize,
    symmetric: bool,
    dead: Option<usize>,
}

fn check(case: &Case) {
    let Case { outs, ins, rows, group, symmetric, dead } = *case;
    let mut random = Random((outs * 31 + ins) as u64);
    let x = inputs(&mut random, rows, ins, dead);
    let weights: Vec<f32> = random.values(outs * ins).into_iter().map(|w| bf16::from_f32(w * 0.02).to_f32()).collect();
    let mut hessian = Hessian::new(ins);
    hessian.add(Threads::Pool, View::dense(&x, rows, ins));
    let moments = hessian.diagonal();
    let factor = Factor::new(Threads::Pool, hessian, 0.01).unwrap();
    assert_eq!(factor.damping, 0.01);
    let params = Params { group_size: group, symmetric };
    let layout = if outs % 2 == 0 { Layout::OutIn } else { Layout::InOut };
    let m = Matrix::new(&weights, (outs, ins), Float::BF16, layout, 3, 1);
    let got = Quantized::of(&m, &factor, &params, outs);

    let h = damped(&x, ins, 0.01);
    let hinv = inverse(&h, ins);
    let mut sequence: Vec<usize> = (0..ins).collect();
    // A dead input counts as the mean of the others. Equal to the factor's order but where moments are equal in float32.
    let mean = moments.iter().sum::<f32>() / moments.iter().filter(|&&x| x > 0.0).count() as f32;
    let size = |i: usize| if dead == Some(i) { mean } else { moments[i] };
    sequence.sort_by(|&a, &b| size(b).total_cmp(&size(a)).then(a.cmp(&b)));
    let values = got.values((outs, ins), group);
    let (mut differ, mut total, mut expected_total) = (0, 0.0, 0.0);
    for out in 0..outs {
        let (w, v) = (&weights[out * ins..][..ins], &values[out * ins..][..ins]);
        let zero = |i: usize| f64::from(got.zeros[out * (ins / group) + i / group]);
        let expected = textbook(w, &hinv, &sequence, |i| (got.scale(ins, group, out, i), zero(i)));
        differ += expected.iter().zip(v).filter(|(a, b)| a != b).count();
        let error = weighted_error(&h, w, v);
        // What the solver adds up on its way is the weighted error.
        assert!((error - got.weighted[out]).abs() <= 1e-3 * error, "{error} {}", got.weighted[out]);
        total += error;
        expected_total += weighted_error(&h, w, &expected);
    }
    // A weight that lies in the middle of two codes may go either way, and what follows it differs too.
    assert!(differ * 50 <= outs * ins, "{differ} of {} values differ", outs * ins);
    assert!((total / expected_total - 1.0).abs() < 0.01, "{total} {expected_total}");
    let plain: f64 = weights.iter().zip(&values).map(|(w, v)| (f64::from(*w) - v).powi(2)).sum();
    assert!((got.errors.sum_sq_error / plain - 1.0).abs() < 1e-5, "{} {plain}", got.errors.sum_sq_error);

    for isa in isas() {
        for step in [16, 40] {
            assert_eq!(
                pinned(isa, || Quantized::of(&m, &factor, &params, step)),
                got,
                "{isa}, {step} outputs at a time"
            );
        }
    }
}

#[test]
fn rounding_follows_the_textbook() {
    let case = Case { outs: 48, ins: 96, rows: 500, group: 32, symmetric: true, dead: None };
    check(&case);
    check(&Case { outs: 33, ins: 200, rows: 90, group: 40, symmetric: false, dead: Some(7) });
    check(&Case { outs: 20, ins: 160, group: 160, ..case });
}

/// `Y H Yᵀ` must be the unit matrix, for sizes around the blocks.
#[test]
fn factors_are_inverses() {
    for (ins, rows) in [(1, 3), (5, 2), (127, 60), (128, 200), (129, 700), (300, 100), (385, 2000)] {
        let mut random = Random(ins as u64);
        let x = inputs(&mut random, rows, ins, (ins > 4).then_some(3));
        let mut hessian = Hessian::new(ins);
        hessian.add(Threads::Pool, View::dense(&x, rows, ins));
        let factor = Factor::new(Threads::Pool, hessian.clone(), 0.01).unwrap();
        let h = damped(&x, ins, factor.damping);
        let (order, y) = factor.parts();
        for i in 0..ins {
            // Row i of Y H, then its products with rows of Y.
            let row: Vec<f64> = (0..ins)
                .map(|c| {
                    (0..=i).map(|p| f64::from(y[i * ins + p]) * h[order[p] as usize * ins + order[c] as usize]).sum()
                })
                .collect();
            for j in 0..ins {
                let product: f64 = (0..=j).map(|p| row[p] * f64::from(y[j * ins + p])).sum();
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((product - expected).abs() < 2e-3, "{ins} inputs: ({i}, {j}) is {product}");
            }
        }
        for isa in isas() {
            let again = pinned(isa, || Factor::new(Threads::One, hessian.clone(), 0.01));
            assert_eq!(again.as_ref(), Ok(&factor));
        }
    }
}

#[test]
fn second_moments_do_not_depend_on_how_rows_come() {
    let mut random = Random(5);
    let (rows, ins) = (700, 75);
    let x = inputs(&mut random, rows, ins, Some(0));
    let mut whole = Hessian::new(ins);
    whole.add(Threads::Pool, View::dense(&x, rows, ins));
    let mut pieces = Hessian::new(ins);
    for part in x.chunks(ins * 33) {
        pieces.add(Threads::One, View::dense(part, part.len() / ins, ins));
    }
    assert_eq!(whole, pieces);
    assert_eq!(whole.rows(), 700.0);
    for i in 0..ins {
        for j in 0..=i {
            let exact: f64 = x.chunks(ins).map(|row| f64::from(row[i]) * f64::from(row[j])).sum();
            let size: f64 = x.chunks(ins).map(|row| (f64::from(row[i]) * f64::from(row[j])).abs()).sum();
            let got = f64::from(whole.sums()[i * ins + j]);
            assert!((got - exact).abs() <= size * 1e-6, "({i}, {j}): {got} {exact}");
        }
    }
    // (3 H + 2 P) / 5 for means H and P: by hand, in one dimension: H = (1 + 4 + 9) / 3, P = 16.
    let (mut few, mut pooled) = (Hessian::new(1), Hessian::new(1));
    few.add(Threads::One, View::dense(&[1.0, 2.0, 3.0], 3, 1));
    pooled.add(Threads::One, View::dense(&[4.0, -4.0], 2, 1));
    few.blend(&pooled, 2.0);
    assert_eq!((few.rows(), few.sums()[0]), (5.0, 46.0));
    few.blend(&Hessian::new(1), 2.0);
    assert_eq!(few.rows(), 5.0);
}

#[test]
fn bad_second_moments_end_in_an_error_or_more_damping() {
    let make = |n: usize, sums: Vec<f32>, damping| Factor::new(Threads::One, Hessian::from_sums(n, 1.0, sums), damping);
    // No row at all: every weight is rounded by itself.
    let factor = Factor::new(Threads::One, Hessian::new(3), 0.01).unwrap();
    assert_eq!(factor.damping, 0.01);
    // Rank one: without damping it has no factor.
    let factor = make(2, vec![1.0, 0.0, 1.0, 1.0], 0.0).unwrap();
    assert!(factor.damping > 0.0);
    // Not second moments of anything.
    let error = make(2, vec![1.0, 0.0, 1e6, 1.0], 0.01).unwrap_err();
    assert!(matches!(error, FactorError::NotPositiveDefinite { .. }), "{error}");
    let error = make(2, vec![1e-30, 0.0, 3e38, 1e-30], 0.01).unwrap_err();
    assert!(matches!(error, FactorError::NotFinite), "{error}");
}

#[test]
fn what_is_not_finite_is_named() {
    let factor = Factor::new(Threads::One, Hessian::new(32), 0.01).unwrap();
    for (value, layout) in [(f32::NAN, Layout::OutIn), (f32::INFINITY, Layout::InOut), (3e38, Layout::OutIn)] {
        let mut weights = vec![0.25; 5 * 32];
        weights[3 * 32 + 17] = value;
        let m = Matrix::new(&weights, (5, 32), Float::F32, layout, 0, 0);
        let (mut packed, mut scales, mut weighted) = (vec![0; 5 * 4], vec![bf16::ZERO; 5 * 2], vec![0.0; 5]);
        let out =
            Int4Out { packed: &mut packed, packed_stride: 4, scales: &mut scales, scale_stride: 2, zero_points: None };
        let mut sums = ErrorSums::new(5);
        let params = Params { group_size: 16, symmetric: true };
        let result = gptq::quantize_int4(&m.block(), &factor, &params, out, sums.rows(0, 5), &mut weighted);
        if value == 3e38 {
            // Its quantized form is 7 / 7.5 of it or less.
            result.unwrap();
        } else {
            let bad = result.unwrap_err();
            assert_eq!((bad.out, bad.input), (3, 17));
        }
    }
}

/// Against torch in float64 (`testdata/make_gptq_goldens.py`): the order of inputs, the factor, and an error that
/// is lower than with round-to-nearest's scales.
#[test]
fn torch_agrees() {
    let file = SafeTensors::deserialize(include_bytes!("../../../testdata/gptq-goldens.safetensors")).unwrap();
    let bf16s = |name: &str| -> Vec<f32> {
        let values = file.tensor(name).unwrap().data().as_chunks::<2>().0;
        values.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect()
    };
    let f32s = |name: &str| -> Vec<f32> {
        file.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    for name in ["many", "few"] {
        let (x, w) = (bf16s(&format!("{name}.x")), bf16s(&format!("{name}.w")));
        let ins = *file.tensor(&format!("{name}.x")).unwrap().shape().last().unwrap();
        let (rows, outs) = (x.len() / ins, w.len() / ins);
        let mut hessian = Hessian::new(ins);
        hessian.add(Threads::Pool, View::dense(&x, rows, ins));
        let factor = Factor::new(Threads::Pool, hessian, 0.01).unwrap();
        let (order, inverse) = factor.parts();
        let sequence: Vec<u32> = order.iter().rev().copied().collect();
        let expected: Vec<u32> = file
            .tensor(&format!("{name}.order"))
            .unwrap()
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&b| u32::from_le_bytes(b))
            .collect();
        assert_eq!(sequence, expected, "{name}");
        let golden = f32s(&format!("{name}.inverse"));
        let size = golden.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        for i in 0..ins {
            for j in i..ins {
                let (got, expected) = (inverse[(ins - 1 - i) * ins + ins - 1 - j], golden[i * ins + j]);
                assert!((got - expected).abs() <= 1e-4 * size, "{name} ({i}, {j}): {got} {expected}");
            }
        }
        let m = Matrix::new(&w, (outs, ins), Float::BF16, Layout::InOut, 0, 0);
        let got = Quantized::of(&m, &factor, &Params { group_size: 32, symmetric: true }, outs);
        let total = |name: String| f32s(&name).iter().map(|&x| f64::from(x)).sum::<f64>();
        let (torch, rtn) = (total(format!("{name}.error")), total(format!("{name}.rtn")));
        let ours: f64 = got.weighted.iter().sum();
        assert!(torch < 0.7 * rtn && ours < 0.97 * torch, "{name}: {ours}, torch {torch}, round-to-nearest {rtn}");
    }
}
