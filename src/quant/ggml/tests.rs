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
