//! The specification of [`Simd`] in plain Rust: arrays and loops, for every target.

use half::f16;

use super::simd::{LANES, Simd};

/// Any machine.
#[derive(Clone, Copy)]
pub(super) struct Portable;

macro_rules! each {
    ($i:ident => $lane:expr) => {{
        let mut out = [Default::default(); LANES];
        for $i in 0..LANES {
            out[$i] = $lane;
        }
        out
    }};
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [u32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn isplat(self, x: u32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        *to = x;
    }
    #[inline(always)]
    fn iload(self, x: &[u32; LANES]) -> Self::I {
        *x
    }
    #[inline(always)]
    fn istore(self, x: Self::I, to: &mut [u32; LANES]) {
        *to = x;
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 2 * LANES]) -> Self::F {
        each!(i => f32::from_bits(u32::from(u16::from_le_bytes([x[2 * i], x[2 * i + 1]])) << 16))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 2 * LANES]) -> Self::F {
        each!(i => f16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn load_f32(self, x: &[u8; 4 * LANES]) -> Self::F {
        each!(i => f32::from_le_bytes([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]))
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; LANES]) -> Self::I {
        each!(i => u32::from(x[i]))
    }
    #[inline(always)]
    fn store_u8(self, x: Self::I, to: &mut [u8; LANES]) {
        *to = each!(i => x[i] as u8);
    }
    #[inline(always)]
    fn store_u16(self, x: Self::I, to: &mut [u16; LANES]) {
        *to = each!(i => x[i] as u16);
    }
    #[inline(always)]
    fn store_f16(self, x: Self::F, to: &mut [u8; 2 * LANES]) {
        for i in 0..LANES {
            to[2 * i..][..2].copy_from_slice(&f16::from_f32(x[i]).to_le_bytes());
        }
    }
    #[inline(always)]
    fn prefetch(self, _: &u8) {}

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each!(i => a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each!(i => a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each!(i => a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        each!(i => a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each!(i => a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each!(i => (-a[i]).mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn sqrt(self, x: Self::F) -> Self::F {
        each!(i => x[i].sqrt())
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        each!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        each!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        each!(i => if a[i] < b[i] { x[i] } else { y[i] })
    }

    #[inline(always)]
    fn any_lt(self, a: Self::F, b: Self::F) -> bool {
        let lanes: Self::I = each!(i => u32::from(a[i] < b[i]));
        lanes.iter().fold(0, |any, lane| any | lane) != 0
    }
    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], x: Self::I) -> Self::F {
        each!(i => table[(x[i] % 16) as usize])
    }

    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::I {
        each!(i => x[i].to_bits())
    }
    #[inline(always)]
    fn floats(self, x: Self::I) -> Self::F {
        each!(i => f32::from_bits(x[i]))
    }
    #[inline(always)]
    fn truncate(self, x: Self::F) -> Self::I {
        each!(i => if x[i] >= -2_147_483_648.0 && x[i] < 2_147_483_648.0 { x[i] as i32 as u32 } else { 1 << 31 })
    }
    #[inline(always)]
    fn iadd(self, a: Self::I, b: Self::I) -> Self::I {
        each!(i => a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn isub(self, a: Self::I, b: Self::I) -> Self::I {
        each!(i => a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn iand(self, a: Self::I, b: Self::I) -> Self::I {
        each!(i => a[i] & b[i])
    }
    #[inline(always)]
    fn ior(self, a: Self::I, b: Self::I) -> Self::I {
        each!(i => a[i] | b[i])
    }
    #[inline(always)]
    fn imin(self, a: Self::I, b: Self::I) -> Self::I {
        each!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn imax(self, a: Self::I, b: Self::I) -> Self::I {
        each!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn shl(self, x: Self::I, n: u32) -> Self::I {
        each!(i => x[i] << n)
    }
    #[inline(always)]
    fn shr(self, x: Self::I, n: u32) -> Self::I {
        each!(i => x[i] >> n)
    }
    #[inline(always)]
    fn nibbles(self, lo: u32, hi: u32) -> Self::I {
        each!(i => (if i < 8 { lo } else { hi } >> (4 * (i % 8))) & 15)
    }
    #[inline(always)]
    fn transpose(self, x: [Self::I; LANES]) -> [Self::I; LANES] {
        let mut out = [[0; LANES]; LANES];
        for (i, row) in x.iter().enumerate() {
            for (j, lane) in row.iter().enumerate() {
                out[j][i] = *lane;
            }
        }
        out
    }
}
