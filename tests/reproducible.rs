//! The forward pass gives the same bits for any number of threads and any instruction set: calibration lets it decide what
//! is written to files. One test alone in its process, because it switches paths for the whole process.

#![allow(clippy::unwrap_used)]

mod common;

use common::testdata;
use l4::kernels::Isa;
use l4::kernels::gemm::{self, GemmPath};
use l4::llama4::Llama4;
use l4::model::forward::Forward;

/// Bits of the residual stream after every layer, and of the router's logits.
fn run(model: &Llama4, lengths: &[usize], threads: usize) -> Vec<u32> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let forward = Forward::new(model, lengths).unwrap();
        let tokens: Vec<u32> = (0..lengths.iter().sum::<usize>() as u32).map(|i| i * 7 % 251 + 1).collect();
        let mut hidden = forward.embed(&tokens).unwrap();
        let mut bits = Vec::new();
        for layer in 0..forward.layers() {
            let logits = forward.layer(layer, &mut hidden);
            bits.extend(hidden.iter().chain(logits.iter().flatten()).map(|value| value.to_bits()));
        }
        bits
    })
}

#[test]
fn neither_threads_nor_instruction_sets_show() {
    let _guard = gemm::reproducible();
    for (name, lengths) in [("tiny-scout", [150, 3, 20]), ("tiny-maverick", [40, 9, 1])] {
        let model = Llama4::open(&testdata(name)).unwrap();
        let mut expected = None;
        for (isa, path) in [
            (Isa::Scalar, GemmPath::Portable),
            (Isa::Scalar, GemmPath::Scalar),
            (Isa::Avx2, GemmPath::Avx2),
            (Isa::Avx512, GemmPath::Avx512),
            (Isa::Avx512, GemmPath::Amx),
        ] {
            if !isa.is_available() || !path.is_available() {
                continue;
            }
            l4::kernels::select(Some(isa)).unwrap();
            gemm::select(path).unwrap();
            for threads in [1, 3] {
                let bits = run(&model, &lengths, threads);
                let expected = expected.get_or_insert_with(|| bits.clone());
                assert!(bits == *expected, "{name}, {path}, {threads} threads");
            }
        }
    }
}
