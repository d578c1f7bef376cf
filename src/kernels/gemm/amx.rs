//! The micro-kernel on AMX-BF16 tiles: 32 rows by 32 columns in four accumulator tiles.
//!
//! A float32 activation is split into three BF16 parts, high + middle + low, which together hold all of its 24 significant
//! bits; the weights are BF16 already, so a product of parts is exact and the sum is as good as a float32 one. (Two parts
//! would leave 2^-16 of each activation, more than the error that the forward pass is to measure in a good quantization.)
//! The instructions treat BF16 denormals as zero and flush denormal results: weights and parts of activations below 2^-126
//! count as nothing. An infinite weight gives NaN, since it also meets parts that are zero.
//!
//! The intrinsics are unstable in Rust, so the instructions are written with `asm!`, whose tile registers may be named as
//! clobbered on stable. The operating system must grant the tile state to the process (Linux: `arch_prctl`), and each thread
//! configures its tiles.

use super::driver::{Micro, WeightBlock};
use super::{Layout, View, Weight, avx512};
use std::arch::asm;
use std::arch::x86_64::{
    __cpuid, __cpuid_count, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_loadu_si512, _mm512_storeu_si512,
};
use std::sync::OnceLock;

/// AMX-BF16 tiles.
pub(super) struct Tiles;

/// Rows of a tile register.
const TILE: usize = 16;
/// BF16 elements in a row of a tile register.
const DEPTH: usize = 32;
/// Elements of a tile register that is full of BF16.
const TILE_LEN: usize = TILE * DEPTH;
/// Words of a tile register, of two BF16 each.
const PAIRS_LEN: usize = TILE_LEN / 2;
/// BF16 parts of an activation.
const PARTS: usize = 3;
const ROWS: usize = 2 * TILE;
const COLS: usize = 2 * TILE;

/// Whether the processor has AMX-BF16 and the operating system lets this process use it; asks once.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BF16_AND_TILE == BF16_AND_TILE && request_tiles()
    })
}

/// Asks Linux for the tile state; other systems are not known to grant it.
fn request_tiles() -> bool {
    #[cfg(target_os = "linux")]
    {
        const SYS_ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const XFEATURE_XTILEDATA: u64 = 18;
        let result: i64;
        // SAFETY: this system call takes two integers and touches no memory of the process.
        unsafe {
            asm!("syscall", inlateout("rax") SYS_ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA, out("rcx") _, out("r11") _, options(nostack));
        }
        result == 0
    }
    #[cfg(not(target_os = "linux"))]
    {
        false
    }
}

/// Operand of `ldtilecfg`: Intel's Software Developer's Manual, volume 2, "LDTILECFG".
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes in a row, for each of the registers.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight registers at full size: 16 rows of 64 bytes.
static CONFIG: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl Micro for Tiles {
    type A = u16;
    /// Two inputs of one output.
    type B = u32;
    const ROWS: usize = ROWS;
    const COLS: usize = COLS;
    const K_STEP: usize = DEPTH;
    const B_INPUTS: usize = 2;
    const K_BLOCK: usize = 1024;
    const A_PARTS: usize = PARTS;

    fn enter() {
        // SAFETY: `matmul_with` refuses this path where `available` is false; the operand is 64 bytes of a valid configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) }
    }

    fn leave() {
        // SAFETY: as for `enter`; gives the tile state up, so that the thread's context switches are small again.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }

    /// Blocks of 32 inputs, each `[part][half of the rows][16 rows][32]`.
    fn pack_x(x: View<f32>, from: usize, k: usize, out: &mut [u16]) {
        // SAFETY: the path needs AVX-512 as well, which `matmul_with` has checked.
        unsafe { pack_x(x, from, k, out) }
    }

    /// Blocks of 32 inputs, each `[half of the columns][16 pairs of inputs][16 columns]` of two inputs.
    fn pack_w<W: Weight>(w: View<W>, layout: Layout, block: WeightBlock, out: &mut [u32]) {
        // SAFETY: the path needs AVX-512 as well, which `matmul_with` has checked.
        unsafe { pack_w(w, layout, block, out) }
    }

    fn tile(k: usize, rows: usize, a: &[u16], b: &[u32], acc: &mut [f32]) {
        let blocks = k / DEPTH;
        let (a, b, acc) = (&a[..blocks * PARTS * 2 * TILE_LEN], &b[..blocks * 2 * PAIRS_LEN], &mut acc[..ROWS * COLS]);
        if blocks == 0 {
            // Nothing to add.
        } else if rows <= TILE {
            // SAFETY: the slices are as long as the loop reads and writes; `enter` has configured the tiles.
            unsafe { tile_upper(blocks, a.as_ptr(), b.as_ptr(), acc.as_mut_ptr()) }
        } else {
            // SAFETY: as above.
            unsafe { tile_both(blocks, a.as_ptr(), b.as_ptr(), acc.as_mut_ptr()) }
        }
    }
}

/// The three BF16 parts of a value, each the upper half of a float32: truncation, so that the rest is exact and what is
/// left after three parts of 8 bits is nothing. Infinities and NaN stay whole in the first part.
#[inline(always)]
fn split(value: f32) -> [u16; PARTS] {
    let cut = |value: f32| f32::from_bits(value.to_bits() & 0xFFFF_0000);
    let high = cut(value);
    // A NaN whose payload lies in the lower half alone would be cut to an infinity: the quiet bit keeps it a NaN.
    let high = if value.is_nan() { f32::NAN } else { high };
    let rest = if value.is_finite() { value - high } else { 0.0 };
    let middle = cut(rest);
    let low = rest - middle;
    [high, middle, low].map(|part| (part.to_bits() >> 16) as u16)
}

#[target_feature(enable = "avx512f,avx512bw")]
fn pack_x(x: View<f32>, from: usize, k: usize, out: &mut [u16]) {
    out.fill(0);
    for (index, block) in out.chunks_mut(PARTS * 2 * TILE_LEN).enumerate() {
        let start = from + index * DEPTH;
        let depth = DEPTH.min(from + k - start);
        for i in 0..x.rows() {
            let row = &x.row(i)[start..start + depth];
            for part in 0..PARTS {
                // The parts are computed three times over: that keeps the inner loop a straight copy of lanes.
                let out = &mut block[part * 2 * TILE_LEN + i * DEPTH..][..depth];
                out.iter_mut().zip(row).for_each(|(out, &value)| *out = split(value)[part]);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn pack_w<W: Weight>(w: View<W>, layout: Layout, block: WeightBlock, out: &mut [u32]) {
    let steps = block.k.div_ceil(DEPTH);
    for (index, panel) in out.chunks_exact_mut(steps * 2 * PAIRS_LEN).enumerate() {
        for (at, tile) in panel.as_chunks_mut::<PAIRS_LEN>().0.iter_mut().enumerate() {
            let (step, half) = (at / 2, at % 2);
            let part = Corner { col: index * COLS + half * TILE, from: step * DEPTH };
            match layout {
                Layout::OutIn => pack_out_in(w, block, part, tile),
                Layout::InOut => pack_in_out(w, block, part, tile),
            }
        }
    }
}

/// First output and input of a tile of weights, counted from those of the block.
#[derive(Clone, Copy)]
struct Corner {
    col: usize,
    from: usize,
}

/// Rows of `[n, k]` as words of two inputs each, transposed.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_out_in<W: Weight>(w: View<W>, block: WeightBlock, part: Corner, tile: &mut [u32; PAIRS_LEN]) {
    let mut lines = [[0u32; TILE]; TILE];
    let depth = DEPTH.min(block.k - part.from);
    for (j, line) in lines.iter_mut().enumerate().take(block.cols.saturating_sub(part.col)) {
        let row = &w.row(block.col + part.col + j)[block.from + part.from..][..depth];
        let (pairs, last) = row.as_chunks::<2>();
        for (word, pair) in line.iter_mut().zip(pairs) {
            *word = u32::from(pair[0].bf16_bits()) | u32::from(pair[1].bf16_bits()) << 16;
        }
        if let [last] = last {
            line[pairs.len()] = u32::from(last.bf16_bits());
        }
    }
    // SAFETY: each line and each row of the tile is sixteen words, as long as a register.
    unsafe {
        let lines = lines.map(|line| _mm512_castsi512_ps(_mm512_loadu_si512(line.as_ptr().cast())));
        for (out, column) in tile.as_chunks_mut::<TILE>().0.iter_mut().zip(avx512::transpose(lines)) {
            _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_castps_si512(column));
        }
    }
}

/// Neighbouring rows of `[k, n]`, joined word by word.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_in_out<W: Weight>(w: View<W>, block: WeightBlock, part: Corner, tile: &mut [u32; PAIRS_LEN]) {
    let cols = block.cols.saturating_sub(part.col).min(TILE);
    let bits = |p: usize| {
        let mut bits = [0u16; TILE];
        if cols > 0 && p < block.k {
            let row = &w.row(block.from + p)[block.col + part.col..][..cols];
            match row.first_chunk::<TILE>() {
                Some(row) => bits = row.map(W::bf16_bits),
                None => bits.iter_mut().zip(row).for_each(|(bits, value)| *bits = value.bf16_bits()),
            }
        }
        bits
    };
    for (pair, out) in tile.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        let (even, odd) = (bits(part.from + 2 * pair), bits(part.from + 2 * pair + 1));
        for (word, (even, odd)) in out.iter_mut().zip(even.into_iter().zip(odd)) {
            *word = u32::from(even) | u32::from(odd) << 16;
        }
    }
}

/// All 32 rows. The smallest parts are added first within each block of inputs.
///
/// # Safety
/// `a` must hold `blocks * 6` tiles, `b` `blocks * 2` tiles, `acc` 32 x 32 floats; `blocks > 0`; the tiles are configured.
unsafe fn tile_both(blocks: usize, a: *const u16, b: *const u32, acc: *mut f32) {
    // SAFETY: reads and writes exactly what the contract names; all registers that change are declared.
    unsafe {
        asm!(
            "tileloadd tmm0, [{acc} + {out_row}]",
            "tileloadd tmm1, [{acc} + {out_row} + 64]",
            "tileloadd tmm2, [{acc} + {out_row} + 2048]",
            "tileloadd tmm3, [{acc} + {out_row} + 2112]",
            "2:",
            "tileloadd tmm6, [{b} + {row}]",
            "tileloadd tmm7, [{b} + {row} + 1024]",
            "tileloadd tmm4, [{a} + {row} + 4096]",
            "tileloadd tmm5, [{a} + {row} + 5120]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {row} + 2048]",
            "tileloadd tmm5, [{a} + {row} + 3072]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm5, [{a} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 6144",
            "add {b}, 2048",
            "dec {blocks}",
            "jnz 2b",
            "tilestored [{acc} + {out_row}], tmm0",
            "tilestored [{acc} + {out_row} + 64], tmm1",
            "tilestored [{acc} + {out_row} + 2048], tmm2",
            "tilestored [{acc} + {out_row} + 2112], tmm3",
            a = inout(reg) a => _, b = inout(reg) b => _, blocks = inout(reg) blocks => _,
            acc = in(reg) acc, row = in(reg) 64usize, out_row = in(reg) COLS * 4,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// The first 16 rows.
///
/// # Safety
/// As for [`tile_both`].
unsafe fn tile_upper(blocks: usize, a: *const u16, b: *const u32, acc: *mut f32) {
    // SAFETY: reads and writes no more than the contract names; all registers that change are declared.
    unsafe {
        asm!(
            "tileloadd tmm0, [{acc} + {out_row}]",
            "tileloadd tmm1, [{acc} + {out_row} + 64]",
            "2:",
            "tileloadd tmm6, [{b} + {row}]",
            "tileloadd tmm7, [{b} + {row} + 1024]",
            "tileloadd tmm4, [{a} + {row} + 4096]",
            "tileloadd tmm5, [{a} + {row} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm4, [{a} + {row}]",
            "tdpbf16ps tmm0, tmm5, tmm6", "tdpbf16ps tmm1, tmm5, tmm7",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 6144",
            "add {b}, 2048",
            "dec {blocks}",
            "jnz 2b",
            "tilestored [{acc} + {out_row}], tmm0",
            "tilestored [{acc} + {out_row} + 64], tmm1",
            a = inout(reg) a => _, b = inout(reg) b => _, blocks = inout(reg) blocks => _,
            acc = in(reg) acc, row = in(reg) 64usize, out_row = in(reg) COLS * 4,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
