//! The forward pass's matrix product on the shapes of one real expert (`gate_proj` of Scout: 5120 -> 8192), on every path
//! that this machine has.
//!
//! `cargo bench --bench gemm`. Divan counts multiply-adds as items: 1 Gitem/s is 2 GFLOP/s.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use half::bf16;
use l4::kernels::gemm::{GemmPath, Layout, Threads, View, ViewMut, matmul_with};

const K: usize = 5120;
const N: usize = 8192;
const ROWS: [usize; 6] = [1, 4, 8, 32, 128, 512];

fn main() {
    divan::main();
}

fn activations(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 % 1013) as f32 - 506.0) / 512.0).collect()
}

fn product(bencher: Bencher, path: GemmPath, layout: Layout, m: usize) {
    if !path.is_available() {
        return;
    }
    let x = activations(m * K);
    let w: Vec<bf16> = activations(N * K).into_iter().map(bf16::from_f32).collect();
    let (rows, cols) = if layout == Layout::OutIn { (N, K) } else { (K, N) };
    let mut y = vec![0.0f32; m * N];
    bencher.counter(ItemsCount::new(m * K * N)).bench_local(|| {
        let (x, w) = (View::dense(&x, m, K), View::dense(&w, rows, cols));
        matmul_with(path, Threads::Pool, x, w, layout, ViewMut::dense(&mut y, m, N));
        black_box(y[0])
    });
}

#[divan::bench(args = ROWS, consts = [false, true], sample_count = 5)]
fn avx2<const IN_OUT: bool>(bencher: Bencher, m: usize) {
    product(bencher, GemmPath::Avx2, if IN_OUT { Layout::InOut } else { Layout::OutIn }, m);
}

#[divan::bench(args = ROWS, consts = [false, true], sample_count = 5)]
fn avx512<const IN_OUT: bool>(bencher: Bencher, m: usize) {
    product(bencher, GemmPath::Avx512, if IN_OUT { Layout::InOut } else { Layout::OutIn }, m);
}

#[divan::bench(args = ROWS, consts = [false, true], sample_count = 5)]
fn amx<const IN_OUT: bool>(bencher: Bencher, m: usize) {
    product(bencher, GemmPath::Amx, if IN_OUT { Layout::InOut } else { Layout::OutIn }, m);
}
