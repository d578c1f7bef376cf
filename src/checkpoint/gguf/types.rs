//! How many bytes the elements of each ggml type take.
//!
//! Ids and sizes are those of `ggml_type` and `type_traits` in ggml 0.25 (`ggml/include/ggml.h`, `ggml/src/ggml.c`); a test holds
//! them against what the Python package `gguf` says.

/// A ggml type: elements come in blocks of a fixed size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlType {
    /// Number in the file.
    pub id: u32,
    /// Name in ggml.
    pub name: &'static str,
    /// Elements of a block.
    pub block_len: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
}

const fn row(id: u32, name: &'static str, block_len: u64, block_bytes: u64) -> GgmlType {
    GgmlType { id, name, block_len, block_bytes }
}

/// Every type that can be in a file, by number. Numbers that are missing were retired.
pub const GGML_TYPES: [GgmlType; 35] = [
    row(0, "F32", 1, 4),
    row(1, "F16", 1, 2),
    row(2, "Q4_0", 32, 18),
    row(3, "Q4_1", 32, 20),
    row(6, "Q5_0", 32, 22),
    row(7, "Q5_1", 32, 24),
    row(8, "Q8_0", 32, 34),
    row(9, "Q8_1", 32, 36),
    row(10, "Q2_K", 256, 84),
    row(11, "Q3_K", 256, 110),
    row(12, "Q4_K", 256, 144),
    row(13, "Q5_K", 256, 176),
    row(14, "Q6_K", 256, 210),
    row(15, "Q8_K", 256, 292),
    row(16, "IQ2_XXS", 256, 66),
    row(17, "IQ2_XS", 256, 74),
    row(18, "IQ3_XXS", 256, 98),
    row(19, "IQ1_S", 256, 50),
    row(20, "IQ4_NL", 32, 18),
    row(21, "IQ3_S", 256, 110),
    row(22, "IQ2_S", 256, 82),
    row(23, "IQ4_XS", 256, 136),
    row(24, "I8", 1, 1),
    row(25, "I16", 1, 2),
    row(26, "I32", 1, 4),
    row(27, "I64", 1, 8),
    row(28, "F64", 1, 8),
    row(29, "IQ1_M", 256, 56),
    row(30, "BF16", 1, 2),
    row(34, "TQ1_0", 256, 54),
    row(35, "TQ2_0", 256, 66),
    row(39, "MXFP4", 32, 17),
    row(40, "NVFP4", 64, 36),
    row(41, "Q1_0", 128, 18),
    row(42, "Q2_0", 64, 18),
];

/// Number of [`GGML_TYPES`]'s F32.
pub const F32: u32 = 0;

impl GgmlType {
    /// The type with this number.
    pub fn of(id: u32) -> Option<Self> {
        GGML_TYPES.iter().copied().find(|found| found.id == id)
    }

    /// Bytes of a tensor whose rows have `row` elements and of which there are `rows`; nothing if a row is no whole number of
    /// blocks, or the size passes 64 bits.
    pub fn bytes_of(self, row: u64, rows: u64) -> Option<u64> {
        if !row.is_multiple_of(self.block_len) {
            return None;
        }
        (row / self.block_len).checked_mul(self.block_bytes)?.checked_mul(rows)
    }
}
