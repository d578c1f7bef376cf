//! Turning a stored matrix round. Knows bytes and element sizes only.

use super::{Kernel, LANES, Simd, dispatch_vector};

/// Elements of a square that fits the first-level cache on both sides.
const SQUARE: usize = 32;

/// Writes the transpose of `rows x columns` elements of `size` bytes each: `target[c][r] = source[r][c]`.
///
/// `source_stride` and `target_stride` are elements between the starts of consecutive rows of either side.
///
/// # Panics
/// If a slice is shorter than its last element's end.
pub fn transpose(
    source: &[u8],
    source_stride: usize,
    size: usize,
    (rows, columns): (usize, usize),
    target: &mut [u8],
    target_stride: usize,
) {
    if size == 2 {
        let whole = (rows / (2 * LANES) * 2 * LANES, columns / LANES * LANES);
        let tiles = Tiles { source, source_stride, whole, target: &mut *target, target_stride };
        if whole.0 > 0 && whole.1 > 0 && dispatch_vector(tiles).is_some() {
            // What is left: columns beside the tiles, then rows below them.
            let beside = &source[2 * whole.1.min(columns - 1)..];
            let (right, below) = ((whole.0, columns - whole.1), (rows - whole.0, columns));
            if right.1 > 0 {
                squares::<2>(beside, source_stride, right, &mut target[2 * whole.1 * target_stride..], target_stride);
            }
            if below.0 > 0 {
                let source = &source[2 * whole.0 * source_stride..];
                squares::<2>(source, source_stride, below, &mut target[2 * whole.0..], target_stride);
            }
            return;
        }
    }
    match size {
        1 => squares::<1>(source, source_stride, (rows, columns), target, target_stride),
        2 => squares::<2>(source, source_stride, (rows, columns), target, target_stride),
        4 => squares::<4>(source, source_stride, (rows, columns), target, target_stride),
        8 => squares::<8>(source, source_stride, (rows, columns), target, target_stride),
        _ => panic!("no element has {size} bytes"),
    }
}

/// Tiles of 32 rows and 16 columns of two-byte elements, in registers: two rows side by side are rows of words, and sixteen such rows
/// of sixteen words are turned at a time.
struct Tiles<'a> {
    source: &'a [u8],
    source_stride: usize,
    /// Rows and columns that tiles cover.
    whole: (usize, usize),
    target: &'a mut [u8],
    target_stride: usize,
}

impl Kernel for Tiles<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { source, source_stride, whole: (rows, columns), target, target_stride } = self;
        // Down the columns: the lines that are written stay few, and what is read of a cache line is read soon.
        for column in (0..columns).step_by(LANES) {
            for row in (0..rows).step_by(2 * LANES) {
                let mut words = [s.isplat(0); LANES];
                for (pair, word) in words.iter_mut().enumerate() {
                    let at = 2 * ((row + 2 * pair) * source_stride + column);
                    let upper = s.bits(s.load_bf16(sixteen(source, at)));
                    let lower = s.bits(s.load_bf16(sixteen(source, at + 2 * source_stride)));
                    *word = s.ior(s.shr(upper, 16), lower);
                }
                for (line, word) in s.transpose(words).into_iter().enumerate() {
                    let at = 2 * ((column + line) * target_stride + row);
                    let mut words = [0_u32; LANES];
                    s.istore(word, &mut words);
                    target[at..at + 4 * LANES].copy_from_slice(bytemuck::cast_slice(&words));
                }
            }
        }
    }
}

#[inline(always)]
fn sixteen(source: &[u8], at: usize) -> &[u8; 2 * LANES] {
    source[at..].first_chunk().expect("the tile lies inside the source")
}

fn squares<const SIZE: usize>(
    source: &[u8],
    source_stride: usize,
    (rows, columns): (usize, usize),
    target: &mut [u8],
    target_stride: usize,
) {
    for first_row in (0..rows).step_by(SQUARE) {
        for first_column in (0..columns).step_by(SQUARE) {
            let end_row = (first_row + SQUARE).min(rows);
            for column in first_column..(first_column + SQUARE).min(columns) {
                let start = (column * target_stride + first_row) * SIZE;
                let line = &mut target[start..start + (end_row - first_row) * SIZE];
                for (element, row) in line.chunks_exact_mut(SIZE).zip(first_row..) {
                    let at = (row * source_stride + column) * SIZE;
                    element.copy_from_slice(&source[at..at + SIZE]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Isa, pinned};

    #[test]
    fn every_element_lands_where_its_indices_say() {
        for (rows, columns, source_stride, target_stride) in [
            (1, 1, 1, 1),
            (70, 33, 40, 71),
            (64, 128, 128, 64),
            (32, 16, 16, 32),
            (31, 50, 50, 31),
            (100, 15, 20, 100),
            (97, 48, 51, 99),
        ] {
            let source: Vec<u16> = (0..rows * source_stride).map(|i| i as u16).collect();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let mut target = vec![0_u16; columns * target_stride];
                let (from, to) = (bytemuck::cast_slice(&source), bytemuck::cast_slice_mut(&mut target));
                pinned(isa, || transpose(from, source_stride, 2, (rows, columns), to, target_stride));
                for row in 0..rows {
                    for column in 0..columns {
                        assert_eq!(target[column * target_stride + row], source[row * source_stride + column], "{isa}");
                    }
                }
            }
        }
    }
}
