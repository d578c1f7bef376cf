//! Turning a stored matrix round. Knows bytes and element sizes only.

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
    match size {
        1 => squares::<1>(source, source_stride, (rows, columns), target, target_stride),
        2 => squares::<2>(source, source_stride, (rows, columns), target, target_stride),
        4 => squares::<4>(source, source_stride, (rows, columns), target, target_stride),
        8 => squares::<8>(source, source_stride, (rows, columns), target, target_stride),
        _ => panic!("no element has {size} bytes"),
    }
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

    #[test]
    fn every_element_lands_where_its_indices_say() {
        for (rows, columns, source_stride, target_stride) in [(1, 1, 1, 1), (70, 33, 40, 71), (64, 128, 128, 64)] {
            let source: Vec<u16> = (0..rows * source_stride).map(|i| i as u16).collect();
            let mut target = vec![0_u16; columns * target_stride];
            let bytes = bytemuck::cast_slice(&source);
            transpose(bytes, source_stride, 2, (rows, columns), bytemuck::cast_slice_mut(&mut target), target_stride);
            for row in 0..rows {
                for column in 0..columns {
                    assert_eq!(target[column * target_stride + row], source[row * source_stride + column]);
                }
            }
        }
    }
}
