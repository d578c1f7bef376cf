//! How compressed-tensors packs 4-bit codes into 32-bit words (`pack-quantized`).
//!
//! A signed code -8..=7 is stored as `code + 8`; a word holds eight of them, the first in the lowest four bits. A row of
//! codes takes whole words; what is left of its last word is zero. Source: compressed-tensors 0.19,
//! `compressors/pack_quantized/helpers.py`. It must not know scales or tensors.

/// Codes in a word.
pub const PER_WORD: usize = 8;

/// Words that a row of `codes` codes takes.
pub const fn words(codes: usize) -> usize {
    codes.div_ceil(PER_WORD)
}

/// Packs eight codes, each in -8..=7 (only the low four bits count).
///
/// ```
/// assert_eq!(l4::dtype::int4::pack([-8, -7, -1, 0, 1, 2, 6, 7]), 0xfea9_8710);
/// ```
pub fn pack(codes: [i8; PER_WORD]) -> u32 {
    codes.iter().rev().fold(0, |word, &code| (word << 4) | u32::from((code as u8).wrapping_add(8) & 15))
}

/// Undoes [`pack`].
pub fn unpack(word: u32) -> [i8; PER_WORD] {
    std::array::from_fn(|i| ((word >> (4 * i)) & 15) as i8 - 8)
}

/// Packs a row of codes; the unused bits of the last word are zero.
///
/// # Panics
///
/// `packed` is not [`words`]`(codes.len())` long.
pub fn pack_row(codes: &[i8], packed: &mut [u32]) {
    assert_eq!(packed.len(), words(codes.len()), "words for {} codes", codes.len());
    for (codes, word) in codes.chunks(PER_WORD).zip(packed) {
        let mut eight = [-8; PER_WORD];
        eight[..codes.len()].copy_from_slice(codes);
        *word = pack(eight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_place() {
        for place in 0..PER_WORD {
            for code in -8..=7_i8 {
                let mut codes = [-8; PER_WORD];
                codes[place] = code;
                let word = pack(codes);
                assert_eq!(word, u32::try_from(code + 8).unwrap() << (4 * place));
                assert_eq!(unpack(word), codes);
            }
        }
    }

    #[test]
    fn a_row_ends_in_zero_bits() {
        let mut packed = [u32::MAX; 2];
        pack_row(&[7; 9], &mut packed);
        assert_eq!(packed, [u32::MAX, 0xf]);
    }
}
