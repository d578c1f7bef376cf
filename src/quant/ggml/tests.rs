//! Against llama.cpp and Python's `gguf`; `testdata/make_ggml.py` wrote the file.

use safetensors::SafeTensors;

use super::*;

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
            encode(dtype, &rows, 512, importance, &mut blocks);
            let bytes = sizes(dtype).1;
            let pairs = blocks.chunks(bytes).zip(expected.data().chunks(bytes));
            for (i, (block, expected)) in pairs.enumerate() {
                let row = i * sizes(dtype).0 / 512;
                assert_eq!(block, expected, "{dtype}{name} block {i} of row {row}");
            }
        }
    }
}
