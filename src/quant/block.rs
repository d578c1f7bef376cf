//! A matrix to be quantized, where it lies: a view of stored bytes, and how sixteen outputs at a time come out of it.
//!
//! It must not know what is done with the values.

use super::NonFinite;
pub use crate::kernels::gemm::Layout;
use crate::kernels::{Float, Kernel, LANES, Lanes, Simd, dispatch, load, load_part};

/// A view of a matrix of `outs` x `ins` values, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    bytes: &'a [u8],
    float: Float,
    layout: Layout,
    stride: usize,
    outs: usize,
    ins: usize,
}

impl<'a> Block<'a> {
    /// The matrix whose element (output 0, input 0) `bytes` begins with. `stride` is the distance of stored rows, in values.
    ///
    /// # Panics
    ///
    /// `bytes` ends before the last element, or rows overlap.
    pub fn new(bytes: &'a [u8], float: Float, layout: Layout, stride: usize, (outs, ins): (usize, usize)) -> Self {
        let (rows, columns) = match layout {
            Layout::OutIn => (outs, ins),
            Layout::InOut => (ins, outs),
        };
        assert!(columns <= stride || rows <= 1, "rows of {columns} values, {stride} apart, overlap");
        let needed = if rows == 0 || columns == 0 {
            Some(0)
        } else {
            (rows - 1)
                .checked_mul(stride)
                .and_then(|n| n.checked_add(columns))
                .and_then(|n| n.checked_mul(float.bytes()))
        };
        assert!(
            needed.is_some_and(|n| n <= bytes.len()),
            "{rows} rows of {columns} {float:?} values, {stride} apart, need {needed:?} bytes; there are {}",
            bytes.len()
        );
        Self { bytes, float, layout, stride, outs, ins }
    }

    /// Outputs: rows of the weight as a linear layer holds it.
    pub fn outs(&self) -> usize {
        self.outs
    }

    /// Inputs: columns of the weight as a linear layer holds it.
    pub fn ins(&self) -> usize {
        self.ins
    }

    /// How it is stored.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The outputs `first..first + outs` as a matrix of their own.
    ///
    /// # Panics
    ///
    /// There are fewer outputs.
    pub fn outputs(&self, first: usize, outs: usize) -> Self {
        assert!(first <= self.outs && outs <= self.outs - first, "outputs {first}.. of {}", self.outs);
        let step = if self.layout == Layout::OutIn { self.stride } else { 1 };
        let from = (first * step * self.float.bytes()).min(self.bytes.len());
        Self { bytes: &self.bytes[from..], outs, ..*self }
    }

    /// One element.
    ///
    /// # Panics
    ///
    /// There is no such element.
    pub fn get(&self, out: usize, input: usize) -> f32 {
        assert!(out < self.outs && input < self.ins, "({out}, {input}) of ({}, {})", self.outs, self.ins);
        let at = match self.layout {
            Layout::OutIn => out * self.stride + input,
            Layout::InOut => input * self.stride + out,
        };
        self.float.read(&self.bytes[at * self.float.bytes()..])
    }

    /// All elements times `factor(output, input)`, in the block's own layout without gaps.
    pub fn scaled(&self, factor: impl Fn(usize, usize) -> f32) -> Vec<f32> {
        let (rows, columns) = match self.layout {
            Layout::OutIn => (self.outs, self.ins),
            Layout::InOut => (self.ins, self.outs),
        };
        let size = self.float.bytes();
        let mut values = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            let bytes = &self.bytes[row * self.stride * size..][..columns * size];
            values.extend(bytes.chunks_exact(size).enumerate().map(|(column, bytes)| {
                let (out, input) = if self.layout == Layout::OutIn { (row, column) } else { (column, row) };
                self.float.read(bytes) * factor(out, input)
            }));
        }
        values
    }

    /// The first element of the rectangle for which `bad` holds.
    #[cold]
    pub(super) fn find(
        &self,
        (first_out, outs): (usize, usize),
        (first_in, ins): (usize, usize),
        bad: impl Fn(f32) -> bool,
    ) -> Option<NonFinite> {
        for out in first_out..(first_out + outs).min(self.outs) {
            for input in first_in..(first_in + ins).min(self.ins) {
                let value = self.get(out, input);
                if bad(value) {
                    return Some(NonFinite { out, input, value });
                }
            }
        }
        None
    }

    /// Fills `tiles[t * rows + k]` with the weights of outputs `first_out + 16 t ..` at input `first_in + k`, for `k` in
    /// `0..ins`; outputs that do not exist are 0. `rows`, a multiple of 16 not below `ins`, is the length of a tile; what
    /// a tile holds from `ins` on is unspecified.
    #[inline(always)]
    pub(super) fn load_tiles<S: Simd>(
        &self,
        s: S,
        first_out: usize,
        (first_in, ins): (usize, usize),
        rows: usize,
        tiles: &mut [Lanes],
    ) {
        debug_assert!(
            rows.is_multiple_of(LANES) && ins <= rows && tiles.len().is_multiple_of(rows) && first_in + ins <= self.ins
        );
        match (self.layout, self.float) {
            (Layout::InOut, Float::BF16) => self.load_in_out::<S, 0>(s, first_out, (first_in, ins), rows, tiles),
            (Layout::InOut, Float::F16) => self.load_in_out::<S, 1>(s, first_out, (first_in, ins), rows, tiles),
            (Layout::InOut, Float::F32) => self.load_in_out::<S, 2>(s, first_out, (first_in, ins), rows, tiles),
            (Layout::OutIn, Float::BF16) => self.load_out_in::<S, 0>(s, first_out, (first_in, ins), rows, tiles),
            (Layout::OutIn, Float::F16) => self.load_out_in::<S, 1>(s, first_out, (first_in, ins), rows, tiles),
            (Layout::OutIn, Float::F32) => self.load_out_in::<S, 2>(s, first_out, (first_in, ins), rows, tiles),
        }
    }

    /// [`Block::load_tiles`] for callers that are not compiled for an instruction set themselves.
    pub(super) fn tiles(&self, first_out: usize, inputs: (usize, usize), rows: usize, tiles: &mut [Lanes]) {
        dispatch(LoadTiles { block: self, first_out, inputs, rows, tiles });
    }

    /// Rows are inputs: a vector is sixteen neighbours of a stored row.
    #[inline(always)]
    fn load_in_out<S: Simd, const FLOAT: u8>(
        &self,
        s: S,
        first_out: usize,
        (first_in, ins): (usize, usize),
        rows: usize,
        tiles: &mut [Lanes],
    ) {
        let size = self.float.bytes();
        let count = tiles.len() / rows;
        let outs = (self.outs - first_out).min(count * LANES);
        let (whole, rest) = (outs / LANES, outs % LANES);
        for k in 0..ins {
            let from = ((first_in + k) * self.stride + first_out) * size;
            let row = &self.bytes[from..from + outs * size];
            // The panel beside this one is next; strided reads are more than the machine foresees by itself.
            for line in (from + row.len()..from + 2 * row.len()).step_by(64) {
                if let Some(byte) = self.bytes.get(line) {
                    s.prefetch(byte);
                }
            }
            for t in 0..whole {
                let x = load::<S, FLOAT>(s, &row[t * LANES * size..][..LANES * size]);
                s.store(x, &mut tiles[t * rows + k].0);
            }
            if whole < count {
                let x = load_part::<S, FLOAT>(s, &row[whole * LANES * size..][..rest * size]);
                s.store(x, &mut tiles[whole * rows + k].0);
                for t in whole + 1..count {
                    tiles[t * rows + k] = Lanes::ZERO;
                }
            }
        }
    }

    /// Rows are outputs: sixteen vectors, each sixteen neighbours of one stored row, are transposed.
    #[inline(always)]
    fn load_out_in<S: Simd, const FLOAT: u8>(
        &self,
        s: S,
        first_out: usize,
        (first_in, ins): (usize, usize),
        rows: usize,
        tiles: &mut [Lanes],
    ) {
        let size = self.float.bytes();
        for (t, tile) in tiles.chunks_exact_mut(rows).enumerate() {
            let first_out = first_out + t * LANES;
            let outs = self.outs.saturating_sub(first_out).min(LANES);
            for k in (0..ins).step_by(LANES) {
                let n = (ins - k).min(LANES);
                let mut square = [s.isplat(0); LANES];
                for (lane, vector) in square.iter_mut().enumerate().take(outs) {
                    let from = ((first_out + lane) * self.stride + first_in + k) * size;
                    let row = &self.bytes[from..from + n * size];
                    let x = if n == LANES { load::<S, FLOAT>(s, row) } else { load_part::<S, FLOAT>(s, row) };
                    *vector = s.bits(x);
                }
                let square = s.transpose(square);
                for i in 0..LANES {
                    s.store(s.floats(square[i]), &mut tile[k + i].0);
                }
            }
        }
    }

    /// Sixteen neighbours of a stored row, or as many as there are and then zeros: row `row`, columns from `column` on.
    #[inline(always)]
    pub(super) fn load_row<S: Simd>(&self, s: S, row: usize, column: usize, n: usize) -> S::F {
        let size = self.float.bytes();
        let from = (row * self.stride + column) * size;
        let bytes = &self.bytes[from..from + n * size];
        match (self.float, n == LANES) {
            (Float::BF16, true) => load::<S, 0>(s, bytes),
            (Float::F16, true) => load::<S, 1>(s, bytes),
            (Float::F32, true) => load::<S, 2>(s, bytes),
            (Float::BF16, false) => load_part::<S, 0>(s, bytes),
            (Float::F16, false) => load_part::<S, 1>(s, bytes),
            (Float::F32, false) => load_part::<S, 2>(s, bytes),
        }
    }
}

/// [`Block::tiles`].
struct LoadTiles<'a, 'b> {
    block: &'a Block<'b>,
    first_out: usize,
    inputs: (usize, usize),
    rows: usize,
    tiles: &'a mut [Lanes],
}

impl Kernel for LoadTiles<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.block.load_tiles(s, self.first_out, self.inputs, self.rows, self.tiles);
    }
}
