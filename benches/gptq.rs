//! Calibration's arithmetic on the shapes of one real expert of Scout, on all cores: second moments of its inputs, and GPTQ.
//!
//! `cargo bench --bench gptq`. For `moments`, divan counts multiply-adds as items: 1 Gitem/s is 2 GFLOP/s. `peak` is the
//! product that the same machine does best, for comparison.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use half::bf16;
use l4::kernels::Float;
use l4::kernels::gemm::{GemmPath, Layout, Threads, View, ViewMut, matmul_with};
use l4::quant::gptq::{Factor, PIECE, Params, quantize_int4};
use l4::quant::int4::Int4Out;
use l4::quant::{Block, ErrorSums, Hessian};
use rayon::prelude::*;

const HIDDEN: usize = 5120;
const INNER: usize = 8192;

fn main() {
    divan::main();
}

/// Bell-shaped numbers.
fn values(count: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let sum: i32 = state.to_le_bytes()[2..].iter().map(|&b| i32::from(b) - 127).sum();
        sum as f32 / 180.0
    };
    (0..count).map(|_| next()).collect()
}

/// Second moments of inputs that go together in pairs and differ in size.
fn hessian(inputs: usize, rows: usize) -> Hessian {
    let mut x = values(rows * inputs);
    for row in x.chunks_mut(inputs) {
        for i in 1..inputs {
            row[i] = (row[i] + 0.5 * row[i - 1]) * (0.2 + (i % 17) as f32 / 17.0);
        }
    }
    let mut hessian = Hessian::new(inputs);
    hessian.add(Threads::Pool, View::dense(&x, rows, inputs));
    hessian
}

fn solve(factor: &Factor, outs: usize, weights: &[u8]) -> f64 {
    let (ins, params) = (factor.inputs(), Params { group_size: 128, symmetric: true });
    let block = Block::new(weights, Float::BF16, Layout::InOut, outs, (outs, ins));
    let stripes: Vec<usize> = (0..outs).step_by(PIECE).collect();
    let errors = stripes.into_par_iter().map(|first| {
        let n = PIECE.min(outs - first);
        let (mut packed, mut scales) = (vec![0; n * ins / 8], vec![bf16::ZERO; n * ins / 128]);
        let (mut sums, mut weighted) = (ErrorSums::new(n), vec![0.0; n]);
        let out = Int4Out {
            packed: &mut packed,
            packed_stride: ins / 8,
            scales: &mut scales,
            scale_stride: ins / 128,
            zero_points: None,
        };
        quantize_int4(&block.outputs(first, n), factor, &params, out, sums.rows(0, n), &mut weighted).expect("finite");
        weighted.iter().sum::<f64>()
    });
    errors.sum()
}

fn bf16_weights(count: usize) -> Vec<u8> {
    values(count).into_iter().flat_map(|w| bf16::from_f32(w * 0.02).to_le_bytes()).collect()
}

#[divan::bench(sample_count = 3, sample_size = 1)]
fn peak(bencher: Bencher<'_, '_>) {
    let (x, w) = (values(2040 * HIDDEN), values(INNER * HIDDEN));
    let mut y = vec![0.0; 2040 * INNER];
    let path = [GemmPath::Avx512, GemmPath::Avx2, GemmPath::Portable].into_iter().find(|path| path.is_available());
    bencher.counter(ItemsCount::new(2040 * HIDDEN * INNER)).bench_local(|| {
        let (x, w) = (View::dense(&x, 2040, HIDDEN), View::dense(&w[..], INNER, HIDDEN));
        let y = ViewMut::dense(&mut y, 2040, INNER);
        matmul_with(path.expect("portable"), Threads::Pool, x, w, Layout::OutIn, black_box(y));
    });
}

/// Half of `inputs^2 * rows` multiply-adds, since only a triangle is computed.
#[divan::bench(args = [(HIDDEN, 2048), (INNER, 2048), (HIDDEN, 256)], sample_count = 3, sample_size = 1)]
fn moments(bencher: Bencher<'_, '_>, (inputs, rows): (usize, usize)) {
    let x = values(rows * inputs);
    let mut hessian = Hessian::new(inputs);
    bencher
        .counter(ItemsCount::new(inputs * inputs / 2 * rows))
        .bench_local(|| hessian.add(Threads::Pool, View::dense(black_box(&x), rows, inputs)));
}

#[divan::bench(args = [HIDDEN, INNER], sample_count = 3, sample_size = 1)]
fn factor(bencher: Bencher<'_, '_>, inputs: usize) {
    let hessian = hessian(inputs, 1000);
    bencher
        .with_inputs(|| hessian.clone())
        .bench_local_values(|hessian| Factor::new(Threads::Pool, hessian, 0.01).expect("a factor"));
}

/// Gate and up (8192 x 5120 each, one factor) and down (5120 x 8192), second moments given.
#[divan::bench(sample_count = 1, sample_size = 1)]
fn expert(bencher: Bencher<'_, '_>) {
    let (gate_up, down) = (hessian(HIDDEN, 1000), hessian(INNER, 1000));
    let (gate_up_weights, down_weights) = (bf16_weights(2 * INNER * HIDDEN), bf16_weights(HIDDEN * INNER));
    bencher.with_inputs(|| (gate_up.clone(), down.clone())).bench_local_values(|(gate_up, down)| {
        let gate_up = Factor::new(Threads::Pool, gate_up, 0.01).expect("a factor");
        let first = solve(&gate_up, 2 * INNER, &gate_up_weights);
        drop(gate_up);
        let down = Factor::new(Threads::Pool, down, 0.01).expect("a factor");
        first + solve(&down, HIDDEN, &down_weights)
    });
}
