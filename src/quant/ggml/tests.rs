//! Against llama.cpp and Python's `gguf`; `testdata/make_ggml.py` wrote the file.

use half::bf16;
use safetensors::SafeTensors;

use super::*;
use crate::kernels::{Isa, pinned};

static FILE: &[u8] = include_bytes!("../../../testdata/ggml/blocks.safetensors");

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
}

#[test]
fn values_are_those_of_the_python_package() {
    let file = SafeTensors::deserialize(FILE).unwrap();
    for dtype in TYPES {
        let blocks = file.tensor(&format!("{dtype}.random")).unwrap();
        let expected = floats(file.tensor(&format!("{dtype}.decoded")).unwrap().data());
        let mut values = vec![f32::NAN; expected.len()];
        assert!(decodes(dtype));
        decode(dtype, blocks.data(), &mut values);
        for (i, (value, expected)) in values.iter().zip(&expected).enumerate() {
            assert_eq!(value.to_bits(), expected.to_bits(), "{dtype} value {i}: {value:e} is not {expected:e}");
        }
    }
    assert!(!decodes(Dtype::Q8_K) && !decodes(Dtype::F32));
}

#[test]
#[should_panic(expected = "not whole blocks")]
fn half_a_block_is_refused() {
    decode(Dtype::Q8_0, &[0; 17], &mut [0.0; 32]);
}

#[test]
fn bytes_are_those_of_llama_cpp() {
    let file = SafeTensors::deserialize(FILE).unwrap();
    let rows = floats(file.tensor("rows").unwrap().data());
    let importance = floats(file.tensor("importance").unwrap().data());
    for dtype in TYPES {
        for (name, importance) in [("", None), (".importance", Some(&importance[..]))] {
            let expected = file.tensor(&format!("{dtype}{name}")).unwrap();
            let mut blocks = vec![0xee; expected.data().len()];
            reference::encode(dtype, &rows, 512, importance, &mut blocks);
            same_blocks(dtype, &blocks, expected.data(), name);
            for isa in isas() {
                blocks.fill(0xee);
                pinned(isa, || encode(dtype, &rows, 512, importance, &mut blocks));
                same_blocks(dtype, &blocks, expected.data(), &format!("{name} {isa}"));
            }
        }
    }
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

fn same_blocks(dtype: Dtype, blocks: &[u8], expected: &[u8], what: &str) {
    let bytes = sizes(dtype).1;
    for (i, (block, expected)) in blocks.chunks(bytes).zip(expected.chunks(bytes)).enumerate() {
        assert_eq!(block, expected, "{dtype} {what} block {i}");
    }
    assert_eq!(blocks.len(), expected.len());
}

/// Random numbers, the same every time.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 ^ self.0 >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.bits() >> 33) % n
    }

    /// Bell-shaped, of variance one.
    fn normal(&mut self) -> f32 {
        let sum: i32 = self.bits().to_le_bytes().iter().map(|&b| 2 * i32::from(b) - 255).sum();
        sum as f32 / 418.0
    }

    fn power_of_ten(&mut self, low: i32, high: i32) -> f32 {
        10_f32.powi(low + self.below((high - low) as u64) as i32)
    }

    /// A row of one of several kinds: as trained weights are, or trouble.
    fn row(&mut self, row: &mut [f32]) {
        let kind = self.below(14);
        let scale = if self.below(3) == 0 { self.power_of_ten(-44, 38) } else { 0.02 };
        let constant = self.normal();
        let mut group = 1.0;
        for (i, x) in row.iter_mut().enumerate() {
            if i % 16 == 0 {
                group = if kind == 6 { self.power_of_ten(-20, 10) } else { self.below(3) as f32 };
            }
            let normal = self.normal();
            let value = match kind {
                0..=2 => normal,
                3 => bf16::from_f32(normal).to_f32(),
                4 => self.below(17) as f32 / 8.0 - 1.0,
                5 => self.below(256) as f32 - 128.0,
                6 | 7 => normal * group,
                8 => normal.abs() + 0.01,
                9 => -normal.abs() - 0.01,
                10 => constant,
                11 if self.below(20) > 0 => -0.0,
                12 => 1.0 - self.below(60) as f32 / 16_777_216.0,
                _ => normal * normal * normal,
            };
            *x = (value * scale).clamp(-3.3e38, 3.3e38);
        }
    }

    fn importance(&mut self, len: usize) -> Vec<f32> {
        let (zeros, spread) = (self.below(3), self.below(4) as i32 + 1);
        let one = |random: &mut Self| if random.below(4) < zeros { 0.0 } else { random.power_of_ten(-spread, spread) };
        (0..len).map(|_| one(self) * self.normal().abs()).collect()
    }
}

/// Many blocks of every kind, the last batch not full, rows that end anywhere in a batch.
#[test]
fn every_instruction_set_gives_the_specified_bytes() {
    let mut random = Random(1);
    for dtype in TYPES {
        let (block_len, block_bytes) = sizes(dtype);
        for round in 0..6 {
            let row_len = block_len * [1, 3, 20, 16, 7, 2][round];
            let mut rows = vec![0.0; row_len * (1 + random.below(80 * 256 / row_len as u64 + 2) as usize)];
            rows.chunks_exact_mut(row_len).for_each(|row| random.row(row));
            let importance = random.importance(row_len);
            for importance in [None, Some(&importance[..])] {
                let mut expected = vec![0; rows.len() / block_len * block_bytes];
                reference::encode(dtype, &rows, row_len, importance, &mut expected);
                for isa in isas() {
                    let mut blocks = vec![0xee; expected.len()];
                    pinned(isa, || encode(dtype, &rows, row_len, importance, &mut blocks));
                    same_blocks(dtype, &blocks, &expected, &format!("{isa} {}", importance.is_some()));
                }
            }
        }
    }
}

#[test]
fn values_that_are_not_finite_do_no_harm() {
    for dtype in TYPES {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut rows = vec![0.5; 20 * 256];
            rows.iter_mut().step_by(97).for_each(|x| *x = bad);
            let mut blocks = vec![0; rows.len() / sizes(dtype).0 * sizes(dtype).1];
            for importance in [None, Some(&[1.0; 256][..])] {
                encode(dtype, &rows, 256, importance, &mut blocks);
                reference::encode(dtype, &rows, 256, importance, &mut blocks);
            }
        }
    }
}
