//! The head of a GGUF file as bytes, and where its tensors go.

use super::value::{ARRAY, STRING};
use super::{ALIGNMENT, MAGIC, NAME_BYTES_MAX, VERSION, Value};
use crate::dtype::{Dtype, ggml};

/// A file that is to be written: its first bytes, and where each tensor's data go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Everything before the data, padded.
    pub head: Vec<u8>,
    /// First byte of each tensor, from the start of the file.
    pub offsets: Vec<u64>,
    /// Size of the whole file; what no tensor covers is zero.
    pub bytes: u64,
}

/// Lays a file out. `strings` are keys whose value is an array of strings; `tensors` have a name, extents (the fastest-varying
/// first) and a type.
///
/// # Panics
/// If a name is too long for llama.cpp, ggml has no such type, a row is no whole number of blocks, or `values` hold an array.
pub fn encode(
    values: &[(&str, Value)],
    strings: &[(&str, &[String])],
    tensors: &[(String, Vec<u64>, Dtype)],
) -> Layout {
    let mut head = MAGIC.to_vec();
    head.extend(VERSION.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend(((values.len() + strings.len()) as u64).to_le_bytes());
    for (key, value) in values {
        put_string(&mut head, key);
        put_value(&mut head, value);
    }
    for (key, list) in strings {
        put_string(&mut head, key);
        head.extend(ARRAY.to_le_bytes());
        head.extend(STRING.to_le_bytes());
        head.extend((list.len() as u64).to_le_bytes());
        list.iter().for_each(|text| put_string(&mut head, text));
    }
    let (mut offsets, mut end) = (Vec::new(), 0_u64);
    for (name, extents, dtype) in tensors {
        assert!(name.len() <= NAME_BYTES_MAX, "`{name}` is longer than ggml reads");
        put_string(&mut head, name);
        head.extend((extents.len() as u32).to_le_bytes());
        extents.iter().for_each(|extent| head.extend(extent.to_le_bytes()));
        head.extend(ggml::id_of(*dtype).expect("ggml has the type").to_le_bytes());
        head.extend(end.to_le_bytes());
        offsets.push(end);
        let shape: Vec<u64> = extents.iter().rev().copied().collect();
        let bytes = dtype.bytes_of(&shape).expect("rows are whole blocks");
        end = (end + bytes).next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
    let data = head.len() as u64;
    offsets.iter_mut().for_each(|offset| *offset += data);
    Layout { head, offsets, bytes: data + end }
}

fn put_string(head: &mut Vec<u8>, text: &str) {
    head.extend((text.len() as u64).to_le_bytes());
    head.extend(text.as_bytes());
}

fn put_value(head: &mut Vec<u8>, value: &Value) {
    let mut put = |kind: u32, bytes: &[u8]| {
        head.extend(kind.to_le_bytes());
        head.extend(bytes);
    };
    match value {
        Value::U8(value) => put(0, &[*value]),
        Value::I8(value) => put(1, &value.to_le_bytes()),
        Value::U16(value) => put(2, &value.to_le_bytes()),
        Value::I16(value) => put(3, &value.to_le_bytes()),
        Value::U32(value) => put(4, &value.to_le_bytes()),
        Value::I32(value) => put(5, &value.to_le_bytes()),
        Value::F32(value) => put(6, &value.to_le_bytes()),
        Value::Bool(value) => put(7, &[u8::from(*value)]),
        Value::U64(value) => put(10, &value.to_le_bytes()),
        Value::I64(value) => put(11, &value.to_le_bytes()),
        Value::F64(value) => put(12, &value.to_le_bytes()),
        Value::String(text) => {
            head.extend(STRING.to_le_bytes());
            put_string(head, text);
        }
        Value::Array(_) => panic!("arrays of strings are handed over apart, and no others are written"),
    }
}
