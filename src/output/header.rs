//! The header of a safetensors file, as bytes that depend on nothing but the tensors.
//!
//! ```text
//! OFFSET  SIZE  DESCRIPTION
//! 0       8     N, little-endian
//! 8       N     JSON, padded with spaces so that the data begin at a multiple of 8, or of what a plan asks for
//! 8 + N         data, in the order of the JSON, without gaps
//! ```
//!
//! `{"__metadata__":{"format":"pt"},"name":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}, ...}`; transformers
//! refuses files without `format`. The `safetensors` crate's own writer is not used because the order of its metadata
//! is not stable, and because it wants to be handed all data in order.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::plan::OutTensor;

/// Bytes of the length before the JSON.
const PREFIX: usize = 8;

/// The key in `__metadata__` for notes about weights.
const NOTES: &str = "l4tool.weights";

/// Length prefix and JSON for tensors that follow each other in this order; the data then begin at a multiple of `alignment`.
pub(super) fn encode<'a>(
    metadata: &[(String, String)],
    alignment: u64,
    tensors: impl Iterator<Item = &'a OutTensor>,
) -> Vec<u8> {
    let mut object = Map::new();
    let own = metadata.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str())));
    object.insert("__metadata__".into(), [("format".to_owned(), "pt".into())].into_iter().chain(own).collect());
    let mut start = 0_u64;
    for tensor in tensors {
        let end = start + tensor.bytes;
        let entry = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [start, end]});
        object.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut text = Value::Object(object).to_string().into_bytes();
    let begin = (PREFIX + text.len()).next_multiple_of(alignment as usize);
    text.resize(begin - PREFIX, b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(&text);
    header
}

/// `header` with room for `room` bytes of notes, if there are to be any; the data still begin at a multiple of `alignment`.
pub(super) fn with_room(header: Vec<u8>, room: usize, alignment: u64) -> Vec<u8> {
    // The key, quotes, colon and comma take their part.
    let room = if room > 0 { (room + NOTES.len() + 6).next_multiple_of(alignment as usize) } else { 0 };
    let length = header.len() + room;
    padded(header, length)
}

/// A header with spaces behind it, `length` bytes long.
fn padded(mut header: Vec<u8>, length: usize) -> Vec<u8> {
    header.resize(length, b' ');
    header[..PREFIX].copy_from_slice(&((length - PREFIX) as u64).to_le_bytes());
    header
}

/// `header`, which was made without other metadata and with room for them, with notes.
///
/// # Panics
/// There is too little room.
pub(super) fn with_notes<'a>(header: &[u8], tensors: impl Iterator<Item = &'a OutTensor>, notes: &str) -> Vec<u8> {
    let noted = encode(&[(NOTES.to_owned(), notes.to_owned())], PREFIX as u64, tensors);
    assert!(noted.len() <= header.len(), "{} bytes of header, and room for {}", noted.len(), header.len());
    padded(noted, header.len())
}

/// The first name that occurs a second time.
pub(super) fn first_duplicate<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = HashSet::new();
    let mut names = names;
    names.find(|name| !seen.insert(*name))
}
