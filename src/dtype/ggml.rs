//! The numbers that ggml gives its types in GGUF files (ggml 0.25, `enum ggml_type` in `ggml/include/ggml.h`).

use super::Dtype;

/// Every type that can be in a file, with its number. Numbers that are missing were retired.
const IDS: [(u32, Dtype); 35] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (2, Dtype::Q4_0),
    (3, Dtype::Q4_1),
    (6, Dtype::Q5_0),
    (7, Dtype::Q5_1),
    (8, Dtype::Q8_0),
    (9, Dtype::Q8_1),
    (10, Dtype::Q2_K),
    (11, Dtype::Q3_K),
    (12, Dtype::Q4_K),
    (13, Dtype::Q5_K),
    (14, Dtype::Q6_K),
    (15, Dtype::Q8_K),
    (16, Dtype::IQ2_XXS),
    (17, Dtype::IQ2_XS),
    (18, Dtype::IQ3_XXS),
    (19, Dtype::IQ1_S),
    (20, Dtype::IQ4_NL),
    (21, Dtype::IQ3_S),
    (22, Dtype::IQ2_S),
    (23, Dtype::IQ4_XS),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (29, Dtype::IQ1_M),
    (30, Dtype::BF16),
    (34, Dtype::TQ1_0),
    (35, Dtype::TQ2_0),
    (39, Dtype::MXFP4),
    (40, Dtype::NVFP4),
    (41, Dtype::Q1_0),
    (42, Dtype::Q2_0),
];

/// The type with this number.
pub fn dtype_of(id: u32) -> Option<Dtype> {
    IDS.iter().find(|entry| entry.0 == id).map(|entry| entry.1)
}

/// The number of a type; `None` for one that only safetensors has.
pub fn id_of(dtype: Dtype) -> Option<u32> {
    IDS.iter().find(|entry| entry.1 == dtype).map(|entry| entry.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_types_are_those_of_the_python_package() {
        let table = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/gguf/types.tsv")).unwrap();
        let mut known = 0;
        for line in table.lines() {
            let cells: Vec<&str> = line.split('\t').collect();
            let number = |index: usize| cells[index].parse::<u64>().unwrap();
            let found = dtype_of(number(0) as u32).unwrap();
            assert_eq!((found.name(), found.block_len()), (cells[1], number(2)));
            // The package counts two sums of Q8_1 as float32; ggml's `block_q8_1` has float16. The type is never in a file.
            assert_eq!(found.block_bits() / 8, if cells[1] == "Q8_1" { 36 } else { number(3) }, "{line}");
            assert_eq!(id_of(found), Some(number(0) as u32));
            known += 1;
        }
        // Q2_0 is in ggml.h (`block_q2_0`: a float16 and 64 values of 2 bits) and not yet in the package.
        assert_eq!(known + 1, IDS.len());
    }
}
