//! Byte for byte what compressed-tensors 0.19 makes of the same weights; `testdata/make_quant_goldens.py` wrote the file.

use half::bf16;
use safetensors::{Dtype, SafeTensors};

use super::isas;
use crate::dtype::int4::words;
use crate::kernels::{Float, pinned};
use crate::quant::fp8::{self, BlockScales, Coded, Codes};
use crate::quant::int4::{self, Int4Out, Packed, Params};
use crate::quant::{Block, ErrorSums, Layout, Method};

static FILE: &[u8] = include_bytes!("../../../testdata/quant-goldens.safetensors");

/// A stored weight as a block, and its name.
fn weights<'a>(file: &'a SafeTensors<'_>) -> Vec<(&'static str, Block<'a>)> {
    let block = |name: &'static str| {
        let tensor = file.tensor(&format!("{name}.weight")).unwrap();
        let float = if tensor.dtype() == Dtype::F32 { Float::F32 } else { Float::BF16 };
        let (outs, ins) = (tensor.shape()[0], tensor.shape()[1]);
        let from = tensor.data().as_ptr() as usize - FILE.as_ptr() as usize;
        let bytes = &FILE[from..from + tensor.data().len()];
        (name, Block::new(bytes, float, Layout::OutIn, ins, (outs, ins)))
    };
    ["bf16", "f32", "ragged"].map(block).to_vec()
}

fn bytes(scales: &[bf16]) -> Vec<u8> {
    scales.iter().flat_map(|s| s.to_le_bytes()).collect()
}

fn word_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

#[test]
fn int4_is_what_compressed_tensors_writes() {
    let file = SafeTensors::deserialize(FILE).unwrap();
    let mut compared = 0;
    for (name, block) in weights(&file) {
        for group in [4, 20, 32, 128] {
            for symmetric in [true, false] {
                let case = format!("{name}.int4.{group}.{}", if symmetric { "sym" } else { "asym" });
                let golden = |what: &str| file.tensor(&format!("{case}.{what}")).map(|t| t.data().to_vec());
                let Ok(expected) = golden("packed") else { continue };
                let (outs, ins, groups) = (block.outs(), block.ins(), block.ins() / group);
                for isa in isas() {
                    let (mut packed, mut scales) = (vec![0; outs * words(ins)], vec![bf16::ZERO; outs * groups]);
                    let mut zeros = vec![0; outs * groups];
                    let out = Int4Out {
                        packed: &mut packed,
                        packed_stride: words(ins),
                        scales: &mut scales,
                        scale_stride: groups,
                        zero_points: (!symmetric).then_some(&mut zeros),
                    };
                    let params = Params { group_size: group, symmetric, method: Method::Rtn };
                    let mut sums = ErrorSums::new(outs);
                    pinned(isa, || int4::quantize(&block, &params, out, sums.rows(0, outs))).unwrap();
                    assert_eq!(bytes(&scales), golden("scale").unwrap(), "{case} {isa}: scales");
                    assert_eq!(word_bytes(&packed), expected, "{case} {isa}: codes");
                    if !symmetric {
                        let mut along = vec![0; outs.div_ceil(8) * groups];
                        int4::pack_zero_points(&zeros, outs, groups, &mut along);
                        assert_eq!(word_bytes(&along), golden("zero_packed").unwrap(), "{case} {isa}: zero points");
                        let mut back = vec![0; zeros.len()];
                        int4::unpack_zero_points(&golden("zero_packed").unwrap(), outs, groups, &mut back);
                        assert_eq!(back, zeros);
                    }
                    let packed = Packed {
                        codes: &expected,
                        scales: &golden("scale").unwrap(),
                        float: Float::BF16,
                        zero_points: (!symmetric).then_some(&zeros),
                        rows: outs,
                        ins,
                        group_size: group,
                    };
                    let mut values = vec![bf16::NAN; outs * ins];
                    pinned(isa, || int4::dequantize(&packed, &mut values));
                    assert_eq!(bytes(&values), golden("dequantized").unwrap(), "{case} {isa}: values");
                }
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 12);
}

#[test]
fn fp8_is_what_compressed_tensors_writes() {
    let file = SafeTensors::deserialize(FILE).unwrap();
    for (name, block) in weights(&file) {
        let (outs, ins) = (block.outs(), block.ins());
        for strategy in ["channel", "block", "tensor"] {
            let golden = |what: &str| file.tensor(&format!("{name}.fp8.{strategy}.{what}")).unwrap().data().to_vec();
            for isa in isas() {
                let mut codes = vec![0; outs * ins];
                let mut sums = ErrorSums::new(outs);
                let (to, rows) = (Codes { bytes: &mut codes, stride: ins }, sums.rows(0, outs));
                let mut amax = vec![0.0; outs];
                pinned(isa, || fp8::absmax(&block, &mut amax)).unwrap();
                let (scales, shape) = match strategy {
                    "channel" => {
                        let scales: Vec<bf16> = amax.into_iter().map(fp8::scale).collect();
                        pinned(isa, || fp8::quantize_channel(&block, &scales, to, rows)).unwrap();
                        (scales, (1, ins))
                    }
                    "tensor" => {
                        let scale = fp8::scale(amax.into_iter().fold(0.0, f32::max));
                        pinned(isa, || fp8::quantize_tensor(&block, scale, to, rows)).unwrap();
                        (vec![scale], (outs, ins))
                    }
                    _ => {
                        let (height, width, stride) = (32, 48, ins.div_ceil(48));
                        let mut scales = vec![bf16::ZERO; outs.div_ceil(height) * stride];
                        let blocks = BlockScales { scales: &mut scales, stride, height, width };
                        pinned(isa, || fp8::quantize_block(&block, blocks, to, rows)).unwrap();
                        (scales, (height, width))
                    }
                };
                assert_eq!(bytes(&scales), golden("scale"), "{name} {strategy} {isa}: scales");
                assert_eq!(codes, golden("codes"), "{name} {strategy} {isa}: codes");
                let scales = bytes(&scales);
                let float = Float::BF16;
                let coded =
                    Coded { codes: &codes, scales: &scales, float, block: shape, first_row: 0, rows: outs, ins };
                let mut values = vec![bf16::NAN; outs * ins];
                pinned(isa, || fp8::dequantize(&coded, &mut values));
                assert_eq!(bytes(&values), golden("dequantized"), "{name} {strategy} {isa}: values");
            }
        }
    }
}
