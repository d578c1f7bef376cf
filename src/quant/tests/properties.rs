//! Random matrices of every shape, layout and format, on every instruction set, against the naive arithmetic.

use half::bf16;
use proptest::prelude::*;

use super::naive::{self, Group};
use super::{Matrix, isas};
use crate::dtype::int4 as nibbles;
use crate::kernels::{Float, pinned};
use crate::quant::fp8::{self, BlockScales, Coded, Codes};
use crate::quant::int4::{self, Int4Out, Packed, Params};
use crate::quant::{ErrorSums, Errors, Layout, Method, STRIPE_INPUTS};

/// Weights as they come, and as they should not come: zeros, subnormals, outliers, one sign, huge and tiny rows.
fn weight(kind: u8, random: u32) -> f32 {
    let unit = f64::from(random >> 8) / f64::from(1 << 24) - 0.5;
    let bell = (unit * 2.0).powi(3) as f32;
    match kind % 8 {
        0 => 0.0,
        1 => bell.abs(),
        2 => bell * 1e-40,
        3 => bell * 1e4,
        4 if random.is_multiple_of(61) => bell * 300.0,
        5 => bell * 2e-38,
        6 => (random % 31) as f32 / 4.0 - 3.75,
        _ => bell,
    }
}

fn float() -> impl Strategy<Value = Float> {
    prop_oneof![Just(Float::BF16), Just(Float::F16), Just(Float::F32)]
}

fn matrix(outs: std::ops::Range<usize>, ins: impl Strategy<Value = usize>) -> impl Strategy<Value = Matrix> {
    let layout = prop_oneof![Just(Layout::OutIn), Just(Layout::InOut)];
    (outs, ins, float(), layout, 0..4_usize, 0..4_usize, any::<u64>()).prop_map(
        |(outs, ins, float, layout, gap, offset, seed)| {
            let mut state = seed | 1;
            let mut next = move || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 32) as u32
            };
            let mut weights = Vec::with_capacity(outs * ins);
            let mut kind = 0;
            for i in 0..outs * ins {
                if i % 20 == 0 && (i % ins == 0 || next() % 4 == 0) {
                    kind = (next() >> 16) as u8;
                }
                weights.push(weight(kind, next()));
            }
            Matrix::new(&weights, (outs, ins), float, layout, gap, offset)
        },
    )
}

/// Everything that quantizing gives.
#[derive(Debug, PartialEq)]
struct Int4 {
    packed: Vec<u32>,
    scales: Vec<bf16>,
    zeros: Vec<i8>,
    errors: Errors,
}

/// Quantizes in stripes of `stripe` stored rows.
fn int4_in_stripes(m: &Matrix, params: &Params, stripe: usize) -> Int4 {
    let (width, groups) = (nibbles::words(m.ins), m.ins / params.group_size);
    let (mut packed, mut scales) = (vec![0xdead_beef; m.outs * width], vec![bf16::NAN; m.outs * groups]);
    let mut zeros = vec![0; m.outs * groups];
    let mut sums = ErrorSums::new(m.outs);
    let rows = if m.layout == Layout::OutIn { m.outs } else { m.ins };
    for first in (0..rows).step_by(stripe) {
        let n = stripe.min(rows - first);
        let (words, at, out) = if m.layout == Layout::OutIn {
            (first * width, first * groups, first)
        } else {
            (first / 8, first / params.group_size, 0)
        };
        let block = m.stripe(first, n);
        let out_slices = Int4Out {
            packed: &mut packed[words..],
            packed_stride: width,
            scales: &mut scales[at..],
            scale_stride: groups,
            zero_points: (!params.symmetric).then_some(&mut zeros[at..]),
        };
        int4::quantize(&block, params, out_slices, sums.rows(out, block.outs())).unwrap();
    }
    Int4 { packed, scales, zeros, errors: sums.finish() }
}

/// Equal but for rounding in `f32`; squares of weights too small for a scale of their own may count as nothing.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-5 * a.abs().max(b.abs()) + 1e-60
}

fn check_int4(m: &Matrix, group: usize, symmetric: bool) {
    let (width, groups, weights) = (nibbles::words(m.ins), m.ins / group, m.weights());
    let mut rtn_total = None;
    for method in [Method::Rtn, Method::Search] {
        let params = Params { group_size: group, symmetric, method };
        let got = int4_in_stripes(m, &params, usize::MAX / 2);
        for isa in isas() {
            assert_eq!(pinned(isa, || int4_in_stripes(m, &params, usize::MAX / 2)), got, "{isa}");
        }
        let stripe = if m.layout == Layout::OutIn { 3 } else { group * STRIPE_INPUTS };
        assert_eq!(int4_in_stripes(m, &params, stripe), got, "stripes");
        if m.layout == Layout::InOut && group.is_multiple_of(8) {
            assert_eq!(int4_in_stripes(m, &params, group), got, "stripes of a group");
        }

        let (mut values, mut rtn_error) = (Vec::new(), 0.0);
        for out in 0..m.outs {
            let mut codes = Vec::new();
            for g in 0..groups {
                let w = &weights[out * m.ins + g * group..][..group];
                let rtn = Group::rtn(w, symmetric);
                let (scale, zero) = (got.scales[out * groups + g].to_f32(), got.zeros[out * groups + g]);
                let found = if method == Method::Rtn { Group::rtn(w, symmetric) } else { Group::with(w, scale, zero) };
                assert_eq!((found.scale, found.zero), (scale, zero), "{w:?}");
                let (error, plain) =
                    (naive::squared_error(w, &found.dequantized()), naive::squared_error(w, &rtn.dequantized()));
                assert!(error <= plain, "{error:e} is worse than {plain:e} for {w:?}");
                rtn_error += plain;
                codes.extend(&found.codes);
                values.extend(found.dequantized());
            }
            let mut packed = vec![0; width];
            nibbles::pack_row(&codes, &mut packed);
            assert_eq!(got.packed[out * width..][..width], packed, "output {out}");
        }
        let total = naive::squared_error(&weights, &vec![0.0; weights.len()]);
        assert!(close(got.errors.sum_sq_weight, total), "{:?} {total:e}", got.errors);
        assert!(close(got.errors.sum_sq_error, naive::squared_error(&weights, &values)), "{:?}", got.errors);
        assert!(close(got.errors.sum_sq_error_rtn, rtn_error), "{:?} {rtn_error:e}", got.errors);
        let largest = weights.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(close(got.errors.max_abs_error.into(), largest.into()), "{:?} {largest:e}", got.errors);
        let rtn = *rtn_total.get_or_insert(got.errors.sum_sq_error);
        assert!(close(got.errors.sum_sq_error_rtn, rtn));
        check_int4_back(m, group, symmetric, &got, &values);
    }
}

/// Dequantizing gives the naive values, on every instruction set and into both types.
fn check_int4_back(m: &Matrix, group: usize, symmetric: bool, got: &Int4, values: &[f32]) {
    let codes: Vec<u8> = got.packed.iter().flat_map(|w| w.to_le_bytes()).collect();
    let scales: Vec<u8> = got.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    let packed = Packed {
        codes: &codes,
        scales: &scales,
        float: Float::BF16,
        zero_points: (!symmetric).then_some(&got.zeros),
        rows: m.outs,
        ins: m.ins,
        group_size: group,
    };
    for isa in isas() {
        let (mut wide, mut narrow) = (vec![f32::NAN; values.len()], vec![bf16::NAN; values.len()]);
        pinned(isa, || int4::dequantize(&packed, &mut wide));
        pinned(isa, || int4::dequantize(&packed, &mut narrow));
        assert_eq!(wide, values, "{isa}");
        assert!(narrow.iter().zip(values).all(|(a, b)| a.to_f32() == *b), "{isa}");
    }
}

/// Scales, codes and errors.
type Fp8 = (Vec<bf16>, Vec<u8>, Errors);

fn fp8_in_stripes(m: &Matrix, blocks: Option<(usize, usize)>, stripe: usize) -> Fp8 {
    let rows = if m.layout == Layout::OutIn { m.outs } else { m.ins };
    let mut sums = ErrorSums::new(m.outs);
    let mut bytes = vec![0xaa; m.outs * m.ins];
    let at = |first: usize| {
        if m.layout == Layout::OutIn { (first, first * m.ins) } else { (0, first) }
    };
    let stripes = || (0..rows).step_by(stripe).map(|first| (first, m.stripe(first, stripe.min(rows - first))));
    let mut scales = Vec::new();
    if let Some((height, width)) = blocks {
        let across = m.ins.div_ceil(width);
        scales = vec![bf16::NAN; m.outs.div_ceil(height) * across];
        for (first, block) in stripes() {
            let (out, byte) = at(first);
            let from = if m.layout == Layout::OutIn { first / height * across } else { first / width };
            let scales = BlockScales { scales: &mut scales[from..], stride: across, height, width };
            let codes = Codes { bytes: &mut bytes[byte..], stride: m.ins };
            fp8::quantize_block(&block, scales, codes, sums.rows(out, block.outs())).unwrap();
        }
    } else {
        let mut amax = vec![0.0; m.outs];
        for (first, block) in stripes() {
            fp8::absmax(&block, &mut amax[at(first).0..][..block.outs()]).unwrap();
        }
        scales.extend(amax.into_iter().map(fp8::scale));
        for (first, block) in stripes() {
            let (out, byte) = at(first);
            let codes = Codes { bytes: &mut bytes[byte..], stride: m.ins };
            let scales = &scales[out..][..block.outs()];
            fp8::quantize_channel(&block, scales, codes, sums.rows(out, block.outs())).unwrap();
        }
    }
    (scales, bytes, sums.finish())
}

fn check_fp8(m: &Matrix, blocks: Option<(usize, usize)>) {
    let weights = m.weights();
    let got = fp8_in_stripes(m, blocks, usize::MAX / 2);
    for isa in isas() {
        assert_eq!(pinned(isa, || fp8_in_stripes(m, blocks, usize::MAX / 2)), got, "{isa}");
    }
    let (height, width) = blocks.unwrap_or((1, m.ins));
    let stripe = match m.layout {
        Layout::OutIn => height,
        Layout::InOut => STRIPE_INPUTS * blocks.map_or(1, |_| width),
    };
    assert_eq!(fp8_in_stripes(m, blocks, stripe), got, "stripes");

    let (mut codes, mut values) = (vec![0; weights.len()], vec![0.0; weights.len()]);
    let across = m.ins.div_ceil(width);
    for down in 0..m.outs.div_ceil(height) {
        for b in 0..across {
            let of_block = |i: &usize| i / m.ins / height == down && i % m.ins / width == b;
            let places: Vec<usize> = (0..weights.len()).filter(of_block).collect();
            let part: Vec<f32> = places.iter().map(|i| weights[*i]).collect();
            let (scale, c, v) = naive::fp8_with(&part, naive::amax(part.iter().copied()));
            assert_eq!(got.0[down * across + b].to_f32(), scale);
            for (i, place) in places.into_iter().enumerate() {
                (codes[place], values[place]) = (c[i], v[i]);
            }
        }
    }
    assert_eq!(got.1, codes);
    assert!(close(got.2.sum_sq_weight, naive::squared_error(&weights, &vec![0.0; weights.len()])), "{:?}", got.2);
    assert!(close(got.2.sum_sq_error, naive::squared_error(&weights, &values)), "{:?}", got.2);
    assert_eq!(got.2.sum_sq_error, got.2.sum_sq_error_rtn);
    let scales: Vec<u8> = got.0.iter().flat_map(|s| s.to_le_bytes()).collect();
    let mut coded = Coded {
        codes: &got.1,
        scales: &scales,
        float: Float::BF16,
        block: (height, width),
        first_row: 0,
        rows: m.outs,
        ins: m.ins,
    };
    for isa in isas() {
        let (mut wide, mut narrow) = (vec![f32::NAN; values.len()], vec![bf16::NAN; values.len()]);
        pinned(isa, || fp8::dequantize(&coded, &mut wide));
        pinned(isa, || fp8::dequantize(&coded, &mut narrow));
        assert_eq!(wide, values, "{isa}");
        assert!(narrow.iter().zip(&values).all(|(a, b)| a.to_f32() == *b), "{isa}");
    }
    let skipped = m.outs / 2;
    (coded.first_row, coded.rows, coded.codes) = (skipped, m.outs - skipped, &got.1[skipped * m.ins..]);
    let mut rest = vec![0.0; coded.rows * m.ins];
    fp8::dequantize(&coded, &mut rest);
    assert_eq!(rest, values[skipped * m.ins..]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn int4_is_the_naive_arithmetic(
        (m, group) in prop_oneof![
            Just(4_usize), Just(8), Just(12), Just(16), Just(20), Just(24), Just(32), Just(64), Just(128), Just(256)
        ].prop_flat_map(|group| {
            let most = 600 / group;
            (matrix(1..40, (1..=most.max(1)).prop_map(move |n| n * group)), Just(group))
        }),
        symmetric: bool,
    ) {
        check_int4(&m, group, symmetric);
    }

    #[test]
    fn fp8_per_channel_is_the_naive_arithmetic(m in matrix(1..40, 1..300_usize)) {
        check_fp8(&m, None);
    }

    #[test]
    fn fp8_per_block_is_the_naive_arithmetic(
        m in matrix(1..80, 1..300_usize),
        blocks in prop_oneof![Just((128, 128)), Just((32, 64)), Just((17, 19)), Just((1, 40)), Just((48, 1))],
    ) {
        check_fp8(&m, Some(blocks));
    }

    #[test]
    fn zero_points_pack_along_outputs(outs in 1..30_usize, groups in 1..9_usize, seed: u64) {
        let zeros: Vec<i8> = (0..outs * groups).map(|i| ((seed >> (i % 61)) & 15) as i8 - 8).collect();
        let mut packed = vec![0; outs.div_ceil(8) * groups];
        int4::pack_zero_points(&zeros, outs, groups, &mut packed);
        for group in 0..groups {
            let column: Vec<i8> = (0..outs).map(|out| zeros[out * groups + group]).collect();
            let mut expected = vec![0; outs.div_ceil(8)];
            nibbles::pack_row(&column, &mut expected);
            let words: Vec<u32> = (0..outs.div_ceil(8)).map(|row| packed[row * groups + group]).collect();
            prop_assert_eq!(words, expected);
        }
        let bytes: Vec<u8> = packed.iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut back = vec![0; zeros.len()];
        int4::unpack_zero_points(&bytes, outs, groups, &mut back);
        prop_assert_eq!(back, zeros);
    }

    #[test]
    fn scales_of_every_format_are_honoured(
        codes in prop::collection::vec(any::<u8>(), 64),
        float in float(),
        scale in -2.0_f32..2.0,
        zero in -8..8_i8,
    ) {
        let scale = float.round(scale);
        let bytes = match float {
            Float::BF16 => bf16::from_f32(scale).to_le_bytes().to_vec(),
            Float::F16 => half::f16::from_f32(scale).to_le_bytes().to_vec(),
            Float::F32 => scale.to_le_bytes().to_vec(),
        };
        let packed = Packed { codes: &codes, scales: &bytes, float, zero_points: Some(&[zero]), rows: 1, ins: 128, group_size: 128 };
        let coded = Coded { codes: &codes, scales: &bytes, float, block: (1, 64), first_row: 0, rows: 1, ins: 64 };
        for isa in isas() {
            let (mut a, mut b) = ([0.0_f32; 128], [0.0_f32; 64]);
            pinned(isa, || int4::dequantize(&packed, &mut a));
            pinned(isa, || fp8::dequantize(&coded, &mut b));
            for (i, code) in codes.iter().enumerate() {
                for (half, q) in [code & 15, code >> 4].into_iter().enumerate() {
                    let steps = i32::from(q) - 8 - i32::from(zero);
                    prop_assert_eq!(a[2 * i + half], float.round(steps as f32 * scale));
                }
                let value = float.round(crate::dtype::fp8::decode(*code) * scale);
                prop_assert!(b[i] == value || b[i].is_nan() && value.is_nan(), "{code:#x}: {} {value}", b[i]);
            }
        }
    }
}
