//! Block formats of ggml on one core: bytes of BF16 input per second, as in `docs/performance.md`, though the input is float32.
//!
//! `cargo bench --workspace --bench ggml`; a filter such as `-- encode.*Q4_K` runs some of them.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use half::bf16;
use l4::dtype::Dtype;
use l4::kernels::{Isa, pinned};
use l4::quant::ggml::{TYPES, decode, encode};

fn main() {
    divan::main();
}

/// Rows and their length: one of Scout's hidden states.
const SHAPE: (usize, usize) = (64, 5120);

/// Bell-shaped weights of the size that trained ones have.
fn weights() -> Vec<f32> {
    let mut state = 1_u64;
    let one = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let sum: i32 = state.to_le_bytes()[2..].iter().map(|&b| i32::from(b) - 127).sum();
        bf16::from_f32(sum as f32 * 1e-4).to_f32()
    };
    (0..SHAPE.0 * SHAPE.1).map(one).collect()
}

fn cases() -> impl Iterator<Item = (Dtype, Isa)> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    isas.flat_map(|isa| TYPES.map(|dtype| (dtype, isa)))
}

fn room(dtype: Dtype, values: usize) -> Vec<u8> {
    vec![0; values / dtype.block_len() as usize * (dtype.block_bits() / 8) as usize]
}

fn bench_encode(bencher: Bencher<'_, '_>, (dtype, isa): (Dtype, Isa), importance: Option<&[f32]>) {
    let rows = weights();
    let mut blocks = room(dtype, rows.len());
    bencher.counter(BytesCount::new(2 * rows.len())).bench_local(|| {
        pinned(isa, || encode(dtype, black_box(&rows), SHAPE.1, importance, &mut blocks));
    });
}

#[divan::bench(args = cases(), sample_count = 5)]
fn encode_plain(bencher: Bencher<'_, '_>, case: (Dtype, Isa)) {
    bench_encode(bencher, case, None);
}

#[divan::bench(args = cases(), sample_count = 5)]
fn encode_weighted(bencher: Bencher<'_, '_>, case: (Dtype, Isa)) {
    let importance: Vec<f32> = (0..SHAPE.1).map(|i| 0.1 + (i * 7919 % 100) as f32 * 0.01).collect();
    bench_encode(bencher, case, Some(&importance));
}

#[divan::bench(args = TYPES, sample_count = 5)]
fn decode_blocks(bencher: Bencher<'_, '_>, dtype: Dtype) {
    let mut values = weights();
    let mut blocks = room(dtype, values.len());
    encode(dtype, &values, SHAPE.1, None, &mut blocks);
    bencher.counter(BytesCount::new(2 * values.len())).bench_local(|| decode(dtype, black_box(&blocks), &mut values));
}
