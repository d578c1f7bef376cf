//! Kernels alone, on one core, at the shapes of Scout's experts: bytes of BF16 input per second.
//!
//! `cargo bench --bench kernels`; a filter such as `-- int4` or `-- Avx512` runs some of them.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use half::bf16;
use l4::kernels::{Float, Isa, first_nonfinite, pinned};
use l4::quant::fp8::{self, BlockScales, Codes};
use l4::quant::int4::{self, Int4Out, Packed, Params};
use l4::quant::{Block, ErrorSums, Layout, Method};

fn main() {
    divan::main();
}

/// Outputs and inputs of one expert's `gate`; a row of the fused tensor also holds its `up`.
const SHAPE: (usize, usize) = (8192, 5120);
const FUSED: usize = 16384;

/// Bell-shaped weights of the size that trained ones have.
fn weights(values: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut bytes = Vec::with_capacity(values * 2);
    for _ in 0..values {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let sum: i32 = state.to_le_bytes()[2..].iter().map(|&b| i32::from(b) - 127).sum();
        bytes.extend(bf16::from_f32(sum as f32 * 1e-4).to_le_bytes());
    }
    bytes
}

fn input(layout: Layout) -> (Vec<u8>, usize) {
    match layout {
        Layout::OutIn => (weights(SHAPE.0 * SHAPE.1), SHAPE.1),
        Layout::InOut => (weights(FUSED * SHAPE.1), FUSED),
    }
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

fn cases() -> impl Iterator<Item = (Isa, Layout)> {
    isas().flat_map(|isa| [(isa, Layout::InOut), (isa, Layout::OutIn)])
}

fn bench_int4(bencher: Bencher<'_, '_>, (isa, layout): (Isa, Layout), symmetric: bool, method: Method) {
    let (bytes, stride) = input(layout);
    let (outs, ins) = SHAPE;
    let block = Block::new(&bytes, Float::BF16, layout, stride, SHAPE);
    let groups = ins / 128;
    let (mut packed, mut scales) = (vec![0; outs * ins / 8], vec![bf16::ZERO; outs * groups]);
    let mut zeros = vec![0; outs * groups];
    let params = Params { group_size: 128, symmetric, method };
    bencher.counter(BytesCount::new(outs * ins * 2)).bench_local(|| {
        let mut sums = ErrorSums::new(outs);
        let out = Int4Out {
            packed: &mut packed,
            packed_stride: ins / 8,
            scales: &mut scales,
            scale_stride: groups,
            zero_points: (!symmetric).then_some(&mut zeros),
        };
        pinned(isa, || int4::quantize(black_box(&block), &params, out, sums.rows(0, outs))).expect("finite");
        sums.finish()
    });
}

#[divan::bench(args = cases(), sample_count = 5)]
fn int4_rtn(bencher: Bencher<'_, '_>, case: (Isa, Layout)) {
    bench_int4(bencher, case, true, Method::Rtn);
}

#[divan::bench(args = cases(), sample_count = 5)]
fn int4_search(bencher: Bencher<'_, '_>, case: (Isa, Layout)) {
    bench_int4(bencher, case, true, Method::Search);
}

#[divan::bench(args = cases(), sample_count = 5)]
fn int4_asymmetric_rtn(bencher: Bencher<'_, '_>, case: (Isa, Layout)) {
    bench_int4(bencher, case, false, Method::Rtn);
}

#[divan::bench(args = cases(), sample_count = 5)]
fn int4_asymmetric_search(bencher: Bencher<'_, '_>, case: (Isa, Layout)) {
    bench_int4(bencher, case, false, Method::Search);
}

#[divan::bench(args = cases(), sample_count = 5)]
fn fp8_absmax(bencher: Bencher<'_, '_>, (isa, layout): (Isa, Layout)) {
    let (bytes, stride) = input(layout);
    let block = Block::new(&bytes, Float::BF16, layout, stride, SHAPE);
    let mut amax = vec![0.0; SHAPE.0];
    bencher.counter(BytesCount::new(SHAPE.0 * SHAPE.1 * 2)).bench_local(|| {
        pinned(isa, || fp8::absmax(black_box(&block), &mut amax)).expect("finite");
    });
}

#[divan::bench(args = cases(), sample_count = 5)]
fn fp8_channel(bencher: Bencher<'_, '_>, (isa, layout): (Isa, Layout)) {
    let (bytes, stride) = input(layout);
    let (outs, ins) = SHAPE;
    let block = Block::new(&bytes, Float::BF16, layout, stride, SHAPE);
    let mut amax = vec![0.0; outs];
    fp8::absmax(&block, &mut amax).expect("finite");
    let scales: Vec<bf16> = amax.into_iter().map(fp8::scale).collect();
    let mut codes = vec![0; outs * ins];
    bencher.counter(BytesCount::new(outs * ins * 2)).bench_local(|| {
        let mut sums = ErrorSums::new(outs);
        let codes = Codes { bytes: &mut codes, stride: ins };
        pinned(isa, || fp8::quantize_channel(black_box(&block), &scales, codes, sums.rows(0, outs))).expect("finite");
        sums.finish()
    });
}

#[divan::bench(args = cases(), sample_count = 5)]
fn fp8_block(bencher: Bencher<'_, '_>, (isa, layout): (Isa, Layout)) {
    let (bytes, stride) = input(layout);
    let (outs, ins) = SHAPE;
    let block = Block::new(&bytes, Float::BF16, layout, stride, SHAPE);
    let (mut codes, mut scales) = (vec![0; outs * ins], vec![bf16::ZERO; outs * ins / 128 / 128]);
    bencher.counter(BytesCount::new(outs * ins * 2)).bench_local(|| {
        let mut sums = ErrorSums::new(outs);
        let scales = BlockScales { scales: &mut scales, stride: ins / 128, height: 128, width: 128 };
        let codes = Codes { bytes: &mut codes, stride: ins };
        pinned(isa, || fp8::quantize_block(black_box(&block), scales, codes, sums.rows(0, outs))).expect("finite");
        sums.finish()
    });
}

/// Bytes are those of the BF16 weights that come out.
#[divan::bench(args = isas(), sample_count = 5)]
fn int4_dequantize(bencher: Bencher<'_, '_>, isa: Isa) {
    let (outs, ins) = SHAPE;
    let (codes, scales) = (vec![0x5a; outs * ins / 2], vec![0x3c; outs * ins / 128 * 2]);
    let packed = Packed {
        codes: &codes,
        scales: &scales,
        float: Float::BF16,
        zero_points: None,
        rows: outs,
        ins,
        group_size: 128,
    };
    let mut weights = vec![bf16::ZERO; outs * ins];
    bencher
        .counter(BytesCount::new(outs * ins * 2))
        .bench_local(|| pinned(isa, || int4::dequantize(black_box(&packed), &mut weights)));
}

/// Bytes are those of the BF16 weights that come out.
#[divan::bench(args = isas(), sample_count = 5)]
fn fp8_dequantize(bencher: Bencher<'_, '_>, isa: Isa) {
    let (rows, ins) = SHAPE;
    let (codes, scales) = (vec![0x5a; rows * ins], vec![0x3c; rows * 2]);
    let block = (1, ins);
    let coded = fp8::Coded { codes: &codes, scales: &scales, float: Float::BF16, block, first_row: 0, rows, ins };
    let mut weights = vec![bf16::ZERO; rows * ins];
    bencher
        .counter(BytesCount::new(rows * ins * 2))
        .bench_local(|| pinned(isa, || fp8::dequantize(black_box(&coded), &mut weights)));
}

#[divan::bench(args = isas(), sample_count = 5)]
fn search_for_nonfinite(bencher: Bencher<'_, '_>, isa: Isa) {
    let bytes = weights(SHAPE.0 * SHAPE.1);
    bencher
        .counter(BytesCount::new(bytes.len()))
        .bench_local(|| pinned(isa, || first_nonfinite(black_box(&bytes), Float::BF16)));
}

/// What the machine does with the same bytes when nothing is computed.
#[divan::bench(sample_count = 5)]
fn plain_copy(bencher: Bencher<'_, '_>) {
    let bytes = weights(SHAPE.0 * SHAPE.1);
    let mut copy = vec![0; bytes.len()];
    bencher.counter(BytesCount::new(bytes.len())).bench_local(|| copy.copy_from_slice(black_box(&bytes)));
}
