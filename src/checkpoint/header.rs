//! The header of a safetensors file: parsing and checking, on bytes alone.
//!
//! ```text
//! OFFSET  SIZE  DESCRIPTION
//! 0       8     N, length of the header, u64 little-endian
//! 8       N     JSON object, begins with `{`, may end in spaces:
//!               { "__metadata__": { "key": "value", .. },          optional, strings only
//!                 "name": { "dtype": "BF16", "shape": [2, 3], "data_offsets": [BEGIN, END] }, .. }
//! 8 + N   ..    data; BEGIN and END count from here
//! ```
//!
//! The rules (safetensors README, "Format", and `Metadata::validate` of safetensors 0.8): offsets are contiguous from 0, every tensor has
//! exactly the bytes of its dtype and shape, the last one ends where the file ends, N is at most 100 MB. Two rules that the crate
//! does not hold a file to are held here: no name twice, and no more than [`DIMENSIONS_MAX`] dimensions.
//!
//! A header from an attacker costs memory in proportion to its own length and can do nothing else.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::error::Kind;
use super::json::{self, Pairs};
use crate::dtype::{Dtype, elements_of};

/// The longest header that is read: safetensors' own limit (`MAX_HEADER_SIZE`).
pub const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The most dimensions of a tensor; PyTorch itself stops at 64.
pub const DIMENSIONS_MAX: usize = 64;

/// What a header says, checked: tensors in the order of their data.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) entries: Vec<Entry>,
    /// Bytes of the data section, exactly.
    pub(crate) data_bytes: u64,
}

/// One tensor of a header.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    /// Begin and end from the start of the data section.
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

/// A fault, with the tensor that has it.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) tensor: Option<String>,
    pub(crate) kind: Kind,
}

impl From<Kind> for Fault {
    fn from(kind: Kind) -> Self {
        Self { tensor: None, kind }
    }
}

/// Parses and checks the JSON of a header.
///
/// The result proves everything that can be proved without the size of the file.
pub(crate) fn parse(bytes: &[u8]) -> Result<Header, Fault> {
    let text = json::text(bytes)?;
    if !text.starts_with('{') {
        return Err(Kind::NotAnObject.into());
    }
    let mut raw = Raw::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = HeaderSeed(&mut raw).deserialize(&mut deserializer).and_then(|()| deserializer.end());
    if let Err(error) = parsed {
        return Err(Fault { tensor: raw.current, kind: json::json_error(&error) });
    }
    let metadata = raw.metadata.flatten().unwrap_or_default();
    if let Some(key) = metadata.duplicate() {
        return Err(Kind::DuplicateKey { key: key.to_string() }.into());
    }

    let mut entries = Vec::with_capacity(raw.tensors.len());
    for (name, tensor) in raw.tensors {
        match check_size(tensor) {
            Ok((dtype, shape, [begin, end])) => entries.push(Entry { name, dtype, shape, begin, end }),
            Err(kind) => {
                return Err(Fault { tensor: Some(name), kind });
            }
        }
    }
    check_names(&entries)?;
    let data_bytes = check_offsets(&mut entries)?;
    Ok(Header { metadata: metadata.0.into_iter().collect(), entries, data_bytes })
}

/// Dtype, shape and offsets of one tensor agree with each other.
fn check_size(raw: RawTensor) -> Result<(Dtype, Vec<u64>, [u64; 2]), Kind> {
    let [begin, end] = raw.data_offsets;
    let shape = raw.shape.0;
    let dtype = raw.dtype.parse::<Dtype>().map_err(|_| Kind::UnknownDtype { dtype: raw.dtype })?;
    let Some(actual) = end.checked_sub(begin) else {
        return Err(Kind::Backwards { begin, end });
    };
    let overflow = elements_of(&shape).and_then(|elements| elements.checked_mul(dtype.block_bits())).is_none();
    match dtype.bytes_of(&shape) {
        Some(expected) if expected == actual => Ok((dtype, shape, [begin, end])),
        Some(expected) => Err(Kind::WrongLength { dtype, shape, expected, actual }),
        None if overflow => Err(Kind::SizeOverflow { dtype, shape }),
        None => Err(Kind::PartialByte { dtype, shape }),
    }
}

/// No name is there twice.
fn check_names(entries: &[Entry]) -> Result<(), Fault> {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Fault { tensor: Some(pair[0].to_string()), kind: Kind::DuplicateTensor }),
        None => Ok(()),
    }
}

/// Sorts by offset and checks that the tensors follow each other from 0 without gap or overlap; returns where they end.
fn check_offsets(entries: &mut [Entry]) -> Result<u64, Fault> {
    // The name breaks ties between tensors without bytes, so that the order does not depend on the header's.
    entries.sort_unstable_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    let mut previous: Option<&Entry> = None;
    for entry in entries.iter() {
        let expected = previous.map_or(0, |entry| entry.end);
        let begin = entry.begin;
        if begin != expected {
            let kind = match previous {
                Some(other) if begin < expected => Kind::Overlap { other: other.name.clone(), end: expected, begin },
                _ => Kind::Gap { expected, begin },
            };
            return Err(Fault { tensor: Some(entry.name.clone()), kind });
        }
        previous = Some(entry);
    }
    Ok(previous.map_or(0, |entry| entry.end))
}

/// The JSON as it stands, in its own order, with everything that it has twice.
#[derive(Default)]
struct Raw {
    metadata: Option<Option<Pairs>>,
    tensors: Vec<(String, RawTensor)>,
    /// The tensor that is being read: the one at fault when reading stops.
    current: Option<String>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `dtype`, `shape` and `data_offsets`")]
struct RawTensor {
    dtype: String,
    shape: Shape,
    data_offsets: [u64; 2],
}

struct HeaderSeed<'a>(&'a mut Raw);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let raw = self.0;
        while let Some(key) = map.next_key::<String>()? {
            if key == "__metadata__" {
                if raw.metadata.is_some() {
                    return Err(de::Error::custom("the key `__metadata__` is there twice"));
                }
                raw.metadata = Some(map.next_value()?);
            } else {
                let name = raw.current.insert(key);
                let tensor = map.next_value()?;
                raw.tensors.push((std::mem::take(name), tensor));
                raw.current = None;
            }
        }
        Ok(())
    }
}

/// A shape with a bound on its length, so that a header cannot grow into many times its own size in memory.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::with_capacity(4);
                while let Some(extent) = list.next_element::<u64>()? {
                    if shape.len() == DIMENSIONS_MAX {
                        return Err(de::Error::custom(format_args!("more than {DIMENSIONS_MAX} dimensions")));
                    }
                    shape.push(extent);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}
