//! Every path against a float64 product computed here, over ragged shapes, both layouts, strides and weight types; and,
//! AMX aside, against the bits of the reference.

use super::*;
use half::{bf16, f16};

/// A small generator, so that the shapes and numbers of a failure can be had again (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// In -1..1, with a spread of magnitudes of about 2^10.
    fn value(&mut self) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        unit * 2.0f32.powi(-((self.next() % 10) as i32))
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

const GUARD: f32 = -12345.0;

/// Largest error of one output in units of the sum of its products' magnitudes, and whether gaps between rows were left alone.
fn worst_error<W: Weight>(
    path: GemmPath,
    threads: Threads,
    layout: Layout,
    (m, n, k): (usize, usize, usize),
    make: fn(f32) -> W,
) -> f64 {
    let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ ((m * 31 + n) * 37 + k) as u64);
    let (x_stride, y_stride) = (k + 3, n + 5);
    let (w_rows, w_cols) = if layout == Layout::OutIn { (n, k) } else { (k, n) };
    let w_stride = w_cols + 7;
    let x = random.values(m * x_stride);
    let w: Vec<W> = random.values(w_rows * w_stride).into_iter().map(make).collect();
    let mut y = vec![GUARD; m * y_stride];
    matmul_with(
        path,
        threads,
        View::new(&x, m, k, x_stride),
        View::new(&w, w_rows, w_cols, w_stride),
        layout,
        ViewMut::new(&mut y, m, n, y_stride),
    );
    let mut worst = 0.0f64;
    for i in 0..m {
        for j in 0..n {
            let (mut sum, mut size) = (0.0f64, 0.0f64);
            for p in 0..k {
                let at = if layout == Layout::OutIn { j * w_stride + p } else { p * w_stride + j };
                let product = f64::from(x[i * x_stride + p]) * f64::from(w[at].widen());
                sum += product;
                size += product.abs();
            }
            let error = (f64::from(y[i * y_stride + j]) - sum).abs() / size.max(f64::MIN_POSITIVE);
            assert!(error.is_finite(), "{path} {layout:?} {m}x{n}x{k} at {i},{j}: {}", y[i * y_stride + j]);
            worst = worst.max(error);
        }
        assert!(y[i * y_stride + n..(i + 1) * y_stride].iter().all(|&gap| gap == GUARD), "{path} wrote between rows");
    }
    worst
}

/// Shapes around the edges of tiles, panels, K blocks and super-blocks.
const SHAPES: [(usize, usize, usize); 22] = [
    (1, 1, 1),
    (1, 5, 17),
    (1, 600, 64),
    (2, 33, 31),
    (3, 7, 100),
    (5, 64, 48),
    (8, 513, 37),
    (9, 1, 9),
    (12, 32, 32),
    (13, 33, 33),
    (16, 16, 16),
    (17, 65, 130),
    (31, 31, 511),
    (32, 32, 512),
    (33, 40, 513),
    (33, 16, 1100),
    (64, 300, 256),
    (100, 129, 70),
    (130, 270, 65),
    (385, 20, 40),
    (1021, 9, 11),
    (2050, 3, 5),
];

fn check<W: Weight>(path: GemmPath, name: &str, make: fn(f32) -> W) {
    for layout in [Layout::OutIn, Layout::InOut] {
        for shape in SHAPES {
            for threads in [Threads::One, Threads::Pool] {
                // k additions in float32 are off by at most k units of 2^-24 of the magnitudes' sum; beyond 24 terms the
                // rounding errors' random signs keep them under that anyway. Three BF16 parts hold all 24 bits of a
                // float32, so the tile path is held to the same bound; two parts (2^-16) would miss it tenfold.
                let bound = (shape.2 as f64 + 2.0).min(24.0) * 2.0f64.powi(-24);
                let error = worst_error(path, threads, layout, shape, make);
                assert!(error <= bound, "{path} {name} {layout:?} {threads:?} {shape:?}: {error:e} > {bound:e}");
            }
        }
    }
}

fn check_path(path: GemmPath) {
    if !path.is_available() {
        println!("nothing to test: this machine has no {path} instructions");
        return;
    }
    check(path, "bf16", bf16::from_f32);
    check(path, "f16", f16::from_f32);
    check(path, "f32", |value| value);
}

#[test]
fn scalar_path_is_right() {
    check_path(GemmPath::Scalar);
}

#[test]
fn portable_path_is_right() {
    check_path(GemmPath::Portable);
}

#[test]
fn avx2_path_is_right() {
    check_path(GemmPath::Avx2);
}

#[test]
fn avx512_path_is_right() {
    check_path(GemmPath::Avx512);
}

#[test]
fn amx_path_is_right() {
    check_path(GemmPath::Amx);
}

/// The paths whose bits are those of the reference.
fn exact_paths() -> impl Iterator<Item = GemmPath> {
    GemmPath::ALL.into_iter().filter(|&path| path != GemmPath::Amx && path.is_available())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn same_bits<W: Weight>(make: fn(f32) -> W) {
    for layout in [Layout::OutIn, Layout::InOut] {
        // The reference is slow.
        for (m, n, k) in SHAPES.into_iter().filter(|(m, n, k)| m * n * k < 600_000) {
            let mut random = Random(0xD1B5_4A32_D192_ED03 ^ ((m * 31 + n) * 37 + k) as u64);
            let (w_rows, w_cols) = if layout == Layout::OutIn { (n, k) } else { (k, n) };
            let x = random.values(m * k);
            let w: Vec<W> = random.values(w_rows * w_cols).into_iter().map(make).collect();
            let product = |path, threads, rows: std::ops::Range<usize>| {
                let mut y = vec![GUARD; rows.len() * n];
                let x = View::dense(&x, m, k).row_range(rows.start, rows.end);
                let y_view = ViewMut::dense(&mut y, rows.len(), n);
                matmul_with(path, threads, x, View::dense(&w, w_rows, w_cols), layout, y_view);
                y
            };
            let expected = product(GemmPath::Scalar, Threads::One, 0..m);
            for path in exact_paths() {
                for threads in [Threads::One, Threads::Pool] {
                    let got = product(path, threads, 0..m);
                    assert_eq!(bits(&got), bits(&expected), "{path} {layout:?} {threads:?} {m}x{n}x{k}");
                    // A row alone, and the rest together.
                    for rows in [0..1, 1..m] {
                        let part = product(path, threads, rows.clone());
                        let whole = &expected[rows.start * n..rows.end * n];
                        assert_eq!(bits(&part), bits(whole), "{path} {layout:?} {m}x{n}x{k}: rows {rows:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_path_gives_the_bits_of_the_reference() {
    same_bits(bf16::from_f32);
    same_bits(f16::from_f32);
    same_bits(|value| value);
}

#[test]
fn a_guard_keeps_amx_out() {
    let before = path_now();
    let guard = reproducible();
    assert_ne!(path_now(), GemmPath::Amx);
    let again = reproducible();
    drop(guard);
    assert_ne!(path_now(), GemmPath::Amx);
    drop(again);
    // Other tests hold no guard.
    assert_eq!(path_now(), before);
}

/// Updates on every path, thread count and cut of the inputs, against one float32 chain per element computed here.
#[test]
fn updates_are_one_chain_for_each_element() {
    for (m, n, k) in SHAPES.into_iter().filter(|(m, n, k)| m * n * k < 300_000) {
        let mut random = Random(0xA076_1D64_78BD_642F ^ ((m * 31 + n) * 37 + k) as u64);
        let (a, b, c) = (random.values(m * k), random.values(k * n), random.values(m * n));
        for case in 0..16 {
            let (subtract, columns, lower, out_in) = (case & 1 != 0, case & 2 != 0, case & 4 != 0, case & 8 != 0);
            let at = |i: usize, p: usize| if columns { a[p * m + i] } else { a[i * k + p] };
            let mut expected = c.clone();
            for (index, out) in expected.iter_mut().enumerate() {
                let (i, j) = (index / n, index % n);
                for p in 0..if lower && j > i { 0 } else { k } {
                    let weight = if out_in { b[j * k + p] } else { b[p * n + j] };
                    *out = if subtract { -at(i, p) } else { at(i, p) }.mul_add(weight, *out);
                }
            }
            for path in exact_paths() {
                for threads in [Threads::One, Threads::Pool] {
                    for cut in [0, k / 3] {
                        let mut got = c.clone();
                        for range in [0..cut, cut..k] {
                            // Columns of a dense matrix are a view with its stride.
                            let columns_of = |data: &'_ [f32], rows: usize| -> Vec<f32> {
                                (0..rows).flat_map(|r| data[r * k..][range.clone()].to_vec()).collect()
                            };
                            let (a_part, b_part) = (columns_of(&a, m), columns_of(&b, n));
                            let len = range.len();
                            let left = if columns {
                                Left::Columns(View::dense(&a[range.start * m..], len, m))
                            } else {
                                Left::Rows(View::dense(&a_part, m, len))
                            };
                            let (right, layout) = if out_in {
                                (View::dense(&b_part[..], n, len), Layout::OutIn)
                            } else {
                                (View::dense(&b[range.start * n..], len, n), Layout::InOut)
                            };
                            let what = Update { subtract, left, right, layout, lower };
                            update_with(path, threads, &what, ViewMut::dense(&mut got, m, n));
                        }
                        assert_eq!(bits(&got), bits(&expected), "{path} {threads:?} {m}x{n}x{k} case {case} cut {cut}");
                    }
                }
            }
        }
    }
}

#[test]
fn no_inputs_give_zeros() {
    for path in GemmPath::ALL.into_iter().filter(|path| path.is_available()) {
        for m in [1, 20] {
            let mut y = vec![1.0f32; m * 3];
            let w: [bf16; 0] = [];
            matmul_with(
                path,
                Threads::Pool,
                View::dense(&[], m, 0),
                View::dense(&w, 3, 0),
                Layout::OutIn,
                ViewMut::dense(&mut y, m, 3),
            );
            assert_eq!(y, vec![0.0; m * 3], "{path}");
        }
    }
}

#[test]
fn an_infinite_weight_reaches_only_its_output() {
    for path in GemmPath::ALL.into_iter().filter(|path| path.is_available()) {
        for m in [3, 40] {
            let (n, k) = (21, 70);
            let x = vec![0.5f32; m * k];
            let mut w = vec![bf16::ONE; n * k];
            w[4 * k + 69] = bf16::INFINITY;
            let mut y = vec![0.0f32; m * n];
            let y_view = ViewMut::dense(&mut y, m, n);
            matmul_with(path, Threads::One, View::dense(&x, m, k), View::dense(&w, n, k), Layout::OutIn, y_view);
            for (at, &value) in y.iter().enumerate() {
                // Tiles multiply the infinity with the zero parts of the activation as well, which gives NaN.
                let expected = if at % n == 4 { f32::INFINITY } else { 35.0 };
                let excused = path == GemmPath::Amx && at % n == 4 && value.is_nan();
                assert!(value == expected || excused, "{path} m={m} at {at}: {value}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "exceeds")]
fn a_view_larger_than_its_slice_is_refused() {
    View::new(&[0.0f32; 10], 2, 6, 6);
}
