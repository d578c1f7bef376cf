//! The head of a GGUF file as bytes, and where its tensors go.

use super::value::{ARRAY, STRING};
use super::{ALIGNMENT, MAGIC, NAME_BYTES_MAX, VERSION, Value};
use crate::dtype::{Dtype, ggml};

/// Number of the type of a whole number of 32 bits with a sign.
const I32: u32 = 5;
/// Number of the type of a floating-point number of 32 bits.
const F32: u32 = 6;

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

/// What a key that is written holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// One value.
    Value(Value),
    /// An array of strings.
    Strings(Vec<String>),
    /// An array of whole numbers of 32 bits.
    Numbers(Vec<i32>),
    /// An array of floating-point numbers of 32 bits.
    Floats(Vec<f32>),
}

/// Lays a file out: `keys` in their order, and `tensors`, which have a name, extents (the fastest-varying first) and a type.
///
/// # Panics
/// If a name is too long for llama.cpp, ggml has no such type, a row is no whole number of blocks, or a value is an array.
pub fn encode(keys: &[(String, Content)], tensors: &[(String, Vec<u64>, Dtype)]) -> Layout {
    let mut head = MAGIC.to_vec();
    head.extend(VERSION.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((keys.len() as u64).to_le_bytes());
    for (key, content) in keys {
        put_string(&mut head, key);
        match content {
            Content::Value(value) => put_value(&mut head, value),
            Content::Strings(list) => {
                put_array(&mut head, STRING, list.len());
                list.iter().for_each(|text| put_string(&mut head, text));
            }
            Content::Numbers(list) => {
                put_array(&mut head, I32, list.len());
                list.iter().for_each(|number| head.extend(number.to_le_bytes()));
            }
            Content::Floats(list) => {
                put_array(&mut head, F32, list.len());
                list.iter().for_each(|number| head.extend(number.to_le_bytes()));
            }
        }
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

fn put_array(head: &mut Vec<u8>, kind: u32, count: usize) {
    head.extend(ARRAY.to_le_bytes());
    head.extend(kind.to_le_bytes());
    head.extend((count as u64).to_le_bytes());
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
        Value::Array(_) => panic!("arrays that are written are no values of a file"),
    }
}
