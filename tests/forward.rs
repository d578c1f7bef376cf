//! The forward pass against goldens that transformers 5.17 made (`testdata/make_goldens.py`).

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{check, testdata};
use l4::llama4::Llama4;

#[test]
fn scout_shape_matches_transformers() {
    check(&Llama4::open(&testdata("tiny-scout")).unwrap(), "tiny-scout", 4, 1e-5);
}

/// Interleave step 2, 128 experts, no QK norm, plain RoPE, other head counts, text only, config of transformers 5.
#[test]
fn maverick_shape_matches_transformers() {
    check(&Llama4::open(&testdata("tiny-maverick")).unwrap(), "tiny-maverick", 2, 1e-5);
}

/// A header may have any length, so numbers may start at any address. Files start at the start of a page.
#[test]
fn numbers_at_odd_addresses_are_the_same_numbers() {
    for (name, routers, bound) in [("tiny-maverick", 2, 1e-5), ("ct-w4a16-asym", 1, 1e-4), ("ct-fp8-block", 1, 1e-4)] {
        let even = check(&Llama4::open(&testdata(name)).unwrap(), name, routers, bound);
        let scratch = tempfile::tempdir().unwrap();
        fs::copy(testdata(name).join("config.json"), scratch.path().join("config.json")).unwrap();
        let bytes = fs::read(testdata(name).join("model.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let (header, data) = bytes[8..].split_at(length as usize);
        let spaces: &[u8] = if length.is_multiple_of(2) { b" " } else { b"  " };
        let longer = length + spaces.len() as u64;
        assert!(!longer.is_multiple_of(2));
        let file = [&longer.to_le_bytes(), header, spaces, data].concat();
        fs::write(scratch.path().join("model.safetensors"), file).unwrap();
        let model = Llama4::open(scratch.path()).unwrap();
        let odd = check(&model, name, routers, bound);
        assert!(even.iter().zip(&odd).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
    }
}
