//! What the keys of a GGUF file say: single values, and arrays that are read where they lie.

use super::value::{Array, Cursor, STRING, Value};

/// The head of a file: everything before the data but the table of tensors.
#[derive(Debug)]
pub struct Head {
    /// Version of the format, 2 or 3.
    pub version: u32,
    /// Keys and values, in the order of the file; no key is there twice.
    pub values: Vec<(String, Value)>,
    /// Bytes before the data.
    pub bytes: u64,
}

/// The keys of an open file.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    pub(in crate::checkpoint) head: &'a Head,
    /// The file's beginning, for arrays.
    pub(in crate::checkpoint) bytes: &'a [u8],
}

impl<'a> Keys<'a> {
    /// Version of the format.
    pub fn version(self) -> u32 {
        self.head.version
    }

    /// Every key with its value, in the order of the file.
    pub fn values(self) -> &'a [(String, Value)] {
        &self.head.values
    }

    /// The value of a key.
    pub fn value(self, key: &str) -> Option<&'a Value> {
        self.head.values.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The string of a key that has one.
    pub fn text(self, key: &str) -> Option<&'a str> {
        self.value(key)?.as_str()
    }

    /// The whole number of a key that has one, whatever its width.
    pub fn whole(self, key: &str) -> Option<u64> {
        self.value(key)?.as_u64()
    }

    /// The strings of a key whose value is an array of strings.
    pub fn strings(self, key: &str) -> Option<impl Iterator<Item = &'a str> + use<'a>> {
        let Some(&Value::Array(Array { kind: STRING, count, start })) = self.value(key) else { return None };
        let mut cursor = Cursor::new(self.bytes, start);
        Some((0..count).map(move |_| cursor.string().expect("the array was read when the file was opened")))
    }

    /// The numbers of a key whose value is an array of numbers or truth values.
    pub fn numbers(self, key: &str) -> Option<impl Iterator<Item = Value> + use<'a>> {
        let Some(&Value::Array(Array { kind, count, start })) = self.value(key) else { return None };
        if kind == STRING {
            return None;
        }
        let mut cursor = Cursor::new(self.bytes, start);
        Some((0..count).map(move |_| cursor.value_of(kind).expect("the array was read when the file was opened")))
    }
}
