//! Number formats: what an element of a tensor is and how many bytes a shape of them takes.
//!
//! The names are the containers' own: safetensors 0.8 (`safetensors/src/tensor.rs`, `enum Dtype`) and ggml 0.25 (`ggml/include/ggml.h`,
//! `enum ggml_type`), which agree where both have a format. No other spelling exists in this library. Knows no file, no tensor name
//! and no model.

pub mod fp8;
pub mod ggml;
pub mod int4;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

/// The element type of a tensor: those of safetensors first, then those that only ggml has, whose elements come in blocks along the
/// last extent.
#[allow(non_camel_case_types, clippy::upper_case_acronyms, missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Dtype {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    IQ1_M,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    Q2_0,
}

/// Number of dtypes that safetensors has; they come first.
const SAFETENSORS: usize = 22;

/// Every dtype with its spelling, the elements of a block, and a block's size in bits (safetensors 0.8, `Dtype::bitsize`; ggml 0.25,
/// `type_traits` in `ggml/src/ggml.c`).
const TABLE: [(Dtype, &str, u64, u64); 49] = [
    (Dtype::BOOL, "BOOL", 1, 8),
    (Dtype::F4, "F4", 1, 4),
    (Dtype::F6_E2M3, "F6_E2M3", 1, 6),
    (Dtype::F6_E3M2, "F6_E3M2", 1, 6),
    (Dtype::U8, "U8", 1, 8),
    (Dtype::I8, "I8", 1, 8),
    (Dtype::F8_E5M2, "F8_E5M2", 1, 8),
    (Dtype::F8_E4M3, "F8_E4M3", 1, 8),
    (Dtype::F8_E8M0, "F8_E8M0", 1, 8),
    (Dtype::F8_E4M3FNUZ, "F8_E4M3FNUZ", 1, 8),
    (Dtype::F8_E5M2FNUZ, "F8_E5M2FNUZ", 1, 8),
    (Dtype::I16, "I16", 1, 16),
    (Dtype::U16, "U16", 1, 16),
    (Dtype::F16, "F16", 1, 16),
    (Dtype::BF16, "BF16", 1, 16),
    (Dtype::I32, "I32", 1, 32),
    (Dtype::U32, "U32", 1, 32),
    (Dtype::F32, "F32", 1, 32),
    (Dtype::C64, "C64", 1, 64),
    (Dtype::F64, "F64", 1, 64),
    (Dtype::I64, "I64", 1, 64),
    (Dtype::U64, "U64", 1, 64),
    (Dtype::Q4_0, "Q4_0", 32, 8 * 18),
    (Dtype::Q4_1, "Q4_1", 32, 8 * 20),
    (Dtype::Q5_0, "Q5_0", 32, 8 * 22),
    (Dtype::Q5_1, "Q5_1", 32, 8 * 24),
    (Dtype::Q8_0, "Q8_0", 32, 8 * 34),
    (Dtype::Q8_1, "Q8_1", 32, 8 * 36),
    (Dtype::Q2_K, "Q2_K", 256, 8 * 84),
    (Dtype::Q3_K, "Q3_K", 256, 8 * 110),
    (Dtype::Q4_K, "Q4_K", 256, 8 * 144),
    (Dtype::Q5_K, "Q5_K", 256, 8 * 176),
    (Dtype::Q6_K, "Q6_K", 256, 8 * 210),
    (Dtype::Q8_K, "Q8_K", 256, 8 * 292),
    (Dtype::IQ2_XXS, "IQ2_XXS", 256, 8 * 66),
    (Dtype::IQ2_XS, "IQ2_XS", 256, 8 * 74),
    (Dtype::IQ3_XXS, "IQ3_XXS", 256, 8 * 98),
    (Dtype::IQ1_S, "IQ1_S", 256, 8 * 50),
    (Dtype::IQ4_NL, "IQ4_NL", 32, 8 * 18),
    (Dtype::IQ3_S, "IQ3_S", 256, 8 * 110),
    (Dtype::IQ2_S, "IQ2_S", 256, 8 * 82),
    (Dtype::IQ4_XS, "IQ4_XS", 256, 8 * 136),
    (Dtype::IQ1_M, "IQ1_M", 256, 8 * 56),
    (Dtype::TQ1_0, "TQ1_0", 256, 8 * 54),
    (Dtype::TQ2_0, "TQ2_0", 256, 8 * 66),
    (Dtype::MXFP4, "MXFP4", 32, 8 * 17),
    (Dtype::NVFP4, "NVFP4", 64, 8 * 36),
    (Dtype::Q1_0, "Q1_0", 128, 8 * 18),
    (Dtype::Q2_0, "Q2_0", 64, 8 * 18),
];

// The table is indexed by the enum's own order.
const _: () = {
    let mut i = 0;
    while i < TABLE.len() {
        assert!(TABLE[i].0 as usize == i);
        i += 1;
    }
};

impl Dtype {
    /// Every dtype of safetensors, in the order of its own enum.
    pub fn of_safetensors() -> impl Iterator<Item = Self> {
        TABLE[..SAFETENSORS].iter().map(|entry| entry.0)
    }

    /// The spelling in a safetensors header, or ggml's.
    pub fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// Elements of a block, the smallest piece that has bytes of its own: 1, except for block formats of ggml.
    pub fn block_len(self) -> u64 {
        TABLE[self as usize].2
    }

    /// Size of a block in bits: 4, 6, or a multiple of 8.
    pub fn block_bits(self) -> u64 {
        TABLE[self as usize].3
    }

    /// Bytes that a tensor of this dtype takes, with no padding between elements.
    ///
    /// An empty shape is a scalar (one element). `None` if the number of elements or of bits passes 2^64, if the elements do not fill a
    /// whole number of bytes (possible with 4- and 6-bit formats only), or if the last extent is no whole number of blocks.
    pub fn bytes_of(self, shape: &[u64]) -> Option<u64> {
        let elements = elements_of(shape)?;
        if !shape.last().unwrap_or(&1).is_multiple_of(self.block_len()) {
            return None;
        }
        let bits = (elements / self.block_len()).checked_mul(self.block_bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

/// The number of elements of a shape; `None` if the product passes 2^64 at any step, even where a later 0 would hide it.
pub fn elements_of(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |product, &extent| product.checked_mul(extent))
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A string that names no dtype of safetensors 0.8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownDtype;

impl fmt::Display for UnknownDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown dtype")
    }
}

impl std::error::Error for UnknownDtype {}

impl FromStr for Dtype {
    type Err = UnknownDtype;

    /// Reads the spelling of safetensors exactly (upper case).
    fn from_str(text: &str) -> Result<Self, UnknownDtype> {
        Self::of_safetensors().find(|dtype| dtype.name() == text).ok_or(UnknownDtype)
    }
}

impl<'de> Deserialize<'de> for Dtype {
    /// Reads what a safetensors header may say, and nothing else.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The oracle is the `safetensors` crate: its spelling (through serde) and its bit sizes.
    #[test]
    fn agrees_with_the_safetensors_crate() {
        for dtype in Dtype::of_safetensors() {
            let theirs: safetensors::Dtype = serde_json::from_value(dtype.name().into()).unwrap();
            assert_eq!(dtype.block_bits(), theirs.bitsize() as u64, "{dtype}");
            assert_eq!(serde_json::to_value(theirs).unwrap(), serde_json::to_value(dtype).unwrap());
            assert_eq!(dtype.to_string().parse::<Dtype>(), Ok(dtype));
        }
        for unknown in ["", "bf16", "F8", "Q4_K", "BF16 "] {
            assert_eq!(unknown.parse::<Dtype>(), Err(UnknownDtype), "{unknown}");
        }
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(Dtype::BF16.bytes_of(&[128, 5120, 16384]), Some(21_474_836_480));
        assert_eq!(Dtype::F64.bytes_of(&[]), Some(8));
        assert_eq!(Dtype::F32.bytes_of(&[7, 0, 3]), Some(0));
        assert_eq!(Dtype::F4.bytes_of(&[3]), None);
        assert_eq!(Dtype::F4.bytes_of(&[3, 2]), Some(3));
        assert_eq!(Dtype::F6_E2M3.bytes_of(&[4]), Some(3));
        assert_eq!(Dtype::F6_E3M2.bytes_of(&[2]), None);
        assert_eq!(Dtype::Q4_K.bytes_of(&[3, 512]), Some(3 * 2 * 144));
        assert_eq!(Dtype::Q4_K.bytes_of(&[256, 100]), None);
        assert_eq!(Dtype::U8.bytes_of(&[u64::MAX / 8]), Some(u64::MAX / 8));
        assert_eq!(Dtype::U8.bytes_of(&[u64::MAX / 8 + 1]), None);
        assert_eq!(Dtype::U8.bytes_of(&[1 << 32, 1 << 32, 0]), None);
    }
}
