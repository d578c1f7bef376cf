//! Matrix product of float32 activations with BF16, F16 or F32 weights: the front door and the choice of instruction set.
//!
//! `y[m, n] = x[m, k] * W`, where the weights lie as `[n, k]` (a Linear) or as `[k, n]` (one expert of a fused tensor).
//! Knows slices, strides and threads; must not know a file, a tensor name or a config.
//!
//! Every path but AMX gives the bits of [`reference`], whatever the threads and however many rows come in one call, so
//! files may depend on products. AMX agrees with it to a few units of float32 rounding over the sum of the products'
//! magnitudes; whoever writes files holds a [`reproducible`] guard, which keeps AMX out. Threads are those of the rayon
//! pool that the caller installed.

mod driver;
mod portable;
mod reference;
mod thin;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(test)]
mod tests;

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use super::Isa;

/// Inputs whose products are added in one chain. Part of what a product is: another value gives other bits.
const K_BLOCK: usize = 512;

/// The number types that weights may be stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The upper half of a float32.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Single precision.
    F32,
}

mod sealed {
    /// Keeps [`super::Weight`] to the types whose [`super::Kind`] is true of their bits: vector loads rely on it.
    pub trait Sealed {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
    impl Sealed for f32 {}
}

/// A number type that weights may be stored in; widening to float32 is exact.
pub trait Weight: sealed::Sealed + bytemuck::Pod + Send + Sync {
    /// Which of them it is.
    const KIND: Kind;
    /// The value as float32, exactly.
    fn widen(self) -> f32;
    /// The bits of the nearest BF16 value: the value itself for [`Kind::Bf16`].
    fn bf16_bits(self) -> u16;
}

impl Weight for half::bf16 {
    const KIND: Kind = Kind::Bf16;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn bf16_bits(self) -> u16 {
        self.to_bits()
    }
}

impl Weight for half::f16 {
    const KIND: Kind = Kind::F16;
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn bf16_bits(self) -> u16 {
        half::bf16::from_f32(self.to_f32()).to_bits()
    }
}

impl Weight for f32 {
    const KIND: Kind = Kind::F32;
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn bf16_bits(self) -> u16 {
        half::bf16::from_f32(self).to_bits()
    }
}

/// What a row of the weight matrix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[n, k]`: a row is one output, as in `nn.Linear`.
    OutIn,
    /// `[k, n]`: a row is one input, as in the fused expert tensors `[E, in, out]`.
    InOut,
}

/// A row-major matrix in a slice, with a row stride in elements.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a, T> View<'a, T> {
    /// `rows x cols` with `stride` elements from row to row.
    ///
    /// # Panics
    /// If `stride < cols` or `data` is too short: shapes are checked where files are opened, so this is a caller's mistake.
    pub fn new(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        check_extent(data.len(), rows, cols, stride);
        Self { data, rows, cols, stride }
    }

    /// `rows x cols` without gaps.
    ///
    /// # Panics
    /// If `data` is shorter than `rows * cols`.
    pub fn dense(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `index`, `cols` elements.
    ///
    /// # Panics
    /// If `index >= rows`.
    #[inline(always)]
    pub fn row(&self, index: usize) -> &'a [T] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        &self.data[index * self.stride..index * self.stride + self.cols]
    }

    /// The rows `from..to` as a matrix of their own.
    ///
    /// # Panics
    /// If the range is not inside the matrix.
    pub fn row_range(&self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.rows, "rows {from}..{to} of {}", self.rows);
        let start = (from * self.stride).min(self.data.len());
        Self { data: &self.data[start..], rows: to - from, cols: self.cols, stride: self.stride }
    }
}

/// A row-major matrix in a mutable slice, with a row stride in elements.
pub struct ViewMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a, T> ViewMut<'a, T> {
    /// `rows x cols` with `stride` elements from row to row.
    ///
    /// # Panics
    /// If `stride < cols` or `data` is too short.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Self {
        check_extent(data.len(), rows, cols, stride);
        Self { data, rows, cols, stride }
    }

    /// `rows x cols` without gaps.
    ///
    /// # Panics
    /// If `data` is shorter than `rows * cols`.
    pub fn dense(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols)
    }
}

fn check_extent(len: usize, rows: usize, cols: usize, stride: usize) {
    assert!(stride >= cols, "row stride {stride} is smaller than the {cols} columns");
    let needed = match rows {
        0 => Some(0),
        rows => (rows - 1).checked_mul(stride).and_then(|start| start.checked_add(cols)),
    };
    assert!(needed.is_some_and(|needed| needed <= len), "{rows} x {cols} (stride {stride}) exceeds {len} elements");
}

/// Which implementation computes the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GemmPath {
    /// [`reference`]: one product after another. Slow; the specification.
    Scalar = 1,
    /// Blocked, plain loops in the compiler's baseline instruction set.
    Portable = 2,
    /// Blocked, AVX2 and FMA.
    Avx2 = 3,
    /// Blocked, AVX-512.
    Avx512 = 4,
    /// Blocked, AMX-BF16 tiles for BF16 weights with activations split into three BF16 parts; AVX-512 for other weights.
    /// The only path with bits of its own.
    Amx = 5,
}

impl GemmPath {
    /// Every path, slowest first.
    pub const ALL: [Self; 5] = [Self::Scalar, Self::Portable, Self::Avx2, Self::Avx512, Self::Amx];

    /// Whether this machine (processor and operating system) can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar | Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::available(),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => avx512::available() && amx::available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Amx => false,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|path| *path as u8 == code)
    }
}

impl fmt::Display for GemmPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        })
    }
}

/// A path that this machine cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable(pub GemmPath);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this machine has no {} instructions", self.0)
    }
}

impl std::error::Error for Unavailable {}

/// The path in use, 0 while undecided. The value is a pure function of the machine unless [`select`] was called, so that
/// racing first calls store the same thing.
static SELECTED: AtomicU8 = AtomicU8::new(0);

/// The path that [`matmul`] takes: the one that was selected, or else the fastest that this machine has.
pub fn gemm_path() -> GemmPath {
    GemmPath::from_code(SELECTED.load(Ordering::Relaxed)).unwrap_or_else(|| {
        let best = GemmPath::ALL.into_iter().rfind(|path| path.is_available()).unwrap_or(GemmPath::Portable);
        SELECTED.store(best as u8, Ordering::Relaxed);
        best
    })
}

/// How many [`Reproducible`] guards are alive.
static REPRODUCIBLE: AtomicUsize = AtomicUsize::new(0);

/// While it lives, no product of this process takes a path whose bits are its own.
#[derive(Debug)]
#[must_use = "products are reproducible only while the guard lives"]
pub struct Reproducible(PhantomData<()>);

/// Keeps AMX out of [`matmul`] and [`matmul_serial`] for the whole process until the guard is dropped: for work whose
/// results are written to files.
pub fn reproducible() -> Reproducible {
    REPRODUCIBLE.fetch_add(1, Ordering::SeqCst);
    Reproducible(PhantomData)
}

impl Drop for Reproducible {
    fn drop(&mut self) {
        REPRODUCIBLE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The path for the next product: [`gemm_path`], unless a guard forbids it.
fn path_now() -> GemmPath {
    match gemm_path() {
        GemmPath::Amx if REPRODUCIBLE.load(Ordering::SeqCst) > 0 => GemmPath::Avx512,
        path => path,
    }
}

/// Forces a path for the whole process.
///
/// # Errors
/// If this machine cannot run it; the selection is unchanged then.
pub fn select(path: GemmPath) -> Result<(), Unavailable> {
    if !path.is_available() {
        return Err(Unavailable(path));
    }
    SELECTED.store(path as u8, Ordering::Relaxed);
    Ok(())
}

/// Whether the work of one product is spread over the current rayon pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Use the pool.
    Pool,
    /// Stay on the calling thread (the caller is itself one of many parallel tasks).
    One,
}

/// `y[m, n] = x[m, k] * W` over the current rayon pool; `y` is overwritten.
///
/// # Panics
/// If the shapes do not agree.
pub fn matmul<W: Weight>(x: View<f32>, w: View<W>, layout: Layout, y: ViewMut<f32>) {
    matmul_with(path_now(), Threads::Pool, x, w, layout, y);
}

/// [`matmul`] on the calling thread alone.
///
/// # Panics
/// If the shapes do not agree.
pub fn matmul_serial<W: Weight>(x: View<f32>, w: View<W>, layout: Layout, y: ViewMut<f32>) {
    matmul_with(path_now(), Threads::One, x, w, layout, y);
}

/// [`matmul`] on a given path and with given threads.
///
/// # Panics
/// If the shapes do not agree, or if the machine cannot run `path`.
pub fn matmul_with<W: Weight>(
    path: GemmPath,
    threads: Threads,
    x: View<f32>,
    w: View<W>,
    layout: Layout,
    y: ViewMut<f32>,
) {
    let (n, k) = match layout {
        Layout::OutIn => (w.rows, w.cols),
        Layout::InOut => (w.cols, w.rows),
    };
    assert_eq!(x.cols, k, "the activations have {} columns, the weights {k} inputs", x.cols);
    assert_eq!((y.rows, y.cols), (x.rows, n), "the output's shape is not [rows of x, outputs of w]");
    assert!(path.is_available(), "{}", Unavailable(path));
    if x.rows == 0 || n == 0 {
        return;
    }
    let thin = x.rows <= thin::rows_max(layout);
    match path {
        GemmPath::Scalar => reference::matmul(x, w, layout, y),
        GemmPath::Portable if thin => thin::run(Isa::Scalar, threads, x, w, layout, y),
        GemmPath::Portable => driver::run::<portable::Plain, W>(threads, x, w, layout, y),
        #[cfg(target_arch = "x86_64")]
        GemmPath::Avx2 if thin => thin::run(Isa::Avx2, threads, x, w, layout, y),
        #[cfg(target_arch = "x86_64")]
        GemmPath::Avx2 => driver::run::<avx2::Fma, W>(threads, x, w, layout, y),
        #[cfg(target_arch = "x86_64")]
        GemmPath::Avx512 | GemmPath::Amx if thin => thin::run(Isa::Avx512, threads, x, w, layout, y),
        #[cfg(target_arch = "x86_64")]
        GemmPath::Amx if W::KIND == Kind::Bf16 => driver::run::<amx::Tiles, W>(threads, x, w, layout, y),
        #[cfg(target_arch = "x86_64")]
        GemmPath::Avx512 | GemmPath::Amx => driver::run::<avx512::Zmm, W>(threads, x, w, layout, y),
        #[cfg(not(target_arch = "x86_64"))]
        GemmPath::Avx2 | GemmPath::Avx512 | GemmPath::Amx => unreachable!("not available on this architecture"),
    }
}

/// The left operand of an [`Update`].
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// `[m, k]`.
    Rows(View<'a, f32>),
    /// `[k, m]`: its transpose is meant.
    Columns(View<'a, f32>),
}

impl Left<'_> {
    fn rows(&self) -> usize {
        match self {
            Self::Rows(view) => view.rows,
            Self::Columns(view) => view.cols,
        }
    }

    fn inputs(&self) -> usize {
        match self {
            Self::Rows(view) => view.cols,
            Self::Columns(view) => view.rows,
        }
    }

    fn get(&self, row: usize, input: usize) -> f32 {
        match self {
            Self::Rows(view) => view.row(row)[input],
            Self::Columns(view) => view.row(input)[row],
        }
    }
}

/// What [`update`] adds to a matrix.
#[derive(Clone, Copy)]
pub struct Update<'a> {
    /// Subtract the product instead of adding it.
    pub subtract: bool,
    /// `[m, k]`.
    pub left: Left<'a>,
    /// `[n, k]` or `[k, n]`, as `layout` says.
    pub right: View<'a, f32>,
    /// How `right` lies.
    pub layout: Layout,
    /// Touch only elements whose column does not exceed their row.
    pub lower: bool,
}

/// `c[m, n] += left * right`: for each element one chain of fused multiply-adds in the order of `k`, which begins with what
/// the element holds. So the bits depend on neither threads nor instruction set, and `k` may be cut into several calls.
///
/// # Panics
/// If the shapes do not agree.
pub fn update(threads: Threads, what: &Update<'_>, c: ViewMut<f32>) {
    update_with(gemm_path(), threads, what, c);
}

/// [`update`] on a given path; AMX has none of its own and takes AVX-512's.
///
/// # Panics
/// If the shapes do not agree, or if the machine cannot run `path`.
pub fn update_with(path: GemmPath, threads: Threads, what: &Update<'_>, c: ViewMut<f32>) {
    let (n, k) = match what.layout {
        Layout::OutIn => (what.right.rows, what.right.cols),
        Layout::InOut => (what.right.cols, what.right.rows),
    };
    assert_eq!(what.left.inputs(), k, "both operands have the same inputs");
    assert_eq!((c.rows, c.cols), (what.left.rows(), n), "the output's shape is that of the product");
    assert!(path.is_available(), "{}", Unavailable(path));
    if c.rows == 0 || n == 0 || k == 0 {
        return;
    }
    match path {
        GemmPath::Scalar => reference::update(what, c),
        GemmPath::Portable => driver::update::<portable::Plain>(threads, what, c),
        #[cfg(target_arch = "x86_64")]
        GemmPath::Avx2 => driver::update::<avx2::Fma>(threads, what, c),
        #[cfg(target_arch = "x86_64")]
        GemmPath::Avx512 | GemmPath::Amx => driver::update::<avx512::Zmm>(threads, what, c),
        #[cfg(not(target_arch = "x86_64"))]
        GemmPath::Avx2 | GemmPath::Avx512 | GemmPath::Amx => unreachable!("not available on this architecture"),
    }
}
