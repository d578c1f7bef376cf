//! Blocking and threads around a micro-kernel: pack the activations once, pack each panel of weights once, multiply tiles.
//!
//! What an element of the output is does not depend on where tiles, tasks or super-blocks begin: a product is the sum, in
//! order, of one chain of fused multiply-adds for each block of `K_BLOCK` inputs; an update is one chain that begins with
//! what the element held.
//!
//! The loops, outermost first: super-blocks of rows (bounds the packed activations); tasks of `columns x rows` over the
//! rayon pool; blocks of `K_BLOCK` inputs (the panel of weights is packed to float32 or BF16 here and lives in the L2
//! cache); blocks of rows that share the L2 cache with it; tiles. Knows no instruction set: that is the micro-kernel's.

use super::{Layout, Left, Threads, Update, View, ViewMut, Weight};
use rayon::prelude::*;
use std::marker::PhantomData;

/// One tile of the product, and the packed forms it wants its operands in.
pub(super) trait Micro {
    /// Element of the packed activations.
    type A: Copy + Default + Send + Sync;
    /// Element of the packed weights.
    type B: Copy + Default + Send + Sync;
    /// Rows of a tile.
    const ROWS: usize;
    /// Columns of a tile.
    const COLS: usize;
    /// Inputs in a block are rounded up to a multiple of this, padded with zeros.
    const K_STEP: usize;
    /// Inputs per block; a multiple of `K_STEP`.
    const K_BLOCK: usize;
    /// Inputs in one element of `B`; divides `K_STEP`.
    const B_INPUTS: usize = 1;
    /// Elements of `A` for each activation.
    const A_PARTS: usize;

    /// Called on a thread before [`Micro::tile`] is.
    fn enter() {}
    /// Called on a thread after its last tile of a task.
    fn leave() {}
    /// Packs `x[.., from..from + k]` of at most `ROWS` rows into `ROWS * k.next_multiple_of(K_STEP) * A_PARTS` elements.
    fn pack_x(x: View<f32>, from: usize, k: usize, out: &mut [Self::A]);
    /// Packs inputs `from..from + k` of outputs `col..col + cols` as panels of `COLS` outputs, each of
    /// `COLS * k.next_multiple_of(K_STEP) / B_INPUTS` elements; the last is padded with zeros.
    fn pack_w<W: Weight>(w: View<W>, layout: Layout, block: WeightBlock, out: &mut [Self::B]);
    /// `acc[i * COLS + j] += sum over k` of the packed operands, one product after another; only the first `rows` rows need
    /// be right. `k` is padded.
    fn tile(k: usize, rows: usize, a: &[Self::A], b: &[Self::B], acc: &mut [f32]);
}

/// A micro-kernel in float32, which can also take its left operand by columns.
pub(super) trait MicroF32: Micro<A = f32, B = f32> {
    /// Packs inputs `from..from + k` of rows `col..col + cols` (at most `ROWS`) of the transpose of `x` into `ROWS * k`
    /// elements.
    fn pack_columns(x: View<f32>, block: WeightBlock, out: &mut [f32]);
}

/// A part of the weight matrix, in outputs and inputs whatever the layout.
#[derive(Clone, Copy)]
pub(super) struct WeightBlock {
    /// First output.
    pub(super) col: usize,
    /// Number of outputs.
    pub(super) cols: usize,
    /// First input.
    pub(super) from: usize,
    /// Number of inputs.
    pub(super) k: usize,
}

/// Rows whose packed activations are held at once: bounds scratch memory at `1024 * k` elements.
const SUPER_ROWS: usize = 1020;
/// Rows that share the L2 cache with a panel of weights.
const CACHE_ROWS: usize = 384;
/// Most columns of a task.
const TASK_COLS: usize = 256;
/// Fewest rows of a task: fewer would not pay for packing the weights again.
const TASK_ROWS: usize = 96;
/// Largest tile of any micro-kernel, in elements.
const TILE_MAX: usize = 1024;

/// The output, shared by tasks that write disjoint rectangles of it.
struct Shared<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from an exclusive borrow that outlives the value, and `Shared::piece` hands out parts of it only
// under the promise that no two threads ask for overlapping ones.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn new(y: ViewMut<'a, f32>) -> Self {
        Self { start: y.data.as_mut_ptr(), rows: y.rows, cols: y.cols, stride: y.stride, lifetime: PhantomData }
    }

    /// Columns `col..col + cols` of row `row`.
    ///
    /// # Safety
    /// No other piece that overlaps this one may be alive.
    #[allow(clippy::mut_from_ref)]
    unsafe fn piece(&self, row: usize, col: usize, cols: usize) -> &mut [f32] {
        assert!(row < self.rows && col + cols <= self.cols);
        // SAFETY: the view's extent was checked when it was made, and row and columns are inside it by the assertion.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride + col), cols) }
    }
}

/// A super-block of packed activations.
struct Packed<A> {
    /// The row of the output at which it starts.
    first: usize,
    /// Inputs.
    k: usize,
    /// Panels of `ROWS` rows, each as consecutive blocks of `K_BLOCK` inputs.
    panels: Vec<A>,
}

/// A rectangle of the output: one unit of parallel work.
#[derive(Clone, Copy)]
struct Task {
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
}

/// What is done with the sums of tiles.
#[derive(Clone, Copy, PartialEq)]
enum Into {
    /// The sum of each block of inputs is added to those before it.
    Product,
    /// Chains begin with what the output holds. `lower`: only columns up to the row's own index are touched.
    Update { lower: bool },
}

/// `y = x * W` by the micro-kernel `M`.
pub(super) fn run<M: Micro, W: Weight>(threads: Threads, x: View<f32>, w: View<W>, layout: Layout, y: ViewMut<f32>) {
    if x.cols() == 0 {
        let y = Shared::new(y);
        for row in 0..y.rows {
            // SAFETY: one piece at a time, on one thread.
            unsafe { y.piece(row, 0, y.cols) }.fill(0.0);
        }
        return;
    }
    let pack = |row: usize, rows: usize, from: usize, k: usize, out: &mut [M::A]| {
        M::pack_x(x.row_range(row, row + rows), from, k, out);
    };
    blocked::<M, W>(threads, (x.rows(), x.cols()), pack, (w, layout), Into::Product, y);
}

/// [`super::update`] by the micro-kernel `M`.
pub(super) fn update<M: MicroF32>(threads: Threads, update: &Update<'_>, c: ViewMut<f32>) {
    let Update { subtract, left, right, layout, lower } = *update;
    let pack = |row: usize, rows: usize, from: usize, k: usize, out: &mut [f32]| {
        match left {
            Left::Rows(x) => M::pack_x(x.row_range(row, row + rows), from, k, out),
            Left::Columns(x) => M::pack_columns(x, WeightBlock { col: row, cols: rows, from, k }, out),
        }
        if subtract {
            out.iter_mut().for_each(|value| *value = -*value);
        }
    };
    let shape = (left.rows(), left.inputs());
    blocked::<M, f32>(threads, shape, pack, (right, layout), Into::Update { lower }, c);
}

/// The loops over super-blocks and tasks; `pack(row, rows, from, k, out)` packs a panel of the left operand.
fn blocked<M: Micro, W: Weight>(
    threads: Threads,
    (rows, k): (usize, usize),
    pack: impl Fn(usize, usize, usize, usize, &mut [M::A]) + Sync,
    (w, layout): (View<W>, Layout),
    into: Into,
    y: ViewMut<f32>,
) {
    assert!(M::ROWS * M::COLS <= TILE_MAX && M::K_BLOCK.is_multiple_of(M::K_STEP));
    let y = Shared::new(y);
    let super_rows = SUPER_ROWS.next_multiple_of(M::ROWS);
    for first in (0..rows).step_by(super_rows) {
        let count = super_rows.min(rows - first);
        let packed = Packed { first, k, panels: pack_rows::<M>(threads, (first, count), k, &pack) };
        let mut tasks = tasks::<M>(threads, count, y.cols);
        if into == (Into::Update { lower: true }) {
            tasks.retain(|task| task.col < first + task.row + task.rows);
        }
        let work = |scratch: &mut Vec<M::B>, task: &Task| {
            multiply::<M, W>(*task, &packed, scratch, (w, layout), into, &y);
        };
        match threads {
            Threads::One => {
                let mut scratch = Vec::new();
                tasks.iter().for_each(|task| work(&mut scratch, task));
            }
            Threads::Pool => tasks.par_iter().for_each_init(Vec::new, work),
        }
    }
}

/// Elements of `A` that one panel of `ROWS` rows takes for all `k` inputs.
fn panel_len<M: Micro>(k: usize) -> usize {
    let (full, rest) = (k / M::K_BLOCK, k % M::K_BLOCK);
    (full * M::K_BLOCK + rest.next_multiple_of(M::K_STEP)) * M::ROWS * M::A_PARTS
}

/// Packs the rows `first..first + rows`: panels of `ROWS` rows, each as consecutive blocks of `K_BLOCK` inputs.
fn pack_rows<M: Micro>(
    threads: Threads,
    (first, rows): (usize, usize),
    inputs: usize,
    pack: &(impl Fn(usize, usize, usize, usize, &mut [M::A]) + Sync),
) -> Vec<M::A> {
    let len = panel_len::<M>(inputs);
    let mut packed = vec![M::A::default(); len * rows.div_ceil(M::ROWS)];
    let pack = |(panel, out): (usize, &mut [M::A])| {
        let (row, live) = (first + panel * M::ROWS, M::ROWS.min(rows - panel * M::ROWS));
        let mut at = 0;
        for from in (0..inputs).step_by(M::K_BLOCK) {
            let k = M::K_BLOCK.min(inputs - from);
            let size = k.next_multiple_of(M::K_STEP) * M::ROWS * M::A_PARTS;
            pack(row, live, from, k, &mut out[at..at + size]);
            at += size;
        }
    };
    match threads {
        Threads::One => packed.chunks_mut(len).enumerate().for_each(pack),
        Threads::Pool => packed.par_chunks_mut(len).enumerate().for_each(pack),
    }
    packed
}

/// Divides `rows x cols` so that every thread gets a few tasks, without packing weights more often than it pays.
fn tasks<M: Micro>(threads: Threads, rows: usize, cols: usize) -> Vec<Task> {
    let wanted = match threads {
        Threads::One => 1,
        Threads::Pool => 4 * rayon::current_num_threads(),
    };
    let task_cols = cols.div_ceil(wanted).next_multiple_of(M::COLS).min(TASK_COLS.next_multiple_of(M::COLS));
    let across = cols.div_ceil(task_cols);
    let task_rows = rows.div_ceil(wanted.div_ceil(across)).max(TASK_ROWS).next_multiple_of(M::ROWS);
    let mut tasks = Vec::new();
    for col in (0..cols).step_by(task_cols) {
        for row in (0..rows).step_by(task_rows) {
            tasks.push(Task { row, rows: task_rows.min(rows - row), col, cols: task_cols.min(cols - col) });
        }
    }
    tasks
}

/// Computes one task's rectangle; `weights` is scratch memory.
fn multiply<M: Micro, W: Weight>(
    task: Task,
    packed: &Packed<M::A>,
    weights: &mut Vec<M::B>,
    (w, layout): (View<W>, Layout),
    into: Into,
    y: &Shared,
) {
    let k_total = packed.k;
    M::enter();
    let panel = panel_len::<M>(k_total);
    let k_most = M::K_BLOCK.min(k_total.next_multiple_of(M::K_STEP));
    // The packing overwrites all of it, so that what an earlier task left does not matter.
    weights.resize(k_most / M::B_INPUTS * task.cols.next_multiple_of(M::COLS), M::B::default());
    for from in (0..k_total).step_by(M::K_BLOCK) {
        let k = M::K_BLOCK.min(k_total - from);
        let k_padded = k.next_multiple_of(M::K_STEP);
        let packed_len = task.cols.next_multiple_of(M::COLS) * k_padded / M::B_INPUTS;
        let block = WeightBlock { col: task.col, cols: task.cols, from, k };
        M::pack_w(w, layout, block, &mut weights[..packed_len]);
        let cache_rows = CACHE_ROWS.next_multiple_of(M::ROWS);
        for row in (task.row..task.row + task.rows).step_by(cache_rows) {
            let part = Task { row, rows: cache_rows.min(task.row + task.rows - row), ..task };
            let a = |row: usize| &packed.panels[row / M::ROWS * panel + from * M::ROWS * M::A_PARTS..];
            let rest = Rest { first: packed.first, begun: from > 0, into };
            tiles::<M>(part, k_padded, a, weights, &rest, y);
        }
    }
    M::leave();
}

/// What tiles need to know to put their sums in place.
struct Rest {
    /// The row of the output that the rectangle's row 0 is.
    first: usize,
    /// Whether earlier blocks of inputs are in the output.
    begun: bool,
    into: Into,
}

/// All tiles of a rectangle for one block of inputs, put into the output.
fn tiles<'p, M: Micro>(part: Task, k: usize, a: impl Fn(usize) -> &'p [M::A], weights: &[M::B], rest: &Rest, y: &Shared)
where
    M::A: 'p,
{
    let mut acc = [0.0f32; TILE_MAX];
    let acc = &mut acc[..M::ROWS * M::COLS];
    for (index, b) in weights.chunks(M::COLS * k / M::B_INPUTS).take(part.cols.div_ceil(M::COLS)).enumerate() {
        let col = index * M::COLS;
        for row in (part.row..part.row + part.rows).step_by(M::ROWS) {
            let rows = M::ROWS.min(part.row + part.rows - row);
            // The columns of row `i` that count.
            let cols = |i: usize| {
                let most = M::COLS.min(part.cols - col);
                match rest.into {
                    Into::Update { lower: true } => most.min((rest.first + row + i + 1).saturating_sub(part.col + col)),
                    _ => most,
                }
            };
            if cols(rows - 1) == 0 {
                continue;
            }
            // SAFETY: tasks are disjoint rectangles and each runs on one thread; the piece ends with the iteration that asks.
            let out = |i: usize| unsafe { y.piece(rest.first + row + i, part.col + col, cols(i)) };
            acc.fill(0.0);
            if rest.into != Into::Product {
                (0..rows).for_each(|i| acc[i * M::COLS..i * M::COLS + cols(i)].copy_from_slice(out(i)));
            }
            M::tile(k, rows, a(row), b, acc);
            for i in 0..rows {
                let sums = &acc[i * M::COLS..i * M::COLS + cols(i)];
                if rest.into == Into::Product && rest.begun {
                    out(i).iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                } else {
                    out(i).copy_from_slice(sums);
                }
            }
        }
    }
}
