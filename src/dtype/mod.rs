//! Number formats: what an element of a tensor is and how many bytes a shape of them takes.
//!
//! The names are the container's own (safetensors 0.8, `safetensors/src/tensor.rs`, `enum Dtype`); no other spelling exists in this
//! library. Knows no file, no tensor name and no model.

pub mod fp8;
pub mod int4;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The element type of a tensor, in the spelling of safetensors.
#[allow(non_camel_case_types, clippy::upper_case_acronyms, missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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
}

/// Every dtype with its spelling and its size in bits (safetensors 0.8, `Dtype::bitsize`).
const TABLE: [(Dtype, &str, u64); 22] = [
    (Dtype::BOOL, "BOOL", 8),
    (Dtype::F4, "F4", 4),
    (Dtype::F6_E2M3, "F6_E2M3", 6),
    (Dtype::F6_E3M2, "F6_E3M2", 6),
    (Dtype::U8, "U8", 8),
    (Dtype::I8, "I8", 8),
    (Dtype::F8_E5M2, "F8_E5M2", 8),
    (Dtype::F8_E4M3, "F8_E4M3", 8),
    (Dtype::F8_E8M0, "F8_E8M0", 8),
    (Dtype::F8_E4M3FNUZ, "F8_E4M3FNUZ", 8),
    (Dtype::F8_E5M2FNUZ, "F8_E5M2FNUZ", 8),
    (Dtype::I16, "I16", 16),
    (Dtype::U16, "U16", 16),
    (Dtype::F16, "F16", 16),
    (Dtype::BF16, "BF16", 16),
    (Dtype::I32, "I32", 32),
    (Dtype::U32, "U32", 32),
    (Dtype::F32, "F32", 32),
    (Dtype::C64, "C64", 64),
    (Dtype::F64, "F64", 64),
    (Dtype::I64, "I64", 64),
    (Dtype::U64, "U64", 64),
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
    /// Every dtype, in the order of safetensors' own enum.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|entry| entry.0)
    }

    /// The spelling in a safetensors header.
    pub fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// Size of one element in bits: 4, 6, or a multiple of 8.
    pub fn bits(self) -> u64 {
        TABLE[self as usize].2
    }

    /// Bytes that a tensor of this dtype takes, with no padding between elements.
    ///
    /// An empty shape is a scalar (one element). `None` if the number of elements or of bits passes 2^64, or if the
    /// elements do not fill a whole number of bytes (possible with 4- and 6-bit formats only).
    pub fn bytes_of(self, shape: &[u64]) -> Option<u64> {
        let elements = elements_of(shape)?;
        let bits = elements.checked_mul(self.bits())?;
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

    /// Reads the container's spelling exactly (upper case).
    fn from_str(text: &str) -> Result<Self, UnknownDtype> {
        TABLE.iter().find(|entry| entry.1 == text).map(|entry| entry.0).ok_or(UnknownDtype)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The oracle is the `safetensors` crate: its spelling (through serde) and its bit sizes.
    #[test]
    fn agrees_with_the_safetensors_crate() {
        for dtype in Dtype::all() {
            let theirs: safetensors::Dtype = serde_json::from_value(dtype.name().into()).unwrap();
            assert_eq!(dtype.bits(), theirs.bitsize() as u64, "{dtype}");
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
        assert_eq!(Dtype::U8.bytes_of(&[u64::MAX / 8]), Some(u64::MAX / 8));
        assert_eq!(Dtype::U8.bytes_of(&[u64::MAX / 8 + 1]), None);
        assert_eq!(Dtype::U8.bytes_of(&[1 << 32, 1 << 32, 0]), None);
    }
}
