//! Sixteen lanes: the operations that kernels are written in.
//!
//! Each operation is defined exactly (IEEE single precision, round to nearest even; integers wrap), and [`super::portable`]
//! is its specification. An instruction set implements the same operations with its own registers.

use crate::dtype::Dtype;

/// Lanes in a vector, whatever the width of the registers.
pub const LANES: usize = 16;

/// Sixteen floats in memory, on a cache line of their own.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct Lanes(pub [f32; LANES]);

impl Lanes {
    /// All zero.
    pub const ZERO: Self = Self([0.0; LANES]);
}

/// Sixteen words in memory, on a cache line of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Words(pub [u32; LANES]);

impl Words {
    /// All zero.
    pub const ZERO: Self = Self([0; LANES]);
}

/// The floating-point formats that weights and scales are stored in, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// bfloat16: the upper half of an `f32`.
    BF16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl Float {
    /// The float with this dtype; `None` for all that is no float of 16 or 32 bits.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::BF16 => Some(Self::BF16),
            Dtype::F16 => Some(Self::F16),
            Dtype::F32 => Some(Self::F32),
            _ => None,
        }
    }

    /// Its dtype.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::BF16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }

    /// Bytes of one value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::BF16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// The value whose encoding `bytes` begins with; exact.
    ///
    /// # Panics
    ///
    /// `bytes` is shorter than one value.
    pub fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Self::BF16 => half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::F16 => half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        }
    }

    /// `x` rounded to the nearest value of this format, ties to even.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::BF16 => half::bf16::from_f32(x).to_f32(),
            Self::F16 => half::f16::from_f32(x).to_f32(),
            Self::F32 => x,
        }
    }
}

/// Vectors of sixteen lanes. A value of an implementing type is the proof that the machine has the instructions.
///
/// Every method is `#[inline(always)]` in every implementation; see [`super::Kernel`].
pub trait Simd: Copy {
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen `u32`.
    type I: Copy;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// `x` in every lane.
    fn isplat(self, x: u32) -> Self::I;
    /// Sixteen floats from memory.
    fn load(self, x: &[f32; LANES]) -> Self::F;
    /// Sixteen floats to memory.
    fn store(self, x: Self::F, to: &mut [f32; LANES]);
    /// Sixteen words from memory.
    fn iload(self, x: &[u32; LANES]) -> Self::I;
    /// Sixteen words to memory.
    fn istore(self, x: Self::I, to: &mut [u32; LANES]);
    /// Sixteen little-endian BF16 values, widened.
    fn load_bf16(self, x: &[u8; 2 * LANES]) -> Self::F;
    /// Sixteen little-endian F16 values, widened.
    fn load_f16(self, x: &[u8; 2 * LANES]) -> Self::F;
    /// Sixteen little-endian F32 values.
    fn load_f32(self, x: &[u8; 4 * LANES]) -> Self::F;
    /// Sixteen bytes, widened.
    fn load_u8(self, x: &[u8; LANES]) -> Self::I;
    /// The low byte of every lane.
    fn store_u8(self, x: Self::I, to: &mut [u8; LANES]);
    /// The low half of every lane.
    fn store_u16(self, x: Self::I, to: &mut [u16; LANES]);
    /// Rounded to F16 (to nearest, ties to even), little-endian.
    fn store_f16(self, x: Self::F, to: &mut [u8; 2 * LANES]);
    /// Asks for the cache line of `x` ahead of time, where the machine can.
    fn prefetch(self, x: &u8);

    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded once.
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The square root, rounded to nearest.
    fn sqrt(self, x: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { x } else { y }`
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;

    /// Whether `a < b` in any lane.
    fn any_lt(self, a: Self::F, b: Self::F) -> bool;
    /// The entry of `table` for the low four bits of every lane.
    fn lookup(self, table: &[f32; LANES], x: Self::I) -> Self::F;

    /// The encodings of sixteen floats.
    fn bits(self, x: Self::F) -> Self::I;
    /// The floats of sixteen encodings.
    fn floats(self, x: Self::I) -> Self::F;
    /// Rounded toward zero, as two's complement; 2^31 for what does not fit and for NaN.
    fn truncate(self, x: Self::F) -> Self::I;
    /// `a + b`, wrapping.
    fn iadd(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a - b`, wrapping.
    fn isub(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a & b`
    fn iand(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a | b`
    fn ior(self, a: Self::I, b: Self::I) -> Self::I;
    /// The smaller, unsigned.
    fn imin(self, a: Self::I, b: Self::I) -> Self::I;
    /// The larger, unsigned.
    fn imax(self, a: Self::I, b: Self::I) -> Self::I;
    /// `x << n`, `n < 32`
    fn shl(self, x: Self::I, n: u32) -> Self::I;
    /// `x >> n`, `n < 32`, zeros shifted in.
    fn shr(self, x: Self::I, n: u32) -> Self::I;
    /// The sixteen nibbles of two words as lanes, lowest nibble of `lo` first.
    fn nibbles(self, lo: u32, hi: u32) -> Self::I;
    /// Lane `j` of vector `i` becomes lane `i` of vector `j`.
    fn transpose(self, x: [Self::I; LANES]) -> [Self::I; LANES];

    /// `|x|`
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        self.floats(self.iand(self.bits(x), self.isplat(0x7fff_ffff)))
    }

    /// `x` rounded to BF16 (to nearest, ties to even); `x` is not NaN.
    #[inline(always)]
    fn round_bf16(self, x: Self::F) -> Self::F {
        let bits = self.bits(x);
        let odd = self.iand(self.shr(bits, 16), self.isplat(1));
        let sum = self.iadd(bits, self.iadd(odd, self.isplat(0x7fff)));
        self.floats(self.iand(sum, self.isplat(0xffff_0000)))
    }
}
