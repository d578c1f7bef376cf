//! From codes in lanes to bytes of blocks.

use crate::kernels::{LANES, Simd, Words};

/// What a code gives to a byte: of the code `offset` rows on, the bits `keep` after the lowest `drop`, `shift` bits up.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) offset: usize,
    pub(super) drop: u32,
    pub(super) keep: u32,
    pub(super) shift: u32,
}

/// Lower four bits of two codes.
pub(super) const fn nibbles(distance: usize) -> [Part; 2] {
    [Part { offset: 0, drop: 0, keep: 15, shift: 0 }, Part { offset: distance, drop: 0, keep: 15, shift: 4 }]
}

/// Two bits, above the lowest `drop`, of four codes that are 32 rows apart.
pub(super) const fn pairs(drop: u32) -> [Part; 4] {
    let mut parts = [Part { offset: 0, drop, keep: 3, shift: 0 }; 4];
    let mut i = 0;
    while i < 4 {
        parts[i].offset = 32 * i;
        parts[i].shift = 2 * i as u32;
        i += 1;
    }
    parts
}

/// One bit, above the lowest `drop`, of eight codes that are 32 rows apart.
pub(super) const fn bits(drop: u32) -> [Part; 8] {
    let mut parts = [Part { offset: 0, drop, keep: 1, shift: 0 }; 8];
    let mut i = 0;
    while i < 8 {
        parts[i].offset = 32 * i;
        parts[i].shift = i as u32;
        i += 1;
    }
    parts
}

/// Writes `4 * WORDS` bytes at byte `at` of each block: byte `i` is made of the parts of codes from row `i`.
#[inline(always)]
pub(super) fn put<S: Simd, const WORDS: usize, const PARTS: usize>(
    s: S,
    codes: &[Words],
    parts: [Part; PARTS],
    blocks: &mut [u8],
    at: usize,
) {
    let mut words = [s.isplat(0); WORDS];
    for (k, word) in words.iter_mut().enumerate() {
        for byte in 0..4 {
            for part in parts {
                let code = s.iload(&codes[4 * k + byte + part.offset].0);
                let field = s.iand(s.shr(code, part.drop), s.isplat(part.keep));
                *word = s.ior(*word, s.shl(field, part.shift + 8 * byte as u32));
            }
        }
    }
    put_words(s, words, blocks, at);
}

/// Writes words, low byte first, at byte `at` of each block.
#[inline(always)]
pub(super) fn put_words<S: Simd, const WORDS: usize>(s: S, words: [S::I; WORDS], blocks: &mut [u8], at: usize) {
    let mut square = [s.isplat(0); LANES];
    square[..WORDS].copy_from_slice(&words);
    let bytes = blocks.len() / LANES;
    for (block, row) in blocks.chunks_exact_mut(bytes).zip(s.transpose(square)) {
        let mut words = [0; LANES];
        s.istore(row, &mut words);
        let to = block[at..at + 4 * WORDS].as_chunks_mut().0;
        for (to, word) in to.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
    }
}

/// Writes `x` as float16 at byte `at` of each block, and returns what was written.
#[inline(always)]
pub(super) fn put_f16<S: Simd>(s: S, x: S::F, blocks: &mut [u8], at: usize) -> S::F {
    let mut halves = [0; 2 * LANES];
    s.store_f16(x, &mut halves);
    let bytes = blocks.len() / LANES;
    for (block, half) in blocks.chunks_exact_mut(bytes).zip(halves.as_chunks::<2>().0) {
        block[at..at + 2].copy_from_slice(half);
    }
    s.load_f16(&halves)
}
