//! Checkpoints that compressed-tensors 0.19 wrote: what it decompresses, and what transformers 5.17 computes with that
//! (`testdata/make_goldens.py ct`).

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::ops::Range;

use common::{Golden, check, testdata};
use half::bf16;
use l4::llama4::{Llama4, Weight};
use l4::quant::scheme::Scheme;

const FOLDERS: [(&str, Scheme); 5] = [
    ("ct-w4a16", Scheme::W4A16 { group_size: 32, symmetric: true }),
    ("ct-w4a16-asym", Scheme::W4A16 { group_size: 32, symmetric: false }),
    ("ct-fp8-channel", Scheme::Fp8Dynamic),
    ("ct-fp8-block", Scheme::Fp8Block { rows: 128, cols: 128 }),
    ("ct-fp8-tensor", Scheme::Fp8Tensor { static_input: true }),
];

/// Three matrices of the dense layer; four experts and a shared one in the other.
const QUANTIZED: usize = 3 + 3 * (4 + 1);

/// `weight.NAME` of a golden by logical name, as the bits of BF16.
fn decompressed(name: &str) -> BTreeMap<String, (Vec<usize>, Vec<u16>)> {
    let golden = Golden::open(name);
    let file = golden.file();
    let weights = file.iter().filter_map(|(name, tensor)| {
        let module = name.strip_prefix("weight.")?;
        assert_eq!(tensor.dtype(), safetensors::Dtype::BF16);
        let bits = tensor.data().as_chunks::<2>().0.iter().map(|&bytes| u16::from_le_bytes(bytes)).collect();
        Some((module[module.find("layers.").unwrap()..].to_owned(), (tensor.shape().to_vec(), bits)))
    });
    weights.collect()
}

#[track_caller]
fn check_rows(model: &Llama4, weight: &Weight, rows: Range<usize>, wanted: &[u16]) {
    let input = weight.shape[1];
    let wanted = &wanted[rows.start * input..rows.end * input];
    let mut halves = vec![bf16::NAN; wanted.len()];
    model.dequantize(weight, rows.clone(), &mut halves);
    let at = halves.iter().zip(wanted).position(|(is, wanted)| is.to_bits() != *wanted);
    assert_eq!(at, None, "`{}`, rows {rows:?}: as BF16", weight.name);
    let mut singles = vec![f32::NAN; wanted.len()];
    model.dequantize(weight, rows.clone(), &mut singles);
    // The upper half of a binary32 is the bfloat16.
    let at = singles.iter().zip(wanted).position(|(is, wanted)| is.to_bits() != u32::from(*wanted) << 16);
    assert_eq!(at, None, "`{}`, rows {rows:?}: as F32", weight.name);
}

#[test]
fn weights_are_what_compressed_tensors_decompresses() {
    for (name, scheme) in FOLDERS {
        let model = Llama4::open(&testdata(name)).unwrap();
        assert_eq!(model.problems, [], "{name}");
        let wanted = decompressed(name);
        assert_eq!(wanted.len(), QUANTIZED, "{name}");
        let quantized: Vec<_> = model.weights.iter().filter(|weight| weight.coding.scheme().is_some()).collect();
        assert_eq!(quantized.len(), QUANTIZED, "{name}");
        for weight in quantized {
            let (shape, bits) = &wanted[&weight.name];
            assert_eq!(weight.coding.scheme(), Some(scheme), "{name}: {}", weight.name);
            assert_eq!(weight.shape, *shape, "{name}: {}", weight.name);
            let out = shape[0];
            check_rows(&model, weight, 0..out, bits);
            // Inside a word of zero points, across two, across three; across blocks of scales where there are any.
            for rows in [3..11, 1..2, 7..9, 5..25, 8..16, 9..out, out - 1..out, out / 2 - 3..out - 5, 4..4] {
                check_rows(&model, weight, rows, bits);
            }
        }
    }
}

#[test]
fn forward_pass_is_that_of_transformers() {
    for (name, _) in FOLDERS {
        let model = Llama4::open(&testdata(name)).unwrap();
        check(&model, name, 1, 1e-4);
    }
}
