//! Weights that cannot be quantized are named.

use half::bf16;

use super::{Matrix, isas};
use crate::kernels::{Float, pinned};
use crate::quant::fp8::{self, BlockScales, Codes};
use crate::quant::int4::{self, Int4Out, Params};
use crate::quant::{Block, ErrorSums, Layout, Method, NonFinite};

fn int4(block: &Block<'_>, symmetric: bool, method: Method) -> Result<(), NonFinite> {
    let (outs, ins) = (block.outs(), block.ins());
    let (mut packed, mut scales, mut zeros) = (vec![0; outs * ins / 8], vec![bf16::ZERO; outs], vec![0; outs]);
    let out = Int4Out {
        packed: &mut packed,
        packed_stride: ins / 8,
        scales: &mut scales,
        scale_stride: 1,
        zero_points: (!symmetric).then_some(&mut zeros),
    };
    let params = Params { group_size: ins, symmetric, method };
    int4::quantize(block, &params, out, ErrorSums::new(outs).rows(0, outs))
}

fn fp8_channel(block: &Block<'_>) -> Result<(), NonFinite> {
    let (outs, ins) = (block.outs(), block.ins());
    let mut amax = vec![0.0; outs];
    fp8::absmax(block, &mut amax)?;
    let scales: Vec<bf16> = amax.into_iter().map(fp8::scale).collect();
    let mut bytes = vec![0; outs * ins];
    let codes = Codes { bytes: &mut bytes, stride: ins };
    fp8::quantize_channel(block, &scales, codes, ErrorSums::new(outs).rows(0, outs))
}

fn fp8_block(block: &Block<'_>) -> Result<(), NonFinite> {
    let (outs, ins) = (block.outs(), block.ins());
    let (mut bytes, mut scales) = (vec![0; outs * ins], [bf16::ZERO]);
    let scales = BlockScales { scales: &mut scales, stride: 1, height: outs, width: ins };
    fp8::quantize_block(block, scales, Codes { bytes: &mut bytes, stride: ins }, ErrorSums::new(outs).rows(0, outs))
}

#[test]
fn what_is_not_finite_is_named() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (layout, float) in [(Layout::InOut, Float::BF16), (Layout::OutIn, Float::F16), (Layout::InOut, Float::F32)]
        {
            let mut weights = vec![0.5; 19 * 64];
            weights[17 * 64 + 33] = value;
            weights[18 * 64 + 2] = value;
            let m = Matrix::new(&weights, (19, 64), float, layout, 2, 1);
            let block = m.block();
            for isa in isas() {
                let mut results = vec![pinned(isa, || fp8_channel(&block)), pinned(isa, || fp8_block(&block))];
                for symmetric in [true, false] {
                    for method in [Method::Rtn, Method::Search] {
                        results.push(pinned(isa, || int4(&block, symmetric, method)));
                    }
                }
                for result in results {
                    let found = result.unwrap_err();
                    assert_eq!((found.out, found.input), (17, 33));
                    assert!(found.to_string().ends_with("at output 17, input 33 is not finite"), "{found}");
                }
            }
        }
    }
}

#[test]
fn what_overflows_when_quantized_is_named() {
    let mut weights = vec![1.0; 2 * 64];
    // The scale is rounded down to 2^125, the code is -8, and -8 times the scale is beyond BF16's range.
    weights[64 + 7] = -3.1903e38;
    let m = Matrix::new(&weights, (2, 64), Float::F32, Layout::OutIn, 0, 0);
    let found = int4(&m.block(), true, Method::Rtn).unwrap_err();
    assert_eq!((found.out, found.input, found.value), (1, 7, -3.1903e38));
    assert!(found.to_string().contains("too large"), "{found}");
    // The range of the group is twice the largest float.
    weights[64 + 8] = 3.19e38;
    let m = Matrix::new(&weights, (2, 64), Float::F32, Layout::InOut, 0, 0);
    let found = int4(&m.block(), false, Method::Search).unwrap_err();
    assert_eq!((found.out, found.input), (1, 7));
}

#[test]
#[should_panic(expected = "need Some(14) bytes; there are 12")]
fn a_view_checks_its_bytes() {
    Block::new(&[0; 12], Float::BF16, Layout::InOut, 4, (3, 2));
}
